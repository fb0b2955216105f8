"""Export: a trained model as one graph from photographs to detections, for TensorFlow, ONNX Runtime or LiteRT.

One signature in every format. `images` (B, H, W, C) uint8 photographs, RGB, go in; these arrays of fixed size come out,
for each photograph the best detections first, then zeros in the unused of its D = config.max_detections slots:

    count (B,) int32               how many were found
    boxes (B, D, 4) float32        y1 x1 y2 x2 in the photograph's pixels
    classes (B, D) int32           from 1; `labels.txt` names them, background first
    scores (B, D) float32
    masks (B, D, m, m) float32     probabilities inside the box: `mr.masks.paste` puts them on the photograph
    keypoint_heatmaps (B, D, m, m, K) float32    logits: `mr.keypoints.decode` reads them; with a keypoint head

Photographs are resized and padded as `detect` does, and the detections are `detect`'s. All of a batch have one size;
saved_model and onnx take any size and any number, litert a single photograph of the size that it was exported for.
"""

import os
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np

from maskrcnn_edu.anchors import cell_anchors
from maskrcnn_edu.backend import without_islands
from maskrcnn_edu.datasets import transforms
from maskrcnn_edu.errors import InputError

FORMATS = ("saved_model", "onnx", "litert")
ONNX_OPSET = 18


def export(model, path, format, size=None):
    """Writes `model` to `path`, aside first: a folder as saved_model, a file as onnx or litert.

    size: (height, width) of the photographs; litert alone needs it, and takes no other.

    Raises InputError: another backend than TensorFlow, an unknown format, litert without a size or another with one, a
    missing package, or a path that holds something else.
    """
    path, size = Path(path), size and tuple(size)
    check(path, format, size)
    if keras.backend.backend() != "tensorflow":
        raise InputError("Export writes TensorFlow's graph; set KERAS_BACKEND=tensorflow, which opens the same files.")
    write = {"saved_model": _write_saved_model, "onnx": _write_onnx, "litert": _write_litert}[format]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        aside = Path(folder) / path.name
        write(model, aside, size)
        if path.is_dir():  # an older export: os.replace takes no folder with something in it
            os.replace(path, Path(folder) / "replaced")
        os.replace(aside, path)


def check(path, format, size=None):
    """Raises InputError if an export cannot work, before anything is loaded."""
    path = Path(path)
    if format not in FORMATS:
        raise InputError(f"format is {format!r}; choose {', '.join(FORMATS)}.")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise InputError(f"size is {list(size)}; give height and width of the photographs, in pixels.")
    if (format == "litert") != (size is not None):
        raise InputError(
            "litert takes photographs of one size: give it --size H W; the other formats take any, so none."
        )
    if format == "onnx" and not find_spec("tf2onnx"):
        raise InputError("ONNX needs the package tf2onnx; install it with: pip install 'maskrcnn_edu[export]'.")
    if format == "saved_model" and path.exists() and not (path / "saved_model.pb").is_file():
        raise InputError(f"{path} is there already and is no SavedModel; give another place.")
    if format != "saved_model" and path.is_dir():
        raise InputError(f"{path} is a folder; give a file.")


def detector(model, size=None):
    """The graph of the signature above, a tf.function; with a size, for one photograph of that size."""
    import tensorflow as tf

    config = model.config
    channels = config.image_channels
    shape = (1, *size, channels) if size else (None, None, None, channels)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, name="images")])
    def detect(images):
        photograph_size = size or tf.unstack(tf.shape(images)[1:3])
        image, window = on_canvas(images, photograph_size, config)
        seen = tf.cast(tf.shape(image)[1:3], tf.float32) if config.resize == "matterport" else window[2:]
        repeat = tf.shape(images)[:1]
        batch = {"image": image, "image_size": _repeated(seen, repeat), "window": _repeated(window, repeat)}
        with without_islands():
            found = model(batch, training=False) if image.shape[1] else _of_any_size(model, batch)
        rescale = {"continuous": rescaled, "matterport": rescaled_and_rounded}[config.box_frame]
        exists = found["scores"] > 0
        found["boxes"] = rescale(found["boxes"], window, tf.cast(tf.stack(photograph_size), tf.float32))
        found["boxes"] = tf.where(exists[..., None], found["boxes"], 0.0)
        found["count"] = tf.reduce_sum(tf.cast(exists, tf.int32), axis=1)
        kinds = {"classes": tf.int32, "count": tf.int32}
        return {name: tf.cast(value, kinds.get(name, tf.float32)) for name, value in found.items()}

    return detect


def _of_any_size(model, batch):
    """`model.call` where the padded size is known only once the graph runs.

    Convolutions work as they are. What follows them needs fixed sizes: each level's grid is filled up to that of the
    largest canvas, features with their last row and column (as RoIAlign reads beyond them), logits with -inf.
    """
    import tensorflow as tf

    config, padded = model.config, tf.unstack(tf.shape(batch["image"])[1:3])
    pyramid = model.backbone(model.normalise(batch["image"], batch["image_size"]))
    largest = [-(-config.canvas_size // stride) for stride in config.strides]
    logits, deltas, anchors = [], [], []
    for level, feature in enumerate(pyramid):
        grid, side = tf.unstack(tf.shape(feature)[1:3]), largest[level]
        level_logits, level_deltas = model.rpn(feature)
        inside = (tf.range(side) < grid[0])[:, None, None] & (tf.range(side) < grid[1])[:, None]
        level_logits = tf.where(inside, _filled_up(level_logits, grid, side), -float("inf"))
        number = side * side * level_logits.shape[3]
        logits.append(tf.reshape(level_logits, (-1, number)))
        deltas.append(tf.reshape(_filled_up(level_deltas, grid, side), (-1, number, 4)))
        anchors.append(_anchors(level, padded, grid, side, config))
        pyramid[level] = _filled_up(feature, grid, side)
    proposals, scores = model.select(logits, deltas, anchors, batch["image_size"])
    return model._heads_for_detections(pyramid, proposals, scores > -float("inf"), batch)


def _filled_up(x, grid, side):
    """(B, h, w, C) -> (B, side, side, C), the last row and column repeated."""
    import tensorflow as tf

    for axis in (1, 2):
        x = tf.gather(x, tf.minimum(tf.range(side), grid[axis - 1] - 1), axis=axis)
    return x


def _anchors(level, padded, grid, side, config):
    """`anchors_by_level` for one level of side x side cells, of which `grid` lie in a `padded` image: (n, 4)."""
    import tensorflow as tf

    cell = cell_anchors(config.anchor_sizes[level], config.anchor_ratios)
    steps = [tf.constant(config.strides[level])] * 2
    if config.anchor_rounding:
        cell, steps = np.round(cell), [whole // cells for whole, cells in zip(padded, grid, strict=True)]
    y, x = tf.meshgrid(*(tf.cast(tf.range(side) * step, tf.float32) for step in steps), indexing="ij")
    return tf.reshape(tf.stack([y, x, y, x], axis=-1)[:, :, None] + cell, (-1, 4))


# Preprocessing in the graph: `datasets.transforms`, with its arithmetic, so that the pixels are the same


def on_canvas(images, photograph_size, config):
    """uint8 photographs (B, h, w, C) resized and padded: (B, H, W, C) float32, and their window (4,) on the canvas."""
    import tensorflow as tf

    size = network_size(photograph_size, config)
    canvas, starts = [config.canvas_size] * 2, [0, 0]
    if config.resize == "matterport":
        starts = [(config.canvas_size - part) // 2 for part in size]
    elif isinstance(photograph_size, tuple):
        canvas = [config.round_up(part) for part in size]
    else:
        # Not -(-part // divisor): in ONNX whole numbers divide towards zero.
        canvas = [(part + config.size_divisor - 1) // config.size_divisor * config.size_divisor for part in size]
    rule = {"detectron2": resize, "torchvision": resize_plain, "matterport": resize_into_black}[config.resize]
    ends = [start + part for start, part in zip(starts, size, strict=True)]
    margins = [[start, whole - end] for start, whole, end in zip(starts, canvas, ends, strict=True)]
    image = tf.pad(tf.cast(rule(images, photograph_size, size), tf.float32), [[0, 0], *margins, [0, 0]])
    image.set_shape((None, *(side if isinstance(side, int) else None for side in canvas), images.shape[3]))
    return image, tf.cast(tf.stack([*starts, *ends]), tf.float32)


def network_size(photograph_size, config):
    """`transforms.network_size`, also of int32 scalars of the graph."""
    import tensorflow as tf

    if isinstance(photograph_size, tuple):
        return transforms.network_size(*photograph_size, config)
    height, width = (tf.cast(side, tf.float64) for side in photograph_size)
    short, long = tf.minimum(height, width), tf.maximum(height, width)
    one, least, most = (tf.constant(x, tf.float64) for x in (1, config.image_min_size, config.image_max_size))
    scale = least / short
    if config.resize == "matterport":
        scale = tf.maximum(one, scale)
        scale = tf.where(tf.round(long * scale) > most, most / long, scale)
        sides = tf.round(height * scale), tf.round(width * scale)
    elif config.resize == "torchvision":
        scale = tf.minimum(scale, most / long)
        sides = tf.floor(height * scale), tf.floor(width * scale)
    else:
        shrink = tf.minimum(one, most / (long * scale))
        sides = [tf.where(side == short, least, side * scale) * shrink for side in (height, width)]
        sides = [tf.floor(side + 0.5) for side in sides]
    return [tf.maximum(tf.cast(side, tf.int32), 1) for side in sides]


def resize(images, photograph_size, size):
    """Pillow's: along a row first, then down; weights are whole numbers of 22 bits, and each pass ends in uint8."""
    import tensorflow as tf

    images, one = tf.cast(images, tf.int32), 2**22
    for axis in (2, 1):
        first, weights = antialias(photograph_size[axis - 1], size[axis - 1])
        weights = tf.cast(tf.floor(weights * one + 0.5), tf.int32)
        total = one // 2 + weighed(images, axis, first, weights[:, 0])
        taps = weights.shape[1] or tf.shape(weights)[1]
        for tap in range(1, taps) if isinstance(taps, int) else tf.range(1, taps):
            total += weighed(images, axis, first + tap, weights[:, tap])
        images = total // one
    return images


def antialias(pixels, size):
    """The first of the `pixels` that each of `size` new ones shows, (size,), and the shares of it and the next, (size,
    taps): 1 - its distance in units of the larger of the two pixels, if that is positive.

    Distances are whole numbers, so exact.
    """
    import tensorflow as tf

    unit = tf.maximum(size, pixels) if tf.is_tensor(size) else max(size, pixels)
    centre = (2 * tf.range(size) + 1) * pixels
    first = tf.maximum(centre - 2 * unit + size, 0) // (2 * size)
    pixel = first[:, None] + tf.range((2 * unit + size - 1) // size)
    distance = tf.abs((2 * pixel + 1) * size - centre[:, None])
    weights = tf.maximum(1 - tf.cast(distance, tf.float64) / tf.cast(2 * unit, tf.float64), 0)
    weights = tf.where(pixel < pixels, weights, 0)
    return first, weights / tf.reduce_sum(weights, axis=1, keepdims=True)


def resize_plain(images, photograph_size, size):
    """Bilinear between the nearest pixels: down first, then along a row, in float32."""
    import tensorflow as tf

    images = tf.cast(images, tf.float32)
    for axis in (1, 2):
        pixels = photograph_size[axis - 1]
        position = tf.clip_by_value(positions(pixels, size[axis - 1]), 0, tf.cast(pixels - 1, tf.float64))
        below = tf.minimum(tf.cast(position, tf.int32), tf.maximum(pixels - 2, 0))
        share = tf.cast(position - tf.cast(below, tf.float64), tf.float32)
        images = weighed(images, axis, below, 1 - share) + weighed(images, axis, below + 1, share)
    return images


def resize_into_black(images, photograph_size, size):
    """scikit-image's: four corners in float64, kept between the photograph's darkest and brightest, cut to uint8.

    LiteRT knows no float64. There, a whole number may come out as the one below it in scikit-image, or the other way.
    """
    import tensorflow as tf

    kind, slack = (tf.float32, 1e-3) if isinstance(photograph_size, tuple) else (tf.float64, 0.0)
    images = tf.cast(images, kind)
    total, (rows, columns) = 0, (corners(*sides, kind) for sides in zip(photograph_size, size, strict=True))
    for row, height in rows:
        for column, width in columns:
            total += weighed(weighed(images, 1, row, height), 2, column, width)
    least, most = (reduce(images, axis=(1, 2, 3), keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    return tf.floor(tf.minimum(tf.maximum(total, least), most) + slack)


def corners(pixels, size, kind):
    """The pixel before and the pixel after each of `size` positions: twice (index, share), no share outside."""
    import tensorflow as tf

    position = positions(pixels, size)
    before, share = tf.floor(position), 1 - (position - tf.floor(position))
    found = []
    for pixel, weight in ((before, share), (before + 1, 1 - share)):
        pixel = tf.cast(pixel, tf.int32)
        weight = tf.where((pixel >= 0) & (pixel < pixels), weight, 0)
        found.append((pixel, tf.cast(weight, kind)))
    return found


def positions(pixels, size):
    """Where the middles of `size` new pixels lie among the `pixels` of a side, from the middle of the first."""
    import tensorflow as tf

    steps = tf.cast(pixels, tf.float64) / tf.cast(size, tf.float64)
    return (tf.cast(tf.range(size), tf.float64) + 0.5) * steps - 0.5


def weighed(images, axis, index, weight):
    """Rows (axis 1) or columns (axis 2) of the images (B, h, w, C), each times its weight: index and weight (n,)."""
    import tensorflow as tf

    index = tf.clip_by_value(index, 0, tf.shape(images)[axis] - 1)
    return tf.gather(images, index, axis=axis) * (weight[:, None, None] if axis == 1 else weight[:, None])


def rescaled(boxes, window, photograph_size):
    """`detections.rescaled` in the graph: boxes (B, D, 4)."""
    import tensorflow as tf

    limit = tf.tile(photograph_size, [2])
    return tf.clip_by_value(boxes * (limit / tf.tile(window[2:] - window[:2], [2])), 0.0, limit)


def rescaled_and_rounded(boxes, window, photograph_size):
    """`detections.rescaled_and_rounded` in the graph: boxes (B, D, 4)."""
    import tensorflow as tf

    first, last = tf.tile(window[:2], [2]), window[2:] - 1
    share = (boxes - first) / tf.tile(last - window[:2], [2])
    return tf.round(share * tf.tile(photograph_size - 1, [2])) + tf.constant([0.0, 0.0, 1.0, 1.0])


def _repeated(row, count):
    import tensorflow as tf

    return tf.broadcast_to(row, tf.concat([count, tf.shape(row)], 0))


# Formats


def _write_saved_model(model, path, size):
    import tensorflow as tf

    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    module.detect = detector(model, size)
    tf.saved_model.save(module, str(path), signatures=module.detect)
    (path / "assets.extra").mkdir()  # TensorFlow Serving leaves this folder to its users
    (path / "assets.extra" / "labels.txt").write_text(_labels(model))


def _write_onnx(model, path, size):
    import onnx
    import tf2onnx

    detect = detector(model, size)
    proto, _ = tf2onnx.convert.from_function(detect, input_signature=detect.input_signature, opset=ONNX_OPSET)
    onnx.checker.check_model(proto)  # tf2onnx only logs an operation that it does not know
    entry = proto.metadata_props.add()
    entry.key, entry.value = "labels.txt", _labels(model)
    path.write_bytes(proto.SerializeToString())


def _write_litert(model, path, size):
    import tensorflow as tf

    saved = path.with_name("saved_model")
    _write_saved_model(model, saved, size)
    path.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(saved)).convert())
    with zipfile.ZipFile(path, "a") as archive:  # LiteRT's metadata: a zip behind the model
        archive.writestr("labels.txt", _labels(model))


def _labels(model):
    return "".join(f"{name}\n" for name in model.class_names)

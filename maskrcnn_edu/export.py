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


# Preprocessing, as `datasets.transforms` has it, in the graph


def on_canvas(images, photograph_size, config):
    """uint8 photographs (B, h, w, C) resized and padded: (B, H, W, C) float32, and their window (4,) on the canvas.

    Resizing is linear in each axis, so it is a product with a matrix, and zero rows of that matrix are the padding.
    """
    import tensorflow as tf

    sizes = network_size(photograph_size, config)
    canvas, starts = [config.canvas_size] * 2, [0, 0]
    if config.resize == "matterport":
        starts = [(config.canvas_size - part) // 2 for part in sizes]
    elif isinstance(photograph_size, tuple):
        canvas = [config.round_up(part) for part in sizes]
    else:
        # Not -(-part // divisor): in ONNX whole numbers divide towards zero.
        canvas = [(part + config.size_divisor - 1) // config.size_divisor * config.size_divisor for part in sizes]
    rows, columns = (
        resize_matrix(pixels, part, start, whole, config.resize)
        for pixels, part, start, whole in zip(photograph_size, sizes, starts, canvas, strict=True)
    )
    image = tf.einsum("bhwc,xw->bhxc", tf.cast(images, tf.float32), columns)
    if config.resize == "detectron2":  # Pillow's passes, along a row first, each end in uint8
        image = tf.floor(image + 0.5)
    image = tf.einsum("yh,bhxc->byxc", rows, image)
    if config.resize == "detectron2":
        image = tf.floor(image + 0.5)
    if config.resize == "matterport":
        image = tf.floor(image + 1e-3)  # cut to uint8; whole numbers have come through with rounding errors
    window = [*starts, *(start + part for start, part in zip(starts, sizes, strict=True))]
    return image, tf.cast(tf.stack(window), tf.float32)


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


def resize_matrix(pixels, size, start, whole, resize):
    """Weights (whole, pixels) of the `pixels` of a photograph in rows `start` to `start + size` of a canvas, else 0.

    Each weighs 1 - its distance, if that is positive. Distances are whole numbers over a whole number, so exact. The
    unit is a pixel of the photograph; with antialias (Detectron2, that is Pillow) of the coarser of the two.
    """
    import tensorflow as tf

    row, pixel = tf.range(whole)[:, None] - start, tf.range(pixels)[None]
    distance = tf.abs((2 * pixel + 1) * size - (2 * row + 1) * pixels)
    unit = 2 * (tf.maximum(size, pixels) if resize == "detectron2" else size)
    weights = tf.maximum(1.0 - tf.cast(distance, tf.float32) / tf.cast(unit, tf.float32), 0.0)
    if resize != "matterport":  # to the seed the photograph lies in black; to the others its edge goes on
        weights = weights / tf.maximum(tf.reduce_sum(weights, axis=1, keepdims=True), 1e-6)
    return tf.where((row >= 0) & (row < size), weights, 0.0)


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

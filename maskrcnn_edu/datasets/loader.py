"""loader: from a Dataset to the batches that `MaskRCNN.fit` takes."""

import functools

import numpy as np

from maskrcnn_edu import distribution
from maskrcnn_edu.datasets import transforms
from maskrcnn_edu.datasets.dataset import check_class_names
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.keypoints import flip_order

# Two threads keep decoding and training side by side; four batches ahead is little memory, even at 16 x 1344 x 1344.
READ_THREADS = 2
BATCHES_AHEAD = 4
ENDLESS = 10**9  # epochs; Grain's own endless length overflows with batches of one image


def loader(dataset, config, training=True, seed=0, first_step=0, shard=None):
    """A Grain dataset of batches for `fit`, `evaluate` and `validation_data`.

    For training it has no end: images in a new order in every epoch, half of them flipped (Config.horizontal_flip).
    Everything random comes from `seed`: batch k is the same in every run, so `first_step=k` continues a stopped run.
    Otherwise all images come once and in order, unflipped, and the last batch may be smaller.

    `shard=(index, count)`: of every batch only part `index` of `count` equal ones, for one of several processes; by
    default the part that is this process's within `mr.devices`.

    An image keeps at most G = Config.max_instances objects, the largest by area; those below 1 pixel after resizing go.
    An element is a dict of arrays, B = Config.batch_size, S = Config.canvas_size, M = Config.mask_crop_size:

        image: (B, S, S, 3) uint8 (float32 where Config.resize is torchvision), zeros right and below.
        image_size: (B, 2) float32, height and width of the part that is image.
        boxes: (B, G, 4) float32 y1, x1, y2, x2, pixels of the padded image; zeros where there is no object.
        classes: (B, G) int32; 0 where there is no object, negative for a crowd.
        masks: (B, G, M, M) uint8, how much of each cell of the box the object covers, 0..255; with Config.mask_head.
        keypoints: (B, G, K, 3) float32 x, y, visibility (0: not labelled), pixels of the padded image; with
            Config.keypoints.
        seed: (B,) int32, for the sampling of anchors and RoIs in the model.

    Its attribute `steps_per_epoch` is the number of batches in one pass over `dataset`; `failures` collects what went
    wrong with an image, since TensorFlow turns an error that passes through it into one of its own. Read-ahead is by
    two threads; for worker processes instead, call Grain's `.mp_prefetch(...)` on the result (in a script that does not
    run under `absl.app`, after `absl.flags.FLAGS.mark_as_parsed()`).

    Raises:
        InputError: a dataset without images, or with another number of classes or keypoints than `config`.
    """
    import grain  # 0.6 s that detection does not need

    _check(dataset, config)
    images = grain.MapDataset.range(len(dataset)).seed(seed)
    if training:
        # Repeated before anything random, so that every epoch draws anew.
        images = images.shuffle().repeat(ENDLESS)
    flips = training and config.horizontal_flip
    failures = []
    element = functools.partial(_element, dataset=dataset, config=config, flips=flips)
    images = images.random_map(functools.partial(_recording, failures, element))
    index, count = distribution.shard() if shard is None else shard
    if config.batch_size % count:
        raise InputError(f"Config.batch_size is {config.batch_size}; {count} processes need a multiple of {count}.")
    part = config.batch_size // count
    batches = images.batch(part)[index::count][first_step:]
    # Keras would turn a MapDataset into an iterator with Grain's defaults: 500 batches ahead.
    batches = batches.to_iter_dataset(grain.ReadOptions(READ_THREADS, BATCHES_AHEAD))
    batches.steps_per_epoch = -(-len(dataset) // config.batch_size)
    batches.failures = failures
    return batches


def _recording(failures, function, *args):
    """`function(*args)`; an InputError that it raises is kept in the list as well."""
    try:
        return function(*args)
    except InputError as error:
        failures.append(error)
        raise


def _check(dataset, config):
    if len(dataset) == 0:
        raise InputError(f"{type(dataset).__name__} has no images; give at least one.")
    check_class_names(type(dataset).__name__, dataset.class_names)
    if len(dataset.class_names) != config.num_classes:
        raise InputError(
            f"Config.num_classes is {config.num_classes}, but {type(dataset).__name__} has {len(dataset.class_names)} "
            "classes, background included; make them equal."
        )
    if config.keypoints and len(dataset.keypoint_names) != config.keypoints:
        raise InputError(
            f"Config.keypoints is {config.keypoints}, but {type(dataset).__name__} has {len(dataset.keypoint_names)} "
            "keypoint_names; make them equal (CocoDataset: keypoints=True; on the command line: --keypoints)."
        )


def _element(i, rng, dataset, config, flips):
    """One image and its objects in the shapes of the network."""
    image = dataset.image(i)
    if image.shape[2] != 3:
        raise InputError(
            f"{type(dataset).__name__} image {i} (id {dataset.image_id(i)}) has {image.shape[2]} channels; give RGB."
        )
    found = dataset.instances(i, image.shape[:2])
    boxes, classes, masks = found[:3]
    size = transforms.network_size(*image.shape[:2], config)
    scale = np.array(size) / image.shape[:2]
    scaled = boxes * np.tile(scale, 2).astype(np.float32)

    kept = _largest(scaled, masks, config.max_instances)
    boxes, classes, masks, scaled = boxes[kept], classes[kept], masks[kept], scaled[kept]
    if config.keypoints:
        keypoints = _scaled_keypoints(found.keypoints[kept], scale, config)
    if config.mask_head:
        masks = transforms.crop_masks(masks, boxes, config.mask_crop_size)
    image = transforms.to_network_size(image, config)
    canvas = (config.canvas_size, config.canvas_size)
    top, left = transforms.corner(size, canvas, config)
    if flips and rng.random() < 0.5:
        image, scaled, masks = transforms.flip(image, scaled, masks)
        if config.keypoints:
            keypoints = transforms.flip_keypoints(keypoints, size[1], flip_order(dataset.keypoint_names))

    element = {
        "image": transforms.pad(image, *canvas, top, left),
        "image_size": np.array(canvas if config.resize == "matterport" else size, np.float32),
        "boxes": _slots(scaled + np.float32([top, left, top, left]), config.max_instances),
        "classes": _slots(classes, config.max_instances),
        "seed": np.array(rng.integers(2**31), np.int32),
    }
    if config.mask_head:
        element["masks"] = _slots(masks, config.max_instances)
    if config.keypoints:
        keypoints = np.where(keypoints[..., 2:] > 0, keypoints, 0)
        element["keypoints"] = _slots(keypoints, config.max_instances)
    return element


def _scaled_keypoints(keypoints, scale, config):
    """Pixel indices of the photograph (N, K, 3) as places in the network's input; `scale` is that of y and x."""
    places = (keypoints[..., :2] + np.float32(config.keypoint_offset)) * np.float32(scale[::-1])
    return np.concatenate([places, keypoints[..., 2:]], axis=-1)


def _largest(boxes, masks, count):
    """Indices of at most `count` objects, the largest masks, in their own order; none with a side below 1 pixel."""
    big_enough = np.flatnonzero((boxes[:, 2:] - boxes[:, :2] >= 1).all(1))
    areas = np.count_nonzero(masks[big_enough], axis=(1, 2))
    return np.sort(big_enough[np.argsort(-areas, kind="stable")[:count]])


def _slots(array, count):
    """`array` with zeros behind it, up to `count` entries."""
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])

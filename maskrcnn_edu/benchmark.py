"""Benchmark: how long each stage of a detection takes on this machine, and a step of training."""

import resource
import sys
import time

import keras
import numpy as np
from keras import ops

from maskrcnn_edu.anchors import anchors_by_level
from maskrcnn_edu.backend import compiled, island
from maskrcnn_edu.candidates import choose_detections
from maskrcnn_edu.detections import as_photograph, on_photograph, padded_size, to_batch
from maskrcnn_edu.proposals import run_rpn_head


def time_detection(model, image, batch_size=1, repeats=5):
    """Seconds for each stage of detecting on `batch_size` copies of a photograph, the fastest of `repeats` runs.

    Each stage runs by itself on what the one before gave; `whole` is `model.detect`, and `first` its first call with
    this size, compilation included.

    -> seconds by name, and the number of detections on a photograph.
    """
    config, photograph = model.config, as_photograph(image)
    images = [photograph] * batch_size
    seconds = {}

    def run(name, function, *arguments):
        result, seconds[name] = fastest(function, arguments, repeats)
        return result

    def network(name, function, *arguments):
        return run(name, compiled(function, model), *arguments)

    start = time.perf_counter()
    model.detect(images, batch_size)
    first = time.perf_counter() - start
    run("whole", model.detect, images, batch_size)

    batch = run("resize", to_batch, images, padded_size(photograph, config), batch_size, config)
    size, window = batch["image_size"], batch["window"]
    image = network("normalise", model.normalise, batch["image"], size)
    pyramid = network("backbone", lambda x: model.backbone(x), image)
    logits, deltas = network("rpn", lambda *levels: run_rpn_head(model.rpn, levels), *pyramid)
    anchors = anchors_by_level(batch["image"].shape[1:3], config)
    proposals, scores = network("proposals", model.select, logits, deltas, anchors, size)
    feature = network("box features", lambda p, r: model.pool(p, r, config.box_pool_size), pyramid, proposals)
    logits, deltas = network("box head", lambda x: model.box_head(x), _merged(feature))
    logits, deltas = (ops.reshape(x, (batch_size, -1, *x.shape[1:])) for x in (logits, deltas))
    exists = scores > -float("inf")
    choose = island(choose_detections, config)
    result = network("choice", lambda *x: choose(*x), logits, deltas, proposals, exists, size, window)
    rois, classes = result["boxes"], ops.reshape(result["classes"], (-1,))
    if config.mask_head:
        feature = network("mask features", lambda p, r: model.pool(p, r, config.mask_pool_size), pyramid, rois)
        network("mask head", lambda x, c: model.mask_head([x, c]), _merged(feature), classes)
    if config.keypoints:
        feature = network("keypoint features", lambda p, r: model.pool(p, r, config.keypoint_pool_size), pyramid, rois)
        network("keypoint head", lambda x: model.keypoint_head(x), _merged(feature))
    result = {name: np.asarray(value) for name, value in compiled(model, model)(batch).items()}

    one = {name: value[0] for name, value in result.items()}
    found = run("paste", lambda: [on_photograph(one, photograph, window[0], config) for _ in images])
    return {"first": first, **seconds}, len(found[0])


def photograph(height, width, channels=3):
    """A picture to time with, (height, width, channels) uint8: smooth, so that proposals differ in their scores."""
    y, x = np.meshgrid(np.linspace(0, 9, height), np.linspace(0, 12, width), indexing="ij")
    waves = [np.sin((c + 1) * y) * np.cos((channels - c) * x) for c in range(channels)]
    return np.uint8(127.5 + 127.5 * np.stack(waves, axis=-1))


def time_training(model, repeats=3):
    """Seconds for a step of training on a batch of config.batch_size drawn images, and for the first such step."""
    model.compile(keras.optimizers.SGD(1e-5, momentum=0.9))
    batch = synthetic_batch(model.config)
    start = time.perf_counter()
    model.train_on_batch(batch)
    first = time.perf_counter() - start
    _, seconds = fastest(model.train_on_batch, (batch,), repeats)
    return {"first training step": first, "training step": seconds}


def synthetic_batch(config, objects=3, seed=0):
    """A batch as `mr.loader` gives it: noise, with `objects` rectangles that fill their boxes on each image."""
    rng, side, slots = np.random.default_rng(seed), config.canvas_size, config.max_instances
    shape = (config.batch_size, min(objects, slots))
    corners = np.sort(rng.uniform(0, side, (*shape, 2, 2)), axis=2)
    boxes, classes = np.zeros((shape[0], slots, 4), np.float32), np.zeros((shape[0], slots), np.int32)
    boxes[:, : shape[1]], classes[:, : shape[1]] = (
        corners.reshape(*shape, 4),
        rng.integers(1, config.num_classes, shape),
    )
    batch = {
        "image": rng.integers(0, 256, (shape[0], side, side, len(config.pixel_mean)), np.uint8),
        "image_size": np.full((shape[0], 2), side, np.float32),
        "boxes": boxes, "classes": classes, "seed": np.arange(shape[0], dtype=np.int32),
    }  # fmt: skip
    if config.mask_head:
        batch["masks"] = np.full((shape[0], slots, *[config.mask_crop_size] * 2), 255, np.uint8)
    if config.keypoints:
        places = rng.uniform(0, side, (shape[0], slots, config.keypoints, 2))
        batch["keypoints"] = np.concatenate([places, np.full((*places.shape[:-1], 1), 2)], -1).astype(np.float32)
    return batch


def fastest(function, arguments, repeats):
    """What `function(*arguments)` gives, and the seconds that the fastest of `repeats` calls took after a first one."""
    result, best = finished(function(*arguments)), float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        result = finished(function(*arguments))
        best = min(best, time.perf_counter() - start)
    return result, best


def peak_memory():
    """The most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def finished(result):
    """JAX answers before it has computed."""
    if keras.backend.backend() == "jax":
        import jax

        jax.block_until_ready(result)
    return result


def _merged(feature):
    return ops.reshape(feature, (-1, *feature.shape[2:]))

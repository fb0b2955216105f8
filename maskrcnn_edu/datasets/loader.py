"""loader: from a Dataset to the batches that `MaskRCNN.fit` takes."""

import functools
import operator

import numpy as np

from maskrcnn_edu import distribution
from maskrcnn_edu.datasets import augmentation, transforms
from maskrcnn_edu.datasets.augmentation import Scene
from maskrcnn_edu.datasets.dataset import check_class_names
from maskrcnn_edu.errors import InputError

# What the random numbers of an image are for: one stream each, so that none depends on how many another has drawn.
SAMPLING, AUGMENTATION, PARTNER, PARTNER_AUGMENTATION, PASTING = range(5)


def loader(dataset, config, training=True, seed=0, first_step=0, workers=0, shard=None, augment=None, skip_bad=False):
    """A Grain dataset of batches for `fit`, `evaluate` and `validation_data`.

    For training it has no end: images in a new order in every epoch, augmented as `config` says. Images that
    `dataset.trains(i)` rules out are left out. Otherwise all images come once and in order, as they are, and the last
    batch may be smaller.

    Batch k depends on the dataset, `config`, `seed` and k alone, not on `workers` or how the batches are sharded:
    `first_step=k` continues a stopped run.

    An image keeps at most G = Config.max_instances objects, the largest by area; those with a side below 1 pixel, after
    resizing and cropping, go. An element is a dict of arrays, B = Config.batch_size, C = Config.image_channels,
    S = Config.training_canvas_size (for validation canvas_size), M = Config.mask_crop_size:

        image: (B, S, S, C) uint8 (float32 where Config.resize is torchvision), zeros right and below.
        image_size: (B, 2) float32, height and width of the part that is image.
        boxes: (B, G, 4) float32 y1, x1, y2, x2, pixels of the padded image; zeros where there is no object.
        classes: (B, G) int32; 0 where there is no object, negative for a crowd.
        masks: (B, G, M, M) uint8, how much of each cell of the box the object covers, 0..255; with Config.mask_head.
        keypoints: (B, G, K, 3) float32 x, y, visibility (0: not labelled), pixels of the padded image; with
            Config.keypoints.
        seed: (B,) int32, for the sampling of anchors and RoIs in the model.

    Args:
        workers: processes that make the batches; 0: two threads of this one. The dataset and `augment` travel to them
            by pickle, and a script that is run must keep its own work under `if __name__ == "__main__":`.
        shard: (index, count): one process's equal part of each batch of Config.batch_size images; by default the part
            that is this process's within `mr.devices`: all of it, but for runs on several machines.
        augment: a function (image, masks) -> (image, masks) that sees each training image first, as `dataset` gives it:
            (H, W, C) uint8 and (N, H, W) bool. A mask that it makes empty is an object less. If it has a parameter
            `rng`, it gets the image's own np.random.Generator; with other random numbers batch k is no longer the same
            in every run.
        skip_bad: an image or annotation that cannot be read is replaced by the next one of the dataset that can, and
            noted in `skipped`. By default it ends the run, with its name.

    Its attributes and methods: `steps_per_epoch`, the number of batches in one pass over the dataset; `image_ids(k)`,
    the ids in batch k, of all shards; `skipped`, {image id: what was wrong}; `failures`, the errors that it has raised
    (TensorFlow turns one that passes through it into one of its own); `close()`, which ends its worker processes.

    Raises:
        InputError: a dataset without images (to train on), or with other classes or keypoints than `config`, or an
            argument that cannot be.
    """
    from maskrcnn_edu.datasets.batches import Batches  # Grain takes 0.6 s, which detection does not need

    _check(dataset, config)
    index, count = _checked_shard(distribution.shard() if shard is None else shard, config.batch_size)
    if augment is not None and not training:
        raise InputError("loader: augment is for training; leave it out, or set training=True.")
    if augment is not None and config.keypoints:
        raise InputError("loader: augment returns no keypoints, but Config.keypoints is set; leave one of them out.")
    usable = [i for i in range(len(dataset)) if not training or dataset.trains(i)]
    if not usable:
        raise InputError(f"{type(dataset).__name__} has no image with an object to train on; give one that has.")
    make = BatchMaker(dataset, config, usable, training, _whole("seed", seed), (index, count), augment, skip_bad)
    return Batches(make, _whole("first_step", first_step), _whole("workers", workers))


class BatchMaker:
    """Makes batch k, anywhere and at any time the same: `maker(k)` -> the batch and {image id: what was wrong}."""

    def __init__(self, dataset, config, usable, training, seed, shard, function, skip_bad):
        self.dataset, self.config, self.usable, self.training = dataset, config, np.array(usable), training
        self.seed, self.shard, self.function, self.skip_bad = seed, shard, function, skip_bad
        self.steps_per_epoch = -(-len(usable) // config.batch_size)

    def __call__(self, step):
        skipped = {}
        elements = [self._element(position, skipped) for position in self._positions(step, *self.shard)]
        return {name: np.stack([element[name] for element in elements]) for name in elements[0]}, skipped

    def image_ids(self, step) -> list:
        """The ids of the images in batch `step` of all shards; after each the one whose objects it gets, if any."""
        ids = []
        for position in self._positions(step, 0, 1):
            ids.append(self.dataset.image_id(self._image(position)))
            partner = self._partner(position)
            if partner is not None:
                ids.append(self.dataset.image_id(partner))
        return ids

    def steps(self):
        """How many batches there are in one pass of this shard; an empty part of the last batch is none."""
        return self.steps_per_epoch - (not self._positions(self.steps_per_epoch - 1, *self.shard))

    def _positions(self, step, index, count):
        """The part `index` of `count` of batch `step`, as places in the endless (or the only) row of images."""
        part = self.config.batch_size // count
        start = step * self.config.batch_size + index * part
        end = start + part if self.training else min(start + part, len(self.usable))
        return range(start, end)

    def _image(self, position):
        """Which image stands there: a new order in every epoch."""
        epoch, place = divmod(position, len(self.usable))
        return int(self.usable[_order(len(self.usable), self.seed, epoch)[place] if self.training else place])

    def _rng(self, position, purpose):
        return np.random.default_rng([self.seed, position, purpose])

    def _partner(self, position):
        """The image whose objects are pasted onto the one there, or None."""
        rng = self._rng(position, PARTNER)
        if not self.training or rng.random() >= self.config.copy_paste:
            return None
        return int(self.usable[rng.integers(len(self.usable))])

    def _element(self, position, skipped):
        """One image and its objects in the shapes of the network."""
        config = self.config
        scene = self._scene(self._image(position), skipped)
        if not self.training:
            size = transforms.network_size(*scene.image.shape[:2], config)
            window = (0, 0, *size)
        else:
            scene, size, window = self._augmented(scene, self._rng(position, AUGMENTATION))
            partner = self._partner(position)
            if partner is not None:
                other = self._augmented(self._scene(partner, skipped), self._rng(position, PARTNER_AUGMENTATION))
                pair = augmentation.seen(scene, size, window, config), augmentation.seen(*other, config)
                scene = augmentation.paste(*pair, self._rng(position, PASTING), config.pixel_mean)
                size = scene.image.shape[:2]
                window = (0, 0, *size)
        seed = np.array(self._rng(position, SAMPLING).integers(2**31), np.int32)
        canvas = config.training_canvas_size if self.training else config.canvas_size
        return {**network_input(scene, size, window, canvas, config), "seed": seed}

    def _augmented(self, scene, rng):
        """The scene after the augmentations at its own resolution; and its size and window in the network."""
        names = self.dataset.keypoint_names if self.config.keypoints else ()
        scene = augmentation.augment(scene, rng, self.config, names, self.function)
        return scene, *augmentation.view(*scene.image.shape[:2], rng, self.config)

    def _scene(self, i, skipped):
        """Image i, or with skip_bad the next one that can be read."""
        if not self.skip_bad:
            return read_scene(self.dataset, i, self.config)
        start = int(np.searchsorted(self.usable, i))
        for place in range(start, start + len(self.usable)):
            i = int(self.usable[place % len(self.usable)])
            try:
                return read_scene(self.dataset, i, self.config)
            except (InputError, OSError) as error:
                skipped[self.dataset.image_id(i)] = str(error)
        raise InputError(
            f"None of the {len(self.usable)} images of {type(self.dataset).__name__} can be read; the last: "
            f"{skipped[self.dataset.image_id(i)]}"
        )


@functools.lru_cache(maxsize=4)
def _order(count, seed, epoch):
    """The order of `count` images in an epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def read_scene(dataset, i, config) -> Scene:
    """Image `i` of the dataset and its objects. Raises InputError unless it has Config.image_channels."""
    image = dataset.image(i)
    if image.shape[2] != config.image_channels:
        raise InputError(
            f"{type(dataset).__name__} image {i} (id {dataset.image_id(i)}) has {image.shape[2]} channels, but "
            f"Config.image_channels is {config.image_channels}; make them equal."
        )
    found = dataset.instances(i, image.shape[:2])
    keypoints = np.zeros((len(found.classes), 0, 3), np.float32)
    if config.keypoints:  # COCO gives indices of pixels
        keypoints = found.keypoints + np.float32([config.keypoint_offset] * 2 + [0])
    return Scene(image, found.boxes, found.classes, found.masks, keypoints)


def network_input(scene, size, window, canvas, config) -> dict:
    """The scene as the network takes it: resized to `size`, cut to `window`, on a square of `canvas` pixels.

    Masks are cropped to their boxes at the image's own resolution: nothing is lost by resizing them first.
    """
    scale = np.tile(np.float32(size) / np.float32(scene.image.shape[:2]), 2)
    boxes = transforms.crop_boxes(scene.boxes, scene.masks, np.float32(window) / scale)
    kept = _largest(boxes, boxes * scale, scene.masks, config.max_instances)
    scene, boxes = scene.kept(kept), boxes[kept]
    image = transforms.resized_window(scene.image, size, window, config)
    top, left = transforms.corner(image.shape[:2], (canvas, canvas), config)
    whole = config.resize == "matterport"  # to the seed's network the padding is part of the image
    origin = np.float32([window[0] - top, window[1] - left])
    element = {
        "image": transforms.pad(image, canvas, canvas, top, left),
        "image_size": np.float32((canvas, canvas) if whole else image.shape[:2]),
        "boxes": _slots(boxes * scale - np.tile(origin, 2), config.max_instances),
        "classes": _slots(scene.classes, config.max_instances),
    }
    if config.mask_head:
        masks = transforms.crop_masks(scene.masks, boxes, config.mask_crop_size)
        element["masks"] = _slots(masks, config.max_instances)
    if config.keypoints:
        places = augmentation.seen_keypoints(scene.keypoints, scale, window, (top, left))
        element["keypoints"] = _slots(places, config.max_instances)
    return element


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


def _checked_shard(shard, batch_size):
    try:
        index, count = map(operator.index, shard)
    except (TypeError, ValueError):
        raise InputError(f"loader: shard is {shard!r}; give (index, count), two whole numbers.") from None
    if not 0 <= index < count:
        raise InputError(f"loader: shard is {shard!r}; give an index from 0 to count - 1.")
    if batch_size % count:
        raise InputError(
            f"Config.batch_size is {batch_size}, the images of all {count} shards; give a multiple of {count}."
        )
    return index, count


def _whole(name, value):
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise InputError(f"loader: {name} is {value!r}; give a whole number from 0 on.")
    return number


def _largest(boxes, scaled, masks, count):
    """Indices of at most `count` objects, the largest masks, in their own order; none with a side below 1 pixel.

    boxes (N, 4) in pixels of the masks, scaled (N, 4) in the network's.
    """
    big_enough = np.flatnonzero((scaled[:, 2:] - scaled[:, :2] >= 1).all(1))
    if len(big_enough) <= count:
        return big_enough
    whole = np.concatenate([np.floor(boxes[:, :2]), np.ceil(boxes[:, 2:])], axis=1).astype(int)
    areas = [np.count_nonzero(masks[i, y1:y2, x1:x2]) for i, (y1, x1, y2, x2) in enumerate(whole[big_enough].tolist())]
    return np.sort(big_enough[np.argsort(np.negative(areas), kind="stable")[:count]])


def _slots(array, count):
    """`array` with zeros behind it, up to `count` entries."""
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])

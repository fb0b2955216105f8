"""Augmentation: what training may do to an image and its objects before they are resized for the network.

Each function takes a Scene and returns a new one; `augment` applies those that a Config asks for. Large-scale jitter
and the choice of the short side only say how large the image will be, and which part of it the network sees: `view`.
"""

import inspect
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from maskrcnn_edu.datasets import transforms
from maskrcnn_edu.datasets.dataset import boxes_from_masks
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.keypoints import flip_order

LEAST_VISIBLE = 0.1  # of an object that others are pasted over; below, it is dropped
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of R, G, B: ITU-R BT.601, as Pillow and torchvision


class Scene(NamedTuple):
    """An image and its N objects.

    Attributes:
        image: (H, W, C) uint8, or float32 where it is resized already.
        boxes: (N, 4) float32 y1, x1, y2, x2, pixels of the image.
        classes: (N,) int32, negative for a crowd.
        masks: (N, H, W) bool.
        keypoints: (N, K, 3) float32 x, y, visibility; places in the frame of the boxes, not indices of pixels. K may be
            0.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    keypoints: np.ndarray

    def kept(self, chosen):
        """The scene with some of its objects: indices (M,), or (N,) bool."""
        return self._replace(
            boxes=self.boxes[chosen],
            classes=self.classes[chosen],
            masks=self.masks[chosen],
            keypoints=self.keypoints[chosen],
        )


def augment(scene, rng, config, keypoint_names=(), function=None) -> Scene:
    """The augmentations of `config` that keep the image's own resolution, after the user's own `function`."""
    if function is not None:
        scene = apply(function, scene, rng)
    if config.quarter_turns:
        scene = turn(scene, rng.integers(4))
    if config.horizontal_flip and rng.random() < 0.5:
        scene = flip(scene, flip_order(keypoint_names))
    if config.colour_jitter:
        scene = scene._replace(image=jitter_colours(scene.image, rng, *config.colour_jitter))
    return scene


def flip(scene, keypoint_order) -> Scene:
    """Left and right exchanged. `keypoint_order` (K,): which keypoint takes each one's place, `flip_order(names)`."""
    width = scene.image.shape[1]
    y1, x1, y2, x2 = scene.boxes.T
    return scene._replace(
        image=scene.image[:, ::-1],
        boxes=np.stack([y1, width - x2, y2, width - x1], axis=1),
        masks=scene.masks[:, :, ::-1],
        keypoints=flip_keypoints(scene.keypoints, width, keypoint_order),
    )


def flip_keypoints(keypoints, width, order) -> np.ndarray:
    """Keypoints (N, K, 3) x, y, visibility with left and right exchanged in an image of `width` pixels."""
    x, y, visible = np.moveaxis(keypoints, -1, 0)
    return np.stack([width - x, y, visible], axis=-1)[:, order]


def turn(scene, times) -> Scene:
    """Turned `times` times by 90 degrees, against the clock, as np.rot90 does."""
    for _ in range(times):
        width = scene.image.shape[1]
        y1, x1, y2, x2 = scene.boxes.T
        x, y, visible = np.moveaxis(scene.keypoints, -1, 0)
        scene = scene._replace(
            image=np.rot90(scene.image),
            boxes=np.stack([width - x2, y1, width - x1, y2], axis=1),
            masks=np.rot90(scene.masks, axes=(1, 2)),
            keypoints=np.stack([y, width - x, visible], axis=-1),
        )
    return scene


def jitter_colours(image, rng, brightness, contrast, saturation) -> np.ndarray:
    """The image (H, W, C) uint8 with its brightness, contrast and saturation times 1 - most .. 1 + most, each drawn.

    Brightness blends with black, contrast with the mean grey, saturation with the grey image (torchvision's
    ColorJitter, in this order).
    """
    brighter, stronger, more_vivid = 1 + np.array([brightness, contrast, saturation]) * rng.uniform(-1, 1, 3)
    means = image[::4, ::4].mean((0, 1)) * brighter  # of some pixels: it is only the middle to turn about
    grey = means @ GREY_WEIGHTS if image.shape[2] == 3 else means.mean()
    value = (np.arange(256) * brighter - grey) * stronger + grey  # both are the same for all pixels of a value
    image = np.clip(np.rint(value), 0, 255).astype(np.uint8)[image]
    if saturation:
        image = np.asarray(ImageEnhance.Color(Image.fromarray(image)).enhance(more_vivid))
    return image


def apply(function, scene, rng) -> Scene:
    """What a user's `function(image, masks)` makes of the scene; an object is gone where its mask has become empty.

    Boxes are those of the masks that come back. A parameter named `rng` is given the image's random numbers.

    Raises:
        InputError: it returned something else than an image (H, W, C) uint8 and one mask (H, W) bool an object.
    """
    more = {"rng": rng} if "rng" in inspect.signature(function).parameters else {}
    returned = function(scene.image, scene.masks, **more)
    name = f"augment {getattr(function, '__name__', type(function).__name__)}"
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise InputError(f"{name} returned {type(returned).__name__}; return the image and the masks.")
    image, masks = map(np.asarray, returned)
    if image.ndim != 3 or image.dtype != np.uint8 or image.shape[2] != scene.image.shape[2] or 0 in image.shape:
        raise InputError(
            f"{name} returned an image of {image.dtype} and shape {image.shape}; return uint8 "
            f"(height, width, {scene.image.shape[2]})."
        )
    if masks.dtype != bool or masks.shape != (len(scene.masks), *image.shape[:2]):
        raise InputError(
            f"{name} returned masks of {masks.dtype} and shape {masks.shape}; return bool of shape "
            f"{(len(scene.masks), *image.shape[:2])}, all False for an object that is gone."
        )
    scene = scene._replace(image=image, masks=masks, boxes=boxes_from_masks(masks))
    return scene.kept(scene.boxes[:, 2] > 0)


def view(height, width, rng, config) -> tuple:
    """How large the image becomes, (h, w), and which part of that the network sees: whole y1, x1, y2, x2."""
    if config.large_scale_jitter:
        return jittered_view(height, width, rng, config.large_scale_jitter, config.jitter_size)
    min_size = rng.choice(config.image_min_sizes_training) if config.image_min_sizes_training else None
    size = transforms.network_size(height, width, config, min_size)
    return size, (0, 0, *size)


def jittered_view(height, width, rng, scales, side) -> tuple:
    """Large-scale jitter: the image fitted to a square of `side`, times a scale; then a random crop of that square.

    Ghiasi et al., Simple Copy-Paste, 2021; the rounding is that of Detectron2's ResizeScale and FixedSizeCrop.
    """
    scale = rng.uniform(*scales) * min(side / height, side / width)
    size = np.maximum(1, np.rint([height * scale, width * scale])).astype(int)
    top, left = np.rint(np.maximum(size - side, 0) * rng.random(2)).astype(int).tolist()
    bottom, right = np.minimum([top + side, left + side], size).tolist()
    return tuple(size.tolist()), (top, left, bottom, right)


def seen(scene, size, window, config) -> Scene:
    """The scene resized to `size` and cut to the `window`, masks and all. Objects without a pixel there are dropped."""
    image = transforms.resized_window(scene.image, size, window, config)
    scale = np.tile(np.float32(size) / np.float32(scene.image.shape[:2]), 2)
    masks = np.zeros((len(scene.masks), *image.shape[:2]), bool)
    y1, x1, y2, x2 = window
    for full, mask, box in zip(masks, scene.masks, boxes_from_masks(scene.masks) * scale, strict=True):
        # Only where the object is seen: most are small.
        top, left = np.maximum(np.floor(box[:2]).astype(int), (y1, x1))
        bottom, right = np.minimum(np.ceil(box[2:]).astype(int), (y2, x2))
        if top < bottom and left < right:
            part = np.array([top, left, bottom, right])
            coverage = transforms.resize(
                mask[..., None].view(np.uint8) * np.uint8(255), bottom - top, right - left, part / scale
            )
            full[top - y1 : bottom - y1, left - x1 : right - x1] = coverage[..., 0] > 127
    keypoints = seen_keypoints(scene.keypoints, scale, window)
    resized = Scene(image, boxes_from_masks(masks), scene.classes, masks, keypoints)
    return resized.kept(resized.boxes[:, 2] > 0)


def seen_keypoints(keypoints, scale, window, corner=(0, 0)) -> np.ndarray:
    """Keypoints (N, K, 3) resized by `scale` (of y and x first), in a `window` whose corner (y, x) comes to lie there.

    One that is not labelled, or not in the window, becomes zeros: not labelled.
    """
    places = keypoints[..., :2] * scale[1::-1]
    (y1, x1, y2, x2), (top, left) = window, corner
    inside = ((places >= (x1, y1)) & (places <= (x2, y2))).all(-1, keepdims=True)
    moved = np.concatenate([places + np.float32([left - x1, top - y1]), keypoints[..., 2:]], axis=-1)
    return np.where(inside & (keypoints[..., 2:] > 0), moved, np.float32(0))


def paste(scene, other, rng, background) -> Scene:
    """Simple copy-paste: a random part of the objects of `other`, pixels and all, in front of the scene's.

    What they cover is taken out of the scene's masks, and the boxes follow; an object of which less than LEAST_VISIBLE
    is left is dropped. Of two sizes the result has the larger, filled with `background` (C,). Crowds are not pasted.
    (Ghiasi et al., 2021, section 3; no blending, which they found not to help.)
    """
    chosen = np.flatnonzero((other.classes > 0) & (rng.random(len(other.classes)) < 0.5))
    if not len(chosen):
        return scene
    size = np.maximum(scene.image.shape[:2], other.image.shape[:2])
    scene, other = (enlarged(one, size, background) for one in (scene, other.kept(chosen)))
    front = other.masks.any(0)
    left = scene.masks & ~front
    areas, before = (np.count_nonzero(masks, axis=(1, 2)) for masks in (left, scene.masks))
    boxes, keypoints = scene.boxes.copy(), scene.keypoints.copy()
    covered = np.flatnonzero(areas < before)
    boxes[covered] = boxes_from_masks(left[covered])
    x, y = np.minimum(keypoints[..., :2].astype(int), [size[1] - 1, size[0] - 1]).T
    keypoints[..., 2] = np.where(front[y, x].T, np.minimum(keypoints[..., 2], 1), keypoints[..., 2])  # now hidden
    image = scene.image.copy()
    image[front] = other.image[front]
    scene = scene._replace(image=image, boxes=boxes, masks=left, keypoints=keypoints)
    if len(covered):
        scene = scene.kept((areas > 0) & (areas >= LEAST_VISIBLE * before))
    return Scene(scene.image, *(np.concatenate(pair) for pair in zip(scene[1:], other[1:], strict=True)))


def enlarged(scene, size, background) -> Scene:
    """The scene in the top left corner of a larger image."""
    height, width = scene.image.shape[:2]
    if (height, width) == tuple(size):
        return scene
    image = np.empty((*size, scene.image.shape[2]), scene.image.dtype)
    image[:] = background
    image[:height, :width] = scene.image
    masks = np.zeros((len(scene.masks), *size), bool)
    masks[:, :height, :width] = scene.masks
    return scene._replace(image=image, masks=masks)

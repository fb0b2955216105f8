"""Images, boxes and masks on their way into the network: resize, crop, pad."""

import math

import numpy as np
from PIL import Image

from maskrcnn_edu.datasets.dataset import boxes_from_masks


def resized_size(height, width, min_size, max_size) -> tuple:
    """Height and width with the short side at `min_size`, or less so that the long side is at most `max_size`.

    The rule and the rounding of Detectron2's ResizeShortestEdge. Never below 1 pixel.
    """
    scale = min_size / min(height, width)
    height, width = (min_size, scale * width) if height < width else (scale * height, min_size)
    shrink = min(1, max_size / max(height, width))
    return max(1, int(height * shrink + 0.5)), max(1, int(width * shrink + 0.5))


def resize(image, height, width, box=None) -> np.ndarray:
    """The uint8 image (H, W, C) as (height, width, C): Pillow's bilinear with antialias (Detectron2).

    `box`: y1, x1, y2, x2, the part of the image to show; by default all of it.
    """
    if box is not None:  # to Pillow x, y; and rounding must not carry it over the edge
        box = np.minimum(box, np.tile(image.shape[:2], 2))[[1, 0, 3, 2]].tolist()

    def resized(channels):
        return Image.fromarray(channels).resize((width, height), Image.Resampling.BILINEAR, box)

    if image.shape[2] == 3:
        return np.asarray(resized(image))
    # One by one: Pillow knows no five channels, and takes the last of four for transparency.
    return np.stack([resized(np.ascontiguousarray(image[..., c])) for c in range(image.shape[2])], axis=-1)


def floor_resized_size(height, width, min_size, max_size) -> tuple:
    """Height and width as torchvision's detection models resize: the same scale, but rounded down."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def resize_plain(image, height, width) -> np.ndarray:
    """The image (H, W, C) as (height, width, C) float32: bilinear between the nearest pixels, without antialias."""
    for axis, size in ((0, height), (1, width)):
        pixels = image.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * (pixels / size) - 0.5, 0, pixels - 1)
        below = np.minimum(position.astype(int), max(pixels - 2, 0))
        share = (position - below).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        above = np.minimum(below + 1, pixels - 1)
        image = np.take(image, below, axis) * (1 - share) + np.take(image, above, axis) * share
    return image


def matterport_size(height, width, min_size, max_size) -> tuple:
    """The seed's height and width: enlarged to a short side of `min_size`, or to a long side of `max_size`."""
    scale = max(1, min_size / min(height, width))
    if round(max(height, width) * scale) > max_size:
        scale = max_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_into_black(image, height, width) -> np.ndarray:
    """The seed's resize (scikit-image): bilinear with black around the image, cut to uint8 (not rounded)."""
    if image.shape[:2] == (height, width):
        return image
    from skimage.transform import resize as skimage_resize  # half a second that the other families do not need

    blended = skimage_resize(image, (height, width), order=1, mode="constant", preserve_range=True, anti_aliasing=False)
    return blended.astype(np.uint8)


def network_size(height, width, config, min_size=None) -> tuple:
    """Height and width that `config` resizes an image to; `min_size` instead of its image_min_size, if given."""
    rules = {"detectron2": resized_size, "torchvision": floor_resized_size, "matterport": matterport_size}
    rule = rules[config.resize]
    return rule(height, width, min_size or config.image_min_size, config.image_max_size)


def to_network_size(image, config) -> np.ndarray:
    """The uint8 image (H, W, C) at its `network_size`: uint8, or float32 in the torchvision family."""
    size = network_size(*image.shape[:2], config)
    return resized_window(image, size, (0, 0, *size), config)


def resized_window(image, size, window, config) -> np.ndarray:
    """What `window` (whole y1, x1, y2, x2) shows of the image (H, W, C) once that is resized to `size` (h, w)."""
    y1, x1, y2, x2 = window
    if config.resize != "detectron2":
        return {"torchvision": resize_plain, "matterport": resize_into_black}[config.resize](image, *size)[y1:y2, x1:x2]
    if window == (0, 0, *size):
        return resize(image, *size)
    box = np.array(window) * np.tile(np.array(image.shape[:2]) / size, 2)  # nothing outside the window is computed
    return resize(image, y2 - y1, x2 - x1, box)


def corner(size, padded_size, config) -> tuple:
    """Where an image of `size` (height, width) starts on its padded canvas: top left, or in its middle (the seed)."""
    if config.resize != "matterport":
        return 0, 0
    return tuple((whole - part) // 2 for whole, part in zip(padded_size, size, strict=True))


def crop_boxes(boxes, masks, window) -> np.ndarray:
    """The boxes (N, 4) of what `window` (y1, x1, y2, x2; fractions too) leaves of each object; zeros where nothing.

    An object inside the window keeps its box; one that its edge cuts gets the tight box of what is left of its mask.
    """
    window = np.asarray(window, np.float32)
    cut = np.flatnonzero((boxes[:, :2] < window[:2]).any(1) | (boxes[:, 2:] > window[2:]).any(1))
    (top, left), (bottom, right) = np.floor(window[:2]).astype(int), np.ceil(window[2:]).astype(int)
    tight = boxes_from_masks(masks[cut, top:bottom, left:right])
    left_over = np.clip(tight + np.float32([top, left, top, left]), np.tile(window[:2], 2), np.tile(window[2:], 2))
    cropped = boxes.copy()
    cropped[cut] = np.where(tight[:, 2:3] > 0, left_over, 0)
    return cropped


def crop_masks(masks, boxes, side) -> np.ndarray:
    """Each mask as seen through its box: how much of each of side x side cells it covers.

    Args:
        masks: (N, H, W) bool.
        boxes: (N, 4) y1, x1, y2, x2, pixels of the masks, inside them and with an area.

    Returns:
        (N, side, side) uint8, 0 (nothing) to 255 (all).
    """
    crops = np.zeros((len(masks), side, side), np.uint8)
    for crop, mask, (y1, x1, y2, x2) in zip(crops, masks, boxes, strict=True):
        # Cut out whole pixels first: a resize of the whole mask would cost its whole area.
        top, left = int(y1), int(x1)
        part = Image.fromarray(mask[top : int(np.ceil(y2)), left : int(np.ceil(x2))].astype(np.uint8) * 255)
        window = (x1 - left, y1 - top, x2 - left, y2 - top)
        crop[:] = part.resize((side, side), Image.Resampling.BILINEAR, box=window)
    return crops


def pad(image, height, width, top=0, left=0) -> np.ndarray:
    """The image (H, W, C) on a canvas of zeros, (height, width, C), its first pixel at (top, left)."""
    padded = np.zeros((height, width, image.shape[2]), image.dtype)  # ten times as fast as np.pad
    padded[top : top + image.shape[0], left : left + image.shape[1]] = image
    return padded

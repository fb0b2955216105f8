"""Images, boxes and masks on their way into the network: resize, flip, crop, pad."""

import math

import numpy as np
from PIL import Image


def resized_size(height, width, min_size, max_size) -> tuple:
    """Height and width with the short side at `min_size`, or less so that the long side is at most `max_size`.

    The rule and the rounding of Detectron2's ResizeShortestEdge. Never below 1 pixel.
    """
    scale = min_size / min(height, width)
    height, width = (min_size, scale * width) if height < width else (scale * height, min_size)
    shrink = min(1, max_size / max(height, width))
    return max(1, int(height * shrink + 0.5)), max(1, int(width * shrink + 0.5))


def resize(image, height, width) -> np.ndarray:
    """The uint8 image (H, W, 3) as (height, width, 3): Pillow's bilinear with antialias (Detectron2)."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


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


def network_size(height, width, config) -> tuple:
    """Height and width that `config` resizes an image to."""
    rules = {"detectron2": resized_size, "torchvision": floor_resized_size, "matterport": matterport_size}
    rule = rules[config.resize]
    return rule(height, width, config.image_min_size, config.image_max_size)


def to_network_size(image, config) -> np.ndarray:
    """The uint8 image (H, W, 3) at its `network_size`: uint8, or float32 in the torchvision family."""
    functions = {"detectron2": resize, "torchvision": resize_plain, "matterport": resize_into_black}
    return functions[config.resize](image, *network_size(*image.shape[:2], config))


def corner(size, padded_size, config) -> tuple:
    """Where an image of `size` (height, width) starts on its padded canvas: top left, or in its middle (the seed)."""
    if config.resize != "matterport":
        return 0, 0
    return tuple((whole - part) // 2 for whole, part in zip(padded_size, size, strict=True))


def flip(image, boxes, masks) -> tuple:
    """Image (H, W, C), boxes (N, 4) and masks (N, M, M) with left and right exchanged.

    The masks may cover the image or be cropped to their boxes: both turn in the same way.
    """
    y1, x1, y2, x2 = boxes.T
    width = image.shape[1]
    return image[:, ::-1], np.stack([y1, width - x2, y2, width - x1], axis=1), masks[:, :, ::-1]


def flip_keypoints(keypoints, width, order) -> np.ndarray:
    """Keypoints (N, K, 3) x, y, visibility with left and right exchanged in an image of `width` pixels.

    `order` (K,): which keypoint takes each one's place in the mirror, `keypoints.flip_order(names)`.
    """
    x, y, visible = np.moveaxis(keypoints, -1, 0)
    return np.stack([width - x, y, visible], axis=-1)[:, order]


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

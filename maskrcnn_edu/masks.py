"""Masks on their way out: from the m x m grid of the mask head to pixels of the photograph, and to run lengths."""

import numpy as np

from maskrcnn_edu.errors import InputError


def paste(masks, boxes, height, width, mode="detectron2", threshold=0.5):
    """Masks resized into their boxes on an image: (N, m, m) probabilities, (N, 4) -> (N, height, width) bool.

    A pixel is set where the resized mask reaches `threshold`. Only pixels in reach of a box are computed. `mode`:
    "detectron2" looks each pixel's centre up in the mask; "torchvision" rounds the box outwards to whole pixels first;
    "matterport" takes boxes of whole pixels.

    Raises InputError on an unknown mode.
    """
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float32)
    pasted = np.zeros((len(masks), height, width), bool)
    for i in range(len(masks)):
        (top, left), window = paste_window(masks[i], boxes[i], height, width, mode)
        pasted[i, top : top + window.shape[0], left : left + window.shape[1]] = window >= threshold
    return pasted


def paste_window(mask, box, height, width, mode):
    """One mask (m, m) resized into its box (4,) -> the window's corner (y, x) and its probabilities (h, w)."""
    matrices = {
        "detectron2": _pixel_centre_matrix,
        "torchvision": _whole_box_matrix,
        "matterport": _whole_pixel_matrix,
    }
    if mode not in matrices:
        raise InputError(f"paste mode is {mode!r}; choose {', '.join(matrices)}.")
    if not np.isfinite(box).all():
        return (0, 0), np.zeros((0, 0), np.float32)
    y, wy = matrices[mode](box[0], box[2], mask.shape[0], height)
    x, wx = matrices[mode](box[1], box[3], mask.shape[1], width)
    return (y, x), wy @ mask @ wx.T


def _pixel_centre_matrix(low, high, side, size):
    """Detectron2: pixel i of the image lies at (i + .5 - low) / (high - low) * side - .5 of the mask, 0 outside it.

    -> first pixel and interpolation matrix (pixels, side), for the pixels within one of the box.
    """
    first, last = int(np.clip(np.floor(low) - 1, 0, size)), int(np.clip(np.ceil(high) + 1, 0, size))
    if high <= low:
        return 0, np.zeros((0, side), np.float32)
    position = (np.arange(first, last, dtype=np.float32) + 0.5 - low) / (high - low) * side - 0.5
    return first, _hat(position, side)


def _whole_box_matrix(low, high, side, size):
    """torchvision: the mask gets a border of one empty cell, the box grows with it and is cut to whole pixels."""
    centre, half = (low + high) * np.float32(0.5), (high - low) * np.float32(0.5) * np.float32((side + 2) / side)
    first, last = int(centre - half), int(centre + half)  # towards zero, as a cast does
    pixels = max(last - first + 1, 1)
    position = np.clip((np.arange(pixels, dtype=np.float32) + 0.5) * ((side + 2) / pixels) - 0.5, 0, side + 1) - 1
    start, end = np.clip([first, last + 1], 0, size)
    return int(start), _hat(position, side)[start - first : max(end, start) - first]


def _whole_pixel_matrix(low, high, side, size):
    """The seed: the box is of whole pixels, and the mask resized to it as if nothing were around it."""
    first, last = int(low), int(high)
    pixels = max(last - first, 0)
    matrix = _hat((np.arange(pixels, dtype=np.float32) + 0.5) * (side / max(pixels, 1)) - 0.5, side)
    start, end = np.clip([first, last], 0, size)
    return int(start), matrix[start - first : max(end, start) - first]


def _hat(position, side):
    """Rows of bilinear weights: each cell counts 1 - its distance from the position, if that is positive."""
    return np.maximum(1 - np.abs(position[:, None] - np.arange(side, dtype=np.float32)), 0)


def encode_rle(masks):
    """COCO's compressed run lengths of (N, H, W) bool masks: a list of {"size": [H, W], "counts": str}."""
    from pycocotools import mask as coco_mask

    runs = [coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)) for mask in np.asarray(masks)]
    return [{"size": list(map(int, run["size"])), "counts": run["counts"].decode("ascii")} for run in runs]

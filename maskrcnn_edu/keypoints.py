"""Keypoints on their way out: from the heatmaps of the keypoint head to places on the photograph."""

import math

import numpy as np

CUBIC = -0.75  # `a` of the cubic convolution kernel (Keys, 1981), as PyTorch has it


def decode(heatmaps, boxes):
    """Where each keypoint is (torchvision's and Detectron2's heatmaps_to_keypoints).

    Each heatmap is resized, bicubic, to whole pixels of its box (sides rounded up, at least 1); the keypoint lies in
    the middle of the pixel with the highest value, moved back by the share that the rounding stretched the box.

    Args:
        heatmaps: (N, m, m, K) logits.
        boxes: (N, 4) y1 x1 y2 x2.

    Returns:
        places (N, K, 2) float32 x, y in the pixels of the boxes; the logits (N, K) there; and their probabilities
        (N, K): of one m x m heatmap, so that those of large and small boxes compare (Detectron2's scores).
    """
    heatmaps, boxes = np.asarray(heatmaps, np.float32), np.asarray(boxes, np.float32)
    n, keypoints = len(heatmaps), heatmaps.shape[-1]
    places, logits = np.zeros((n, keypoints, 2), np.float32), np.zeros((n, keypoints), np.float32)
    probabilities = np.zeros((n, keypoints), np.float32)
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        height, width = np.maximum(y2 - y1, np.float32(1)), np.maximum(x2 - x1, np.float32(1))
        rows, columns = math.ceil(height), math.ceil(width)
        maps = np.ascontiguousarray(heatmaps[i].transpose(2, 0, 1))
        stretched = _cubic_matrix(maps.shape[1], rows) @ maps  # one product for all keypoints: BLAS is quicker so
        flat = stretched.reshape(keypoints * rows, -1) @ _cubic_matrix(maps.shape[2], columns).T
        flat = flat.reshape(keypoints, -1)
        best = flat.argmax(1)
        places[i, :, 0] = (best % columns + np.float32(0.5)) * (width / columns) + x1
        places[i, :, 1] = (best // columns + np.float32(0.5)) * (height / rows) + y1
        logits[i] = flat[np.arange(keypoints), best]
        top = maps.max((1, 2))  # nothing overflows once it is taken away
        total = np.exp(maps - top[:, None, None]).sum((1, 2))
        probabilities[i] = np.exp(logits[i] - top) / total
    return places, logits, probabilities


def _cubic_matrix(cells, pixels):
    """Cubic interpolation of `cells` values at `pixels` places, pixel centres on pixel centres: (pixels, cells)."""
    position = (np.arange(pixels, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / pixels) - np.float32(0.5)
    first = np.floor(position)
    share = position - first
    matrix = np.zeros((pixels, cells), np.float32)
    for tap in (-1, 0, 1, 2):
        cell = np.clip(first + tap, 0, cells - 1).astype(int)  # beyond the border the outermost cell goes on
        np.add.at(matrix, (np.arange(pixels), cell), _cubic(np.abs(share - tap)))
    return matrix


def _cubic(distance):
    """Weight of a cell at `distance` (0 to 2) from the place that is looked up."""
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = ((CUBIC * distance - 5 * CUBIC) * distance + 8 * CUBIC) * distance - 4 * CUBIC
    return np.where(distance <= 1, near, far).astype(np.float32)


def flip_order(names):
    """The keypoint that takes each one's place in a mirror: indices (K,), left_NAME and right_NAME exchanged."""
    swapped = {"left": "right", "right": "left"}
    order = []
    for name in names:
        side, _, part = name.partition("_")
        other = f"{swapped[side]}_{part}" if side in swapped else name
        order.append(names.index(other) if other in names else names.index(name))
    return np.array(order, int)

"""Boxes: overlap, the deltas that turn one box into another, and non-maximum suppression.

A box is (y1, x1, y2, x2) in continuous pixels and covers [y1, y2) x [x1, x2).
"""

import math

from keras import ops

from maskrcnn_edu.backend import as_float, gather

MAX_LOG_SIZE = math.log(1000 / 16)  # a delta may not enlarge a box by more than this (Detectron2, torchvision)


def area(boxes):
    """(..., 4) -> (...). Empty and inverted boxes have area 0."""
    y1, x1, y2, x2 = ops.unstack(as_float(boxes), 4, axis=-1)
    return ops.maximum(y2 - y1, 0.0) * ops.maximum(x2 - x1, 0.0)


def intersection(a, b):
    """Area that each box of `a` shares with each of `b`: (..., N, 4), (..., M, 4) -> (..., N, M)."""
    a, b = as_float(a)[..., :, None, :], as_float(b)[..., None, :, :]
    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    return ops.maximum(height, 0.0) * ops.maximum(width, 0.0)


def iou(a, b):
    """Intersection over union: (..., N, 4), (..., M, 4) -> (..., N, M), in [0, 1]. Two empty boxes have IoU 0."""
    a, b = as_float(a), as_float(b)
    shared = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - shared
    return ops.where(union > 0, shared / ops.where(union > 0, union, 1.0), 0.0)


def giou(a, b):
    """Generalised IoU in [-1, 1]: IoU less the share of the two boxes' hull that neither covers.

    (..., N, 4), (..., M, 4) -> (..., N, M). Rezatofighi et al., 2019, algorithm 1; an empty hull gives 0.
    """
    a, b = as_float(a), as_float(b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection(a, b)
    low = ops.minimum(a[..., :, None, :2], b[..., None, :, :2])
    high = ops.maximum(a[..., :, None, 2:], b[..., None, :, 2:])
    hull = area(ops.concatenate([low, high], axis=-1))
    return iou(a, b) - ops.where(hull > 0, (hull - union) / ops.where(hull > 0, hull, 1.0), 0.0)


def encode(boxes, reference, weights=(1.0, 1.0, 1.0, 1.0)):
    """Deltas (dy, dx, dh, dw) that turn `reference` into `boxes`: (..., 4), (..., 4) -> (..., 4).

    Shifts are in units of the reference's size, sizes in logarithms, each times its weight (Faster R-CNN, equation 2).
    """
    cy, cx, h, w = _centre_size(as_float(boxes))
    ry, rx, rh, rw = _centre_size(as_float(reference))
    wy, wx, wh, ww = weights
    return ops.stack([wy * (cy - ry) / rh, wx * (cx - rx) / rw, wh * ops.log(h / rh), ww * ops.log(w / rw)], axis=-1)


def decode(deltas, reference, weights=(1.0, 1.0, 1.0, 1.0)):
    """The inverse of `encode`: (..., 4), (..., 4) -> boxes (..., 4). Log sizes are cut at log(1000 / 16)."""
    deltas, reference = as_float(deltas), as_float(reference)
    dy, dx, dh, dw = (delta / weight for delta, weight in zip(ops.unstack(deltas, 4, axis=-1), weights, strict=True))
    y1, x1, y2, x2 = ops.unstack(reference, 4, axis=-1)
    rh, rw = y2 - y1, x2 - x1
    cy, cx = y1 + 0.5 * rh + dy * rh, x1 + 0.5 * rw + dx * rw
    h = rh * ops.exp(ops.minimum(dh, MAX_LOG_SIZE))
    w = rw * ops.exp(ops.minimum(dw, MAX_LOG_SIZE))
    return ops.stack([cy - 0.5 * h, cx - 0.5 * w, cy + 0.5 * h, cx + 0.5 * w], axis=-1)


def _centre_size(boxes):
    """cy, cx, h, w of (..., 4). Sizes are at least a millionth of a pixel, so that padding slots give no infinities."""
    y1, x1, y2, x2 = ops.unstack(boxes, 4, axis=-1)
    h, w = ops.maximum(y2 - y1, 1e-6), ops.maximum(x2 - x1, 1e-6)
    return 0.5 * (y1 + y2), 0.5 * (x1 + x2), h, w


def clip(boxes, image_size):
    """Cut boxes (B, N, 4) to their images; image_size (B, 2) is height and width."""
    size = ops.expand_dims(as_float(image_size), -2)
    return ops.maximum(ops.minimum(as_float(boxes), ops.concatenate([size, size], axis=-1)), 0.0)


def clip_to_window(boxes, window):
    """Cut boxes (B, N, 4) to a box of each image, window (B, 4)."""
    low, high = as_float(window)[..., None, :2], as_float(window)[..., None, 2:]
    boxes = ops.maximum(as_float(boxes), ops.concatenate([low, low], axis=-1))
    return ops.minimum(boxes, ops.concatenate([high, high], axis=-1))


def nms(boxes, scores, iou_threshold, classes=None):
    """Greedy non-maximum suppression: (..., N, 4), (..., N) -> (..., N) bool, True where a box is kept.

    From the best score down, a box is kept unless an already kept one overlaps it by more than `iou_threshold`. With
    `classes` (..., N), boxes suppress only boxes of their own class. Of equal scores the first comes first.
    """
    boxes, scores = as_float(boxes), as_float(scores)
    order = ops.argsort(-scores, axis=-1)
    rank = ops.argsort(order, axis=-1)
    ordered = ops.take_along_axis(boxes, order[..., None], axis=-2)
    suppresses = iou(ordered, ordered) > iou_threshold
    if classes is not None:
        c = ops.take_along_axis(ops.convert_to_tensor(classes), order, axis=-1)
        suppresses = ops.logical_and(suppresses, c[..., :, None] == c[..., None, :])
    return ops.take_along_axis(greedy_keep(suppresses), rank, axis=-1)


def greedy_keep(suppresses):
    """Which boxes greedy suppression keeps, best first: (..., N, N) bool [i, j]: i suppresses j -> (..., N) bool.

    The greedy answer is the only fixed point of "kept unless a better kept box suppresses it". Start from all, apply
    that rule to everybody at once, and repeat until nothing changes: as many rounds as the longest chain of
    suppressions, a few in practice, instead of one for each box.
    """
    rank = ops.arange(suppresses.shape[-1])
    better = rank[:, None] < rank[None, :]
    suppresses = ops.logical_and(suppresses, better)

    def rule(keep, _):
        hit = ops.any(ops.logical_and(keep[..., :, None], suppresses), axis=-2)
        return ops.logical_not(hit), keep

    def changed(keep, previous):
        return ops.any(keep != previous)

    everyone = ops.logical_not(ops.any(ops.zeros_like(suppresses), axis=-2))
    return ops.while_loop(changed, rule, rule(everyone, everyone))[0]


def class_nms(boxes, scores, classes, iou_threshold, count, chunk=1000):
    """The best `count` boxes after NMS within each class, exactly, with static shapes.

    boxes (B, N, 4), scores (B, N) with 0 for "not a candidate", classes (B, N) -> indices (B, D) into N and scores
    (B, D), best first, score 0 in unused slots, D = min(count, N). N may be in the tens of thousands: the best `chunk`
    candidates are settled against those kept and among themselves, then the next, until every image is full or has none
    left. Greedy NMS decides about a box by better boxes alone, so this is no approximation.
    """
    boxes, scores, classes = as_float(boxes), as_float(scores), ops.cast(ops.convert_to_tensor(classes), "int32")
    n = scores.shape[1]
    chunk, count = min(chunk, n), min(count, n)

    def settle(remaining, kept, kept_scores):
        s, index = ops.top_k(remaining, chunk)
        b, c = gather(boxes, index), gather(classes, index)
        kept_same = gather(classes, kept)[:, :, None] == c[:, None, :]
        kept_same = ops.logical_and(kept_same, (kept_scores > 0)[:, :, None])
        beaten = ops.any(ops.logical_and(kept_same, iou(gather(boxes, kept), b) > iou_threshold), axis=1)
        candidate = ops.logical_and(s > 0, ops.logical_not(beaten))
        suppresses = ops.logical_and(iou(b, b) > iou_threshold, c[:, :, None] == c[:, None, :])
        keep = greedy_keep(ops.logical_and(suppresses, candidate[:, :, None]))
        s_kept = ops.where(ops.logical_and(keep, candidate), s, 0.0)
        kept_scores, best = ops.top_k(ops.concatenate([kept_scores, s_kept], axis=1), count)
        kept = gather(ops.concatenate([kept, index], axis=1), best)
        # What was looked at is gone: every batch entry has `chunk` distinct indices.
        rows = ops.broadcast_to(ops.arange(ops.shape(index)[0])[:, None], ops.shape(index))
        cells = ops.reshape(ops.stack([rows, ops.cast(index, rows.dtype)], axis=-1), (-1, 2))
        remaining = ops.scatter_update(remaining, cells, ops.reshape(ops.zeros_like(s), (-1,)))
        return remaining, kept, kept_scores

    def unfinished(remaining, kept, kept_scores):
        return ops.any(ops.logical_and(ops.max(remaining, axis=1) > 0, ops.min(kept_scores, axis=1) <= 0))

    none = ops.zeros_like(scores[:, :count])
    state = settle(scores, ops.cast(none, "int32"), none)
    if chunk < n:
        state = ops.while_loop(unfinished, settle, state)
    return state[1:]

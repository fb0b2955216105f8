"""Targets: which anchor or RoI learns from which object (matching), and which of them take part (sampling).

Ground truth comes in slots: boxes (B, G, 4) and classes (B, G), where class 0 is an empty slot with a zero box and a
negative class a crowd: a region that holds objects nobody outlined, from which nothing is learnt.
"""

import numpy as np
from keras import ops

from maskrcnn_edu import boxes
from maskrcnn_edu.backend import gather, random_keys
from maskrcnn_edu.roi_align import interpolation_matrix, roi_align

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1
CROWD_COVER = 0.5  # a box with more than this share of its area in a crowd is no negative (COCO's rule for detections)
RPN_STREAM, ROI_STREAM = 1, 2  # keep the random draws of the two samplings apart


def match(iou, positive_threshold, negative_threshold, low_quality=False):
    """The object that each box fits best, and whether it fits: iou (..., G, N) -> matched (..., N), label (..., N).

    POSITIVE from `positive_threshold` on, NEGATIVE below `negative_threshold`, IGNORED between. With `low_quality`, the
    boxes that overlap an object most are positive too, however little that is (Faster R-CNN 3.1.2); they still learn
    the object that they themselves fit best.
    """
    best = ops.max(iou, axis=-2)
    matched = ops.argmax(iou, axis=-2)
    label = ops.where(best >= positive_threshold, POSITIVE, ops.where(best < negative_threshold, NEGATIVE, IGNORED))
    if low_quality:
        best_of_object = ops.max(iou, axis=-1, keepdims=True)
        favourite = ops.any(ops.logical_and(iou == best_of_object, iou > 0), axis=-2)
        label = ops.where(favourite, POSITIVE, label)
    return matched, label


def match_with_crowds(candidates, gt_boxes, gt_classes, **thresholds):
    """`match` of candidates (B, N, 4) or (N, 4) with the objects; candidates on a crowd are IGNORED, not NEGATIVE."""
    is_object, is_crowd = (gt_classes > 0)[..., None], (gt_classes < 0)[..., None]
    matched, label = match(ops.where(is_object, boxes.iou(gt_boxes, candidates), 0.0), **thresholds)
    shared = ops.where(is_crowd, boxes.intersection(gt_boxes, candidates), 0.0)
    on_crowd = ops.max(shared, axis=-2) > CROWD_COVER * boxes.area(candidates)
    return matched, ops.where(ops.logical_and(on_crowd, label == NEGATIVE), IGNORED, label)


def sample(label, count, max_positive, keys):
    """A random, balanced choice: up to `max_positive` positives, filled up with negatives to `count`.

    label (B, N), keys (B, N) random in (0, 1) -> indices (B, count) and their labels (B, count), positives first,
    IGNORED in slots that nothing was left for.
    """
    n = label.shape[1]
    count, max_positive = min(count, n), min(max_positive, n)
    # Best keys first: the `max_positive`-th best key of a positive is the bar that positives must reach.
    positive_keys = ops.where(label == POSITIVE, keys, 0.0)
    bar = ops.top_k(positive_keys, max_positive)[0][:, -1:]
    chosen = ops.logical_and(label == POSITIVE, positive_keys >= bar)
    rank = ops.where(chosen, 2.0 + keys, ops.where(label == NEGATIVE, keys, 0.0))
    rank, indices = ops.top_k(rank, count)
    return indices, ops.where(rank >= 2.0, POSITIVE, ops.where(rank > 0.0, NEGATIVE, IGNORED))


def rpn_targets(anchors, truth, config):
    """What the RPN learns: anchors (N, 4) -> dict of sampled anchor indices, labels (B, S) and deltas (B, S, 4)."""
    matched, label = match_with_crowds(
        anchors, truth["boxes"], truth["classes"], low_quality=True,
        positive_threshold=config.rpn_positive_threshold, negative_threshold=config.rpn_negative_threshold,
    )  # fmt: skip
    max_positive = max(1, int(config.rpn_batch_size * config.rpn_positive_fraction))
    keys = random_keys(truth["seed"], label.shape[1], RPN_STREAM)
    index, label = sample(label, config.rpn_batch_size, max_positive, keys)
    reference = ops.take(ops.convert_to_tensor(anchors), index, axis=0)
    deltas = boxes.encode(gather(truth["boxes"], gather(matched, index)), reference)
    return {"index": index, "label": label, "deltas": deltas}


def roi_targets(proposals, truth, config):
    """What the heads learn: proposals (B, R, 4) -> dict of sampled rois, label, matched, class and deltas.

    Ground-truth boxes join the proposals, so that there are positives from the first step (Detectron2, torchvision).
    The positives come first: slots from `max_positive_rois` on hold none.
    """
    is_object = truth["classes"] > 0
    real = ops.where(is_object[..., None], truth["boxes"], 0.0)
    candidates = ops.concatenate([proposals, real], axis=1)  # last: empty slots then move no proposal's random key
    matched, label = match_with_crowds(
        candidates, truth["boxes"], truth["classes"],
        positive_threshold=config.roi_threshold, negative_threshold=config.roi_threshold,
    )  # fmt: skip
    label = ops.where(boxes.area(candidates) > 0, label, IGNORED)  # an empty slot is no negative: the seed's mistake
    keys = random_keys(truth["seed"], label.shape[1], ROI_STREAM)
    index, label = sample(label, config.roi_batch_size, max_positive_rois(config), keys)
    rois, matched = gather(candidates, index), gather(matched, index)
    positive = label == POSITIVE
    return {
        "rois": rois,
        "label": label,
        "matched": matched,
        "class": ops.where(positive, gather(truth["classes"], matched), 0),
        "deltas": boxes.encode(gather(truth["boxes"], matched), rois, config.box_delta_weights),
    }


def max_positive_rois(config) -> int:
    """Most positives among the sampled RoIs of an image."""
    return max(1, int(config.roi_batch_size * config.roi_positive_fraction))


def keypoint_targets(keypoints, rois, side):
    """The cell of the RoI that each keypoint lies in: keypoints (B, P, K, 3), rois (B, P, 4) -> (B, P, K) int32.

    Cells are counted row by row from 0 to side * side - 1; -1 for a keypoint that is not visible or not in the RoI. One
    that lies on the RoI's lower or right edge belongs to the last cell (Detectron2, torchvision).
    """

    def cell(place, low, high):  # (B, P, K), (B, P, 1) twice -> (B, P, K)
        inside = ops.floor((place - low) * (side / ops.maximum(high - low, 1e-6)))
        return ops.where(place == high, side - 1.0, inside)

    x = cell(keypoints[..., 0], rois[..., 1:2], rois[..., 3:4])
    y = cell(keypoints[..., 1], rois[..., 0:1], rois[..., 2:3])
    inside = ops.logical_and(ops.minimum(x, y) >= 0, ops.maximum(x, y) < side)
    known = ops.logical_and(inside, keypoints[..., 2] > 0)
    return ops.cast(ops.where(known, y * side + x, -1.0), "int32")


def soft_mask_targets(masks, mask_boxes, rois, side):
    """torchvision's mask targets: RoIAlign of each mask itself, not cut at one half.

    As `mask_targets`. With masks of the whole image, and the image as their box, these are torchvision's very numbers.
    """
    cells = masks.shape[-2:]
    origin, size = mask_boxes[..., :2], mask_boxes[..., 2:] - mask_boxes[..., :2]
    scale = np.float32(cells) / ops.maximum(size, 1e-6)
    inside = (rois - ops.concatenate([origin, origin], axis=-1)) * ops.concatenate([scale, scale], axis=-1)
    feature = ops.reshape(ops.cast(masks, "float32") / 255.0, (-1, *cells, 1))
    seen = roi_align(feature, ops.reshape(inside, (-1, 1, 4)), 1, side, sampling_ratio=0, aligned=False)
    return ops.reshape(seen, (-1, masks.shape[1], side, side))


def mask_targets(masks, mask_boxes, rois, side):
    """Each object's mask seen through its RoI: 1 where the mask covers half of a cell or more, else 0.

    masks (B, P, M, M) coverage 0..255 of mask_boxes (B, P, 4), rois (B, P, 4) -> (B, P, side, side) float32.
    The RoI's cell centres are looked up in the mask by bilinear interpolation; outside its box the mask is 0.
    """
    cells = masks.shape[-1]
    centres = (ops.cast(ops.arange(side), "float32") + 0.5) / side

    def matrix(low, high, box_low, box_high):  # (B, P) each -> (B, P, side, M)
        scale = cells / ops.maximum(box_high - box_low, 1e-6)
        position = (low[..., None] + (high - low)[..., None] * centres - box_low[..., None]) * scale[..., None]
        inside = ops.logical_and(position >= 0.0, position <= cells)
        centred = ops.clip(position - 0.5, 0.0, cells - 1.0)
        return interpolation_matrix(centred[..., None], ops.cast(inside, "float32")[..., None], cells)

    wy = matrix(rois[..., 0], rois[..., 2], mask_boxes[..., 0], mask_boxes[..., 2])
    wx = matrix(rois[..., 1], rois[..., 3], mask_boxes[..., 1], mask_boxes[..., 3])
    seen = ops.einsum("bpym,bpmn,bpxn->bpyx", wy, ops.cast(masks, "float32") / 255.0, wx)
    return ops.cast(seen >= 0.5, "float32")

"""The region proposal network: a small head on every pyramid level, and the choice of its best boxes."""

import keras
from keras import ops

from maskrcnn_edu import boxes
from maskrcnn_edu.backbone import conv
from maskrcnn_edu.backend import Conv2D, gather


def build_rpn_head(config) -> keras.Model:
    """3x3 convolution(s), then for each anchor of a cell an objectness logit and four deltas (Faster R-CNN 3.1).

    (B, H, W, C) -> logits (B, H, W, A), deltas (B, H, W, A * 4). The same weights serve every level.
    """
    feature = keras.Input((None, None, config.fpn_channels), name="level")
    small = keras.initializers.RandomNormal(stddev=0.01)
    x = feature
    for i in range(config.rpn_convs):
        x = conv(x, config.rpn_channels, 3, f"rpn_conv{i + 1}", activation="relu", init=small)
    num_anchors = len(config.anchor_ratios)
    logits = Conv2D(num_anchors, 1, kernel_initializer=small, name="rpn_logits", dtype="float32")(x)
    deltas = Conv2D(num_anchors * 4, 1, kernel_initializer=small, name="rpn_deltas", dtype="float32")(x)
    return keras.Model(feature, [logits, deltas], name="rpn")


def run_rpn_head(head, pyramid):
    """The head on all levels -> lists, finest level first, of logits (B, n) and deltas (B, n, 4), in anchor order."""
    logits, deltas = [], []
    for level in pyramid:
        level_logits, level_deltas = head(level)
        n = level_logits.shape[1] * level_logits.shape[2] * level_logits.shape[3]
        logits.append(ops.reshape(level_logits, (-1, n)))
        deltas.append(ops.reshape(level_deltas, (-1, n, 4)))
    return logits, deltas


def select_proposals(logits, deltas, anchors, image_size, per_level, count, config):
    """The boxes worth a second look: best of each level, decoded, clipped, NMS within the level, best of all.

    logits, deltas, anchors: lists by level of (B, n), (B, n, 4), (n, 4); image_size (B, 2) pixels without padding.
    -> proposals (B, R, 4) and their logits (B, R), best first. Unused slots hold a zero box and -inf. The model lets no
    gradient pass: proposals are fixed inputs of the heads (approximate joint training, Faster R-CNN 3.2).
    """
    found_boxes, found_scores = [], []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        scores, index = ops.top_k(level_logits, min(per_level, level_logits.shape[1]))
        reference = ops.take(ops.convert_to_tensor(level_anchors), index, axis=0)
        candidate = boxes.decode(gather(level_deltas, index), reference)
        candidate = boxes.clip(candidate, image_size)
        height, width = candidate[..., 2] - candidate[..., 0], candidate[..., 3] - candidate[..., 1]
        usable = ops.minimum(height, width) > config.rpn_min_size  # NaN is not, so that it goes no further
        suppresses = ops.logical_and(boxes.iou(candidate, candidate) > config.rpn_nms_threshold, usable[..., None])
        keep = ops.logical_and(boxes.greedy_keep(suppresses), usable)
        found_boxes.append(candidate)
        found_scores.append(ops.where(keep, scores, -float("inf")))
    candidates, scores = ops.concatenate(found_boxes, axis=1), ops.concatenate(found_scores, axis=1)
    scores, index = ops.top_k(scores, min(count, scores.shape[1]))
    proposals = ops.where((scores > -float("inf"))[..., None], gather(candidates, index), 0.0)
    return proposals, scores


def select_joint_proposals(logits, deltas, anchors, image_size, before_nms, count, config):
    """The seed's choice: the best `before_nms` of all levels together, one NMS among them, the best `count`.

    As `select_proposals`; boxes that clipping has left empty stay in, and nothing is clipped to less than image_size.
    """
    logits, deltas = ops.concatenate(logits, axis=1), ops.concatenate(deltas, axis=1)
    # By probability, as the seed ranks: from a logit of 17 on all are 1 in float32, and the first anchor comes first.
    probability = 1.0 / (1.0 + ops.exp(-logits))
    scores, index = ops.top_k(probability, min(before_nms, logits.shape[1]))
    reference = ops.take(ops.concatenate([ops.convert_to_tensor(level) for level in anchors]), index, axis=0)
    candidates = boxes.clip(boxes.decode(gather(deltas, index), reference), image_size)
    keep = boxes.greedy_keep(boxes.iou(candidates, candidates) > config.rpn_nms_threshold)
    scores, index = ops.top_k(ops.where(keep, scores, -float("inf")), min(count, scores.shape[1]))
    return ops.where((scores > -float("inf"))[..., None], gather(candidates, index), 0.0), scores

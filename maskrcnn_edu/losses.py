"""The losses (paper, sections 3 and 5, and the RPN's two of Faster R-CNN). An empty set gives 0, never NaN."""

from keras import ops

from maskrcnn_edu.targets import IGNORED, POSITIVE


def smooth_l1(prediction, target, beta):
    """|d|, rounded to a parabola below `beta`; beta 0 is plain L1 (Fast R-CNN, equation 3)."""
    distance = ops.abs(prediction - target)
    if beta == 0:
        return distance
    return ops.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def binary_cross_entropy(logits, target):
    """-log p of the right answer, computed from the logit so that it cannot overflow."""
    return ops.maximum(logits, 0.0) - logits * target + ops.log1p(ops.exp(-ops.abs(logits)))


def mean_where(values, mask):
    """Mean of `values` where `mask`; 0 if that is nowhere. Values elsewhere may be anything, NaN included."""
    return sum_where(values, mask) / _at_least_one(mask)


def sum_where(values, mask):
    """Sum of `values` where `mask` (of the same shape, or with axes missing at the end)."""
    mask = ops.reshape(mask, ops.shape(mask) + (1,) * (len(values.shape) - len(mask.shape)))
    return ops.sum(ops.where(mask, values, 0.0))


def _at_least_one(mask):
    return ops.maximum(ops.sum(ops.cast(mask, "float32")), 1.0)


def rpn_class_loss(logits, label):
    """Object or not: binary cross-entropy averaged over the sampled anchors. logits, label (B, S)."""
    return mean_where(binary_cross_entropy(logits, ops.cast(label == POSITIVE, "float32")), label != IGNORED)


def rpn_box_loss(deltas, target, label, beta):
    """Smooth L1 of the positive anchors' deltas (B, S, 4), over the number of sampled anchors."""
    distance = ops.sum(smooth_l1(deltas, target, beta), axis=-1)
    return sum_where(distance, label == POSITIVE) / _at_least_one(label != IGNORED)


def class_loss(logits, target, label):
    """Softmax cross-entropy averaged over the sampled RoIs. logits (B, S, C), target class (B, S)."""
    log_p = ops.log_softmax(logits, axis=-1)
    right = ops.one_hot(target, logits.shape[-1], dtype="float32")
    return mean_where(-ops.sum(log_p * right, axis=-1), label != IGNORED)


def box_loss(deltas, target, target_class, label, beta):
    """Smooth L1 of the true class's deltas, positive RoIs only, over the number of sampled RoIs.

    deltas (B, S, C - 1, 4), target (B, S, 4). Dividing by all sampled RoIs, not by the positives, gives each positive
    the same weight whether it is alone or one of many (Detectron2, torchvision).
    """
    own = ops.one_hot(target_class - 1, deltas.shape[2], dtype="float32")  # background (-1) has no box: all zeros
    own_deltas = ops.sum(deltas * own[..., None], axis=2)
    distance = ops.sum(smooth_l1(own_deltas, target, beta), axis=-1)
    return sum_where(distance, label == POSITIVE) / _at_least_one(label != IGNORED)


def mask_loss(logits, target, positive):
    """Binary cross-entropy of the true class's mask (paper, section 3), averaged over the positive RoIs' pixels.

    logits, target (B, P, m, m), positive (B, P) bool. The other classes' masks are left alone: no competition.
    """
    return mean_where(ops.mean(binary_cross_entropy(logits, target), axis=(-2, -1)), positive)


def softmax_mask_loss(logits, target, target_class, positive):
    """The alternative of table 2b: each pixel chooses one of all classes, background among them.

    logits (B, P, m, m, C), target (B, P, m, m), target_class (B, P).
    """
    pixel_class = ops.cast(target, "int32") * target_class[..., None, None]
    log_p = ops.log_softmax(logits, axis=-1)
    right = ops.one_hot(pixel_class, logits.shape[-1], dtype="float32")
    return mean_where(ops.mean(-ops.sum(log_p * right, axis=-1), axis=(-2, -1)), positive)


def keypoint_loss(logits, target, positive):
    """Softmax cross-entropy over the cells of a heatmap (paper, section 5), averaged over the known keypoints.

    logits (B, P, m, m, K), target (B, P, K) the right cell or -1 where there is none, positive (B, P) bool.
    """
    side, keypoints = logits.shape[-2], logits.shape[-1]
    log_p = ops.log_softmax(ops.reshape(logits, (-1, logits.shape[1], side * side, keypoints)), axis=2)
    right = ops.take_along_axis(log_p, ops.maximum(target, 0)[:, :, None], axis=2)[:, :, 0]
    return mean_where(-right, ops.logical_and(target >= 0, positive[..., None]))

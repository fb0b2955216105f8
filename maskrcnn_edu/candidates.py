"""The last choice: from what the box head says of each proposal to the best detections."""

from keras import ops

from maskrcnn_edu import boxes
from maskrcnn_edu.backend import gather


def choose_detections(logits, deltas, proposals, exists, image_size, window, config):
    """The best `config.max_detections` boxes after NMS within each class, from what the box head says of proposals.

    logits (B, R, C), deltas (B, R, C - 1, 4), proposals (B, R, 4), exists (B, R) bool, image_size (B, 2), window (B, 4)
    or None -> dict of boxes (B, D, 4), classes (B, D), scores (B, D), best first, zeros in unused slots.
    """
    found, scores, classes = candidates(logits, deltas, proposals, exists, image_size, window, config)
    return best_candidates(found, scores, classes, config)[0]


def candidates(logits, deltas, proposals, exists, image_size, window, config):
    """What detections are chosen from: boxes (B, N, 4) cut to the photograph, scores and classes (B, N).

    Arguments as in `choose_detections`. The score is 0 where a box is out: below the score threshold, too small, or
    (detection_rule best_class) of a RoI that is background.
    """
    rule = {"every_class": every_class, "best_class": best_class}[config.detection_rule]
    found, scores, classes = rule(logits, deltas, proposals, exists, config)
    found = boxes.clip(found, image_size) if window is None else boxes.clip_to_window(found, window)
    sides = found[..., 2:] - found[..., :2] + (1.0 if config.box_frame == "matterport" else 0.0)
    shortest = ops.min(sides, axis=-1)
    usable = ops.logical_and(scores > config.detection_score_threshold, shortest > config.detection_min_size)
    return found, ops.where(usable, scores, 0.0), classes


def best_candidates(found, scores, classes, config):
    """NMS within each class: the dict of `choose_detections`, and the candidate (B, D) that each detection was."""
    index, scores = boxes.class_nms(found, scores, classes, config.detection_nms_threshold, config.max_detections)
    exists = scores > 0
    result = {
        "boxes": ops.where(exists[..., None], gather(found, index), 0.0),
        "classes": ops.where(exists, gather(classes, index), 0),
        "scores": scores,
    }
    return result, index


def every_class(logits, deltas, proposals, exists, config):
    """Each class of each RoI as a candidate: boxes (B, R * C, 4), scores and classes (B, R * C)."""
    num_rois, num_classes = proposals.shape[1], config.num_classes - 1
    found = boxes.decode(deltas, proposals[:, :, None], config.box_delta_weights)
    scores = ops.where(exists[..., None], ops.softmax(logits, axis=-1)[..., 1:], 0.0)
    scores = ops.reshape(scores, (-1, num_rois * num_classes))
    classes = ops.broadcast_to(ops.tile(ops.arange(1, num_classes + 1), [num_rois])[None], ops.shape(scores))
    return ops.reshape(found, (-1, num_rois * num_classes, 4)), scores, classes


def best_class(logits, deltas, proposals, exists, config):
    """The seed: only the best class of each RoI, if that is not background: boxes (B, R, 4), scores, classes (B, R)."""
    probabilities = ops.softmax(logits, axis=-1)
    classes = ops.argmax(probabilities, axis=-1)
    own = ops.one_hot(classes - 1, config.num_classes - 1, dtype="float32")
    found = boxes.decode(ops.sum(deltas * own[..., None], axis=2), proposals, config.box_delta_weights)
    scores = ops.where(ops.logical_and(exists, classes > 0), ops.max(probabilities, axis=-1), 0.0)
    return found, scores, classes

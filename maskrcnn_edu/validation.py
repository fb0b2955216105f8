"""Validation while a model trains: its average precision, and how many objects its proposals find."""

import numpy as np

from maskrcnn_edu import boxes
from maskrcnn_edu.anchors import anchors_by_level
from maskrcnn_edu.backend import compiled
from maskrcnn_edu.datasets import Subset, loader
from maskrcnn_edu.evaluation import evaluate
from maskrcnn_edu.model import in_last_pixel_frame
from maskrcnn_edu.proposals import run_rpn_head, select_joint_proposals, select_proposals

RECALL_IMAGES = 100  # of the validation images; more would change the third digit
RECALL_IOU = 0.5
SCORES = ("segm_AP", "keypoints_AP", "bbox_AP")  # the first that a model has decides which checkpoint is best


def validate(model, dataset, limit=None):
    """{"bbox_AP": ..., "bbox_AP50": ..., "segm_AP": ..., ..., "proposal_recall": ...} on (the first) images."""
    scores = evaluate(model, dataset, limit)
    found = {f"{kind}_{name}": scores[kind][name] for kind in scores for name in ("AP", "AP50")}
    return {**found, "proposal_recall": proposal_recall(model, dataset, limit)}


def validation_columns(model):
    """The names of what `validate` gives for the model."""
    kinds = ["bbox"] + ["segm"] * bool(model.mask_head) + ["keypoints"] * bool(model.keypoint_head)
    return [f"{kind}_{name}" for kind in kinds for name in ("AP", "AP50")] + ["proposal_recall"]


def main_score(logs):
    """The AP that decides which checkpoint is best, or None where `logs` has none."""
    return next((logs[name] for name in SCORES if name in logs), None)


def proposal_recall(model, dataset, limit=None):
    """The share of objects that one of the model's proposals overlaps with an IoU of at least .5; 0 without objects."""
    count = min(limit or len(dataset), len(dataset), RECALL_IMAGES)
    found = objects = 0
    propose = compiled(lambda batch: {"boxes": _propose(model, batch)}, model)
    for batch in loader(Subset(dataset, range(count)), model.config, training=False):
        if model.config.box_frame == "matterport":
            batch = in_last_pixel_frame(batch)
        iou = np.array(boxes.iou(batch["boxes"], propose(batch)["boxes"]))
        real = batch["classes"] > 0
        found += np.count_nonzero(real & (iou.max(-1) >= RECALL_IOU))
        objects += np.count_nonzero(real)
    return found / max(objects, 1)


def _propose(model, batch):
    """The proposals (B, P, 4) that detection would look at."""
    config = model.config
    pyramid = model.backbone(model.normalise(batch["image"], batch["image_size"]), training=False)
    logits, deltas = run_rpn_head(model.rpn, pyramid)
    anchors = anchors_by_level(batch["image"].shape[1:3], config)
    select = {"per_level": select_proposals, "joint": select_joint_proposals}[config.proposal_choice]
    size = batch["image_size"]
    return select(logits, deltas, anchors, size, config.proposals_per_level, config.proposals, config)[0]

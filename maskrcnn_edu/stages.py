"""What a model computes on its way from a photograph to detections, or from a batch to its losses, step by step.

Pictures, widgets and the book look at these values; detection and training themselves do not keep them. Every step is
the library's own part, called in the model's order.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from maskrcnn_edu import boxes
from maskrcnn_edu.anchors import LAST_PIXEL, anchors_by_level
from maskrcnn_edu.candidates import best_candidates, candidates
from maskrcnn_edu.detections import Detections, as_photograph, on_photograph, padded_size, to_batch
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.model import in_last_pixel_frame
from maskrcnn_edu.proposals import run_rpn_head
from maskrcnn_edu.roi_align import pool_from_pyramid


@dataclasses.dataclass
class Stages:
    """Every stage of detection on one photograph. All boxes are y1 x1 y2 x2 in pixels of the network's input.

    N anchors, R proposals, C classes with background, K candidates, D detections.
    """

    config: object
    class_names: list
    photograph: np.ndarray  # (H, W, 3) uint8
    image: np.ndarray  # (h, w, 3), 0..255: the network's input, resized and padded
    window: np.ndarray  # (4,): where the photograph lies in the image
    pyramid: list  # a feature map (h / stride, w / stride, channels) for each level, finest first
    anchors: np.ndarray  # (N, 4)
    levels: np.ndarray  # (N,): the level of each anchor, 0 the finest
    objectness: np.ndarray  # (N,): the probability that an anchor is on an object
    deltas: np.ndarray  # (N, 4): what the RPN would change about it
    refined: np.ndarray  # (N, 4): the anchors after that
    clipped: np.ndarray  # (N, 4): and cut to the image
    proposals: np.ndarray  # (R, 4): those that NMS left, best first; they are the RoIs
    proposal_scores: np.ndarray  # (R,): their objectness
    class_probabilities: np.ndarray  # (R, C)
    candidates: np.ndarray  # (K, 4): RoIs refined for a class that scores above the threshold, best first
    candidate_classes: np.ndarray  # (K,)
    candidate_scores: np.ndarray  # (K,)
    candidate_rois: np.ndarray  # (K,): the proposal that each comes from
    kept: np.ndarray  # (D,): the candidates that NMS within their class left, best first
    mask_probabilities: np.ndarray | None  # (D, m, m) inside the kept boxes; None without a mask head
    detections: Detections  # the same in pixels of the photograph, as `model.detect` gives them

    def on_photograph(self, found):
        """Boxes (..., 4) of the network's input in pixels of the photograph; nothing is cut off."""
        scale = np.array(self.photograph.shape[:2]) / (self.window[2:] - self.window[:2])
        return ((found - np.tile(self.window[:2], 2)) * np.tile(scale, 2)).astype(np.float32)


def stages(model, image) -> Stages:
    """Runs `model` on one photograph (as `model.detect` takes it) and keeps what every stage gives.

    Raises:
        InputError: what is no image.
    """
    config, photograph = model.config, as_photograph(image)
    batch = to_batch([photograph], padded_size(photograph, config), 1, config)
    frame = in_last_pixel_frame(batch) if config.box_frame == "matterport" else batch
    whole = LAST_PIXEL if config.box_frame == "matterport" else np.float32(0)  # makes the seed's boxes continuous

    pyramid = model.backbone(model.normalise(batch["image"], batch["image_size"]))
    anchors = anchors_by_level(batch["image"].shape[1:3], config)
    logits, deltas = run_rpn_head(model.rpn, pyramid)
    refined = boxes.decode(ops.concatenate(deltas, axis=1), np.concatenate(anchors))
    clipped = boxes.clip(refined, frame["image_size"])
    proposals, scores = model.select(logits, deltas, anchors, frame["image_size"])
    exists = scores > -float("inf")
    objectness = ops.sigmoid(scores) if config.proposal_choice == "per_level" else scores

    class_logits, class_deltas = model.run_box_head(pyramid, proposals)
    window = frame["window"]
    found, scores, classes = candidates(
        class_logits, class_deltas, proposals, exists, frame["image_size"], window, config
    )  # fmt: skip
    result, index = best_candidates(found, scores, classes, config)
    if model.mask_head:
        result["masks"] = model.mask_probabilities(pyramid, result["boxes"], result["classes"])
    if model.keypoint_head:
        result["keypoint_heatmaps"] = model.run_keypoint_head(pyramid, result["boxes"])
    result = {name: _first(value) for name, value in result.items()}

    used, scores, index = _first(exists), _first(scores), _first(index)[result["scores"] > 0]
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > 0]
    rank = np.zeros(len(scores), int)
    rank[order] = np.arange(len(order))
    rois = order // (len(scores) // proposals.shape[1])  # every_class: C - 1 candidates a RoI; best_class: one
    return Stages(
        config=config, class_names=model.class_names, photograph=photograph,
        image=batch["image"][0], window=batch["window"][0], pyramid=[_first(level) for level in pyramid],
        anchors=np.concatenate(anchors) + whole,
        levels=np.repeat(np.arange(len(anchors)), [len(level) for level in anchors]),
        objectness=_first(ops.sigmoid(ops.concatenate(logits, axis=1))),
        deltas=_first(ops.concatenate(deltas, axis=1)),
        refined=_numpy(refined).reshape(-1, 4) + whole,
        clipped=_first(clipped) + whole,
        proposals=_first(proposals)[used] + whole, proposal_scores=_first(objectness)[used],
        class_probabilities=_first(ops.softmax(class_logits, axis=-1))[used],
        candidates=_first(found)[order] + whole, candidate_classes=_first(classes)[order],
        candidate_scores=scores[order], candidate_rois=rois, kept=rank[index],
        mask_probabilities=result["masks"][: len(index)] if model.mask_head else None,
        detections=on_photograph(result, photograph, batch["window"][0], config),
    )  # fmt: skip


@dataclasses.dataclass
class TrainingStages:
    """What one image of a batch teaches the model. All boxes are y1 x1 y2 x2 in pixels of the network's input.

    S sampled anchors, R sampled RoIs, P of them positive, G objects. Labels: 1 positive, 0 negative, -1 an empty slot.
    """

    class_names: list
    image: np.ndarray  # (h, w, 3), 0..255
    boxes: np.ndarray  # (G, 4)
    classes: np.ndarray  # (G,); negative for a crowd
    anchors: np.ndarray  # (S, 4)
    anchor_labels: np.ndarray  # (S,)
    anchor_targets: np.ndarray  # (S, 4): the box that a positive anchor is to become
    rois: np.ndarray  # (R, 4), positives first
    roi_labels: np.ndarray  # (R,)
    roi_classes: np.ndarray  # (R,): 0 unless positive
    roi_targets: np.ndarray  # (R, 4): the box that a positive RoI is to become
    masks: np.ndarray | None  # (P, m, m) in 0..1: what the mask head is to answer; None without a mask head


def training_stages(model, batch, i=0) -> TrainingStages:
    """What image `i` of a batch of `mr.loader(dataset, model.config)` teaches the model.

    The proposals are the present model's, with its norms as in detection: nothing about it changes.

    Raises:
        InputError: a batch without ground truth, or without an image `i`.
    """
    if "boxes" not in batch:
        raise InputError('The batch has no "boxes"; give one of mr.loader(dataset, model.config).')
    if not 0 <= i < len(batch["image"]):
        raise InputError(
            f"The batch has {len(batch['image'])} images, none with index {i}; give 0 or more, below that."
        )
    one = {name: np.asarray(value)[i : i + 1] for name, value in batch.items()}
    outputs = model(one)
    rpn, heads = ({k: _first(v) for k, v in outputs[part].items()} for part in ("rpn", "heads"))
    matterport = model.config.box_frame == "matterport"
    whole = LAST_PIXEL if matterport else np.float32(0)
    anchors = np.concatenate(anchors_by_level(one["image"].shape[1:3], model.config))[rpn["index"]]
    objects, positive = one["classes"][0] != 0, heads["label"] == 1
    return TrainingStages(
        class_names=model.class_names, image=one["image"][0],
        boxes=one["boxes"][0][objects], classes=one["classes"][0][objects],
        anchors=anchors + whole, anchor_labels=rpn["label"],
        anchor_targets=_numpy(boxes.decode(rpn["deltas"], anchors)) + whole,
        rois=heads["rois"] + whole, roi_labels=heads["label"], roi_classes=heads["class"],
        roi_targets=_numpy(boxes.decode(heads["deltas"], heads["rois"], model.config.box_delta_weights)) + whole,
        masks=heads["masks"][: np.count_nonzero(positive)] if model.mask_head else None,
    )  # fmt: skip


def layer_names(model) -> list:
    """The layers that `activations` can look into, in the order in which the model runs them."""
    layers = [layer for part in _parts(model) for layer in part.layers]
    return [layer.name for layer in layers if not isinstance(layer, keras.layers.InputLayer)]


def activations(model, image, layer, level=0):
    """What the layer of that name gives on a photograph: (h, w, channels), or (R, ...) for the R RoIs of a head.

    level: the pyramid level to run a layer of the RPN on, 0 the finest. The heads' RoIs are the model's detections.

    Raises:
        InputError: an unknown layer or level.
    """
    part = next((part for part in _parts(model) if layer in [found.name for found in part.layers]), None)
    if part is None:
        close = [name for name in layer_names(model) if name.startswith(layer.split("_")[0])][:4]
        hint = f"such as {', '.join(close)}" if close else "maskrcnn_edu.stages.layer_names(model) lists them"
        raise InputError(f"The model has no layer {layer!r}; choose another, {hint}.")
    if not 0 <= level < model.config.num_levels:
        raise InputError(f"level is {level}; the pyramid has {model.config.num_levels}, from 0 on.")
    config, photograph = model.config, as_photograph(image)
    batch = to_batch([photograph], padded_size(photograph, config), 1, config)
    given = model.normalise(batch["image"], batch["image_size"])
    if part is not model.backbone:
        pyramid = model.backbone(given)
        given = pyramid[level] if part is model.rpn else _head_input(model, part, pyramid, stages(model, image))
    values = _numpy(keras.Model(part.inputs, part.get_layer(layer).output)(given))
    return values[0] if part in (model.backbone, model.rpn) else values


def _head_input(model, head, pyramid, found):
    """The RoI features, and for the mask head the classes, of what was detected."""
    if not len(found.kept):
        raise InputError("The model found nothing on this image, so its heads have no RoI to show; give another image.")
    config = model.config
    if head is model.box_head:
        rois, side = found.proposals[np.unique(found.candidate_rois[found.kept])], config.box_pool_size
    else:
        rois = found.candidates[found.kept]
        side = config.mask_pool_size if head is model.mask_head else config.keypoint_pool_size
    if config.box_frame == "matterport":
        rois = rois - LAST_PIXEL
    feature = pool_from_pyramid(pyramid, rois[None], side, config)[0]
    classes = ops.convert_to_tensor(found.candidate_classes[found.kept])
    return [feature, classes] if head is model.mask_head else feature


def _parts(model):
    parts = (model.backbone, model.rpn, model.box_head, model.mask_head, model.keypoint_head)
    return [part for part in parts if part is not None]


def _numpy(tensor):
    """A tensor as a NumPy array; NumPy has no bfloat16."""
    return ops.convert_to_numpy(ops.cast(tensor, "float32") if "bfloat16" in str(tensor.dtype) else tensor)


def _first(tensor):
    """The only entry of a batch, as a NumPy array."""
    return _numpy(tensor)[0]

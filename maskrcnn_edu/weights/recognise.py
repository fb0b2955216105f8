"""What a published file says of its model: the family, the preset of Config, the classes."""

from maskrcnn_edu.config import PRESETS
from maskrcnn_edu.datasets.coco_classes import COCO_NAMES, COCO_RAW_NAMES, PERSON_NAMES
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.weights.loading import FAMILIES

# Tensors that only one of a family's models has.
V2 = "backbone.fpn.inner_blocks.0.1.weight"
DEEP = {"detectron2": "backbone.bottom_up.res4.22.conv1.weight", "matterport": "res4w_branch2a/res4w_branch2a/kernel:0"}
KEYPOINTS = "keypoint"
# The bias of the class scores: as many numbers as classes. Detectron2 and torchvision name it alike.
CLASSES = ("roi_heads.box_predictor.cls_score.bias", "mrcnn_class_logits/mrcnn_class_logits/bias:0")


def family_of(tensors) -> str | None:
    """The name of the family whose names the tensors carry, or None."""
    return next((name for name, family in FAMILIES.items() if family.recognises(tensors)), None)


def config_of(tensors, source, preset=None):
    """The Config of the model in a file of the `source`; its `preset`, if given, is taken instead of the file's.

    Raises InputError if the tensors are of no known family.
    """
    family = family_of(tensors)
    if family is None:
        raise InputError(
            f"{source} has tensors of no known family ({', '.join(FAMILIES)}); the first is {next(iter(tensors))!r}."
        )
    if family == "imagenet":
        return PRESETS["coco"](depth=101 if any(name.startswith("conv4_block23") for name in tensors) else 50)
    preset = preset or _preset(family, tensors)
    if not preset.startswith(family):
        suitable = ", ".join(name for name in PRESETS if name.startswith(family))
        raise InputError(f"{source} holds {family}'s weights, which the preset {preset} does not suit; use {suitable}.")
    changes = {}
    for name in CLASSES:
        if name in tensors:
            changes["num_classes"] = len(tensors[name])
    if family in DEEP:
        changes["depth"] = 101 if DEEP[family] in tensors else 50
    return PRESETS[preset](**changes)


def _preset(family, tensors):
    if any(KEYPOINTS in name for name in tensors):
        return f"{family}_keypoint"
    return "torchvision_v2" if V2 in tensors else family


def class_names(config):
    """COCO's names for a model with as many classes as a published one; None, so generic ones, for others."""
    known = {len(names): names for names in (COCO_NAMES, COCO_RAW_NAMES)}
    if config.keypoints:
        known = {len(PERSON_NAMES): PERSON_NAMES}
    return known.get(config.num_classes)

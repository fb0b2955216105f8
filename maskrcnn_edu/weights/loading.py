"""Filling a model from the tensors of another system: nothing is skipped in silence."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.weights import detectron2, imagenet, matterport, torchvision
from maskrcnn_edu.weights.readers import read

# A family is a module with `recognises`, `sources` and, where its files need them, `canonical` (names of its tensors)
# and `fills` (which variables they are meant for).
FAMILIES = {"torchvision": torchvision, "detectron2": detectron2, "matterport": matterport, "imagenet": imagenet}
# Layers whose shape depends on the number of classes: the ones that fine-tuning on other classes starts anew.
CLASS_LAYERS = (
    "box_head/class_logits/",
    "box_head/box_deltas/",
    "mask_head/mask_logits/",
    "keypoint_head/keypoint_logits/",
)


FIRST_KERNEL = "backbone/stem/kernel"


@dataclasses.dataclass(frozen=True)
class Report:
    """What `load` did, by name. Every tensor of the file and every variable of the model is in one of the lists.

    filled: variables that got a tensor's values; anew: variables left at their first values (the class-dependent ones
    with strict=False; the pyramid and the heads with an ImageNet backbone); unused: tensors that no variable takes;
    first_layer: what became of the file's three channels where the model's images have another number, else "".
    """

    family: str
    filled: tuple
    anew: tuple
    unused: tuple
    first_layer: str = ""

    def __str__(self):
        lines = [f"{len(self.filled)} variables filled from {self.family}'s tensors."]
        if self.first_layer:
            lines.append(f"{FIRST_KERNEL}: {self.first_layer}.")
        for title, names in (("Left at their first values", self.anew), ("Tensors not used", self.unused)):
            if names:
                lines.append(f"{title}: {', '.join(names)}.")
        return "\n".join(lines)


def load(model, source, strict=True) -> Report:
    """Fills `model` with published weights.

    Args:
        model: a MaskRCNN whose config is of the file's family (`Config.torchvision()`, `Config.detectron2()`, ...).
        source: a file, told apart by its content, or a mapping from tensor name to array.
        strict: False lets the class-dependent layers differ, as when fine-tuning on other classes; they keep their
            first values, and the report says so.

    Returns a `Report`. Raises InputError, before anything is changed, if the tensors are of no known family, if a
    variable has none, or if shapes differ; it lists all of them.
    """
    tensors = dict(source) if isinstance(source, Mapping) else read(source)
    name = next((name for name, family in FAMILIES.items() if family.recognises(tensors)), None)
    if name is None:
        raise InputError(
            f"The tensors are of no known family ({', '.join(FAMILIES)}); the first is {next(iter(tensors), 'none')!r}."
        )
    family = FAMILIES[name]
    tensors = getattr(family, "canonical", dict)(tensors)
    variables = variables_by_name(model)
    values, used = _converted(family, model.config, variables, tensors)
    adapted = _adapt_first_layer(values, model.config.image_channels)
    wrong = _misfits(variables, values)
    meant = getattr(family, "fills", lambda path: True)
    anew = [path for path in wrong if not meant(path) or (not strict and path.startswith(CLASS_LAYERS))]
    errors = [f"{path} {reason}" for path, reason in wrong.items() if path not in anew]
    if errors:
        raise InputError(f"The {name} weights do not fit this model's config: {'; '.join(errors)}.")
    filled = [path for path in variables if path not in anew]
    for path in filled:
        variables[path].assign(values[path])
    unused = [tensor for tensor in tensors if tensor not in used]
    return Report(name, tuple(filled), tuple(anew), tuple(unused), adapted)


def variables_by_name(model):
    """Every variable of the model's parts: {"backbone/stem/kernel": variable, ...}."""
    heads = (model.box_head, model.mask_head, model.keypoint_head)
    parts = [part for part in (model.backbone, model.rpn, *heads) if part is not None]
    return {f"{part.name}/{layer.name}/{v.name}": v for part in parts for layer in part.layers for v in layer.weights}


def _converted(family, config, variables, tensors):
    """Values in our layout by variable, and the names of the tensors that went into them."""
    values, used = {}, set()
    for path, names, convert in family.sources(config):
        if path in variables and all(name in tensors for name in names):
            values[path] = _convert(convert, [np.asarray(tensors[name], np.float32) for name in names])
            used.update(names)
    return values, used


def _convert(convert, tensors):
    """The tensors in our layout, or the first as it is where shapes do not allow that: `_misfits` will then name it."""
    try:
        return np.ascontiguousarray(convert(*tensors))
    except (ValueError, IndexError):
        return tensors[0]


def _adapt_first_layer(values, channels) -> str:
    """Makes the kernel of RGB, (7, 7, 3, out), one of `channels`; says how, or "" where it fits.

    One channel: the sum over RGB, so that a grey image gets what it would get as RGB with equal channels (pixel means
    and deviations aside). Others: the mean over RGB times 3 / channels, which keeps the size of what comes out.
    """
    kernel = values.get(FIRST_KERNEL)
    if kernel is None or channels == 3 or kernel.ndim != 4 or kernel.shape[2] != 3:
        return ""
    grey = kernel.sum(2, keepdims=True)
    values[FIRST_KERNEL] = np.repeat(grey / channels, channels, axis=2)
    if channels == 1:
        return "the file's three channels are added up into the one of image_channels 1"
    return f"each of the {channels} channels has the mean of the file's three, times 3 / {channels}"


def _misfits(variables, values):
    """Variables without a tensor, or with one of another shape: {path: what is wrong}."""
    wrong = {}
    for path, variable in variables.items():
        if path not in values:
            wrong[path] = "has no tensor"
        elif values[path].shape != tuple(variable.shape):
            wrong[path] = f"has shape {tuple(variable.shape)}, the file {values[path].shape}"
    return wrong

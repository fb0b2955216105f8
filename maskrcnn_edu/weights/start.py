"""What a training run starts from: COCO's weights or ImageNet's, whichever suit a Config, or a file of any family."""

import dataclasses
from pathlib import Path

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.presets import RECIPE
from maskrcnn_edu.weights.loading import CLASS_LAYERS, Report, load, variables_by_name
from maskrcnn_edu.weights.published import PUBLISHED, fetch, find
from maskrcnn_edu.weights.readers import read
from maskrcnn_edu.weights.recognise import config_of

# Published weights fit a network if these agree.
NETWORK = (
    "bottleneck", "stem_channels", "stage_blocks", "stage_channels", "stride_in_1x1", "fpn_norm",
    "fpn_channels", "rpn_convs", "rpn_channels", "box_conv_channels", "box_fc_channels", "mask_head",
    "mask_conv_channels", "keypoints", "box_frame",
)  # fmt: skip
BACKBONES = {(3, 4, 6, 3): "imagenet-resnet50", (3, 4, 23, 3): "imagenet-resnet101"}


def coco_weights(config) -> str:
    """The name of the published COCO weights for the network of `config`. Raises InputError if there are none."""
    for name, published in PUBLISHED.items():
        theirs = published.config()
        if not published.backbone_only and all(getattr(config, f) == getattr(theirs, f) for f in NETWORK):
            return name
    presets = ", ".join(sorted({entry.preset for entry in PUBLISHED.values()}))
    raise InputError(
        f"There are no published COCO weights for this network; start from one of the presets {presets}, without "
        "changes of its layers, or with --model new."
    )


def imagenet_weights(config) -> str:
    """The name of the published ImageNet weights for the ResNet of `config`. Raises InputError if there are none."""
    if config.stage_blocks not in BACKBONES or not config.bottleneck or not config.stride_in_1x1:
        raise InputError(
            "ImageNet weights are of ResNet-50 and ResNet-101 with the stride in the first convolution of a block; "
            "use --preset coco, or --model new."
        )
    return BACKBONES[config.stage_blocks]


def from_backbone(config, class_names, cache=None):
    """A model for `config` with the ResNet of ImageNet, and a Report of what was filled."""
    from maskrcnn_edu.model import MaskRCNN

    path = fetch(imagenet_weights(config), cache)
    model = MaskRCNN(config, class_names)
    return model, load(model, path)


def fine_tuned(source, class_names, adapt, cache=None):
    """A model with known weights for classes of one's own, and a Report of what was filled and what starts anew.

    source: a name of published weights, a file of any of their families, or a .keras file. It brings its Config, which
    `adapt` turns into the one to train with. Layers that depend on the classes start anew where those differ.
    """
    from maskrcnn_edu import runs
    from maskrcnn_edu.model import MaskRCNN

    if Path(source).suffix == ".keras":
        trained = runs.load(source)
        model = MaskRCNN(adapt(trained.config), class_names)
        return model, _copy(trained, model, source)
    if source in PUBLISHED:
        config, tensors = find(source).config(), read(fetch(source, cache))
    else:
        tensors = read(source)
        config = config_of(tensors, source)
    model = MaskRCNN(adapt(config), class_names)
    return model, load(model, tensors, strict=False)


def _copy(trained, model, source):
    """Fills `model` from another one; class layers only if both have the same classes."""
    ours, theirs = variables_by_name(model), variables_by_name(trained)
    anew = [path for path in ours if path.startswith(CLASS_LAYERS)] if model.class_names != trained.class_names else []
    filled = [path for path in ours if path not in anew]
    if any(path not in theirs or theirs[path].shape != ours[path].shape for path in filled):
        raise InputError(f"{source}: its weights do not fit the changes of --set; change training fields only.")
    for path in filled:
        ours[path].assign(theirs[path])
    return Report("maskrcnn_edu", tuple(filled), tuple(anew), ())


def with_recipe(config, recipe):
    """`config` with the training fields of `recipe`, another Config; its short sides only for images of its size."""
    fields = {name: getattr(recipe, name) for name in RECIPE}
    if (config.image_min_size, config.image_max_size) != (recipe.image_min_size, recipe.image_max_size):
        fields["image_min_sizes_training"] = ()
    return dataclasses.replace(config, **fields)

"""torchvision's Mask R-CNN, v1 and v2: where each of our layers finds its tensors (torchvision/models/detection)."""

import re

from maskrcnn_edu.weights import layout

# Names of 2019, in which torchvision still publishes v1 and the keypoint model, and today's: each convolution has come
# to sit in a Sequential of its own (`_load_from_state_dict` in ops/feature_pyramid_network.py, models/detection/rpn.py
# and mask_rcnn.py).
OLDER_NAMES = (
    (re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d+)\.(weight|bias)"), r"backbone.fpn.\1_blocks.\2.0.\3"),
    (re.compile(r"rpn\.head\.conv\.(weight|bias)"), r"rpn.head.conv.0.0.\1"),
    (
        re.compile(r"roi_heads\.mask_head\.mask_fcn([1-9])\.(weight|bias)"),
        lambda m: f"roi_heads.mask_head.{int(m[1]) - 1}.0.{m[2]}",
    ),
)


def recognises(tensors) -> bool:
    """Whether the tensors carry torchvision's names."""
    return "backbone.body.conv1.weight" in tensors


def current_name(tensor: str) -> str:
    """Today's name of a tensor, for the names of 2019 too."""
    for older, current in OLDER_NAMES:
        if older.fullmatch(tensor):
            return older.sub(current, tensor)
    return tensor


def canonical(tensors) -> dict:
    """The tensors by today's names."""
    return {current_name(name): value for name, value in tensors.items()}


def sources(config):
    """(our variable, names of their tensors, conversion) for every variable of the model."""
    return layout.sources(rules(config))


def rules(config):
    """(our layer, their layer, rule) for every layer of the model."""
    yield from _resnet(config)
    for i in range(len(config.stage_blocks)):
        for ours, theirs in (("lateral", "inner"), ("output", "layer")):
            yield from _conv_norm(f"backbone/fpn_{ours}{i + 2}", f"backbone.fpn.{theirs}_blocks.{i}", config.fpn_norm)
    for i in range(config.rpn_convs):
        yield f"rpn/rpn_conv{i + 1}", f"rpn.head.conv.{i}.0", layout.CONV
    yield "rpn/rpn_logits", "rpn.head.cls_logits", layout.CONV
    yield "rpn/rpn_deltas", "rpn.head.bbox_pred", layout.RPN_DELTAS
    yield from _box_head(config)
    if config.mask_head:
        for i in range(len(config.mask_conv_channels)):
            yield from _conv_norm(f"mask_head/mask_conv{i + 1}", f"roi_heads.mask_head.{i}", config.head_norm)
        yield "mask_head/mask_deconv", "roi_heads.mask_predictor.conv5_mask", layout.DECONV
        yield (
            "mask_head/mask_logits",
            "roi_heads.mask_predictor.mask_fcn_logits",
            layout.mask_rows(background_first=True),
        )
    if config.keypoints:
        for i in range(len(config.keypoint_conv_channels)):  # theirs count the relus too
            yield f"keypoint_head/keypoint_conv{i + 1}", f"roi_heads.keypoint_head.{2 * i}", layout.CONV
        yield "keypoint_head/keypoint_logits", "roi_heads.keypoint_predictor.kps_score_lowres", layout.DECONV


def _conv_norm(ours, theirs, norm):
    """torchvision's Conv2dNormActivation: .0 is the convolution, .1 the norm."""
    yield ours, f"{theirs}.0", layout.CONV
    if norm != "none":
        yield f"{ours}_norm", f"{theirs}.1", layout.NORM


def _resnet(config):
    yield "backbone/stem", "backbone.body.conv1", layout.CONV
    yield "backbone/stem_norm", "backbone.body.bn1", layout.NORM
    for stage, blocks in enumerate(config.stage_blocks, start=1):
        for block in range(blocks):
            ours, theirs = f"backbone/res{stage + 1}_{block}", f"backbone.body.layer{stage}.{block}"
            for i in (1, 2, 3):
                yield f"{ours}_conv{i}", f"{theirs}.conv{i}", layout.CONV
                yield f"{ours}_conv{i}_norm", f"{theirs}.bn{i}", layout.NORM
            if block == 0:
                yield f"{ours}_shortcut", f"{theirs}.downsample.0", layout.CONV
                yield f"{ours}_shortcut_norm", f"{theirs}.downsample.1", layout.NORM


def _box_head(config):
    after_roi = layout.dense_after_roi(config.box_pool_size)
    for i in range(len(config.box_conv_channels)):
        yield from _conv_norm(f"box_head/box_conv{i + 1}", f"roi_heads.box_head.{i}", config.head_norm)
    if config.box_conv_channels:  # v2: convolutions, a flattening, one dense layer
        yield "box_head/box_fc1", f"roi_heads.box_head.{len(config.box_conv_channels) + 1}", after_roi
    else:
        yield "box_head/box_fc1", "roi_heads.box_head.fc6", after_roi
        yield "box_head/box_fc2", "roi_heads.box_head.fc7", layout.DENSE
    yield "box_head/class_logits", "roi_heads.box_predictor.cls_score", layout.class_rows(background_last=False)
    yield "box_head/box_deltas", "roi_heads.box_predictor.bbox_pred", layout.box_rows(background_first=True)

"""Detectron2's Mask R-CNN with FPN: where each of our layers finds its tensors (detectron2/modeling)."""

from maskrcnn_edu.weights import layout


def recognises(tensors) -> bool:
    """Whether the tensors carry Detectron2's names."""
    return "backbone.bottom_up.stem.conv1.weight" in tensors


def sources(config):
    """(our variable, names of their tensors, conversion) for every variable of the model."""
    return layout.sources(rules(config))


def rules(config):
    """(our layer, their layer, rule) for every layer of the model. The background's row is the last there."""
    yield from _resnet(config)
    for level in range(2, len(config.stage_blocks) + 2):
        for part in ("lateral", "output"):
            yield f"backbone/fpn_{part}{level}", f"backbone.fpn_{part}{level}", layout.CONV
    yield "rpn/rpn_conv1", "proposal_generator.rpn_head.conv", layout.CONV
    yield "rpn/rpn_logits", "proposal_generator.rpn_head.objectness_logits", layout.CONV
    yield "rpn/rpn_deltas", "proposal_generator.rpn_head.anchor_deltas", layout.RPN_DELTAS
    yield "box_head/box_fc1", "roi_heads.box_head.fc1", layout.dense_after_roi(config.box_pool_size)
    yield "box_head/box_fc2", "roi_heads.box_head.fc2", layout.DENSE
    yield "box_head/class_logits", "roi_heads.box_predictor.cls_score", layout.class_rows(background_last=True)
    yield "box_head/box_deltas", "roi_heads.box_predictor.bbox_pred", layout.box_rows(background_first=False)
    if config.mask_head:
        for i in range(1, len(config.mask_conv_channels) + 1):
            yield f"mask_head/mask_conv{i}", f"roi_heads.mask_head.mask_fcn{i}", layout.CONV
        yield "mask_head/mask_deconv", "roi_heads.mask_head.deconv", layout.DECONV
        yield "mask_head/mask_logits", "roi_heads.mask_head.predictor", layout.mask_rows(background_first=False)
    if config.keypoints:
        for i in range(1, len(config.keypoint_conv_channels) + 1):
            yield f"keypoint_head/keypoint_conv{i}", f"roi_heads.keypoint_head.conv_fcn{i}", layout.CONV
        yield "keypoint_head/keypoint_logits", "roi_heads.keypoint_head.score_lowres", layout.DECONV


def _resnet(config):
    stem = "backbone.bottom_up.stem.conv1"
    yield "backbone/stem", stem, layout.conv(flip_input=True)
    yield "backbone/stem_norm", f"{stem}.norm", layout.NORM
    for stage, blocks in enumerate(config.stage_blocks, start=2):
        for block in range(blocks):
            for part in ("conv1", "conv2", "conv3", "shortcut")[: 4 if block == 0 else 3]:
                ours, theirs = f"backbone/res{stage}_{block}_{part}", f"backbone.bottom_up.res{stage}.{block}.{part}"
                yield ours, theirs, layout.CONV
                yield f"{ours}_norm", f"{theirs}.norm", layout.NORM

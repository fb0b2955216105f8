"""The seed's Mask R-CNN (Keras h5): where each of our variables finds its datasets, and what is folded on the way.

Its convolutions have a bias in front of a norm, which becomes part of the norm's mean. The box head's 7 x 7 and 1 x 1
convolutions with their norms become dense layers, the RPN's softmax over (background, object) one logit, and the
standard deviations that its RPN multiplies deltas with become part of the weights.
"""

import numpy as np

EPSILON = 1e-3  # of all its norms
RPN_DEVIATIONS = np.float32([0.1, 0.1, 0.2, 0.2])


def recognises(tensors) -> bool:
    """Whether the tensors carry the seed's names."""
    return "mrcnn_bbox_fc/mrcnn_bbox_fc/kernel:0" in tensors


def sources(config):
    """(our variable, names of their datasets, function of those) for every variable of the model."""
    yield from _conv_norm("backbone/stem", "conv1", "bn_conv1")
    for stage, blocks in enumerate(config.stage_blocks, start=2):
        for block in range(blocks):
            ours, theirs = f"backbone/res{stage}_{block}", f"{stage}{chr(ord('a') + block)}_branch"
            for part, branch in (("conv1", "2a"), ("conv2", "2b"), ("conv3", "2c"), ("shortcut", "1")):
                yield from _conv_norm(f"{ours}_{part}", f"res{theirs}{branch}", f"bn{theirs}{branch}")
    for level in range(2, len(config.stage_blocks) + 2):
        yield from _layer(f"backbone/fpn_lateral{level}", f"fpn_c{level}p{level}")
        yield from _layer(f"backbone/fpn_output{level}", f"fpn_p{level}")
    yield from _rpn()
    yield from _dense_from_conv("box_head/box_fc1", "mrcnn_class_conv1", "mrcnn_class_bn1")
    yield from _dense_from_conv("box_head/box_fc2", "mrcnn_class_conv2", "mrcnn_class_bn2")
    yield from _layer("box_head/class_logits", "mrcnn_class_logits")
    yield from _layer("box_head/box_deltas", "mrcnn_bbox_fc", lambda x: x[..., 4:])  # without background's
    for i in range(1, len(config.mask_conv_channels) + 1):
        yield from _conv_norm(f"mask_head/mask_conv{i}", f"mrcnn_mask_conv{i}", f"mrcnn_mask_bn{i}")
    yield from _layer("mask_head/mask_deconv", "mrcnn_mask_deconv")
    yield "mask_head/mask_logits/kernel", _names("mrcnn_mask", "kernel"), lambda w: w[0, 0, :, 1:].T
    yield "mask_head/mask_logits/bias", _names("mrcnn_mask", "bias"), lambda b: b[1:]


def _names(layer, *datasets, group=None):
    return tuple(f"{group or layer}/{layer}/{dataset}:0" for dataset in datasets)


def _same(x):
    return x


def _layer(ours, theirs, convert=_same):
    for variable in ("kernel", "bias"):
        yield f"{ours}/{variable}", _names(theirs, variable), convert


def _conv_norm(ours, conv, norm):
    """A convolution with a bias and its norm: (x + bias - mean) is (x - (mean - bias))."""
    yield f"{ours}/kernel", _names(conv, "kernel"), _same
    for variable in ("gamma", "beta", "moving_variance"):
        yield f"{ours}_norm/{variable}", _names(norm, variable), _same
    mean = _names(norm, "moving_mean") + _names(conv, "bias")
    yield f"{ours}_norm/moving_mean", mean, lambda mean, bias: mean - bias


def _dense_from_conv(ours, conv, norm):
    """A convolution that sees its whole input, and its norm, as one dense layer."""

    def kernel(w, gamma, variance):
        return w.reshape(-1, w.shape[-1]) * (gamma / np.sqrt(variance + EPSILON))

    def bias(b, gamma, variance, mean, beta):
        return (b - mean) * (gamma / np.sqrt(variance + EPSILON)) + beta

    scale = _names(norm, "gamma", "moving_variance")
    yield f"{ours}/kernel", _names(conv, "kernel") + scale, kernel
    yield f"{ours}/bias", _names(conv, "bias") + scale + _names(norm, "moving_mean", "beta"), bias


def _rpn():
    def names(layer, variable):
        return _names(layer, variable, group="rpn_model")

    for variable in ("kernel", "bias"):
        yield f"rpn/rpn_conv1/{variable}", names("rpn_conv_shared", variable), _same
        # Softmax of two logits is the sigmoid of their difference; they lie background, object, anchor by anchor.
        yield f"rpn/rpn_logits/{variable}", names("rpn_class_raw", variable), lambda x: x[..., 1::2] - x[..., ::2]
        yield f"rpn/rpn_deltas/{variable}", names("rpn_bbox_pred", variable), _scaled_deltas


def _scaled_deltas(x):
    return (x.reshape(*x.shape[:-1], -1, 4) * RPN_DEVIATIONS).reshape(x.shape)

"""ImageNet backbones of keras.applications (ResNet50 and ResNet101, h5): they fill the ResNet and nothing else.

Their network sees BGR minus (103.939, 116.779, 123.68), has a bias in front of each norm, and 1.001e-5 in its norms.
All of that is folded into the weights, so that they serve any `pixel_mean`, `pixel_std` and `norm_epsilon`.
"""

import numpy as np

EPSILON = 1.001e-5
MEAN = np.float32([123.68, 116.779, 103.939])  # RGB


def recognises(tensors) -> bool:
    """Whether the tensors carry the names of keras.applications' ResNets."""
    return any(name.startswith("conv1_conv/") for name in tensors)


def fills(path) -> bool:
    """Whether these files are meant for the variable: a ResNet's, not the pyramid's and the heads'."""
    return path.startswith(("backbone/stem", "backbone/res"))


def canonical(tensors) -> dict:
    """Names as layer/variable: releases of Keras differ in what stands between the two, and in ":0" behind."""
    return {f"{name.split('/')[0]}/{name.split('/')[-1].split(':')[0]}": array for name, array in tensors.items()}


def sources(config):
    """(our variable, names of their tensors, function of those) for every variable of the ResNet."""
    yield from _stem(config)
    for stage, blocks in enumerate(config.stage_blocks, start=2):
        for block in range(blocks):
            ours, theirs = f"backbone/res{stage}_{block}", f"conv{stage}_block{block + 1}"
            for part, number in (("shortcut", 0), ("conv1", 1), ("conv2", 2), ("conv3", 3)):
                conv, norm = f"{theirs}_{number}_conv", f"{theirs}_{number}_bn"
                yield f"{ours}_{part}/kernel", (f"{conv}/kernel",), lambda w: w
                yield from _norm(f"{ours}_{part}_norm", conv, norm, config.norm_epsilon)


def _norm(ours, conv, norm, epsilon):
    """The convolution's bias becomes part of the mean, the other epsilon part of gamma."""
    yield f"{ours}/beta", (f"{norm}/beta",), lambda x: x
    yield f"{ours}/moving_variance", (f"{norm}/moving_variance",), lambda x: x
    yield f"{ours}/moving_mean", (f"{norm}/moving_mean", f"{conv}/bias"), lambda mean, bias: mean - bias
    names = f"{norm}/gamma", f"{norm}/moving_variance"
    yield f"{ours}/gamma", names, lambda gamma, v: gamma * np.sqrt((v + epsilon) / (v + EPSILON))


def _stem(config):
    """The first layer also takes over the order of the channels and the scale and mean of the pixels."""
    std = _of_rgb(config.pixel_std)[:, None]
    shift = _of_rgb(config.pixel_mean) - MEAN

    def rgb(w):
        return w[:, :, ::-1]

    def mean(mean, bias, w):  # what the difference of the pixel means adds to every output, away from the border
        return mean - bias - np.einsum("hwio,i->o", rgb(w), shift)

    yield "backbone/stem/kernel", ("conv1_conv/kernel",), lambda w: rgb(w) * std
    for path, names, convert in _norm("backbone/stem_norm", "conv1_conv", "conv1_bn", config.norm_epsilon):
        if path.endswith("moving_mean"):
            names, convert = (*names, "conv1_conv/kernel"), mean
        yield path, names, convert


def _of_rgb(numbers):
    """Three numbers; where images have other channels, their mean three times: `first_layer` then adapts the kernel."""
    return np.float32(numbers if len(numbers) == 3 else [np.mean(numbers)] * 3)

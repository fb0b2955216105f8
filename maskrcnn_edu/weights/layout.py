"""How the tensors of one layer look in PyTorch's files and in ours.

A rule lists, for one kind of layer, (our variable, their tensor, conversion). `sources` spells a family's rules out.
"""

import numpy as np


def sources(rules):
    """(our variable, names of their tensors, function of those tensors) from (our layer, their layer, rule)."""
    for ours, theirs, rule in rules:
        for variable, tensor, convert in rule:
            yield f"{ours}/{variable}", (f"{theirs}.{tensor}",), convert


def conv(flip_input=False):
    """Convolution: (out, in, h, w) -> (h, w, in, out). `flip_input`: the file's network sees BGR, ours RGB."""

    def kernel(w):
        w = w.transpose(2, 3, 1, 0)
        return w[:, :, ::-1] if flip_input else w

    return [("kernel", "weight", kernel), ("bias", "bias", same)]


def same(x):
    """Unchanged."""
    return x


CONV = conv()
NORM = [
    ("gamma", "weight", same),
    ("beta", "bias", same),
    ("moving_mean", "running_mean", same),
    ("moving_variance", "running_var", same),
]
DENSE = [("kernel", "weight", np.transpose), ("bias", "bias", same)]
# A transposed convolution: (in, out, h, w) -> (h, w, out, in).
DECONV = [("kernel", "weight", lambda w: w.transpose(2, 3, 1, 0)), ("bias", "bias", same)]


def dense_after_roi(side):
    """Dense layer on a RoI's feature: PyTorch flattens (C, side, side), Keras (side, side, C)."""

    def kernel(w):
        out = w.shape[0]
        return w.reshape(out, -1, side, side).transpose(2, 3, 1, 0).reshape(-1, out)

    return [("kernel", "weight", kernel), ("bias", "bias", same)]


def yx_order(x):
    """Deltas come as dx, dy, dw, dh, four by four along the first axis; ours are dy, dx, dh, dw."""
    return x.reshape(-1, 4, *x.shape[1:])[:, [1, 0, 3, 2]].reshape(x.shape)


# The RPN's deltas: a 1x1 convolution with four outputs an anchor.
RPN_DELTAS = [("kernel", "weight", lambda w: yx_order(w).transpose(2, 3, 1, 0)), ("bias", "bias", yx_order)]


def class_rows(background_last):
    """Class scores: a dense layer, its rows with background first."""

    def rows(x):
        return np.roll(x, 1, axis=0) if background_last else x

    return [("kernel", "weight", lambda w: rows(w).T), ("bias", "bias", rows)]


def box_rows(background_first):
    """Box deltas a class: background has none in ours; where the file has some, they are never used."""

    def rows(x):
        return yx_order(x[4:] if background_first else x)

    return [("kernel", "weight", lambda w: rows(w).T), ("bias", "bias", rows)]


def mask_rows(background_first):
    """Mask logits a class: a 1x1 convolution (classes, in, 1, 1) -> (classes, in), without the background's."""
    first = 1 if background_first else 0
    return [("kernel", "weight", lambda w: w[first:, :, 0, 0]), ("bias", "bias", lambda b: b[first:])]

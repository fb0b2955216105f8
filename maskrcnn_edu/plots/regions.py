"""Boxes on their way to detections: anchors, their refinement, proposals."""

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots.canvas import (
    DPI,
    GREY,
    LINE_COLOURS,
    TITLE,
    Plot,
    Sheet,
    as_boxes,
    colour,
    halo,
    picture,
)
from maskrcnn_edu.plots.captions import place_captions
from maskrcnn_edu.plots.objects import CROWDED, box_line

FAINT, DOTTED, SOLID = 0, 1, 2  # how prominent a box is
POSITIVE, NEUTRAL, NEGATIVE = "#56B4E9", "#F0E442", "#D55E00"
DOTS = (0, (1.2, 1.6))  # a dotted line that stays visible when it is thin


def boxes(image, found, *, captions=None, prominence=None, colours=None, title=None, view=None, ax=None):
    """Draws boxes on an image, a colour for each.

    Args:
        image: as in `instances`.
        found: (N, 4) y1, x1, y2, x2 in pixels of the image, or what has such `boxes`.
        captions: (N,) texts.
        prominence: (N,) 0: grey and dotted, 1: dotted, 2: solid (the default).
        colours: (N,) matplotlib colours in place of our own.
        title: a line above the picture.
        view: (4,) the part of the plane to show; by default the image. `view_of` finds one around boxes.
        ax: as in `instances`.

    Returns:
        The Axes.

    Raises:
        InputError: arrays that do not match.
    """
    found = as_boxes(found)
    prominence = np.full(len(found), SOLID) if prominence is None else np.asarray(prominence)
    colours = [colour(i) for i in range(len(found))] if colours is None else [to_rgb(c) for c in colours]
    check_lengths(found, captions=captions, prominence=prominence, colours=colours)
    ax = _ground(image, title, view, ax)
    width = 1.6 if len(found) < CROWDED else 1.0
    for i in np.argsort(prominence, kind="stable"):
        rgb = GREY if prominence[i] == FAINT else colours[i]
        style = "solid" if prominence[i] == SOLID else DOTS
        box_line(ax, found[i], rgb, width, style, edged=prominence[i] != FAINT)
    if captions is not None:
        place_captions(ax, list(captions), found, colours, 8)
    return ax


def refinement(image, before, after, *, refined=None, captions=None, title=None, view=None, ax=None):
    """Boxes before a refinement, dotted, and after it, solid; a line joins their upper left corners.

    Args:
        image: as in `instances`.
        before, after: (N, 4) in pixels of the image.
        refined: (N,) bool; a box that is not is drawn before alone, in grey: a negative RoI, for instance.
        captions, title, view, ax: as in `boxes`.

    Returns:
        The Axes.

    Raises:
        InputError: arrays that do not match.
    """
    before, after = as_boxes(before, "before"), as_boxes(after, "after")
    refined = np.ones(len(before), bool) if refined is None else np.asarray(refined, bool)
    check_lengths(before, after=after, captions=captions, refined=refined)
    ax = _ground(image, title, view, ax)
    width = 1.6 if len(before) < CROWDED else 1.0
    for i in np.argsort(refined, kind="stable"):
        box_line(ax, before[i], colour(i) if refined[i] else GREY, width, DOTS, edged=refined[i])
        if refined[i] and np.isfinite([before[i], after[i]]).all():
            box_line(ax, after[i], colour(i), width, edged=True)
            ax.add_line(Line2D(*zip(before[i, 1::-1], after[i, 1::-1], strict=True), color=colour(i), linewidth=width))
    if captions is not None:
        shown = np.where(refined[:, None], after, before)
        place_captions(ax, list(captions), shown, [colour(i) for i in range(len(before))], 8)
    return ax


def anchors(image, config, truth=None, *, levels=None, count=40, seed=0, ax=None):
    """Anchors on an image, as the network sees it: resized, and padded.

    Without ground truth: those of the cell in the middle of each level, a colour for each level. With it, those that
    training calls positive, neutral and negative.

    Args:
        image: a photograph, as `model.detect` takes it.
        config: the Config that says where anchors lie and which are positive.
        truth: a dataset's instances of the image, in its pixels.
        levels: which levels to draw, 0 the finest; by default all.
        count: draw at most so many of each kind, chosen at random from `seed`.
        ax: as in `instances`.

    Returns:
        The Axes.

    Raises:
        InputError: a level that is not there, or what `model.detect` would refuse.
    """
    from maskrcnn_edu.anchors import LAST_PIXEL, anchors_by_level
    from maskrcnn_edu.detections import as_photograph, padded_size, to_batch

    levels = list(range(config.num_levels)) if levels is None else list(levels)
    if any(not 0 <= level < config.num_levels for level in levels):
        raise InputError(f"levels is {levels}; the pyramid has {config.num_levels}, from 0 on.")
    photograph = as_photograph(image)
    batch = to_batch([photograph], padded_size(photograph, config), 1, config)
    by_level = anchors_by_level(batch["image"].shape[1:3], config)
    if config.box_frame == "matterport":
        by_level = [level + LAST_PIXEL for level in by_level]
    if truth is None:
        kinds = _middle_anchors(by_level, levels, config)
        told = f"{sum(map(len, by_level)):,} anchors; here those of one cell of each level"
    else:
        (y1, x1, y2, x2), (height, width) = batch["window"][0], photograph.shape[:2]
        scale = np.float32([(y2 - y1) / height, (x2 - x1) / width])
        moved = as_boxes(truth) * np.tile(scale, 2) + np.float32([y1, x1, y1, x1])
        chosen = np.concatenate([by_level[level] for level in levels])
        kinds = _labelled_anchors(chosen, moved, np.asarray(truth.classes), config, count, seed)
        told = f"{len(chosen):,} anchors against {len(moved)} objects"
    ax = _with_legend(batch["image"][0], told, kinds, ax)
    for found, rgb, style, _ in kinds:
        for box in found:
            box_line(ax, box, rgb, 1.6 if len(found) < CROWDED else 1.2, style, edged=True)
    return ax


def proposals(image, found, scores, *, count=50, truth=None, ax=None):
    """The proposals that score best, coloured by their objectness; the better lie on top.

    Args:
        image: the image that they lie on: `Stages.image`, the network's input, for `Stages.proposals`.
        found: (R, 4) in pixels of the image.
        scores: (R,) objectness, 0 to 1.
        count: draw at most so many.
        truth: objects (boxes, or what has such) to draw in dashed white.
        ax: as in `instances`.

    Returns:
        The Axes.

    Raises:
        InputError: arrays that do not match.
    """
    found, scores = as_boxes(found), np.nan_to_num(np.asarray(scores, np.float64))
    check_lengths(found, scores=scores)
    order = np.argsort(-scores, kind="stable")[:count]
    ax = _layout(*np.shape(image)[:2], ax)
    ax = _ground(image, f"the best {len(order)} of {len(found)} proposals", None, ax)
    shade = matplotlib.cm.ScalarMappable(matplotlib.colors.Normalize(0, 1), "viridis")
    for i in order[::-1]:
        box_line(ax, found[i], shade.to_rgba(scores[i]), 0.6 + scores[i], edged=True)
    for box in () if truth is None else as_boxes(truth):
        box_line(ax, box, "white", 1.8, "dashed", edged=True)
    bar = ax.figure.colorbar(shade, ax=ax, shrink=0.7, pad=0.02)
    bar.set_label("objectness", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return ax


def view_of(image, found, most=0.12):
    """The image and what boxes (N, 4) cover beyond it, up to a share `most` of its longer side: a `view`, (4,)."""
    size = np.array(np.shape(image)[:2])
    found = np.concatenate([found[np.isfinite(found).all(1)], [[0, 0, *size]]])
    limit, edge = most * size.max(), 0.01 * size.max()
    low = np.maximum(found[:, :2].min(0) - edge, -limit)
    high = np.minimum(found[:, 2:].max(0) + edge, size + limit)
    over = found[:, :2].min(0) < 0, found[:, 2:].max(0) > size
    return np.concatenate([np.where(over[0], low, 0), np.where(over[1], high, size)])


def _ground(image, title, view, ax):
    """The picture, on axes that show `view`."""
    ax = picture(image, ax, title)
    if view is not None:
        ax.set(xlim=(view[1], view[3]), ylim=(view[2], view[0]))
    return ax


def check_lengths(found, **arrays):
    for name, array in arrays.items():
        if array is not None and len(array) != len(found):
            raise InputError(f"There are {len(found)} boxes and {len(array)} entries in {name}; give one a box.")


def _middle_anchors(by_level, levels, config):
    """Anchors of the middle cell of each level: boxes, colour, line style and what to call them."""
    kinds, ratios = [], len(config.anchor_ratios)
    for level in levels:
        centre = (by_level[level][:, :2] + by_level[level][:, 2:]) / 2
        middle = (centre.min(0) + centre.max(0)) / 2
        nearest = np.abs(centre - middle).max(1).argmin() // ratios * ratios
        name = f"P{level + 2}: stride {config.strides[level]}, size {config.anchor_sizes[level]:g}"
        found = by_level[level][nearest : nearest + ratios]
        kinds.append(
            (found, LINE_COLOURS[level % len(LINE_COLOURS)], "solid", f"{name}, {len(by_level[level]):,} of them")
        )
    return kinds


def _labelled_anchors(chosen, objects, classes, config, count, seed):
    """Positive, neutral and negative anchors, and the objects: as `_middle_anchors`."""
    from maskrcnn_edu import targets

    if len(objects):
        thresholds = {
            "positive_threshold": config.rpn_positive_threshold, "negative_threshold": config.rpn_negative_threshold
        }  # fmt: skip
        label = np.asarray(targets.match_with_crowds(chosen, objects, classes, low_quality=True, **thresholds)[1])
    else:
        label = np.full(len(chosen), targets.NEGATIVE)
    rng, kinds = np.random.default_rng(seed), []
    for value, name, rgb in (
        (targets.NEGATIVE, "negative", NEGATIVE), (targets.IGNORED, "neutral", NEUTRAL),
        (targets.POSITIVE, "positive", POSITIVE),
    ):  # fmt: skip
        found = chosen[label == value]
        most = count if value == targets.POSITIVE else count // 4  # the others hide what is to be seen
        picked = found[np.sort(rng.permutation(len(found))[:most])]
        part = f", {len(picked)} drawn" if len(picked) < len(found) else ""
        kinds.append(
            (picked, rgb, {"negative": DOTS, "neutral": "dashed"}.get(name, "solid"), f"{len(found):,} {name}{part}")
        )
    return [*kinds, (objects, "white", "dashed", "ground truth")]


def _layout(height, width, ax):
    """`ax`, or the Axes of a figure that leaves room for a legend or a colour bar."""
    if ax is not None:
        return ax
    size = (8.0, np.clip(7.0 * height / width, 2, 6.5) + 0.6)
    return Sheet(size, dpi=DPI, layout="constrained").add_subplot(axes_class=Plot)


def _with_legend(image, title, kinds, ax):
    """The picture, and below it a line for each of `kinds` (boxes, colour, style, name)."""
    view = view_of(image, np.concatenate([found for found, *_ in kinds]))
    ax = _ground(image, None, view, _layout(*(view[2:] - view[:2]), ax))
    ax.set_title(title, fontsize=TITLE)
    handles = [
        Line2D([], [], color=rgb, linestyle=style, linewidth=2, label=name, path_effects=halo(2))
        for _, rgb, style, name in kinds
    ]
    options = {"ncols": 2, "fontsize": 8, "frameon": False, "borderaxespad": 0.3, "handlelength": 2.6}
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), **options)
    return ax

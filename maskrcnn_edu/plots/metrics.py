"""How good detections are: hits and misses on an image, overlaps, precision and recall."""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.matching import FALSE_ALARM, ON_CROWD, match_detections, overlaps
from maskrcnn_edu.plots.canvas import (
    DPI,
    GREY,
    LINE_COLOURS,
    TITLE,
    Plot,
    Sheet,
    as_rgb,
    chart,
    class_name,
    halo,
    picture,
)
from maskrcnn_edu.plots.captions import place_captions
from maskrcnn_edu.plots.objects import CROWDED, FONT_SIZE, box_line, checked, outline

STYLES = ("solid", "dashed", "dashdot", "dotted")
WORDS = 8  # up to so many columns have room for words
HIT, MISS, ALARM = "#56B4E9", "#F0E442", "#D55E00"  # Okabe and Ito's; each has a line style of its own too


def differences(
    image, truth, found, *, class_names=None, iou_threshold=0.5, score_threshold=0.5, kind=None, ax=None
):  # fmt: skip
    """Ground truth against detections: what was hit, missed, and found where nothing is.

    A detection is a solid line, an object of the ground truth a dashed one. A detection hits as COCO counts it
    (`maskrcnn_edu.matching`). Captions give the score and the IoU: of a false alarm, the largest with any object.

    Args:
        image: as in `instances`.
        truth: a dataset's instances of it.
        found: `Detections` on it.
        class_names: names by class id, background first.
        iou_threshold: a hit overlaps its object by at least this.
        score_threshold: detections below it are left out.
        kind: IoU of "masks" or of "boxes"; by default masks, where both have them.
        ax: as in `instances`.

    Returns:
        The Axes.

    Raises:
        InputError: shapes that do not match, or a class without a name.
    """
    image = as_rgb(image)
    truth, found = _checked(image, truth), _checked(image, found, score_threshold)
    kind = kind or ("masks" if truth.masks is not None and found.masks is not None else "boxes")
    iou = overlaps(truth, found, kind)
    hits = match_detections(iou, truth.classes, found.classes, found.scores, iou_threshold)
    missed = np.setdiff1d(np.flatnonzero(truth.classes > 0), hits)
    counted = np.flatnonzero(hits != ON_CROWD)
    alarms = np.count_nonzero(hits == FALSE_ALARM)
    told = f"{(hits >= 0).sum()} hit, {len(missed)} missed, {alarms} false alarm{'' if alarms == 1 else 's'}"
    ax = _with_legend(image, ax, f"{told} (IoU of {kind} from {iou_threshold:g})")

    width = 2.0 if len(counted) + len(missed) < CROWDED else 1.0
    captions, boxes, colours = [], [], []
    for i in (*hits[hits >= 0], *missed):
        rgb = MISS if i in missed else HIT
        _mark(ax, truth, i, rgb, width, "dashed")
        if i in missed:
            captions.append(class_name(truth.classes[i], class_names))
            boxes.append(truth.boxes[i])
            colours.append(rgb)
    for i in counted:
        rgb = HIT if hits[i] >= 0 else ALARM
        _mark(ax, found, i, rgb, width, "solid")
        best = iou[i, hits[i]] if hits[i] >= 0 else iou[i].max(initial=0)
        captions.append(f"{class_name(found.classes[i], class_names)} {found.scores[i]:.2f}, IoU {best:.2f}")
        boxes.append(found.boxes[i])
        colours.append(rgb)
    place_captions(ax, captions, boxes, [to_rgb(c) for c in colours], FONT_SIZE - 1 if len(captions) < CROWDED else 6)
    return ax


def overlap_matrix(truth, found, *, class_names=None, iou_threshold=0.5, kind="boxes", limit=20, ax=None):
    """IoU of each detection (a row, best first) with each object of the ground truth (a column).

    From the threshold on, a cell says whether the classes agree: "match" or "wrong class".

    Args:
        truth, found, class_names, kind: as in `differences`.
        iou_threshold: cells from this IoU on get a word.
        limit: most rows and columns to draw.
        ax: matplotlib Axes to draw on; without it a new figure.

    Returns:
        The Axes.

    Raises:
        InputError: detections or ground truth that are empty or do not match.
    """
    iou = overlaps(truth, found, kind)
    if not iou.size:
        raise InputError(f"There are {len(found.boxes)} detections and {len(truth.boxes)} objects; nothing overlaps.")
    order = np.argsort(-np.asarray(found.scores, np.float64), kind="stable")[:limit]
    iou, rows, columns = iou[order, :limit], len(order), min(len(truth.boxes), limit)
    part = "" if iou.size == len(found.boxes) * len(truth.boxes) else f", {rows} × {columns} of them"
    words = columns <= WORDS
    title = f"IoU of {kind}{part}" if words else f"IoU of {kind}{part}\nframe: match, dashed frame: wrong class"
    ax = chart(ax, title, (np.clip(2 + 0.75 * columns, 4, 8), np.clip(1.4 + 0.34 * rows, 2.2, 10)))
    ax.imshow(iou, cmap="Blues", vmin=0, vmax=1.1, aspect="auto")
    classes, scores = np.asarray(found.classes)[order], np.asarray(found.scores)[order]
    labels = [f"{class_name(c, class_names)} {score:.2f}" for c, score in zip(classes, scores, strict=True)]
    ax.set_yticks(range(rows), labels, fontsize=8)
    slanted = {} if words else {"rotation": 60, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(range(columns), [class_name(c, class_names) for c in truth.classes[:columns]], fontsize=8, **slanted)
    ax.set_xlabel("ground truth", fontsize=8)
    ax.set_ylabel("detections, best first", fontsize=8)
    for (row, column), value in np.ndenumerate(iou):
        match, word = classes[row] == truth.classes[column], ""
        ink = "white" if value > 0.6 else "black"
        if value >= iou_threshold:
            word = ("\nmatch" if match else "\nwrong class") if words else ""
            corner = (column - 0.46, row - 0.44)
            ax.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=ink, linestyle="-" if match else ":"))
        if value >= 0.005:
            ax.text(column, row, f"{value:.2f}{word}", ha="center", va="center", fontsize=7 if words else 6, color=ink)
    return ax


def precision_recall(
    curves=None, *, recall=None, precision=None, kind=None, iou=(0.5, 0.75, 0.9), by_class=False, ax=None
):
    """Precision over recall, with the area under each curve, the average precision (AP).

    Args:
        curves: what `mr.evaluate(..., curves=True)` returns, or its "curves".
        recall, precision: (P,) arrays of one curve instead.
        kind: "bbox", "segm" or "keypoints"; by default masks, if the curves have them.
        iou: a curve for the mean of all classes at each of these IoU thresholds.
        by_class: a curve for each class at the first of them instead.
        ax: matplotlib Axes to draw on; without it a new figure.

    Returns:
        The Axes.

    Raises:
        InputError: neither curves nor recall and precision, or thresholds that were not evaluated.
    """
    if curves is None and (recall is None or precision is None):
        raise InputError("precision_recall needs curves, or recall and precision; give one of the two.")
    title = "precision and recall"
    if curves is None:
        lines = [("", np.asarray(recall, float), np.asarray(precision, float))]
        if lines[0][1].shape != lines[0][2].shape or lines[0][1].ndim != 1 or not len(lines[0][1]):
            raise InputError(
                f"recall has shape {lines[0][1].shape}, precision {lines[0][2].shape}; give (P,) twice, P above 0."
            )
    else:
        kind, chosen = _of_kind(curves, kind)
        title = {"bbox": "boxes", "segm": "masks"}.get(kind, kind) + (f", IoU {iou[0]:g}" if by_class else "")
        lines = _class_lines(chosen, iou[0]) if by_class else _threshold_lines(chosen, iou)
    ax = chart(ax, title, (5.2, 4.2))
    for number, (name, x, y) in enumerate(lines):
        style, rgb = STYLES[(number + number // len(LINE_COLOURS)) % 4], LINE_COLOURS[number % len(LINE_COLOURS)]
        area = np.trapezoid(*_monotone(x, y)) if curves is None else y.mean()
        ax.plot(x, y, color=rgb, linestyle=style, linewidth=2, label=f"{name}  AP {area:.3f}".strip(), clip_on=False)
    if not lines:
        ax.text(0.5, 0.5, "no objects to find", ha="center", va="center", color=GREY)
    ax.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall: share of the objects found", ylabel="precision: share of hits")
    ax.grid(color="0.9")
    if lines:
        ax.legend(fontsize=8, frameon=False, loc="lower left", ncols=1 + len(lines) // 14)
    return ax


def _of_kind(curves, kind):
    """The curves of one kind, from whatever level of `evaluate`'s result."""
    curves = curves.get("curves", curves)
    if "precision" in curves:
        return kind or "precision and recall", curves
    kind = kind or next((k for k in ("segm", "keypoints", "bbox") if k in curves), None)
    if kind not in curves:
        raise InputError(
            f"There are no curves of {kind!r}, only of {', '.join(curves) or 'none'}; evaluate with curves=True."
        )
    return kind, curves[kind]


def _threshold_lines(curves, thresholds):
    lines = []
    for threshold in thresholds:
        precision = curves["precision"][_index(curves["iou"], threshold)]
        measured = precision[:, (precision > -1).any(0)]  # COCO's -1: a class without objects
        if measured.size:
            lines.append((f"IoU {threshold:g}", np.asarray(curves["recall"]), measured.mean(1)))
    return lines


def _class_lines(curves, threshold):
    precision = curves["precision"][_index(curves["iou"], threshold)]
    names = [name for name in curves["classes"] if name != "background"]
    return [
        (name, np.asarray(curves["recall"]), values)
        for name, values in zip(names, precision.T, strict=True)
        if (values > -1).any()
    ]


def _index(evaluated, threshold):
    near = np.abs(np.asarray(evaluated) - threshold)
    if near.min() > 1e-6:
        raise InputError(f"IoU {threshold:g} was not evaluated; choose of {', '.join(f'{t:g}' for t in evaluated)}.")
    return near.argmin()


def _monotone(x, y):
    """y and x for the area under the curve: recall upwards, precision made to fall, as AP is defined."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], np.nan_to_num(y[order])
    return np.maximum.accumulate(y[::-1])[::-1], x


class _Objects:
    """Boxes, classes, scores and masks of one length; masks and scores may be None."""

    def __init__(self, boxes, classes, scores, masks):
        self.boxes, self.classes, self.scores, self.masks = boxes, classes, scores, masks


def _checked(image, objects, score_threshold=None):
    names = dict.fromkeys(("boxes", "classes", "scores", "masks", "keypoints"))
    boxes, classes, scores, masks, _ = checked(image.shape[:2], objects, names)
    if boxes is None or classes is None or (score_threshold is not None and scores is None):
        raise InputError("Give ground truth with boxes and classes, and detections with boxes, classes and scores.")
    if score_threshold is not None:
        kept = scores >= score_threshold
        boxes, classes, scores = boxes[kept], classes[kept], scores[kept]
        masks = masks[kept] if masks is not None else None
    return _Objects(boxes, classes, scores, masks)


def _with_legend(image, ax, title):
    """The picture with a title and, above it, what the lines mean."""
    height, width = image.shape[:2]
    if ax is None:
        size = (8.0, np.clip(8.0 * height / width, 2, 6) + 0.55)
        ax = Sheet(size, dpi=DPI, layout="constrained").add_subplot(axes_class=Plot)
    picture(image, ax)
    ax.set_title(title, fontsize=TITLE, pad=22)
    handles = [
        Line2D([], [], color=rgb, linestyle=style, linewidth=2.5, label=label, path_effects=halo(2))
        for rgb, style, label in (
            (HIT, "solid", "hit"), (HIT, "dashed", "its ground truth"), (MISS, "dashed", "missed"),
            (ALARM, "solid", "false alarm"),
        )
    ]  # fmt: skip
    options = {"ncols": 4, "fontsize": 8, "frameon": False, "handlelength": 2.6, "borderaxespad": 0.2}
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), **options)
    return ax


def _mark(ax, objects, i, rgb, width, style):
    """An object's outline, or its box if it has no mask."""
    if objects.masks is None:
        box_line(ax, objects.boxes[i], rgb, width, style, edged=True)
    else:
        outline(ax, objects.masks[i], rgb, width, style, edged=True)

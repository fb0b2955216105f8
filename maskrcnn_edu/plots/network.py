"""Inside the network: activations, weights, and how the RPN's answers are distributed."""

from typing import NamedTuple

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots.canvas import DPI, GREY, LINE_COLOURS, WIDTH, Sheet, panels

DEAD = 1e-6  # a value up to this size does nothing
MOSTLY_DEAD, LARGE = 0.5, 1000.0  # from this share and above this size on, there is an alert
ROW = 0.165  # inches of a table's row


def activations(model, image, layer, *, level=0, roi=0, channels=16, columns=8):
    """What a layer answers to an image: its first channels, all in one scale of colours.

    Args:
        model: a MaskRCNN.
        image: a photograph, as `model.detect` takes it.
        layer: the layer's name; `mr.stages.layer_names(model)` lists them.
        level: of the pyramid, for a layer of the RPN; 0 is the finest.
        roi: which of the model's detections, for a layer of a head.
        channels: how many to draw, or a list of which.
        columns: channels side by side.

    Returns:
        The Figure.

    Raises:
        InputError: an unknown layer, level, RoI or channel.
    """
    from maskrcnn_edu.stages import activations as values_of

    values = values_of(model, image, layer, level)
    heads = [head for head in (model.box_head, model.mask_head, model.keypoint_head) if head]
    if any(layer == one.name for head in heads for one in head.layers):
        if not 0 <= roi < len(values):
            raise InputError(f"roi is {roi}; the model found {len(values)} objects on this image, counted from 0.")
        values = values[roi]
    maps, what = _as_maps(values, layer)
    chosen = list(range(min(channels, len(maps)))) if isinstance(channels, int) else list(channels)
    if not chosen or any(not 0 <= c < len(maps) for c in chosen):
        raise InputError(f"channels is {channels}; layer {layer} has {len(maps)}, from 0 on.")
    maps = np.asarray(maps, np.float32)[chosen]
    top = max(float(np.nanmax(np.abs(maps), initial=0)), 1e-12)
    signed = np.nanmin(maps, initial=0) < 0
    scale = {"cmap": "PuOr", "vmin": -top, "vmax": top} if signed else {"cmap": "viridis", "vmin": 0, "vmax": top}
    shape, side_by_side = maps.shape[1:], min(columns, len(chosen))
    width = np.clip(side_by_side * 2.6 * shape[1] / shape[0], 3.2, WIDTH)
    aspect = np.clip(shape[0] / shape[1], 0.15, 3)
    sheet, grid = panels(_channel_titles(chosen, maps), side_by_side, aspect, width, largest=WIDTH)
    for ax, one in zip(grid, maps, strict=True):
        shown = ax.imshow(one, interpolation="nearest", **scale)
    height = sheet.get_figheight() + 0.6
    sheet.set_figheight(height)
    bar = sheet.colorbar(shown, ax=grid, location="bottom", shrink=0.5, fraction=0.12 / height, pad=0.01, aspect=40)
    bar.ax.tick_params(labelsize=7)
    sheet.suptitle(f"{layer}: {what}", fontsize=9)
    return sheet


class WeightNumbers(NamedTuple):
    """What `measure_weights` says about one weight tensor."""

    name: str
    shape: tuple
    minimum: float
    maximum: float
    mean: float
    std: float
    dead: float  # share of the values up to 1e-6 in size
    alert: str  # empty if nothing is conspicuous


def measure_weights(model, layers=""):
    """`WeightNumbers` of each weight tensor of a Keras model whose name contains `layers`.

    Raises:
        InputError: no weight has such a name.
    """
    found = [weight for weight in model.weights if layers in weight.path]
    if not found:
        raise InputError(f"No weight of the model has {layers!r} in its name; measure_weights(model) lists them all.")
    return [_measure(weight.path, np.asarray(weight, np.float32)) for weight in found]


def weight_statistics(model, layers=""):
    """A table of the model's weights: name, shape, range, mean, deviation, share of dead values, and alerts.

    Alerts: values that are not finite; larger than 1000; a kernel all of one value; half of it or more dead.

    Args:
        model: a Keras model.
        layers: only weights with this in their name, such as "rpn" or "/kernel".

    Returns:
        The Figure. `measure_weights` gives the same numbers as numbers.

    Raises:
        InputError: no weight has such a name.
    """
    rows = measure_weights(model, layers)
    heads = ("weight", "shape", "min", "max", "mean", "std", "dead", "alert")
    columns = [[row.name for row in rows], ["×".join(map(str, row.shape)) or "1" for row in rows]]
    columns += [[f"{value:.3g}" for value in column] for column in list(zip(*rows, strict=True))[2:6]]
    columns += [[f"{row.dead:.0%}" for row in rows], [row.alert for row in rows]]
    lengths = np.array([max(map(len, (head, *column))) for head, column in zip(heads, columns, strict=True)]) + 2
    size = min(8.0, 72 * WIDTH / (0.62 * lengths.sum()))  # points; a letter is about 0.6 of its height wide
    height = ROW * (len(rows) + 2)
    sheet = Sheet((WIDTH, height), dpi=min(DPI, 60000 / height))
    ax = sheet.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 1), ylim=(len(rows) + 1.5, -0.5))
    ax.set_axis_off()
    for i, row in enumerate(rows):
        if row.alert or i % 2:
            ax.axhspan(i + 0.5, i + 1.5, color="#F7D9C4" if row.alert else "0.955", linewidth=0)
    start = 0.005
    for head, column, length in zip(heads, columns, lengths / lengths.sum(), strict=True):
        left = head in ("weight", "shape", "alert")
        x = start if left else start + length - 2 / lengths.sum()
        options = {"ha": "left" if left else "right", "va": "center", "fontsize": size, "family": "monospace"}
        ax.text(x, 0, head, weight="bold", **options)
        for i, value in enumerate(column):
            ax.text(x, i + 1, value, **options)
        start += length
    return sheet


def weight_histograms(model, layers="/kernel", *, columns=5):
    """A histogram of each of the model's kernels.

    Args:
        model: a Keras model.
        layers: only weights with this in their name.
        columns: histograms side by side.

    Returns:
        The Figure.

    Raises:
        InputError: no weight has such a name.
    """
    found = [weight for weight in model.weights if layers in weight.path]
    if not found:
        raise InputError(f"No weight of the model has {layers!r} in its name; measure_weights(model) lists them all.")
    names = [weight.path.removesuffix(layers) for weight in found]
    sheet, grid = panels(names, columns, aspect=0.7)
    for ax, weight in zip(grid, found, strict=True):
        values = np.asarray(weight, np.float32).ravel()
        finite = values[np.isfinite(values)]
        ax.set_axis_on()
        ax.hist(finite, bins=50, color=LINE_COLOURS[0])
        ax.axvline(0, color=GREY, linewidth=0.6)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.set_yticks([])
        ax.tick_params(labelsize=6.5, length=2)
        ax.locator_params("x", nbins=3)
        ax.title.set_fontsize(7)
        if len(finite) < len(values):
            ax.text(
                0.5, 0.5, f"{len(values) - len(finite)} not finite", transform=ax.transAxes, ha="center", fontsize=7
            )
    return sheet


def distributions(found):
    """How the RPN's and the box head's answers on one image are distributed.

    Args:
        found: the `Stages` that `mr.stages.stages(model, image)` gives.

    Returns:
        The Figure: the RPN's deltas of shift and of size, objectness by level, where proposals lie, their sides, and
        the best class of each RoI.
    """
    sheet = Sheet((WIDTH, 5.0), dpi=DPI, layout="constrained")
    axes = sheet.subplots(2, 3).ravel()
    for ax, pair, title in ((axes[0], (0, 1), "RPN deltas: shift"), (axes[1], (2, 3), "RPN deltas: log size")):
        for k, style in zip(pair, ("solid", "dashed"), strict=True):
            name = ("dy", "dx", "dh", "dw")[k]
            _steps(ax, found.deltas[:, k], name, LINE_COLOURS[k % 2], style)
        ax.set_title(title, fontsize=9)
    for level in range(found.levels.max() + 1):
        rgb, style = LINE_COLOURS[level % 9], ("solid", "dashed", "dashdot", "dotted")[level % 4]
        _steps(axes[2], found.objectness[found.levels == level], f"P{level + 2}", rgb, style, (0, 1))
    axes[2].set_title("objectness of all anchors", fontsize=9)
    y1, x1, y2, x2 = found.proposals.T
    dots = axes[3].scatter((x1 + x2) / 2, (y1 + y2) / 2, c=found.proposal_scores, s=8, cmap="viridis", vmin=0, vmax=1)
    height, width = found.image.shape[:2]
    axes[3].set(xlim=(0, width), ylim=(height, 0), aspect="equal")
    axes[3].set_title("centres of proposals", fontsize=9)
    axes[4].scatter(x2 - x1, y2 - y1, c=found.proposal_scores, s=8, cmap="viridis", vmin=0, vmax=1)
    axes[4].set(xlabel="width", ylabel="height", xlim=(0, width), ylim=(0, height))
    axes[4].set_title("sides of proposals, pixels", fontsize=9)
    bar = sheet.colorbar(dots, ax=axes[3:5], shrink=0.8)
    bar.set_label("objectness", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    best = found.class_probabilities.argmax(1)
    classes, counts = np.unique(best, return_counts=True)
    order = np.argsort(counts)[-10:]
    axes[5].barh([str(found.class_names[c]) for c in classes[order]], counts[order], color=LINE_COLOURS[0])
    axes[5].set_title("best class of RoIs", fontsize=9)
    for ax in axes:
        ax.tick_params(labelsize=7)
        ax.xaxis.label.set_fontsize(7)
        ax.yaxis.label.set_fontsize(7)
        ax.spines[["top", "right"]].set_visible(False)
    return sheet


def _channel_titles(channels, maps):
    """The channels' numbers, and of those that are flat what they answer everywhere."""
    if len(maps) == 1:
        return [""]
    flat = [np.nanmin(one) == np.nanmax(one) for one in maps]
    return [f"{c}: all {one.flat[0]:.3g}" if f else f"{c}" for c, one, f in zip(channels, maps, flat, strict=True)]


def _as_maps(values, layer):
    """A layer's answer as (channels, h, w), and what it is in words."""
    if values.ndim == 3:
        h, w, channels = values.shape
        return np.moveaxis(values, -1, 0), f"{channels} channels of {h} × {w}"
    if values.ndim == 2 and layer == "mask_logits":
        return values[None], f"{values.shape[0]} × {values.shape[1]}"
    flat = values.reshape(1, -1)
    side = int(np.ceil(np.sqrt(flat.size * 4)))  # a vector, folded into a strip four times as wide as high
    padded = np.full((1, -(-flat.size // side), side), np.nan, np.float32)
    padded.reshape(-1)[: flat.size] = flat
    return padded, f"{flat.size} units, row by row"


def _measure(name, values):
    finite = values[np.isfinite(values)]
    if len(finite) < values.size:
        alert = f"{values.size - len(finite)} not finite"
    elif "moving_" not in name and np.abs(values).max(initial=0) > LARGE:
        alert = "large values"
    elif values.ndim > 1 and np.ptp(values) == 0:
        alert = "all of one value"
    elif values.ndim > 1 and np.mean(np.abs(values) <= DEAD) >= MOSTLY_DEAD:
        alert = "mostly dead"
    else:
        alert = ""
    finite = finite if len(finite) else np.float32([np.nan])
    numbers = (f(finite) for f in (np.min, np.max, np.mean, np.std))
    return WeightNumbers(name, values.shape, *map(float, numbers), float(np.mean(np.abs(finite) <= DEAD)), alert)


def _steps(ax, values, name, rgb, style, span=None):
    """The outline of a histogram with a logarithmic count, for values of which most are alike."""
    values = values[np.isfinite(values)]
    ax.hist(
        values, bins=40, range=span, histtype="step", color=rgb, linestyle=style, linewidth=1.4, label=name, log=True
    )
    ax.legend(fontsize=7, frameon=False)
    ax.set_ylabel("how many", fontsize=7)

"""Training: its losses over time, from the log that a run writes."""

import csv
from pathlib import Path

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots.canvas import LINE_COLOURS, chart

LOG = "log.csv"
STYLES = ("solid", "dashed", "dashdot", "dotted")
CLOCKS = ("step", "steps", "epoch")  # columns that say when, the best first


def loss_curves(directory, *, ax=None):
    """The losses of a run over time: the total in black, each of its parts, and validation as dotted lines.

    Validation's average precisions, where the log has them, are on an axis of their own, at the right.

    Args:
        directory: of the run, with its log.csv; or the file itself.
        ax: matplotlib Axes to draw on; without it a new figure.

    Returns:
        The Axes.

    Raises:
        InputError: no log, or one without a loss.
    """
    path, columns = read_log(directory)
    losses = {name: values for name, values in columns.items() if name.endswith("loss") and np.isfinite(values).any()}
    if not losses:
        raise InputError(f"{path}: it holds no loss yet; wait for the first line, or give another run.")
    clock = next((name for name in CLOCKS if name in columns), None)
    time = np.arange(len(next(iter(losses.values())))) if clock is None else columns[clock]
    ax = chart(ax, path.parent.name if path.name == LOG else path.stem, (6.8, 3.8))
    parts = list(dict.fromkeys(name.removeprefix("val_") for name in losses))
    parts = [name for name in parts if name != "loss"]
    for name in ("loss", *parts):
        number = parts.index(name) if name in parts else 0
        rgb = LINE_COLOURS[number % len(LINE_COLOURS)] if name in parts else "black"
        style = STYLES[number % 3] if name in parts else "solid"
        label = "total" if name == "loss" else name.removesuffix("_loss").replace("_", " ")
        for key, line, suffix in ((name, style, ""), (f"val_{name}", (0, (1, 1)), ", validation")):
            if key in losses:
                known = np.isfinite(losses[key])  # validation may come less often
                dot = "o" if known.sum() < 3 else None
                ax.plot(
                    time[known],
                    losses[key][known],
                    color=rgb,
                    linestyle=line,
                    linewidth=1.6,
                    marker=dot,
                    markersize=4,
                    label=label + suffix,
                )
    positive = all((values[np.isfinite(values)] > 0).all() for values in losses.values())
    ax.set(xlabel=clock or "line of the log", ylabel="loss", yscale="log" if positive else "linear")
    ax.grid(color="0.92", which="both")
    handles = ax.get_legend_handles_labels()[0]
    precisions = {
        name: values for name, values in columns.items() if name.endswith("_AP") and np.isfinite(values).any()
    }
    if precisions:
        handles += _draw_precisions(ax.twinx(), time, precisions)
    ax.legend(
        handles=handles, fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.1 if precisions else 1.0, 0.5)
    )
    return ax


def _draw_precisions(ax, time, precisions):
    """Average precisions, 0 to 1, as marked lines; returns them for the legend."""
    lines = []
    for number, (name, values) in enumerate(precisions.items()):
        known = np.isfinite(values) & (values >= 0)
        options = {"marker": "osD"[number % 3], "markersize": 4, "linewidth": 1, "color": LINE_COLOURS[-1 - number % 3]}
        label = {"bbox_AP": "AP of boxes", "segm_AP": "AP of masks"}.get(name, name.replace("_AP", " AP"))
        lines += ax.plot(time[known], values[known], label=label, **options)
    ax.set(ylabel="average precision", ylim=(0, 1))
    ax.spines["top"].set_visible(False)
    ax.tick_params(labelsize=8)
    return lines


def read_log(directory):
    """The path of a run's log.csv, and its columns by name: float arrays, NaN where a line has no number.

    Raises:
        InputError: no log, or one without a line of numbers.
    """
    path = Path(directory)
    path = path / LOG if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path}: there is no such log; give the directory of a run that has saved once.")
    try:
        with open(path, newline="", encoding="utf-8") as opened:
            lines = [line for line in csv.DictReader(opened) if None not in line.values()]  # one may be half written
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no log that a run has written ({error}); give the directory of a run.") from None
    if not lines:
        raise InputError(f"{path}: the log has no line yet; wait for the run's first save.")
    names = [name for name in lines[0] if name]
    return path, {name: np.array([_number(line.get(name)) for line in lines]) for name in names}


def _number(text):
    try:
        return float(text)
    except (TypeError, ValueError):
        return np.nan

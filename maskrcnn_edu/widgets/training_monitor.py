"""TrainingMonitor: the losses of a running or finished training, from its log directory."""

import json
import math
import threading
import time
from pathlib import Path

import numpy as np
import traitlets

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots.training import CLOCKS, read_log
from maskrcnn_edu.shipped import files
from maskrcnn_edu.widgets.base import GREEN, ORANGE, PINK, RED, SKY, Widget, panels

MOST_POINTS = 600  # lines of the log that the state carries: of a longer one every second, third, ...
EVERY = 250  # steps a line of the log (training.SAVE_EVERY)


class TrainingMonitor(Widget):
    """Follows the log directory of `maskrcnn-edu train` or `mr.training.train`; it may be written to at this moment.

    Args:
        directory: holds log.csv and run.json; they may be yet to come. Without one, the log of the weights that ship.
        seconds: between two looks at a log that still grows; 0 looks only when `refresh()` is called.

    `shown` (names of losses), `smoothing`, `log_scale` and `cursor` can be read and set; `columns` (values by name),
    `steps`, `done`, `planned` and `status` follow. Raises InputError: the log cannot be read.
    """

    columns = traitlets.Dict(help="values by name, null where the log has none").tag(sync=True)
    steps = traitlets.List(help="the step at each line").tag(sync=True)
    planned = traitlets.Int(help="steps of the whole run; 0 if unknown").tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    title = traitlets.Unicode().tag(sync=True)
    shown = traitlets.List(traitlets.Unicode()).tag(sync=True)
    smoothing = traitlets.Float(0.0).tag(sync=True)
    log_scale = traitlets.Bool(True).tag(sync=True)
    cursor = traitlets.Int(-1, help="line of the log; -1 for the last").tag(sync=True)

    def __init__(self, directory=None, seconds=2.0):
        if directory is None:
            self._log, self._record, name = files("shapes_log.csv"), files("shapes.json"), "the weights that ship"
        else:
            directory = Path(directory)
            if directory.exists() and not directory.is_dir():
                raise InputError(f"{directory} is a file; give the directory that holds log.csv.")
            self._log, self._record, name = directory / "log.csv", directory / "run.json", str(directory)
        self._seconds, self._watch = seconds, None
        super().__init__(title=name)
        self.refresh()

    @property
    def done(self) -> int:
        """Steps done at the last line of the log."""
        return int(self.steps[-1]) if self.steps else 0

    def refresh(self):
        """Reads the log again."""
        columns = self._read()
        count = len(next(iter(columns.values()), ()))
        thin = slice((count - 1) % max(1, math.ceil(count / MOST_POINTS)), None, max(1, math.ceil(count / MOST_POINTS)))
        steps = columns["step"] if "step" in columns else (columns.get("epoch", np.arange(count)) + 1) * EVERY
        planned = _planned(self._record)
        if planned and count and steps[-1] > planned >= steps[-1] - EVERY:
            steps[-1] = planned  # the last line of a run may cover fewer steps
        names = sorted((n for n, v in columns.items() if n not in CLOCKS and np.isfinite(v).any()), key=_rank)
        with self.hold_sync():
            self.columns = {n: [_finite(v) for v in columns[n][thin].tolist()] for n in names}
            self.steps, self.planned = [int(step) for step in steps[thin]], planned
            if not self.shown:
                self.shown = [n for n in names if n.endswith("loss") and not n.startswith("val_")]
            self.status = self._status()

    def _read(self):
        """The columns of the log by name; none before its first line."""
        if not self._log.is_file() or self._log.read_bytes().count(b"\n") < 2:
            return {}
        return read_log(self._log)[1]

    def _status(self):
        if not self.steps:
            return f"{self._log.name} has no line yet; waiting for the first."
        loss = (self.columns.get("loss") or [0.0])[-1]
        if loss is None:
            return f"At step {self.done} the loss is not a finite number: lower the learning rate or set gradient_clip."
        told = _dying(self.columns)
        if self.planned and self.done >= self.planned:
            return f"Finished: {self.done} steps.{told}"
        quiet = time.time() - self._log.stat().st_mtime
        ago = f"{quiet:.0f} s" if quiet < 120 else f"{quiet / 60:.0f} min" if quiet < 7200 else f"{quiet / 3600:.0f} h"
        of = f" of {self.planned}" if self.planned else ""
        return f"{self.done}{of} steps; the last line was written {ago} ago.{told}"

    def close(self):
        self._seconds = 0
        super().close()

    def _repr_mimebundle_(self, **kwargs):
        if self._watch is None and self._seconds > 0 and not (self.planned and self.done >= self.planned):
            self._watch = threading.Thread(target=self._follow, daemon=True)
            self._watch.start()
        return super()._repr_mimebundle_(**kwargs)

    def _follow(self):
        """Reads the log whenever it has changed, until the run is finished or the widget closed."""
        seen = None
        while self._seconds > 0 and not (self.planned and self.done >= self.planned):
            time.sleep(self._seconds)
            try:
                now = self._log.stat().st_mtime_ns if self._log.exists() else None
                if now != seen:
                    self.refresh()
                elif self.steps:
                    self.status = self._status()
                seen = now
            except (InputError, OSError) as error:
                self.status = str(error)

    def summary(self):
        last = {name: self.columns[name][-1] for name in self.shown if self.columns.get(name)}
        told = ", ".join(f"{name} {value:.4g}" for name, value in last.items() if value is not None)
        return f"{self.title}: {self.status}{' ' * bool(told)}{told}"

    def figure(self):
        figure, axes = panels(height=3.8)
        curves, parts = [ORANGE, SKY, GREEN, RED, PINK], sorted(set(self.columns) - {"loss"})
        for name in filter(self.columns.get, self.shown):
            values = [math.nan if value is None else value for value in self.columns[name]]
            colour = "black" if name == "loss" else curves[parts.index(name) % len(curves)]
            axes.plot(self.steps, values, color=colour, label=name, marker="." if len(values) < 3 else None)
        if self.log_scale and any(v and v > 0 for name in self.shown for v in self.columns.get(name, ())):
            axes.set_yscale("log")
        axes.set(xlabel="step", ylabel="loss")
        axes.set_title(f"{self.title}\n{self.status}", fontsize=10)
        if axes.lines:
            axes.legend(fontsize=8, ncols=2)
        return figure

    javascript = r"""
const CURVES = [ORANGE, SKY, GREEN, RED, PINK, COLOURS[9], COLOURS[8]]; // the ones that show on white and on black
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Training monitor: losses by step",
    "Point at the chart, or use the step slider's arrow keys, to read the values at a step.",
  );
  const plot = w.pictures.appendChild(make("svg", { class: "mrw-picture", role: "img" }));
  const cursor = slider(w, "cursor", "At step", { min: 0, max: 1, step: 1, format: () => "" });
  slider(w, "smoothing", "Smoothing", { min: 0, max: 0.95, step: 0.05 });
  toggle(w, "log_scale", "logarithmic");
  const lines = w.controls.appendChild(make("div", { class: "mrw-line", role: "group", "aria-label": "Curves" }));
  let axes = null;
  plot.addEventListener("pointermove", (event) => {
    const steps = w.get("steps"),
      edge = plot.getBoundingClientRect();
    if (!axes || !steps.length) return;
    const x = ((event.clientX - edge.left) / edge.width) * axes.width;
    const near = steps.reduce(
      (best, step, i) => (Math.abs(axes.X(step) - x) < Math.abs(axes.X(steps[best]) - x) ? i : best),
      0,
    );
    if (near !== w.get("cursor")) w.set("cursor", near);
  });
  const smooth = (values, share) => {
    let mean = null;
    return values.map((v) => (v === null ? null : (mean = mean === null ? v : share * mean + (1 - share) * v)));
  };
  return w.keep(() => {
    const columns = w.get("columns"),
      steps = w.get("steps"),
      shown = w.get("shown"),
      names = Object.keys(columns);
    const log = w.get("log_scale"),
      losses = names.filter((name) => name.endsWith("loss")),
      last = steps.length - 1;
    const at = w.get("cursor") < 0 ? last : Math.min(w.get("cursor"), last);
    const colour = (name) =>
      name === "loss" ? "var(--ink)" : CURVES[losses.filter((n) => n !== "loss").indexOf(name) % CURVES.length];
    if (lines.dataset.names !== losses.join()) {
      lines.dataset.names = losses.join();
      lines.replaceChildren(
        ...losses.map((name) => {
          const input = make("input", { type: "checkbox", "aria-label": name, "data-name": `shown-${name}` });
          input.addEventListener("change", () =>
            w.set(
              "shown",
              losses.filter((n) => (n === name ? input.checked : w.get("shown").includes(n))),
            ),
          );
          return make(
            "label",
            { class: "mrw-toggle" },
            input,
            make("span", { class: "mrw-key", style: `background:${colour(name)};margin:0` }),
            name,
          );
        }),
      );
    }
    losses.forEach((name, i) => (lines.children[i].firstChild.checked = shown.includes(name)));
    change(cursor, { max: Math.max(last, 0), disabled: last < 0 });
    cursor.value = Math.max(at, 0);
    const curves = shown
      .filter((name) => columns[name])
      .map((name) => [name, smooth(columns[name], w.get("smoothing"))]);
    const values = curves.flatMap(([, c]) => c).filter((v) => v !== null && (!log || v > 0));
    const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [log ? 0.1 : 0, 1];
    axes = chart(w, {
      svg: plot,
      label: `Losses over ${steps.at(-1) ?? 0} steps`,
      x: [0, Math.max(w.get("planned"), steps.at(-1) ?? 1, 1)],
      y: log ? [low * 0.9, high * 1.1 || 1] : [Math.min(0, low), high * 1.05 || 1],
      log,
      xLabel: "step",
      yLabel: "loss",
      width: 460,
      height: 330,
    });
    for (const [name, curve] of curves) {
      const points = steps.map((step, i) => [step, curve[i]]).filter(([, v]) => v !== null && (!log || v > 0));
      if (points.length > 1) axes.line(points, colour(name), { "stroke-linejoin": "round" });
      for (const [x, y] of points.length > 1 ? [] : points)
        axes.svg.append(make("circle", { cx: axes.X(x), cy: axes.Y(y), r: 3, fill: colour(name) }));
      if (at >= 0 && curve[at] !== null && (!log || curve[at] > 0))
        axes.svg.append(
          make("circle", {
            cx: axes.X(steps[at]),
            cy: axes.Y(curve[at]),
            r: 4,
            fill: colour(name),
            stroke: "#000",
            "stroke-opacity": 0.5,
          }),
        );
    }
    if (at >= 0)
      axes.svg.append(
        make("line", {
          x1: axes.X(steps[at]),
          x2: axes.X(steps[at]),
          y1: axes.inside.top,
          y2: axes.inside.bottom,
          stroke: "var(--ink)",
          "stroke-dasharray": "2 3",
        }),
      );
    w.numbers({
      Step: at < 0 ? "none yet" : `${steps[at]}${w.get("planned") ? ` of ${w.get("planned")}` : ""}`,
      ...Object.fromEntries(
        names.map((name) => [
          name,
          at < 0 ? "" : columns[name][at] === null ? "not finite" : Number(columns[name][at].toPrecision(4)),
        ]),
      ),
    });
    cursor.setAttribute("aria-valuetext", at < 0 ? "none" : `step ${steps[at]}`);
    w.say(w.get("status"));
  });
}
"""


def _finite(value):
    """A number for JSON, which knows no NaN."""
    return round(value, 6) if math.isfinite(value) else None


def _planned(path):
    """Steps of the whole run, from its run.json; 0 if that is not there."""
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _rank(name):
    """The total first, then the losses by name."""
    return name != "loss", name


def _dying(columns):
    """A warning if the box branch has died: too high a learning rate, and nothing is found to be an object any more."""
    box, classes = (list(filter(None, columns.get(name, ()))) for name in ("box_loss", "class_loss"))
    if (
        len(box) < 4
        or len(classes) < 4
        or box[-1] < 1.2 * min(box)
        or abs(classes[-1] - classes[-2]) > 0.02 * classes[-1]
    ):
        return ""
    return (
        " The box loss rises while the class loss stands still: the box head may have died of too high a learning rate."
    )

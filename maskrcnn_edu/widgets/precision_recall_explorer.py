"""PrecisionRecallExplorer: matches, precision, recall and average precision as the IoU and score thresholds move."""

import numpy as np
import traitlets

from maskrcnn_edu import boxes as box_sums
from maskrcnn_edu.detections import Detections
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import picture
from maskrcnn_edu.widgets.base import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Widget,
    draw_boxes,
    fraction,
    panels,
    photograph,
    picture_url,
    toy,
)  # fmt: skip
from maskrcnn_edu.widgets.boxes_in_rows import evaluated, rows_of

MOST = 3000  # detections and objects together
MOST_PICTURES = 12


class PrecisionRecallExplorer(Widget):
    """Detections against ground truth, by boxes: which match, and the precision-recall curve that follows.

    Args:
        detections: a list, for each image a `Detections` (or anything with boxes, classes, scores).
        truth: a list, for each image something with boxes (G, 4) and classes (G,), such as `dataset.instances(i)`;
            negative classes are crowds. Without both, noisy detections on drawn pictures.
        images: (H, W, 3) each, of which the first 12 are shown.
        class_names: names by class, background first.
        iou_threshold, score_threshold: where the sliders start.

    `iou_threshold`, `score_threshold`, `chosen_class` (0 for all) and `image` can be read and set. `matches`,
    `precision`, `recall`, `average_precision` follow; the last is pycocotools', of all detections.
    Raises InputError: lists of different length, arrays that do not match, scores that are not finite.
    """

    found = traitlets.Bytes(help="float32 rows: image, class, score, y1, x1, y2, x2").tag(sync=True)
    objects = traitlets.Bytes(help="float32 rows: image, class, crowd, y1, x1, y2, x2").tag(sync=True)
    sizes = traitlets.List(help="[height, width] of the images").tag(sync=True)
    pictures = traitlets.List(traitlets.Unicode()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    iou_threshold = traitlets.Float().tag(sync=True)
    score_threshold = traitlets.Float().tag(sync=True)
    chosen_class = traitlets.Int().tag(sync=True)
    image = traitlets.Int().tag(sync=True)

    def __init__(
        self, detections=None, truth=None, images=None, class_names=None, iou_threshold=0.5, score_threshold=0.5
    ):
        if detections is None and truth is None:
            images, detections, truth, class_names = _toy_results()
        if detections is None or truth is None or len(detections) != len(truth):
            told = [None if part is None else len(part) for part in (detections, truth)]
            raise InputError(
                f"detections and truth are lists of {told[0]} and {told[1]} images; give one entry an image."
            )
        self._found = rows_of(detections, "detections")
        self._objects = rows_of(truth, "truth")
        if len(self._found) + len(self._objects) > MOST:
            raise InputError(
                f"detections has {len(self._found)} boxes and truth {len(self._objects)}, too many to follow; give "
                f"fewer images, with {MOST} in all."
            )
        if images is not None and len(images) != len(truth):
            raise InputError(f"images has {len(images)} entries and truth {len(truth)}; give one an image.")
        self._images = [photograph(image) for image in (images or [])[:MOST_PICTURES]]
        known = np.concatenate([self._found[:, 1], self._objects[:, 1]]).astype(int)
        names = [f"class {i}" for i in range(known.max(initial=0) + 1)] if class_names is None else list(class_names)
        if known.max(initial=0) >= len(names):
            raise InputError(f"class_names has {len(names)} names, none for class {known.max()}; add it.")
        super().__init__(
            found=self._found.tobytes(), objects=self._objects.tobytes(), sizes=self._sizes(len(truth)),
            pictures=[picture_url(image, 90_000 // len(self._images)) for image in self._images],
            names=[str(name) for name in names], iou_threshold=fraction(iou_threshold, "iou_threshold"),
            score_threshold=fraction(score_threshold, "score_threshold"), chosen_class=0, image=0,
        )  # fmt: skip

    def _sizes(self, count):
        sizes = []
        for i in range(count):
            ends = np.concatenate([rows[rows[:, 0] == i, 5:] for rows in (self._found, self._objects)])
            reach = np.ceil(ends.max(0, initial=1)).astype(int).tolist()
            sizes.append(list(self._images[i].shape[:2]) if i < len(self._images) else reach)
        return sizes

    @property
    def matches(self):
        """For each detection: 1 it hits an object, 0 it hits none, -1 it lies on a crowd and does not count. (N,) int.

        Detections are in the order of the images, best first within each image and class. COCO's matching.
        """
        return self._evaluated()[0]

    @property
    def average_precision(self) -> float:
        """pycocotools' AP at this IoU threshold, of the chosen class or the mean over classes; -1 without objects."""
        values = self._evaluated()[1]
        if self.chosen_class:
            return float(values[self.chosen_class])
        known = values[values > -1]
        return float(known.mean()) if len(known) else -1.0

    @property
    def counts(self):
        """Hits, false alarms and misses of what scores `score_threshold` or more: three ints."""
        ours = (self.chosen_class == 0) | (self._found[:, 1] == self.chosen_class)
        shown = ours & (self._found[:, 2] >= np.float32(self.score_threshold))
        matches = self.matches
        hits, alarms = int((matches[shown] == 1).sum()), int((matches[shown] == 0).sum())
        real = (self._objects[:, 2] == 0) & ((self.chosen_class == 0) | (self._objects[:, 1] == self.chosen_class))
        return hits, alarms, int(real.sum()) - hits

    @property
    def precision(self) -> float:
        """Hits / detections, of what scores `score_threshold` or more; 1 if there is none."""
        hits, alarms, _ = self.counts
        return hits / (hits + alarms) if hits + alarms else 1.0

    @property
    def recall(self) -> float:
        """Hits / objects; 0 without objects."""
        hits, _, misses = self.counts
        return hits / (hits + misses) if hits + misses else 0.0

    def _evaluated(self):
        return evaluated(self._found, self._objects, len(self.sizes), len(self.names), self.iou_threshold)

    def summary(self):
        return (
            f"IoU >= {self.iou_threshold:.2f}, score >= {self.score_threshold:.2f}: precision {self.precision:.3f}, "
            f"recall {self.recall:.3f}, AP {self.average_precision:.3f}"
        )

    def figure(self):
        figure, axes = panels(2 if self._images else 1, height=4.2)
        chart = axes[0] if self._images else axes
        matches, order = self.matches, np.argsort(-self._found[:, 2], kind="stable")
        ours = order[((self.chosen_class == 0) | (self._found[order, 1] == self.chosen_class)) & (matches[order] >= 0)]
        hits = (matches[ours] == 1).cumsum()
        objects = max(sum(self.counts[::2]), 1)
        chart.plot(hits / objects, hits / np.arange(1, len(hits) + 1), color=BLUE)
        chart.plot(self.recall, self.precision, "o", color=ORANGE, markersize=9)
        chart.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        figure.suptitle(self.summary(), fontsize=10)
        if self._images:
            i = min(self.image, len(self._images) - 1)
            picture(self._images[i], axes[1])
            shown = (self._found[:, 0] == i) & (self._found[:, 2] >= np.float32(self.score_threshold))
            draw_boxes(axes[1], self._found[shown & (matches != 1), 3:], RED, 2)
            draw_boxes(axes[1], self._found[shown & (matches == 1), 3:], GREEN, 2)
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Precision and recall explorer",
    "The sliders answer to arrow keys. Green: a hit. Red: a false alarm. Blue, dashed: a missed object. " +
      "Grey: below the score threshold. The curve is of all detections; the orange dot is at the score threshold.",
  );
  const rows = (name) => {
    const flat = numbersOf(w.get(name), Float32Array);
    return Array.from({ length: flat.length / 7 }, (_, i) => Array.from(flat.subarray(7 * i, 7 * i + 7)));
  };
  const found = rows("found").map(([image, cls, score, ...box]) => ({ image, class: cls, score, box }));
  const objects = rows("objects").map(([image, cls, crowd, ...box]) => ({ image, class: cls, crowd: crowd > 0, box }));
  const names = w.get("names"),
    sizes = w.get("sizes"),
    pictures = w.get("pictures");
  const plot = make("svg", { class: "mrw-picture", role: "img" });
  w.pictures.append(plot);
  slider(w, "iou_threshold", "IoU threshold", { min: 0.05, max: 0.95, step: 0.05 });
  slider(w, "score_threshold", "Score threshold", { min: 0, max: 1, step: 0.01 });
  choice(w, "chosen_class", "Class", [[0, "all classes"], ...names.slice(1).map((name, i) => [i + 1, name])]);
  if (sizes.length > 1)
    slider(w, "image", "Image", {
      min: 0,
      max: sizes.length - 1,
      step: 1,
      format: (v) => `${v + 1} of ${sizes.length}`,
    });
  const view = w.side.insertBefore(make("div", { class: "mrw-pictures" }), w.note);
  return w.keep(() => {
    const [limit, least, chosen, image] = ["iou_threshold", "score_threshold", "chosen_class", "image"].map(w.get);
    const matched = matchDetections(found, objects, limit),
      bar = f32(least);
    const counts = (d, i) => matched[i] < 0 || !objects[matched[i]].crowd;
    const curveOf = (cls) => {
      const own = found.map((d, i) => [d, i]).filter(([d, i]) => d.class === cls && counts(d, i));
      return precisionRecall(
        own.map(([d]) => d.score),
        own.map(([, i]) => (matched[i] >= 0 ? 1 : 0)),
        objects.filter((o) => o.class === cls && !o.crowd).length,
      );
    };
    const all = (chosen ? [chosen] : names.map((_, i) => i).slice(1)).map(curveOf).filter((c) => c.ap >= 0);
    const ap = all.length ? sum(all.map((c) => c.ap)) / all.length : -1;
    const ours = (thing) => !chosen || thing.class === chosen;
    const kept = found.map((d, i) => i).filter((i) => ours(found[i]) && found[i].score >= bar && counts(found[i], i));
    const hits = kept.filter((i) => matched[i] >= 0).length,
      total = objects.filter((o) => ours(o) && !o.crowd).length;
    const precision = kept.length ? hits / kept.length : 1,
      recall = total ? hits / total : 0;
    const axes = chart(w, {
      svg: plot,
      label: `Precision over recall, AP ${fixed(ap, 3)}`,
      x: [0, 1],
      y: [0, 1],
      xLabel: "recall",
      yLabel: "precision",
      width: 370,
      height: 330,
    });
    if (all.length) {
      const mean = Array.from({ length: 101 }, (_, k) => [
        k / 100,
        sum(all.map((c) => c.interpolated[k])) / all.length,
      ]);
      const area = [[0, 0], ...mean, [1, 0]].map(([x, y]) => `${axes.X(x)},${axes.Y(y)}`).join(" ");
      axes.svg.append(make("polyline", { points: area, fill: "var(--mark)", "fill-opacity": 0.15 }));
      if (all.length === 1)
        axes.line(
          all[0].curve.map((p) => [p.recall, p.precision]),
          "var(--soft)",
          { "stroke-width": 1 },
        );
      axes.line(mean, "var(--mark)");
    }
    axes.svg.append(
      make("circle", {
        cx: axes.X(recall),
        cy: axes.Y(precision),
        r: 6,
        fill: ORANGE,
        stroke: "#000",
        "stroke-opacity": 0.6,
      }),
    );
    w.numbers({
      AP:
        ap < 0
          ? "no objects"
          : `${fixed(ap, 3)}   (area under the curve${all.length > 1 ? `, mean of ${all.length} classes` : ""})`,
      Precision: `${fixed(precision, 3)}   (${hits} of ${kept.length} detections are hits)`,
      Recall: `${fixed(recall, 3)}   (${hits} of ${total} objects are found)`,
    });
    if (!sizes.length) return;
    const [height, width] = sizes[image];
    view.replaceChildren();
    const s = picture(w, {
      height,
      width,
      url: pictures[image],
      label: `Image ${image + 1}`,
      shown: 230,
      parent: view,
    });
    const layer = s.layer(),
      here = found.map((d, i) => i).filter((i) => found[i].image === image && ours(found[i]));
    const at = (test) => here.filter(test).map((i) => found[i].box),
      on = (i) => found[i].score >= bar;
    const taken = new Set(here.filter(on).map((i) => matched[i]));
    drawBoxes(
      layer,
      s,
      at((i) => !on(i)),
      "#aaa",
      { width: 1, rim: 0.2 },
    );
    drawBoxes(
      layer,
      s,
      objects.filter((o, j) => o.image === image && ours(o) && !o.crowd && !taken.has(j)).map((o) => o.box),
      SKY,
      { dash: "5 4", width: 2.2 },
    );
    drawBoxes(
      layer,
      s,
      at((i) => on(i) && matched[i] < 0),
      RED,
    );
    drawBoxes(
      layer,
      s,
      at((i) => on(i) && matched[i] >= 0),
      GREEN,
    );
    for (const i of here.filter(on)) {
      const best = objects
        .filter((o) => o.image === image && o.class === found[i].class)
        .reduce((m, o) => Math.max(m, iou(o.box, found[i].box)), 0);
      if (here.length <= 20)
        drawText(
          layer,
          s,
          found[i].box[0] + 11 / s.k,
          found[i].box[1] + 2 / s.k,
          `${fixed(found[i].score, 2)}, IoU ${fixed(best, 2)}`,
          { size: 10 },
        );
    }
  });
}
"""


def _toy_results():
    """Drawn pictures and detections with the usual faults: shifted, doubled, of a wrong class, missing, invented."""
    rng, images, detections, truth = np.random.default_rng(4), [], [], []
    for i in (15, 9, 10, 13, 12, 8):
        image, found = toy(i)
        images.append(image)
        truth.append(found)
        sides = np.tile(found.boxes[:, 2:] - found.boxes[:, :2], 2)
        near, far = (found.boxes + rng.normal(0, spread, sides.shape) * sides for spread in (0.05, 0.16))
        invented = rng.uniform(0, 60, (2, 2))
        boxes = np.clip(
            np.concatenate([near, far, np.hstack([invented, invented + rng.uniform(20, 60, (2, 2))])]), 0, 128
        )
        classes = np.concatenate([found.classes, found.classes, rng.integers(1, 4, 2)])
        confused = rng.random(len(classes)) < 0.12
        classes = np.where(confused, rng.integers(1, 4, len(classes)), classes)
        fit = np.asarray(box_sums.iou(found.boxes, boxes)).max(0)
        scores = np.clip(fit - 0.15 + rng.normal(0, 0.14, len(fit)), 0.06, 0.99).round(2)
        kept = rng.random(len(fit)) < np.where(np.arange(len(fit)) < len(near), 0.85, 0.45)
        detections.append(Detections(boxes[kept], classes[kept], scores[kept]))
    return images, detections, truth, ["background", "circle", "square", "triangle"]

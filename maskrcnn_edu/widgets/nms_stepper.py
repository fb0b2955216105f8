"""NMSStepper: greedy non-maximum suppression, one decision at a time."""

import numpy as np
import traitlets

from maskrcnn_edu import boxes as box_sums
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import picture
from maskrcnn_edu.widgets.base import (
    GREEN,
    ORANGE,
    Widget,
    checked_boxes,
    checked_classes,
    checked_scores,
    draw_boxes,
    fraction,
    panels,
    photograph,
    picture_url,
    toy,
)  # fmt: skip

MOST = 500  # boxes: more can be neither told apart nor stepped through


class NMSStepper(Widget):
    """Boxes with scores: who suppresses whom, from the best score down, and what another threshold changes.

    Args:
        boxes: (N, 4) y1, x1, y2, x2, at most 500. Without them, some around the objects of a drawn picture.
        scores: (N,).
        classes: (N,) whole numbers; boxes then suppress only boxes of their own class.
        image: (H, W, 3), drawn behind them.
        threshold: a box is suppressed by a better one that it overlaps by more.

    `threshold` and `step` (decisions taken, 0 to N) can be read and set; `keep` and `suppressed_by` are the outcome.
    Raises InputError: shapes that do not match, scores that are not finite, more than 500 boxes.
    """

    size = traitlets.List(traitlets.Int()).tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)
    boxes = traitlets.List().tag(sync=True)
    scores = traitlets.List(traitlets.Float()).tag(sync=True)
    classes = traitlets.List(traitlets.Int()).tag(sync=True)
    threshold = traitlets.Float().tag(sync=True)
    step = traitlets.Int().tag(sync=True)

    def __init__(self, boxes=None, scores=None, classes=None, image=None, threshold=0.5):
        if boxes is None:
            if scores is not None or classes is not None:
                raise InputError("NMSStepper got scores or classes without boxes; give boxes as well.")
            image, boxes, scores = _toy_boxes()
        boxes = checked_boxes(boxes)
        if len(boxes) > MOST:
            raise InputError(f"boxes has {len(boxes)} entries; give the best {MOST} at most.")
        if scores is None:
            raise InputError("NMSStepper got boxes without scores; give one score a box.")
        scores = checked_scores(scores, len(boxes))
        classes = None if classes is None else checked_classes(classes, len(boxes)).tolist()
        self._image = None if image is None else photograph(image)
        reach = boxes[:, 2:].max(0, initial=1)
        size = [max(1, int(np.ceil(v * 1.05))) for v in reach] if image is None else list(self._image.shape[:2])
        super().__init__(
            size=size, picture="" if image is None else picture_url(self._image), boxes=boxes.tolist(),
            scores=scores.tolist(), classes=classes or [], threshold=fraction(threshold, "threshold"), step=len(boxes),
        )  # fmt: skip
        self.step = 0

    @traitlets.validate("step")
    def _within(self, proposal):
        return min(max(proposal["value"], 0), len(self.boxes))

    @property
    def keep(self):
        """Which boxes NMS keeps: (N,) bool."""
        if not self.boxes:
            return np.zeros(0, bool)
        classes = np.array(self.classes) if self.classes else None
        return np.asarray(box_sums.nms(np.float32(self.boxes), np.float32(self.scores), self.threshold, classes))

    @property
    def suppressed_by(self):
        """The best kept box that suppresses each, -1 for those that are kept: (N,) int."""
        by, keep = np.full(len(self.boxes), -1), self.keep
        if not len(keep):
            return by
        hit = np.asarray(box_sums.iou(self.boxes, self.boxes)) > np.float32(self.threshold)
        if self.classes:
            hit &= np.equal.outer(self.classes, self.classes)
        order = self.order
        for i in np.flatnonzero(~keep):
            by[i] = next(j for j in order if keep[j] and hit[j, i])
        return by

    @property
    def order(self):
        """Indices of the boxes, best score first: (N,)."""
        return np.argsort(-np.float32(self.scores), kind="stable")

    def summary(self):
        return f"{len(self.boxes)} boxes, {int(self.keep.sum())} kept at IoU threshold {self.threshold:.2f}"

    def figure(self):
        figure, axes = panels(2, height=4.2)
        for ax, chosen, title in zip(axes, (None, self.keep), ("before", "after"), strict=True):
            picture(np.full((*self.size, 3), 236, np.uint8) if self._image is None else self._image, ax)
            drawn = [i for i in self.order[::-1] if chosen is None or chosen[i]]
            draw_boxes(ax, [self.boxes[i] for i in drawn], ORANGE if chosen is None else GREEN, 1.8)
            paper = {"facecolor": "#fffb", "edgecolor": "none", "pad": 1}
            for i in drawn if len(self.boxes) <= 30 else ():
                y, x = self.boxes[i][:2]
                ax.text(x, y, f"{i}: {self.scores[i]:.2f}", fontsize=8, va="bottom", clip_on=True, bbox=paper)
            ax.set_title(f"{title}: {len(self.boxes) if chosen is None else int(chosen.sum())} boxes", fontsize=11)
        figure.suptitle(f"Non-maximum suppression, IoU threshold {self.threshold:.2f}", fontsize=11)
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Non-maximum suppression, step by step",
    "Next takes the best box that is left. The sliders answer to arrow keys. Green: kept. Grey, dashed: " +
      "suppressed. Orange: the box under decision. White: still waiting.",
  );
  const [height, width] = w.get("size"),
    boxes = w.get("boxes"),
    scores = w.get("scores");
  const groups = w.get("classes").length ? w.get("classes") : null,
    order = byScore(scores),
    few = boxes.length <= 30;
  const s = picture(w, { height, width, url: w.get("picture"), label: "Boxes on the image", shown: 420 });
  const layer = s.layer();
  slider(w, "threshold", "IoU threshold", { min: 0, max: 1, step: 0.01 });
  slider(w, "step", "Step", { min: 0, max: boxes.length, step: 1, format: (v) => `${v} of ${boxes.length}` });
  const line = w.controls.appendChild(make("div", { class: "mrw-line" }));
  const back = button(line, "One step back", "Back", () => w.set("step", Math.max(0, w.get("step") - 1)));
  const next = button(line, "Next step", "Next", () => w.set("step", Math.min(boxes.length, w.get("step") + 1)));
  button(line, "Back to the start", "Start", () => w.set("step", 0));
  button(line, "Run to the end", "End", () => w.set("step", boxes.length));
  const list = w.side.appendChild(
    make("ol", { class: "mrw-list", "aria-label": "Boxes, best score first", tabindex: 0 }),
  );
  return w.keep(() => {
    const threshold = w.get("threshold"),
      step = w.get("step"),
      by = suppressors(boxes, scores, threshold, groups);
    const decided = order.slice(0, step),
      now = decided.at(-1),
      done = decided.slice(0, -1);
    back.disabled = step === 0;
    next.disabled = step === boxes.length;
    layer.replaceChildren();
    const at = (indices) => indices.map((i) => boxes[i]);
    drawBoxes(layer, s, at(order.slice(step)), "#fff", { width: 1.2 });
    drawBoxes(layer, s, at(done.filter((i) => by[i] >= 0)), "#bbb", { width: 1.2, dash: "3 3", rim: 0.35 });
    drawBoxes(layer, s, at(done.filter((i) => by[i] < 0)), GREEN, { width: 2.4 });
    const centre = ([y1, x1, y2, x2]) => [(y1 + y2) / 2, (x1 + x2) / 2];
    if (now !== undefined) {
      drawBoxes(layer, s, [boxes[now]], by[now] < 0 ? GREEN : ORANGE, { width: 3.2, dash: by[now] < 0 ? null : "7 4" });
      if (by[now] >= 0) {
        drawBoxes(layer, s, [boxes[by[now]]], GREEN, { width: 3.2 });
        const [a, b] = [centre(boxes[by[now]]), centre(boxes[now])].map(([y, x]) => `${x * s.k} ${y * s.k}`);
        layer.append(
          make("path", { d: `M${a}L${b}`, stroke: "#000", "stroke-width": 4 }),
          make("path", { d: `M${a}L${b}`, stroke: ORANGE, "stroke-width": 2 }),
        );
      }
    }
    const named = few ? boxes.keys() : [now, by[now]].filter((i) => i >= 0);
    for (const i of named)
      drawText(
        layer,
        s,
        boxes[i][0] + 12 / s.k,
        boxes[i][1] + 3 / s.k,
        boxes.length > 9 ? i : `${i}: ${fixed(scores[i], 2)}`,
        { size: 11 },
      );
    const kept = decided.filter((i) => by[i] < 0).length;
    w.numbers({
      Kept: kept,
      Suppressed: step - kept,
      Waiting: boxes.length - step,
      "Kept at the end": by.filter((j) => j < 0).length,
    });
    const over = (i) => (by[i] < 0 ? "kept" : `suppressed by ${by[i]}, IoU ${fixed(iou(boxes[by[i]], boxes[i]), 2)}`);
    if (!boxes.length) w.say("There are no boxes.");
    else if (now === undefined) w.say("No box is decided yet. Press Next.");
    else if (by[now] >= 0)
      w.say(
        `Box ${now} (${fixed(scores[now], 2)}) is suppressed by box ${by[now]}: IoU ` +
          `${fixed(iou(boxes[by[now]], boxes[now]), 2)} is more than ${fixed(threshold, 2)}.`,
      );
    else
      w.say(
        `Box ${now} (${fixed(scores[now], 2)}) is kept: no kept box${groups ? " of its class" : ""} overlaps ` +
          `it by more than ${fixed(threshold, 2)}.`,
      );
    list.replaceChildren(
      ...order.map((i, rank) =>
        make(
          "li",
          { class: i === now ? "mrw-now" : null },
          `${fixed(scores[i], 2)}  box ${i}${groups ? `, class ${groups[i]}` : ""}: ${rank < step ? over(i) : "waits"}`,
        ),
      ),
    );
    const current = list.children[step - 1];
    if (current) list.scrollTop = current.offsetTop - list.offsetTop - 80;
  });
}
"""


def _toy_boxes():
    """A drawn picture with several boxes around each object: image, boxes (N, 4) and scores (N,)."""
    image, found = toy()
    rng = np.random.default_rng(0)
    sides = np.tile(found.boxes[:, 2:] - found.boxes[:, :2], 2)
    around = [np.clip(found.boxes + rng.normal(0, spread, sides.shape) * sides, 0, 128) for spread in (0.03, 0.1, 0.18)]
    boxes = np.concatenate(around)
    fit = np.asarray(box_sums.iou(found.boxes, boxes)).max(0)
    return image, np.round(boxes, 1), np.clip(fit + rng.normal(0, 0.06, len(boxes)), 0.05, 0.99).round(2)

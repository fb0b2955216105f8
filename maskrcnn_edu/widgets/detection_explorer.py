"""DetectionExplorer: from candidates to instances, with the thresholds that decide, and what stands behind each."""

import numpy as np
import traitlets
from keras import ops

from maskrcnn_edu import boxes as box_sums
from maskrcnn_edu.anchors import LAST_PIXEL
from maskrcnn_edu.detections import Detections
from maskrcnn_edu.masks import paste
from maskrcnn_edu.plots import instances
from maskrcnn_edu.stages import stages
from maskrcnn_edu.widgets.base import Widget, model_and_picture, panels, picture_url

MOST = 120  # candidates: their masks are most of the state, 94 KB
MOST_PROBABILITIES = 5  # of an instance that are shown


class DetectionExplorer(Widget):
    """A model's candidates on an image, thinned out by score and NMS, with masks cut at a threshold.

    The model runs once, here, also on the masks of all candidates. After that the page needs neither model nor kernel.

    Args:
        model: a trained MaskRCNN; without one, the one that ships.
        image: (H, W, 3); without one, a drawn picture.

    `score_threshold`, `nms_threshold`, `mask_threshold` and `chosen` (of the detections, the one that is explained) can
    be read and set; `detections` follow. The 120 best candidates take part. Masks are pasted by pixel centres, whatever
    the model's own way (config.mask_paste).
    """

    size = traitlets.List(traitlets.Int()).tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    candidates = traitlets.List(help="box, RoI, class, score and the likeliest classes of each, best first").tag(
        sync=True
    )
    side = traitlets.Int(help="of a mask; 0 without a mask head").tag(sync=True)
    masks = traitlets.Bytes(help="probabilities, uint8 0..255, (n, side, side)").tag(sync=True)
    left_out = traitlets.Int(help="candidates of lower score that the state does not carry").tag(sync=True)
    least_score = traitlets.Float(help="the model's own score threshold").tag(sync=True)
    most = traitlets.Int(help="detections at most").tag(sync=True)
    score_threshold = traitlets.Float().tag(sync=True)
    nms_threshold = traitlets.Float().tag(sync=True)
    mask_threshold = traitlets.Float().tag(sync=True)
    chosen = traitlets.Int(0).tag(sync=True)

    def __init__(self, model=None, image=None):
        model, image, _ = model_and_picture(model, image)
        found, config = stages(model, image), model.config
        count = min(MOST, len(found.candidates))
        limit = np.tile(np.float32(found.photograph.shape[:2]), 2)
        self._boxes = np.clip(found.on_photograph(found.candidates[:count]), 0, limit).astype(np.float32)
        self._scores = found.candidate_scores[:count].astype(np.float32)
        self._classes = found.candidate_classes[:count].astype(int)
        self._masks = _masks(model, found, count)
        self._image = found.photograph
        rois = np.clip(found.on_photograph(found.proposals[found.candidate_rois[:count]]), 0, limit)
        probabilities = found.class_probabilities[found.candidate_rois[:count]]
        super().__init__(
            size=list(self._image.shape[:2]), picture=picture_url(self._image), names=list(model.class_names),
            candidates=[
                {"box": box, "roi": roi, "class": label, "score": score, "likely": _likely(of_class)}
                for box, roi, label, score, of_class in zip(
                    self._boxes.tolist(), rois.tolist(), self._classes.tolist(), self._scores.tolist(), probabilities,
                    strict=True,
                )
            ],
            side=0 if self._masks is None else self._masks.shape[1],
            masks=b"" if self._masks is None else self._masks.tobytes(), left_out=len(found.candidates) - count,
            least_score=config.detection_score_threshold, most=config.max_detections,
            score_threshold=max(0.5, config.detection_score_threshold), nms_threshold=config.detection_nms_threshold,
            mask_threshold=config.mask_threshold,
        )  # fmt: skip

    @property
    def kept(self):
        """The candidates that are detections, best first: (D,) int."""
        able = self._scores >= np.float32(self.score_threshold)
        if not able.any():
            return np.zeros(0, int)
        keep = box_sums.nms(self._boxes[able], self._scores[able], self.nms_threshold, self._classes[able])
        return np.flatnonzero(able)[np.asarray(keep)][: self.most]

    @property
    def detections(self) -> Detections:
        """What is shown, as `model.detect` would give it."""
        kept, masks = self.kept, None
        if self._masks is not None:
            masks = paste(
                self._masks[kept] / np.float32(255), self._boxes[kept], *self.size, threshold=self.mask_threshold
            )
        return Detections(self._boxes[kept], self._classes[kept], self._scores[kept], masks)

    def summary(self):
        found = self.detections
        told = ", ".join(f"{self.names[c]} {s:.2f}" for c, s in zip(found.classes, found.scores, strict=True))
        return f"{len(found)} of {len(self._boxes)} candidates{': ' * bool(told)}{told[:200]}"

    def figure(self):
        figure, axes = panels(height=5)
        instances(self._image, self.detections, class_names=self.names, ax=axes)
        axes.set_title(
            f"{len(self.kept)} detections of {len(self._boxes)} candidates: score >= {self.score_threshold:.2f}, NMS "
            f"{self.nms_threshold:.2f}, mask {self.mask_threshold:.2f}", fontsize=10,
        )  # fmt: skip
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Detection explorer: from candidates to instances",
    "Point at an instance, or Tab to the picture and use arrows, to see its class probabilities, its " +
      "RoI (white, dashed) and its mask. The sliders answer to arrow keys.",
  );
  const [height, width] = w.get("size"),
    names = w.get("names"),
    found = w.get("candidates"),
    side = w.get("side");
  const bytes = numbersOf(w.get("masks"), Uint8Array),
    mask = (i) => Float32Array.from(bytes.subarray(i * side * side, (i + 1) * side * side), (v) => f32(v / 255));
  const boxes = found.map((d) => d.box),
    scores = found.map((d) => d.score),
    groups = found.map((d) => d.class);
  const s = picture(w, {
    height,
    width,
    url: w.get("picture"),
    label: "Detections on the image",
    shown: 440,
    sharp: Math.max(height, width) <= 512,
  });
  // Masks are pasted at no more pixels than the screen shows.
  const shrink = Math.min(1, 640 / Math.max(height, width)),
    rows = Math.max(1, Math.round(height * shrink)),
    columns = Math.max(1, Math.round(width * shrink));
  const fill = s
    .layer()
    .appendChild(
      make("image", { width: width * s.k, height: height * s.k, preserveAspectRatio: "none", class: "mrw-sharp" }),
    );
  const layer = s.layer({ "pointer-events": "none" });
  const g = s.layer({
    tabindex: 0,
    role: "application",
    "aria-roledescription": "instance to choose",
    class: "mrw-drag",
    "data-name": "chosen",
    style: "cursor:default",
  });
  const hit = make("rect", { width: width * s.k, height: height * s.k, fill: "transparent" });
  g.append(make("rect", { x: 3, y: 3, width: width * s.k - 6, height: height * s.k - 6, class: "mrw-ring" }), hit);
  slider(w, "score_threshold", "Score from", { min: w.get("least_score"), max: 1, step: 0.01 });
  slider(w, "nms_threshold", "NMS: IoU threshold", { min: 0.05, max: 1, step: 0.05 });
  if (side) slider(w, "mask_threshold", "Mask threshold", { min: 0.05, max: 0.95, step: 0.05 });
  const detail = w.side.insertBefore(make("div", { class: "mrw-detail" }), w.note),
    bars = make("div", { class: "mrw-bars" });
  const held = make("div", { class: "mrw-pictures" });
  const small = side
    ? picture(w, {
        height: side,
        width: side,
        label: "The mask head's answer",
        shown: 130,
        parent: held,
        title: `${side} x ${side} mask`,
      })
    : null;
  detail.append(bars, held);
  let kept = [];
  const colour = (rank) => COLOURS[rank % COLOURS.length];
  hit.addEventListener("pointermove", (event) => {
    const [y, x] = s.at(event),
      size = (rank) => area(boxes[kept[rank]]);
    const holds = ([y1, x1, y2, x2]) => y >= y1 && y < y2 && x >= x1 && x < x2;
    const inside = [...kept.keys()].filter((rank) => holds(boxes[kept[rank]]));
    if (!inside.length) return;
    const rank = inside.reduce((a, b) => (size(b) < size(a) ? b : a));
    if (rank !== w.get("chosen")) w.set("chosen", rank);
  });
  g.addEventListener("keydown", (event) => {
    const way = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
    if (!way || !kept.length) return;
    event.preventDefault();
    w.set("chosen", (Math.min(w.get("chosen"), kept.length - 1) + way + kept.length) % kept.length);
  });
  return w.keep(() => {
    const least = f32(w.get("score_threshold")),
      cut = f32(w.get("mask_threshold"));
    const able = scores.filter((score) => score >= least).length; // best first
    const by = suppressors(boxes.slice(0, able), scores.slice(0, able), w.get("nms_threshold"), groups, w.get("most"));
    kept = by.flatMap((j, i) => (j === -1 ? [i] : []));
    const paint = new Int16Array(rows * columns).fill(-1);
    if (side)
      for (let rank = kept.length - 1; rank >= 0; rank--) {
        const box = boxes[kept[rank]],
          p = pasteWindow(
            mask(kept[rank]),
            side,
            [
              (box[0] * rows) / height,
              (box[1] * columns) / width,
              (box[2] * rows) / height,
              (box[3] * columns) / width,
            ],
            rows,
            columns,
          );
        for (let y = 0; y < p.height; y++)
          for (let x = 0; x < p.width; x++)
            if (p.values[y * p.width + x] >= cut) paint[(p.top + y) * columns + p.left + x] = rank;
      }
    const shades = kept.map((_, rank) => rgb(colour(rank)));
    fill.setAttribute(
      "href",
      pixels(rows, columns, (i) => (paint[i] < 0 ? [0, 0, 0, 0] : [...shades[paint[i]], 120])),
    );
    const rank = clamp(w.get("chosen"), 0, kept.length - 1),
      now = kept[rank];
    layer.replaceChildren();
    kept.forEach((i, r) => drawBoxes(layer, s, [boxes[i]], colour(r), { width: r === rank ? 4 : 1.8 }));
    if (now !== undefined) drawBoxes(layer, s, [found[now].roi], "#fff", { width: 1.6, dash: "5 4" });
    const labelled = kept.length <= 20 ? kept.keys() : [rank];
    for (const r of labelled)
      if (kept[r] !== undefined)
        drawText(
          layer,
          s,
          boxes[kept[r]][0] + 13 / s.k,
          boxes[kept[r]][1] + 4 / s.k,
          `${names[groups[kept[r]]]} ${fixed(scores[kept[r]], 2)}`,
          { size: 11 },
        );
    w.numbers({
      Candidates: `${found.length}, of which ${able} reach the score`,
      Detections: kept.length,
      "Suppressed by NMS": by.filter((j) => j >= 0).length,
    });
    bars.replaceChildren();
    detail.hidden = now === undefined;
    const left = w.get("left_out");
    w.say(
      !found.length
        ? "The model finds nothing on this image."
        : !kept.length
          ? "Nothing reaches this score."
          : left
            ? `${left} weaker candidates are left out here.`
            : "",
    );
    if (now === undefined) {
      g.setAttribute("aria-label", "No detection.");
      return;
    }
    const told = `${rank + 1} of ${kept.length}: ${names[groups[now]]}, ${fixed(scores[now], 2)}`;
    g.setAttribute("aria-label", `Instance ${told}, ${words(boxes[now])}. Arrow keys choose another.`);
    w.numbers({ Chosen: told });
    for (const [c, p] of found[now].likely)
      bars.append(
        make("span", {}, names[c]),
        make("div", {
          class: "mrw-bar",
          style: `width:${Math.max(1, 100 * p)}%${c === groups[now] ? "" : ";opacity:.45"}`,
        }),
        make("span", {}, fixed(p, 2)),
      );
    if (small) {
      const own = mask(now);
      small.back(pixels(side, side, (i) => heat(own[i])));
    }
  });
}
"""


def _masks(model, found, count):
    """The mask head's answer for the first `count` candidates: (count, m, m) uint8, 255 for certain; or None."""
    if not model.mask_head:
        return None
    side = 2 * model.config.mask_pool_size
    if not count:
        return np.zeros((0, side, side), np.uint8)
    pyramid = [ops.cast(ops.convert_to_tensor(level)[None], model.compute_dtype) for level in found.pyramid]
    whole = LAST_PIXEL if model.config.box_frame == "matterport" else np.float32(0)
    rois = ops.convert_to_tensor((found.candidates[None, :count] - whole).astype(np.float32))
    classes = ops.convert_to_tensor(found.candidate_classes[None, :count].astype(np.int32))
    probabilities = np.asarray(model.mask_probabilities(pyramid, rois, classes))[0]
    return np.rint(probabilities * 255).astype(np.uint8)


def _likely(probabilities):
    """The likeliest classes of a RoI with their probabilities, best first: a list of [class, probability]."""
    best = np.argsort(-probabilities, kind="stable")[:MOST_PROBABILITIES]
    return [[int(c), round(float(probabilities[c]), 4)] for c in best]

"""ProposalExplorer: what a trained region proposal network proposes, and which objects it reaches."""

import numpy as np
import traitlets

from maskrcnn_edu import boxes as box_sums
from maskrcnn_edu.plots import picture
from maskrcnn_edu.stages import stages
from maskrcnn_edu.widgets.base import (
    GREEN,
    PINK,
    SKY,
    Widget,
    checked_boxes,
    draw_boxes,
    model_and_picture,
    panels,
    picture_url,
    seen,
)  # fmt: skip

MOST = 5000  # candidates that the state carries: 105 KB


class ProposalExplorer(Widget):
    """A model's candidates on an image, thinned out by objectness, NMS and top-k; recall against the objects.

    The model runs once, here. After that the page has all candidates, and needs neither model nor kernel.

    Args:
        model: a trained MaskRCNN; without one, the one that ships.
        image: (H, W, 3); without one, a drawn picture with its objects.
        boxes: (G, 4) y1, x1, y2, x2 of the objects in pixels of the image, if they are known.

    `objectness`, `nms_threshold`, `top_k` and `recall_iou` can be read and set; `proposals` (in pixels of the network's
    input), `scores` and `recall` follow. At the start they are the model's own.
    """

    size = traitlets.List(traitlets.Int()).tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)
    objects = traitlets.List().tag(sync=True)
    candidates = traitlets.Bytes(help="float32 (n, 4), best first").tag(sync=True)
    candidate_scores = traitlets.Bytes(help="objectness, float32 (n,)").tag(sync=True)
    groups = traitlets.Bytes(help="NMS runs within a group: the pyramid level, or one for all; uint8 (n,)").tag(
        sync=True
    )
    most = traitlets.Int(help="largest top_k").tag(sync=True)
    left_out = traitlets.Int(help="candidates of lower objectness that the state does not carry").tag(sync=True)
    objectness = traitlets.Float(0.0).tag(sync=True)
    nms_threshold = traitlets.Float().tag(sync=True)
    top_k = traitlets.Int().tag(sync=True)
    recall_iou = traitlets.Float(0.5).tag(sync=True)

    def __init__(self, model=None, image=None, boxes=None):
        model, image, truth = model_and_picture(model, image)
        boxes = (np.zeros((0, 4)) if truth is None else truth.boxes) if boxes is None else boxes
        found, config = stages(model, image), model.config
        objects = _on_input(checked_boxes(boxes), found)
        joint = config.proposal_choice == "joint"
        chosen = _before_nms(found, config, joint)
        self._boxes, self._scores = (
            found.clipped[chosen].astype(np.float32),
            found.objectness[chosen].astype(np.float32),
        )
        self._groups = (np.zeros(len(chosen)) if joint else found.levels[chosen]).astype(np.uint8)
        self._boxes, self._scores, self._groups = self._boxes[:MOST], self._scores[:MOST], self._groups[:MOST]
        self._image = seen(found.image)
        super().__init__(
            size=list(self._image.shape[:2]), picture=picture_url(self._image), objects=objects.tolist(),
            candidates=self._boxes.tobytes(), candidate_scores=self._scores.tobytes(), groups=self._groups.tobytes(),
            most=config.proposals, top_k=config.proposals, nms_threshold=config.rpn_nms_threshold,
            left_out=max(0, len(chosen) - MOST),
        )  # fmt: skip

    @property
    def _kept(self):
        able = self._scores >= np.float32(self.objectness)
        if not able.any():
            return np.zeros(0, int)
        keep = box_sums.nms(self._boxes[able], self._scores[able], self.nms_threshold, self._groups[able].astype(int))
        return np.flatnonzero(able)[np.asarray(keep)][: self.top_k]

    @property
    def proposals(self):
        """(R, 4) in pixels of the network's input, best first."""
        return self._boxes[self._kept]

    @property
    def scores(self):
        """Their objectness: (R,)."""
        return self._scores[self._kept]

    @property
    def recall(self) -> float | None:
        """Share of the objects with a proposal of IoU `recall_iou` or more; None without objects."""
        if not self.objects:
            return None
        return float((self._best_iou() >= np.float32(self.recall_iou)).mean())

    def _best_iou(self):
        proposals = self.proposals
        if not len(proposals):
            return np.zeros(len(self.objects), np.float32)
        return np.asarray(box_sums.iou(np.float32(self.objects), proposals)).max(1)

    def summary(self):
        known = f", recall {self.recall:.3f} at IoU {self.recall_iou:.2f}" if self.objects else ""
        return f"{len(self._kept)} proposals of {len(self._boxes)} candidates{known}"

    def figure(self):
        figure, axes = panels(height=5)
        picture(self._image, axes)
        reached = self._best_iou() >= np.float32(self.recall_iou)
        draw_boxes(axes, self.proposals[:300], SKY, 0.8)
        draw_boxes(axes, np.float32(self.objects)[reached], GREEN, 2.6)
        draw_boxes(axes, np.float32(self.objects)[~reached], PINK, 2.6)
        axes.set_title(f"{self.summary()}\nBlue: proposals. Objects: reached (green), not reached (pink)", fontsize=10)
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Proposal explorer: what the region proposal network proposes",
    "The sliders answer to arrow keys. Blue: proposals, the better the stronger. Objects: reached " +
      "(green), not reached (pink, dashed).",
  );
  const [height, width] = w.get("size"),
    objects = w.get("objects");
  const boxes = boxesOf(numbersOf(w.get("candidates"), Float32Array)),
    scores = numbersOf(w.get("candidate_scores"), Float32Array);
  const groups = numbersOf(w.get("groups"), Uint8Array);
  const s = picture(w, {
    height,
    width,
    url: w.get("picture"),
    label: "Proposals on the image",
    shown: 440,
    sharp: Math.max(height, width) <= 512,
  });
  const layer = s.layer();
  slider(w, "objectness", "Objectness from", { min: 0, max: 1, step: 0.01 });
  slider(w, "nms_threshold", "NMS: IoU threshold", { min: 0.05, max: 1, step: 0.05 });
  slider(w, "top_k", "Keep the best (top-k)", { min: 1, max: w.get("most"), step: 1, digits: 0 });
  if (objects.length) slider(w, "recall_iou", "An object is reached from IoU", { min: 0.3, max: 0.95, step: 0.05 });
  return w.keep(() => {
    const least = f32(w.get("objectness")),
      able = scores.findIndex((score) => score < least),
      count = able < 0 ? boxes.length : able;
    const by = suppressors(
      boxes.slice(0, count),
      scores.subarray(0, count),
      w.get("nms_threshold"),
      groups,
      w.get("top_k"),
    );
    const kept = by.flatMap((j, i) => (j === -1 ? [i] : []));
    layer.replaceChildren();
    // Worst first, in four strengths, so that the best lie on top.
    for (const part of [3, 2, 1, 0]) {
      const own = kept
        .slice(Math.floor((part * kept.length) / 4), Math.floor(((part + 1) * kept.length) / 4))
        .map((i) => boxes[i]);
      drawBoxes(layer, s, own, SKY, { width: 1.8 - part * 0.35, rim: part ? 0 : 0.35, opacity: 1 - part * 0.2 });
    }
    const best = objects.map((o) => kept.reduce((m, i) => Math.max(m, iou(o, boxes[i])), 0)),
      bar = f32(w.get("recall_iou"));
    drawBoxes(
      layer,
      s,
      objects.filter((_, i) => best[i] >= bar),
      GREEN,
      { width: 3 },
    );
    drawBoxes(
      layer,
      s,
      objects.filter((_, i) => best[i] < bar),
      PINK,
      { width: 3, dash: "6 4" },
    );
    if (objects.length <= 20)
      objects.forEach((o, i) =>
        drawText(layer, s, o[0] + 13 / s.k, o[1] + 3 / s.k, `IoU ${fixed(best[i], 2)}`, { size: 11 }),
      );
    const hits = best.filter((v) => v >= bar).length;
    w.numbers({
      Candidates: `${boxes.length}, of which ${count} pass the objectness threshold`,
      Proposals: kept.length,
      ...(objects.length
        ? {
            Recall: `${fixed(hits / objects.length, 3)}   (${hits} of ${objects.length} objects)`,
            "Mean best IoU": fixed(sum(best) / best.length, 3),
          }
        : {}),
    });
    w.say(
      !kept.length
        ? "Nothing is left: lower the objectness threshold."
        : w.get("left_out")
          ? `${w.get("left_out")} weaker candidates are left out here.`
          : "",
    );
  });
}
"""


def _before_nms(found, config, joint):
    """Indices of the anchors that take part in NMS, best first: the best of each level, or the best of all."""
    order = np.argsort(-found.objectness, kind="stable")
    if joint:
        return order[: config.proposals_per_level]
    best = [
        order[found.levels[order] == level][: config.proposals_per_level] for level in range(found.levels.max() + 1)
    ]
    best = np.concatenate(best)
    sides = found.clipped[best, 2:] - found.clipped[best, :2]
    best = best[sides.min(1) > config.rpn_min_size]
    return best[np.argsort(-found.objectness[best], kind="stable")]


def _on_input(boxes, found):
    """Boxes of the photograph in pixels of the network's input."""
    scale = (found.window[2:] - found.window[:2]) / np.float32(found.photograph.shape[:2])
    return (boxes * np.tile(scale, 2) + np.tile(found.window[:2], 2)).astype(np.float32)

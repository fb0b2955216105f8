"""MatchingExplorer: which anchors become positive, negative or neutral as the two thresholds move."""

import numpy as np
import traitlets

from maskrcnn_edu import boxes as box_sums
from maskrcnn_edu.anchors import LAST_PIXEL, pyramid_anchors
from maskrcnn_edu.config import Config
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import picture
from maskrcnn_edu.targets import IGNORED, NEGATIVE, POSITIVE, match
from maskrcnn_edu.widgets.base import (
    GREEN,
    ORANGE,
    SKY,
    Widget,
    checked_boxes,
    draw_boxes,
    fraction,
    network_input,
    panels,
    photograph,
    picture_url,
    toy,
)  # fmt: skip

MOST_DRAWN = 3000  # anchors whose boxes travel with the state; the counts are of all
STEPS = 100  # the sliders' steps from 0 to 1


class MatchingExplorer(Widget):
    """Anchors, coloured by what they would learn: an object (positive), background (negative) or nothing (neutral).

    Args:
        image: (H, W, 3). Without one, a drawn picture with its objects.
        boxes: (G, 4) y1, x1, y2, x2 of the objects in pixels of the image.
        anchors: (N, 4) in pixels of the image; by default those of `config`, on the image as the network sees it.
        config: Config.tiny() for the drawn picture, else Config().
        positive, negative: thresholds on the best IoU; by default those of `config`.

    `positive`, `negative` and `low_quality` can be read and set; `labels` (N,) and `counts` follow.
    Raises InputError: shapes that do not match, or thresholds in the wrong order.
    """

    size = traitlets.List(traitlets.Int()).tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)
    objects = traitlets.List().tag(sync=True)
    drawn = traitlets.Bytes(help="the anchors with the best IoU, float32 (n, 4)").tag(sync=True)
    best = traitlets.Bytes(help="their IoU with the object they fit best, float32 (n,)").tag(sync=True)
    favourite = traitlets.Bytes(help="whether an object has no better anchor, uint8 (n,)").tag(sync=True)
    at_least = traitlets.List(help="how many of all anchors have a best IoU of 0, .01, ... 1 or more").tag(sync=True)
    favourites_at_least = traitlets.List().tag(sync=True)
    positive = traitlets.Float().tag(sync=True)
    negative = traitlets.Float().tag(sync=True)
    low_quality = traitlets.Bool(True).tag(sync=True)

    def __init__(self, image=None, boxes=None, anchors=None, config=None, positive=None, negative=None):
        config = config or (Config.tiny() if image is None else Config())
        if image is None:
            image, found = toy()
            boxes = found.boxes if boxes is None else boxes
        if boxes is None:
            raise InputError("MatchingExplorer got an image without boxes; give the objects' boxes (G, 4).")
        objects = checked_boxes(boxes)
        if anchors is None:
            self._image, objects = network_input(image, objects, config)
            self.anchors = pyramid_anchors(self._image.shape[:2], config)
            whole = LAST_PIXEL if config.box_frame == "matterport" else np.float32(0)
        else:
            self._image, self.anchors, whole = photograph(image), checked_boxes(anchors, "anchors"), np.float32(0)
        if not len(self.anchors):
            raise InputError("anchors has no entry; give at least one box.")
        self._overlaps = np.zeros((1, len(self.anchors)), np.float32)
        if len(objects):
            self._overlaps = np.asarray(box_sums.iou(objects - whole, self.anchors))
        best, of_object = self._overlaps.max(0), self._overlaps.max(1, keepdims=True)
        favourite = ((self._overlaps == of_object) & (self._overlaps > 0)).any(0)
        shown = np.argsort(-(best + favourite), kind="stable")[:MOST_DRAWN]
        steps = (np.arange(STEPS + 1) / STEPS).astype(np.float32)
        positive = fraction(config.rpn_positive_threshold if positive is None else positive, "positive")
        negative = fraction(config.rpn_negative_threshold if negative is None else negative, "negative")
        if negative > positive:
            raise InputError(f"negative is {negative}, above positive, {positive}; give one that is not.")
        super().__init__(
            size=list(self._image.shape[:2]), picture=picture_url(self._image), objects=objects.tolist(),
            drawn=(self.anchors[shown] + whole).astype(np.float32).tobytes(), best=best[shown].tobytes(),
            favourite=favourite[shown].astype(np.uint8).tobytes(),
            at_least=[int((best >= step).sum()) for step in steps],
            favourites_at_least=[int((best[favourite] >= step).sum()) for step in steps],
            positive=positive, negative=negative,
        )  # fmt: skip

    @property
    def labels(self):
        """1 positive, 0 negative, -1 neutral of every anchor: (N,); see `mr.targets.match`."""
        return np.asarray(match(self._overlaps, self.positive, self.negative, self.low_quality)[1])

    @property
    def counts(self):
        """How many anchors are positive, neutral and negative, by name."""
        labels = self.labels
        kinds = {"positive": POSITIVE, "neutral": IGNORED, "negative": NEGATIVE}
        return {name: int((labels == kind).sum()) for name, kind in kinds.items()}

    def summary(self):
        told = ", ".join(f"{count} {name}" for name, count in self.counts.items())
        return f"{told} of {len(self.anchors)} anchors at {self.positive:.2f} and {self.negative:.2f}"

    def figure(self):
        figure, axes = panels(height=5)
        picture(self._image, axes)
        labels = self.labels
        neutral = self.anchors[labels == IGNORED]
        axes.plot(neutral[:, 1::2].mean(1), neutral[:, 0::2].mean(1), "o", color=ORANGE, markersize=3)
        draw_boxes(axes, self.anchors[labels == POSITIVE][:400], GREEN, 1.8)
        draw_boxes(axes, self.objects, SKY, 3)
        axes.set_title(f"Green: positive. Orange: neutral. Blue: objects.\n{self.summary()}", fontsize=10)
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Matching explorer: positive, negative and neutral anchors",
    "The sliders answer to arrow keys. Blue: objects. Green: positive anchors. Dots: the centres of " +
      "neutral (orange) and of negative ones (grey).",
  );
  const [height, width] = w.get("size"),
    objects = w.get("objects");
  const anchors = boxesOf(numbersOf(w.get("drawn"), Float32Array)),
    best = numbersOf(w.get("best"), Float32Array);
  const favourite = numbersOf(w.get("favourite"), Uint8Array),
    all = w.get("at_least"),
    ours = w.get("favourites_at_least");
  const s = picture(w, {
    height,
    width,
    url: w.get("picture"),
    label: "Anchors and objects",
    shown: 440,
    sharp: Math.max(height, width) <= 512,
  });
  const layer = s.layer();
  slider(w, "positive", "Positive from IoU", { min: 0, max: 1, step: 0.01 }).addEventListener("input", () => {
    if (w.get("negative") > w.get("positive")) w.set("negative", w.get("positive"));
  });
  slider(w, "negative", "Negative below IoU", { min: 0, max: 1, step: 0.01 }).addEventListener("input", () => {
    if (w.get("negative") > w.get("positive")) w.set("positive", w.get("negative"));
  });
  toggle(w, "low_quality", "an object's best anchors are positive in any case");
  return w.keep(() => {
    const [high, low, rescue] = [w.get("positive"), w.get("negative"), w.get("low_quality")];
    const labels = matchLabels(best, favourite, high, low, rescue),
      of = (kind) => anchors.filter((_, i) => labels[i] === kind);
    layer.replaceChildren();
    const centres = (kind) => of(kind).map(([y1, x1, y2, x2]) => [(y1 + y2) / 2, (x1 + x2) / 2]);
    drawDots(layer, s, centres(0), "#ddd", 1.5);
    drawDots(layer, s, centres(-1), ORANGE, 4.5);
    drawBoxes(layer, s, of(1).slice(0, 400), GREEN, { width: 1.8 });
    drawBoxes(layer, s, objects, SKY, { width: 3 });
    const [h, l] = [high, low].map((v) => Math.round(v * 100)),
      total = all[0];
    const positive = all[h] + (rescue ? ours[0] - ours[h] : 0);
    const negative = total - all[l] - (rescue ? ours[0] - ours[l] : 0);
    const reached = objects.filter((o) =>
      anchors.some((a, i) => labels[i] === 1 && iou(o, a) > 0 && iou(o, a) >= Math.min(best[i], 1)),
    ).length;
    w.numbers({
      Anchors: total,
      Positive: positive,
      Neutral: total - positive - negative,
      Negative: negative,
      "Objects with a positive anchor": `${reached} of ${objects.length}`,
    });
    w.say(
      !objects.length
        ? "There is no object, so every anchor is negative."
        : reached < objects.length
          ? "An object without a positive anchor teaches the region proposal network nothing."
          : "",
    );
  });
}
"""

"""AnchorExplorer: the anchors of a pyramid level, cell by cell, and how well they fit a box that is dragged."""

import numpy as np
import traitlets

from maskrcnn_edu import boxes as box_sums
from maskrcnn_edu.anchors import level_anchors
from maskrcnn_edu.config import Config
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import picture
from maskrcnn_edu.targets import IGNORED, NEGATIVE, POSITIVE, match
from maskrcnn_edu.widgets.base import (
    GREEN,
    ORANGE,
    SKY,
    Widget,
    checked_box,
    draw_boxes,
    network_input,
    panels,
    picture_url,
    toy,
)


class AnchorExplorer(Widget):
    """Anchors of one level over an image, with a ground-truth box to drag: which would learn it?

    Args:
        image: (H, W, 3); resized and padded as `config` says. Without one, a drawn picture.
        box: (4,) y1, x1, y2, x2 of an object in pixels of the image; without it, one in the middle.
        config: gives levels, strides, sizes, ratios and thresholds. Config.tiny() for the drawn picture, else Config().

    `level`, `stride`, `scale`, `ratios`, `box` and `cell` can be read and set; `box` is in pixels of the network's
    input. `anchors`, `best_iou`, `positives` and `labels` follow. Raises InputError for what is no image or box.
    """

    size = traitlets.List(traitlets.Int()).tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)
    levels = traitlets.List(help="[stride, size] of each level").tag(sync=True)
    offered_ratios = traitlets.List(traitlets.Float()).tag(sync=True)
    thresholds = traitlets.List(traitlets.Float(), help="positive from the first on, negative below the second").tag(
        sync=True
    )
    level = traitlets.Int().tag(sync=True)
    stride = traitlets.Int().tag(sync=True)
    scale = traitlets.Float().tag(sync=True)
    ratios = traitlets.List(traitlets.Float()).tag(sync=True)
    box = traitlets.List(traitlets.Float(), minlen=4, maxlen=4).tag(sync=True)
    cell = traitlets.List(traitlets.Int(), minlen=2, maxlen=2).tag(sync=True)

    def __init__(self, image=None, box=None, config=None):
        config = config or (Config.tiny() if image is None else Config())
        if image is None:
            image, found = toy()
            box = found.boxes[0] if box is None else box
        height, width = np.asarray(image).shape[:2]
        box = np.float32([0.3, 0.3, 0.7, 0.7]) * [height, width, height, width] if box is None else box
        self._image, box = network_input(image, checked_box(box, "box")[None], config)
        level = config.num_levels // 2
        super().__init__(
            size=list(self._image.shape[:2]), picture=picture_url(self._image), box=box[0].tolist(),
            levels=[[s, float(a)] for s, a in zip(config.strides, config.anchor_sizes, strict=True)],
            offered_ratios=sorted({0.5, 1.0, 2.0, *map(float, config.anchor_ratios)}),
            thresholds=[config.rpn_positive_threshold, config.rpn_negative_threshold],
            level=level, stride=config.strides[level], scale=config.anchor_sizes[level],
            ratios=sorted(map(float, config.anchor_ratios)), cell=[0, 0],
        )  # fmt: skip
        self.cell = [int((self.box[i] + self.box[i + 2]) / 2 // self.stride) for i in (0, 1)]

    @traitlets.validate("level")
    def _known_level(self, proposal):
        if not 0 <= proposal["value"] < len(self.levels):
            raise InputError(f"level is {proposal['value']}; the pyramid has {len(self.levels)}, from 0 on.")
        return proposal["value"]

    @traitlets.observe("level")
    def _follow_level(self, change):
        if change["old"] is not traitlets.Undefined and self.levels:
            self.stride, self.scale = int(self.levels[self.level][0]), self.levels[self.level][1]

    @property
    def grid(self):
        """Rows and columns of cells."""
        return tuple(-(-side // self.stride) for side in self.size)

    @property
    def anchors(self):
        """(N, 4) float32, row by row, cell by cell, ratio by ratio."""
        return level_anchors(self.grid, self.stride, self.scale, self.ratios)

    @property
    def overlaps(self):
        """IoU of each anchor with the box: (N,) float32."""
        return np.asarray(box_sums.iou([self.box], self.anchors))[0]

    @property
    def best_iou(self) -> float:
        return float(self.overlaps.max(initial=0))

    @property
    def labels(self):
        """What each anchor would be in training, the best ones positive in any case: (N,), see `mr.targets.match`."""
        return np.asarray(match(self.overlaps[None], *self.thresholds, low_quality=True)[1])

    @property
    def positives(self) -> int:
        return int((self.labels == POSITIVE).sum()) if self.ratios else 0

    def summary(self):
        return (
            f"stride {self.stride}, scale {self.scale:g}, {len(self.anchors)} anchors, "
            f"best IoU {self.best_iou:.3f}, {self.positives} positive"
        )

    def figure(self):
        figure, axes = panels(height=5)
        picture(self._image, axes)
        labels = self.labels if self.ratios else np.zeros(0)
        for kind, colour, width in ((IGNORED, ORANGE, 0.8), (POSITIVE, GREEN, 1.6)):
            draw_boxes(axes, self.anchors[labels == kind][:200], colour, width)
        draw_boxes(axes, [self.box], SKY, 3)
        counts = [int((labels == kind).sum()) for kind in (POSITIVE, IGNORED, NEGATIVE)]
        axes.set_title(
            f"Stride {self.stride}, scale {self.scale:g}: {counts[0]} positive (green), {counts[1]} neutral (orange), "
            f"{counts[2]} negative\nBest IoU with the object (blue): {self.best_iou:.3f}", fontsize=10,
        )  # fmt: skip
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Anchor explorer: the anchors of one level and the box they might learn",
    "Point at the picture to see the anchors of a cell; drag the box. Tab reaches both: arrows choose " +
      "a cell or move the box, Shift + arrows change its size.",
  );
  const [height, width] = w.get("size"),
    levels = w.get("levels");
  const s = picture(w, {
    height,
    width,
    url: w.get("picture"),
    label: "Image with anchors",
    shown: 440,
    sharp: Math.max(height, width) <= 512,
  });
  const under = s.layer(),
    grid = () => [Math.ceil(height / w.get("stride")), Math.ceil(width / w.get("stride"))];
  const point = pointCell(
    w,
    s,
    "cell",
    "Cell, row and column",
    () => grid()[0],
    () => grid()[1],
  );
  const move = dragBox(w, s, "box", "object", SKY, { step: Math.max(1, Math.round(Math.max(height, width) / 200)) });
  const over = s.layer({ "pointer-events": "none" });
  choice(
    w,
    "level",
    "Level",
    levels.map(([stride, size], i) => [i, `P${Math.log2(stride)}: stride ${stride}, scale ${size}`]),
    (i) => {
      model.set("stride", levels[i][0]);
      model.set("scale", levels[i][1]);
    },
  );
  const strides = [...new Set([...levels.map(([stride]) => stride), 4, 8, 16, 32, 64])].sort((a, b) => a - b);
  choice(
    w,
    "stride",
    "Stride",
    strides.map((stride) => [stride, `${stride} pixels`]),
  );
  slider(w, "scale", "Scale", {
    min: 8,
    max: Math.max(128, 2 * Math.max(...levels.map(([, size]) => size))),
    step: 4,
    format: (v) => `${v} px`,
  });
  const line = make(
    "div",
    { class: "mrw-line", role: "group", "aria-label": "Ratios, height to width" },
    "Ratios (height / width)",
  );
  const ratioBoxes = w.get("offered_ratios").map((ratio) => {
    const input = make("input", { type: "checkbox", "aria-label": `Ratio ${ratio}`, "data-name": `ratio-${ratio}` });
    input.addEventListener("change", () =>
      w.set(
        "ratios",
        w.get("offered_ratios").filter((r) => (r === ratio ? input.checked : w.get("ratios").includes(r))),
      ),
    );
    line.append(make("label", { class: "mrw-toggle" }, input, String(ratio)));
    return [ratio, input];
  });
  w.controls.append(line);
  return w.keep(() => {
    const stride = w.get("stride"),
      scale = w.get("scale"),
      ratios = w.get("ratios"),
      box = w.get("box");
    const [rows, columns] = grid(),
      [high, low] = w.get("thresholds");
    ratioBoxes.forEach(([ratio, input]) => (input.checked = ratios.includes(ratio)));
    const [row, column] = [Math.min(w.get("cell")[0], rows - 1), Math.min(w.get("cell")[1], columns - 1)];
    // Only cells whose anchors can reach the box are looked at: all others have IoU 0.
    const reach = (scale * Math.max(...ratios.map((r) => Math.max(Math.sqrt(r), 1 / Math.sqrt(r))), 1)) / 2;
    const near = [],
      between = (a, b, count) => [
        clamp(Math.floor((a - reach) / stride), 0, count),
        clamp(Math.ceil((b + reach) / stride) + 1, 0, count),
      ];
    const [top, bottom] = between(box[0], box[2], rows),
      [left, right] = between(box[1], box[3], columns);
    for (let y = top; y < bottom; y++)
      for (let x = left; x < right; x++) near.push(...cellAnchors(y, x, stride, scale, ratios));
    const overlap = near.map((anchor) => iou(box, anchor)),
      best = overlap.reduce((a, b) => Math.max(a, b), 0);
    const labels = matchLabels(
      overlap,
      overlap.map((v) => v === best && v > 0),
      high,
      low,
      true,
    );
    const of = (kind) => near.filter((_, i) => labels[i] === kind);
    const dots = [];
    if (rows * columns <= 6000)
      for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) dots.push([y * stride, x * stride]);
    under.replaceChildren();
    drawDots(under, s, dots, "#fff", rows * columns > 1500 ? 1 : 2);
    drawBoxes(under, s, of(-1).slice(0, 400), ORANGE, { width: 1, rim: 0, opacity: 0.7 });
    over.replaceChildren();
    drawBoxes(over, s, of(1).slice(0, 400), GREEN, { width: 1.8 });
    const own = cellAnchors(row, column, stride, scale, ratios);
    drawBoxes(over, s, own, YELLOW, { width: 2, dash: "5 3" });
    drawDots(over, s, [[row * stride, column * stride]], YELLOW, 6);
    point();
    move();
    const total = rows * columns * ratios.length,
      positive = of(1).length,
      neutral = of(-1).length;
    w.numbers({
      Anchors: `${total}   (${rows} x ${columns} cells x ${ratios.length})`,
      "Best IoU": fixed(best, 3),
      Positive: positive,
      Neutral: neutral,
      Negative: total - positive - neutral,
      "This cell": own.length
        ? own.map((anchor, i) => `${ratios[i]}: IoU ${fixed(iou(box, anchor), 2)}`).join(", ")
        : "no ratio chosen",
    });
    w.say(
      best === 0
        ? "No anchor touches the object."
        : best < high
          ? `No anchor reaches IoU ${high}; the best is positive all the same, so that no object goes unlearnt.`
          : "",
    );
  });
}
"""

"""IoUPlayground: two boxes to drag; what they share, and the deltas that turn one into the other."""

import numpy as np
import traitlets

from maskrcnn_edu import boxes as box_sums
from maskrcnn_edu.plots import picture
from maskrcnn_edu.widgets.base import ORANGE, SKY, Widget, checked_boxes, panels, photograph, picture_url


class IoUPlayground(Widget):
    """Two boxes on an image: `iou`, `giou`, `deltas` and the areas follow as they are dragged.

    Args:
        boxes: (2, 4) y1, x1, y2, x2; without them two boxes that overlap.
        image: (H, W, 3), drawn behind them; without one, plain paper of 100 x 120, or as large as the boxes need.

    `box_a` and `box_b` can be read and set from Python. Raises InputError: no two boxes.
    """

    box_a = traitlets.List(traitlets.Float(), minlen=4, maxlen=4).tag(sync=True)
    box_b = traitlets.List(traitlets.Float(), minlen=4, maxlen=4).tag(sync=True)
    size = traitlets.List(traitlets.Int()).tag(sync=True)
    picture = traitlets.Unicode().tag(sync=True)

    def __init__(self, boxes=None, image=None):
        image = None if image is None else photograph(image)
        height, width = (100, 120) if image is None else image.shape[:2]
        if boxes is None:
            boxes = np.float32([[0.2, 0.15, 0.7, 0.6], [0.35, 0.35, 0.85, 0.85]]) * [height, width, height, width]
        boxes = checked_boxes(boxes, count=2)
        if image is None:
            height, width = np.maximum([height, width], np.ceil(1.1 * boxes[:, 2:].max(0)))
        self._image = image
        super().__init__(
            box_a=boxes[0].tolist(), box_b=boxes[1].tolist(), size=[int(height), int(width)],
            picture="" if image is None else picture_url(image),
        )  # fmt: skip

    @property
    def iou(self) -> float:
        return float(box_sums.iou([self.box_a], [self.box_b])[0, 0])

    @property
    def giou(self) -> float:
        """Generalised IoU (Rezatofighi et al., 2019): IoU less the share of the hull that neither box covers."""
        return float(box_sums.giou([self.box_a], [self.box_b])[0, 0])

    @property
    def intersection(self) -> float:
        return float(box_sums.intersection([self.box_a], [self.box_b])[0, 0])

    @property
    def union(self) -> float:
        return float(box_sums.area(self.box_a)) + float(box_sums.area(self.box_b)) - self.intersection

    @property
    def deltas(self):
        """(dy, dx, dh, dw) that turn box A into box B: (4,) float32."""
        return np.asarray(box_sums.encode([self.box_b], [self.box_a]))[0]

    def summary(self):
        return f"IoU {self.iou:.3f}, GIoU {self.giou:.3f}"

    def figure(self):
        figure, axes = panels(height=4.5)
        picture(np.full((*self.size, 3), 236, np.uint8) if self._image is None else self._image, axes)
        for name, box, colour in (("A", self.box_a, SKY), ("B", self.box_b, ORANGE)):
            y1, x1, y2, x2 = box
            axes.fill([x1, x2, x2, x1], [y1, y1, y2, y2], facecolor=f"{colour}30", edgecolor=colour, linewidth=2.5)
            axes.text(x1, y1, f" {name}", va="top", weight="bold", bbox={"facecolor": "#fff8", "edgecolor": "none"})
        dy, dx, dh, dw = self.deltas
        axes.set_title(f"{self.summary()}\nA to B: dy {dy:.2f}, dx {dx:.2f}, dh {dh:.2f}, dw {dw:.2f}", fontsize=11)
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "IoU playground: two boxes and their overlap",
    "Drag a box or its corners, or press Tab to reach it: arrows move it, Shift + arrows change its " +
      "size, Ctrl or Alt makes steps of ten.",
  );
  const [height, width] = w.get("size");
  const s = picture(w, { height, width, url: w.get("picture"), label: "Two boxes", shown: 440 });
  const hull = s.layer(),
    shared = s.layer();
  const step = Math.max(1, Math.round(Math.max(height, width) / 200));
  const moves = [dragBox(w, s, "box_a", "A", SKY, { step }), dragBox(w, s, "box_b", "B", ORANGE, { step })];
  return w.keep(() => {
    const [a, b] = [w.get("box_a"), w.get("box_b")];
    moves.forEach((move) => move());
    hull.replaceChildren(
      make("path", {
        d: s.outline([[0, 1].map((i) => Math.min(a[i], b[i])).concat([2, 3].map((i) => Math.max(a[i], b[i])))]),
        fill: "none",
        stroke: "var(--ink)",
        "stroke-dasharray": "3 4",
        "stroke-opacity": 0.7,
      }),
    );
    const both = [0, 1].map((i) => Math.max(a[i], b[i])).concat([2, 3].map((i) => Math.min(a[i], b[i])));
    const meet = intersection(a, b) > 0;
    shared.replaceChildren(make("path", { d: meet ? s.outline([both]) : "", fill: GREEN, "fill-opacity": 0.65 }));
    const [dy, dx, dh, dw] = encode(b, a);
    w.numbers({
      Intersection: fixed(intersection(a, b), 1),
      Union: fixed(union(a, b), 1),
      IoU: fixed(iou(a, b), 3),
      GIoU: fixed(giou(a, b), 3),
      dy: `${fixed(dy, 3)}   (B's centre lower by this share of A's height)`,
      dx: `${fixed(dx, 3)}   (further right by this share of A's width)`,
      dh: `${fixed(dh, 3)}   (log of the heights' ratio)`,
      dw: `${fixed(dw, 3)}   (log of the widths' ratio)`,
    });
  });
}
"""

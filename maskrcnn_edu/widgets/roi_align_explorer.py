"""RoIAlignExplorer: a RoI to drag over a feature map; what RoIAlign samples and RoIPool rounds, and what comes out."""

import numpy as np
import traitlets

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.roi_align import roi_align, roi_pool
from maskrcnn_edu.widgets.base import ORANGE, Widget, checked_box, draw_boxes, panels, toy

MOST_CELLS = 40_000  # of a feature map: 160 KB
BINS = 7


class RoIAlignExplorer(Widget):
    """RoIAlign beside RoIPool on one channel of a feature map: the samples, the rounded bins and both 7 x 7 outputs.

    Args:
        feature: (H, W), or (H, W, C) of which `channel` is shown; at most 40,000 cells. Without one, a small drawn one.
        roi: (4,) y1, x1, y2, x2 in pixels of the network's input, of which a cell is `stride`.
        stride: pixels a cell.
        channel: of a feature with several.
        sampling_ratio: samples a bin and axis; 0 for about one a cell.
        aligned: cell centres lie at .5; see `mr.roi_align.roi_align`.

    `roi`, `sampling_ratio`, `aligned` and `bin` can be read and set; `align_output` and `pool_output` (7, 7) follow.
    Raises InputError: no feature map, too large a one, or not finite.
    """

    grid = traitlets.List(traitlets.Int()).tag(sync=True)
    stride = traitlets.Float().tag(sync=True)
    values = traitlets.Bytes(help="float32, row by row").tag(sync=True)
    roi = traitlets.List(traitlets.Float(), minlen=4, maxlen=4).tag(sync=True)
    sampling_ratio = traitlets.Int(min=0, max=8).tag(sync=True)
    aligned = traitlets.Bool().tag(sync=True)
    bin = traitlets.List(traitlets.Int(), minlen=2, maxlen=2).tag(sync=True)

    def __init__(self, feature=None, roi=None, stride=8, channel=0, sampling_ratio=2, aligned=True):
        if feature is None:
            feature = toy()[0][4::8, 4::8].mean(2) / 255  # 16 x 16: one look a cell
        self._feature = _checked_feature(feature, channel)
        if not np.isfinite(stride) or stride <= 0:
            raise InputError(f"stride is {stride!r}; give the pixels a cell, such as 8.")
        height, width = np.float32(self._feature.shape) * stride
        roi = np.float32([0.17, 0.2, 0.71, 0.73]) * [height, width, height, width] if roi is None else roi
        roi = checked_box(roi, "roi")
        super().__init__(
            grid=list(self._feature.shape), stride=float(stride), values=self._feature.tobytes(), roi=roi.tolist(),
            sampling_ratio=sampling_ratio, aligned=bool(aligned), bin=[0, 0],
        )  # fmt: skip

    @property
    def align_output(self):
        """RoIAlign's answer: (7, 7) float32."""
        feature = self._feature[None, :, :, None]
        seen = roi_align(feature, [[self.roi]], self.stride, BINS, self.sampling_ratio, self.aligned)
        return np.asarray(seen)[0, 0, :, :, 0]

    @property
    def pool_output(self):
        """RoIPool's answer: (7, 7) float32."""
        return np.asarray(roi_pool(self._feature[None, :, :, None], [[self.roi]], self.stride, BINS))[0, 0, :, :, 0]

    def summary(self):
        apart = float(np.abs(self.align_output - self.pool_output).mean())
        how = (
            "adaptive samples" if self.sampling_ratio == 0 else f"{self.sampling_ratio} x {self.sampling_ratio} samples"
        )
        return f"{how}, {'' if self.aligned else 'not '}aligned; RoIAlign and RoIPool differ by {apart:.3g} on average"

    def figure(self):
        figure, axes = panels(3, height=3.2, ratios=(1.2, 1, 1))
        (rows, columns), shown = self.grid, {"vmin": self._feature.min(), "vmax": self._feature.max()}
        axes[0].imshow(self._feature, extent=(0, columns * self.stride, rows * self.stride, 0), **shown)
        draw_boxes(axes[0], [self.roi], ORANGE, 2.5)
        axes[0].set_title("feature map and RoI", fontsize=10)
        for ax, output, name in zip(
            axes[1:], (self.align_output, self.pool_output), ("RoIAlign", "RoIPool"), strict=True
        ):
            ax.imshow(output, **shown)
            ax.set_title(name, fontsize=10)
            ax.set_axis_off()
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "RoIAlign explorer: samples and bins of a RoI on a feature map",
    "Drag the RoI, or Tab to it: arrows move it, Shift + arrows change its size. Point at a bin on " +
      "the right, or Tab there and use arrows, to see what it reads.",
  );
  const [rows, columns] = w.get("grid"),
    stride = w.get("stride"),
    feature = numbersOf(w.get("values"), Float32Array);
  let [low, high] = [Infinity, -Infinity];
  for (const value of feature) [low, high] = [Math.min(low, value), Math.max(high, value)];
  const colour = (value) => heat((value - low) / (high - low || 1));
  const s = picture(w, {
    height: rows * stride,
    width: columns * stride,
    label: "Feature map",
    shown: 420,
    url: pixels(rows, columns, (i) => colour(feature[i])),
    title: "Feature map: a cell is " + stride + " pixels",
  });
  const lines = s.layer({ "pointer-events": "none" }),
    move = dragBox(w, s, "roi", "RoI", "#fff", {
      step: Math.max(stride / 8, 0.125),
      least: 0.5,
      digits: 1,
      tagged: false,
    });
  const marks = s.layer({ "pointer-events": "none" });
  const pair = w.side.insertBefore(make("div", { class: "mrw-pictures" }), w.controls);
  const [align, pool] = ["RoIAlign", "RoIPool"].map((name) => {
    const small = picture(w, {
      height: 7,
      width: 7,
      label: `${name}: 7 x 7 output`,
      shown: 150,
      parent: pair,
      title: name,
    });
    small.point = pointCell(
      w,
      small,
      "bin",
      `${name}, bin`,
      () => 7,
      () => 7,
    );
    return small;
  });
  slider(w, "sampling_ratio", "sampling_ratio", {
    min: 0,
    max: 4,
    step: 1,
    format: (v) => (v ? `${v} x ${v}` : "adaptive"),
  });
  toggle(w, "aligned", "aligned (cell centres at .5)");
  if (rows * columns <= 2500) {
    const cells = [];
    for (let y = 0; y <= rows; y++) cells.push(`M0 ${y * stride * s.k}H${columns * stride * s.k}`);
    for (let x = 0; x <= columns; x++) cells.push(`M${x * stride * s.k} 0V${rows * stride * s.k}`);
    lines.append(make("path", { d: cells.join(""), stroke: "#fff", "stroke-opacity": 0.18 }));
  }
  return w.keep(() => {
    const roi = w.get("roi"),
      ratio = w.get("sampling_ratio"),
      aligned = w.get("aligned"),
      [row, column] = w.get("bin");
    const a = roiAlign(feature, rows, columns, roi, stride, 7, ratio, aligned),
      p = roiPool(feature, rows, columns, roi, stride, 7);
    align.back(pixels(7, 7, (i) => colour(a.values[i])));
    pool.back(pixels(7, 7, (i) => colour(p.values[i])));
    [align, pool].forEach((small) => small.point());
    move();
    const bin = row * 7 + column,
      px = (cells) => cells.map((v) => v * stride);
    marks.replaceChildren();
    // RoIPool's bins: whole cells, which may overlap and reach past the RoI.
    drawBoxes(marks, s, p.cells.map(px), PINK, { width: 1, rim: 0, dash: "4 3", opacity: 0.9 });
    drawBoxes(marks, s, [px(p.cells[bin])], PINK, { width: 3 });
    // A sample at y reads cell i fully where y = i; the cell's centre is drawn at (i + .5) strides.
    const places = (chosen) => a.samples.filter(chosen).map(([y, x]) => [(y + 0.5) * stride, (x + 0.5) * stride]);
    drawDots(
      marks,
      s,
      places((sample) => sample[2] !== bin && sample[3]),
      ORANGE,
      a.samples.length > 400 ? 1.5 : 3,
    );
    drawDots(
      marks,
      s,
      places((sample) => sample[2] === bin),
      YELLOW,
      6,
    );
    const [top, left, bottom, right] = p.cells[bin],
      here = a.samples.filter((sample) => sample[2] === bin);
    w.numbers({
      Bin: `${row}, ${column}`,
      RoIAlign: fixed(a.values[bin], 4),
      RoIPool: fixed(p.values[bin], 4),
      "RoIAlign reads": here.length
        ? `${here.length} samples, the first at cell (${fixed(here[0][0], 2)}, ${fixed(here[0][1], 2)})`
        : "nothing: the RoI is empty",
      "RoIPool reads":
        bottom > top && right > left
          ? `rows ${top} to ${bottom - 1}, columns ${left} to ${right - 1}`
          : "nothing: outside the map",
      "Mean difference": fixed(sum(a.values.map((v, i) => Math.abs(v - p.values[i]))) / 49, 4),
    });
    w.say(
      aligned
        ? "Orange: RoIAlign's samples. Pink, dashed: RoIPool's bins, rounded to whole cells."
        : "Not aligned: every sample lies half a cell too far down and right of the RoI. Pink, dashed: RoIPool's bins.",
    );
  });
}
"""


def _checked_feature(feature, channel):
    """One channel of a feature map as (H, W) float32; or InputError."""
    try:
        feature = np.asarray(feature, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"feature is {type(feature).__name__}; give an array of numbers (H, W).") from None
    if feature.ndim == 3 and feature.size:
        if not 0 <= channel < feature.shape[2]:
            raise InputError(f"channel is {channel}; the feature has {feature.shape[2]}, from 0 on.")
        feature = feature[..., channel]
    if feature.ndim != 2 or not feature.size:
        raise InputError(f"feature has shape {feature.shape}; give (H, W) or (H, W, C), without a batch dimension.")
    if feature.size > MOST_CELLS:
        raise InputError(
            f"feature has {feature.shape[0]} x {feature.shape[1]} cells; give at most {MOST_CELLS} of them, such as "
            "feature[:200, :200] or a coarser level."
        )
    if not np.isfinite(feature).all():
        raise InputError("feature holds NaN or infinity; give finite numbers.")
    return np.ascontiguousarray(feature)

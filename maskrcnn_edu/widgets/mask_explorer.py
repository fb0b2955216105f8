"""MaskExplorer: from the mask head's 28 x 28 probabilities to pixels of the image."""

import numpy as np
import traitlets

from maskrcnn_edu.datasets.transforms import crop_masks
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.masks import paste
from maskrcnn_edu.plots import picture
from maskrcnn_edu.widgets.base import (
    GREEN,
    SKY,
    Widget,
    checked_box,
    draw_boxes,
    fraction,
    panels,
    photograph,
    picture_url,
    toy,
)

MARGIN = 0.25  # of the box's sides that is shown around it
LONGEST_SHOWN = 1000  # pixels: what is pasted at every key press


class MaskExplorer(Widget):
    """A mask of 28 x 28 probabilities pasted into its box: the threshold, the box and the half-pixel shift to move.

    Args:
        mask: (m, m) probabilities, m at most 112; without it, an object of a drawn picture, seen as the mask head
            would.
        box: (4,) y1, x1, y2, x2 in pixels of the image, of at most 1000 a side with the margin that is shown.
        image: (H, W, 3), the whole image.
        truth: (H, W) bool, the true mask, if it is known: its IoU with the pasted one is shown.
        threshold: a pixel is set where the resized mask reaches it.

    `threshold`, `half_pixel` and `box` can be read and set; `pasted` (H, W) bool and `iou` follow.
    Raises InputError: shapes that do not match, a probability outside 0 to 1, a box outside the image.
    """

    picture = traitlets.Unicode().tag(sync=True)
    window = traitlets.List(traitlets.Int(), help="y1, x1, y2, x2 of the part of the image that is shown").tag(
        sync=True
    )
    side = traitlets.Int().tag(sync=True)
    mask = traitlets.Bytes(help="float32, row by row").tag(sync=True)
    truth_runs = traitlets.List(traitlets.Int(), help="run lengths of the true mask in the window").tag(sync=True)
    box = traitlets.List(traitlets.Float(), minlen=4, maxlen=4).tag(sync=True)
    threshold = traitlets.Float().tag(sync=True)
    half_pixel = traitlets.Bool(True).tag(sync=True)

    def __init__(self, mask=None, box=None, image=None, truth=None, threshold=0.5):
        if mask is None:
            if box is not None or image is not None or truth is not None:
                raise InputError("MaskExplorer got a box or an image without a mask; give the mask as well.")
            image, found = toy(size=512)  # a cell of the mask is several pixels
            box, truth = found.boxes[-1], found.masks[-1]
            mask = crop_masks(found.masks[-1:], box[None], 28)[0] / 255
        if box is None or image is None:
            raise InputError("MaskExplorer got a mask without its box and image; give both.")
        self._image, self._mask = photograph(image), _checked_mask(mask)
        box = checked_box(box, "box")
        window = _window(box, self._image.shape[:2])
        y1, x1, y2, x2 = window
        self._truth = None if truth is None else _checked_truth(truth, self._image.shape[:2])
        super().__init__(
            picture=picture_url(self._image[y1:y2, x1:x2]), window=window, side=len(self._mask),
            mask=self._mask.tobytes(), box=(box - [y1, x1, y1, x1]).tolist(),
            threshold=fraction(threshold, "threshold"),
            truth_runs=[] if truth is None else _runs(self._truth[y1:y2, x1:x2]),
        )  # fmt: skip

    @property
    def box_on_image(self):
        """The box in pixels of the whole image; `box` counts from the corner of the part that is shown: (4,)."""
        return np.float32(self.box) + np.tile(np.float32(self.window[:2]), 2)

    @property
    def pasted(self):
        """The mask on the image: (H, W) bool."""
        shape = self._image.shape[:2]
        if self.half_pixel:
            return paste(self._mask[None], self.box_on_image[None], *shape, threshold=self.threshold)[0]
        return _paste_by_corners(self._mask, self.box_on_image, shape) >= np.float32(self.threshold)

    @property
    def iou(self) -> float | None:
        """IoU of the pasted mask with the true one; None without one."""
        if self._truth is None:
            return None
        pasted = self.pasted
        return float((pasted & self._truth).sum() / max((pasted | self._truth).sum(), 1))

    def summary(self):
        known = "" if self._truth is None else f", IoU {self.iou:.3f} with the true mask"
        shift = "" if self.half_pixel else ", without the half-pixel shift"
        return f"{int(self.pasted.sum())} pixels at threshold {self.threshold:.2f}{shift}{known}"

    def figure(self):
        figure, axes = panels(2, height=4.2)
        axes[0].imshow(self._mask, vmin=0, vmax=1)
        axes[0].set_title(f"{self.side} x {self.side} probabilities", fontsize=11)
        axes[0].set_axis_off()
        y1, x1, y2, x2 = self.window
        filled, pasted = self._image[y1:y2, x1:x2].astype(np.float32), self.pasted[y1:y2, x1:x2]
        filled[pasted] += 0.5 * (np.float32([0, 158, 115]) - filled[pasted])
        picture(filled.astype(np.uint8), axes[1])
        draw_boxes(axes[1], [self.box], SKY, 2)
        for mask, colour in (
            (pasted, GREEN),
            (self._truth[y1:y2, x1:x2] if self._truth is not None else None, "white"),
        ):
            if mask is not None and mask.any() and min(mask.shape) > 1:
                axes[1].contour(
                    np.arange(mask.shape[1]) + 0.5, np.arange(mask.shape[0]) + 0.5, mask, [0.5], colors=[colour]
                )
        axes[1].set_title(self.summary(), fontsize=9)
        return figure

    javascript = r"""
function render({ model, el }) {
  const w = frame(
    { model, el },
    "Mask explorer: from the mask head's grid to pixels",
    "Drag the box or Tab to it: arrows move it by a quarter of a pixel, Shift + arrows change its " +
      "size. Green: the pasted mask. White line: the true mask.",
  );
  const [y1, x1, y2, x2] = w.get("window"),
    height = y2 - y1,
    width = x2 - x1,
    side = w.get("side");
  const mask = numbersOf(w.get("mask"), Float32Array),
    runs = w.get("truth_runs");
  const truth = runs.length ? new Uint8Array(height * width) : null;
  runs.reduce((start, length, i) => (i % 2 ? truth.fill(1, start, start + length) : 0, start + length), 0);
  const s = picture(w, {
    height,
    width,
    url: w.get("picture"),
    label: "The mask pasted into its box",
    shown: 400,
    title: "On the image",
  });
  const over = s.layer({ "pointer-events": "none" }),
    edge = s.layer({ "pointer-events": "none" });
  const fill = make("image", {
    width: width * s.k,
    height: height * s.k,
    preserveAspectRatio: "none",
    class: "mrw-sharp",
  });
  over.append(fill);
  const move = dragBox(w, s, "box", "box", SKY, { step: 0.25, least: 0.25, digits: 2 });
  const pair = w.side.insertBefore(make("div", { class: "mrw-pictures" }), w.controls);
  const grid = (name) => picture(w, { height: side, width: side, label: name, shown: 150, parent: pair, title: name });
  const soft = grid(`${side} x ${side} probabilities`),
    hard = grid("... above the threshold");
  soft.back(pixels(side, side, (i) => heat(mask[i])));
  slider(w, "threshold", "Mask threshold", { min: 0.01, max: 0.99, step: 0.01 });
  toggle(w, "half_pixel", "half-pixel shift (pixel i is looked up at i + .5)");
  if (truth) {
    const outline = [],
      at = (y, x) => y >= 0 && x >= 0 && y < height && x < width && truth[y * width + x];
    for (let y = 0; y <= height; y++)
      for (let x = 0; x <= width; x++) {
        if (!!at(y, x) !== !!at(y - 1, x)) outline.push(`M${x * s.k} ${y * s.k}h${s.k}`);
        if (!!at(y, x) !== !!at(y, x - 1)) outline.push(`M${x * s.k} ${y * s.k}v${s.k}`);
      }
    const d = outline.join("");
    edge.append(
      make("path", { d, stroke: "#000", "stroke-width": 3 }),
      make("path", { d, stroke: "#fff", "stroke-width": 1.5 }),
    );
  }
  return w.keep(() => {
    const threshold = f32(w.get("threshold")),
      box = w.get("box");
    const p = pasteWindow(mask, side, box, height, width, w.get("half_pixel"));
    const set = new Uint8Array(height * width);
    for (let y = 0; y < p.height; y++)
      for (let x = 0; x < p.width; x++) {
        if (p.values[y * p.width + x] >= threshold) set[(p.top + y) * width + p.left + x] = 1;
      }
    let [count, both, either] = [0, 0, 0];
    set.forEach((value, i) => {
      count += value;
      both += value && truth ? truth[i] : 0;
      either += value || (truth && truth[i]) ? 1 : 0;
    });
    const [r, g, b] = rgb(GREEN);
    fill.setAttribute(
      "href",
      pixels(height, width, (i) => [r, g, b, set[i] ? 150 : 0]),
    );
    hard.back(pixels(side, side, (i) => (mask[i] >= threshold ? [r, g, b] : [60, 60, 60])));
    move();
    w.numbers({
      Pixels: count,
      ...(truth ? { "IoU with the true mask": fixed(both / Math.max(either, 1), 3) } : {}),
      Box:
        `${fixed(box[2] - box[0], 2)} x ${fixed(box[3] - box[1], 2)} pixels: a cell is ` +
        `${fixed((box[2] - box[0]) / side, 2)} x ${fixed((box[3] - box[1]) / side, 2)}`,
    });
    w.say(
      w.get("half_pixel")
        ? ""
        : "Without the shift the mask lies about half a cell too far down and right, less half a pixel.",
    );
  });
}
"""


def _paste_by_corners(mask, box, shape):
    """The mask resized as if pixel i lay at i and cell j at j, not at their centres: (H, W) probabilities."""

    def matrix(low, high, size):
        place = (np.arange(size, dtype=np.float32) - low) / np.maximum(high - low, np.float32(1e-6)) * len(mask)
        near = (np.arange(size) >= np.floor(low) - 1) & (np.arange(size) < np.ceil(high) + 1) & (high > low)
        return np.maximum(1 - np.abs(place[:, None] - np.arange(len(mask), dtype=np.float32)), 0) * near[:, None]

    return matrix(box[0], box[2], shape[0]) @ mask @ matrix(box[1], box[3], shape[1]).T


def _window(box, size):
    """The part of the image to show: the box and a margin, in whole pixels."""
    margin = np.maximum(np.tile((box[2:] - box[:2]) * MARGIN, 2), 2)
    low, high = np.floor(box - margin)[:2], np.ceil(box + margin)[2:]
    y1, x1 = np.clip(low, 0, size).astype(int)
    y2, x2 = np.clip(high, 0, size).astype(int)
    if y2 <= y1 or x2 <= x1:
        raise InputError(f"box is {np.round(box, 1).tolist()}, outside the image of {size[0]} x {size[1]} pixels.")
    if max(y2 - y1, x2 - x1) > LONGEST_SHOWN:
        raise InputError(
            f"box with its margin takes {y2 - y1} x {x2 - x1} pixels; give at most {LONGEST_SHOWN} a side: shrink "
            "image, box and truth."
        )
    return [int(v) for v in (y1, x1, y2, x2)]


def _checked_mask(mask):
    mask = np.asarray(mask)
    if (
        mask.ndim != 2
        or mask.shape[0] != mask.shape[1]
        or not 1 <= mask.shape[0] <= 112
        or mask.dtype.kind not in "buif"
    ):
        raise InputError(f"mask has shape {mask.shape} of {mask.dtype}; give (m, m) probabilities, m from 1 to 112.")
    if not np.isfinite(mask).all() or mask.min() < 0 or mask.max() > 1:
        raise InputError("mask has values outside 0 to 1; give probabilities, such as 1 / (1 + exp(-logits)).")
    return np.ascontiguousarray(mask, np.float32)


def _checked_truth(truth, size):
    truth = np.asarray(truth)
    if truth.shape != tuple(size):
        raise InputError(
            f"truth has shape {truth.shape}, but the image is {size[0]} x {size[1]} pixels; give one of them."
        )
    return truth > 0.5


def _runs(mask):
    """Lengths of the runs of equal pixels, row by row, the first of them unset (perhaps 0)."""
    flat = np.concatenate([[False], mask.ravel()])
    change = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(np.concatenate([[0], change, [mask.size]])).tolist()

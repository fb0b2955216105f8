"""What every widget is: state that Python and the browser share, JavaScript that draws it, and a still picture of it.

The JavaScript needs no build step and no kernel: it computes the small sums itself (sums.js, tested against the
library's), so that a widget also answers on a page of a static site.
"""

import base64
import io
import json
from pathlib import Path

import anywidget
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from maskrcnn_edu.datasets import ShapesDataset
from maskrcnn_edu.datasets.shapes import TEST_SEED
from maskrcnn_edu.detections import as_photograph, padded_size, to_batch
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import COLOURS
from maskrcnn_edu.shipped import files

ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = COLOURS[:7]
_HERE = Path(__file__).parent
SUMS = (_HERE / "sums.js").read_text(encoding="utf-8")
FRAME = (_HERE / "frame.js").read_text(encoding="utf-8")
DRAW = (_HERE / "draw.js").read_text(encoding="utf-8")
_PALETTE = f"""const COLOURS = {json.dumps(COLOURS)};
const [ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK] = COLOURS;
"""
LONGEST_SIDE, PICTURE_BYTES = 800, 90_000  # of the picture that a widget's state carries


class Widget(anywidget.AnyWidget):
    """Base of the widgets. A subclass has `javascript`, which defines render({ model, el }), and `figure()`."""

    _css = (_HERE / "look.css").read_text(encoding="utf-8")
    javascript = ""

    def __init_subclass__(cls, **kwargs):
        if "javascript" in cls.__dict__:  # not in the class that traitlets makes of each instance
            cls._esm = f"{_PALETTE}{SUMS}{FRAME}{DRAW}{cls.javascript}\nexport default {{ render }};\n"
        super().__init_subclass__(**kwargs)

    def figure(self) -> Figure:
        """The present state as a still picture."""
        raise NotImplementedError

    def summary(self) -> str:
        """The present state in a few words."""
        raise NotImplementedError

    def __repr__(self):
        return f"{type(self).__name__}: {self.summary()}"

    def _repr_mimebundle_(self, **kwargs):
        """The live view, and for pages without a front end (GitHub, a notebook without widget state) a picture."""
        data, metadata = super()._repr_mimebundle_(**kwargs)
        written = io.BytesIO()
        self.figure().savefig(written, format="png", facecolor="white")
        return {**data, "image/png": base64.b64encode(written.getvalue()).decode("ascii")}, metadata


def panels(count=1, width=8.0, height=4.0, ratios=None):
    """A figure as wide as a notebook's cell, with `count` Axes side by side: Figure, Axes or array of Axes."""
    figure = Figure((width, height), dpi=100, layout="constrained")
    return figure, figure.subplots(1, count, width_ratios=ratios)


def draw_boxes(axes, boxes, colour, width):
    """Boxes (N, 4) in one colour on matplotlib's Axes."""
    for y1, x1, y2, x2 in boxes:
        axes.plot([x1, x2, x2, x1, x1], [y1, y1, y2, y2, y1], color=colour, linewidth=width)


def picture_url(image, budget=PICTURE_BYTES) -> str:
    """An image (H, W, 3) uint8 as the data URL of a PNG, or where that passes the budget in bytes, of a JPEG."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    for kind, options in [("png", {}), *(("jpeg", {"quality": q}) for q in (88, 75, 60, 40, 20, 8))]:
        written = io.BytesIO()
        picture.save(written, kind, **options)
        if written.tell() <= budget:
            break
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode('ascii')}"


def toy(i=15, size=128):
    """A drawn picture to play with: image (H, W, 3) and its Instances."""
    dataset = ShapesDataset(i + 1, seed=TEST_SEED, size=size)
    return dataset.image(i), dataset.instances(i)


def photograph(image):
    """Any image array as (H, W, 3) uint8, or InputError."""
    return np.ascontiguousarray(as_photograph(image))


def network_input(image, boxes, config):
    """An image as a network of `config` sees it, (h, w, 3) uint8, and boxes (N, 4) moved with it."""
    given = photograph(image)
    batch = to_batch([given], padded_size(given, config), 1, config)
    window = batch["window"][0]
    scale = np.tile((window[2:] - window[:2]) / np.float32(given.shape[:2]), 2)
    return seen(batch["image"][0]), (boxes * scale + np.tile(window[:2], 2)).astype(np.float32)


def seen(image):
    """The network's input (h, w, 3), 0..255, as uint8 for the eye."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def model_and_picture(model, image):
    """The model and image to show, and the drawn picture's Instances: what ships stands in for what is None."""
    if model is None:
        from maskrcnn_edu.runs import load

        model = load(files("shapes.keras"))
    if not hasattr(model, "detect"):
        raise InputError(f"model is a {type(model).__name__}; give a MaskRCNN.")
    if image is None:
        return model, *toy()
    return model, image, None


def checked_boxes(boxes, name="boxes", count=None):
    """Boxes as (N, 4) float32; or InputError: a wrong shape or number, not finite, or lower edge above upper."""
    boxes = _numbers(boxes, name)
    boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
    if boxes.ndim != 2 or boxes.shape[1] != 4 or (count is not None and len(boxes) != count):
        raise InputError(
            f"{name} has shape {boxes.shape}; give ({'N' if count is None else count}, 4): y1, x1, y2, x2."
        )
    if not np.isfinite(boxes).all():
        raise InputError(f"{name} holds NaN or infinity; leave those boxes out.")
    if (boxes[:, 2:] < boxes[:, :2]).any():
        wrong = int(np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(1))[0])
        raise InputError(f"{name}[{wrong}] is {boxes[wrong].tolist()}; give y1, x1, y2, x2 with y2 >= y1 and x2 >= x1.")
    return boxes


def checked_box(box, name):
    """One box as (4,) float32; or InputError."""
    box = _numbers(box, name)
    return checked_boxes(box.reshape(1, 4) if box.size == 4 else box, name, 1)[0]


def checked_scores(scores, count, name="scores"):
    """Scores as (N,) float32, one a box; or InputError."""
    scores = _numbers(scores, name)
    if scores.shape != (count,):
        raise InputError(f"{name} has shape {scores.shape} for {count} boxes; give one number a box.")
    if not np.isfinite(scores).all():
        raise InputError(f"{name}[{int(np.flatnonzero(~np.isfinite(scores))[0])}] is not finite; leave that box out.")
    return scores


def checked_classes(classes, count, name="classes"):
    """Classes as (N,) int32, one a box; or InputError."""
    classes = np.asarray(classes)
    if classes.shape != (count,) or (count and classes.dtype.kind not in "iu"):
        raise InputError(
            f"{name} has shape {classes.shape} of {classes.dtype}; give one whole number for each of {count} boxes."
        )
    return classes.astype(np.int32)


def _numbers(values, name):
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {type(values).__name__}, which is no array of numbers; give one.") from None


def fraction(value, name):
    """A threshold as a float from 0 to 1, or InputError."""
    if not isinstance(value, (int, float, np.number)) or not 0 <= value <= 1:
        raise InputError(f"{name} is {value!r}; give a number from 0 to 1.")
    return float(value)

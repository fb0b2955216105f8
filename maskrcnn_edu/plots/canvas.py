"""What pictures are drawn on: figures that show themselves in a notebook, images, grids of panels, and colours."""

import io

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from maskrcnn_edu.errors import InputError

# Okabe and Ito's palette (Color Universal Design, 2008), then colours of Tol's "muted" that differ from all of those.
COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    "#882255", "#44AA99", "#999933", "#332288", "#DDCC77",
)  # fmt: skip
LINE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#882255", "#999933", "#332288")
GREY = "#595959"  # 7:1 on white
LONG_SIDE, SHORT_SIDE = 6.4, 1.6  # inches: the width of a notebook's cell, and room for a caption on a narrow strip
WIDTH = 8.0  # inches of a figure with several panels
DPI = 100
SMALL = 512  # pictures up to this side are enlarged, and keep their pixels sharp
TITLE = 9  # points


class Sheet(Figure):
    """A Figure that is not pyplot's and shows itself where it is a notebook cell's last value."""

    def _repr_png_(self):
        written = io.BytesIO()
        FigureCanvasAgg(self).print_png(written)
        return written.getvalue()


class Plot(Axes):
    """Axes of a `Sheet`; they show the whole of it."""

    def _repr_png_(self):
        return self.figure._repr_png_() if isinstance(self.figure, Sheet) else None


def picture(image, ax=None, title=None):
    """`image` on `ax`, or on a new figure of its shape: no frame, no ticks, one unit a pixel, (0, 0) its corner.

    Coordinates are those of boxes: pixel (y, x) covers y to y + 1 and x to x + 1. Returns the Axes.
    """
    image = as_rgb(image)
    height, width = image.shape[:2]
    if ax is None:
        longest = max(height, width)
        across, down = (max(LONG_SIDE * side / longest, SHORT_SIDE) for side in (width, height))
        above = 0.3 if title else 0.0
        sheet = Sheet((across, down + above), dpi=DPI)
        ax = sheet.add_axes((0, 0, 1, down / (down + above)), axes_class=Plot)
    if title:
        ax.set_title(title, fontsize=TITLE)
    smoothing = "nearest" if max(height, width) <= SMALL else "antialiased"
    ax.imshow(image, extent=(0, width, height, 0), interpolation=smoothing)
    ax.set_axis_off()
    ax.set_autoscale_on(False)  # what is drawn later does not move the picture
    return ax


def chart(ax=None, title=None, size=(LONG_SIDE, 4.0)):
    """Axes for curves and bars: `ax`, or those of a new figure. Returns the Axes."""
    if ax is None:
        ax = Sheet(size, dpi=DPI, layout="constrained").add_subplot(axes_class=Plot)
    if title:
        ax.set_title(title, fontsize=TITLE + 1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)
    return ax


def panels(titles, columns, aspect=1.0, width=WIDTH, largest=2.7):
    """A figure with a panel for each title, row by row: the figure and its list of Axes, ready for `picture`.

    aspect: height / width of a panel. width: inches of the figure, but at most `largest` a panel. The titles are there
    from the start, so that captions know their room.
    """
    columns = max(1, min(columns, len(titles)))
    rows, width = max(1, -(-len(titles) // columns)), min(width, columns * largest)
    lines = max((title.count("\n") + 1 for title in titles if title), default=0)
    height = rows * (width / columns * min(max(aspect, 0.1), 4) + 0.06 + 0.17 * lines)
    sheet = Sheet((width, height), dpi=DPI, layout="constrained")
    sheet.get_layout_engine().set(w_pad=0.04, h_pad=0.03, wspace=0, hspace=0)
    grid = list(sheet.subplots(rows, columns, squeeze=False).flat)
    for ax in grid[len(titles) :]:
        ax.remove()
    for ax, title in zip(grid, titles, strict=False):
        ax.set_axis_off()
        if title:
            ax.set_title(title, fontsize=8, pad=3)
    return sheet, grid[: len(titles)]


def images(images, titles=None, *, columns=4):
    """A grid of images.

    Args:
        images: a list of arrays as in `instances`, of any sizes.
        titles: one for each.
        columns: images side by side.

    Returns:
        The Figure.

    Raises:
        InputError: no image, or another number of titles.
    """
    images = [as_rgb(image) for image in images]
    titles = [""] * len(images) if titles is None else [str(title) for title in titles]
    if not images or len(titles) != len(images):
        raise InputError(f"There are {len(images)} images and {len(titles)} titles; give one of each, or more.")
    sheet, grid = panels(titles, columns, aspect=np.median([image.shape[0] / image.shape[1] for image in images]))
    for ax, image in zip(grid, images, strict=True):
        picture(image, ax)
    return sheet


def colour(i):
    """Red, green, blue (3,) in 0..1 of instance `i`: colours for all kinds of sight, darker at each further round."""
    rounds, i = divmod(int(i), len(COLOURS))
    return np.array(matplotlib.colors.to_rgb(COLOURS[i])) * (1.0, 0.7, 0.5)[rounds % 3]


def halo(width):
    """A dark edge, that keeps a line of `width` points visible on any photograph."""
    return [withStroke(linewidth=width + 1.2, foreground=(0, 0, 0, 0.55))]


def as_rgb(image):
    """Any grey or colour image array as (H, W, 3) uint8. Raises InputError for what is none."""
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise InputError(f"The image has shape {image.shape}; give (H, W) or (H, W, 3).")
    image = image[..., :3]
    if image.dtype == bool or (image.dtype.kind == "f" and np.nanmax(image, initial=0) <= 1):
        image = image * 255.0
    if image.dtype != np.uint8:
        image = np.rint(np.clip(np.nan_to_num(image), 0, 255)).astype(np.uint8)
    return np.broadcast_to(image, (*image.shape[:2], 3))


def as_boxes(found, name="boxes"):
    """Boxes (N, 4) of an array, of Detections or of a dataset's instances. Raises InputError on another shape."""
    array = np.asarray(getattr(found, "boxes", found), np.float32)
    array = array.reshape(-1, 4) if array.size == 0 else array
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{name} has shape {array.shape}; give (N, 4): y1, x1, y2, x2.")
    return array


def class_name(class_id, class_names=None):
    """What to call a class; a negative one is a crowd. Raises InputError for a class without a name."""
    class_id = int(class_id)
    if class_names is None:
        name = f"class {abs(class_id)}"
    elif abs(class_id) < len(class_names):
        name = str(class_names[abs(class_id)])
    else:
        raise InputError(f"class_names has {len(class_names)} names, none for class {class_id}; add it.")
    return f"{name} (crowd)" if class_id < 0 else name

"""Still pictures, drawn with matplotlib. Nothing here shows a window or touches pyplot's state."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from maskrcnn_edu.errors import InputError

# Okabe and Ito's palette (Color Universal Design, 2008), then colours of Tol's "muted" that differ from all of those.
COLOURS = (
    "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
    "#882255", "#44AA99", "#999933", "#332288", "#DDCC77",
)  # fmt: skip
LONG_SIDE, SHORT_SIDE = 6.4, 1.6  # inches: the width of a notebook's cell, and room for a caption on a narrow strip
DPI = 100
SMALL = 512  # pictures up to this side are enlarged, and keep their pixels sharp
FILL = 0.4  # opacity of a mask
FONT_SIZE, SMALLEST_FONT, PADDING = 9, 5, 0.2  # points, and the margin around a caption in font sizes
CROWDED = 30  # from so many instances on, lines and captions get smaller


def instances(image, detections=None, *, boxes=None, classes=None, scores=None, masks=None, class_names=None, ax=None):
    """Draws the instances on an image: mask, outline, box and a caption such as "dog 0.98", a colour for each.

    Captions stay inside the frame. One that would only fit on top of another is left out: first come, first served,
    so give the best first, as `detect` does.

    Args:
        image: (H, W) grey or (H, W, 3), uint8 or float (0..1 if nothing is above 1, else 0..255).
        detections: a `Detections`; stands for those of the four arrays below that are not given.
        boxes: (N, 4) y1, x1, y2, x2 in pixels.
        classes: (N,) class ids; negative for a crowd.
        scores: (N,).
        masks: (N, H, W) bool.
        class_names: names by class id, background first.
        ax: matplotlib Axes to draw on; without it a new figure, which is not pyplot's.

    Returns:
        The Axes; `.figure.savefig("found.png")` writes it.

    Raises:
        InputError: shapes that do not match, or a class without a name.
    """
    given = {"boxes": boxes, "classes": classes, "scores": scores, "masks": masks}
    image = _as_rgb(image)
    boxes, classes, scores, masks = _checked(image.shape[:2], detections, given)
    count = next((len(array) for array in (boxes, masks, classes, scores) if array is not None), 0)
    captions = _captions(count, classes, scores, class_names)
    if masks is not None:
        image = _fill(image, masks)
    ax = picture(image, ax)
    width = 1.6 if count < CROWDED else 0.8
    for i in range(count):
        if masks is not None:
            _outline(ax, masks[i], colour(i), width)
        if boxes is not None:
            _box(ax, boxes[i], colour(i), width)
    _place_captions(ax, captions, _where(boxes, masks, count), FONT_SIZE if count < CROWDED else 6)
    return ax


def picture(image, ax=None):
    """`image` on `ax`, or on a new figure of its shape: no frame, no ticks, one unit a pixel, (0, 0) its corner.

    Coordinates are those of boxes: pixel (y, x) covers y to y + 1 and x to x + 1. Returns the Axes.
    """
    image = _as_rgb(image)
    height, width = image.shape[:2]
    if ax is None:
        longest = max(height, width)
        size = [max(LONG_SIDE * side / longest, SHORT_SIDE) for side in (width, height)]
        ax = Figure(size, dpi=DPI).add_axes((0, 0, 1, 1))
    smoothing = "nearest" if max(height, width) <= SMALL else "antialiased"
    ax.imshow(image, extent=(0, width, height, 0), interpolation=smoothing)
    ax.set_axis_off()
    ax.set_autoscale_on(False)  # what is drawn later does not move the picture
    return ax


def colour(i):
    """Red, green, blue (3,) in 0..1 of instance `i`: colours for all kinds of sight, darker at each further round."""
    rounds, i = divmod(i, len(COLOURS))
    return np.array(matplotlib.colors.to_rgb(COLOURS[i])) * (1.0, 0.7, 0.5)[rounds % 3]


def _as_rgb(image):
    """Any grey or colour image array as (H, W, 3) uint8."""
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


def _checked(size, detections, given):
    """Boxes, classes, scores and masks as arrays or None, of one length and with masks of the image's size."""
    found = []
    for name, array in given.items():
        array = getattr(detections, name, None) if array is None else array
        found.append(None if array is None else np.asarray(array))
    boxes, classes, scores, masks = found
    if boxes is not None:
        boxes = boxes.reshape(-1, 4) if boxes.size == 0 else boxes
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise InputError(f"boxes has shape {boxes.shape}; give (N, 4): y1, x1, y2, x2.")
    if masks is not None:
        masks = masks.reshape(0, *size) if masks.size == 0 else masks
        if masks.ndim != 3 or masks.shape[1:] != tuple(size):
            raise InputError(
                f"masks has shape {masks.shape}, but the image is {size[0]} x {size[1]} pixels; "
                f"give (N, {size[0]}, {size[1]})."
            )
        masks = masks > 0.5
    lengths = {name: len(a) for name, a in zip(given, (boxes, classes, scores, masks), strict=True) if a is not None}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise InputError(f"The arrays differ in length ({told}); give one entry an instance in each.")
    return boxes, classes, scores, masks


def _captions(count, classes, scores, class_names):
    """What is written at each instance: name and score, as far as they are known."""
    names = [""] * count if classes is None else [_name(int(c), class_names) for c in classes]
    numbers = [""] * count if scores is None else [f"{score:.2f}" for score in scores]
    return [f"{name} {number}".strip() for name, number in zip(names, numbers, strict=True)]


def _name(class_id, class_names):
    if class_names is None:
        name = f"class {abs(class_id)}"
    elif abs(class_id) < len(class_names):
        name = str(class_names[abs(class_id)])
    else:
        raise InputError(f"class_names has {len(class_names)} names, none for class {class_id}; add it.")
    return f"{name} (crowd)" if class_id < 0 else name


def _fill(image, masks):
    """The image (H, W, 3) uint8 with each mask (N, H, W) laid over it in its colour, the first one on top."""
    filled = image.astype(np.float32)
    for i in reversed(range(len(masks))):
        filled[masks[i]] += FILL * (255 * colour(i) - filled[masks[i]])
    return np.rint(filled).astype(np.uint8)


def _outline(ax, mask, rgb, width):
    """The edge of a mask (H, W), between its pixels and their neighbours."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, left = rows[0], columns[0]
    cut = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)  # a pixel around, so that every edge closes
    y, x = np.arange(cut.shape[0]) + top - 0.5, np.arange(cut.shape[1]) + left - 0.5
    ax.contour(x, y, cut, levels=[0.5], colors=[rgb], linewidths=width)


def _box(ax, box, rgb, width):
    y1, x1, y2, x2 = box
    if np.isfinite(box).all():
        ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=rgb, linewidth=width))


def _where(boxes, masks, count):
    """Boxes (N, 4) for the captions to keep to: the instances' own, or the reach of their masks."""
    if boxes is not None:
        return boxes
    found = np.full((count, 4), np.nan)
    for i, mask in enumerate(() if masks is None else masks):
        y, x = np.nonzero(mask)
        if len(y):
            found[i] = y.min(), x.min(), y.max() + 1, x.max() + 1
    return found


def _place_captions(ax, captions, boxes, size):
    """Writes each caption at the first place near its box that is in the frame and free, or not at all."""
    ax.figure.canvas.figure.draw_without_rendering()  # settles where the axes lie
    frame, taken = ax.get_window_extent(), np.zeros((0, 4))
    for i, (caption, box) in enumerate(zip(captions, boxes, strict=True)):
        if not caption or not np.isfinite(box).all():
            continue
        text, shape = _caption(ax, caption, colour(i), size, frame)
        corners = ax.transData.transform([(box[1], box[2]), (box[3], box[0])])  # the picture's y points down
        place = _free_place(_places(*corners.ravel(), *shape, frame), shape, taken)
        if place is None:
            text.remove()
            continue
        taken = np.vstack([taken, [*place, *place + shape]])
        margin = (shape - _extent(text)) / 2
        text.set_position(ax.transData.inverted().transform(place + margin))


def _caption(ax, caption, rgb, size, frame):
    """The Text, not yet in its place, and its width and height in pixels of the screen, margin included.

    In a narrow frame it gets smaller, and in a very narrow one it loses its end.
    """
    ink = "black" if rgb**2.2 @ (0.2126, 0.7152, 0.0722) > 0.18 else "white"  # the better contrast of the two (WCAG)
    paper = {"facecolor": rgb, "edgecolor": "none", "boxstyle": f"square,pad={PADDING}"}
    text = ax.text(0, 0, caption, color=ink, fontsize=size, ha="left", va="bottom", bbox=paper, zorder=5)
    text.set_parse_math(False)  # a name may hold a dollar sign
    text.set_fontsize(max(SMALLEST_FONT, min(size, size * frame.width / _paper_size(text)[0])))
    while _paper_size(text)[0] > frame.width and len(caption) > 1:
        caption = caption[:-1]
        text.set_text(f"{caption}…")
    return text, _paper_size(text)


def _paper_size(text):
    return _extent(text) + _margin(text)


def _extent(text):
    box = text.get_window_extent()
    return np.array([box.width, box.height])


def _margin(text):
    """Pixels that the paper under a text adds to its width and height."""
    return 2 * PADDING * text.get_fontsize() * text.figure.dpi / 72


def _places(x1, y1, x2, y2, width, height, frame):
    """Lower left corners (K, 2) for a caption at a box, best first: above it, inside, below, then further away.

    All are screen pixels, with y upwards, and all are cut to the frame.
    """
    across = [x1, x2 - width, (x1 + x2 - width) / 2]
    near = [y2, y2 - height, y1 - height, y1]
    far = [y for step in range(1, 4) for y in (y2 + step * height, y2 - (1 + step) * height, y1 - (1 + step) * height)]
    places = np.array([(x, y) for y in (*near, *far) for x in across])
    low, high = np.array([frame.x0, frame.y0]), np.array([frame.x1 - width, frame.y1 - height])
    return np.maximum(np.minimum(places, high), low)


def _free_place(places, shape, taken):
    """The first of `places` (K, 2) where a caption of `shape` (2,) covers none of `taken` (T, 4), or None."""
    low, high = places[:, None], places[:, None] + shape
    free = ~((low < taken[:, 2:]) & (high > taken[:, :2])).all(2).any(1)
    return places[free.argmax()] if free.any() else None

"""Captions that stay inside the frame and do not cover each other."""

import numpy as np

SMALLEST_FONT, PADDING = 5, 0.2  # points, and the margin around a caption in font sizes


def place_captions(ax, captions, boxes, colours, size):
    """Writes each caption at the first place near its box that is in the frame and free, or not at all.

    captions (N,) str, boxes (N, 4) in the picture's pixels, colours (N, 3) of the paper under them, size in points.
    """
    ax.figure.canvas.figure.draw_without_rendering()  # settles where the axes lie
    frame, taken = ax.get_window_extent(), np.zeros((0, 4))
    for caption, box, rgb in zip(captions, boxes, colours, strict=True):
        if not caption or not np.isfinite(box).all():
            continue
        text, shape = _caption(ax, caption, np.asarray(rgb), size, frame)
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

"""The objects on an image: masks, boxes, keypoints and captions."""

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots.canvas import as_boxes, as_rgb, class_name, colour, halo, panels, picture
from maskrcnn_edu.plots.captions import place_captions

FILL = 0.4  # opacity of a mask
FONT_SIZE = 9  # points
CROWDED = 30  # from so many instances on, lines and captions get smaller
# COCO's person, from 0: the pairs of its 17 keypoints that "skeleton" joins in person_keypoints_val2017.json.
PERSON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
    (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip


def instances(
    image, found=None, *, boxes=None, classes=None, scores=None, masks=None, keypoints=None, skeleton=None,
    class_names=None, captions=None, colours=None, title=None, ax=None,
):  # fmt: skip
    """Draws the instances on an image: mask, outline, box and a caption such as "dog 0.98", a colour for each.

    Captions stay inside the frame. One that would only fit on top of another is left out: first come, first served,
    so give the best first, as `detect` does.

    Args:
        image: (H, W) grey or (H, W, 3), uint8 or float (0..1 if nothing is above 1, else 0..255).
        found: `Detections`, or a dataset's instances; stands for those of the five arrays below that are not given.
        boxes: (N, 4) y1, x1, y2, x2 in pixels of the image.
        classes: (N,) class ids; negative for a crowd.
        scores: (N,).
        masks: (N, H, W) bool.
        keypoints: (N, K, 3) x, y in pixels of the image, and 0 where there is none. Without scores, 1 is a hidden one
            and is drawn hollow, as in COCO.
        skeleton: pairs of keypoints (from 0) to join with limbs; by default COCO's, if there are 17.
        class_names: names by class id, background first.
        captions: (N,) texts in place of class and score.
        colours: (N,) matplotlib colours in place of our own.
        title: a line above the picture.
        ax: matplotlib Axes to draw on; without it a new figure, which is not pyplot's.

    Returns:
        The Axes; `.figure.savefig("found.png")` writes it.

    Raises:
        InputError: shapes that do not match, or a class without a name.
    """
    given = {"boxes": boxes, "classes": classes, "scores": scores, "masks": masks, "keypoints": keypoints}
    image = as_rgb(image)
    boxes, classes, scores, masks, keypoints = checked(image.shape[:2], found, given)
    count = next((len(array) for array in (boxes, masks, classes, scores, keypoints) if array is not None), 0)
    captions = _captions(count, classes, scores, class_names) if captions is None else list(captions)
    colours = [colour(i) for i in range(count)] if colours is None else [matplotlib.colors.to_rgb(c) for c in colours]
    if len(captions) != count or len(colours) != count:
        raise InputError(f"There are {count} instances, {len(captions)} captions and {len(colours)} colours.")
    if masks is not None:
        image = fill(image, masks, colours)
    ax = picture(image, ax, title)
    width = 1.6 if count < CROWDED else 0.8
    for i in range(count):
        if masks is not None:
            outline(ax, masks[i], colours[i], width)
        if boxes is not None:
            box_line(ax, boxes[i], colours[i], width)
        if keypoints is not None:
            _figure(ax, keypoints[i], scores is None, skeleton, colours[i])
    place_captions(ax, captions, _where(boxes, masks, count), colours, FONT_SIZE if count < CROWDED else 6)
    return ax


def top_masks(image, found=None, *, masks=None, classes=None, class_names=None, limit=4):
    """The image, and beside it the masks of the classes that cover most of it, an instance in each colour.

    Args:
        image, found, masks, classes, class_names: as in `instances`.
        limit: most classes to show.

    Returns:
        The Figure.

    Raises:
        InputError: as `instances`, or no masks and classes.
    """
    image = as_rgb(image)
    given = {"boxes": None, "classes": classes, "scores": None, "masks": masks, "keypoints": None}
    _, classes, _, masks, _ = checked(image.shape[:2], found, given)
    if masks is None or classes is None:
        raise InputError("top_masks needs masks and classes; give both, or detections of a model with a mask head.")
    covered = {c: float(masks[classes == c].any(0).mean()) for c in np.unique(classes)}
    best = sorted((c for c in covered if covered[c] > 0), key=lambda c: -covered[c])[:limit]
    titles = [f"{image.shape[0]} × {image.shape[1]} pixels"]
    titles += [f"{class_name(c, class_names)}: {covered[c]:.0%}" for c in best]
    sheet, grid = panels(titles, len(titles) if len(titles) <= 5 else 4, aspect=image.shape[0] / image.shape[1])
    picture(image, grid[0])
    for ax, c in zip(grid[1:], best, strict=True):
        chosen = np.flatnonzero(classes == c)
        paper = np.full_like(image, 235)
        for i in reversed(chosen):
            paper[masks[i]] = np.rint(255 * colour(i))
        picture(paper, ax)
    return sheet


def checked(size, found, given):
    """Arrays by name, or None, in the order of `given`: of one length, and with masks of the image's `size`."""
    arrays = {}
    for name, array in given.items():
        array = getattr(found, name, None) if array is None else array
        arrays[name] = None if array is None else np.asarray(array)
    if arrays["boxes"] is not None:
        arrays["boxes"] = as_boxes(arrays["boxes"])
    masks, keypoints = arrays["masks"], arrays["keypoints"]
    if masks is not None:
        masks = masks.reshape(0, *size) if masks.size == 0 else masks
        if masks.ndim != 3 or masks.shape[1:] != tuple(size):
            raise InputError(
                f"masks has shape {masks.shape}, but the image is {size[0]} x {size[1]} pixels; "
                f"give (N, {size[0]}, {size[1]})."
            )
        arrays["masks"] = masks > 0.5
    if keypoints is not None and (keypoints.ndim != 3 or keypoints.shape[2] != 3):
        raise InputError(f"keypoints has shape {keypoints.shape}; give (N, K, 3): x, y, visibility.")
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{n} {name}" for name, n in lengths.items())
        raise InputError(f"The arrays differ in length ({told}); give one entry an instance in each.")
    return list(arrays.values())


def fill(image, masks, colours):
    """The image (H, W, 3) uint8 with each mask (N, H, W) laid over it in its colour, the first one on top."""
    filled = image.astype(np.float32)
    for i in reversed(range(len(masks))):
        filled[masks[i]] += FILL * (255 * np.asarray(colours[i]) - filled[masks[i]])
    return np.rint(filled).astype(np.uint8)


def outline(ax, mask, rgb, width, style="solid", edged=False):
    """The edge of a mask (H, W), between its pixels and their neighbours."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return
    top, left = rows[0], columns[0]
    cut = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1)  # a pixel around, so that every edge closes
    y, x = np.arange(cut.shape[0]) + top - 0.5, np.arange(cut.shape[1]) + left - 0.5
    lines = ax.contour(x, y, cut, levels=[0.5], colors=[rgb], linewidths=width, linestyles=style)
    lines.set_path_effects(halo(width) if edged else None)


def box_line(ax, box, rgb, width, style="solid", edged=False, **options):
    """The rectangle of a box (4,); nothing for one that is not finite. `edged` adds a dark edge to the line."""
    y1, x1, y2, x2 = box
    if np.isfinite(box).all():
        line = Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=rgb, linewidth=width, linestyle=style)
        line.set(path_effects=halo(width) if edged else None, **options)
        ax.add_patch(line)


def _captions(count, classes, scores, class_names):
    """What is written at each instance: name and score, as far as they are known."""
    names = [""] * count if classes is None else [class_name(c, class_names) for c in classes]
    numbers = [""] * count if scores is None else [f"{score:.2f}" for score in scores]
    return [f"{name} {number}".strip() for name, number in zip(names, numbers, strict=True)]


def _figure(ax, points, is_truth, skeleton, rgb):
    """One object's keypoints (K, 3), joined by its limbs."""
    if skeleton is None:
        skeleton = PERSON if len(points) == 17 else ()
    drawn = (points[:, 2] > 0) & np.isfinite(points).all(1)
    limbs = [points[[a, b], :2] for a, b in skeleton if drawn[a] and drawn[b]]
    ax.add_collection(LineCollection(limbs, colors=[rgb], linewidths=2, path_effects=halo(2), zorder=3))
    hollow = is_truth & (points[:, 2] == 1)
    for chosen, inside in ((drawn & ~hollow, rgb), (drawn & hollow, "white")):
        ax.scatter(*points[chosen, :2].T, s=16, color=[inside], edgecolors="black", linewidths=0.8, zorder=4)


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

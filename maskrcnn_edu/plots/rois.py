"""Regions of interest: what the mask head sees, answers, and is taught."""

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots.canvas import as_boxes, as_rgb, class_name, colour, panels, picture
from maskrcnn_edu.plots.regions import check_lengths


def rois_with_masks(image, rois, masks, *, classes=None, scores=None, class_names=None, limit=16, columns=8):
    """A grid of what the mask head sees and answers: each RoI cut out, with its mask laid over it cell by cell.

    Args:
        image: the image that the RoIs lie on: `Stages.image` for the boxes of `Stages`.
        rois: (R, 4) in pixels of the image.
        masks: (R, m, m), 0 to 1.
        classes, scores, class_names: as in `instances`.
        limit: draw at most so many.
        columns: RoIs side by side.

    Returns:
        The Figure.

    Raises:
        InputError: arrays that do not match.
    """
    image, rois, masks = as_rgb(image), as_boxes(rois, "rois"), _grids(masks)
    check_lengths(rois, masks=masks, classes=classes, scores=scores)
    shown = min(len(rois), limit)
    names = [""] * shown if classes is None else [class_name(c, class_names) for c in classes[:shown]]
    numbers = [""] * shown if scores is None else [f"{score:.2f}" for score in scores[:shown]]
    titles = [f"{name} {number}".strip() for name, number in zip(names, numbers, strict=True)]
    sheet, grid = panels(titles or ["no regions of interest"], columns)
    for i in range(shown):
        _cut_out(grid[i], image, rois[i])
        _lay_over(grid[i], rois[i], masks[i], colour(i))
    return sheet


def mask_targets(taught, *, limit=8):
    """What the mask head is taught: each positive RoI of a training image above the m x m mask it is to answer.

    Args:
        taught: a `TrainingStages`, from `mr.stages.training_stages(model, batch, i)`.
        limit: draw at most so many.

    Returns:
        The Figure.

    Raises:
        InputError: the model has no mask head.
    """
    if taught.masks is None:
        raise InputError("The model has no mask head, so it has no mask targets; set Config.mask_head.")
    image, shown = as_rgb(taught.image), min(len(taught.masks), limit)
    names = [class_name(c, taught.class_names) for c in taught.roi_classes[:shown]]
    sides = f"{taught.masks.shape[1]} × {taught.masks.shape[2]}"
    sheet, grid = panels((names + [sides] * shown) or ["no positive RoI in this image"], max(shown, 1))
    for i in range(shown):
        _cut_out(grid[i], image, taught.rois[i])
        covered = taught.masks[i][..., None]
        picture(np.rint(255 * colour(4) * covered + 235 * (1 - covered)).astype(np.uint8), grid[shown + i])
    return sheet


def _grids(masks):
    masks = np.nan_to_num(np.asarray(masks, np.float32))
    if masks.ndim != 3:
        raise InputError(f"masks has shape {masks.shape}; give (R, m, m).")
    return masks


def _cut_out(ax, image, roi):
    """The part of the image under a RoI, on axes that keep the RoI's coordinates."""
    height, width = image.shape[:2]
    (top, left), (bottom, right) = np.floor(roi[:2]), np.ceil(roi[2:])
    top, left, bottom, right = (int(v) for v in np.clip([top, left, bottom, right], 0, [height, width, height, width]))
    if bottom > top and right > left:
        ax.imshow(image[top:bottom, left:right], extent=(left, right, bottom, top), interpolation="nearest")
    ax.set(xlim=(roi[1], max(roi[3], roi[1] + 1)), ylim=(max(roi[2], roi[0] + 1), roi[0]), aspect="equal")


def _lay_over(ax, roi, mask, rgb):
    """A mask (m, m) over its RoI: its cells in colour, and the line where it crosses one half."""
    paint = np.empty((*mask.shape, 4))
    paint[..., :3], paint[..., 3] = rgb, 0.6 * np.clip(mask, 0, 1)
    y1, x1, y2, x2 = roi
    ax.imshow(paint, extent=(x1, x2, y2, y1), interpolation="nearest", aspect="equal")
    y, x = ((np.arange(side) + 0.5) / side for side in mask.shape)
    if mask.min() < 0.5 <= mask.max():
        ax.contour(x1 + x * (x2 - x1), y1 + y * (y2 - y1), mask, levels=[0.5], colors="white", linewidths=1.2)
    ax.set(xlim=(x1, max(x2, x1 + 1)), ylim=(max(y2, y1 + 1), y1))

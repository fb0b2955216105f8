"""Data: what a dataset holds, and what training sees of an image."""

import dataclasses

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots.canvas import DPI, GREY, LINE_COLOURS, WIDTH, Sheet, panels
from maskrcnn_edu.plots.objects import instances

MOST_CLASSES = 15


def dataset_overview(dataset, *, limit=1000, config=None):
    """What a dataset holds: image sizes, instances of an image and of a class, sizes and aspect ratios of boxes.

    Args:
        dataset: a Dataset.
        limit: only the first so many images.
        config: a Config; box sizes are then those that the network sees, with a line at each size of its anchors.

    Returns:
        The Figure. Crowds are not counted.

    Raises:
        InputError: a dataset without images.
    """
    if not len(dataset):
        raise InputError(f"{type(dataset).__name__} has no images; give at least one.")
    sizes, counts, classes, sides = _measure(dataset, min(len(dataset), limit), config)
    sheet = Sheet((WIDTH, 5.2), dpi=DPI, layout="constrained")
    axes = sheet.subplots(2, 3).ravel()
    part = "" if len(dataset) <= limit else f" (of {len(dataset):,})"
    sheet.suptitle(f"{type(dataset).__name__}: {len(sizes):,} images{part}, {len(classes):,} instances", fontsize=10)
    _scatter_sizes(axes[0], sizes)
    axes[1].hist(
        counts, bins=np.arange(counts.max() + 2) - 0.5 if counts.max() < 40 else 30, color=LINE_COLOURS[0], rwidth=0.9
    )
    axes[1].set(title="instances in an image", ylabel="images")
    axes[1].locator_params(integer=True)
    _class_bars(axes[2], classes, dataset.class_names)
    heights, widths = sides.T
    _log_histogram(axes[3], np.sqrt(heights * widths), "box size: √area, pixels", LINE_COLOURS[0])
    for size in config.anchor_sizes if config else ():
        axes[3].axvline(size, color=LINE_COLOURS[4], linestyle="dashed", linewidth=1.2)
    if config:
        axes[3].set_title("box size in the network\n(dashed: anchors)")
    _log_histogram(axes[4], heights / widths, "aspect ratio: height / width", LINE_COLOURS[2], (0.45, 2.2))
    for ratio in config.anchor_ratios if config else (1,):
        axes[4].axvline(ratio, color=LINE_COLOURS[4] if config else GREY, linestyle="dashed", linewidth=1.2)
    axes[5].scatter(widths, heights, s=5, color=LINE_COLOURS[0], alpha=0.4, linewidths=0)
    axes[5].set(title="boxes", xlabel="width, pixels", ylabel="height, pixels", xlim=(0, None), ylim=(0, None))
    for ax in axes:
        ax.title.set_fontsize(9)
        ax.xaxis.label.set_fontsize(8)
        ax.yaxis.label.set_fontsize(8)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    return sheet


def augmentations(dataset, config, i=0, *, count=8, seed=0, columns=4):
    """One image as training sees it again and again: `count` elements of `mr.loader`, with their objects.

    Args:
        dataset: a Dataset.
        config: the Config that says what is done to training images.
        i: index of the image.
        count: how many times to draw it.
        seed: of the loader.
        columns: pictures side by side.

    Returns:
        The Figure. Pictures are the network's input without its padding.

    Raises:
        InputError: an image that the dataset does not have, or what `mr.loader` refuses.
    """
    from maskrcnn_edu.datasets import Subset, loader
    from maskrcnn_edu.masks import paste

    if count < 1:
        raise InputError(f"count is {count}; give a whole number from 1 on.")
    batches = loader(Subset(dataset, [i]), dataclasses.replace(config, batch_size=count), seed=seed)
    batch = next(iter(batches))
    height, width = (int(side) for side in batch["image_size"].max(0))
    sheet, grid = panels([""] * count, columns, aspect=height / width)
    for k, ax in enumerate(grid):
        objects = batch["classes"][k] != 0
        boxes, classes, masks = batch["boxes"][k][objects], batch["classes"][k][objects], None
        image = batch["image"][k][:height, :width]
        if "masks" in batch:
            masks = paste(batch["masks"][k][objects] / 255.0, boxes, height, width)
        points = {"keypoints": batch["keypoints"][k][objects]} if "keypoints" in batch else {}
        instances(image, boxes=boxes, classes=classes, masks=masks, captions=[""] * len(boxes), ax=ax, **points)
    return sheet


def _measure(dataset, count, config):
    """Image sizes (n, 2), instances of each image (n,), classes (N,) and box sides (N, 2)."""
    from maskrcnn_edu.datasets.transforms import network_size

    sizes, counts, classes, sides = [], [], [np.zeros(0, int)], [np.zeros((0, 2))]
    for i in range(count):
        size = dataset.image(i).shape[:2]
        found = dataset.instances(i, size)
        objects = found.classes > 0
        scale = np.array(network_size(*size, config)) / size if config else 1.0
        sizes.append(size)
        counts.append(np.count_nonzero(objects))
        classes.append(found.classes[objects])
        sides.append((found.boxes[objects, 2:] - found.boxes[objects, :2]) * scale)
    return np.array(sizes), np.array(counts), np.concatenate(classes), np.concatenate(sides)


def _scatter_sizes(ax, sizes):
    """A dot for each size of image, as large as it is frequent."""
    unique, often = np.unique(sizes, axis=0, return_counts=True)
    ax.scatter(unique[:, 1], unique[:, 0], s=10 + 150 * often / often.max(), color=LINE_COLOURS[0], alpha=0.5)
    if len(unique) == 1:
        ax.annotate(
            f"all {unique[0, 0]} × {unique[0, 1]}",
            unique[0, ::-1],
            xytext=(0, -20),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    limit = 1.15 * sizes.max()
    ax.set(
        title="image sizes",
        xlabel="width, pixels",
        ylabel="height, pixels",
        xlim=(0, limit),
        ylim=(0, limit),
        aspect="equal",
    )


def _class_bars(ax, classes, names):
    counts = np.bincount(classes, minlength=len(names))
    present = np.flatnonzero(counts)
    best = present[np.argsort(counts[present], kind="stable")][-MOST_CLASSES:]
    ax.barh([str(names[c]) for c in best], counts[best], color=LINE_COLOURS[2])
    part = f" (of {len(present)})" if len(present) > len(best) else ""
    ax.set_title("instances of each class" if len(best) == len(present) else f"the {len(best)} largest classes{part}")


def _log_histogram(ax, values, title, rgb, least=(np.inf, 0)):
    """A histogram over powers of two, whose axis reaches over `least` at least."""
    ax.set(title=title, xscale="log", ylabel="boxes")
    values = values[(values > 0) & np.isfinite(values)]
    if len(values):
        ax.hist(values, bins=np.geomspace(values.min() / 1.05, values.max() * 1.05, 30), color=rgb)
        low, high = min(values.min() / 1.2, least[0]), max(values.max() * 1.2, least[1])
        ticks = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
        ax.set(xlim=(low, high), xticks=ticks, xticklabels=[f"{t:g}" if t >= 1 else f"1/{1 / t:g}" for t in ticks])
    ax.minorticks_off()

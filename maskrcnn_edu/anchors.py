"""Anchors: the reference boxes of the region proposal network, one set in every cell of every pyramid level."""

import numpy as np

from maskrcnn_edu.errors import InputError

# The seed names a box by its first and last pixel inside the network: (y1, x1, y2 - 1, x2 - 1).
LAST_PIXEL = np.float32([0, 0, 1, 1])


def cell_anchors(size, ratios):
    """Anchors around the origin, one a ratio (height / width), each of area size**2: (A, 4) float32."""
    ratios = np.asarray(ratios, np.float64)
    h, w = size * np.sqrt(ratios), size / np.sqrt(ratios)
    return (np.stack([-h, -w, h, w], axis=-1) / 2).astype(np.float32)


def rounded_level_anchors(image_size, grid, size, ratios):
    """Anchors of one level as torchvision makes them: corners rounded, strides the image's size // the grid's."""
    y, x = np.meshgrid(
        *(np.arange(cells) * (side // cells) for side, cells in zip(image_size, grid, strict=True)), indexing="ij"
    )
    corner = np.stack([y, x, y, x], axis=-1).astype(np.float32)
    return (corner[:, :, None] + np.round(cell_anchors(size, ratios))).reshape(-1, 4)


def level_anchors(grid, stride, size, ratios):
    """Anchors of one level: (grid_h * grid_w * A, 4) float32, row by row, cell by cell, ratio by ratio.

    They are centred on the corner of their cell, at multiples of the stride (Detectron2 with offset 0, torchvision).
    """
    y, x = np.meshgrid(np.arange(grid[0]) * stride, np.arange(grid[1]) * stride, indexing="ij")
    corner = np.stack([y, x, y, x], axis=-1).astype(np.float32)
    return (corner[:, :, None] + cell_anchors(size, ratios)).reshape(-1, 4)


def anchors_by_level(image_size, config):
    """One (n, 4) array a level, finest first, for a network input of `image_size` (height, width) pixels.

    Raises InputError if the size is not a multiple of config.size_divisor, as a padded image's is.
    """
    height, width = (int(side) for side in image_size)
    if min(height, width) < 1 or height % config.size_divisor or width % config.size_divisor:
        raise InputError(
            f"image_size is ({height}, {width}); the network's input is padded to a multiple of "
            f"size_divisor = {config.size_divisor}."
        )
    levels = []
    for stride, size in zip(config.strides, config.anchor_sizes, strict=True):
        grid = -(-height // stride), -(-width // stride)
        if config.anchor_rounding:
            levels.append(rounded_level_anchors((height, width), grid, size, config.anchor_ratios))
        else:
            levels.append(level_anchors(grid, stride, size, config.anchor_ratios))
    if config.box_frame == "matterport":
        levels = [boxes - LAST_PIXEL for boxes in levels]
    return levels


def pyramid_anchors(image_size, config):
    """All anchors for a network input of `image_size` (height, width) pixels: (N, 4) float32, finest level first.

    FPN section 4.1: one size a level, three ratios. Anchors may reach over the image's edge.
    """
    return np.concatenate(anchors_by_level(image_size, config))

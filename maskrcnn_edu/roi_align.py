"""Reading a fixed-size feature out of a box: RoIPool, crop-and-resize and RoIAlign, three samplers with one interface.

Each takes feature (B, H, W, C), boxes (B, R, 4) in image pixels and the stride of the feature map, and returns
(B, R, P, P, C). `pool_from_pyramid` reads every RoI from the level that fits its size.
"""

from functools import partial
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from maskrcnn_edu.anchors import LAST_PIXEL
from maskrcnn_edu.backend import as_float, take_rows
from maskrcnn_edu.boxes import area

MAX_ADAPTIVE_SAMPLES = 64  # of a bin with adaptive sampling; RoIs that want more get them more sparsely
DENSE_CELLS = 4096  # sheets of up to this many cells are read by two matrix products, larger ones by gathering


def roi_align(feature, boxes, stride, output_size, sampling_ratio=2, aligned=True):
    """RoIAlign (paper, section 3): bilinear samples at exact places, averaged over each bin; nothing is rounded.

    feature (B, H, W, C), boxes (B, R, 4) pixels -> (B, R, P, P, C). Each bin is averaged over sampling_ratio x
    sampling_ratio samples; 0 takes one a cell, up to MAX_ADAPTIVE_SAMPLES a bin (Detectron2). `aligned`: cell centres
    lie at .5 (Detectron2); without it at whole numbers, and RoIs are at least one cell wide (torchvision's Mask R-CNN).
    """
    return _on_one_level(_align(sampling_ratio, aligned), feature, boxes, stride, output_size)


def _align(sampling_ratio, aligned):
    """RoIAlign as a reader of sheets."""
    if sampling_ratio == 0:
        return partial(_adaptive, aligned=aligned)
    return partial(_bilinear, partial(align_samples, sampling_ratio=sampling_ratio, aligned=aligned))


def crop_and_resize(feature, boxes, stride, output_size):
    """The seed's sampler: one bilinear sample a bin, from corner to corner of the box, 0 outside the map.

    Boxes and cells are taken as the seed takes them, (box - [0, 0, 1, 1]) / (image size - 1): the first and the last
    samples lie on the box's corner pixels, and the map's corner cells on the image's.
    """
    return _on_one_level(partial(_bilinear, corner_samples), feature, boxes, stride, output_size)


def roi_pool(feature, boxes, stride, output_size):
    """RoIPool (Fast R-CNN, section 2.1): boxes and bins are rounded to whole cells, and each bin takes its maximum.

    Empty bins, outside the map, are 0. RoIs are read one by one: this sampler is for comparison, not for speed.
    """
    return _on_one_level(_maximum, feature, boxes, stride, output_size)


def pool_from_pyramid(pyramid, boxes, output_size, config):
    """Features of RoIs, each from the level of its size: levels (B, H, W, C), boxes (B, R, 4) -> (B, R, P, P, C).

    The extra level (P6) serves the RPN alone.
    """
    sheet, windows = _lay_out(pyramid[: len(config.stage_blocks)], config.strides)
    if config.roi_level_rounding == "nearest":
        own = nearest_roi_level(boxes, config, config.strides[0] * pyramid[0].shape[1])
    else:
        own = roi_level(boxes, config)
    if config.box_frame == "matterport":
        boxes = as_float(boxes) + LAST_PIXEL
    samplers = {
        "roi_align": _align(config.sampling_ratio, config.roi_aligned),
        "crop_and_resize": partial(_bilinear, corner_samples),
        "roi_pool": _maximum,
    }
    read = samplers[config.roi_sampler]
    return read(sheet, as_float(boxes), Window(*(ops.take(values, own) for values in windows)), output_size)


def roi_level(boxes, config):
    """Level (0 = finest) that a RoI (..., 4) is read from: floor(k0 + log2(sqrt(area) / 224)) (FPN, equation 1)."""
    side = ops.sqrt(ops.maximum(area(boxes), 1e-12))  # log2 of an empty slot stays finite
    level = ops.floor(config.roi_canonical_level + ops.log2(side / config.roi_canonical_size + 1e-8))
    return ops.cast(ops.clip(level - 2, 0, len(config.stage_blocks) - 1), "int32")


def nearest_roi_level(boxes, config, image_side):
    """The seed's level: the nearest, not the one below; sides count relative to the last pixel, image_side - 1."""
    side = ops.sqrt(ops.maximum(area(boxes), 1e-12)) * (image_side / (image_side - 1))
    level = config.roi_canonical_level + ops.round(ops.log2(side / config.roi_canonical_size))
    return ops.cast(ops.clip(level - 2, 0, len(config.stage_blocks) - 1), "int32")


class Window(NamedTuple):
    """The part of a sheet that a RoI is read from, (B, R) float32 each: a level's stride, first row, height, width."""

    stride: object
    top: object
    height: object
    width: object


def _lay_out(levels, strides):
    """All levels below one another on one sheet, left-aligned, so that one pass serves RoIs of every level.

    -> sheet (B, H of all, W of the widest, C) and a Window of arrays (levels,).
    """
    heights, widths = [level.shape[1] for level in levels], [level.shape[2] for level in levels]
    sheet = [ops.pad(level, [(0, 0), (0, 0), (0, max(widths) - level.shape[2]), (0, 0)]) for level in levels]
    tops = [sum(heights[:i]) for i in range(len(levels))]
    columns = (strides[: len(levels)], tops, heights, widths)
    return ops.concatenate(sheet, axis=1), Window(*(np.array(column, np.float32) for column in columns))


def _on_one_level(read, feature, boxes, stride, output_size):
    """The public samplers: the whole feature map is every RoI's window."""
    feature, boxes = ops.convert_to_tensor(feature), as_float(boxes)
    if "int" in keras.backend.standardize_dtype(feature.dtype):
        feature = as_float(feature)  # weights between 0 and 1 would all become 0
    height, width = feature.shape[1:3]
    window = Window(*(ops.full_like(boxes[..., 0], float(value)) for value in (stride, 0, height, width)))
    return read(feature, boxes, window, output_size)


def _bilinear(place, sheet, boxes, window, output_size):
    """Both bilinear samplers: they differ only in where they place their samples along an axis."""
    y, y_weight = place(boxes[..., 0], boxes[..., 2], window.stride, output_size, window.height)
    x, x_weight = place(boxes[..., 1], boxes[..., 3], window.stride, output_size, window.width)
    y = y + window.top[..., None, None]
    read = _read_dense if sheet.shape[1] * sheet.shape[2] <= DENSE_CELLS else _read_gathered
    return read(sheet, (y, y_weight), (x, x_weight))


def align_samples(low, high, stride, bins, cells, sampling_ratio, aligned):
    """Where RoIAlign samples along one axis: (B, R) each -> positions and weights (B, R, P, S).

    low and high are in pixels, positions in cells. The weights of a bin's S samples are 1 / S, 0 for those more than
    a cell outside the map.
    """
    start, bin_size = (v[..., None, None] for v in _align_bins(low, high, stride, bins, aligned))
    bin_index = ops.cast(ops.arange(bins), "float32")[:, None]
    sample_index = ops.cast(ops.arange(sampling_ratio), "float32")
    position = start + bin_size * (bin_index + (sample_index + 0.5) / sampling_ratio)
    return _on_map(position, cells[..., None, None], 1.0 / sampling_ratio)


def _align_bins(low, high, stride, bins, aligned):
    """Start of a RoI and size of its bins along one axis, in cells: (B, R) each -> (B, R), (B, R)."""
    start, length = low / stride - (0.5 if aligned else 0.0), (high - low) / stride
    return start, (length if aligned else ops.maximum(length, 1.0)) / bins


def _on_map(position, cells, weight):
    """Samples less than a cell outside the map move to its edge; those farther out weigh nothing."""
    counts = ops.logical_and(position >= -1.0, position <= cells)
    return ops.minimum(ops.maximum(position, 0.0), cells - 1.0), ops.where(counts, weight, 0.0)


def _adaptive(sheet, boxes, window, output_size, aligned):
    """RoIAlign with about one sample a cell: every RoI has its own number of samples, rows x columns.

    Sample k of a RoI with c columns of samples is in row k // c, column k % c, so one loop serves RoIs of all shapes:
    its length is bounded by their area, which the level bounds, and not by the longest side, which nothing does.
    """
    start_y, bin_y = _align_bins(boxes[..., 0], boxes[..., 2], window.stride, output_size, aligned)
    start_x, bin_x = _align_bins(boxes[..., 1], boxes[..., 3], window.stride, output_size, aligned)
    most = float(MAX_ADAPTIVE_SAMPLES)
    rows, columns = (ops.clip(ops.ceil(size), 0.0, most) for size in (bin_y, bin_x))  # an empty RoI has none
    columns = ops.minimum(columns, ops.floor(most / ops.maximum(rows, 1.0)))
    flat, width = ops.reshape(sheet, (-1, sheet.shape[3])), sheet.shape[2]
    batch_start = ops.reshape(ops.arange(ops.shape(sheet)[0]) * (sheet.shape[1] * width), (-1, 1, 1, 1))
    bin_index = ops.cast(ops.arange(output_size), "float32")

    def place(start, bin_size, index, count, cells):
        share = ((index + 0.5) / ops.maximum(count, 1.0))[..., None]
        weight = ops.where(index < count, 1.0 / ops.maximum(count, 1.0), 0.0)[..., None]
        return _on_map(start[..., None] + bin_size[..., None] * (bin_index + share), cells[..., None], weight)

    def add_sample(k, total):
        row = ops.floor(ops.cast(k, "float32") / ops.maximum(columns, 1.0))
        y, y_weight = place(start_y, bin_y, row, rows, window.height)
        x, x_weight = place(start_x, bin_x, ops.cast(k, "float32") - row * columns, columns, window.width)
        y_taps = _taps((y + window.top[..., None])[..., None], y_weight[..., None], sheet.shape[1])
        x_taps = _taps(x[..., None], x_weight[..., None], width)
        return _add_taps(flat, batch_start, width, y_taps, x_taps, total)

    shape = (*ops.shape(boxes)[:2], output_size, output_size, sheet.shape[3])
    return ops.fori_loop(0, MAX_ADAPTIVE_SAMPLES, add_sample, ops.zeros(shape, sheet.dtype))


def corner_samples(low, high, stride, bins, cells):
    """Where `crop_and_resize` samples along one axis: positions in cells and weights (B, R, P, 1)."""
    last_pixel, last_cell = stride * cells - 1.0, cells - 1.0
    first, last = low / last_pixel * last_cell, (high - 1.0) / last_pixel * last_cell
    share = ops.convert_to_tensor(np.linspace(0, 1, bins, dtype=np.float32) if bins > 1 else np.float32([0.5]))
    position = first[..., None] + (last - first)[..., None] * share
    last_cell = last_cell[..., None]
    weight = ops.where(ops.logical_and(position >= 0.0, position <= last_cell), 1.0, 0.0)
    return ops.minimum(ops.maximum(position, 0.0), last_cell)[..., None], weight[..., None]


def interpolation_matrix(position, weight, cells):
    """Bilinear interpolation along one axis as a matrix: (..., P, S) -> (..., P, cells).

    Row p says how much of every cell goes into bin p: a sample gives each cell 1 - its distance, if that is positive.
    """
    distance = ops.abs(position[..., None] - ops.cast(ops.arange(cells), "float32"))
    return ops.sum(weight[..., None] * ops.maximum(1.0 - distance, 0.0), axis=-2)


def _read_dense(sheet, rows, cols):
    """out = Wy F Wx^T. Bilinear sampling and the average over a bin both separate into rows and columns."""
    wy = ops.cast(interpolation_matrix(*rows, sheet.shape[1]), sheet.dtype)
    wx = ops.cast(interpolation_matrix(*cols, sheet.shape[2]), sheet.dtype)
    lines = ops.einsum("brph,bhwc->brpwc", wy, sheet)
    return ops.matmul(wx[:, :, None], lines)


def _read_gathered(sheet, rows, cols):
    """The same sum without the zeros of the matrices: the 2 S cells around a bin's samples on each axis, gathered.

    Equal to `_read_dense` (tests/test_roi_align.py); on large maps the matrices would be almost all zeros.
    """
    height, width, channels = sheet.shape[1:]
    batch_start = ops.reshape(ops.arange(ops.shape(sheet)[0]) * (height * width), (-1, 1, 1, 1))
    flat = ops.reshape(sheet, (-1, channels))
    return _add_taps(flat, batch_start, width, _taps(*rows, height), _taps(*cols, width), 0.0)


def _add_taps(flat, batch_start, width, rows, cols, total):
    """Adds what the cells at rows x cols (index and weight, (B, R, P, T) each) give to `total` (B, R, P, P, C)."""
    (row, row_weight), (col, col_weight) = rows, cols
    for i in range(row.shape[-1]):
        for j in range(col.shape[-1]):
            cell = batch_start + row[..., i][..., :, None] * width + col[..., j][..., None, :]
            weight = row_weight[..., i][..., :, None] * col_weight[..., j][..., None, :]
            total = total + ops.cast(weight, flat.dtype)[..., None] * take_rows(flat, cell)
    return total


def _taps(position, weight, cells):
    """The two cells around each sample and their weights: (B, R, P, S) -> index, weight (B, R, P, 2 S)."""
    below = ops.floor(position)
    share = position - below
    index = ops.concatenate([below, ops.minimum(below + 1.0, cells - 1.0)], axis=-1)
    weights = ops.concatenate([weight * (1.0 - share), weight * share], axis=-1)
    return ops.cast(index, "int32"), weights


def _maximum(sheet, boxes, window, output_size):
    """RoIPool, one RoI at a time: the largest value over each bin's rows, then over its columns."""
    rows = _pool_bins(
        boxes[..., 0], boxes[..., 2], window.stride, output_size, window.height, window.top, sheet.shape[1]
    )
    left = ops.zeros_like(window.top)
    cols = _pool_bins(boxes[..., 1], boxes[..., 3], window.stride, output_size, window.width, left, sheet.shape[2])

    def of_image(inputs):
        image, *bins = inputs

        def of_roi(bins):
            in_row, in_col = bins  # (P, H), (P, W)
            x = ops.where(in_row[:, :, None, None], image[None], -float("inf"))
            x = ops.max(x, axis=1)  # (P, W, C)
            x = ops.where(in_col[None, :, :, None], x[:, None], -float("inf"))
            return ops.max(x, axis=2)  # (P, P, C)

        return ops.map(of_roi, tuple(bins))

    pooled = ops.map(of_image, (as_float(sheet), rows, cols))
    return ops.cast(ops.where(ops.isfinite(pooled), pooled, 0.0), sheet.dtype)


def _pool_bins(low, high, stride, bins, cells, first_cell, sheet_cells):
    """Cells of the sheet that each bin covers along one axis: (B, R) each -> (B, R, P, sheet_cells) bool."""
    start = _round(low / stride)
    length = ops.maximum(_round(high / stride) - start + 1, 1.0)
    # The divisor is no constant on purpose: XLA would multiply by 1 / bins, whose rounding moves the edge of a bin.
    bin_size = (length / ops.where(length > 0, float(bins), 1.0))[..., None]
    edge = ops.cast(ops.arange(bins), "float32")
    first, last = start[..., None] + ops.floor(edge * bin_size), start[..., None] + ops.ceil((edge + 1) * bin_size)
    first = ops.maximum(first, 0.0) + first_cell[..., None]
    last = ops.minimum(last, cells[..., None]) + first_cell[..., None]
    cell = ops.cast(ops.arange(sheet_cells), "float32")
    return ops.logical_and(cell >= first[..., None], cell < last[..., None])


def _round(x):
    """To the nearest whole number, halves away from zero as in C; ops.round takes halves to even."""
    return ops.sign(x) * ops.floor(ops.abs(x) + 0.5)

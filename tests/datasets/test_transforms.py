"""Resize, flip, crop and pad."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_edu.datasets.dataset import boxes_from_masks
from maskrcnn_edu.datasets.transforms import crop_masks, flip, pad, resize, resized_size


# Height, width, and what Detectron2's ResizeShortestEdge(800, 1333) makes of them.
@pytest.mark.parametrize(
    "size, expected",
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((333, 500), (800, 1201)),
        ((375, 1242), (402, 1333)),
        ((2000, 300), (1333, 200)),
        ((1, 5000), (1, 1333)),
        ((800, 800), (800, 800)),
    ],
)
def test_resized_size_is_detectron2s(size, expected):
    assert resized_size(*size, 800, 1333) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 1000), st.integers(0, 1000))
def test_resized_size_stays_inside(height, width, min_size, more):
    h, w = resized_size(height, width, min_size, min_size + more)
    assert 1 <= min(h, w) <= min_size and max(h, w) <= min_size + more
    assert min(h, w) == min_size or max(h, w) == min_size + more


def test_resize_keeps_means_when_it_shrinks():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    small = resize(image, 4, 6)
    assert small.shape == (4, 6, 3) and small.dtype == np.uint8
    np.testing.assert_allclose(small.mean((0, 1)), image.mean((0, 1)), atol=4)
    assert small.std() < 20  # without antialias the noise would stay


def scene():
    masks = np.zeros((2, 40, 50), bool)
    masks[0, 5:25, 10:20] = True
    masks[1, 30:38, 0:33] = np.tri(8, 33, 5, dtype=bool)
    return masks


def test_flip_turns_everything_alike():
    masks = scene()
    image = np.repeat(masks.any(0)[..., None], 3, -1).astype(np.uint8)
    flipped, boxes, turned = flip(image, boxes_from_masks(masks), masks)
    np.testing.assert_array_equal(boxes, boxes_from_masks(turned))
    np.testing.assert_array_equal(flipped[..., 0], turned.any(0))
    assert boxes.dtype == np.float32
    again = flip(flipped, boxes, turned)
    np.testing.assert_array_equal(again[1], boxes_from_masks(masks))


def test_flip_of_cropped_masks_is_crop_of_flipped_masks():
    masks = scene()
    boxes = boxes_from_masks(masks)
    image = np.zeros((40, 50, 3), np.uint8)
    _, _, cropped_first = flip(image, boxes, crop_masks(masks, boxes, 14))
    _, turned_boxes, turned = flip(image, boxes, masks)
    np.testing.assert_array_equal(cropped_first, crop_masks(turned, turned_boxes, 14))


def test_flip_of_an_image_without_objects():
    _, boxes, masks = flip(np.zeros((4, 5, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros((0, 4, 5), bool))
    assert boxes.shape == (0, 4) and masks.shape == (0, 4, 5)


def test_crop_of_a_full_box_is_full_and_coverage_is_right():
    masks = scene()
    crops = crop_masks(masks, boxes_from_masks(masks), 28)
    assert crops.shape == (2, 28, 28) and crops.dtype == np.uint8
    assert (crops[0] == 255).all()
    assert crops[1].mean() / 255 == pytest.approx(masks[1, 30:38, :13].mean(), abs=0.02)


def test_crop_follows_fractions_of_pixels():
    masks = np.zeros((1, 10, 10), bool)
    masks[0, 2:4, 2:4] = True
    # Cells of 2 x 2 pixels that start half a pixel before the mask.
    crop = crop_masks(masks, np.array([[1.5, 1.5, 5.5, 5.5]], np.float32), 4)[0] / 255
    assert crop[0, 0] < crop[1, 1] and crop[1, 1] == 1 and crop[3, 3] == 0
    np.testing.assert_array_equal(crop, crop.T)


def test_pad_puts_zeros_right_and_below():
    padded = pad(np.full((3, 5, 3), 9, np.uint8), 8, 6)
    assert padded.shape == (8, 6, 3) and (padded[:3, :5] == 9).all() and padded.sum() == 9 * 45

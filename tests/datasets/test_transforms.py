"""Resize, flip, crop and pad."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskrcnn_edu.config import Config
from maskrcnn_edu.datasets.dataset import boxes_from_masks
from maskrcnn_edu.datasets.transforms import crop_boxes, crop_masks, pad, resize, resized_size, resized_window


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


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_every_number_of_channels_is_resized_alike(channels):
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 6), dtype=np.uint8)
    for part in ({}, {"box": np.array([3.5, 4.2, 33.1, 49.9])}):
        resized = resize(image[..., :channels], 23, 61, **part)
        alone = [resize(image[..., c : c + 1], 23, 61, **part)[..., 0] for c in range(channels)]
        np.testing.assert_array_equal(resized, np.stack(alone, -1))


@pytest.mark.parametrize("family", ["detectron2", "torchvision", "matterport"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_window_shows_its_part_of_the_resized_image(family, channels):
    config = Config.tiny(resize=family, image_channels=channels)
    image = np.random.default_rng(0).integers(0, 256, (40, 50, channels), dtype=np.uint8)
    for size in ((90, 120), (20, 21)):
        whole = resized_window(image, size, (0, 0, *size), config)
        part = resized_window(image, size, (3, 5, 17, 21), config)
        assert whole.shape == (*size, channels) and whole.dtype == (np.float32 if family == "torchvision" else np.uint8)
        np.testing.assert_allclose(part, whole[3:17, 5:21], atol=1)  # a step of rounding


def test_cut_objects_get_the_box_of_what_is_left():
    masks = scene()
    boxes = boxes_from_masks(masks)
    given = boxes + np.float32([-0.25, 0, 0, 0.25])  # a dataset's own, that stay where the object does
    np.testing.assert_array_equal(crop_boxes(given, masks, (0, 0, 40, 50)), given)
    np.testing.assert_array_equal(crop_boxes(boxes, masks, (0, 0, 15.5, 50)), [[5, 10, 15.5, 20], [0, 0, 0, 0]])
    cropped = crop_boxes(boxes, masks, (7, 3, 36, 50))
    shown = boxes_from_masks(masks[:, 7:36, 3:50]) + np.float32([7, 3, 7, 3])
    np.testing.assert_array_equal(cropped, shown)


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

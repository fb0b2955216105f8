"""Matching against torchvision, sampling by its properties, mask targets by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import maskrcnn_edu as mr
from maskrcnn_edu import boxes, targets
from maskrcnn_edu.backend import random_keys
from maskrcnn_edu.datasets.dataset import boxes_from_masks
from maskrcnn_edu.datasets.transforms import crop_masks


def as_torchvision(matched, label):
    """torchvision's form: the index of the object, -1 below the threshold, -2 between."""
    label = np.asarray(label)
    return np.where(label == targets.POSITIVE, matched, np.where(label == targets.NEGATIVE, -1, -2))


def test_matching_is_torchvisions(oracle):
    overlap = boxes.iou(oracle["matcher_gt"], oracle["matcher_boxes"])
    found = targets.match(overlap, positive_threshold=0.7, negative_threshold=0.3, low_quality=True)
    np.testing.assert_array_equal(as_torchvision(*found), oracle["matcher_rpn"])
    found = targets.match(overlap, positive_threshold=0.5, negative_threshold=0.5)
    np.testing.assert_array_equal(as_torchvision(*found), oracle["matcher_roi"])


def test_matching_by_hand():
    # Two objects, four boxes. Object 1 reaches no threshold, so its best box (3) is positive all the same; it keeps
    # learning the object that it fits best itself.
    overlap = np.float32([[0.8, 0.5, 0.1, 0.25], [0.0, 0.1, 0.1, 0.2]])
    matched, label = targets.match(overlap, positive_threshold=0.7, negative_threshold=0.3, low_quality=True)
    np.testing.assert_array_equal(label, [1, -1, 0, 1])
    np.testing.assert_array_equal(matched, [0, 0, 0, 0])


def test_padding_and_crowds_are_neither_positive_nor_negative():
    gt = np.float32([[[0, 0, 10, 10], [20, 20, 60, 60], [0, 0, 0, 0]]])
    classes = np.int32([[1, -2, 0]])  # an object, a crowd, an empty slot
    candidates = np.float32([[[0, 0, 10, 9], [22, 22, 40, 40], [50, 50, 100, 100], [70, 0, 90, 20], [0, 0, 0, 0]]])
    _, label = targets.match_with_crowds(candidates, gt, classes, positive_threshold=0.5, negative_threshold=0.5)
    np.testing.assert_array_equal(label, [[1, -1, 0, 0, 0]])
    config = mr.Config.tiny(roi_batch_size=8)
    truth = {"boxes": gt, "classes": classes, "seed": np.int32([3])}
    found = {name: np.asarray(value) for name, value in targets.roi_targets(candidates, truth, config).items()}
    # The object itself, the box that fits it, and two negatives. The empty slots take no part.
    np.testing.assert_array_equal(found["label"], [[1, 1, 0, 0, -1, -1, -1, -1]])
    np.testing.assert_array_equal(found["class"], [[1, 1, 0, 0, 0, 0, 0, 0]])
    assert not any((roi == [22, 22, 40, 40]).all() for roi in found["rois"][0, :4])


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 20))
@settings(max_examples=30, deadline=None)
def test_sampling_is_balanced_full_and_without_repeats(seed, count, max_positive):
    rng = np.random.default_rng(seed)
    label = rng.integers(-1, 2, (2, 60))
    index, chosen = (
        np.asarray(x) for x in targets.sample(label, count, max_positive, rng.uniform(0.01, 0.99, (2, 60)).astype("f4"))
    )
    for image in range(2):
        used = chosen[image] != targets.IGNORED
        np.testing.assert_array_equal(label[image][index[image][used]], chosen[image][used])
        assert len(set(index[image][used])) == used.sum()
        positives = min((label[image] == 1).sum(), max_positive, count)
        assert (chosen[image] == 1).sum() == positives
        assert (chosen[image] == 0).sum() == min((label[image] == 0).sum(), count - positives)
        assert (np.diff(chosen[image]) <= 0).all()  # positives, then negatives, then empty slots


def test_random_keys_depend_on_seed_and_place_alone():
    keys = np.asarray(random_keys(np.int32([1, 2, 1]), 5000, stream=1))
    np.testing.assert_array_equal(keys[0], keys[2])
    assert abs(np.corrcoef(keys[0], keys[1])[0, 1]) < 0.05
    assert abs(np.corrcoef(keys[0], np.asarray(random_keys(np.int32([1]), 5000, stream=2))[0])[0, 1]) < 0.05
    assert keys.min() > 0 and keys.max() < 1 and abs(keys.mean() - 0.5) < 0.02
    np.testing.assert_allclose(np.histogram(keys[0], 10, (0, 1))[0], 500, atol=90)
    # The same on every backend and in every release, so that a run can be repeated.
    np.testing.assert_allclose(keys[0, :3], [0.44126549, 0.16517064, 0.37399986], atol=1e-6)


def test_mask_target_by_hand():
    # A 4 x 4 mask, left half set, of a box of 8 x 8 pixels; seen through the box, its right half, and twice the box.
    mask = np.zeros((1, 3, 4, 4), np.uint8)
    mask[..., :2] = 255
    box = np.float32([[[0, 0, 8, 8]] * 3])
    rois = np.float32([[[0, 0, 8, 8], [0, 4, 8, 8], [-4, -4, 12, 12]]])
    found = np.asarray(targets.mask_targets(mask, box, rois, 4))[0]
    np.testing.assert_array_equal(found[0], [[1, 1, 0, 0]] * 4)
    np.testing.assert_array_equal(found[1], np.zeros((4, 4)))
    np.testing.assert_array_equal(found[2], [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]])


def test_mask_target_agrees_with_the_mask_in_pixels():
    yy, xx = np.mgrid[:64, :64] + 0.5
    disc = (yy - 30) ** 2 + (xx - 34) ** 2 < 20**2
    box = boxes_from_masks(disc[None])
    crop = crop_masks(disc[None], box, 56)
    roi = np.float32([[[16, 12, 58, 50]]])
    found = np.asarray(targets.mask_targets(crop[None], box[None], roi, 28))[0, 0]
    y, x = 16 + (np.arange(28) + 0.5) * 42 / 28, 12 + (np.arange(28) + 0.5) * 38 / 28
    expected = (y[:, None] - 30) ** 2 + (x[None] - 34) ** 2 < 20**2
    assert (found == expected).mean() > 0.98


@pytest.mark.parametrize("count", [0, 1])
def test_an_image_without_objects_gives_negatives_only(count):
    config = mr.Config.tiny()
    truth = {
        "boxes": np.zeros((1, 4, 4), "f4"),
        "classes": np.int32([[-1 * count, 0, 0, 0]]),
        "seed": np.int32([0]),
    }
    proposals = np.float32([[[0, 0, 20, 20], [40, 40, 90, 90]]])
    label = np.asarray(targets.roi_targets(proposals, truth, config)["label"])
    assert (label == targets.NEGATIVE).sum() == 2 and not (label == targets.POSITIVE).any()

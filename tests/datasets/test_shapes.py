"""ShapesDataset."""

import numpy as np
import pytest

from maskrcnn_edu.datasets import ShapesDataset
from maskrcnn_edu.datasets.shapes import TEST_SEED, TRAIN_SEED, _place, _shape
from maskrcnn_edu.errors import InputError


def overlaps(boxes):
    y1, x1, y2, x2 = boxes.T
    height = np.minimum.outer(y2, y2) - np.maximum.outer(y1, y1)
    width = np.minimum.outer(x2, x2) - np.maximum.outer(x1, x1)
    return np.triu((height > 0) & (width > 0), 1).any()


def test_pictures_are_what_the_docstring_says():
    dataset = ShapesDataset(500)
    found = [dataset.instances(i, (128, 128)) for i in range(500)]
    counts = np.bincount([len(f.classes) for f in found], minlength=6)
    assert counts[0] == 0 and len(counts) == 6 and counts[1:].min() > 50
    assert {c for f in found for c in f.classes} == {1, 2, 3}
    assert np.mean([overlaps(f.boxes) for f in found]) > 0.3
    for f in found:
        assert (f.masks.sum(0) <= 1).all(), "masks hold the visible part only"
        assert (f.boxes[:, 2:] - f.boxes[:, :2] <= 64).all()


@pytest.mark.parametrize("size", [32, 128, 257])
def test_image_and_masks_fit_each_other(size):
    dataset = ShapesDataset(4, size=size)
    for i in range(4):
        image = dataset.image(i).astype(float)
        masks, classes = dataset.load_masks(i)
        assert image.shape == (size, size, 3) and len(masks) == len(classes)
        background = image[~masks.any(0)].mean(0)
        assert all(np.linalg.norm(image[mask].mean(0) - background) > 30 for mask in masks)


def test_earlier_shapes_stay_in_sight():
    rng = np.random.default_rng(0)
    labels = np.zeros((128, 128), np.uint8)
    first = _shape(rng, 2, 128)
    labels[first] = 1
    for _ in range(300):
        new = _place(rng, 2, labels, [first.sum()])
        assert (first & ~new).sum() >= 0.3 * first.sum()


@pytest.mark.parametrize("kind, share", [(1, np.pi / 4), (2, 1), (3, 1 / 2)])
def test_shapes_fill_their_share_of_the_box(kind, share):
    rng = np.random.default_rng(kind)
    for _ in range(50):
        shape = _shape(rng, kind, 256)
        y, x = np.nonzero(shape)
        height, width = np.ptp(y) + 1, np.ptp(x) + 1
        assert shape.sum() / (height * width) == pytest.approx(share, abs=0.04)
        assert abs(height - width) <= 2 and 28 <= height <= 128


def test_image_i_depends_on_seed_and_i_only():
    few, many = ShapesDataset(5), ShapesDataset(50)
    many.image(40)
    for i in (4, 0):
        np.testing.assert_array_equal(few.image(i), many.image(i))
        np.testing.assert_array_equal(few.load_masks(i)[0], many.load_masks(i)[0])


def test_train_and_test_pictures_differ():
    train, test = ({ShapesDataset(30, seed).image(i).tobytes() for i in range(30)} for seed in (TRAIN_SEED, TEST_SEED))
    assert len(train) == len(test) == 30 and not train & test


def test_a_changed_image_does_not_change_the_dataset():
    dataset = ShapesDataset(1)
    dataset.image(0)[:] = 0
    assert dataset.image(0).any()


def test_index_beyond_the_end():
    with pytest.raises(IndexError):
        ShapesDataset(3).image(3)


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"count": 0}, "count"),
        ({"count": 2.5}, "count"),
        ({"count": 1, "seed": -1}, "seed"),
        ({"count": 1, "size": 31}, "size"),
    ],
)
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(InputError, match=f"ShapesDataset: {name}"):
        ShapesDataset(**arguments)

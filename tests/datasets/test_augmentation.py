"""Augmentation: image, boxes, masks and keypoints stay together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from maskrcnn_edu.config import Config
from maskrcnn_edu.datasets import augmentation
from maskrcnn_edu.datasets.augmentation import Scene
from maskrcnn_edu.datasets.dataset import boxes_from_masks
from maskrcnn_edu.datasets.transforms import crop_masks
from maskrcnn_edu.errors import InputError


def scene(seed=0, objects=3, size=(40, 60), channels=3, keypoints=2):
    """Rectangles with a pixel missing, each of its own grey; keypoints on pixel middles of the object."""
    rng = np.random.default_rng(seed)
    masks, points = np.zeros((objects, *size), bool), np.zeros((objects, keypoints, 3), np.float32)
    image = rng.integers(0, 60, (*size, channels), dtype=np.uint8)
    for k in range(objects):
        y, x = rng.integers(0, size[0] - 8), rng.integers(0, size[1] - 8)
        masks[k, y : y + rng.integers(2, 9), x : x + rng.integers(2, 9)] = True
        image[masks[k]] = 100 + 30 * k
        ys, xs = np.nonzero(masks[k])
        chosen = rng.integers(len(ys), size=keypoints)
        points[k] = np.stack([xs[chosen] + 0.5, ys[chosen] + 0.5, rng.integers(0, 3, keypoints)], 1)
    return Scene(image, boxes_from_masks(masks), np.arange(1, objects + 1, dtype=np.int32), masks, points)


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def check(changed):
    """Boxes are those of the masks, and keypoints lie on their object."""
    np.testing.assert_array_equal(changed.boxes, boxes_from_masks(changed.masks))
    assert changed.boxes.dtype == changed.keypoints.dtype == np.float32 and changed.masks.dtype == bool
    for mask, points in zip(changed.masks, changed.keypoints, strict=True):
        for x, y, _ in points:
            assert mask[int(y), int(x)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4), st.integers(0, 5))
def test_turns_and_flips_keep_objects_together(seed, objects, times):
    one = scene(seed, objects)
    turned = augmentation.turn(one, times)
    check(turned)
    np.testing.assert_array_equal(turned.image, np.rot90(one.image, times))
    np.testing.assert_array_equal(turned.masks, np.rot90(one.masks, times, (1, 2)))
    check(augmentation.flip(one, [1, 0]))


def test_four_turns_and_two_flips_change_nothing():
    one = scene()
    assert same(augmentation.turn(augmentation.turn(one, 3), 1), one) and not same(augmentation.turn(one, 2), one)
    flipped = augmentation.flip(one, [1, 0])
    assert same(augmentation.flip(flipped, [1, 0]), one) and not same(flipped, one)
    # Across and upside down is half a turn, but for the names of left and right.
    upside_down = augmentation.turn(augmentation.flip(augmentation.turn(one, 1), [0, 1]), 3)
    assert same(augmentation.flip(upside_down, [0, 1]), augmentation.turn(one, 2))


def test_flip_of_cropped_masks_is_crop_of_flipped_masks():
    one = scene()
    flipped = augmentation.flip(one, [0, 1])
    cropped = crop_masks(one.masks, one.boxes, 14)[:, :, ::-1]
    np.testing.assert_array_equal(cropped, crop_masks(flipped.masks, flipped.boxes, 14))


def test_an_image_without_objects_is_turned_and_flipped():
    empty = scene(objects=0, keypoints=0)
    turned = augmentation.turn(augmentation.flip(empty, []), 1)
    assert turned.boxes.shape == (0, 4) and turned.masks.shape == (0, 60, 40)


class Drawn:
    """Random numbers that say what they are told."""

    def __init__(self, *values):
        self.values = list(values)

    def uniform(self, *_):
        return self.values.pop(0)

    random = uniform


@pytest.mark.parametrize("change, enhancer", [(0, "Brightness"), (1, "Contrast"), (2, "Color")])
def test_colours_are_those_of_pillow(change, enhancer):
    image = np.asarray(
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)).resize((80, 64))
    )
    draw = np.zeros(3)
    draw[change] = 0.5
    found = augmentation.jitter_colours(image, Drawn(draw), 0.8, 0.8, 0.8)
    expected = getattr(ImageEnhance, enhancer)(Image.fromarray(image)).enhance(1.4)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 2 and not np.array_equal(found, image)


def test_colours_of_other_channels():
    image = np.random.default_rng(0).integers(0, 256, (8, 10, 5), np.uint8)
    changed = augmentation.jitter_colours(image, np.random.default_rng(1), 0.4, 0.4, 0)
    assert changed.shape == image.shape and changed.dtype == np.uint8 and not np.array_equal(changed, image)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(0, 10**6))
def test_large_scale_jitter_is_a_window_of_the_square(height, width, seed):
    rng = np.random.default_rng(seed)
    (h, w), (y1, x1, y2, x2) = augmentation.jittered_view(height, width, rng, (0.1, 2.0), 256)
    assert 0 <= y1 < y2 <= h and 0 <= x1 < x2 <= w
    assert (y2 - y1, x2 - x1) == (min(h, 256), min(w, 256))  # cropped where larger, whole where smaller
    scale = max(h, w) / 256
    assert 0.09 < scale < 2.01 and abs(h / w - height / width) <= (1 + height / width) / min(h, w)


def test_large_scale_jitter_by_hand():
    assert augmentation.jittered_view(480, 640, Drawn(1.0, 0.9), (0.1, 2.0), 1024) == ((768, 1024), (0, 0, 768, 1024))
    found = augmentation.jittered_view(480, 640, Drawn(2.0, np.array([0.5, 0.25])), (0.1, 2.0), 1024)
    assert found == ((1536, 2048), (256, 256, 1280, 1280))


def test_the_short_side_is_drawn_from_a_list():
    config = Config.coco(image_min_sizes_training=(640, 800))
    rng = np.random.default_rng(0)
    assert {augmentation.view(480, 640, rng, config)[0] for _ in range(20)} == {(640, 853), (800, 1067)}


@pytest.mark.parametrize("size, window", [((80, 120), (0, 0, 80, 120)), ((96, 144), (31, 17, 90, 140))])
def test_what_is_seen_has_its_masks_and_boxes(size, window):
    one = scene(3, objects=5)
    found = augmentation.seen(one, size, window, Config.tiny())
    y1, x1, y2, x2 = window
    assert found.image.shape == (y2 - y1, x2 - x1, 3)
    np.testing.assert_array_equal(found.boxes, boxes_from_masks(found.masks))
    # A resize of the whole mask, cut out afterwards.
    for k, mask in zip(found.classes - 1, found.masks, strict=True):
        whole = np.asarray(Image.fromarray(one.masks[k].astype(np.uint8) * 255).resize(size[::-1], 2)) > 127
        assert np.count_nonzero(whole[y1:y2, x1:x2] != mask) <= 4
    gone = np.setdiff1d(one.classes, found.classes) - 1
    scale = size[0] / 40
    for y_1, x_1, y_2, x_2 in one.boxes[gone] * scale:
        assert y_2 <= y1 + 1 or x_2 <= x1 + 1 or y_1 >= y2 - 1 or x_1 >= x2 - 1


def test_keypoints_outside_are_not_labelled():
    points = np.float32([[[10, 5, 2], [10, 5, 0], [40, 5, 2], [20, 20, 1]]])
    found = augmentation.seen_keypoints(points, np.float32([2, 3, 2, 3]), (6, 20, 100, 90), (1, 2))
    np.testing.assert_array_equal(found, [[[12, 5, 2], [0, 0, 0], [0, 0, 0], [42, 35, 1]]])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 4), st.integers(0, 4), st.sampled_from([(40, 60), (50, 30)]))
def test_pasted_objects_are_in_front(seed, objects, others, size):
    one, other = scene(seed, objects), scene(seed + 1, others, size)
    other = other._replace(classes=other.classes + 100)
    result = augmentation.paste(one, other, np.random.default_rng(seed), (7, 8, 9))
    np.testing.assert_array_equal(result.boxes, boxes_from_masks(result.masks))
    assert result.masks.any((1, 2)).all()
    pasted = result.masks[np.isin(result.classes, other.classes)].any(0)
    for source, part in ((one.image, ~pasted), (other.image, pasted)):
        height, width = np.minimum(source.shape[:2], part.shape)
        part = part[:height, :width]
        np.testing.assert_array_equal(result.image[:height, :width][part], source[:height, :width][part])


def test_paste_by_hand():
    one, other = scene(objects=2, keypoints=1), scene(objects=1, size=(50, 30), keypoints=1)
    masks = np.zeros((2, 40, 60), bool)
    masks[0, 0:10, 0:10] = masks[1, 20:30, 20:30] = True
    one = one._replace(masks=masks, boxes=boxes_from_masks(masks), keypoints=np.float32([[[2, 3, 2]], [[9, 9, 2]]]))
    front = np.zeros((1, 50, 30), bool)
    front[0, 0:10, 0:7] = front[0, 20:50, 10:30] = True
    other = other._replace(masks=front, boxes=boxes_from_masks(front), classes=np.int32([9]))

    result = augmentation.paste(one, other, Drawn(np.array([0.4])), (1, 2, 3))
    assert result.classes.tolist() == [1, 9]  # the second is hidden
    np.testing.assert_array_equal(result.boxes, [[0, 7, 10, 10], [0, 0, 50, 30]])
    assert result.keypoints[0, 0].tolist() == [2, 3, 1]  # labelled, and now hidden
    np.testing.assert_array_equal(result.image[:50, :30][front[0]], other.image[front[0]])
    assert (result.image[40:, 30:] == [1, 2, 3]).all() and result.image.shape == (50, 60, 3)
    assert augmentation.paste(one, other, Drawn(np.array([0.6])), (1, 2, 3)) is one  # none was chosen
    crowd = other._replace(classes=np.int32([-9]))
    assert augmentation.paste(one, crowd, Drawn(np.array([0.4])), (1, 2, 3)) is one


def test_an_object_of_which_little_is_left_goes():
    one = scene(objects=1)
    masks = np.zeros((1, 40, 60), bool)
    masks[0, :10, :10] = True
    front = masks.copy()
    for left, kept in ((9, 1), (10, 2)):
        front[0].flat[:] = masks[0].flat
        front[0, 9, 10 - left : 10] = False
        pair = [one._replace(masks=m, boxes=boxes_from_masks(m)) for m in (masks, front)]
        assert len(augmentation.paste(*pair, Drawn(np.array([0.0])), (0, 0, 0)).classes) == kept


def test_a_users_function():
    one = scene(objects=3)

    def cut(image, masks):
        masks = masks[:, 10:].copy()
        masks[1] = False
        return image[10:], masks

    found = augmentation.apply(cut, one, None)
    assert 2 not in found.classes and found.image.shape == (30, 60, 3)
    np.testing.assert_array_equal(found.boxes, boxes_from_masks(found.masks))

    def noisy(image, masks, rng):
        return image + rng.integers(0, 9, image.shape, dtype=np.uint8), masks

    images = [augmentation.apply(noisy, one, np.random.default_rng(seed)).image for seed in (0, 0, 1)]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


@pytest.mark.parametrize(
    "function, words",
    [
        (lambda image, masks: image, "ndarray"),
        (lambda image, masks: (image / 255, masks), "float64"),
        (lambda image, masks: (image[..., :1], masks), r"\(height, width, 3\)"),
        (lambda image, masks: (image, masks[1:]), "all False"),
        (lambda image, masks: (image[1:], masks), r"\(3, 39, 60\)"),
        (lambda image, masks: (image, masks.astype(np.uint8)), "uint8"),
    ],
)
def test_a_users_mistakes_are_named(function, words):
    with pytest.raises(InputError, match=f"augment <lambda> returned .*{words}"):
        augmentation.apply(function, scene(), None)

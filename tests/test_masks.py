"""Pasting against Detectron2 and torchvision, and by hand."""

import numpy as np
import pytest

from maskrcnn_edu import masks


@pytest.mark.parametrize("mode", ["detectron2", "torchvision"])
def test_paste_is_the_reference_systems(oracle, mode):
    height, width = oracle["paste_size"]
    expected = np.unpackbits(oracle[f"paste_{mode}"], axis=-1, count=width).astype(bool)
    found = masks.paste(oracle["paste_masks"], oracle["paste_boxes"], height, width, mode=mode)
    assert found.shape == expected.shape == (12, height, width)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine & theirs).sum() >= 0.999 * (mine | theirs).sum()


def test_paste_by_hand():
    left = np.zeros((1, 4, 4), "f4")
    left[..., :2] = 1
    found = masks.paste(left, [[2, 3, 6, 11]], 8, 12)
    expected = np.zeros((8, 12), bool)
    expected[2:6, 3:7] = True
    np.testing.assert_array_equal(found[0], expected)


def test_paste_stays_in_reach_of_its_box():
    boxes = np.float32([[-5, -5, 3, 4], [90, 90, 200, 200], [20, 20, 20, 30], [40, 40, 30, 30], [np.nan, 0, 5, 5]])
    for mode in ("detectron2", "torchvision"):
        found = masks.paste(np.ones((5, 28, 28), "f4"), boxes, 60, 70, mode=mode)
        assert found[0, :3, :4].all() and not found[0, 5:].any() and not found[0, :, 6:].any()
        assert not found[1].any() and not found[4].any()
    assert masks.paste(np.zeros((0, 28, 28)), np.zeros((0, 4)), 5, 6).shape == (0, 5, 6)


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'nearest'"):
        masks.paste(np.ones((1, 2, 2)), [[0, 0, 2, 2]], 4, 4, mode="nearest")


def test_run_lengths_come_back():
    from pycocotools import mask as coco_mask

    disc = (np.hypot(*(np.mgrid[:30, :40] - 15)) < 9)[None]
    (run,) = masks.encode_rle(disc)
    assert run["size"] == [30, 40] and isinstance(run["counts"], str)
    np.testing.assert_array_equal(coco_mask.decode(run), disc[0])

"""Anchors against hand-computed ones and the two reference systems."""

import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import anchors


def test_cell_anchors_by_hand():
    found = anchors.cell_anchors(32, (0.5, 1, 2))
    np.testing.assert_allclose(found[1], [-16, -16, 16, 16])
    height, width = found[2, 2] - found[2, 0], found[2, 3] - found[2, 1]
    assert height / width == pytest.approx(2) and height * width == pytest.approx(1024)


def test_anchors_are_detectron2s_and_torchvisions(oracle):
    config = mr.Config.tiny(anchor_sizes=(32, 64, 128))  # the oracle's grids: 16 x 24, 8 x 12, 4 x 6 on 64 x 96 pixels
    found = anchors.pyramid_anchors((64, 96), config)
    np.testing.assert_allclose(found, oracle["anchors_detectron2"], atol=1e-4)
    np.testing.assert_allclose(np.round(found), np.round(oracle["anchors_torchvision"]), atol=1.01)  # those are rounded


def test_levels_follow_one_another():
    config = mr.Config.coco()
    found = anchors.anchors_by_level((64, 128), config)
    assert [len(level) for level in found] == [16 * 32 * 3, 8 * 16 * 3, 4 * 8 * 3, 2 * 4 * 3, 1 * 2 * 3]
    np.testing.assert_array_equal(anchors.pyramid_anchors((64, 128), config), np.concatenate(found))
    # Row by row: the second cell's square anchor is one stride to the right of the first's.
    np.testing.assert_allclose(found[0][4] - found[0][1], [0, 4, 0, 4])


def test_a_size_that_the_network_cannot_take_is_named():
    with pytest.raises(ValueError, match=r"\(100, 128\).*size_divisor"):
        anchors.pyramid_anchors((100, 128), mr.Config.coco())

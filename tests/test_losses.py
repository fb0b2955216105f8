"""The five losses by hand, and their empty sets."""

import keras
import numpy as np
import pytest

from maskrcnn_edu import losses


def test_smooth_l1_by_hand():
    difference = np.float32([-2, -0.25, 0, 0.5, 3])
    np.testing.assert_allclose(losses.smooth_l1(difference, 0, 0), [2, 0.25, 0, 0.5, 3])
    np.testing.assert_allclose(losses.smooth_l1(difference, 0, 1.0), [1.5, 0.03125, 0, 0.125, 2.5])
    np.testing.assert_allclose(losses.smooth_l1(np.float32([0.1]), 0, 1 / 9), [0.5 * 0.01 * 9], rtol=1e-5)


def test_binary_cross_entropy_is_keras_and_does_not_overflow():
    logits, target = np.float32([-3, -0.1, 0, 2]), np.float32([0, 1, 1, 0])
    expected = keras.ops.binary_crossentropy(target, logits, from_logits=True)
    np.testing.assert_allclose(losses.binary_cross_entropy(logits, target), expected, rtol=1e-5)
    np.testing.assert_allclose(
        losses.binary_cross_entropy(np.float32([-200, 200]), np.float32([1, 1])), [200, 0], atol=1e-5
    )


def test_rpn_losses_count_the_sampled_anchors():
    logits, label = np.float32([[0, 0, 0, 90]]), np.int32([[1, 0, 0, -1]])  # the fourth took no part
    assert float(losses.rpn_class_loss(logits, label)) == pytest.approx(np.log(2))
    deltas = np.ones((1, 4, 4), "f4")
    assert float(losses.rpn_box_loss(deltas, 0 * deltas, label, 0)) == pytest.approx(4 / 3)


def test_class_loss_by_hand():
    logits = np.float32([[[0, 0, 0], [np.log(6), np.log(3), 0], [5, 5, 99]]])
    loss = losses.class_loss(logits, np.int32([[2, 1, 0]]), np.int32([[1, 1, -1]]))
    assert float(loss) == pytest.approx((np.log(3) + np.log(10 / 3)) / 2, rel=1e-5)


def test_box_loss_looks_at_the_true_class_alone():
    deltas = np.zeros((1, 3, 2, 4), "f4")
    deltas[0, 0, 1] = 0.5  # right class of the positive
    deltas[0, 0, 0] = deltas[0, 1] = 1000  # wrong class, and a background RoI
    loss = losses.box_loss(deltas, np.zeros((1, 3, 4), "f4"), np.int32([[2, 0, 0]]), np.int32([[1, 0, -1]]), 0)
    assert float(loss) == pytest.approx(4 * 0.5 / 2)


def test_mask_loss_by_hand():
    logits, target = np.zeros((1, 3, 2, 2), "f4"), np.ones((1, 3, 2, 2), "f4")
    logits[0, 1] = np.log(3)
    loss = losses.mask_loss(logits, target, np.array([[True, True, False]]))
    assert float(loss) == pytest.approx((np.log(2) + np.log(4 / 3)) / 2, rel=1e-5)


def test_softmax_masks_compete():
    logits = np.zeros((1, 1, 1, 2, 3), "f4")
    target = np.float32([[[[1, 0]]]])  # the left pixel is of class 2, the right one background
    logits[..., 0, 2], logits[..., 1, 0] = np.log(2), np.log(4)
    loss = losses.softmax_mask_loss(logits, target, np.int32([[2]]), np.array([[True]]))
    assert float(loss) == pytest.approx((-np.log(2 / 4) - np.log(4 / 6)) / 2, rel=1e-5)


def test_an_empty_set_gives_zero():
    label = np.full((1, 3), -1)
    nan = np.full((1, 3, 4), np.nan, "f4")
    assert float(losses.rpn_class_loss(nan[..., 0], label)) == 0
    assert float(losses.rpn_box_loss(nan, nan, label, 0)) == 0
    assert float(losses.class_loss(np.zeros((1, 3, 2), "f4"), np.zeros((1, 3), int), label)) == 0
    assert float(losses.box_loss(np.zeros((1, 3, 1, 4), "f4"), nan, np.zeros((1, 3), int), label, 0)) == 0
    assert float(losses.mask_loss(nan[..., None], nan[..., None], np.zeros((1, 3), bool))) == 0

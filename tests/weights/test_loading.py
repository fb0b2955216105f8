"""Weights of three channels in models of other channels: what becomes of the first layer, and that it is said."""

import numpy as np
import pytest
from test_published import NARROW, seeded_tensors

import maskrcnn_edu as mr
from maskrcnn_edu.weights import loading


@pytest.fixture(scope="module")
def tensors():
    return seeded_tensors("d2_mask_rcnn_R_50_FPN_3x")


def stem(model, image):
    """What the first convolution makes of an image, which has no mean and deviation here."""
    kernel = np.array(model.backbone.get_layer("stem").kernel)
    return np.einsum("hwc,hwco->o", image[:7, :7].astype(np.float64), kernel)


def loaded(tensors, channels):
    model = mr.MaskRCNN(mr.Config.detectron2(**NARROW, image_channels=channels))
    return model, loading.load(model, tensors)


def test_a_grey_image_gets_what_it_gets_as_rgb(tensors):
    grey = np.random.default_rng(0).integers(0, 256, (7, 7, 1))
    (one, said), (three, unsaid) = loaded(tensors, 1), loaded(tensors, 3)
    np.testing.assert_allclose(stem(one, grey), stem(three, np.tile(grey, 3)), rtol=1e-4, atol=1e-2)
    assert "backbone/stem/kernel: the file's three channels are added up" in str(said)
    assert not unsaid.first_layer and "stem" not in str(unsaid)
    assert said.filled == unsaid.filled


def test_more_channels_get_the_mean_and_keep_the_size(tensors):
    grey = np.random.default_rng(0).integers(0, 256, (7, 7, 1))
    (five, said), (three, _) = loaded(tensors, 5), loaded(tensors, 3)
    np.testing.assert_allclose(stem(five, np.tile(grey, 5)), stem(three, np.tile(grey, 3)), rtol=1e-4, atol=1e-2)
    assert "each of the 5 channels has the mean of the file's three, times 3 / 5" in str(said)

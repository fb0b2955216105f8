"""The three samplers against torchvision, by hand, and against one another."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

import maskrcnn_edu as mr
from maskrcnn_edu import roi_align

READERS = ["dense", "gathered"]


@pytest.fixture(params=READERS)
def reader(request, monkeypatch):
    """Runs a test with both ways of reading, whatever the size of the map."""
    monkeypatch.setattr(roi_align, "DENSE_CELLS", 10**9 if request.param == "dense" else 0)


def per_image(recorded, oracle):
    """The oracle lists RoIs with their image's index; ours come by image: (40, P, P, C) -> (2, 20, P, P, C)."""
    index = oracle["roi_batch"].astype(int)
    return np.stack([recorded[index == image] for image in range(2)])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [2, 0])
def test_roi_align_is_torchvisions(oracle, reader, aligned, sampling):
    expected = per_image(oracle[f"roi_align_aligned{int(aligned)}_sampling{sampling or -1}"], oracle)
    found = roi_align.roi_align(
        oracle["roi_feature"], per_image(oracle["roi_boxes"], oracle), 8, 7, sampling_ratio=sampling, aligned=aligned
    )
    finite = np.isfinite(expected)
    assert finite.mean() > 0.95
    np.testing.assert_allclose(np.asarray(found)[finite], expected[finite], atol=1e-4)
    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="takes the gradient with TensorFlow's tape")
def test_gradient_is_torchvisions(oracle, reader):
    import tensorflow as tf

    feature = tf.constant(oracle["roi_feature"])
    rois = oracle["roi_boxes"][:8]
    mine = [np.flatnonzero(oracle["roi_batch"][:8] == image) for image in range(2)]
    with tf.GradientTape() as tape:
        tape.watch(feature)
        pooled = roi_align.roi_align(feature, np.stack([rois[i] for i in mine]), 8, 7)
        loss = tf.reduce_sum(pooled**2)
    gradient, expected = tape.gradient(loss, feature).numpy(), oracle["roi_align_grad_of_sum_of_squares_first8"]
    finite = np.isfinite(expected)
    assert finite.all()
    np.testing.assert_allclose(gradient[finite], expected[finite], atol=1e-4, rtol=1e-4)


def test_roi_pool_is_torchvisions_exactly(oracle):
    found = roi_align.roi_pool(oracle["roi_feature"], per_image(oracle["roi_boxes"], oracle), 8, 7)
    np.testing.assert_array_equal(found, per_image(oracle["roi_pool"], oracle))


def test_roi_align_of_a_ramp_by_hand(reader):
    # The feature at cell (y, x) is its centre's x in pixels, so a bin's mean is the x of its own centre.
    ramp = np.tile((np.arange(16, dtype="f4") * 8 + 4)[None, None, :, None], (1, 16, 1, 1))
    found = np.asarray(roi_align.roi_align(ramp, np.float32([[[16, 20, 80, 76]]]), 8, 7))
    np.testing.assert_allclose(found[0, 0, 3, :, 0], 20 + (np.arange(7) + 0.5) * 8, atol=1e-4)


def test_crop_and_resize_by_hand():
    # The whole image's corner pixels fall on the map's corner cells.
    feature = np.arange(16, dtype="f4").reshape(1, 4, 4, 1)
    whole = np.asarray(roi_align.crop_and_resize(feature, np.float32([[[0, 0, 32, 32]]]), 8, 4))
    np.testing.assert_allclose(whole[0, 0, :, :, 0], feature[0, :, :, 0], atol=1e-5)
    outside = np.asarray(roi_align.crop_and_resize(feature, np.float32([[[-40, -40, -8, -8]]]), 8, 4))
    assert (outside == 0).all()


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="compares with TensorFlow's operator")
def test_crop_and_resize_is_tensorflows(rng):
    import tensorflow as tf

    feature = rng.normal(size=(1, 12, 16, 3)).astype("f4")
    corner = rng.uniform(-20, 90, (9, 2))
    rois = np.concatenate([corner, corner + rng.uniform(2, 70, (9, 2))], axis=1).astype("f4")
    size = np.float32([96, 128, 96, 128])
    normalised = (rois - np.float32([0, 0, 1, 1])) / (size - 1)
    expected = tf.image.crop_and_resize(feature, normalised, [0] * 9, (7, 7))
    np.testing.assert_allclose(roi_align.crop_and_resize(feature, rois[None], 8, 7)[0], expected, atol=1e-4)


@given(seed=st.integers(0, 2**31), a=st.floats(-3, 3), b=st.floats(-3, 3))
@settings(max_examples=15, deadline=None)
def test_roi_align_is_linear_in_the_feature(seed, a, b):
    rng = np.random.default_rng(seed)
    f, g = rng.normal(size=(2, 1, 9, 11, 2)).astype("f4")
    rois = rng.uniform(-20, 120, (1, 5, 4)).astype("f4")

    def read(feature):
        return np.asarray(roi_align.roi_align(np.float32(feature), rois, 8, 3))

    np.testing.assert_allclose(read(a * f + b * g), a * read(f) + b * read(g), atol=1e-4)


def test_level_of_a_roi_by_hand():
    # A 224-pixel RoI is read from P4, a 112-pixel one from P3; small ones from P2, huge ones from P5.
    sides = np.float32([10, 111, 113, 223, 225, 447, 449, 3000])
    rois = np.stack([0 * sides, 0 * sides, sides, sides], axis=-1)
    np.testing.assert_array_equal(roi_align.roi_level(rois, mr.Config.coco()), [0, 0, 1, 1, 2, 2, 3, 3])


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "crop_and_resize"])
def test_a_roi_is_read_from_its_own_level(name):
    config = mr.Config.coco(roi_sampler=name)
    pyramid = [
        np.full((1, 256 // stride, 256 // stride, 2), level, "f4") for level, stride in enumerate(config.strides[:4])
    ]
    rois = np.float32([[[10, 10, 60, 60], [10, 10, 140, 140], [5, 5, 250, 250]]])
    found = np.asarray(roi_align.pool_from_pyramid(pyramid, rois, 7, config))
    np.testing.assert_allclose(found[0, :, 3, 3, 0], [0, 1, 2], atol=1e-5)


@pytest.mark.parametrize("name", ["roi_align", "roi_pool", "crop_and_resize"])
def test_reading_from_the_pyramid_is_reading_from_the_level(name, reader, rng):
    config = mr.Config.coco(roi_sampler=name)
    pyramid = [rng.normal(size=(2, 160 // stride, 256 // stride, 3)).astype("f4") for stride in config.strides[:4]]
    corner, side = rng.uniform(-20, 100, (2, 12, 2)), np.exp(rng.uniform(2, 6.7, (2, 12, 1)))
    rois = np.concatenate([corner, corner + side], axis=-1).astype("f4")
    level = np.asarray(roi_align.roi_level(rois, config))
    assert len(set(level.ravel())) == 4
    found = np.asarray(roi_align.pool_from_pyramid(pyramid, rois, 7, config))
    for index, stride in enumerate(config.strides[:4]):
        alone = np.asarray(getattr(roi_align, name)(pyramid[index], rois, stride, 7))
        np.testing.assert_allclose(found[level == index], alone[level == index], atol=1e-5)


def test_features_may_be_half_precision(reader):
    feature = ops.cast(np.ones((1, 8, 8, 2), "f4"), "bfloat16")
    found = roi_align.roi_align(feature, np.float32([[[8, 8, 40, 40]]]), 8, 7)
    assert keras.backend.standardize_dtype(found.dtype) == "bfloat16"
    np.testing.assert_allclose(ops.cast(found, "float32"), 1, atol=1e-2)

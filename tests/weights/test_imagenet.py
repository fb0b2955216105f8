"""An ImageNet backbone of keras.applications gives the same features in our ResNet."""

import keras
import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu.weights import loading


@pytest.fixture(scope="module")
def theirs():
    """keras.applications' ResNet50 with weights that are not at their start, and its tensors by name."""
    rng = np.random.default_rng(0)
    network = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(None, None, 3))
    for variable in network.weights:
        scale = {"gamma": 0.3, "moving_variance": 0.3, "beta": 0.1, "moving_mean": 0.1, "bias": 0.1}.get(variable.name)
        if scale:
            base = 1.0 if variable.name in ("gamma", "moving_variance") else 0.0
            variable.assign(base + scale * rng.uniform(-1, 1, variable.shape))
    layers = [layer for layer in network.layers if layer.weights]
    return network, {f"{la.name}/{la.name}/{v.name}:0": np.array(v) for la in layers for v in la.weights}


def test_features_are_keras_applications(theirs):
    network, tensors = theirs
    # Their means, but another scale and another epsilon than theirs: both are folded into the weights.
    config = mr.Config.coco(pixel_mean=(123.68, 116.779, 103.939), pixel_std=(58.0, 57.0, 56.0))
    model = mr.MaskRCNN(config)
    report = loading.load(model, tensors)
    assert not report.unused and all(path.startswith("backbone/") for path in report.filled)
    assert all(not path.startswith(("backbone/stem", "backbone/res")) for path in report.anew)

    image = np.random.default_rng(1).integers(0, 256, (1, 96, 128, 3), dtype=np.uint8)
    expected = network(keras.applications.resnet.preprocess_input(image.astype("f4")))
    last = model.backbone.get_layer(f"res5_{config.stage_blocks[-1] - 1}_relu").output
    found = keras.Model(model.backbone.inputs, last)(model.normalise(image, np.float32([[96, 128]])))
    found, expected = (keras.ops.convert_to_numpy(x) for x in (found, expected))
    assert np.abs(found - expected).max() < 1e-3 * expected.std()


def test_another_depth_is_refused_by_name(theirs):
    with pytest.raises(mr.InputError, match=r"imagenet weights do not fit.*res4_6_conv1/kernel has no tensor"):
        loading.load(mr.MaskRCNN(mr.Config.coco(101)), theirs[1])

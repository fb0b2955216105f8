"""What the one file that knows its backend promises."""

import keras
import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import backend, targets
from maskrcnn_edu.candidates import choose_detections
from maskrcnn_edu.roi_align import pool_from_pyramid

CONFIG = mr.Config.tiny(detection_score_threshold=0.01)
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="islands are TensorFlow's")


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return mr.MaskRCNN(CONFIG)


def some_boxes(rng, *shape):
    corner, size = rng.uniform(0, 100, (*shape, 2)), rng.uniform(0, 60, (*shape, 2))
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def stage_inputs(name, rng):
    """A function of the model with its fixed arguments, and tensors to call it with."""
    proposals = some_boxes(rng, 2, 60)
    if name == "proposals":
        anchors = [some_boxes(rng, n) for n in (300, 80, 20)]
        logits = [rng.normal(size=(2, len(a))).astype(np.float32) for a in anchors]
        deltas = [rng.normal(0, 0.2, (2, len(a), 4)).astype(np.float32) for a in anchors]
        return mr.proposals.select_proposals, (100, 60, CONFIG), (logits, deltas, anchors, np.float32([[128, 128]] * 2))
    if name == "features":
        pyramid = [rng.normal(size=(2, 128 // s, 128 // s, 48)).astype(np.float32) for s in (4, 8, 16)]
        return pool_from_pyramid, (7, CONFIG), (pyramid, proposals)
    if name == "choice":
        logits = rng.normal(0, 3, (2, 60, 4)).astype(np.float32)
        deltas = rng.normal(0, 0.5, (2, 60, 3, 4)).astype(np.float32)
        tensors = (logits, deltas, proposals, np.ones((2, 60), bool), np.float32([[128, 100]] * 2), None)
        return choose_detections, (CONFIG,), tensors
    truth = {"boxes": some_boxes(rng, 2, 16), "classes": rng.integers(-1, 4, (2, 16)), "seed": np.int32([5, 6])}
    return targets.rpn_targets, (CONFIG,), (some_boxes(rng, 500), truth)


@on_tensorflow
@pytest.mark.parametrize("name", ["proposals", "features", "choice", "rpn targets"])
def test_an_island_answers_as_the_plain_graph_does(model, name):
    function, fixed, tensors = stage_inputs(name, np.random.default_rng(3))
    island = backend.island(function, *fixed)
    found = backend.compiled(lambda *x: island(*x), model)(*tensors)
    with backend.without_islands():
        expected = backend.compiled(lambda *x: island(*x), model)(*tensors)
    found, expected = keras.tree.flatten(found), keras.tree.flatten(expected)
    assert len(found) == len(expected) > 0
    for mine, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-4, atol=1e-4)


@on_tensorflow
def test_there_are_islands_in_a_detection_and_none_where_they_are_not_wanted(model):
    def uses_xla():
        traced = backend.compiled(lambda image, size: model({"image": image, "image_size": size}), model)
        image, size = np.zeros((1, 128, 128, 3), np.uint8), np.float32([[128, 128]])
        graph = traced.__wrapped__.get_concrete_function(image, size).graph
        return any("_XlaMustCompile" in node.attr for node in graph.as_graph_def().node)

    assert uses_xla()
    with backend.without_islands():
        assert not uses_xla()
    assert uses_xla()


@on_tensorflow
def test_many_sizes_are_no_reason_to_warn(model, caplog):
    backbone = backend.compiled(lambda x: model.backbone(x)[-1], model)
    for side in range(32, 32 * 8, 32):
        assert backbone(np.zeros((1, side, 32, 3), np.float32)).shape[1] == side // 32 * 2
    assert "retracing" not in caplog.text and backbone.__wrapped__.experimental_get_tracing_count() == 7


def test_compiled_functions_see_new_weights(model):
    image = np.random.default_rng(0).normal(size=(1, 128, 128, 3)).astype(np.float32)
    finest = backend.compiled(lambda x: model.backbone(x)[0], model)
    before = np.asarray(finest(image))
    kernel = model.backbone.get_layer("fpn_output2").kernel
    kernel.assign(2 * kernel)
    np.testing.assert_allclose(finest(image), 2 * before, rtol=1e-3, atol=1e-4)


def test_the_precision_of_layers_ends_with_its_block():
    with pytest.raises(RuntimeError), backend.layers_compute_in("bfloat16"):
        assert keras.layers.Dense(1).compute_dtype == "bfloat16"
        raise RuntimeError
    assert keras.layers.Dense(1).compute_dtype == "float32"

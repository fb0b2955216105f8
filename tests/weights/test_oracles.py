"""The same detections as torchvision, Detectron2 and the seed, from weights that are given by a rule.

tests/fixtures/oracles/ holds what those systems computed on scikit-image's astronaut and chelsea (make_*.py there are
the recipes) with every tensor filled by `seeded.py`. A model filled alike has to find the same.
"""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu.anchors import anchors_by_level
from maskrcnn_edu.detections import padded_size, to_batch
from maskrcnn_edu.model import in_last_pixel_frame
from maskrcnn_edu.proposals import run_rpn_head, select_joint_proposals, select_proposals
from maskrcnn_edu.weights import loading, torchvision

data = pytest.importorskip("skimage.data", reason="the oracles' photographs come with scikit-image")

ORACLES = Path(__file__).parents[1] / "fixtures" / "oracles"
specification = importlib.util.spec_from_file_location("seeded", ORACLES / "seeded.py")
seeded = importlib.util.module_from_spec(specification)
specification.loader.exec_module(seeded)

SIZE = {"image_min_size": 320, "image_max_size": 533}
SEED_SIZE = {"image_min_size": 400, "image_max_size": 512, "detection_score_threshold": 0.05}
SLOW = pytest.mark.slow
MODELS = [
    pytest.param(("maskrcnn_resnet50_fpn", mr.Config.torchvision(**SIZE)), id="torchvision"),
    pytest.param(("maskrcnn_resnet50_fpn_v2", mr.Config.torchvision_v2(**SIZE)), id="torchvision_v2"),
    pytest.param(("d2_mask_rcnn_R_50_FPN_3x", mr.Config.detectron2(**SIZE)), id="detectron2_r50"),
    pytest.param(("d2_mask_rcnn_R_101_FPN_3x", mr.Config.detectron2(101, **SIZE)), id="detectron2_r101", marks=SLOW),
    pytest.param(("matterport_resnet50", mr.Config.matterport(50, **SEED_SIZE)), id="matterport_r50"),
    pytest.param(("matterport_resnet101", mr.Config.matterport(101, **SEED_SIZE)), id="matterport_r101", marks=SLOW),
]


@pytest.fixture(scope="module", params=MODELS)
def oracle_model(request):
    """(name, model filled by the rule)."""
    name, config = request.param
    return name, filled(name, config)


def filled(name, config):
    """A model of `config` with every tensor of the oracle's file filled by the rule."""
    shapes = json.loads((ORACLES / f"{name}_state.json").read_text())["tensors"]
    fill = seeded.fill_keras if name.startswith("matterport") else seeded.fill
    model = mr.MaskRCNN(config)
    report = loading.load(model, {tensor: fill(tensor, shape) for tensor, shape in shapes.items()})
    assert not report.anew and all(tensor.endswith("num_batches_tracked") for tensor in report.unused)
    return model


def recorded(name, image):
    with np.load(ORACLES / f"{name}_{image}.npz") as arrays:
        return dict(arrays)


def overlap(a, b):
    return np.asarray(mr.boxes.iou(a, b))


def numpy(tensors):
    return [keras.ops.convert_to_numpy(tensor)[0] for tensor in tensors]


def proposals_of(model, batch):
    """Feature pyramid, RPN outputs by level and the proposals (in the network's frame)."""
    config = model.config
    pyramid = model.backbone(model.normalise(batch["image"], batch["image_size"]))
    logits, deltas = run_rpn_head(model.rpn, pyramid)
    anchors = anchors_by_level(batch["image"].shape[1:3], config)
    select, frame = select_proposals, batch
    if config.proposal_choice == "joint":
        select, frame = select_joint_proposals, in_last_pixel_frame(batch)
    size = keras.ops.convert_to_tensor(frame["image_size"])
    found, _ = select(logits, deltas, anchors, size, config.proposals_per_level, config.proposals, config)
    return pyramid, logits, deltas, keras.ops.convert_to_numpy(found)[0]


def assert_close(found, expected):
    """Within a thousandth of the standard deviation."""
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-3 * expected.std()


def check_torch_stages(name, model, batch, oracle):
    """Feature maps, RPN outputs, proposals and class logits against a torch system's."""
    pyramid, logits, deltas, proposals = proposals_of(model, batch)
    samples = [key for key in oracle if key.startswith("fpn_") and key.endswith("_sample")]
    for key, feature in zip(samples, numpy(pyramid), strict=True):
        assert_close(feature.transpose(2, 0, 1)[::32, ::4, ::4], oracle[key])
    for level, (found, feature) in enumerate(zip(numpy(logits), numpy(pyramid), strict=True)):
        cells = found.reshape(*feature.shape[:2], -1).transpose(2, 0, 1)
        assert_close(cells[:, ::4, ::4], oracle[f"rpn_logits_{level}"])
    expected = oracle["proposals"][:, [1, 0, 3, 2]]
    assert (overlap(expected, proposals).max(axis=1) >= 0.99).mean() >= 0.99
    class_logits, box_deltas = numpy(model.run_box_head(pyramid, expected[None, :64]))
    background_last = name.startswith("d2")
    assert_close(class_logits, np.roll(oracle["class_logits"], 1 if background_last else 0, axis=1))
    theirs = oracle["box_deltas"].reshape(len(box_deltas), -1, 4)[:, 0 if background_last else 1 :]
    assert_close(box_deltas, theirs[..., [1, 0, 3, 2]])


def check_seed_stages(model, batch, oracle):
    """RPN outputs, proposals and class probabilities against the seed's; its boxes are shares of the last pixel."""
    pyramid, logits, deltas, proposals = proposals_of(model, batch)
    objectness = 1 / (1 + np.exp(-np.concatenate(numpy(logits))))
    assert_close(objectness[::97], oracle["rpn_scores"][:, 1])
    deviations = np.float32([0.1, 0.1, 0.2, 0.2])
    assert_close(np.concatenate(numpy(deltas))[::97] / deviations, oracle["rpn_deltas"])
    expected = oracle["rois"] * (batch["image"].shape[1] - 1)
    assert (overlap(expected, proposals).max(axis=1) >= 0.99).mean() >= 0.99
    class_logits, box_deltas = numpy(model.run_box_head(pyramid, expected[None, :64]))
    assert_close(keras.ops.convert_to_numpy(keras.ops.softmax(class_logits)), oracle["class_probs"])
    assert_close(box_deltas, oracle["box_deltas"][:, 1:])


def found_again(detections, boxes, classes, scores, masks, corner_tolerance):
    """How many recorded detections are found: class, score within 1e-3, box and mask at IoU >= 0.99."""
    free, count = set(range(len(detections))), 0
    for box, label, score, mask in zip(boxes, classes, scores, masks, strict=True):
        for i in sorted(free, key=lambda i: np.abs(detections.boxes[i] - box).max())[:5]:
            same_box = np.abs(detections.boxes[i] - box).max() <= corner_tolerance
            same_box = same_box or overlap(box[None], detections.boxes[i : i + 1])[0, 0] >= 0.99
            union = (mask | detections.masks[i]).sum()
            same_mask = union == 0 or (mask & detections.masks[i]).sum() >= 0.99 * union
            close = abs(score - detections.scores[i]) <= 1e-3
            if same_box and same_mask and close and label == detections.classes[i]:
                free.remove(i)
                count += 1
                break
    return count


@pytest.mark.parametrize("image", ["astronaut", "chelsea"])
def test_same_as_the_system_that_trained_it(oracle_model, image):
    name, model = oracle_model
    oracle, photograph = recorded(name, image), getattr(data, image)()[..., :3]
    batch = to_batch([photograph], padded_size(photograph, model.config), 1, model.config)
    seed = name.startswith("matterport")
    if seed:
        np.testing.assert_array_equal(batch["window"][0], oracle["window"])
        molded = batch["image"][0].astype("f4") - np.float32(model.config.pixel_mean)
        np.testing.assert_allclose(molded[::16, ::16], oracle["molded_sample"], atol=1e-4)
        check_seed_stages(model, batch, oracle)
        boxes, classes = oracle["out_boxes"].astype("f4"), oracle["out_classes"]
    else:
        np.testing.assert_array_equal(batch["image_size"][0], oracle["transformed_size"])
        check_torch_stages(name, model, batch, oracle)
        boxes, classes = oracle["out_boxes"][:, [1, 0, 3, 2]], oracle["out_labels"] + name.startswith("d2")
    masks = np.unpackbits(oracle["masks_packed"], axis=-1, count=photograph.shape[1]).astype(bool)
    (detections,) = model.detect([photograph])
    assert len(detections) == len(boxes) == 100
    found = found_again(detections, boxes, classes, oracle["out_scores"], masks, corner_tolerance=1 if seed else 0.1)
    assert found >= 98


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="takes the gradients with TensorFlow's tape")
def test_training_losses_and_gradients_are_torchvisions():
    """All anchors and proposals take part, so that nothing is drawn at random (make_torchvision_training.py)."""
    import tensorflow as tf

    with np.load(ORACLES / "train_astronaut.npz") as arrays:
        oracle = dict(arrays)
    everything = 10**6
    config = mr.Config.torchvision(
        image_min_size=256, image_max_size=426, rpn_batch_size=everything, rpn_positive_fraction=1.0,
        roi_batch_size=everything, roi_positive_fraction=1.0, proposals_per_level_training=500, proposals_training=200,
    )  # fmt: skip
    model = filled("maskrcnn_resnet50_fpn", config)
    photograph = data.astronaut()[..., :3]
    batch = to_batch([photograph], padded_size(photograph, config), 1, config)
    masks = np.unpackbits(oracle["masks_packed"], axis=-1, count=512)[:, ::2, ::2]  # nearest, 512 to 256
    batch |= {
        "boxes": oracle["boxes"][None, :, [1, 0, 3, 2]] / 2,
        "classes": oracle["labels"][None],
        "masks": masks[None] * np.uint8(255),
        "mask_boxes": np.tile(batch["window"][:, None], (1, len(masks), 1)),
        "seed": np.int32([0]),
    }
    with tf.GradientTape() as tape:
        losses = model.losses_by_name(model(batch, training=True))
        total = sum(losses.values())
    theirs = dict(zip(oracle["loss_names"], oracle["losses"], strict=True))
    names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
    np.testing.assert_allclose([float(v) for v in losses.values()], [theirs[n] for n in names], rtol=5e-3)

    variables = loading.variables_by_name(model)
    gradients = tape.gradient(total, [variable.value for variable in variables.values()])
    gradients = dict(zip(variables, gradients, strict=True))
    norms = dict(zip(oracle["grad_names"], oracle["grad_norm"], strict=True))
    compared = 0
    for path, tensors, _ in torchvision.sources(config):
        if tensors[0] in norms and path in gradients:
            norm = np.linalg.norm(tf.convert_to_tensor(gradients[path]))
            assert norm == pytest.approx(norms[tensors[0]], rel=0.02), path
            compared += 1
    assert compared == len(norms)

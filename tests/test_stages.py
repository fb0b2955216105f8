"""Stages: the same detections as `detect`, and every step on the way there in one frame."""

import dataclasses

import keras
import numpy as np
import pytest

import maskrcnn_edu as mr

SHAPES = mr.ShapesDataset(8, seed=1)
SMALLEST = {"stem_channels": 4, "stage_channels": (4, 4, 4), "fpn_channels": 4, "box_fc_channels": (4,)}


@pytest.fixture(scope="module")
def model():
    return keras.saving.load_model(mr.files("shapes.keras"))


@pytest.fixture(scope="module")
def found(model):
    return mr.stages.stages(model, SHAPES.image(0))


def assert_same(one, other):
    """Detections that agree, up to what compilation changes in the last digits."""
    assert len(one) == len(other)
    np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
    np.testing.assert_array_equal(one.classes, other.classes)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
    if one.masks is not None:
        assert (one.masks == other.masks).mean() > 0.999


def test_end_in_what_detect_finds(model, found):
    assert len(found.detections) >= 2
    assert_same(found.detections, model.detect([SHAPES.image(0)])[0])
    wide = np.concatenate([SHAPES.image(1), SHAPES.image(2)], axis=1)  # not square: resized and padded
    wide_found = mr.stages.stages(model, wide)
    assert_same(wide_found.detections, model.detect([wide])[0])
    moved = wide_found.on_photograph(wide_found.candidates[wide_found.kept])
    np.testing.assert_allclose(moved, wide_found.detections.boxes, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": "matterport", "box_frame": "matterport", "proposal_choice": "joint", "detection_rule": "best_class",
         "roi_sampler": "crop_and_resize", "mask_paste": "matterport", "image_max_size": 192},
        {"keypoints": 3, "mask_head": False, "keypoint_conv_channels": (4,)},
        {"mask_activation": "softmax", "resize": "torchvision"},
    ],
)  # fmt: skip
def test_every_family_has_the_same_stages(changes, rng):
    keras.utils.set_random_seed(0)
    config = mr.Config.tiny(**SMALLEST, **changes, detection_score_threshold=0.01)
    model = mr.MaskRCNN(config)
    image = rng.integers(0, 255, (100, 150, 3)).astype(np.uint8)
    found, detections = mr.stages.stages(model, image), model.detect([image])[0]
    assert len(detections) and (found.mask_probabilities is None) == (model.mask_head is None)
    assert_same(found.detections, detections)
    if config.keypoints:
        np.testing.assert_allclose(found.detections.keypoints, detections.keypoints, atol=1e-2)
    tolerance = 1.0 if config.box_frame == "matterport" else 1e-3  # the seed rounds
    kept = found.on_photograph(found.candidates[found.kept])
    assert np.abs(kept[:, None] - detections.boxes).max(-1).min(0).max() <= tolerance


def test_each_stage_follows_from_the_one_before(found):
    anchors, proposals = len(found.anchors), len(found.proposals)
    assert found.levels.shape == found.objectness.shape == (anchors,) and found.levels.max() == 2
    assert len(found.pyramid) == 3 and found.pyramid[0].shape == (32, 32, 48)
    np.testing.assert_allclose(mr.boxes.decode(found.deltas, found.anchors), found.refined, atol=1e-4)
    np.testing.assert_array_equal(found.clipped, np.clip(found.refined, 0, 128))
    # Each proposal is one of the refined, cut anchors, and no two of a level overlap by more than the threshold.
    origin = np.abs(found.proposals[:, None] - found.clipped).max(-1)
    np.testing.assert_allclose(origin.min(1), 0, atol=1e-4)
    origin = origin.argmin(1)
    np.testing.assert_allclose(found.objectness[origin], found.proposal_scores, atol=1e-6)
    overlap = np.asarray(mr.boxes.iou(found.proposals, found.proposals)) * (1 - np.eye(proposals))
    same_level = found.levels[origin][:, None] == found.levels[origin]
    assert (overlap * same_level).max() <= 0.7
    # Each candidate is a class of a RoI that scores above the threshold.
    np.testing.assert_allclose(found.class_probabilities.sum(1), 1, atol=1e-5)
    own = found.class_probabilities[found.candidate_rois, found.candidate_classes]
    np.testing.assert_array_equal(own, found.candidate_scores)
    assert (found.candidate_scores > 0.05).all() and (np.diff(found.candidate_scores) <= 0).all()
    assert (found.class_probabilities[:, 1:] > 0.05).sum() == len(found.candidates)
    np.testing.assert_array_equal(found.candidate_classes[found.kept], found.detections.classes)


def test_nothing_found_is_empty_stages(model):
    found = mr.stages.stages(model, np.zeros((1, 1), np.uint8))
    assert len(found.kept) == len(found.detections) and found.photograph.shape == (1, 1, 3)
    config = dataclasses.replace(model.config, detection_score_threshold=0.999999)
    strict = mr.MaskRCNN(config, model.class_names)
    strict.set_weights(model.get_weights())
    found = mr.stages.stages(strict, SHAPES.image(0))
    assert found.candidates.shape == (0, 4) and len(found.kept) == len(found.detections) == 0
    with pytest.raises(mr.InputError, match="no RoI to show"):
        mr.stages.activations(strict, SHAPES.image(0), "box_fc1")


def test_training_stages_are_the_loss_s_own(model):
    batch = next(iter(mr.loader(SHAPES, model.config, training=False)))
    weights = model.get_weights()
    taught = mr.stages.training_stages(model, batch, 1)
    truth = SHAPES.instances(1)
    np.testing.assert_allclose(taught.boxes, truth.boxes)
    np.testing.assert_array_equal(taught.classes, truth.classes)
    # A positive anchor or RoI is to become one of the objects.
    for labels, goals in ((taught.anchor_labels, taught.anchor_targets), (taught.roi_labels, taught.roi_targets)):
        goal = goals[labels == 1]
        assert len(goal)
        np.testing.assert_allclose(np.abs(goal[:, None] - truth.boxes).max(-1).min(1), 0, atol=1e-3)
    assert (taught.roi_classes[taught.roi_labels == 1] > 0).all() and not taught.roi_classes[
        taught.roi_labels < 1
    ].any()
    assert len(taught.masks) == (taught.roi_labels == 1).sum() and set(np.unique(taught.masks)) == {0, 1}
    assert all((before == after).all() for before, after in zip(weights, model.get_weights(), strict=True))
    with pytest.raises(mr.InputError, match="8 images"):
        mr.stages.training_stages(model, batch, 8)
    with pytest.raises(mr.InputError, match="boxes"):
        mr.stages.training_stages(model, {"image": batch["image"]})


def test_activations_are_the_layers_outputs(model, found):
    image = SHAPES.image(0)
    np.testing.assert_allclose(mr.stages.activations(model, image, "fpn_output3"), found.pyramid[1], atol=1e-5)
    logits = mr.stages.activations(model, image, "rpn_logits", level=1)
    np.testing.assert_allclose(
        1 / (1 + np.exp(-logits.ravel())), found.objectness[found.levels == 1], atol=1e-5
    )  # the anchors' order: row, column, ratio
    masks = mr.stages.activations(model, image, "mask_logits")
    np.testing.assert_allclose(1 / (1 + np.exp(-masks)), found.mask_probabilities, atol=1e-4)
    assert mr.stages.activations(model, image, "box_fc1").shape[1] == 128
    names = mr.stages.layer_names(model)
    assert names[0] == "stem_pad" and names[-1] == "mask_logits" and "classes" not in names
    with pytest.raises(mr.InputError, match="res4_0"):
        mr.stages.activations(model, image, "res4_9")
    with pytest.raises(mr.InputError, match="level is 3"):
        mr.stages.activations(model, image, "rpn_logits", level=3)

"""Keypoints: decoding, targets, loss, data, evaluation, training; and the two published models, by their oracles."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import maskrcnn_edu as mr
from maskrcnn_edu import evaluation, keypoints, losses, targets
from maskrcnn_edu.config import PRESETS
from maskrcnn_edu.datasets.augmentation import flip_keypoints

COCO = Path(__file__).parents[2] / "shared" / "coco_sample"
needs_sample = pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/coco_sample")
ORACLES = Path(__file__).parent / "fixtures" / "oracles"
MODELS = {
    "keypointrcnn_resnet50_fpn": mr.Config.torchvision_keypoint,
    "d2_keypoint_rcnn_R_50_FPN_3x": mr.Config.detectron2_keypoint,
}
PUPPET = ["head", "left_hand", "right_hand"]


# Decoding


def test_decodes_as_torchvision(oracle):
    heatmaps = oracle["heatmaps"].astype("f4").transpose(0, 2, 3, 1)
    places, logits, _ = keypoints.decode(heatmaps, oracle["keypoint_rois"])
    np.testing.assert_allclose(places, oracle["keypoints"][..., :2], atol=1e-3)
    np.testing.assert_allclose(logits, oracle["keypoint_scores"], atol=1e-4)


def test_a_peak_is_found_where_it_is(rng):
    heatmaps = rng.normal(size=(1, 56, 56, 2)).astype("f4")
    heatmaps[0, 10, 20, 0] = heatmaps[0, 55, 0, 1] = 20
    places, logits, probabilities = keypoints.decode(heatmaps, [[100, 200, 156, 256]])
    np.testing.assert_allclose(places[0], [[220.5, 110.5], [200.5, 155.5]])
    np.testing.assert_allclose(logits, 20, atol=1e-4)  # as many pixels as cells: nothing is interpolated
    total = np.exp(heatmaps.astype("f8")).sum((1, 2))
    np.testing.assert_allclose(probabilities, np.exp(20) / total, rtol=1e-5)


@pytest.mark.parametrize("box", [[5, 7, 5, 7], [5, 7, 6, 8], [5, 7, 5.25, 7.5]])
def test_boxes_of_a_pixel_or_less_have_one_place(box):
    heatmaps = np.zeros((1, 56, 56, 3), "f4")
    heatmaps[0, 27:29, 27:29] = 1
    places, logits, probabilities = keypoints.decode(heatmaps, [box])
    np.testing.assert_allclose(places, np.full((1, 3, 2), [7.5, 5.5]))
    assert (logits > 1).all() and np.isfinite(probabilities).all()  # the cubic swings over a plateau


def test_a_fractional_side_is_corrected():
    heatmaps = np.add.outer(np.arange(56), np.arange(56))[None, :, :, None]  # highest in the last cell
    places, _, _ = keypoints.decode(heatmaps, [[0, 0, 10.5, 3.2]])
    np.testing.assert_allclose(places[0, 0], [3.5 * 3.2 / 4, 10.5 * 10.5 / 11], rtol=1e-6)


def test_nothing_decodes_to_nothing_and_extremes_stay_finite():
    found = keypoints.decode(np.zeros((0, 56, 56, 17), "f4"), np.zeros((0, 4)))
    assert [part.shape for part in found] == [(0, 17, 2), (0, 17), (0, 17)]
    heatmaps = np.where(np.arange(56) < 28, -1e4, 1e4)[None, :, None, None] * np.ones((1, 56, 56, 1))
    assert all(np.isfinite(part).all() for part in keypoints.decode(heatmaps, [[0, 0, 1, 1]]))


# Targets and loss


def test_targets_by_hand():
    roi = np.float32([[[10, 20, 24, 48]]])  # 14 high, 28 wide: cells of 1/4 and 1/2 pixel for 56
    points = np.float32([
        [20, 10, 2], [20.5, 10.25, 1], [20.49, 10.24, 2], [48, 24, 2], [34, 17, 0], [19.9, 17, 2], [48.1, 17, 2],
        [34, 9.9, 2], [34, 24.1, 2],
    ])[None, None]  # fmt: skip
    found = np.asarray(targets.keypoint_targets(points, roi, 56))[0, 0]
    assert found.tolist() == [0, 56 + 1, 0, 55 * 56 + 55, -1, -1, -1, -1, -1]
    nowhere = np.asarray(targets.keypoint_targets(0 * points, 0 * roi, 56))
    assert (nowhere == -1).all()


def test_loss_by_hand():
    logits = np.zeros((1, 3, 2, 2, 2), "f4")
    logits[0, 0, 1, 0, 0] = np.log(5)  # cell 2 of keypoint 0: 5 / 8
    target, positive = np.int32([[[2, 3], [-1, -1], [0, 0]]]), np.array([[True, True, False]])
    assert float(losses.keypoint_loss(logits, target, positive)) == pytest.approx((np.log(8 / 5) + np.log(4)) / 2)
    assert float(losses.keypoint_loss(logits, target, ~positive)) == pytest.approx(np.log(4))
    assert float(losses.keypoint_loss(logits, 0 * target - 1, positive)) == 0


# Data


def test_flip_exchanges_left_and_right():
    assert keypoints.flip_order(PUPPET).tolist() == [0, 2, 1]
    assert keypoints.flip_order(["nose", "left_eye", "tail", "leftover"]).tolist() == [0, 1, 2, 3]  # no pair, no change
    points = np.float32([[[1, 5, 2], [2, 6, 1], [9, 7, 2]]])
    order = keypoints.flip_order(PUPPET)
    flipped = flip_keypoints(points, 10, order)
    np.testing.assert_array_equal(flipped, [[[9, 5, 2], [1, 7, 2], [8, 6, 1]]])
    np.testing.assert_array_equal(flip_keypoints(flipped, 10, order), points)


class Puppets(mr.Dataset):
    """One picture of 40 x 60 pixels with two puppets; the second has no labelled keypoint."""

    class_names = ["background", "puppet"]
    keypoint_names = PUPPET

    def __len__(self):
        return 1

    def load_image(self, i):
        return np.full((40, 60, 3), 90, np.uint8)

    def load_masks(self, i):
        masks = np.zeros((3, 40, 60), bool)
        masks[0, 4:34, 6:26] = masks[2, 10:30, 40:56] = True  # the mask between has no pixel
        return masks, np.ones(3, int)

    def load_keypoints(self, i):
        return [[[15, 5, 2], [7, 20, 1], [24, 20, 2]], [[1, 1, 2]] * 3, [[3, 3, 0]] * 3]


def puppet_config(**changes):
    return mr.Config.tiny(num_classes=2, image_min_size=80, image_max_size=120, keypoints=3, **changes)


def test_instances_and_parts_carry_keypoints():
    dataset = Puppets()
    found = dataset.instances(0)
    np.testing.assert_array_equal(found.keypoints, np.float32(dataset.load_keypoints(0))[[0, 2]])
    for other in (mr.Subset(dataset, [0]), dataset + dataset):
        np.testing.assert_array_equal(other.instances(0).keypoints, found.keypoints)
        assert other.keypoint_names == PUPPET
        assert [entry["num_keypoints"] for entry in other.annotations_of(0)] == [3, 0]
    with pytest.raises(mr.InputError, match="keypoint_names differ"):
        mr.ConcatenatedDataset([dataset, mr.ShapesDataset(1)])
    dataset.load_keypoints = lambda i: np.zeros((2, 3, 3))
    with pytest.raises(mr.InputError, match=r"image 0 .*load_keypoints gives shape \(2, 3, 3\); give \(3, 3, 3\)"):
        dataset.instances(0)


@pytest.mark.parametrize("offset", [0.5, 0.0])
def test_loader_gives_keypoints_in_network_pixels(offset):
    (batch,) = list(mr.loader(Puppets(), puppet_config(keypoint_offset=offset), training=False))
    expected = np.zeros((16, 3, 3), "f4")
    expected[0] = [[2 * (15 + offset), 2 * (5 + offset), 2], [2 * (7 + offset), 2 * (20 + offset), 1],
                   [2 * (24 + offset), 2 * (20 + offset), 2]]  # fmt: skip
    np.testing.assert_allclose(batch["keypoints"][0], expected)
    mirrored = expected[0] * [-1, 1, 1] + [120, 0, 0]
    seen = set()
    for _, batch in zip(range(8), mr.loader(Puppets(), puppet_config(keypoint_offset=offset)), strict=False):
        for box, points in zip(batch["boxes"][:, 0], batch["keypoints"], strict=True):
            flipped = bool(box[1] > 60)
            np.testing.assert_allclose(points[0], mirrored[[0, 2, 1]] if flipped else expected[0])
            assert (points[1:] == 0).all()
            seen.add(flipped)
    assert seen == {True, False}


def test_loader_and_model_refuse_data_without_keypoints():
    with pytest.raises(mr.InputError, match="Config.keypoints is 17, but Puppets has 3"):
        mr.loader(Puppets(), mr.Config.tiny(num_classes=2, keypoints=17))
    model = mr.MaskRCNN(puppet_config(keypoint_conv_channels=(8,)))
    (batch,) = list(mr.loader(Puppets(), puppet_config(), training=False))
    del batch["keypoints"]
    with pytest.raises(mr.InputError, match="no keypoints"):
        model(batch)


def person(id=1, **changes):
    return {
        "id": id, "image_id": 7, "category_id": 1, "bbox": [2, 1, 4, 4], "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]],
        "area": 16, "iscrowd": 0, "keypoints": [3, 2, 2, 0, 0, 0, 5, 4, 1], "num_keypoints": 2, **changes,
    }  # fmt: skip


def write(directory, *annotations, **category):
    category = {"id": 1, "name": "person", "keypoints": PUPPET, "skeleton": [[1, 2], [1, 3]], **category}
    images = [{"id": 7, "file_name": "a.png", "height": 10, "width": 8}]
    (directory / "annotations").mkdir()
    (directory / "val2017").mkdir()
    content = {"images": images, "categories": [category], "annotations": list(annotations)}
    (directory / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(content))
    Image.fromarray(np.zeros((10, 8, 3), np.uint8)).save(directory / "val2017" / "a.png")
    return directory


def test_reads_a_keypoint_file(tmp_path):
    crowd = person(2, iscrowd=1, keypoints=[0] * 9, num_keypoints=0)
    dataset = mr.CocoDataset(write(tmp_path, person(), crowd), keypoints=True)
    assert dataset.keypoint_names == PUPPET and dataset.skeleton == [[0, 1], [0, 2]]
    found = dataset.instances(0)
    assert found.classes.tolist() == [1, -1]
    np.testing.assert_array_equal(found.keypoints[0], [[3, 2, 2], [0, 0, 0], [5, 4, 1]])
    with pytest.raises(mr.InputError, match="instances_val2017.json: there is no such annotation file"):
        mr.CocoDataset(tmp_path)


@pytest.mark.parametrize(
    "changes, category, message",
    [
        ({"keypoints": [1, 2, 2]}, {}, "annotation 1 has keypoints that are not 9 finite numbers"),
        ({"keypoints": "left"}, {}, "annotation 1 has keypoints"),
        ({"keypoints": [1, 1, 3] * 3}, {}, "annotation 1 has a keypoint whose visibility"),
        ({"num_keypoints": None}, {}, "annotation 1 has num_keypoints None"),
        ({}, {"keypoints": []}, "category 1 has keypoints"),
        ({}, {"keypoints": ["head", "head"]}, "category 1 has a keypoint name twice"),
        ({}, {"skeleton": [[0, 1]]}, "category 1 has a skeleton"),
    ],
)
def test_mistakes_in_a_keypoint_file_are_named(tmp_path, changes, category, message):
    with pytest.raises(mr.InputError, match=message):
        mr.CocoDataset(write(tmp_path, person(**changes), **category), keypoints=True)


@pytest.mark.parametrize("key", ["keypoints", "num_keypoints"])
def test_missing_keys_are_named(tmp_path, key):
    entry = person()
    del entry[key]
    with pytest.raises(mr.InputError, match=f'has no "{key}"'):
        mr.CocoDataset(write(tmp_path, entry), keypoints=True)


# The model


@pytest.mark.parametrize("masks", [False, True])
def test_learns_to_point(masks, tmp_path):
    """Two keypoint pictures by heart; the model then points at them, also once it was saved and opened."""
    keras.utils.set_random_seed(0)
    config = puppet_config(
        keypoint_conv_channels=(32,), keypoint_pool_size=7, mask_head=masks, keypoint_loss_weight=0.5, batch_size=1,
        learning_rate=2e-3, warmup_steps=2, train_steps=60, loss_weights=(1, 1, 1, 1, 1), horizontal_flip=False,
    )  # fmt: skip
    model = mr.MaskRCNN(config, Puppets.class_names)
    model.compile()
    history = model.fit(mr.loader(Puppets(), config), steps_per_epoch=10, epochs=6, verbose=0).history
    assert list(model.loss_weights)[-1] == "keypoint_loss" and ("mask_loss" in history) == masks
    assert np.isfinite(history["keypoint_loss"]).all()
    assert history["keypoint_loss"][-1] < 0.5 * history["keypoint_loss"][0]
    last = {name: values[-1] for name, values in history.items()}
    weighted = sum(weight * last[name] for name, weight in model.loss_weights.items())
    assert last["loss"] == pytest.approx(weighted, rel=1e-4)

    (found,) = model.detect([Puppets().load_image(0)])
    assert found.keypoints.shape == (len(found), 3, 3) and found.keypoint_scores.shape == (len(found), 3)
    assert ((found.keypoints[..., 2] > 0) & (found.keypoints[..., 2] <= 1.5)).all()
    model.save(tmp_path / "model.keras")
    (again,) = keras.saving.load_model(tmp_path / "model.keras").detect([Puppets().load_image(0)])
    np.testing.assert_allclose(again.keypoints, found.keypoints, atol=1e-3)


def test_pictures_without_labelled_keypoints_train():
    config = puppet_config(keypoint_conv_channels=(8,), keypoint_pool_size=4, mask_head=False, batch_size=1)
    model = mr.MaskRCNN(config)
    model.compile()
    (batch,) = list(mr.loader(Puppets(), config, training=False))
    batch["keypoints"] = 0 * batch["keypoints"]
    found = model.train_on_batch(batch, return_dict=True)
    assert found["keypoint_loss"] == 0 and np.isfinite(list(found.values())).all()


@needs_sample
def test_trains_on_persons_and_is_evaluated():
    keras.utils.set_random_seed(0)
    dataset = mr.CocoDataset(COCO, keypoints=True)
    config = mr.Config.tiny(
        num_classes=2, mask_head=False, keypoints=17, keypoint_conv_channels=(32, 32), batch_size=2, warmup_steps=2,
        train_steps=24,
    )  # fmt: skip
    model = mr.MaskRCNN(config, dataset.class_names)
    model.compile()
    history = model.fit(mr.loader(dataset, config), steps_per_epoch=8, epochs=3, verbose=0).history["keypoint_loss"]
    assert np.isfinite(history).all() and history[-1] < history[0] < 8.5  # log(56 * 56) is 8.05
    found = mr.evaluate(model, dataset, limit=2)
    assert list(found) == ["bbox", "keypoints"] and tuple(found["keypoints"]) == evaluation.KEYPOINT_METRICS
    with pytest.raises(mr.InputError, match="has 0 keypoints and the model 17"):
        mr.evaluate(model, NoKeypoints())


class NoKeypoints(Puppets):
    class_names = ["background", "person"]
    keypoint_names = ()


class Answers:
    """Stands for a model: gives what it is told."""

    keypoint_head, mask_head = True, False

    def __init__(self, class_names, detections, config):
        self.class_names, self.config, self.left = class_names, config, list(detections)

    def detect_later(self, images, batch_size=1):
        return [functools.partial(self.left.pop, 0) for _ in images]


@needs_sample
@pytest.mark.parametrize("preset", ["detectron2_keypoint", "torchvision_keypoint"])
def test_numbers_are_pycocotools_on_the_files(preset, rng, tmp_path):
    from pycocotools.coco import COCO as Reference
    from pycocotools.cocoeval import COCOeval

    dataset, config = mr.CocoDataset(COCO, keypoints=True), PRESETS[preset]()
    answers = []
    for i in range(len(dataset)):
        boxes, classes, _, points = dataset.instances(i)
        points = points + np.float32([config.keypoint_offset] * 2 + [0])
        points[..., :2] += rng.normal(0, 3, points[..., :2].shape)
        answers.append(mr.Detections(boxes, abs(classes), rng.uniform(size=len(boxes)), None, points))
    ours = mr.evaluate(Answers(dataset.class_names, answers, config), dataset, per_class=True, results=tmp_path)
    assert list(ours["per_class"]["keypoints"]) == ["person"]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = Reference(COCO / "annotations" / "person_keypoints_val2017.json")
        run = COCOeval(reference, reference.loadRes(str(tmp_path / "keypoints.json")), "keypoints")
        run.evaluate()
        run.accumulate()
        run.summarize()
    np.testing.assert_allclose(list(ours["keypoints"].values()), run.stats, atol=1e-9)
    assert 0.1 < ours["keypoints"]["AP"] < 0.99


# The published models


def _fill():
    spec = importlib.util.spec_from_file_location("seeded", ORACLES / "seeded.py")
    seeded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(seeded)
    return seeded.fill


@pytest.fixture(scope="module", params=MODELS)
def published(request):
    """A published model with the oracle's weights, loaded from a mapping, and its name."""
    name = request.param
    state = json.loads((ORACLES / f"{name}_state.json").read_text())
    model = mr.MaskRCNN(MODELS[name](image_min_size=state["min_size"], image_max_size=state["max_size"]))
    fill = _fill()
    report = mr.weights.load(model, {key: fill(key, shape) for key, shape in state["tensors"].items()})
    assert not report.unused and not report.anew
    return name, model


@pytest.mark.parametrize("picture", ["astronaut", "chelsea"])
def test_detects_as_the_published_model(published, picture):
    data = pytest.importorskip("skimage.data")
    name, model = published
    with np.load(ORACLES / f"{name}_{picture}.npz") as recorded:
        expected = dict(recorded)
    (found,) = model.detect([getattr(data, picture)()[..., :3]])
    expected_boxes = expected["out_boxes"][:, [1, 0, 3, 2]]
    iou = np.asarray(mr.boxes.iou(expected_boxes, found.boxes))
    good, left = 0, set(range(len(found)))
    for i, box in enumerate(expected_boxes):
        j = max(left, key=lambda j: iou[i, j])
        distance = abs(found.keypoints[j] - expected["out_keypoints"][i])
        logits = expected.get("out_keypoints_scores")
        if (
            (iou[i, j] >= 0.99 or abs(found.boxes[j] - box).max() < 0.1)
            and abs(found.scores[j] - expected["out_scores"][i]) < 1e-3
            and distance[:, :2].max() < 0.5
            and distance[:, 2].max() < 1e-3
            and (logits is None or abs(found.keypoint_scores[j] - logits[i]).max() < 1e-3)
        ):
            good += 1
            left.discard(j)
    assert len(found) == len(expected_boxes) and good >= 0.98 * len(expected_boxes)


def test_presets_are_the_published_settings():
    ours, theirs = mr.Config.torchvision_keypoint(), mr.Config.detectron2_keypoint()
    for config in (ours, theirs):
        assert (config.num_classes, config.keypoints, config.mask_head) == (2, 17, False)
    assert ours.keypoint_visibility == "one" and theirs.keypoint_visibility == "score"
    assert theirs.box_smooth_l1_beta == 0.5 and theirs.proposals_training == 1500
    with pytest.raises(mr.InputError, match="box_frame"):
        dataclasses.replace(ours, box_frame="matterport")

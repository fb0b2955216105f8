"""Evaluation: perfect and imperfect answers by hand, crowds, and equality with pycocotools on the files themselves."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import evaluation

COCO = Path(__file__).parents[2] / "shared" / "coco_sample"


class Answers:
    """Stands in for a model: gives prepared detections, in the order of the dataset."""

    mask_head = True

    def __init__(self, class_names, detections):
        self.class_names, self.left = class_names, list(detections)

    def detect(self, images, batch_size=1):
        return [self.left.pop(0) for _ in images]


class Squares(mr.Dataset):
    """Two images with one 20 x 20 square each, of class 1 and 2; the second has a crowd besides."""

    class_names = ["background", "a", "b"]

    def __len__(self):
        return 2

    def load_image(self, i):
        return np.zeros((60, 80, 3), np.uint8)

    def load_masks(self, i):
        masks = np.zeros((1 + i, 60, 80), bool)
        masks[0, 10:30, 10:30] = True
        masks[1:, 35:55, 5:75] = True
        return masks, np.array([1 + i, -1][: 1 + i])


def truth_as_detections(dataset, i, score=0.9):
    boxes, classes, masks = dataset.instances(i)
    keep = classes > 0
    return mr.Detections(boxes[keep], classes[keep], np.full(keep.sum(), score, "f4"), masks[keep])


def test_a_perfect_answer_scores_one():
    squares = Squares()
    found = mr.evaluate(Answers(squares.class_names, [truth_as_detections(squares, i) for i in range(2)]), squares)
    assert list(found) == ["bbox", "segm"]
    for scores in found.values():
        assert tuple(scores) == evaluation.METRICS and len(scores) == 12
        np.testing.assert_allclose([scores[name] for name in ("AP", "AP50", "APs", "AR100")], 1)
        assert scores["APl"] == -1  # no large objects: nothing to measure


def test_mistakes_cost_what_they_should():
    squares = Squares()
    wrong_class = truth_as_detections(squares, 0)
    wrong_class.classes[:] = 2
    answers = [wrong_class, truth_as_detections(squares, 1, score=0.5)]
    found = mr.evaluate(Answers(squares.class_names, answers), squares, per_class=True)
    # Class a: missed. Class b: a false alarm with the better score, so precision is 1/2 at every recall.
    assert found["per_class"]["segm"] == {"a": 0, "b": pytest.approx(0.5)}
    assert found["segm"]["AP"] == pytest.approx(0.25)


def test_a_detection_on_a_crowd_is_no_mistake():
    squares = Squares()
    right = truth_as_detections(squares, 1)
    on_crowd = mr.Detections(
        np.concatenate([np.float32([[35, 5, 55, 25]]), right.boxes]), np.int32([1, 2]), np.float32([0.99, 0.9]),
        np.concatenate([np.zeros((1, 60, 80), bool), right.masks]),
    )  # fmt: skip
    on_crowd.masks[0, 35:55, 5:25] = True
    found = mr.evaluate(Answers(squares.class_names, [truth_as_detections(squares, 0), on_crowd]), squares)
    np.testing.assert_allclose([found["segm"]["AP"], found["bbox"]["AP"]], 1)


def test_no_detections_and_limit():
    squares = Squares()
    nothing = mr.Detections(np.zeros((0, 4), "f4"), np.zeros(0, int), np.zeros(0, "f4"), np.zeros((0, 60, 80), bool))
    done = []
    found = mr.evaluate(Answers(squares.class_names, [nothing]), squares, limit=1, progress=done.append)
    assert found["segm"]["AP"] == 0 and done == [1]


def test_without_mask_head_there_are_boxes_only():
    squares = Squares()
    answers = Answers(squares.class_names, [truth_as_detections(squares, i) for i in range(2)])
    answers.mask_head = None
    assert list(mr.evaluate(answers, squares)) == ["bbox"]


def test_classes_are_known_by_their_names():
    """In another order, and beside torchvision's unused ones, whose detections do not count."""
    squares, names, answers = Squares(), ["background", "b", "unused 2", "a"], []
    for i in range(2):
        found = truth_as_detections(squares, i)
        stray = mr.Detections(found.boxes + 1, found.classes * 0 + 2, found.scores + 0.05, found.masks)
        found.classes[:] = names.index(squares.class_names[1 + i])
        fields = ("boxes", "classes", "scores", "masks")
        answers.append(mr.Detections(*(np.concatenate([getattr(d, f) for d in (stray, found)]) for f in fields)))
    assert mr.evaluate(Answers(names, answers), squares)["segm"]["AP"] == pytest.approx(1)


def test_a_model_of_as_many_other_classes_is_named():
    with pytest.raises(ValueError, match=r"among them b, which it does not know"):
        mr.evaluate(Answers(["background", "a", "c"], []), Squares())


def test_other_classes_are_named():
    with pytest.raises(ValueError, match=r"knows 4 classes and Squares has 3"):
        mr.evaluate(Answers(["background", "x", "y", "z"], []), Squares())


@pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/coco_sample")
def test_numbers_are_pycocotools_on_the_annotation_file():
    """Noisy copies of the truth, scored by us through the dataset and by pycocotools from the two files."""
    from pycocotools.coco import COCO as Reference
    from pycocotools.cocoeval import COCOeval

    dataset, rng = mr.CocoDataset(COCO), np.random.default_rng(0)
    answers, results = [], []
    for i in range(len(dataset)):
        boxes, classes, masks = dataset.instances(i)
        classes = np.where(rng.uniform(size=len(classes)) < 0.1, 1, abs(classes))
        shifted = np.roll(masks, rng.integers(-3, 4, 2), axis=(1, 2))
        found = mr.Detections(boxes + rng.normal(0, 2, boxes.shape), classes, rng.uniform(size=len(boxes)), shifted)
        answers.append(found)
        results += evaluation.as_coco(found, dataset.image_id(i), dataset.category_ids)
    ours = mr.evaluate(Answers(dataset.class_names, answers), dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = Reference(COCO / "annotations" / "instances_val2017.json")
        for kind in ("bbox", "segm"):
            # A result with a box counts as small or large by its box; for masks COCO's server has no boxes.
            entries = [{k: v for k, v in entry.items() if kind == "bbox" or k != "bbox"} for entry in results]
            run = COCOeval(reference, reference.loadRes(json.loads(json.dumps(entries))), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            np.testing.assert_allclose(list(ours[kind].values()), run.stats, atol=1e-9)
    assert 0.1 < ours["segm"]["AP"] < 0.95

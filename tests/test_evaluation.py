"""Evaluation: perfect and imperfect answers by hand, crowds, and equality with pycocotools on the files themselves."""

import contextlib
import functools
import io
import json
import operator
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import evaluation, runs

COCO = Path(__file__).parents[2] / "shared" / "coco_sample"


class Answers:
    """Stands in for a model: gives prepared detections, in the order of the dataset."""

    mask_head = True

    def __init__(self, class_names, detections):
        self.class_names, self.left = class_names, list(detections)

    def detect_later(self, images, batch_size=1):
        return [functools.partial(self.left.pop, 0) for _ in images]


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
def test_numbers_are_pycocotools_on_the_files(tmp_path):
    """Noisy copies of the truth, scored by us as they come and by pycocotools from annotation and results files."""
    from pycocotools.coco import COCO as Reference
    from pycocotools.cocoeval import COCOeval

    dataset, rng = mr.CocoDataset(COCO), np.random.default_rng(0)
    dataset._images.reverse()  # not by image id, which decides between equal scores
    answers = []
    for i in range(len(dataset)):
        boxes, classes, masks = dataset.instances(i)
        classes = np.where(rng.uniform(size=len(classes)) < 0.1, 1, abs(classes))
        shifted = np.roll(masks, rng.integers(-3, 4, 2), axis=(1, 2))
        scores = rng.uniform(size=len(boxes)).round(1)  # many are equal
        answers.append(mr.Detections(boxes + rng.normal(0, 2, boxes.shape), classes, scores, shifted))
    model = Answers(dataset.class_names, answers)
    ours = mr.evaluate(model, dataset, results=tmp_path, curves=True, per_class=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bbox.json", "segm.json"]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = Reference(COCO / "annotations" / "instances_val2017.json")
        for kind in ("bbox", "segm"):
            run = COCOeval(reference, reference.loadRes(str(tmp_path / f"{kind}.json")), kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            np.testing.assert_allclose(list(ours[kind].values()), run.stats, atol=1e-12)
            curves = ours["curves"][kind]
            np.testing.assert_array_equal(curves["precision"], run.eval["precision"][:, :, :, 0, -1])
            np.testing.assert_array_equal(curves["scores"], run.eval["scores"][:, :, :, 0, -1])
            assert curves["classes"] == dataset.class_names[1:] and len(curves["iou"]) == 10
            assert curves["recall"].shape == (101,)
            rows = ours["per_class_sizes"][kind].values()
            for metric in ("AP", "AP50", "AP75", "APs", "APm", "APl"):
                of_classes = [row[metric] for row in rows if row[metric] > -1]
                assert np.mean(of_classes) == pytest.approx(ours[kind][metric])
    assert 0.1 < ours["segm"]["AP"] < 0.95


@pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/coco_sample")
def test_batches_change_nothing(tmp_path):
    """Photographs of one padded size are run together, whatever lies between them."""
    model, dataset = runs.load(mr.files("shapes.keras")), mr.CocoDataset(COCO)
    dataset.class_names = model.class_names  # it finds what looks like shapes; that is enough here
    dataset.category_ids, dataset.labelled = [None, 1, 2, 3], False
    for batch_size in (1, 3):
        mr.evaluate(model, dataset, limit=8, batch_size=batch_size, results=tmp_path / str(batch_size))
    single, batched = (json.loads((tmp_path / name / "segm.json").read_text()) for name in "13")
    assert len(single) == len(batched) > 8
    key = operator.itemgetter("image_id")  # images may come in another order
    for a, b in zip(sorted(single, key=key), sorted(batched, key=key), strict=True):
        assert a["image_id"] == b["image_id"] and a["score"] == pytest.approx(b["score"], abs=1e-4)


class Unlabelled(Squares):
    labelled, category_ids = False, [None, 17, 18]

    def load_masks(self, i):
        raise AssertionError("there are none")

    def image_id(self, i):
        return 100 + i


def test_without_annotations_there_are_results_alone(tmp_path):
    answers = [truth_as_detections(Squares(), i) for i in range(2)]
    assert mr.evaluate(Answers(Squares.class_names, answers), Unlabelled(), results=tmp_path / "new" / "folder") == {}
    entries = json.loads((tmp_path / "new" / "folder" / "bbox.json").read_text())
    assert [(entry["image_id"], entry["category_id"]) for entry in entries] == [(100, 17), (101, 18)]
    assert entries[0]["bbox"] == [10, 10, 20, 20] and set(entries[0]) == {"image_id", "category_id", "bbox", "score"}
    with pytest.raises(mr.InputError, match="no annotations to compare with; ask for results"):
        mr.evaluate(Answers(Squares.class_names, []), Unlabelled())


def test_no_detections_at_all_are_an_empty_list(tmp_path):
    nothing = mr.Detections(np.zeros((0, 4), "f4"), np.zeros(0, int), np.zeros(0, "f4"), np.zeros((0, 60, 80), bool))
    mr.evaluate(Answers(Squares.class_names, [nothing] * 2), Squares(), results=tmp_path)
    assert json.loads((tmp_path / "segm.json").read_text()) == []


@pytest.mark.parametrize("stop", [mr.InputError("002.jpg: the image cannot be read."), KeyboardInterrupt()])
def test_stopped_in_the_middle_nothing_is_left(tmp_path, stop):
    class Damaged(Squares):
        def load_image(self, i):
            if i == 1:
                raise stop
            return super().load_image(i)

    answers = [truth_as_detections(Squares(), i) for i in range(2)]
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(type(stop)):
            mr.evaluate(Answers(Squares.class_names, answers.copy()), Damaged(), results=folder)
        assert list(tmp_path.iterdir()) == []


def test_the_network_runs_while_the_last_image_is_encoded():
    started = [threading.Event() for _ in range(2)]

    class Slow(Answers):
        def detect_later(self, images, batch_size=1):
            i = 2 - len(self.left)
            started[i].set()
            found = self.left.pop(0)

            def finish():
                assert started[1].wait(20), "the second image waits for the first to be encoded"
                return found

            return [finish]

    answers = [truth_as_detections(Squares(), i) for i in range(2)]
    assert mr.evaluate(Slow(Squares.class_names, answers), Squares())["segm"]["AP"] == pytest.approx(1)


def test_memory_stays_flat():
    """Of an image with 100 detections, less than 20 kB stay: not its masks, and not their run lengths."""
    rng, memory = np.random.default_rng(0), {}

    class Many(Squares):
        def __len__(self):
            return 30

        def load_masks(self, i):
            return Squares.load_masks(self, i % 2)

    class Busy(Answers):
        config = mr.Config.tiny()

        def detect_later(self, images, batch_size=1):
            boxes = np.tile(np.float32([5, 5, 55, 75]), (100, 1)) + rng.uniform(-5, 5, (100, 4)).astype("f4")
            masks = rng.uniform(size=(100, 60, 80)) < 0.5
            return [lambda: mr.Detections(boxes, rng.integers(1, 3, 100), rng.uniform(size=100), masks)]

    tracemalloc.start()
    try:
        mr.evaluate(
            Busy(Squares.class_names, []), Many(),
            progress=lambda done: memory.update({done: tracemalloc.get_traced_memory()[0]}),
        )  # fmt: skip
    finally:
        tracemalloc.stop()
    # The least of ten: some images are under way at any moment.
    growth = min(memory[i] for i in range(21, 31)) - min(memory[i] for i in range(1, 11))
    assert growth / 20 < 20_000

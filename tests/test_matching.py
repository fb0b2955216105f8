"""Matching: COCO's rule for hits, false alarms and crowds, agreeing with pycocotools' own evaluation."""

from types import SimpleNamespace

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.matching import FALSE_ALARM, ON_CROWD, match_detections, overlaps


def some(boxes, classes, scores=None, masks=None):
    return SimpleNamespace(
        boxes=np.float32(boxes).reshape(-1, 4),
        classes=np.array(classes, int),
        scores=np.float32(scores or []),
        masks=masks,
    )


def test_the_best_takes_the_object_and_the_second_is_a_false_alarm():
    truth = some([[0, 0, 10, 10], [0, 20, 10, 30]], [1, 2])
    found = some([[0, 0, 10, 9], [0, 0, 10, 10], [0, 20, 10, 30]], [1, 1, 1], [0.9, 0.8, 0.7])
    iou = overlaps(truth, found)
    np.testing.assert_allclose(iou, [[0.9, 0], [1, 0], [0, 1]], atol=1e-6)
    hits = match_detections(iou, truth.classes, found.classes, found.scores)
    assert hits.tolist() == [0, FALSE_ALARM, FALSE_ALARM]  # the third is of the wrong class
    hits = match_detections(iou, truth.classes, found.classes, [0.7, 0.8, np.nan])
    assert hits.tolist() == [FALSE_ALARM, 0, FALSE_ALARM]
    assert match_detections(iou, truth.classes, found.classes, found.scores, 0.95).tolist()[0] == FALSE_ALARM


def test_on_a_crowd_counts_neither_way():
    truth = some([[0, 0, 100, 100]], [-1])
    found = some([[0, 0, 10, 10], [90, 90, 110, 110], [0, 0, 10, 10]], [1, 1, 2], [0.9, 0.8, 0.7])
    hits = match_detections(overlaps(truth, found), truth.classes, found.classes, found.scores)
    assert hits.tolist() == [ON_CROWD, FALSE_ALARM, FALSE_ALARM]


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_agrees_with_pycocotools(rng, threshold):
    for image in range(20):
        corner = rng.uniform(0, 60, (6, 2))
        truth = some(np.concatenate([corner, corner + rng.uniform(10, 40, (6, 2))], 1), rng.integers(1, 3, 6))
        boxes = np.repeat(truth.boxes, 2, 0) + rng.normal(0, 3, (12, 4))
        found = some(boxes, rng.integers(1, 3, 12), list(rng.permutation(12) / 12))
        hits = match_detections(overlaps(truth, found), truth.classes, found.classes, found.scores, threshold)
        expected = cocos_hits(truth, found, threshold)
        assert {(d, h) for d, h in enumerate(hits) if h >= 0} == expected, image


def cocos_hits(truth, found, threshold):
    """The pairs of detection and object that COCOeval matches."""

    def entries(of, scores):
        for number, ((y1, x1, y2, x2), label) in enumerate(zip(of.boxes.tolist(), of.classes.tolist(), strict=True)):
            area = (x2 - x1) * (y2 - y1)
            entry = {"id": number + 1, "image_id": 1, "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            yield {**entry, "area": area, "iscrowd": 0, "score": float(scores[number])}

    reference, detections = COCO(), COCO()
    rest = {"images": [{"id": 1, "height": 128, "width": 128}], "categories": [{"id": 1}, {"id": 2}]}
    reference.dataset = {**rest, "annotations": list(entries(truth, np.ones(99)))}
    detections.dataset = {**rest, "annotations": list(entries(found, found.scores))}
    reference.createIndex()
    detections.createIndex()
    run = COCOeval(reference, detections, "bbox")
    run.params.iouThrs = np.array([threshold])
    run.evaluate()
    pairs = set()
    for result in run.evalImgs:
        if result and result["aRng"] == [0, 1e10]:
            pairs |= {(d - 1, int(g) - 1) for d, g in zip(result["dtIds"], result["dtMatches"][0], strict=True) if g}
    return pairs


def test_masks_and_what_does_not_match():
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :10, :10], masks[1, :10, :5] = True, True
    truth, found = some([[0, 0, 10, 10]], [1], masks=masks[:1]), some([[0, 0, 10, 5]], [1], [1.0], masks[1:])
    assert overlaps(truth, found, "masks") == pytest.approx(0.5)
    assert overlaps(truth, some([], [])).shape == (0, 1) and overlaps(some([], []), found).shape == (1, 0)
    found.masks = masks[1:, :10]
    with pytest.raises(InputError, match="same size"):
        overlaps(truth, found, "masks")
    with pytest.raises(InputError, match="choose boxes or masks"):
        overlaps(truth, found, "bbox")

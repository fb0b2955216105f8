"""Overlap, deltas and suppression, against hand-computed cases and torchvision's answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from maskrcnn_edu import boxes


def arrays_of_boxes(max_count=12):
    """Boxes with corners in 0..100 and sides of 0.5 to 50 pixels."""

    def build(parts):
        corner, side = parts
        return np.concatenate([corner, corner + side], axis=1).astype(np.float32)

    return st.integers(1, max_count).flatmap(
        lambda n: st.tuples(
            hnp.arrays(np.float32, (n, 2), elements=st.floats(0, 100, width=32)),
            hnp.arrays(np.float32, (n, 2), elements=st.floats(0.5, 50, width=32)),
        ).map(build)
    )


def greedy(candidates, scores, threshold, classes=None):
    """NMS as it is told: from the best score down, keep what no kept box overlaps too much."""
    overlap, kept = np.asarray(boxes.iou(candidates, candidates)), []
    for i in np.argsort(-scores, kind="stable"):
        rivals = [j for j in kept if classes is None or classes[j] == classes[i]]
        if all(overlap[j, i] <= threshold for j in rivals):
            kept.append(i)
    keep = np.zeros(len(scores), bool)
    keep[kept] = True
    return keep


def test_iou_by_hand():
    a = [[0, 0, 2, 2]]
    b = [[0, 0, 2, 2], [0, 1, 2, 3], [1, 1, 3, 3], [2, 0, 4, 2], [5, 5, 5, 5], [2, 2, 0, 0]]
    np.testing.assert_allclose(boxes.iou(a, b), [[1, 1 / 3, 1 / 7, 0, 0, 0]], rtol=1e-6)
    assert np.asarray(boxes.iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]))[0, 0] == 0  # nothing over nothing is nothing


def test_iou_has_leading_axes(rng):
    a, b = rng.uniform(0, 9, (2, 3, 4)), rng.uniform(0, 9, (2, 5, 4))
    assert boxes.iou(a, b).shape == (2, 3, 5)
    np.testing.assert_array_equal(np.asarray(boxes.iou(a, b))[1], boxes.iou(a[1], b[1]))


def test_iou_is_torchvisions(oracle):
    first = oracle["nms_boxes"][:60]
    np.testing.assert_allclose(boxes.iou(first, first), oracle["iou"], atol=1e-6)


@given(arrays_of_boxes(), arrays_of_boxes())
@settings(max_examples=40, deadline=None)
def test_iou_is_symmetric_and_at_most_one(a, b):
    forward, backward = np.asarray(boxes.iou(a, b)), np.asarray(boxes.iou(b, a))
    np.testing.assert_allclose(forward, backward.T, atol=1e-6)
    assert (forward >= 0).all() and (forward <= 1 + 1e-6).all()


def test_deltas_by_hand():
    # From a 4 x 4 box at the origin to one twice as high, its centre 2 down and 1 right.
    np.testing.assert_allclose(boxes.encode([[0, 1, 8, 5]], [[0, 0, 4, 4]]), [[0.5, 0.25, np.log(2), 0]], atol=1e-6)
    np.testing.assert_allclose(boxes.encode([[0, 1, 8, 5]], [[0, 0, 4, 4]], (10, 10, 5, 5))[0][0], 5.0, atol=1e-6)


def test_coder_is_torchvisions(oracle):
    weights = tuple(oracle["coder_weights"])
    deltas = boxes.encode(oracle["coder_gt"], oracle["coder_proposals"], weights)
    np.testing.assert_allclose(deltas, oracle["coder_deltas"], atol=1e-4)
    decoded = boxes.decode(oracle["coder_deltas"] * 1.7, oracle["coder_proposals"], weights)
    np.testing.assert_allclose(decoded, oracle["coder_decoded"], atol=1e-4, rtol=1e-5)


@given(arrays_of_boxes(1), arrays_of_boxes(1))
@settings(max_examples=40, deadline=None)
def test_decode_undoes_encode(box, reference):
    if np.any(np.log((box[:, 2:] - box[:, :2]) / (reference[:, 2:] - reference[:, :2])) > boxes.MAX_LOG_SIZE):
        return  # a box that decode is not allowed to reach
    there = boxes.encode(box, reference, (10, 10, 5, 5))
    np.testing.assert_allclose(boxes.decode(there, reference, (10, 10, 5, 5)), box, atol=2e-3)


def test_decode_limits_the_size():
    grown = np.asarray(boxes.decode([[0, 0, 50.0, 50.0]], [[0, 0, 16, 16]]))[0]
    np.testing.assert_allclose(grown[2:] - grown[:2], 1000, rtol=1e-5)


def test_clip():
    np.testing.assert_array_equal(boxes.clip([[[-3, 2, 50, 9]]], [[20, 8]]), [[[0, 2, 20, 8]]])


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_nms_is_torchvisions(oracle, threshold):
    keep = np.asarray(boxes.nms(oracle["nms_boxes"], oracle["nms_scores"], threshold))
    assert set(np.flatnonzero(keep)) == set(oracle[f"nms_keep_{threshold}"])
    keep = np.asarray(boxes.nms(oracle["nms_boxes"], oracle["nms_scores"], threshold, oracle["nms_classes"]))
    assert set(np.flatnonzero(keep)) == set(oracle[f"nms_per_class_keep_{threshold}"])


def test_nms_by_hand():
    # A chain: the second is suppressed by the first, so the third, which only the second overlaps, stays.
    chain = [[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]]
    np.testing.assert_array_equal(boxes.nms(chain, [0.9, 0.8, 0.7], 0.5), [True, False, True])
    np.testing.assert_array_equal(boxes.nms(chain, [0.7, 0.9, 0.8], 0.5), [False, True, False])
    np.testing.assert_array_equal(boxes.nms(chain, [0.9, 0.8, 0.7], 0.5, classes=[1, 2, 1]), [True, True, True])
    np.testing.assert_array_equal(boxes.nms([[0, 0, 4, 4]] * 3, [0.5] * 3, 0.5), [True, False, False])
    assert np.asarray(boxes.nms(np.zeros((0, 4)), np.zeros(0), 0.5)).shape == (0,)


@given(arrays_of_boxes(30), st.sampled_from([0.0, 0.3, 0.7]), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_nms_is_greedy_and_idempotent(candidates, threshold, seed):
    rng = np.random.default_rng(seed)
    scores, classes = rng.integers(0, 8, len(candidates)) / 8, rng.integers(0, 2, len(candidates))
    keep = np.asarray(boxes.nms(candidates, scores, threshold, classes))
    np.testing.assert_array_equal(keep, greedy(candidates, scores, threshold, classes))
    assert np.asarray(boxes.nms(candidates[keep], scores[keep], threshold, classes[keep])).all()


@pytest.mark.parametrize("chunk", [7, 50, 1000])
def test_class_nms_is_greedy_nms_whatever_its_chunk(rng, chunk):
    corner, side = rng.uniform(0, 60, (2, 150, 2)), rng.uniform(5, 40, (2, 150, 2))
    candidates = np.concatenate([corner, corner + side], axis=-1).astype("f4")
    scores = np.where(rng.uniform(size=(2, 150)) < 0.2, 0, rng.uniform(size=(2, 150))).astype("f4")
    classes = rng.integers(1, 4, (2, 150)).astype("i4")
    index, found = (np.asarray(x) for x in boxes.class_nms(candidates, scores, classes, 0.4, 20, chunk=chunk))
    for image in range(2):
        keep = greedy(candidates[image], scores[image], 0.4, classes[image]) & (scores[image] > 0)
        best = np.flatnonzero(keep)[np.argsort(-scores[image][keep], kind="stable")][:20]
        np.testing.assert_array_equal(index[image][found[image] > 0], best)


def test_class_nms_has_no_more_slots_than_candidates():
    """Each slot costs a run of the mask head."""
    index, scores = boxes.class_nms(np.zeros((1, 2, 4), "f4"), np.float32([[0, 0.5]]), np.int32([[1, 1]]), 0.5, 10**5)
    np.testing.assert_array_equal(scores, [[0.5, 0]])
    assert np.asarray(index)[0, 0] == 1

"""Differences, overlaps, precision and recall: what was hit can be told from what was missed."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_plots import GREY, caption_boxes, drawn, in_frame, overlapping, squares

from maskrcnn_edu import plots
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import metrics

NAMES = ["background", "cat", "dog"]


def truth_and_found():
    """Three squares: the first is hit, the second missed; a detection where nothing is, and one that scores too low."""
    boxes, masks = squares(4, side=28)
    truth = SimpleNamespace(boxes=boxes[:2], classes=np.array([1, 2]), masks=masks[:2])
    found = SimpleNamespace(
        boxes=boxes[[0, 2, 3]], classes=np.array([1, 2, 1]), scores=np.float32([0.9, 0.8, 0.2]), masks=masks[[0, 2, 3]]
    )
    return truth, found


@pytest.mark.parametrize("with_masks", [True, False])
def test_hits_misses_and_false_alarms_differ(with_masks):
    truth, found = truth_and_found()
    if not with_masks:
        truth.masks = found.masks = None
    ax = plots.differences(GREY, truth, found, class_names=NAMES)
    assert ax.get_title().startswith("1 hit, 1 missed, 1 false alarm ")
    assert sorted(text.get_text() for text in ax.texts) == ["cat 0.90, IoU 1.00", "dog", "dog 0.80, IoU 0.00"]
    papers = caption_boxes(ax)
    assert in_frame(ax, papers) and not len(overlapping(papers))
    pixels = drawn(ax)
    for i, rgb in ((0, metrics.HIT), (1, metrics.MISS)):
        assert near_box(ax, pixels, truth.boxes[i], rgb)
    assert near_box(ax, pixels, found.boxes[1], metrics.ALARM)
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["hit", "its ground truth", "missed", "false alarm"]


def near_box(ax, pixels, box, rgb):
    """Whether the lower edge of a box is drawn in a colour."""
    (x1, y), (x2, _) = ax.transData.transform([(box[1], box[2]), (box[3], box[2])])
    row = len(pixels) - int(y)
    strip = pixels[row - 3 : row + 4, int(x1) : int(x2)]
    return (np.abs(strip - to_rgb(rgb)).max(-1) < 0.1).any(0).mean() > 0.3


def test_differences_of_nothing_and_of_much(rng):
    truth, found = truth_and_found()
    nothing = SimpleNamespace(boxes=np.zeros((0, 4)), classes=np.zeros(0, int), scores=np.zeros(0), masks=None)
    assert plots.differences(GREY, truth, nothing).get_title().startswith("0 hit, 2 missed, 0")
    assert plots.differences(GREY, nothing, nothing).get_title().startswith("0 hit, 0 missed, 0")
    found.scores = np.float32([np.nan] * 3)
    assert plots.differences(GREY, truth, found).get_title().startswith("0 hit, 2 missed, 0")
    corner = rng.uniform(0, 100, (200, 2))
    many = SimpleNamespace(
        boxes=np.concatenate([corner, corner + 20], 1), classes=np.ones(200, int), scores=np.ones(200), masks=None
    )
    papers = caption_boxes(plots.differences(GREY, truth, many))
    assert len(papers) > 10 and not len(overlapping(papers))
    with pytest.raises(InputError, match="scores"):
        plots.differences(GREY, truth, truth)
    with pytest.raises(InputError, match="masks has shape"):
        plots.differences(np.zeros((9, 9)), truth, found)


def test_overlap_matrix_names_matches():
    truth, found = truth_and_found()
    found.classes = np.array([1, 2, 1])
    truth.classes = np.array([2, 2])
    ax = plots.overlap_matrix(truth, found, class_names=NAMES)
    assert [text.get_text() for text in ax.texts] == ["1.00\nwrong class"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["cat 0.90", "dog 0.80", "cat 0.20"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["dog", "dog"]
    truth.classes[0] = 1
    assert "match" in plots.overlap_matrix(truth, found, kind="masks").texts[0].get_text()
    many = SimpleNamespace(boxes=np.tile(found.boxes[:1], (200, 1)), classes=np.ones(200, int), scores=np.ones(200))
    ax = plots.overlap_matrix(truth, many)
    assert len(ax.get_yticks()) == 20 and "20 × 2" in ax.get_title() and ax.figure.get_figheight() <= 10
    with pytest.raises(InputError, match="0 detections"):
        plots.overlap_matrix(truth, SimpleNamespace(boxes=np.zeros((0, 4)), classes=[], scores=[]))


def curves():
    recall, iou = np.linspace(0, 1, 101), np.arange(0.5, 1, 0.05)
    precision = np.stack([1 - recall[None] * iou[:, None], np.ones((10, 101)), -np.ones((10, 101))], axis=-1)
    one = {"recall": recall, "precision": precision, "scores": precision, "iou": iou, "classes": ["cat", "dog", "emu"]}
    return {"bbox": one, "segm": {**one, "precision": precision * 0.5}}


def test_precision_recall_of_curves():
    ax = plots.precision_recall(curves(), kind="bbox")
    assert [line.get_label() for line in ax.lines] == ["IoU 0.5  AP 0.875", "IoU 0.75  AP 0.812", "IoU 0.9  AP 0.775"]
    np.testing.assert_allclose(ax.lines[0].get_ydata()[[0, -1]], [1, 0.75])  # the class without objects is left out
    assert plots.precision_recall({"bbox": {}, "curves": curves()}).get_title() == "masks"
    ax = plots.precision_recall(curves()["bbox"], by_class=True, iou=(0.5,))
    assert [line.get_label() for line in ax.lines] == ["cat  AP 0.750", "dog  AP 1.000"]
    styles = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len({style for _, style in styles}) == 2  # told apart without colour too


def test_precision_recall_of_arrays_and_of_wrong_ones():
    ax = plots.precision_recall(recall=[0, 0.5, 1], precision=[1, 1, 0.5])
    assert ax.lines[0].get_label() == "AP 0.875"
    for wrong, says in (
        ({}, "curves, or recall"), ({"recall": [0, 1], "precision": [1]}, "shape"), ({"curves": {}}, "curves=True"),
        ({"curves": curves(), "iou": (0.33,)}, "was not evaluated"), ({"recall": [], "precision": []}, "above 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            plots.precision_recall(**wrong)
    empty = curves()["bbox"]
    empty["precision"] = -np.ones((10, 101, 3))
    assert "no objects" in plots.precision_recall(empty).texts[0].get_text()

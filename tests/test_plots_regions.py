"""Anchors, boxes, proposals, RoIs and the stages of detection: each is drawn, in its place and told apart."""

import keras
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from test_plots import GREY, caption_boxes, drawn, in_frame, overlapping

import maskrcnn_edu as mr
from maskrcnn_edu import plots
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.plots import regions

SHAPES = mr.ShapesDataset(6, seed=1)
TINY = mr.Config.tiny()
BOXES = np.float32([[10, 10, 40, 50], [60, 20, 120, 60], [30, 70, 90, 120]])


@pytest.fixture(scope="module")
def model():
    return keras.saving.load_model(mr.files("shapes.keras"))


@pytest.fixture(scope="module")
def found(model):
    return mr.stages.stages(model, SHAPES.image(2))


def edges(ax, box):
    """The pixels along the edge of a box, (K, 3) in 0..1."""
    pixels = drawn(ax)
    y1, x1, y2, x2 = box
    along = np.linspace(0.1, 0.9, 60)
    places = [(x1 + a * (x2 - x1), y) for a in along for y in (y1, y2)]
    places += [(x, y1 + a * (y2 - y1)) for a in along for x in (x1, x2)]
    x, y = ax.transData.transform(places).T
    return pixels[np.clip(len(pixels) - y, 0, len(pixels) - 1).astype(int), x.astype(int)]


def share(ax, box, rgb):
    return (np.abs(edges(ax, box) - to_rgb(rgb)).max(-1) < 0.2).mean()


def test_boxes_are_where_they_say():
    ax = plots.boxes(GREY, BOXES, captions=["a", "b", "c"], prominence=[2, 1, 0])
    assert len(ax.patches) == 3
    solid, dotted, faint = (
        share(ax, BOXES[0], plots.colour(0)),
        share(ax, BOXES[1], plots.colour(1)),
        share(ax, BOXES[2], plots.colour(2)),
    )
    assert solid > 0.7 > dotted > 0.2 and faint < 0.05
    papers = caption_boxes(ax)
    assert len(papers) == 3 and in_frame(ax, papers) and not len(overlapping(papers))
    instances = SHAPES.instances(0)
    assert len(plots.boxes(SHAPES.image(0), instances).patches) == len(instances.boxes)
    assert not plots.boxes(GREY, []).patches
    assert len(plots.boxes(GREY, [[np.nan] * 4, [1, 1, 5, 5]], captions=["x", "y"]).patches) == 1


def test_view_shows_what_reaches_over_the_edge():
    reaching = np.float32([[-10, 5, 50, 60], [5, 5, 60, 400]])
    view = plots.view_of(GREY, reaching)
    assert -12 < view[0] < -10 and view[1] == 0 and view[2] == 128 and 140 < view[3] < 145
    ax = plots.boxes(GREY, reaching, view=view)
    assert ax.get_ylim() == (view[2], view[0]) and ax.get_xlim() == (view[1], view[3])


def test_refinement_is_dotted_before_and_solid_after():
    after = BOXES + np.float32([0, 8, 12, 6])
    ax = plots.refinement(GREY, BOXES, after, refined=[True, True, False])
    assert len(ax.patches) == 5 and len(ax.lines) == 2
    assert share(ax, after[0], plots.colour(0)) > share(ax, BOXES[0], plots.colour(0)) + 0.1
    assert share(ax, after[2], plots.colour(2)) < 0.1
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [BOXES[0, 1::-1], after[0, 1::-1]])
    with pytest.raises(InputError, match="3 boxes and 2 entries in after"):
        plots.refinement(GREY, BOXES, after[:2])


def test_anchors_of_each_level():
    ax = plots.anchors(SHAPES.image(0), TINY)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == [
        "P2: stride 4, size 16, 3,072 of them", "P3: stride 8, size 32, 768 of them",
        "P4: stride 16, size 64, 192 of them",
    ]  # fmt: skip
    assert len(ax.patches) == 9
    areas = [patch.get_width() * patch.get_height() for patch in ax.patches]
    np.testing.assert_allclose(areas, np.repeat([16, 32, 64], 3) ** 2, rtol=1e-4)
    assert len(plots.anchors(SHAPES.image(0), TINY, levels=[1]).patches) == 3
    with pytest.raises(InputError, match="levels is"):
        plots.anchors(SHAPES.image(0), TINY, levels=[3])


def test_anchors_against_objects_are_training_s_own():
    truth = SHAPES.instances(2)
    ax = plots.anchors(SHAPES.image(2), TINY, truth, count=1000)
    anchors = mr.anchors.pyramid_anchors((128, 128), TINY)
    label = np.asarray(mr.targets.match_with_crowds(
        anchors, truth.boxes, truth.classes, low_quality=True, positive_threshold=0.7, negative_threshold=0.3
    )[1])  # fmt: skip
    counts = {kind: (label == value).sum() for kind, value in (("negative", 0), ("neutral", -1), ("positive", 1))}
    told = " ".join(text.get_text() for text in ax.get_legend().get_texts())
    assert all(f"{count:,} {kind}" in told for kind, count in counts.items())
    blue = [patch for patch in ax.patches if patch.get_edgecolor()[:3] == to_rgb(regions.POSITIVE)]
    assert len(blue) == counts["positive"]
    white = [patch for patch in ax.patches if patch.get_edgecolor()[:3] == (1, 1, 1)]
    assert len(white) == len(truth.boxes)
    # A larger photograph: its objects move with it into the network's frame.
    large = np.repeat(np.repeat(SHAPES.image(2), 2, 0), 2, 1)
    again = plots.anchors(large, TINY, truth._replace(boxes=truth.boxes * 2), count=1000)
    assert len(again.patches) == len(ax.patches)
    nothing = plots.anchors(np.zeros((1, 1)), TINY, truth._replace(boxes=truth.boxes[:0], classes=truth.classes[:0]))
    assert "0 positive" in nothing.get_legend().get_texts()[2].get_text()


def test_proposals_show_the_best(found):
    ax = plots.proposals(found.image, found.proposals, found.proposal_scores, count=10, truth=SHAPES.instances(2))
    assert len(ax.patches) == 10 + len(SHAPES.instances(2).boxes)
    drawn_boxes = {tuple(np.round(patch.get_bbox().extents[[1, 0, 3, 2]], 2)) for patch in ax.patches[:10]}
    assert drawn_boxes == {tuple(np.round(box, 2)) for box in found.proposals[:10].astype(float)}
    assert ax.get_title() == "the best 10 of 60 proposals"
    assert not plots.proposals(GREY, [], []).patches
    plots.proposals(GREY, BOXES, [np.nan, 0.5, 1])
    with pytest.raises(InputError, match="scores"):
        plots.proposals(GREY, BOXES, [1.0])


def test_rois_show_their_part_of_the_image(found):
    kept = found.kept
    sheet = plots.rois_with_masks(
        found.image, found.candidates[kept], found.mask_probabilities, classes=found.candidate_classes[kept],
        scores=found.candidate_scores[kept], class_names=found.class_names,
    )  # fmt: skip
    titles = [ax.get_title() for ax in sheet.axes[: len(kept)]]
    assert titles == [
        f"{found.class_names[c]} {s:.2f}"
        for c, s in zip(found.detections.classes, found.detections.scores, strict=True)
    ]
    for i, ax in enumerate(sheet.axes[: len(kept)]):
        y1, x1, y2, x2 = found.candidates[kept[i]]
        assert ax.get_xlim() == pytest.approx((x1, x2)) and ax.get_ylim() == pytest.approx((y2, y1))
        paint = ax.images[1].get_array()
        np.testing.assert_allclose(paint[..., 3], 0.6 * found.mask_probabilities[i], atol=1e-5)
    empty = plots.rois_with_masks(GREY, [], np.zeros((0, 28, 28)))
    assert empty.axes[0].get_title() == "no regions of interest"
    plots.rois_with_masks(GREY, [[-5, -5, 0, 0]], np.full((1, 7, 7), np.nan))
    with pytest.raises(InputError, match="masks has shape"):
        plots.rois_with_masks(GREY, BOXES, np.zeros((3, 4)))


def test_mask_targets_stand_below_their_rois(model):
    batch = next(iter(mr.loader(SHAPES, model.config, training=False)))
    taught = mr.stages.training_stages(model, batch, 1)
    sheet = plots.mask_targets(taught, limit=4)
    assert len(sheet.axes) == 8
    for i, mask in enumerate(taught.masks[:4]):
        cells = sheet.axes[4 + i].images[0].get_array()
        np.testing.assert_array_equal(np.abs(cells - 255 * plots.colour(4)).max(-1) < 1, mask == 1)
    taught.masks = taught.masks[:0]
    assert "no positive RoI" in plots.mask_targets(taught).axes[0].get_title()
    taught.masks = None
    with pytest.raises(InputError, match="no mask head"):
        plots.mask_targets(taught)


def test_detection_stages_are_eight(model, found):
    sheet = plots.detection_stages(found, count=12)
    titles = [ax.get_title() for ax in sheet.axes]
    assert [title[0] for title in titles] == list("12345678")
    assert (
        titles[0] == "1 The best 12 of 4,032 anchors" and titles[6] == f"7 After NMS in each class: {len(found.kept)}"
    )
    count = [len(ax.patches) for ax in sheet.axes]
    assert count[0] == count[2] == count[4] == 12 and count[1] == 24
    # What NMS keeps of the best are the best proposals themselves.
    survivors = np.array([patch.get_bbox().extents[[1, 0, 3, 2]] for patch in sheet.axes[3].patches])
    np.testing.assert_allclose(survivors, found.proposals[: len(survivors)], atol=1e-4)
    assert [text.get_text() for text in sheet.axes[6].texts][
        0
    ] == f"{found.class_names[found.detections.classes[0]]} 1.00"
    papers = caption_boxes(sheet.axes[6])
    assert in_frame(sheet.axes[6], papers) and not len(overlapping(papers))
    broken = mr.MaskRCNN(model.config, model.class_names)  # after a loss of NaN
    broken.set_weights([np.full_like(weight, np.nan) for weight in model.get_weights()])
    sheet = plots.detection_stages(broken, SHAPES.image(0))
    drawn(sheet.axes[0])
    assert sheet.axes[6].get_title() == "7 After NMS in each class: 0" and not sheet.axes[1].patches[20:]
    one_pixel = plots.detection_stages(model, np.zeros((1, 1), np.uint8))
    assert len(one_pixel.axes) == 8
    assert len(plots.detection_stages(model, np.concatenate([SHAPES.image(3), SHAPES.image(5)], 1)).axes) == 8

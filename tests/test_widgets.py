"""The widgets without a browser: their sums, pictures, state and answers to bad input. tests/browser moves them."""

import base64
import io
import itertools
import json
import math
import shutil
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import maskrcnn_edu as mr
from maskrcnn_edu import InputError, stages
from maskrcnn_edu.evaluation import evaluate
from maskrcnn_edu.runs import load
from maskrcnn_edu.widgets.base import SUMS, picture_url

MOST_STATE = 300 * 1024


@pytest.fixture(scope="module")
def model():
    return load(mr.files("shapes.keras"))


@pytest.fixture(scope="module")
def shapes():
    return mr.ShapesDataset(16, seed=1)


@pytest.fixture
def random_boxes(rng):
    def make(count, reach=60.0):
        corner = rng.uniform(0, reach, (count, 2))
        return np.hstack([corner, corner + rng.uniform(1, reach, (count, 2))]).astype(np.float32)

    return make


def javascript(code, **given):
    """What `code`, a JavaScript expression over sums.js and the given values, evaluates to."""
    node = shutil.which("node")
    if node is None:  # playwright brings one
        from playwright._impl._driver import compute_driver_executable

        node = compute_driver_executable()[0]
    given = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in given.items()}
    program = f"{SUMS}\nconst {{ {', '.join(given)} }} = {json.dumps(given)};\nconsole.log(JSON.stringify({code}));"
    done = subprocess.run([node, "-"], input=program, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# The sums in JavaScript are the library's


def test_overlaps_and_deltas_are_the_librarys(random_boxes):
    a, b = random_boxes(40), random_boxes(40)
    a[0], b[0] = [5, 5, 5, 9], [5, 5, 5, 9]  # empty
    b[1] = a[1]
    found = javascript(
        "a.map((box, i) => [iou(box, b[i]), giou(box, b[i]), intersection(box, b[i]), ...encode(b[i], box)])", a=a, b=b
    )
    expected = [np.diagonal(np.asarray(f(a, b))) for f in (mr.boxes.iou, mr.boxes.giou, mr.boxes.intersection)]
    expected = np.column_stack([*expected, np.asarray(mr.boxes.encode(b, a))])
    np.testing.assert_array_equal(np.float32(found)[:, 0], expected[:, 0])  # to the last bit: thresholds compare them
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_suppression_is_the_librarys(random_boxes, rng, threshold):
    boxes, scores, classes = random_boxes(120), rng.integers(0, 20, 120) / 20, rng.integers(0, 3, 120)
    boxes[10], scores[10] = boxes[11], scores[11]  # equal boxes, equal scores
    for groups in (None, classes):
        by = javascript(
            "suppressors(boxes, scores, threshold, groups)",
            boxes=boxes,
            scores=scores,
            threshold=threshold,
            groups=groups,
        )
        keep = np.asarray(mr.boxes.nms(boxes, scores, threshold, groups))
        np.testing.assert_array_equal(np.array(by) < 0, keep)
        best = np.argsort(-scores, kind="stable")[np.asarray(keep)[np.argsort(-scores, kind="stable")]][:5]
        most = javascript(
            "suppressors(boxes, scores, threshold, groups, 5)",
            boxes=boxes,
            scores=scores,
            threshold=threshold,
            groups=groups,
        )
        np.testing.assert_array_equal(np.flatnonzero(np.array(most) == -1), np.sort(best))


def test_stepper_and_javascript_name_the_same_suppressors(random_boxes, rng):
    boxes, scores = random_boxes(60), rng.random(60)
    widget = mr.widgets.NMSStepper(boxes, scores, threshold=0.4)
    by = javascript("suppressors(boxes, scores, 0.4)", boxes=boxes, scores=np.float32(scores))
    np.testing.assert_array_equal(widget.suppressed_by, by)
    assert (widget.suppressed_by == -1).sum() == widget.keep.sum() < 60


def test_anchors_of_a_cell_are_the_librarys():
    found = javascript("[0, 3].flatMap((row) => cellAnchors(row, 2, 8, 50, [0.5, 1, 3]))")
    expected = mr.anchors.level_anchors((4, 4), 8, 50, [0.5, 1, 3]).reshape(4, 4, 3, 4)[[0, 3], 2].reshape(-1, 4)
    np.testing.assert_array_equal(np.float32(found), expected)


@pytest.mark.parametrize("low_quality", [True, False])
def test_matching_is_the_librarys(random_boxes, low_quality):
    anchors, objects = random_boxes(200), random_boxes(4)
    overlaps = np.asarray(mr.boxes.iou(objects, anchors))
    best, favourite = overlaps.max(0), ((overlaps == overlaps.max(1, keepdims=True)) & (overlaps > 0)).any(0)
    found = javascript("matchLabels(best, favourite, 0.5, 0.2, low)", best=best, favourite=favourite, low=low_quality)
    np.testing.assert_array_equal(found, np.asarray(mr.targets.match(overlaps, 0.5, 0.2, low_quality)[1]))


ROIS = [[10, 20, 90, 77.5], [-30, -20, 40, 30], [5, 5, 5.5, 6], [100, 90, 300, 280], [9, 9, 9, 9]]


@pytest.mark.parametrize("ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_samplers_are_the_librarys(rng, ratio, aligned):
    feature = rng.normal(size=(12, 15)).astype(np.float32)
    code = """rois.map((roi) => [
        roiAlign(f, 12, 15, roi, 8, 7, ratio, aligned).values, roiPool(f, 12, 15, roi, 8, 7).values])"""
    found = javascript(code, f=feature.ravel(), rois=ROIS, ratio=ratio, aligned=aligned)
    for roi, (align, pool) in zip(ROIS, found, strict=True):
        widget = mr.widgets.RoIAlignExplorer(feature, roi, 8, sampling_ratio=ratio, aligned=aligned)
        np.testing.assert_allclose(align, widget.align_output.ravel(), atol=1e-5)
        np.testing.assert_allclose(pool, widget.pool_output.ravel(), atol=1e-6)


@pytest.mark.parametrize("half_pixel", [True, False])
@pytest.mark.parametrize("box", [[10.25, 12.5, 50.75, 40], [-8, -4, 30, 70], [3, 3, 3.4, 3.6], [20, 20, 20, 30]])
def test_pasted_mask_is_the_librarys(rng, half_pixel, box):
    mask, image = rng.random((28, 28)).astype(np.float32), np.zeros((60, 64, 3), np.uint8)
    widget = mr.widgets.MaskExplorer(mask, box, image, threshold=0.37)
    widget.half_pixel = half_pixel
    p = javascript("pasteWindow(mask, 28, box, 60, 64, half)", mask=mask.ravel(), box=box, half=half_pixel)
    values = np.array(list(p["values"].values()), np.float32).reshape(p["height"], p["width"])
    found = np.zeros((60, 64), bool)
    found[p["top"] : p["top"] + p["height"], p["left"] : p["left"] + p["width"]] = values >= np.float32(0.37)
    np.testing.assert_array_equal(found, widget.pasted)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.75])
def test_average_precision_is_pycocotools(rng, threshold):
    results = noisy_results(rng, images=12)
    widget = mr.widgets.PrecisionRecallExplorer(*results, iou_threshold=threshold)
    rows = [np.frombuffer(raw, np.float32).reshape(-1, 7) for raw in (widget.found, widget.objects)]
    code = """(() => {
        const found = d.map(([image, cls, score, ...box]) => ({ image, class: cls, score, box }));
        const objects = o.map(([image, cls, crowd, ...box]) => ({ image, class: cls, crowd: crowd > 0, box }));
        const matched = matchDetections(found, objects, threshold);
        const ap = [1, 2, 3].map((cls) => {
            const counts = (i) => matched[i] < 0 || !objects[matched[i]].crowd;
            const own = found.map((one, i) => [one, i]).filter(([one, i]) => one.class === cls && counts(i));
            return precisionRecall(own.map(([one]) => one.score), own.map(([, i]) => (matched[i] >= 0 ? 1 : 0)),
                objects.filter((one) => one.class === cls && !one.crowd).length).ap;
        });
        return [ap, matched.map((j) => (j < 0 ? 0 : objects[j].crowd ? -1 : 1))];
    })()"""
    ap, matches = javascript(code, d=rows[0], o=rows[1], threshold=threshold)
    np.testing.assert_array_equal(matches, widget.matches)
    assert set(matches) == {-1, 0, 1}
    for chosen, value in enumerate(ap, start=1):
        widget.chosen_class = chosen
        assert widget.average_precision == pytest.approx(value, abs=1e-9)
    widget.chosen_class = 0
    assert widget.average_precision == pytest.approx(np.mean(ap), abs=1e-9)


def noisy_results(rng, images):
    """Detections and truth with crowds, of three classes."""
    detections, truth = [], []
    for _ in range(images):
        corner = rng.uniform(0, 80, (6, 2))
        boxes = np.hstack([corner, corner + rng.uniform(10, 40, (6, 2))])
        classes = rng.integers(1, 4, 6)
        truth.append(SimpleNamespace(boxes=boxes, classes=np.where(rng.random(6) < 0.2, -classes, classes)))
        moved = np.repeat(boxes, 3, 0) + rng.normal(0, 4, (18, 4))
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
        detections.append(mr.Detections(moved, np.repeat(classes, 3), rng.integers(1, 30, 18) / 30))
    return detections, truth


def test_resized_sizes_are_the_librarys(rng):
    widget = mr.widgets.ResizeExplorer()
    sides = [*rng.integers(50, 3000, (300, 2)).tolist(), [512, 1024], [333, 2048], [1001, 2048], [50, 3000], [800, 800]]
    for name, rule, longest, _, _ in widget.families:
        for least in (800, 333):
            code = f"sides.map(([height, width]) => networkSize('{rule}', height, width, {least}, {longest}))"
            widget.min_size, expected = least, []
            for widget.height, widget.width in sides:
                expected.append(widget.sizes[name])
            np.testing.assert_array_equal(javascript(code, sides=sides), expected)


# What the model's widgets show is what the model finds


def test_proposals_are_the_models(model, shapes):
    for i in (0, 9):
        widget = mr.widgets.ProposalExplorer(model, shapes.image(i), shapes.instances(i).boxes)
        expected = stages.stages(model, shapes.image(i)).proposals
        np.testing.assert_allclose(widget.proposals, expected, atol=1e-4)
        assert widget.recall == 1.0
        widget.top_k = 1
        assert len(widget.proposals) == 1 and widget.recall <= 1.0
        widget.objectness = 1.0
        assert len(widget.proposals) <= 1 and "proposals of" in repr(widget)


def test_detections_are_the_models(model, shapes):
    for i in (0, 13):
        widget = mr.widgets.DetectionExplorer(model, shapes.image(i))
        widget.score_threshold = model.config.detection_score_threshold
        found, expected = widget.detections, model.detect([shapes.image(i)])[0]
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        assert (found.masks != expected.masks).mean() < 1e-3  # probabilities travel as bytes
        top = widget.candidates[0]
        assert top["likely"][0][0] == top["class"] and top["likely"][0][1] == pytest.approx(top["score"], abs=1e-3)


def test_detections_of_a_large_photograph_and_of_nothing(model):
    photograph = np.random.default_rng(0).integers(0, 255, (700, 900, 3), np.uint8)
    widget = mr.widgets.DetectionExplorer(model, photograph)
    assert widget.size == [700, 900] and state_bytes(widget) <= MOST_STATE and png(widget).width > 500
    widget.score_threshold = 1.0
    assert len(widget.detections) == 0 and repr(widget).startswith("DetectionExplorer: 0 of")
    assert png(widget)


def test_precision_and_recall_follow_the_thresholds(model, shapes):
    images = [shapes.image(i) for i in range(8)]
    truth = [shapes.instances(i) for i in range(8)]
    widget = mr.widgets.PrecisionRecallExplorer(model.detect(images), truth, images, shapes.class_names)
    hits, alarms, misses = widget.counts
    assert widget.precision == hits / (hits + alarms) and widget.recall == hits / (hits + misses) > 0.8
    widget.score_threshold = 0.0
    assert widget.recall >= hits / (hits + misses) and widget.average_precision > 0.9
    coco = evaluate(model, mr.datasets.Subset(shapes, range(8)))["bbox"]
    assert widget.average_precision == pytest.approx(coco["AP50"], abs=1e-6)


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("same", [True, False])
def test_a_cell_answers_to_its_field_and_nothing_else(rng, bottleneck, same):
    keras.utils.set_random_seed(0)
    config = mr.Config.tiny(
        bottleneck=bottleneck, stride_in_1x1=same, stem_pool_same=same, backbone_norm="frozen", image_min_size=256,
        image_max_size=256,
    )  # fmt: skip
    model = mr.MaskRCNN(config)
    widget = mr.widgets.FieldExplorer(model, rng.integers(0, 255, (256, 256, 3), np.uint8), places=3)
    noise = keras.ops.convert_to_tensor(rng.normal(size=(8, 256, 256, 3)), "float32")
    for widget.level, widget.place in itertools.product(range(3), ([1, 1], [0, 2])):
        row, column = widget.cell
        k = widget.level + 2
        assert [row, column] == [int(256 * (i + 0.5) / 3) // 2**k for i in widget.place]
        c = model.backbone.get_layer(f"res{k}_0_relu").output
        for output, field, exact in zip((c, model.backbone.outputs[k - 2]), widget.fields, (True, False), strict=True):
            with tf.GradientTape() as tape:
                tape.watch(noise)
                answer = keras.ops.sum(keras.Model(model.backbone.inputs, output)(noise)[:, row, column])
            weight = np.abs(tape.gradient(answer, noise)).sum((0, 3))
            y, x = np.flatnonzero(weight.any(1)), np.flatnonzero(weight.any(0))
            seen = [y[0], x[0], y[-1] + 1, x[-1] + 1]
            within = np.clip(field, 0, 256)
            assert (within[:2] <= seen[:2]).all() and (within[2:] >= seen[2:]).all()
            if exact:
                np.testing.assert_array_equal(within, seen)
        assert all(side <= field[2] - field[0] + 2 for side, field in zip(widget.sides, widget.fields, strict=True))


def test_what_a_cell_answers_to_is_drawn_where_it_lies(model, shapes):
    """The pictures in the state, put together, hold the gradient: where it is large the cover is thin."""
    widget = mr.widgets.FieldExplorer(model, shapes.image(3))
    for widget.place in ([0, 0], [4, 4], [2, 7]):
        shown = np.asarray(widget.figure().axes[0].images[0].get_array()).astype(int)
        cover = np.abs(shown - shapes.image(3)).sum(2) / np.maximum(255 - shapes.image(3).astype(int), 1).sum(2)
        y1, x1, y2, x2 = np.clip(widget.fields[0], 0, 128)
        inside = np.zeros((128, 128), bool)
        inside[y1:y2, x1:x2] = True
        assert cover[~inside].min() > 0.85 > 0.3 > cover[inside].min()
    assert widget.level == 0 and widget.sides[0] < widget.sides[1]  # the pyramid's cell sees more than C2's


# The rest of what each one promises


def test_resize_explorer_pads_as_the_loader_does():
    widget = mr.widgets.ResizeExplorer(np.zeros((640, 480, 3), np.uint8))
    assert widget.sizes == {"Detectron2": (1067, 800), "torchvision": (1066, 800), "The seed": (1024, 768)}
    widget.height, widget.width, widget.batch = 480, 640, True
    assert widget.canvases == {"Detectron2": (1088, 1088), "torchvision": (1088, 1088), "The seed": (1024, 1024)}
    assert widget.padding["The seed"] == 0.25 and widget.factors["The seed"] == (1.6, 1.6)
    widget.height, widget.width, widget.batch = 2000, 50, False
    assert widget.sizes["Detectron2"] == (1333, 33) and widget.canvases["Detectron2"] == (1344, 64) and png(widget)


def test_anchor_explorer_follows_its_state(shapes):
    widget = mr.widgets.AnchorExplorer(shapes.image(0), shapes.instances(0).boxes[0])
    assert widget.size == [800, 800]  # as Config() would resize it
    widget = mr.widgets.AnchorExplorer()
    assert widget.anchors.shape == (16 * 16 * 3, 4) and 0 < widget.best_iou < 1
    widget.level = 2
    assert (widget.stride, widget.scale) == (16, 64) and len(widget.anchors) == 8 * 8 * 3
    widget.ratios = []
    assert widget.positives == 0 and widget.best_iou == 0 and png(widget)
    widget.ratios, widget.scale, widget.box = [1.0], 32.0, [32.0, 32.0, 64.0, 64.0]
    assert widget.best_iou == 1.0 and widget.positives == 1
    with pytest.raises(InputError, match="level is 7"):
        widget.level = 7


def test_matching_counts_every_anchor(rng):
    photograph = rng.integers(0, 255, (480, 640, 3), np.uint8)
    widget = mr.widgets.MatchingExplorer(photograph, [[40, 50, 200, 300], [300, 400, 330, 420]])
    assert len(widget.anchors) > 200_000 and state_bytes(widget) <= MOST_STATE
    for positive, negative, low in [
        (0.7, 0.3, True),
        (0.5, 0.5, False),
        (0.9, 0.1, True),
        (1.0, 0.0, True),
        (0.07, 0.06, False),
    ]:
        widget.positive, widget.negative, widget.low_quality = positive, negative, low
        high, below = round(positive * 100), round(negative * 100)
        rescued = [low * (widget.favourites_at_least[0] - widget.favourites_at_least[i]) for i in (high, below)]
        shown = widget.at_least[high] + rescued[0], widget.at_least[0] - widget.at_least[below] - rescued[1]
        assert (widget.counts["positive"], widget.counts["negative"]) == shown  # the sum in JavaScript
        assert sum(widget.counts.values()) == len(widget.anchors)


def test_half_pixel_shift_matters():
    widget = mr.widgets.MaskExplorer()
    exact = widget.iou
    widget.half_pixel = False
    assert exact > 0.95 > widget.iou


def test_iou_playground_reads_and_sets():
    widget = mr.widgets.IoUPlayground([[0, 0, 10, 10], [0, 5, 10, 15]])
    assert widget.iou == pytest.approx(1 / 3) and widget.intersection == 50 and widget.union == 150
    widget.box_b = [0.0, 20.0, 10.0, 30.0]
    assert widget.iou == 0 and widget.giou == pytest.approx(-1 / 3)
    np.testing.assert_allclose(widget.deltas, [0, 2, 0, 0], atol=1e-6)


def write_log(folder, rows, steps=1000):
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"steps": steps}))
    lines = ["epoch,box_loss,class_loss,loss,val_loss"] + [f"{i},{a},{b},{a + b},NA" for i, (a, b) in enumerate(rows)]
    (folder / "log.csv").write_text("\n".join(lines) + "\n")


def test_monitor_follows_a_growing_log(tmp_path):
    widget = mr.widgets.TrainingMonitor(tmp_path / "run", seconds=0)
    assert "waiting" in widget.status and widget.done == 0 and png(widget)
    write_log(tmp_path / "run", [(1.0, 0.9), (0.8, 0.6)])
    with open(tmp_path / "run" / "log.csv", "a") as log:
        log.write("2,0.7")  # a line of which the end is yet to come
    widget.refresh()
    assert widget.steps == [250, 500] and widget.columns["loss"] == [1.9, 1.4] and "500 of 1000 steps" in widget.status
    assert widget.shown == ["loss", "box_loss", "class_loss"] and "val_loss" not in widget.columns
    write_log(tmp_path / "run", [(1.0, 0.9), (0.8, 0.6), (0.6, 0.5), (0.5, 0.4)])
    widget.refresh()
    assert widget.status == "Finished: 1000 steps."
    write_log(tmp_path / "run", [(1.0, 0.9), (0.8, 0.6), (math.nan, 0.5)])
    widget.refresh()
    assert "not a finite number" in widget.status and png(widget)
    write_log(tmp_path / "run", [(0.6, 0.9), (0.5, 0.4), (0.8, 0.399), (0.95, 0.3985)])
    widget.refresh()
    assert "box head may have died" in widget.status


def test_monitor_watches_while_it_is_shown(tmp_path):
    write_log(tmp_path, [(1.0, 0.9)])
    widget = mr.widgets.TrainingMonitor(tmp_path, seconds=0.05)
    png(widget)
    write_log(tmp_path, [(1.0, 0.9), (0.8, 0.6), (0.6, 0.5), (0.5, 0.4)])
    widget._watch.join(timeout=10)
    assert not widget._watch.is_alive() and widget.status == "Finished: 1000 steps."


def test_monitor_thins_a_long_log(tmp_path):
    write_log(tmp_path, [(1 / (i + 1), 1.0) for i in range(20_000)], steps=5_000_000)
    widget = mr.widgets.TrainingMonitor(tmp_path, seconds=0)
    assert widget.done == 5_000_000 and len(widget.steps) <= 600 and state_bytes(widget) <= MOST_STATE


# State, pictures and words


def state_bytes(widget):
    """What a notebook stores of the widget: JSON with its bytes in base 64."""
    state = {name: value for name, value in widget.get_state().items() if name != "layout"}
    coded = {n: base64.b64encode(v).decode() if isinstance(v, (bytes, memoryview)) else v for n, v in state.items()}
    return len(json.dumps(coded))


def png(widget):
    bundle, _ = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["text/plain"].startswith(f"{type(widget).__name__}: ") and len(bundle["text/plain"]) < 400
    return Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))


@pytest.mark.parametrize("name", mr.widgets.__all__)
def test_every_widget_stands_alone(name):
    widget = getattr(mr.widgets, name)()
    picture = png(widget)
    assert 500 <= picture.width <= 1000 and len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert state_bytes(widget) <= MOST_STATE
    assert "http" not in widget._esm.replace("http://www.w3.org/2000/svg", "") and "@import" not in widget._css


def test_state_stays_small_with_a_large_photograph(rng):
    photograph = rng.integers(0, 255, (3000, 4000, 3), np.uint8)  # noise: the worst for any format
    assert len(picture_url(photograph)) < 130_000
    boxes = np.tile(np.float32([[10, 10, 900, 900]]), (500, 1)) + rng.uniform(0, 500, (500, 1)).astype(np.float32)
    assert state_bytes(mr.widgets.NMSStepper(boxes, rng.random(500), image=photograph)) <= MOST_STATE
    assert state_bytes(mr.widgets.RoIAlignExplorer(rng.random((200, 200)))) <= MOST_STATE
    assert state_bytes(mr.widgets.ResizeExplorer(photograph, size=(480, 640))) <= MOST_STATE
    assert state_bytes(mr.widgets.FieldExplorer(image=photograph)) <= MOST_STATE
    truth = rng.random((3000, 4000)) > 0.5
    assert (
        state_bytes(mr.widgets.MaskExplorer(rng.random((112, 112)), [10, 10, 600, 600], photograph, truth > 2))
        <= MOST_STATE
    )


def test_one_pixel_image(model):
    dot = np.full((1, 1, 3), 200, np.uint8)
    box = [[0, 0, 1, 1]]
    for widget in (
        mr.widgets.IoUPlayground(box * 2, dot),
        mr.widgets.NMSStepper(box, [0.5], image=dot),
        mr.widgets.AnchorExplorer(dot, config=mr.Config.tiny()),
        mr.widgets.MatchingExplorer(dot, box, config=mr.Config.tiny()),
        mr.widgets.MaskExplorer(np.ones((28, 28)), box, dot, np.ones((1, 1), bool)),
        mr.widgets.RoIAlignExplorer([[3.0]]),
        mr.widgets.ProposalExplorer(model, dot, box),
        mr.widgets.DetectionExplorer(model, dot),
        mr.widgets.FieldExplorer(model, dot),
        mr.widgets.ResizeExplorer(dot, size=(480, 640)),
        mr.widgets.PrecisionRecallExplorer(
            [mr.Detections(np.float32(box), [1], [0.9])], [SimpleNamespace(boxes=box, classes=[1])], [dot]
        ),
    ):
        assert png(widget)


def test_nothing_to_show():
    empty = np.zeros((0, 4))
    nothing = SimpleNamespace(boxes=empty, classes=np.zeros(0, int), scores=np.zeros(0))
    assert png(mr.widgets.NMSStepper(empty, [])) and mr.widgets.NMSStepper(empty, []).suppressed_by.shape == (0,)
    matching = mr.widgets.MatchingExplorer(np.zeros((64, 64)), empty, config=mr.Config.tiny())
    assert matching.counts["positive"] == 0 and png(matching)
    results = mr.widgets.PrecisionRecallExplorer([nothing], [nothing])
    assert (results.precision, results.recall, results.average_precision) == (1.0, 0.0, -1.0) and png(results)
    assert png(mr.widgets.PrecisionRecallExplorer([], []))


BOX = [[0.0, 0.0, 5.0, 5.0]]
TRUTH, NAN, NINE = (
    SimpleNamespace(boxes=BOX, classes=[1]),
    mr.Detections(BOX, [1], [np.nan]),
    mr.Detections(BOX, [9], [1]),
)
MASK = np.zeros((28, 28))
IMAGE = np.zeros((20, 20, 3), np.uint8)
STRIP = np.zeros((2000, 20))
ALL = mr.widgets
BAD = {
    "iou_one_box": (lambda: ALL.IoUPlayground(BOX), r"boxes has shape \(1, 4\); give \(2, 4\)"),
    "iou_inverted": (lambda: ALL.IoUPlayground([[5, 5, 1, 9], [0, 0, 1, 1]]), r"boxes\[0\] is .* y2 >= y1"),
    "iou_words": (lambda: ALL.IoUPlayground("two boxes"), "no array of numbers"),
    "iou_image": (lambda: ALL.IoUPlayground(image=np.zeros((2, 2, 7))), "has shape"),
    "nms_nan": (lambda: ALL.NMSStepper(BOX, [np.nan]), r"scores\[0\] is not finite"),
    "nms_nan_box": (lambda: ALL.NMSStepper([[0, 0, np.nan, 1]], [1]), "boxes holds NaN"),
    "nms_lengths": (lambda: ALL.NMSStepper(BOX, [1, 2]), r"scores has shape \(2,\) for 1 boxes"),
    "nms_no_scores": (lambda: ALL.NMSStepper(BOX), "without scores"),
    "nms_no_boxes": (lambda: ALL.NMSStepper(scores=[1]), "without boxes"),
    "nms_many": (lambda: ALL.NMSStepper(BOX * 501, [1] * 501), "best 500"),
    "nms_classes": (lambda: ALL.NMSStepper(BOX, [1], [0.5]), "one whole number"),
    "nms_threshold": (lambda: ALL.NMSStepper(BOX, [1], threshold=2), "threshold is 2"),
    "roi_nan": (lambda: ALL.RoIAlignExplorer([[np.nan]]), "NaN or infinity"),
    "roi_large": (lambda: ALL.RoIAlignExplorer(np.zeros((300, 300))), "at most 40000"),
    "roi_batch": (lambda: ALL.RoIAlignExplorer(np.zeros((1, 8, 8, 3))), "without a batch"),
    "roi_channel": (lambda: ALL.RoIAlignExplorer(np.zeros((8, 8, 3)), channel=3), "channel is 3"),
    "roi_stride": (lambda: ALL.RoIAlignExplorer(stride=0), "stride is 0"),
    "mask_shape": (lambda: ALL.MaskExplorer(np.zeros((28, 14)), BOX, IMAGE), "mask has shape"),
    "mask_logits": (lambda: ALL.MaskExplorer(np.full((28, 28), 3.0), BOX, IMAGE), "outside 0 to 1"),
    "mask_nan": (lambda: ALL.MaskExplorer(np.full((28, 28), np.nan), BOX, IMAGE), "outside 0 to 1"),
    "mask_truth": (lambda: ALL.MaskExplorer(MASK, BOX, IMAGE, np.zeros((5, 5))), "truth has shape"),
    "mask_outside": (lambda: ALL.MaskExplorer(MASK, [[90, 90, 95, 95]], IMAGE), "outside the image"),
    "mask_alone": (lambda: ALL.MaskExplorer(MASK), "without its box"),
    "mask_large": (lambda: ALL.MaskExplorer(MASK, [[0, 0, 1500, 9]], STRIP), "at most 1000 a side"),
    "matching_order": (lambda: ALL.MatchingExplorer(positive=0.3, negative=0.7), "negative is 0.7"),
    "matching_boxes": (lambda: ALL.MatchingExplorer(IMAGE), "without boxes"),
    "matching_anchors": (lambda: ALL.MatchingExplorer(IMAGE, BOX, np.zeros((0, 4))), "anchors has no entry"),
    "anchor_box": (lambda: ALL.AnchorExplorer(IMAGE, [0, 0, 5]), "box has shape"),
    "model": (lambda: ALL.DetectionExplorer("coco"), "model is a str"),
    "results_lengths": (lambda: ALL.PrecisionRecallExplorer([], [1]), "lists of 0 and 1"),
    "results_half": (lambda: ALL.PrecisionRecallExplorer([]), "one entry an image"),
    "results_kind": (lambda: ALL.PrecisionRecallExplorer([3], [3]), r"detections\[0\] is a int"),
    "results_nan": (lambda: ALL.PrecisionRecallExplorer([NAN], [TRUTH]), "not finite"),
    "results_names": (lambda: ALL.PrecisionRecallExplorer([NINE], [TRUTH], class_names=["-", "a"]), "none for class 9"),
    "resize_side": (lambda: ALL.ResizeExplorer(IMAGE), "is 20; give 50 to 3000 pixels"),
    "field_places": (lambda: ALL.FieldExplorer(places=0), "places is 0"),
    "field_model": (lambda: ALL.FieldExplorer(7), "model is a int"),
    "field_image": (lambda: ALL.FieldExplorer(image=np.zeros((2, 2, 7))), "has shape"),
    "log_file": (lambda: ALL.TrainingMonitor(mr.files("shapes.json")), "is a file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_sentence(name):
    call, words = BAD[name]
    with pytest.raises(InputError, match=words) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_log_that_is_none_gets_one_sentence(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00epoch\n\x80\n")
    with pytest.raises(InputError, match="log.csv is no log that a run has written"):
        mr.widgets.TrainingMonitor(tmp_path)


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_does_not_load_the_front_end():
    python(
        "import sys; sys.argv = ['maskrcnn-edu']; import maskrcnn_edu as mr; mr.widgets\n"
        "assert not {'anywidget', 'ipywidgets'} & set(sys.modules)"
    )


def test_without_the_extra_it_says_what_to_install():
    python(
        "import sys; sys.modules['anywidget'] = None; sys.argv = ['maskrcnn-edu']; import maskrcnn_edu as mr\n"
        "try:\n    mr.widgets.IoUPlayground\n"
        "except mr.InputError as error:\n    assert str(error).endswith('pip install \"maskrcnn_edu[book]\".'), error\n"
        "else:\n    raise SystemExit('no error')"
    )


def test_unknown_widget():
    with pytest.raises(AttributeError, match="NoSuchWidget"):
        mr.widgets.NoSuchWidget  # noqa: B018
    assert dir(mr.widgets) == mr.widgets.__all__ and len(mr.widgets.__all__) == 12

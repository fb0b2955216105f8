"""Exports in their own runtimes: the same detections on photographs as `model.detect`, and what cannot be exported."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from skimage import data

import maskrcnn_edu as mr
from maskrcnn_edu import export, masks, runs
from maskrcnn_edu.cli import main
from maskrcnn_edu.datasets import transforms

COCO = Path(__file__).parents[2] / "shared" / "coco_sample"
ORACLES = Path(__file__).parent / "fixtures" / "oracles"
SIZE = {"image_min_size": 320, "image_max_size": 533}
tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="export writes TensorFlow's graph")
needs_sample = pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/coco_sample")


def run_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    detect = loaded.signatures["serving_default"]

    def run(images):
        return {name: value.numpy() for name, value in detect(images=tf.constant(images)).items()}

    run.kept = loaded  # a signature does not keep its variables
    return run


def run_onnx(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def run_litert(path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_path=str(path), num_threads=2)
    return lambda images: interpreter.get_signature_runner()(images=images)


RUN = {"saved_model": run_saved_model, "onnx": run_onnx, "litert": run_litert}


def exported(model, folder, format, size=None):
    if format == "onnx":
        pytest.importorskip("tf2onnx")
    export.export(model, folder / format, format, size)
    return RUN[format](folder / format)


def found_again(found, expected):
    """How many detections of `model.detect` are there: the class, the box at IoU >= 0.99, the score within 1e-3."""
    count, free = int(found["count"]), list(range(int(found["count"])))
    assert not found["scores"][count:].any() and not found["boxes"][count:].any()
    overlap, again = np.asarray(mr.boxes.iou(expected.boxes, found["boxes"])), 0
    for i in range(len(expected)):
        same = [
            j for j in free
            if overlap[i, j] >= 0.99 and found["classes"][j] == expected.classes[i]
            and abs(found["scores"][j] - expected.scores[i]) <= 1e-3
        ]  # fmt: skip
        if same:
            free.remove(max(same, key=lambda j: overlap[i, j]))
            again += 1
    return again


def assert_same(run, model, photographs):
    """At least 99 of 100 detections, and the same masks once they are pasted."""
    expected, total = model.detect(photographs), 0
    for photograph, detections in zip(photographs, expected, strict=True):
        found = {name: value[0] for name, value in run(np.ascontiguousarray(photograph[None])).items()}
        total += found_again(found, detections)
        overlap = np.asarray(mr.boxes.iou(detections.boxes[:5], found["boxes"]))
        slots = overlap.argmax(axis=1)  # of equal scores another may come first
        pasted = masks.paste(
            found["masks"][slots], found["boxes"][slots], *photograph.shape[:2], model.config.mask_paste
        )  # fmt: skip
        for ours, theirs, share in zip(pasted, detections.masks, overlap.max(axis=1), strict=False):
            union = (ours | theirs).sum()
            assert share < 0.999 or union == 0 or (ours & theirs).sum() >= 0.98 * union
    assert total >= 0.99 * sum(map(len, expected)) > 0
    return expected


def sample(count):
    """Photographs of different sizes: landscape and portrait."""
    dataset = mr.CocoDataset(COCO)
    images = [dataset.load_image(i) for i in range(len(dataset))]
    by_size = {image.shape[:2]: image for image in images}
    tall = [image for (height, width), image in by_size.items() if height > width]
    wide = [image for (height, width), image in by_size.items() if height <= width]
    return [*wide[: count - 1], *tall[:1]]


@tensorflow
@pytest.mark.parametrize("format", export.FORMATS)
def test_the_weights_that_ship(format, tmp_path):
    model, dataset = runs.load(mr.files("shapes.keras")), mr.ShapesDataset(3, seed=9)
    pictures = [dataset.load_image(i) for i in range(3)]
    run = exported(model, tmp_path, format, (128, 128) if format == "litert" else None)
    expected = assert_same(run, model, pictures)
    if format != "litert":  # any number, of any size
        found = run(np.stack(pictures))
        for k in range(3):
            assert found_again({name: value[k] for name, value in found.items()}, expected[k]) == len(expected[k])
        assert_same(run, model, [np.asarray(Image.fromarray(pictures[0]).resize((200, 150)))])
    assert [path.name for path in tmp_path.iterdir()] == [format]


def seeded(name, config):
    """A published architecture with weights that are given by a rule."""
    specification = importlib.util.spec_from_file_location("seeded", ORACLES / "seeded.py")
    rule = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(rule)
    shapes = json.loads((ORACLES / f"{name}_state.json").read_text())["tensors"]
    fill = rule.fill_keras if name.startswith("matterport") else rule.fill
    model = mr.MaskRCNN(config)
    mr.weights.load(model, {tensor: fill(tensor, shape) for tensor, shape in shapes.items()})
    return model


FAMILIES = {
    "detectron2": ("d2_mask_rcnn_R_50_FPN_3x", mr.Config.detectron2(**SIZE)),
    "torchvision": ("maskrcnn_resnet50_fpn", mr.Config.torchvision(**SIZE)),
    "torchvision_v2": ("maskrcnn_resnet50_fpn_v2", mr.Config.torchvision_v2(**SIZE)),
    "matterport": (
        "matterport_resnet50",
        mr.Config.matterport(50, image_min_size=400, image_max_size=512, detection_score_threshold=0.05),
    ),
}


@tensorflow
@needs_sample
@pytest.mark.slow
@pytest.mark.parametrize(
    "family, format",
    [("detectron2", "saved_model"), ("detectron2", "onnx"), ("detectron2", "litert"), ("torchvision", "onnx"),
     ("matterport", "saved_model")],
)  # fmt: skip
def test_published_architectures_on_photographs(family, format, tmp_path):
    model, photographs = seeded(*FAMILIES[family]), sample(4)
    if format == "litert":
        photographs = photographs[:1]
    run = exported(model, tmp_path, format, photographs[0].shape[:2] if format == "litert" else None)
    assert_same(run, model, photographs)


@tensorflow
@pytest.mark.parametrize("preset", ["detectron2", "torchvision", "matterport"])
def test_network_sizes_are_the_familys(preset, rng):
    import tensorflow as tf

    config = getattr(mr.Config, preset)()
    for height, width in rng.integers(1, 3000, (200, 2)).tolist():
        found = export.network_size([tf.constant(height), tf.constant(width)], config)
        assert tuple(map(int, found)) == transforms.network_size(height, width, config)


def preprocessing(format, config, folder, size):
    """The exported graph's own resizing alone, in the format's runtime: uint8 photographs -> image and window."""
    import tensorflow as tf

    shape = (1, *size, 3) if format == "litert" else (None, None, None, 3)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8, name="images")])
    def canvas(images):
        photograph_size = size if format == "litert" else tf.unstack(tf.shape(images)[1:3])
        return dict(zip(("image", "window"), export.on_canvas(images, photograph_size, config), strict=True))

    if format == "onnx":
        tf2onnx = pytest.importorskip("tf2onnx")
        tf2onnx.convert.from_function(canvas, canvas.input_signature, export.ONNX_OPSET, output_path=folder / format)
        return run_onnx(str(folder / format))
    module = tf.Module()
    module.canvas = canvas
    tf.saved_model.save(module, str(folder / "saved_model"), signatures=canvas)
    if format == "litert":
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "saved_model"))
        (folder / format).write_bytes(converter.convert())
    return RUN[format](folder / format)


@tensorflow
@pytest.mark.parametrize("format", export.FORMATS)
@pytest.mark.parametrize("preset", ["detectron2", "torchvision", "matterport"])
def test_pixels_are_the_familys(preset, format, tmp_path):
    """Equal on photographs of many sizes; the seed's in LiteRT, which has no float64, to a grey level."""
    config = getattr(mr.Config, preset)(**SIZE | {"size_divisor": 64})
    photographs = [data.astronaut(), data.coffee(), data.chelsea()]
    photographs += [np.asarray(Image.fromarray(photographs[1]).resize(size)) for size in ((97, 64), (700, 1111))]
    photographs.append(np.maximum(data.chelsea(), 40))  # nowhere black: scikit-image darkens no edge below that
    photographs = photographs[2:3] if format == "litert" else photographs
    run = preprocessing(format, config, tmp_path, photographs[0].shape[:2])
    for photograph in photographs:
        found = run(photograph[None])
        top, left, bottom, right = np.asarray(found["window"], int)
        difference = found["image"][0, top:bottom, left:right] - transforms.to_network_size(photograph, config)
        if (preset, format) == ("matterport", "litert"):
            assert np.abs(difference).max() <= 1 and (difference != 0).mean() < 0.01
        else:
            assert not difference.any()
        assert np.count_nonzero(found["image"]) == np.count_nonzero(found["image"][0, top:bottom, left:right])


@tensorflow
def test_keypoint_heatmaps_are_exported(tmp_path):
    config = mr.Config.tiny(
        num_classes=2, mask_head=False, keypoints=3, keypoint_conv_channels=(8,), keypoint_pool_size=4,
        detection_score_threshold=0.0,
    )  # fmt: skip
    model, picture = mr.MaskRCNN(config), mr.ShapesDataset(1, seed=9).load_image(0)
    found = exported(model, tmp_path, "saved_model")(picture[None])
    n, (expected,) = int(found["count"][0]), model.detect([picture])
    assert found["keypoint_heatmaps"].shape == (1, config.max_detections, 16, 16, 3) and n == len(expected) > 0
    places, _, _ = mr.keypoints.decode(found["keypoint_heatmaps"][0, :n], found["boxes"][0, :n])
    np.testing.assert_allclose(places, expected.keypoints[..., :2], atol=0.1)


@tensorflow
def test_the_command_writes_what_is_there_anew(tmp_path, capsys):
    command = ["export", "--model", mr.files("shapes.keras"), "--format", "saved_model"]
    for _ in range(2):
        assert main([*map(str, command), "--out", str(tmp_path / "served")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["served"]
    labels = (tmp_path / "served" / "assets.extra" / "labels.txt").read_text()
    assert labels.split() == ["background", "circle", "square", "triangle"]
    assert str(tmp_path / "served") in capsys.readouterr().out


def test_what_cannot_be_exported_is_said(tmp_path, capsys, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    cases = {
        "litert takes photographs of one size": ("litert", "new"),
        r"pip install 'maskrcnn_edu[export]'": ("onnx", "new"),
        "size is [0, 9]; give height and width": ("litert", "new", "--size", "0", "9"),
        "is a folder; give a file": ("litert", "folder", "--size", "9", "9"),
        "is there already and is no SavedModel": ("saved_model", "folder"),
        "is a file; give a folder": ("saved_model", "file"),
    }
    for said, (format, name, *rest) in cases.items():
        command = ["export", "--model", str(mr.files("shapes.keras")), "--format", format, *rest]
        assert main([*command, "--out", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_another_backend_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export.keras.backend, "backend", lambda: "jax")
    with pytest.raises(mr.InputError, match="KERAS_BACKEND=tensorflow"):
        export.export(None, tmp_path / "new", "saved_model")


@tensorflow
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    def broken(model, path, size):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    (tmp_path / "model.tflite").write_bytes(b"before")
    monkeypatch.setattr(export, "_write_litert", broken)
    with pytest.raises(KeyboardInterrupt):
        export.export(None, tmp_path / "model.tflite", "litert", (9, 9))
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]
    assert (tmp_path / "model.tflite").read_bytes() == b"before"

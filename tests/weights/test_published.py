"""Published weights: the table, the cache against good and bad servers, and a file's way to a model that detects."""

import hashlib
import http.server
import json
import pickle
import re
import sys
import threading
import time
import types
from pathlib import Path

import keras
import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import download
from maskrcnn_edu.cli import main
from maskrcnn_edu.config import PRESETS
from maskrcnn_edu.datasets import coco_classes
from maskrcnn_edu.evaluation import class_numbers
from maskrcnn_edu.weights import published, recognise, torchvision
from maskrcnn_edu.weights.published import PUBLISHED, Published

SHARED = Path(__file__).parents[3] / "shared"
ORACLES = Path(__file__).parents[1] / "fixtures" / "oracles"
# An eighth of the published channels, on small images: the same tensors by the same names.
NARROW = {
    "stem_channels": 8, "stage_channels": (32, 64, 128, 256), "fpn_channels": 32, "rpn_channels": 32,
    "box_fc_channels": (128, 128), "mask_conv_channels": (32,) * 4, "image_min_size": 64, "image_max_size": 64,
    "proposals": 20, "proposals_training": 20, "proposals_per_level": 20, "max_detections": 5, "roi_batch_size": 8,
    "batch_size": 2, "detection_score_threshold": 0.0,
}  # fmt: skip
WIDE = {64, 128, 256, 512, 1024, 2048, 256 * 7 * 7}


def seeded_tensors(state, seed=0, narrow=True):
    """The tensors of an oracle's network by the oracles' rule, with an eighth of the channels if `narrow`."""
    sys.path.insert(0, str(ORACLES))
    try:
        from seeded import fill
    finally:
        sys.path.remove(str(ORACLES))
    shapes = json.loads((ORACLES / f"{state}_state.json").read_text())["tensors"]
    if narrow:
        shapes = {name: [n // 8 if n in WIDE else n for n in shape] for name, shape in shapes.items()}
    return {name: fill(name, shape, seed) for name, shape in shapes.items()}


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        if self.path.startswith("/silent"):
            return self.server.closing.wait(20)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) * (2 if self.path.startswith("/short") else 1)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """A web server on this machine; `files` maps paths to contents, "/short..." breaks off in the middle."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.closing = {}, threading.Event()
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.closing.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def enter(monkeypatch):
    """Adds an entry to the table for one test."""

    def add(name, url, checksum, preset="coco", *more):
        monkeypatch.setitem(PUBLISHED, name, Published(name, url, checksum, preset, *more))

    return add


@pytest.fixture(scope="module")
def narrow_file(tmp_path_factory):
    """A file in Detectron2's format, as the model zoo has it, of a narrow network."""
    path = tmp_path_factory.mktemp("zoo") / "model_final_000000.pkl"
    content = {"model": seeded_tensors("d2_mask_rcnn_R_50_FPN_3x"), "__author__": "tests"}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


@pytest.fixture
def narrow_name(narrow_file, enter):
    """The name of that file in the table, as if it were published; it lies in the cache `narrow_file.parent`."""
    url = f"http://127.0.0.1:1/{narrow_file.name}"
    enter("narrow", url, digest(narrow_file.read_bytes()), "detectron2", NARROW, coco_classes.COCO_NAMES)
    return "narrow"


# The table


def test_the_names_of_the_issue_are_there():
    assert list(PUBLISHED) == [
        "matterport-coco", "torchvision-v1", "torchvision-v2", "torchvision-keypoint", "detectron2-r50",
        "detectron2-r101", "detectron2-keypoint-r50", "imagenet-resnet50", "imagenet-resnet101",
    ]  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_entry_is_whole(name):
    entry = PUBLISHED[name]
    assert entry.name == name and entry.url.startswith("https://")
    assert re.fullmatch(r"(sha256:[0-9a-f]{64}|md5:[0-9a-f]{32})?", entry.checksum)
    ending = re.search(r"-([0-9a-f]{8})\.pth$", entry.file)
    assert ending is None or entry.checksum.startswith(f"sha256:{ending[1]}")
    assert entry.preset in PRESETS
    assert len(entry.class_names) == entry.config().num_classes == len(set(entry.class_names))
    if not entry.backbone_only:
        assert entry.box_ap and (entry.mask_ap or entry.keypoint_ap)
        assert bool(entry.mask_ap) == entry.config().mask_head


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared/coco_sample")
def test_class_names_are_the_annotation_file_s():
    annotations = json.loads((SHARED / "coco_sample" / "annotations" / "instances_val2017.json").read_text())
    assert coco_classes.COCO == {entry["id"]: entry["name"] for entry in annotations["categories"]}
    assert len(coco_classes.COCO_RAW_NAMES) == 91 and coco_classes.COCO_RAW_NAMES[90] == "toothbrush"
    assert sum(map(coco_classes.is_unused, coco_classes.COCO_RAW_NAMES)) == 10


# The cache


def test_a_good_file_is_fetched_once(server, enter, tmp_path):
    server.files["/weights.pkl"] = content = b"numbers" * 1000
    enter("local", f"{server.url}/weights.pkl", digest(content)[:15])  # some publish the first digits only
    path = mr.weights.fetch("local", tmp_path / "new" / "cache")
    assert path == tmp_path / "new" / "cache" / "weights.pkl" and path.read_bytes() == content
    server.files.clear()
    assert mr.weights.fetch("local", path.parent) == path
    assert [file.name for file in path.parent.iterdir()] == ["weights.pkl"]


@pytest.mark.parametrize(
    ("file", "checksum", "named"),
    [
        ("weights.pkl", "sha256:00ff", "sha256 is"),
        ("weights.pkl", "md5:00ff", "md5 is"),
        ("weights.pkl", "", "neither a torch"),  # a page that asks to log in, say; no checksum is known
        ("short.pkl", digest(b"numbers"), "bytes"),
        ("gone.pkl", digest(b"numbers"), "404"),
        ("silent.pkl", digest(b"numbers"), "timed out"),
        (None, "", "refused"),
    ],
)
def test_a_failed_download_leaves_nothing_and_says_what_to_put_where(
    server, enter, tmp_path, monkeypatch, file, checksum, named
):
    server.files.update({f"/{name}.pkl": b"numbers" for name in ("weights", "short", "silent")})
    monkeypatch.setattr(download, "PATIENCE", 0.5)
    url = f"{server.url}/{file}" if file else "http://127.0.0.1:1/weights.pkl"
    enter("local", url, checksum)
    with pytest.raises(mr.InputError) as failure:
        mr.weights.fetch("local", tmp_path)
    said = str(failure.value)
    assert named in said and url in said and str(tmp_path / url.rsplit("/", 1)[-1]) in said and "\n" not in said
    # Only what may be gone on with is kept, under another name.
    assert [path.name for path in tmp_path.iterdir()] == ([".short.pkl.part"] if file == "short.pkl" else [])


def test_a_file_put_there_by_hand_is_taken_if_it_is_the_right_one(enter, tmp_path):
    enter("local", "http://127.0.0.1:1/weights.pkl", digest(b"numbers"))
    path = tmp_path / "weights.pkl"
    path.write_bytes(b"numbers")
    assert mr.weights.fetch("local", str(tmp_path)) == path
    path.write_bytes(b"number")
    with pytest.raises(mr.InputError, match="damaged.*removed"):
        mr.weights.fetch("local", tmp_path)
    assert not path.exists()


def test_a_cache_that_cannot_be_made_is_an_input_error(enter, tmp_path):
    (tmp_path / "file").write_text("in the way")
    enter("local", "http://127.0.0.1:1/weights.pkl", "")
    with pytest.raises(mr.InputError, match="in the way|file"):
        mr.weights.fetch("local", tmp_path / "file" / "cache")


def test_a_backbone_detects_nothing_yet(capsys):
    assert main(["evaluate", "shapes", "--model", "imagenet-resnet50"]) == 2
    assert "backbone whose heads have learnt nothing" in capsys.readouterr().err


def test_unknown_names():
    for ask in (mr.weights.fetch, mr.MaskRCNN.from_pretrained):
        with pytest.raises(mr.InputError, match="'resnet'.*torchvision-v1.*imagenet-resnet50"):
            ask("resnet")


# From the file to a model


def photograph(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)


def same_detections(a, b):
    (a,), (b,) = a.detect([photograph()]), b.detect([photograph()])
    assert len(a) == len(b) > 0
    np.testing.assert_array_equal(a.classes, b.classes)
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-5)
    assert (a.masks == b.masks).mean() > 0.999


def test_convert_writes_what_from_pretrained_gives(narrow_file, narrow_name, tmp_path, capsys):
    model = mr.MaskRCNN.from_pretrained(narrow_name, narrow_file.parent)
    assert model.class_names == ["background", *coco_classes.COCO.values()]
    out = tmp_path / "narrow.keras"
    assert main(["weights", "convert", narrow_name, "--out", str(out), "--cache", str(narrow_file.parent)]) == 0
    assert "filled from detectron2" in capsys.readouterr().out and [f.name for f in tmp_path.iterdir()] == [out.name]
    converted = keras.saving.load_model(out)
    assert converted.class_names == model.class_names
    same_detections(model, converted)


def test_fine_tuning_on_other_classes(narrow_file, narrow_name):
    dataset = mr.ShapesDataset(4, size=64)
    model = mr.MaskRCNN(PUBLISHED[narrow_name].config(num_classes=4), dataset.class_names)
    with pytest.raises(mr.InputError, match="box_deltas/bias.*class_logits/kernel.*mask_logits"):
        mr.weights.load(model, narrow_file)
    report = mr.weights.load(model, narrow_file, strict=False)
    assert {path.split("/")[1] for path in report.anew} == {"class_logits", "box_deltas", "mask_logits"}
    assert "class_logits" in str(report)
    model.compile()
    history = model.fit(mr.loader(dataset, model.config), steps_per_epoch=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    (found,) = model.detect([dataset.load_image(0)])
    assert set(found.classes) <= {1, 2, 3}


def test_torchvision_s_names_of_2019_load_as_today_s():
    """The v1 and keypoint files carry them (`_load_from_state_dict` in torchvision's detection models)."""
    tensors = seeded_tensors("maskrcnn_resnet50_fpn")
    tensors = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    older = {name_of_2019(name): value for name, value in tensors.items()}
    assert len(set(older) - set(tensors)) == 2 * (4 + 4 + 1 + 4)
    assert [torchvision.current_name(name) for name in older] == list(tensors)
    models = [mr.MaskRCNN(mr.Config.torchvision(**NARROW)) for _ in range(2)]
    for model, source in zip(models, (tensors, older), strict=True):
        report = mr.weights.load(model, source)
        assert report.unused == () and report.anew == ()
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(a, b)


def name_of_2019(name):
    name = re.sub(r"(backbone\.fpn\.\w+_blocks\.\d)\.0\.", r"\1.", name)
    name = name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}.", name)


def test_a_model_with_coco_s_raw_ids_is_evaluated_by_name():
    model = types.SimpleNamespace(class_names=list(coco_classes.COCO_RAW_NAMES))
    dataset = types.SimpleNamespace(class_names=list(coco_classes.COCO_NAMES))
    numbers = class_numbers(model, dataset)
    assert len(numbers) == 91 and numbers[12] == 0  # an unused id
    assert all(dataset.class_names[numbers[i]] == name for i, name in coco_classes.COCO.items())
    dataset.class_names[5] = "flying saucer"
    with pytest.raises(mr.InputError, match="flying saucer"):
        class_numbers(model, dataset)


@pytest.mark.parametrize(
    ("state", "config"),
    [
        ("maskrcnn_resnet50_fpn", mr.Config.torchvision()),
        ("maskrcnn_resnet50_fpn_v2", mr.Config.torchvision_v2()),
        ("keypointrcnn_resnet50_fpn", mr.Config.torchvision_keypoint()),
        ("d2_mask_rcnn_R_50_FPN_3x", mr.Config.detectron2(50)),
        ("d2_mask_rcnn_R_101_FPN_3x", mr.Config.detectron2(101)),
        ("d2_keypoint_rcnn_R_50_FPN_3x", mr.Config.detectron2_keypoint()),
        ("matterport_resnet50", mr.Config.matterport(50)),
        ("matterport_resnet101", mr.Config.matterport(101)),
    ],
)
def test_a_file_tells_its_preset_depth_and_classes(state, config):
    shapes = json.loads((ORACLES / f"{state}_state.json").read_text())["tensors"]
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert recognise.config_of(tensors, "file") == config
    assert len(recognise.class_names(config)) == config.num_classes


# The command line


def test_list_says_what_is_cached(narrow_file, narrow_name, capsys):
    start = time.perf_counter()
    assert main(["weights", "list", "--cache", str(narrow_file.parent)]) == 0
    assert time.perf_counter() - start < 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert "37.9  34.6" in lines["torchvision-v1"] and " no " in lines["torchvision-v1"]
    assert " yes " in lines["narrow"] and "unknown" in lines["matterport-coco"]


def test_inspect_names_the_family_and_the_tensors(narrow_file, capsys):
    assert main(["weights", "inspect", str(narrow_file)]) == 0
    printed = capsys.readouterr().out
    assert "family: detectron2" in printed and "(8, 3, 7, 7)" in printed and "stem.conv1.norm.running_var" in printed


def test_train_and_detect_take_a_name(narrow_file, narrow_name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "default_cache", lambda: narrow_file.parent)
    options = ["--model", narrow_name, "--steps", "1", "--limit", "2", "--logs", str(tmp_path / "logs")]
    assert main(["train", "shapes", *options]) == 0
    printed = capsys.readouterr().out
    assert "Left at their first values: " in printed and "box_head/class_logits/kernel" in printed
    picture = tmp_path / "picture.png"
    keras.utils.save_img(picture, photograph(), scale=False)
    assert main(["detect", str(picture), "--model", narrow_name, "--out", str(tmp_path / "out")]) == 0
    entries = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert entries and {entry["category_name"] for entry in entries} <= set(coco_classes.COCO.values())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["fetch", "nothing"], ["nothing", "torchvision-v1"]),
        (["inspect", "nothing"], ["nothing", "file", "torchvision-v1"]),
        (["convert", "nothing", "--out", "x.keras"], ["nothing", "file"]),
        (["convert", "torchvision-v1", "--out", "x.h5"], ["x.h5", ".keras"]),
        (["convert", "torchvision-v1", "--out", "x.keras", "--preset", "torchvision"], ["--preset"]),
        (["convert", "FILE", "--out", "x.keras", "--preset", "torchvision"], ["detectron2", "preset torchvision"]),
        (["convert", "FILE", "--out", "x.keras"], ["do not fit", "backbone/stem/kernel"]),
    ],
)
def test_mistakes_end_with_exit_code_two(narrow_file, tmp_path, monkeypatch, capsys, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert main(["weights", *(str(narrow_file) if word == "FILE" else word for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in named) and len(error.strip().split("\n")) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "preset"),
    [
        ("d2_mask_rcnn_R_50_FPN_3x", mr.Config.detectron2),
        ("d2_keypoint_rcnn_R_50_FPN_3x", mr.Config.detectron2_keypoint),
    ],
)
def test_a_file_of_full_size_is_converted_by_what_it_holds(tmp_path, state, preset):
    tensors = seeded_tensors(state, narrow=False)
    file, out = tmp_path / "file", tmp_path / "out.keras"
    file.write_bytes(pickle.dumps({"model": tensors}))
    assert main(["weights", "convert", str(file), "--out", str(out)]) == 0
    converted = keras.saving.load_model(out)
    assert converted.config == preset()
    model = mr.MaskRCNN(preset(), converted.class_names)
    mr.weights.load(model, tensors)
    for a, b in zip(model.get_weights(), converted.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

"""The command line, as a user types it. Commands run in this process, where Keras is loaded already."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maskrcnn_edu as mr
from maskrcnn_edu import evaluation
from maskrcnn_edu.cli import main

COCO = Path(__file__).parents[2] / "shared" / "coco_sample"
SMALL = [
    "stem_channels=4", "stage_channels=(8,8,8)", "fpn_channels=8", "rpn_channels=8", "proposals=10",
    "proposals_training=10", "roi_batch_size=8", "box_fc_channels=(16,)", "mask_conv_channels=(8,)", "batch_size=2",
    "max_detections=5", "detection_score_threshold=0.0",
]  # fmt: skip
QUICK = [word for change in SMALL for word in ("--set", change)]


def coco_directory(folder, change=lambda content: None):
    """A COCO directory with two pictures of a square each, train and val alike; `change` edits the annotations."""
    content = {
        "images": [{"id": 5 + i, "file_name": f"{5 + i:03d}.png", "height": 60, "width": 80} for i in range(2)],
        "categories": [{"id": 7, "name": "square"}],
        "annotations": [
            {"id": 1 + i, "image_id": 5 + i, "category_id": 7, "iscrowd": 0, "area": 900.0, "bbox": [20, 10, 30, 30],
             "segmentation": [[20, 10, 50, 10, 50, 40, 20, 40]]}
            for i in range(2)
        ],
    }  # fmt: skip
    change(content)
    (folder / "annotations").mkdir(parents=True)
    for split in ("train2017", "val2017"):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (folder / split).mkdir()
        for name in ("005.png", "006.png"):
            picture = np.zeros((60, 80, 3), np.uint8)
            picture[10:40, 20:50] = 200
            Image.fromarray(picture).save(folder / split / name)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The logs of a run of two steps on shapes."""
    logs = tmp_path_factory.mktemp("logs")
    assert main(["train", "shapes", "--steps", "2", "--limit", "6", "--logs", str(logs), *QUICK]) == 0
    return logs


def model_file(logs):
    (path,) = logs.glob("shapes-*/last.keras")
    return str(path)


def test_help_answers_within_a_second_without_tensorflow():
    times = []
    for _ in range(3):
        start = time.perf_counter()
        command = "import sys; sys.argv = ['maskrcnn-edu', '--help']\nfrom maskrcnn_edu.cli import main\ntry: main()\n"
        command += (
            "except SystemExit as stop: assert stop.code == 0\nassert not {'tensorflow', 'keras'} & set(sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert all(name in done.stdout for name in ("demo", "train", "evaluate", "detect", "export", "weights"))
    assert min(times) < 1


def test_the_installed_command_ends_with_exit_code_two_and_no_traceback(tmp_path):
    command = shutil.which("maskrcnn-edu", path=os.path.dirname(sys.executable))
    assert command, "install the package first: pip install -e ."
    done = subprocess.run(
        [command, "detect", "no-such.jpg", "--model", "x.keras"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and "no-such.jpg" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_evaluate_prints_and_writes_the_twelve_numbers(trained, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert (
        main(["evaluate", "shapes", "--model", "last", "--logs", str(trained), "--limit", "3", "--out", str(out)]) == 0
    )
    scores = json.loads(out.read_text())
    assert list(scores) == ["bbox", "segm"] and tuple(scores["segm"]) == evaluation.METRICS
    printed = capsys.readouterr().out
    assert "on 3 images" in printed and "circle" in printed and "AP50" in printed


def test_evaluate_writes_results_with_and_without_annotations(trained, tmp_path, capsys):
    data = coco_directory(tmp_path / "data", four_classes)
    images = json.loads((data / "annotations" / "instances_val2017.json").read_text())
    del images["annotations"]
    (data / "annotations" / "image_info_test-dev2017.json").write_text(json.dumps(images))
    shutil.copytree(data / "val2017", data / "test2017")
    options = ["evaluate", "coco", "--dataset", str(data), "--model", model_file(trained), "--batch-size", "2"]
    assert main([*options, "--results", str(tmp_path / "val")]) == 0
    assert "bbox by class" in capsys.readouterr().out
    test = [*options, "--split", "test-dev2017"]
    assert main([*test, "--results", str(tmp_path / "test")]) == 0
    assert "no annotations, so nothing is measured" in capsys.readouterr().out
    for name in ("bbox.json", "segm.json"):
        entries = json.loads((tmp_path / "test" / name).read_text())
        assert entries == json.loads((tmp_path / "val" / name).read_text())
        assert {entry["image_id"] for entry in entries} == {5, 6}
        assert {entry["category_id"] for entry in entries} <= {7, 8, 9}
    assert main(test) == 2
    assert "image_info_test-dev2017.json has no annotations to compare with; give --results" in capsys.readouterr().err


def four_classes(content):
    """The classes of shapes."""
    names = mr.ShapesDataset.class_names[1:]
    content["categories"] = [{"id": 7 + i, "name": name} for i, name in enumerate(names)]


def test_evaluate_stops_at_a_damaged_picture_with_nothing_written(trained, tmp_path, capsys):
    data = coco_directory(tmp_path / "data", four_classes)
    (data / "val2017" / "006.png").write_bytes(b"no picture")
    options = ["evaluate", "coco", "--dataset", str(data), "--model", model_file(trained)]
    assert main([*options, "--results", str(tmp_path / "out"), "--out", str(tmp_path / "out.json")]) == 2
    assert "006.png: the image cannot be read" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_results_are_written_though_nobody_reads_what_is_printed(trained, tmp_path, monkeypatch):
    def closed(*_, **__):
        raise BrokenPipeError

    out = tmp_path / "results.json"
    monkeypatch.setattr("maskrcnn_edu.commands._score", closed)
    monkeypatch.setattr("os.dup2", lambda *_: None)  # the pipe is pretended; pytest needs its own
    arguments = ["evaluate", "shapes", "--model", "last", "--logs", str(trained), "--limit", "1", "--out", str(out)]
    assert main(arguments) == 0 and out.is_file()


@pytest.mark.parametrize("command", ["demo", "evaluate", "detect", "train"])
def test_a_place_that_cannot_be_written_is_named_before_the_work(trained, tmp_path, capsys, command):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    picture = tmp_path / "picture.png"
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(picture)
    arguments = {
        "demo": ["demo", "--out", str(taken)],
        "evaluate": ["evaluate", "shapes", "--model", model_file(trained), "--out", str(taken / "x.json")],
        "detect": ["detect", str(picture), "--model", model_file(trained), "--out", str(taken)],
        "train": ["train", "shapes", "--logs", str(taken)],
    }
    assert main(arguments[command]) == 2
    captured = capsys.readouterr()
    assert str(taken) in captured.err and captured.out == ""


def test_a_finished_run_says_so(trained, capsys):
    assert main(["train", "shapes", "--model", "last", "--limit", "6", "--logs", str(trained)]) == 0
    assert "has done its 2 steps; give --steps above 2" in capsys.readouterr().out


def test_an_unknown_backend_is_named(monkeypatch, capsys):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert main(["demo"]) == 2
    assert "KERAS_BACKEND is 'torch'; set it to tensorflow or jax" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out.strip() == mr.__version__


def test_detect_draws_and_lists(trained, tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.fromarray(mr.ShapesDataset(1, seed=9).load_image(0)).save(tmp_path / folder / "picture.jpg")
    pictures, out = [str(tmp_path / folder / "picture.jpg") for folder in "ab"], tmp_path / "out"
    assert main(["detect", *pictures, "--model", model_file(trained), "--out", str(out), "--score", "0"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["detections.json", "picture-2.png", "picture.png"]
    entries = json.loads((out / "detections.json").read_text())
    assert {entry["image_id"] for entry in entries} == {1, 2} and len(entries) == 10
    assert {"image_id", "category_id", "bbox", "score", "segmentation"} <= set(entries[0])
    assert entries[0]["segmentation"]["size"] == [128, 128]
    assert "5 found" in capsys.readouterr().out


def test_detects_in_another_precision(trained, tmp_path, capsys):
    picture = tmp_path / "a.png"
    Image.fromarray(mr.ShapesDataset(1, seed=3).load_image(0)).save(picture)
    scores = {}
    for precision in ("float32", "bfloat16"):
        out = tmp_path / precision
        command = ["detect", str(picture), "--model", model_file(trained), "--score", "0", "--out", str(out)]
        assert main([*command, "--precision", precision]) == 0
        scores[precision] = [entry["score"] for entry in json.loads((out / "detections.json").read_text())]
    assert len(scores["float32"]) == len(scores["bfloat16"]) and scores["float32"] != scores["bfloat16"]
    np.testing.assert_allclose(scores["bfloat16"], scores["float32"], atol=0.05)


def test_benchmark_prints_stages_and_compares_with_the_last_run(trained, tmp_path, capsys):
    command = ["benchmark", "--preset", "tiny", "--size", "64", "64", "--repeats", "1", "--logs", str(tmp_path), *QUICK]
    assert main([*command, "--train"]) == 0
    printed = capsys.readouterr().out
    stages = ("resize", "backbone", "rpn", "proposals", "box head", "choice", "mask head", "paste", "whole", "first")
    assert all(f"\n{name} " in printed for name in (*stages, "training step"))
    assert "no earlier run" in printed and "last run" not in printed.replace("no earlier run", "")
    (run,) = json.loads((tmp_path / "benchmark.json").read_text())
    assert run["settings"]["size"] == [64, 64] and run["seconds"]["whole"] > 0
    assert main(command) == 0
    assert "last run" in capsys.readouterr().out
    assert main([*command, "--precision", "bfloat16"]) == 0
    assert "bfloat16" in (printed := capsys.readouterr().out) and "no earlier run" in printed
    runs = json.loads((tmp_path / "benchmark.json").read_text())
    assert [run["settings"]["config"]["precision"] for run in runs] == ["float32", "bfloat16"]


def test_benchmark_of_a_trained_model_and_of_a_damaged_record(trained, tmp_path, capsys):
    logs = shutil.copytree(trained, tmp_path / "logs")
    command = ["benchmark", "--model", "last", "--size", "64", "80", "--repeats", "1", "--logs", str(logs)]
    assert main(command) == 0 and "detections; memory at most" in capsys.readouterr().out
    assert main([*command, "--train"]) == 2 and "--train" in capsys.readouterr().err
    (logs / "benchmark.json").write_text("[{")
    assert main(command) == 2
    assert "benchmark.json" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_train_goes_on_with_the_last_run_and_starts_from_a_file(trained, tmp_path, capsys):
    logs = tmp_path / "logs"
    shutil.copytree(trained, logs)
    again = ["train", "shapes", "--model", "last", "--steps", "3", "--logs", str(logs)]
    assert main([*again, "--limit", "5"]) == 2
    assert "--limit cannot change in a run that goes on, which has 6" in capsys.readouterr().err
    assert main(again) == 0
    printed = capsys.readouterr().out
    assert "at step 2 of 3" in printed and "step 3/3  " in printed and "class" in printed
    path = model_file(logs)
    assert main(["train", "shapes", "--model", path, "--steps", "1", "--limit", "6", "--logs", str(tmp_path / "other"),
                 "--set", "learning_rate=0.001"]) == 0  # fmt: skip
    assert model_file(tmp_path / "other")


def test_train_and_evaluate_a_coco_directory(tmp_path, capsys):
    data, logs = coco_directory(tmp_path / "data"), str(tmp_path / "logs")
    options = ["coco", "--dataset", str(data), "--logs", logs]
    assert main(["train", *options, "--preset", "tiny", "--steps", "1", *QUICK]) == 0
    assert "2 images of 1 classes" in capsys.readouterr().out
    assert main(["evaluate", *options, "--model", "last"]) == 0
    assert "square" in capsys.readouterr().out


@pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/coco_sample")
def test_train_on_photographs(tmp_path):
    options = ["coco", "--dataset", str(COCO), "--logs", str(tmp_path)]
    assert main(["train", *options, "--preset", "tiny", "--steps", "2", *QUICK]) == 0
    assert main(["evaluate", *options, "--model", "last", "--limit", "2", "--out", str(tmp_path / "out.json")]) == 0
    assert set(json.loads((tmp_path / "out.json").read_text())) == {"bbox", "segm"}


def edit(**changes):
    """Changes the first annotation."""
    return lambda content: content["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit(image_id=99), ["annotation 1", "image_id 99"]),
        (edit(category_id=3), ["annotation 1", "category_id 3"]),
        (edit(bbox=[1, 1, 0, 5]), ["annotation 1", "bbox", "area"]),
        (edit(segmentation={"size": [9, 9], "counts": [81]}), ["annotation 1", "[9, 9]"]),
        (lambda content: content["images"][1].update(file_name="gone.png"), ["gone.png"]),
        (lambda content: content["images"][0].update(height=61), ["005.png", "61 x 80"]),
        (lambda content: content.pop("categories"), ["categories"]),
    ],
)
def test_bad_annotations(tmp_path, capsys, change, named):
    data = coco_directory(tmp_path / "data", change)
    options = ["--dataset", str(data), "--logs", str(tmp_path / "logs"), "--preset", "tiny", "--steps", "1", *QUICK]
    assert main(["train", "coco", *options]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in named) and len(error.strip().split("\n")) == 1
    assert not list((tmp_path / "logs").glob("*"))


def test_a_corrupt_picture_is_named(trained, tmp_path, capsys):
    data = coco_directory(tmp_path / "data")
    whole = (data / "train2017" / "006.png").read_bytes()
    (data / "train2017" / "006.png").write_bytes(whole[: len(whole) // 2])
    options = ["--dataset", str(data), "--logs", str(tmp_path / "logs"), "--preset", "tiny", "--steps", "9", *QUICK]
    assert main(["train", "coco", *options]) == 2
    assert "006.png" in capsys.readouterr().err
    assert not list((tmp_path / "logs").glob("*"))  # both pictures are in the first batch
    picture = str(data / "train2017" / "006.png")
    assert main(["detect", picture, "--model", model_file(trained), "--out", str(tmp_path / "out")]) == 2
    assert "006.png" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["train", "shapes", "--set", "learning_rates=1"], ["learning_rates", "did you mean learning_rate"]),
        (["train", "shapes", "--set", "batch_size=0"], ["batch_size", "0"]),
        (["train", "shapes", "--set", "batch_size"], ["batch_size", "FIELD=VALUE"]),
        (["train", "shapes", "--set", "num_classes=7"], ["num_classes"]),
        (["train", "coco"], ["--dataset"]),
        (["train", "coco", "--dataset", "nowhere"], ["nowhere"]),
        (["train", "shapes", "--model", "gone.keras"], ["gone.keras"]),
        (["train", "shapes", "--model", "last"], ["no run of shapes"]),
        (["train", "shapes", "--model", "last", "--set", "batch_size=2"], ["--set"]),
        (["evaluate", "shapes", "--model", "gone.keras"], ["gone.keras"]),
        (["evaluate", "shapes", "--model", "last"], ["no run of shapes"]),
        (["train", "shapes", "--model", "coco"], ["no published COCO weights", "detectron2"]),
        (["train", "shapes", "--model", "imagenet"], ["ResNet-50"]),
        (["train", "shapes", "--patience", "3"], ["--validate-every"]),
        (["train", "shapes", "--validate-every", "10", "--save-every", "4"], ["multiple"]),
        (["train", "shapes", "--scale-lr", "--set", "learning_rate=1"], ["--scale-lr"]),
        (["train", "shapes", "--set", "trainable=res9.*"], ["res9", "matches no layer"]),
        (["evaluate", "shapes", "--model", "imagenet-resnet50"], ["imagenet-resnet50", "backbone"]),
    ],
)
def test_bad_arguments(tmp_path, capsys, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert main([*arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in named) and len(error.strip().split("\n")) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_other_classes_is_named_or_learns_them(trained, tmp_path, capsys):
    data, path = coco_directory(tmp_path / "data"), model_file(trained)
    options = ["coco", "--dataset", str(data), "--model", path, "--logs", str(tmp_path / "logs")]
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err
    assert path in error and "4 classes" in error and "has 2" in error
    assert main(["train", *options, "--steps", "1"]) == 0
    printed = capsys.readouterr().out
    assert "box_head/class_logits/kernel" in printed and "backbone/stem/kernel" not in printed


def test_validation_while_training_finds_the_best(tmp_path, capsys):
    options = ["train", "shapes", "--steps", "6", "--limit", "6", "--logs", str(tmp_path), *QUICK]
    more = ["--validate-every", "2", "--validate-limit", "2", "--patience", "1", "--tensorboard"]
    assert main([*options, *more, "--set", "learning_rate=1e-9"]) == 0  # it learns nothing, so the AP does not rise
    assert "at step 4, since the AP no longer rose" in capsys.readouterr().out
    (run,) = tmp_path.glob("shapes-*")
    assert {"last.keras", "best.keras", "log.csv", "run.json"} < {path.name for path in run.iterdir()}
    assert any("tfevents" in path.name for path in run.iterdir())
    result = json.loads((run / "run.json").read_text())["result"]
    assert (result["step"], result["best_step"], result["stopped_early"]) == (4, 2, True)
    assert {"loss", "segm_AP", "bbox_AP50", "proposal_recall", "learning_rate"} < set(result["final"])
    assert main(["train", "shapes", "--model", "last", "--logs", str(tmp_path)]) == 0
    assert "no longer rose" in capsys.readouterr().out


def test_scaling_is_said(tmp_path, capsys):
    options = ["train", "shapes", "--steps", "1", "--limit", "4", "--logs", str(tmp_path), *QUICK]
    assert main([*options, "--scale-lr"]) == 0
    assert "2 images a step" in (printed := capsys.readouterr().out) and "learning rate 0.00075" in printed


@pytest.mark.parametrize("arguments", [["train"], ["fly"], ["train", "shapes", "--steps", "0"], ["detect", "a.jpg"]])
def test_wrong_usage_ends_with_exit_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage" in capsys.readouterr().err

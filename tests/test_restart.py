"""Runs that are killed, interrupted, or find their disk full: the command line in a process of its own."""

import csv
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import runs

ROOT = Path(__file__).parents[1]
SMALL = [
    "stem_channels=4", "stage_channels=(8,8,8)", "fpn_channels=8", "rpn_channels=8", "proposals=10",
    "proposals_training=10", "roi_batch_size=8", "box_fc_channels=(16,)", "mask_conv_channels=(8,)", "batch_size=2",
    "ema=0.9", "gradient_accumulation=2", "trainable=('heads','all')", "trainable_steps=(0.45,)",
]  # fmt: skip


def start(logs, steps, save_every, *more, backend="tensorflow"):
    """`train shapes`, new or going on with the run in `logs`, in a process of its own."""
    going_on = any(Path(logs).glob("shapes-*/last.keras"))
    words = ["train", "shapes", "--logs", str(logs)]
    words += ["--model", "last"] if going_on else ["--steps", str(steps), "--limit", "40", "--seed", "5", *more]
    if not going_on:
        words += ["--save-every", str(save_every)]
        words += ["--model", "new", *(word for change in SMALL for word in ("--set", change))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend}
    output = open(Path(logs).with_suffix(".txt"), "a")
    return subprocess.Popen(
        [sys.executable, "-m", "maskrcnn_edu.cli", *words], stdout=output, stderr=output, env=environment
    )


def run_of(logs):
    (run,) = Path(logs).glob("shapes-*")
    return run


def step_of(logs):
    """The step of the last checkpoint; -1 before the first."""
    paths = list(Path(logs).glob("shapes-*/last.keras"))
    return runs.progress_of(paths[0]).step if paths else -1


def log_of(logs):
    with open(run_of(logs) / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def same_in_the_end(killed, whole):
    """Weights, optimizer and log of two runs are equal to the last bit."""
    models = [runs.load(run_of(logs) / "last.keras") for logs in (killed, whole)]
    for kind in ("variables", "optimizer"):
        found = [getattr(model, kind) if kind == "variables" else model.optimizer.variables for model in models]
        for mine, theirs in zip(*found, strict=True):
            np.testing.assert_array_equal(np.array(mine), np.array(theirs), err_msg=mine.path)
    assert log_of(killed) == log_of(whole)


def kill_until_done(logs, steps, save_every, kills, rng, *more, **backend):
    """Starts the run again and again, and kills it at random moments after its first new checkpoint was begun."""
    for _ in range(kills):
        before, process = step_of(logs), start(logs, steps, save_every, *more, **backend)
        while process.poll() is None and step_of(logs) <= before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        process.wait()
        if step_of(logs) >= steps:
            break
    assert start(logs, steps, save_every, *more, **backend).wait() == 0


def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    """Killed three times, in two phases of layers, with averaged weights and accumulated gradients."""
    assert start(tmp_path / "whole", 40, 5, "--validate-every", "20", "--validate-limit", "3").wait() == 0
    more = ["--validate-every", "20", "--validate-limit", "3"]
    kill_until_done(tmp_path / "killed", 40, 5, 3, random.Random(1), *more)
    same_in_the_end(tmp_path / "killed", tmp_path / "whole")
    assert [line["step"] for line in log_of(tmp_path / "killed")] == [
        "5",
        "10",
        "15",
        "18",
        "20",
        "25",
        "30",
        "35",
        "40",
    ]
    record = json.loads((run_of(tmp_path / "killed") / "run.json").read_text())
    assert len(record["restarts"]) >= 1 and record["result"]["step"] == 40 and "segm_AP" in record["result"]["final"]


@pytest.mark.slow
def test_killed_twenty_times(tmp_path):
    assert start(tmp_path / "whole", 200, 8).wait() == 0
    kill_until_done(tmp_path / "killed", 200, 8, 20, random.Random(2))
    same_in_the_end(tmp_path / "killed", tmp_path / "whole")


@pytest.mark.slow
def test_a_killed_run_on_jax_ends_as_one_that_was_not(tmp_path):
    """In float16, so that the scale of the loss is restored too."""
    pytest.importorskip("jax")
    more = ["--set", "precision=float16"]
    assert start(tmp_path / "whole", 40, 5, *more, backend="jax").wait() == 0
    kill_until_done(tmp_path / "killed", 40, 5, 3, random.Random(3), *more, backend="jax")
    same_in_the_end(tmp_path / "killed", tmp_path / "whole")
    assert json.loads((run_of(tmp_path / "killed") / "run.json").read_text())["versions"]["backend"] == "jax"


def test_ctrl_c_saves_the_step_under_way(tmp_path):
    assert start(tmp_path / "whole", 30, 15).wait() == 0
    process = start(tmp_path / "stopped", 30, 15)
    while step_of(tmp_path / "stopped") < 0:
        time.sleep(0.01)
    time.sleep(5)  # somewhere in the first steps, or while the model is compiled
    process.send_signal(signal.SIGINT)
    assert process.wait() in (0, 130)
    assert start(tmp_path / "stopped", 30, 15).wait() == 0
    same_in_the_end(tmp_path / "stopped", tmp_path / "whole")


def test_a_full_disk_leaves_the_checkpoint_that_was_there(tmp_path):
    model = mr.MaskRCNN(mr.Config.tiny())
    path = tmp_path / "last.keras"
    runs.save(model, path, runs.Progress(step=3))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # writing fails at that length, as on a full disk
    try:
        with pytest.raises(mr.InputError, match=r"last.keras could not be written \(File too large.*intact"):
            runs.save(model, path, runs.Progress(step=4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert runs.progress_of(path).step == 3
    with pytest.raises(mr.InputError, match="run.json could not be written"):
        runs.write_json(path / "run.json", {})  # a folder that cannot be made


def test_what_a_kill_left_of_a_checkpoint_is_cleared_away(tmp_path):
    (tmp_path / ".writing-run.json").mkdir()
    (tmp_path / ".writing-run.json" / "run.json").write_text("{")
    runs.write_json(tmp_path / "run.json", {"a": 1})
    assert runs.read_record(tmp_path) == {"a": 1} and list(tmp_path.iterdir()) == [tmp_path / "run.json"]
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(mr.InputError, match="run.json cannot be read"):
        runs.read_record(tmp_path)

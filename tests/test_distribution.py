"""Several devices and several machines: parts of the CPU and processes of this machine stand in for both."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import distribution

JOBS = Path(__file__).parent / "device_jobs.py"
BACKENDS = ("tensorflow", "jax")
TINY = [
    f"--set={change}"
    for change in (
        "image_min_size=64", "image_max_size=64", "anchor_sizes=(8,16,32)", "stem_channels=8", "fpn_channels=8",
        "stage_channels=(8,8,8)", "batch_size=4", "proposals_training=20", "roi_batch_size=8", "box_fc_channels=(8,)",
    )
]  # fmt: skip


def start(backend, *arguments, **environment):
    """A process of tests/device_jobs.py."""
    unset = ("TF_CONFIG", "XLA_FLAGS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    environment = {**inherited, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2", **environment}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(JOBS), *map(str, arguments)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def finish(process, code=0, timeout=240):
    """What it printed, once it has ended with `code`."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"still running after {timeout} s: {process.communicate()[0][-3000:]}")
    assert process.returncode == code, output[-3000:]
    return output


def two_machines(backend):
    """The environments of two processes that find each other."""
    with socket.socket() as a, socket.socket() as b:
        for each in (a, b):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (a, b)]
    if backend == "jax":
        names = ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID")
        values = [(",".join(addresses), "2", str(i)) for i in range(2)]
        return [{f"KERAS_DISTRIBUTION_{n}": v for n, v in zip(names, own, strict=True)} for own in values]
    cluster = {"worker": addresses}
    return [{"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}})} for i in range(2)]


@pytest.fixture(scope="module", params=BACKENDS)
def on_two_devices(request, tmp_path_factory):
    """The backend, and what the job `two_devices` found with it."""
    result = tmp_path_factory.mktemp("devices") / "found.json"
    finish(start(request.param, "two_devices", result))
    return request.param, json.loads(result.read_text())


# The data


def test_parts_of_a_batch_are_the_batch():
    config, data = mr.Config.tiny(batch_size=4, image_min_size=64, image_max_size=64), mr.ShapesDataset(10, size=64)

    def batches(**options):
        read = iter(mr.loader(data, config, seed=7, **options))
        return [next(read) for _ in range(3)]  # into the second epoch

    for options in ({}, {"first_step": 2}):
        parts = [batches(shard=(i, 2), **options) for i in range(2)]
        for whole, *halves in zip(batches(**options), *parts, strict=True):
            for name, array in whole.items():
                np.testing.assert_array_equal(array, np.concatenate([half[name] for half in halves]), err_msg=name)
    with pytest.raises(mr.InputError, match="batch_size is 4.*multiple of 3"):
        mr.loader(data, config, shard=(0, 3))


def test_the_sampling_of_an_image_depends_on_run_step_and_image_alone():
    """`seed` in the batch: equal in every run and for every part, new in every step."""
    config, data = mr.Config.tiny(batch_size=2, image_min_size=64, image_max_size=64), mr.ShapesDataset(2, size=64)

    def seeds(steps, **options):
        read = iter(mr.loader(data, config, **options))
        return np.array([next(read)["seed"] for _ in range(steps)])

    six = seeds(6)
    assert len(set(six.ravel())) == 12  # both images come in every step
    np.testing.assert_array_equal(seeds(2, first_step=4), six[4:])
    assert not set(seeds(6, seed=1).ravel()) & set(six.ravel())


# What is asked for


def test_what_cannot_be_is_said_in_a_sentence(monkeypatch):
    assert distribution._count(2, 0) == distribution._count(2, 4) == 2
    assert distribution._count("all", 4) == 4 and distribution._count("all", 0) == 1
    with pytest.raises(mr.InputError, match="devices is 9, but this machine has 8 GPUs"):
        distribution._count(9, 8)
    for bad in (0, -1, 1.5, "two", True):
        with pytest.raises(mr.InputError, match="whole number"):
            distribution._count(bad, 0)
    for text in ("{", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}'):
        monkeypatch.setenv("TF_CONFIG", text)
        with pytest.raises(mr.InputError, match="TF_CONFIG does not read like"):
            distribution._tensorflow_cluster()


def test_chief_comes_first(monkeypatch):
    cluster = {"worker": ["b:1", "c:1"], "chief": ["a:1"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": 0}}))
    assert distribution._tensorflow_cluster() == ([("chief", 0), ("worker", 0), ("worker", 1)], ("worker", 0))


def test_one_device_is_no_distribution():
    with mr.devices():
        assert distribution.replicas() == 1 and distribution.shard() == (0, 1) and distribution.is_chief()
    with mr.devices(1):
        assert distribution.replicas() == 1


# Two devices


@pytest.mark.slow
def test_two_devices_learn_the_mean_of_the_halves(on_two_devices):
    _, found = on_two_devices
    assert found["about"] == "2 parts of the CPU, for want of GPUs"
    assert set(found["losses"]) == set(found["halves"]) and len(found["halves"]) == 6
    for name, mean in found["halves"].items():
        assert found["losses"][name] == pytest.approx(mean, abs=1e-5), name
    assert found["update"] < 1e-5 < 0.1 < found["largest"]  # of SGD at learning rate 1: the gradient
    assert found["norm"] > 1
    assert found["clipped"] == pytest.approx(0.5, rel=2e-3)  # clipped once, after the mean


@pytest.mark.slow
def test_synchronised_norm_sees_the_whole_batch(on_two_devices):
    _, found = on_two_devices
    assert found["statistics"] < 1e-5 < 0.1 < found["statistics_moved"]


@pytest.mark.slow
def test_a_batch_that_cannot_be_shared_is_named(on_two_devices):
    assert "3 images, which 2 devices cannot share equally" in on_two_devices[1]["three"]


# Two machines


@pytest.mark.slow
def test_two_machines_are_two_devices(on_two_devices, tmp_path):
    backend, expected = on_two_devices
    processes = [
        start(backend, "one_of_two_machines", tmp_path / f"{i}.json", **environment)
        for i, environment in enumerate(two_machines(backend))
    ]
    for process in processes:
        finish(process)
    found = [json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2)]
    assert [each["shard"] for each in found] == [[0, 2], [1, 2]]
    for each in found:
        assert each["losses"] == pytest.approx(expected["losses"], abs=1e-5)
        assert each["norm"] == pytest.approx(expected["norm"], rel=1e-4)
        assert "do not agree on their number ([0, 1])" in each["disagreement"]
    assert sorted(path.name for path in tmp_path.glob("*.keras")) == ["0.keras"]  # the chief's


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_machine_that_dies_ends_the_run_which_can_go_on(backend, tmp_path):
    """kill -9 to one of two: the other ends with a sentence; both, started again, go on and finish."""
    logs = tmp_path / "logs"

    def both(*arguments):
        environments = two_machines(backend)
        return [
            start(backend, "train_command", 5, "shapes", "--logs", logs, *arguments, **environment)
            for environment in environments
        ]

    chief, other = both("--steps", "100000", *TINY)
    try:
        deadline = time.monotonic() + 200
        while not (written := list(logs.glob("*/log.csv"))) or len(written[0].read_text().split("\n")) < 4:
            assert time.monotonic() < deadline and chief.poll() is None and other.poll() is None
            time.sleep(0.2)
    finally:
        other.send_signal(signal.SIGKILL)
    finish(other, -signal.SIGKILL)
    output = finish(chief, 3, timeout=90)
    assert "Process 1 of 2 stops, because it lost another one" in output.splitlines()[-1]

    (run,) = logs.iterdir()
    steps = len(list(csv.reader((run / "log.csv").open()))) * 5 + 10
    for i, process in enumerate(both("--model", "last", "--steps", str(steps))):
        output = finish(process)
        assert f"in 2 processes of which this is number {i + 1}" in output and "Going on with" in output
    (run,) = logs.iterdir()  # the other process wrote nothing of its own
    assert sorted(path.name for path in run.iterdir()) == ["last.keras", "log.csv", "run.json"]
    assert int(mr.runs.load(run / "last.keras").optimizer.iterations) == steps

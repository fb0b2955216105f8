"""A run's folder: its files, written so that a kill or a full disk leaves the ones before, and how far it has come."""

import contextlib
import dataclasses
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path

from maskrcnn_edu import distribution
from maskrcnn_edu.errors import InputError

CHECKPOINT, BEST, RECORD, LOG = "last.keras", "best.keras", "run.json", "log.csv"


@dataclasses.dataclass
class Progress:
    """How far a run has come: what a restart needs beside the model and its optimizer.

    step: batches done; seconds: spent on them. sums: Keras' metrics in the middle of a line of the log.
    best, best_step: the highest AP of the validations so far, and when; stale: how many there have been since.
    stopped: early stopping has ended the run.
    """

    step: int = 0
    seconds: float = 0.0
    sums: list = dataclasses.field(default_factory=list)
    best: float = -1.0
    best_step: int = 0
    stale: int = 0
    stopped: bool = False


@contextlib.contextmanager
def written_aside(path):
    """Gives a path to write to, and renames that file to `path` at the end: a kill leaves the file that was there.

    Raises InputError if it cannot be written; nothing half-written stays.
    """
    path = Path(path)
    folder = path.parent / f".writing-{path.name}"
    try:
        shutil.rmtree(folder, ignore_errors=True)  # left by a kill
        folder.mkdir(parents=True)
        yield folder / path.name
        with open(folder / path.name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / path.name, path)
    except (OSError, RuntimeError) as error:  # h5py has both
        there = " What was saved there before is intact." if path.exists() else ""
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"{path} could not be written ({reason}); make room or choose another place.{there}"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(model, path, progress=None):
    """Writes a model aside and renames it. `progress` goes into the same file, so that the two cannot part.

    Of several processes every one calls it, since saving makes TensorFlow's machines talk, and the chief's file stays.
    """
    if not distribution.is_chief():
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / Path(path).name)
        return
    with written_aside(path) as aside:
        model.save(aside)
        with zipfile.ZipFile(aside, "a") as archive:
            archive.comment = json.dumps(dataclasses.asdict(progress or Progress())).encode()


def progress_of(path):
    """The Progress that `save` has put into a .keras file."""
    with zipfile.ZipFile(path) as archive:
        return Progress(**json.loads(archive.comment or b"{}"))


def load(path):
    """The model in a .keras file. Raises InputError if there is none, or it is not one of ours."""
    import keras

    from maskrcnn_edu.model import MaskRCNN

    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such model file; check the path.")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: this is no Keras model file; give one that train has saved.")
    try:
        model = keras.saving.load_model(path)
    except Exception as error:  # Keras, zipfile, h5py and JSON each have their own
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: this is no model that can be opened ({reason}); give a .keras file.") from error
    if not isinstance(model, MaskRCNN):
        raise InputError(f"{path}: this is a {type(model).__name__}, not a MaskRCNN; give a file that train has saved.")
    return model


def write_json(path, content):
    """Writes JSON aside and renames it."""
    with written_aside(path) as aside:
        aside.write_text(json.dumps(content, indent=1) + "\n")


def read_record(run):
    """The run.json of a run. Raises InputError if it is missing or damaged."""
    try:
        return json.loads((Path(run) / RECORD).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{Path(run) / RECORD} cannot be read ({error}); start again with --model new.") from error


def new_run(logs, name):
    """A directory for a new run of `name` under `logs`, with the time in its name; it is not made yet."""
    start = Path(logs) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [start, *(start.with_name(f"{start.name}-{n}") for n in range(2, 1000))]
    return next(path for path in candidates if not path.exists())


def last_run(logs, name="*"):
    """The directory of the newest run of `name` (by default: of anything) under `logs`. InputError if there is none."""
    runs = sorted(Path(logs).glob(f"{name}-*/{CHECKPOINT}"), key=lambda path: path.parent.name.partition("-")[2])
    if not runs:
        of_name = "" if name == "*" else f" of {name}"
        raise InputError(f"{logs} holds no run{of_name}; train one with --model new, or give its --logs.")
    return runs[-1].parent


def describe(model, dataset, **settings):
    """What is needed to repeat a run: its settings, the config, versions, and the state of the code around it."""
    return {
        "dataset": type(dataset).__name__, "images": len(dataset), "class_names": model.class_names, **settings,
        "config": dataclasses.asdict(model.config), "versions": _versions(), "git": _git(),
    }  # fmt: skip


def _versions():
    import keras

    packages = ("maskrcnn_edu", "keras", "tensorflow", "jax", "grain", "numpy")
    versions = {"python": platform.python_version(), "backend": keras.backend.backend()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _git():
    """The commit of the repository that the command runs in, and whether files differ from it; None without one."""

    def git(*arguments):
        return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None

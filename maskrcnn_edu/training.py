"""Training: the optimizer and learning rate that a Config describes, and runs that can be stopped and gone on with."""

import dataclasses
import json
import math
import os
import platform
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path

import keras
from keras import ops

from maskrcnn_edu import distribution
from maskrcnn_edu.datasets import loader
from maskrcnn_edu.errors import InputError

CHECKPOINT = "last.keras"
SAVE_EVERY = 250  # steps between checkpoints; also the length of what Keras calls an epoch


@keras.saving.register_keras_serializable("maskrcnn_edu")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, then a cosine to 0 or a division by 10 at each of `lr_steps` (shares of the run)."""

    def __init__(self, peak, steps, warmup_steps, warmup_factor, shape, lr_steps=()):
        self.peak, self.steps, self.shape, self.lr_steps = peak, steps, shape, tuple(lr_steps)
        self.warmup_steps, self.warmup_factor = warmup_steps, warmup_factor

    def __call__(self, step):
        step = ops.cast(step, "float32")
        share = ops.minimum(step / max(self.warmup_steps, 1), 1.0)
        warm = self.warmup_factor + (1.0 - self.warmup_factor) * share if self.warmup_steps else 1.0
        if self.shape == "cosine":
            done = ops.clip((step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1), 0.0, 1.0)
            return self.peak * warm * 0.5 * (1.0 + ops.cos(math.pi * done))
        passed = sum(ops.cast(step >= share * self.steps, "float32") for share in self.lr_steps)
        return self.peak * warm * 0.1**passed

    def get_config(self):
        return {
            "peak": self.peak, "steps": self.steps, "shape": self.shape, "lr_steps": self.lr_steps,
            "warmup_steps": self.warmup_steps, "warmup_factor": self.warmup_factor,
        }  # fmt: skip


def build_schedule(config, steps=None):
    """The learning rate of `config` over a run of `steps` (default: config.train_steps).

    A warm-up never takes more than a tenth of a short run.
    """
    steps = steps or config.train_steps
    return Schedule(
        config.learning_rate, steps, min(config.warmup_steps, steps // 10), config.warmup_factor,
        config.schedule, config.lr_steps,
    )  # fmt: skip


def build_optimizer(config, steps=None):
    """The optimizer of `config` for a run of `steps`."""
    options = {"learning_rate": build_schedule(config, steps), "weight_decay": config.weight_decay or None}
    if config.gradient_clip:
        options["global_clipnorm"] = config.gradient_clip
    if config.optimizer == "adamw":
        return keras.optimizers.AdamW(**{**options, "weight_decay": config.weight_decay})
    return keras.optimizers.SGD(momentum=config.momentum, **options)


def train(model, dataset, directory, steps, seed=0, verbose=1, workers=0, skip_bad=False):
    """Trains a compiled model until it has done `steps` steps, with checkpoints and a log in `directory`.

    A model that has done some steps (its optimizer counts them) goes on with the batch that comes next. The directory
    holds last.keras (model and optimizer), log.csv (every loss, a line each SAVE_EVERY steps) and run.json (settings).

    workers, skip_bad: as in `loader`; what was skipped is printed at the end.

    Raises InputError if the dataset does not suit the model or the loss is no longer finite.
    """
    directory = Path(directory)
    done = model.steps_done
    reading = {"seed": seed, "workers": workers, "skip_bad": skip_bad}
    batches = loader(dataset, model.config, first_step=done, **reading)
    if done == 0:
        if distribution.is_chief():
            write_json(directory / "run.json", _record(model, dataset, steps, seed))
        save(model, directory / CHECKPOINT)  # a run killed early can be found and started again
    while done < steps:
        # Whole epochs first, then what is left: Keras wants epochs of one length.
        length = min(SAVE_EVERY, steps - done)
        epochs = (steps - done) // length
        callbacks = [_Checkpoint(directory / CHECKPOINT)]
        if distribution.is_chief():
            callbacks.append(keras.callbacks.CSVLogger(directory / "log.csv", append=True))
        first = done // SAVE_EVERY
        model.fit(
            batches, steps_per_epoch=length, initial_epoch=first, epochs=first + epochs, callbacks=callbacks,
            verbose=verbose,
        )  # fmt: skip
        done += length * epochs
        batches.close()
        for image_id, reason in batches.skipped.items():
            print(f"Skipped image {image_id}: {reason}")
        if done < steps:
            batches = loader(dataset, model.config, first_step=done, **reading)


class _Checkpoint(keras.callbacks.Callback):
    """Saves the model when an epoch ends, and stops a run whose loss has become NaN or infinite before that."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite(logs["loss"]):
            raise InputError(
                f"The loss is no longer finite ({logs['loss']}) at step {self.model.steps_done}; "
                f"lower learning_rate or set gradient_clip. {self.path} holds the last good state."
            )
        save(self.model, self.path)


def save(model, path):
    """Writes the model aside and renames it: a kill in the middle leaves the file that was there.

    Of several processes every one calls it, since saving makes TensorFlow's machines talk, and the chief's file stays.
    """
    path = Path(path)
    if not distribution.is_chief():
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / path.name)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}-being-written.keras")
    model.save(aside)
    os.replace(aside, path)


def write_json(path, content):
    """Writes JSON aside and renames it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-being-written")
    aside.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(aside, path)


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


def load(path):
    """The model in a .keras file. Raises InputError if there is none, or it is not one of ours."""
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


def _record(model, dataset, steps, seed):
    """What is needed to repeat a run."""
    packages = ("maskrcnn_edu", "keras", "tensorflow", "jax", "grain", "numpy")
    versions = {"python": platform.python_version(), "backend": keras.backend.backend()}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "dataset": type(dataset).__name__, "images": len(dataset), "class_names": model.class_names, "steps": steps,
        "seed": seed, "config": dataclasses.asdict(model.config), "versions": versions,
    }  # fmt: skip

"""What happens while a run trains: watching the loss, validation, the log, checkpoints, and what the terminal shows.

Their order matters: Validation adds its numbers to Keras' `logs`, and those behind it write them down.
"""

import csv
import math
import sys
import time

import keras
import numpy as np
from keras import ops

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.optimizers import swap_averages, unwrapped
from maskrcnn_edu.runs import BEST, CHECKPOINT, LOG, save, written_aside
from maskrcnn_edu.validation import main_score, validate


class Watch(keras.callbacks.Callback):
    """Counts the steps and the seconds, and stops a run whose loss is NaN or infinite at that very step."""

    def __init__(self, progress, batches, checkpoint):
        super().__init__()
        self.progress, self.batches, self.checkpoint = progress, batches, checkpoint

    def on_train_begin(self, logs=None):
        self.now = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        if self.progress.sums:  # the line of the log that a stopped run had begun
            for variable, value in zip(self.model.metrics_variables, self.progress.sums, strict=True):
                variable.assign(value)
            self.progress.sums = []

    def on_train_batch_end(self, batch, logs=None):
        self.progress.step += 1
        before, self.now = self.now, time.perf_counter()
        self.progress.seconds += self.now - before
        if math.isfinite(_number(logs["loss"])):
            return
        step = self.progress.step
        values = ", ".join(f"{name} {_number(value)}" for name, value in logs.items())
        images = ", ".join(map(str, self.batches.image_ids(step - 1)))
        raise InputError(
            f"The loss is no longer finite at step {step} ({values}; images {images}); lower learning_rate or set "
            f"gradient_clip. {self.checkpoint} holds the last good state."
        )


class Validation(keras.callbacks.Callback):
    """Every `every` steps, and at the end: AP and the proposals' recall, of the averaged weights where there are."""

    def __init__(self, progress, dataset, every, steps, limit=None):
        super().__init__()
        self.progress, self.dataset, self.every, self.steps, self.limit = progress, dataset, every, steps, limit

    def on_epoch_end(self, epoch, logs=None):
        if self.progress.step % self.every and self.progress.step < self.steps:
            return
        model = self.model
        swap_averages(model)
        logs.update(validate(model, self.dataset, self.limit))
        swap_averages(model)


class Log(keras.callbacks.Callback):
    """A line of log.csv an epoch: the losses since the line before, the learning rate, the validation's numbers.

    A restart drops the lines that a killed run wrote after its last checkpoint, since they will be written again.
    """

    def __init__(self, progress, folder, columns):
        super().__init__()
        self.progress, self.path, self.columns = progress, folder / LOG, ["step", "learning_rate", *columns]
        lines = self._lines()
        with written_aside(self.path) as aside, open(aside, "w", newline="") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(line for line in lines if int(line["step"]) <= progress.step)

    def _lines(self):
        if not self.path.exists():
            return []
        with open(self.path, newline="") as file:
            return [line for line in csv.DictReader(file) if None not in line.values()]  # not one cut off by a kill

    def last_line(self):
        """The numbers of the last line, by name; {} without one."""
        return next(({name: float(v) for name, v in line.items() if v} for line in self._lines()[::-1]), {})

    def on_epoch_end(self, epoch, logs=None):
        logs["learning_rate"] = float(unwrapped(self.model.optimizer).learning_rate)
        line = {"step": self.progress.step, **logs}
        try:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self.columns, restval="", extrasaction="ignore").writerow(line)
        except OSError as error:
            raise InputError(
                f"{self.path} could not be written ({error.strerror}); make room or mend its folder, then go on."
            ) from error


class Checkpoint(keras.callbacks.Callback):
    """Saves last.keras at the end of an epoch, and best.keras if its AP is the best; ends a run that gets no better.

    Set `interrupted`, and it saves after the step that is under way and stops with KeyboardInterrupt.
    """

    def __init__(self, progress, folder, patience=0):
        super().__init__()
        self.progress, self.folder, self.patience, self.interrupted = progress, folder, patience, False

    def on_train_batch_end(self, batch, logs=None):
        if self.interrupted and batch + 1 < self.params["steps"]:  # else the end of the epoch follows at once
            self.progress.sums = [ops.convert_to_numpy(variable).tolist() for variable in self.model.metrics_variables]
            self.save(CHECKPOINT)
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        progress, score = self.progress, main_score(logs)
        if score is not None:
            progress.stale += 1
            if score > progress.best:
                progress.best, progress.best_step, progress.stale = score, progress.step, 0
                self.save(BEST)
            if self.patience and progress.stale >= self.patience:
                progress.stopped = self.model.stop_training = True
        self.save(CHECKPOINT)
        if self.interrupted:
            raise KeyboardInterrupt

    def save(self, name):
        """Saves the averaged weights as the model's, where there are, and its own in their place."""
        model = self.model
        if not all(np.isfinite(ops.convert_to_numpy(weight)).all() for weight in model.trainable_variables):
            raise InputError(
                f"Weights are no longer finite after step {self.progress.step}; lower learning_rate or set "
                f"gradient_clip. {self.folder / CHECKPOINT} holds the last good state."
            )
        swap_averages(model)
        try:
            save(model, self.folder / name, self.progress)
        finally:
            swap_averages(model)


class Console(keras.callbacks.Callback):
    """One line: step, losses, images a second, time left. On a terminal it is drawn over; else a line an epoch."""

    def __init__(self, progress, steps, batch_size, in_place):
        super().__init__()
        self.progress, self.steps, self.batch_size, self.in_place = progress, steps, batch_size, in_place

    def on_train_begin(self, logs=None):
        self.start = self.drawn = None

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if self.start is None:  # the first step compiles the model and says nothing about the others
            self.start, self.drawn = (self.progress.step, now), now
        elif self.in_place and now - self.drawn > 0.5:
            self.drawn = now
            sys.stdout.write("\r" + self._line(logs) + "\x1b[K")
            sys.stdout.flush()

    def on_epoch_end(self, epoch, logs=None):
        print(("\r" if self.in_place else "") + self._line(logs) + ("\x1b[K" if self.in_place else ""), flush=True)

    def _line(self, logs):
        words = [f"step {self.progress.step}/{self.steps}"]
        words += [f"{name.removesuffix('_loss')} {_number(v):.3g}" for name, v in logs.items()]
        step, since = self.start
        if self.progress.step > step:
            rate = (self.progress.step - step) / (time.perf_counter() - since)
            left = (self.steps - self.progress.step) / rate
            words += [f"{rate * self.batch_size:.1f} images/s", f"{duration(left)} left"]
        return "  ".join(words)


def duration(seconds):
    """Seconds in words: 45 s, 12 min 5 s, 3 h 20 min."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _number(value):
    """A metric of Keras' as a float; on several workers it comes as an array of one."""
    return float(np.mean(value))

"""Batches: batches made ahead of time by Grain, in threads or in worker processes."""

import functools
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import weakref
from multiprocessing import connection
from pathlib import Path

import cloudpickle  # as absl, a part of Grain's own installation
import grain
import numpy as np
from absl import flags

from maskrcnn_edu.errors import InputError

# Two threads keep decoding and training side by side; four batches ahead is little memory, even at 16 x 1344 x 1344.
READ_THREADS = 2
BATCHES_AHEAD = 4
# To each worker one batch in the making and one ready: in shared memory, which containers have little of.
WORKER_BATCHES_AHEAD = 1
# Keras looks at two batches to learn their shapes, with an iterator that it then drops: no reason to start processes.
WITHOUT_WORKERS = 2
ENDLESS = 2**40  # steps
GUARD = re.compile(r"^if\s*\(?\s*__name__\s*==", re.MULTILINE)
WORKER_DIED = "Worker process was terminated unexpectedly with exit code "  # how Grain puts it


class Batches(grain.IterDataset):
    """The batches from `first_step` on that `make(step)` gives, as `loader` describes them."""

    def __init__(self, make, first_step, workers):
        super().__init__()
        self.make, self._first_step, self.workers = make, first_step, workers
        self.stop = ENDLESS if make.training else make.steps()
        self._iterators = weakref.WeakSet()
        self.steps_per_epoch = make.steps_per_epoch
        self.skipped, self.failures = {}, []
        if workers:
            _check_script(workers)

    def __iter__(self):
        iterator = _Iterator(self, self._first_step)
        self._iterators.add(iterator)
        return iterator

    def image_ids(self, step) -> list:
        """The ids of the images in batch `step` of all shards, none of which is read."""
        return self.make.image_ids(step)

    def close(self):
        """Ends the threads and processes of every iterator that is still there."""
        for iterator in list(self._iterators):
            iterator.close()

    def made(self, step):
        """An iterator over what is made for the steps from `step` on."""
        if self.workers and step < self._first_step + WITHOUT_WORKERS:
            return map(self.make, range(step, min(self._first_step + WITHOUT_WORKERS, self.stop)))
        steps = grain.MapDataset.range(step, self.stop)
        if not self.workers:
            return iter(steps.map(self.make).to_iter_dataset(grain.ReadOptions(READ_THREADS, BATCHES_AHEAD)))
        if not flags.FLAGS.is_parsed():  # Grain asks absl for its options, which only scripts under absl.app parse
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(self.workers, per_worker_buffer_size=WORKER_BATCHES_AHEAD)
        handed = _Handed(self.make)
        start = functools.partial(_start_worker, handed.path)
        return iter(steps.map(handed).to_iter_dataset(grain.ReadOptions(1, 1)).mp_prefetch(options, start))


class _Handed:
    """What makes the batches, for worker processes, which read it from a file that goes when this object does.

    Python hands a new process its arguments through a pipe of 64 KB, and would wait for ever for one that has ended
    before it read them.
    """

    def __init__(self, make):
        number, self.path = tempfile.mkstemp(prefix="maskrcnn_edu-loader-")
        weakref.finalize(self, _remove, self.path)
        try:
            with open(number, "wb") as file:
                cloudpickle.dump(make, file)
        except OSError as error:
            raise InputError(
                f"{self.path}, with which the loader hands its dataset to worker processes, could not be written "
                f"({error.strerror}); make room, or use workers=0."
            ) from error

    def __getstate__(self):
        return self.path

    def __setstate__(self, path):
        with open(path, "rb") as file:
            self._make = cloudpickle.load(file)

    def __call__(self, step):
        return self._make(step)


def _remove(path):
    Path(path).unlink(missing_ok=True)


class _Iterator(grain.DatasetIterator):
    """Goes through `Batches`, and keeps what was skipped and what went wrong. Its state is the step."""

    def __init__(self, batches, step):
        super().__init__()
        self._batches, self._step, self._made = batches, step, None

    def __next__(self):
        batch, skipped = self._next_made()
        self._batches.skipped.update(skipped)
        self._step += 1
        # What a worker made lies in shared memory; a copy gives it back at once, whoever keeps the batch.
        return {name: np.array(array) for name, array in batch.items()} if self._batches.workers else batch

    def _next_made(self):
        try:
            if self._made is None:
                self._made = self._batches.made(self._step)
            return next(self._made)
        except StopIteration:
            self.close()
            if self._step < self._batches.stop:  # that was the part without workers
                return self._next_made()
            raise
        except Exception as error:
            self.close()
            if isinstance(error, InputError):
                self._batches.failures.append(error)
                raise
            if not str(error).startswith(WORKER_DIED):
                raise
            self._batches.failures.append(_worker_died(error))
            raise self._batches.failures[-1] from None

    def get_state(self):
        return {"step": self._step}

    def set_state(self, state):
        self.close()
        self._step = state["step"]

    def close(self):
        if hasattr(self._made, "close"):
            self._made.close()
        self._made = None


def _worker_died(error):
    code = str(error).removeprefix(WORKER_DIED).split()[0].rstrip(".")
    if code.startswith("-"):
        return InputError(
            f"A worker process of the loader ended without a word (exit code {code}; -9 and -7 mean too little memory "
            "or /dev/shm): use fewer workers or smaller batches, or workers=0."
        )
    return InputError(
        f"A worker process of the loader ended with exit code {code}, for the reason that is printed above: it must be "
        "able to import the script that runs, and what the dataset needs; mend that, or use workers=0."
    )


def _check_script(workers):
    """A worker runs the script again, to know its functions: without the guard it would start workers of its own."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script and Path(script).is_file() and not GUARD.search(Path(script).read_text(errors="replace")):
        raise InputError(
            f'loader: workers={workers} needs the work of {script} under `if __name__ == "__main__":`, since each '
            "worker process imports it; add that line, or use workers=0."
        )


def _start_worker(handed, index, count):
    """In a worker: Ctrl-C is the main process' affair; if that is killed, the worker clears up and ends too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main = multiprocessing.parent_process()

    def follow():
        connection.wait([main.sentinel])
        _remove(handed)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

"""Training: a run that writes down how it goes, and that can be stopped at any moment and gone on with."""

import contextlib
import signal
import threading
import time
from pathlib import Path

from maskrcnn_edu import distribution
from maskrcnn_edu.callbacks import Checkpoint, Console, Log, Validation, Watch
from maskrcnn_edu.datasets import loader
from maskrcnn_edu.optimizers import change_trainable, swap_averages, trainable_at
from maskrcnn_edu.runs import CHECKPOINT, RECORD, Progress, describe, read_record, write_json
from maskrcnn_edu.validation import validation_columns

SAVE_EVERY = 250  # steps between checkpoints; also the length of what Keras calls an epoch


def train(
    model, dataset, directory, steps, seed=0, progress=None, save_every=SAVE_EVERY, validation=None, validate_every=0,
    validation_limit=None, patience=0, tensorboard=False, callbacks=(), settings=None, verbose=1,
    workers=0, skip_bad=False,
):  # fmt: skip
    """Trains a compiled model for `steps` steps, batches of `dataset`, and keeps a record of it in `directory`.

    The directory then holds last.keras (model, optimizer and how far the run has come), best.keras (at its highest AP,
    if it is validated), log.csv (a line each `save_every` steps) and run.json (settings, versions, result). A run that
    was stopped, even by `kill -9`, goes on from last.keras to the same weights as one that was not.

    Args:
        model: a compiled MaskRCNN. Config.trainable and trainable_steps say which layers learn when.
        directory: of this run.
        seed: of the order of the images and of everything random in them.
        progress: for a run that goes on, `runs.progress_of` its last.keras, which the model is from too. It is kept up
            to date.
        validation, validate_every, validation_limit: a Dataset to measure the AP on, after every so many steps (a
            multiple of save_every) and at the end, on its first so many images.
        patience: ends the run when the AP has not risen for so many validations; 0 never does.
        tensorboard: write curves and pictures for TensorBoard into the directory.
        callbacks: more of Keras' callbacks. An epoch is `save_every` steps; the AP is in its `logs`.
        settings: a dict to be written into run.json.
        workers, skip_bad: as in `loader`; what was skipped is printed.
        verbose: 0 silent, 1 one line that is drawn over, 2 a line each `save_every` steps.

    The model ends with the averaged weights where Config.ema asks for them. Ctrl-C, or SIGTERM, saves after the step
    under way. Returns the result that is written into run.json.

    Raises:
        InputError: a dataset that does not suit the model; an image that cannot be read; a loss that is not finite,
            with the images of its batch; a full disk. last.keras then holds the last good state.
    """
    directory, config = Path(directory), model.config
    progress = progress or Progress()
    resumed = progress.step > 0
    reading = {"seed": seed, "workers": workers, "skip_bad": skip_bad}
    batches = loader(dataset, config, first_step=progress.step, **reading)  # first: it checks the dataset
    chief = distribution.is_chief()  # of several processes, the one that writes
    if chief:
        _write_record(directory, resumed, describe(model, dataset, steps=steps, seed=seed, **(settings or {})))
    columns = ["loss", *model.loss_weights, *(validation_columns(model) if validation else ())]
    checkpoint = Checkpoint(progress, directory, patience)
    checkpoint.set_model(model)
    if resumed:
        swap_averages(model)
    else:
        checkpoint.save(CHECKPOINT)  # a run killed early can be found and started again
    others = [*([Log(progress, directory, columns)] if chief else []), *callbacks]
    if validation:
        others.insert(0, Validation(progress, validation, validate_every, steps, validation_limit))
    if tensorboard and chief:
        from maskrcnn_edu.board import Board  # matplotlib and TensorFlow's summaries

        others.append(Board(progress, directory, validation))
    if verbose and chief:
        others.append(Console(progress, steps, config.batch_size, in_place=verbose == 1))
    with _saving_when_interrupted(checkpoint):
        while progress.step < steps and not progress.stopped:
            layers, end = trainable_at(config, progress.step, steps)
            if layers != model.trainable_layers:
                change_trainable(model, layers)
            length, epochs = _epochs(progress.step, save_every, end)
            watch = Watch(progress, batches, directory / CHECKPOINT)
            with _weights_left_alone(model.optimizer):
                model.fit(
                    batches, steps_per_epoch=length, epochs=epochs, callbacks=[watch, *others, checkpoint], verbose=0
                )
            batches.close()
            for image_id, reason in batches.skipped.items():
                print(f"Skipped image {image_id}: {reason}")
            batches = loader(dataset, config, first_step=progress.step, **reading)
    swap_averages(model)
    return _finish(directory, progress, others)


def _epochs(step, length, end):
    """Length and number of the next epochs: to the next multiple of `length`, then whole ones, then what is left."""
    if step % length:
        return min(length - step % length, end - step), 1
    length = min(length, end - step)
    return length, (end - step) // length


@contextlib.contextmanager
def _weights_left_alone(optimizer):
    """`fit` would end by giving the model its averaged weights, but the run is not over."""
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values


@contextlib.contextmanager
def _saving_when_interrupted(checkpoint):
    """Ctrl-C and SIGTERM wait for the step under way, since half a step cannot be saved; a second one does not."""

    def stop(number, frame):
        if checkpoint.interrupted:
            raise KeyboardInterrupt
        checkpoint.interrupted = True

    alone = distribution.shard()[1] == 1  # several processes can only save together
    if not alone or threading.current_thread() is not threading.main_thread():  # Python allows it there alone
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_record(directory, resumed, record):
    """run.json: what is needed to repeat the run; with each restart, when and with which versions."""
    record = {**record, "started": time.strftime("%Y-%m-%d %H:%M:%S"), "restarts": []}
    if resumed:
        now, record = record, read_record(directory)
        record.setdefault("restarts", []).append({name: now[name] for name in ("started", "versions", "git")})
        record["steps"] = now["steps"]
    write_json(directory / RECORD, record)


def _finish(directory, progress, callbacks):
    """Adds the result to run.json: steps, seconds, and the last numbers of the log."""
    result = {"step": progress.step, "seconds": round(progress.seconds, 1), "stopped_early": progress.stopped}
    if progress.best_step:
        result.update(best=progress.best, best_step=progress.best_step)
    log = next((callback for callback in callbacks if isinstance(callback, Log)), None)
    if log is None:
        return result
    result["final"] = log.last_line()
    write_json(directory / RECORD, {**read_record(directory), "result": result})
    return result

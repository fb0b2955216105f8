"""The learning rate, the optimizer, and runs that are stopped and gone on with."""

import errno
import json
import os
import shutil

import keras
import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import callbacks, optimizers, runs, training

# As small as a Mask R-CNN can be: what is tested here is the run around it.
CONFIG = mr.Config.tiny(
    stem_channels=4, stage_channels=(8, 8, 8), fpn_channels=8, rpn_channels=8, proposals=10, proposals_training=10,
    roi_batch_size=8, box_fc_channels=(16,), mask_conv_channels=(8,), batch_size=2, max_instances=6,
)  # fmt: skip


def new_model(steps):
    keras.utils.set_random_seed(0)
    model = mr.MaskRCNN(CONFIG, mr.ShapesDataset.class_names)
    model.compile(optimizers.build_optimizer(CONFIG, steps))
    return model


def test_a_run_leaves_a_model_a_log_and_its_settings(tmp_path):
    training.train(new_model(3), mr.ShapesDataset(8), tmp_path / "run", steps=3, seed=5, verbose=0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["last.keras", "log.csv", "run.json"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 3 and record["seed"] == 5 and mr.Config(**record["config"]) == CONFIG
    header = (tmp_path / "run" / "log.csv").read_text().split("\n")[0]
    assert {"loss", "rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss"} <= set(header.split(","))
    assert int(runs.load(tmp_path / "run" / "last.keras").optimizer.iterations) == 3


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path):
    whole, dataset = new_model(5), mr.ShapesDataset(8)
    training.train(whole, dataset, tmp_path / "whole", steps=5, save_every=2, verbose=0)

    training.train(new_model(5), dataset, tmp_path / "stopped", steps=2, save_every=2, verbose=0)
    path = tmp_path / "stopped" / "last.keras"
    again = runs.load(path)
    training.train(again, dataset, path.parent, steps=5, progress=runs.progress_of(path), save_every=2, verbose=0)
    assert int(again.optimizer.iterations) == 5
    for mine, theirs in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


class At(keras.callbacks.Callback):
    """Calls a function with the model after a step of the run."""

    def __init__(self, step, function):
        super().__init__()
        self.left, self.function = step, function

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        if self.left == 0:
            self.function(self.model)


def spoil(model):
    model.box_head.get_layer("class_logits").bias.assign(np.full(4, np.nan, "f4"))


def test_a_loss_that_is_not_finite_stops_the_run_at_that_step_and_names_the_images(tmp_path):
    dataset, model = mr.ShapesDataset(8), new_model(9)
    ids = mr.loader(dataset, CONFIG, seed=3).image_ids(3)
    with pytest.raises(
        ValueError, match=rf"no longer finite at step 4 \(.*class_loss nan.*images {ids[0]}, {ids[1]}\)"
    ):
        training.train(model, dataset, tmp_path, 9, 3, save_every=2, callbacks=[At(3, spoil)], verbose=0)
    assert runs.progress_of(tmp_path / "last.keras").step == 2
    assert all(np.isfinite(weight).all() for weight in runs.load(tmp_path / "last.keras").get_weights())


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with pytest.raises(ValueError, match=r"Weights are no longer finite after step 4"):
        training.train(
            new_model(9), mr.ShapesDataset(8), tmp_path, 9, save_every=2, callbacks=[At(4, spoil)], verbose=0
        )
    assert runs.progress_of(tmp_path / "last.keras").step == 2


def read_only(*arguments, **options):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("deleted", r"log.csv could not be written \(No such file"),
        ("file", r"log.csv could not be written \(Not a directory"),
        ("read-only log", r"log.csv could not be written \(Read-only file system\)"),
        ("read-only checkpoint", r"last.keras could not be written \(Read-only file system\).*before is intact"),
    ],
)  # fmt: skip
def test_a_folder_that_fails_during_a_run_ends_it_with_a_sentence(harm, said, tmp_path, monkeypatch):
    run, kept = tmp_path / "run", tmp_path / "kept"

    def spoil(model):
        shutil.copytree(run, kept)
        if harm == "read-only log":
            monkeypatch.setattr(callbacks, "open", read_only, raising=False)
        elif harm == "read-only checkpoint":
            monkeypatch.setattr(runs.os, "replace", read_only)
        else:
            shutil.rmtree(run)
        if harm == "file":
            run.write_text("in the way")

    with pytest.raises(mr.InputError, match=said) as raised:
        training.train(new_model(9), mr.ShapesDataset(8), run, 9, save_every=2, callbacks=[At(3, spoil)], verbose=0)
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    path = kept / "last.keras" if harm in ("deleted", "file") else run / "last.keras"
    assert runs.progress_of(path).step == 2 and runs.load(path)
    assert harm in ("deleted", "file") or not list(run.glob(".writing*"))


def test_a_tensorboard_file_that_cannot_be_written_ends_it_too(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    import tensorflow as tf

    from maskrcnn_edu.board import Board

    def full():
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    board = Board(runs.Progress(step=1), tmp_path)
    monkeypatch.setattr(board.writer, "flush", full)
    with pytest.raises(mr.InputError, match=r"TensorBoard's file in .* could not be written \(No space left"):
        board.on_epoch_end(0, {"loss": 1.0})


def test_the_images_of_a_batch_are_those_that_the_loader_gives():
    class Numbered(mr.ShapesDataset):
        def load_image(self, i):
            return np.full_like(super().load_image(i), i)

        def image_id(self, i):
            return 100 + i

    batches = mr.loader(Numbered(5), CONFIG, seed=4, first_step=2)
    for step, batch in zip(range(2, 6), batches, strict=False):
        assert batches.image_ids(step) == [100 + image.max() for image in batch["image"]]


def test_a_picture_that_cannot_be_read_is_named_whatever_the_backend_makes_of_it(tmp_path):
    class Broken(mr.ShapesDataset):
        def load_image(self, i):
            if i == 7:
                raise mr.InputError("picture seven is broken")
            return super().load_image(i)

    with pytest.raises(mr.InputError, match="picture seven is broken"):
        training.train(new_model(40), Broken(16), tmp_path, steps=40, verbose=0)


def test_the_newest_run_is_the_last(tmp_path):
    with pytest.raises(ValueError, match="no run of shapes"):
        runs.last_run(tmp_path, "shapes")
    for name in ("shapes-20260101-000000", "shapes-20260102-000000", "coco-20270101-000000", "shapes-20280101-000000"):
        (tmp_path / name).mkdir()
        if "2028" not in name:
            (tmp_path / name / "last.keras").touch()
    assert runs.last_run(tmp_path, "shapes").name == "shapes-20260102-000000"
    first = runs.new_run(tmp_path, "shapes")
    first.mkdir()
    assert runs.new_run(tmp_path, "shapes") != first


def test_files_that_are_no_model_are_named(tmp_path):
    (tmp_path / "text.keras").write_text("no model")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    for name, reason in (
        ("absent.keras", "no such"),
        ("text.keras", "no Keras model"),
        ("other.keras", "not a MaskRCNN"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.*{reason}"):
            runs.load(tmp_path / name)

"""The learning rate, the optimizer, and runs that are stopped and gone on with."""

import json

import keras
import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu import training

# As small as a Mask R-CNN can be: what is tested here is the run around it.
CONFIG = mr.Config.tiny(
    stem_channels=4, stage_channels=(8, 8, 8), fpn_channels=8, rpn_channels=8, proposals=10, proposals_training=10,
    roi_batch_size=8, box_fc_channels=(16,), mask_conv_channels=(8,), batch_size=2, max_instances=6,
)  # fmt: skip


def new_model(steps):
    keras.utils.set_random_seed(0)
    model = mr.MaskRCNN(CONFIG, mr.ShapesDataset.class_names)
    model.compile(training.build_optimizer(CONFIG, steps))
    return model


def test_learning_rate_by_hand():
    rate = training.Schedule(
        peak=0.1, steps=100, warmup_steps=10, warmup_factor=0.5, shape="steps", lr_steps=(0.5, 0.9)
    )
    found = [float(rate(step)) for step in (0, 5, 10, 49, 50, 90)]
    np.testing.assert_allclose(found, [0.05, 0.075, 0.1, 0.1, 0.01, 0.001], rtol=1e-5)
    rate = training.Schedule(peak=0.1, steps=110, warmup_steps=10, warmup_factor=0.0, shape="cosine")
    np.testing.assert_allclose([float(rate(s)) for s in (0, 10, 60, 110, 500)], [0, 0.1, 0.05, 0, 0], atol=1e-7)
    assert training.Schedule.from_config(rate.get_config()).get_config() == rate.get_config()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_leaves_norms_and_biases_alone(name):
    config = mr.Config.tiny(optimizer=name, learning_rate=0.1, weight_decay=0.5, warmup_steps=0, gradient_clip=0)
    model = mr.MaskRCNN(config)
    model.compile()
    optimizer = model.optimizer
    before = [np.array(v) for v in model.trainable_variables]
    optimizer.apply([keras.ops.zeros_like(v) for v in model.trainable_variables], model.trainable_variables)
    changed = {v.path for v, old in zip(model.trainable_variables, before, strict=True) if not np.allclose(v, old)}
    decayed = {v.path for v in model.trainable_variables if v.name == "kernel"}
    assert changed == decayed


def test_a_run_leaves_a_model_a_log_and_its_settings(tmp_path):
    training.train(new_model(3), mr.ShapesDataset(8), tmp_path / "run", steps=3, seed=5, verbose=0)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["last.keras", "log.csv", "run.json"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 3 and record["seed"] == 5 and mr.Config(**record["config"]) == CONFIG
    header = (tmp_path / "run" / "log.csv").read_text().split("\n")[0]
    assert {"loss", "rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss"} <= set(header.split(","))
    assert int(training.load(tmp_path / "run" / "last.keras").optimizer.iterations) == 3


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    whole, dataset = new_model(5), mr.ShapesDataset(8)
    training.train(whole, dataset, tmp_path / "whole", steps=5, verbose=0)

    training.train(new_model(5), dataset, tmp_path / "stopped", steps=2, verbose=0)
    again = training.load(tmp_path / "stopped" / "last.keras")
    training.train(again, dataset, tmp_path / "stopped", steps=5, verbose=0)
    assert int(again.optimizer.iterations) == 5
    for mine, theirs in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path):
    model = new_model(4)
    training.train(model, mr.ShapesDataset(4), tmp_path, steps=2, verbose=0)
    good = (tmp_path / "last.keras").read_bytes()
    model.box_head.get_layer("class_logits").bias.assign(np.full(4, np.nan, "f4"))
    with pytest.raises(ValueError, match=r"no longer finite.*step 4"):
        training.train(model, mr.ShapesDataset(4), tmp_path, steps=4, verbose=0)
    assert (tmp_path / "last.keras").read_bytes() == good


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
        training.last_run(tmp_path, "shapes")
    for name in ("shapes-20260101-000000", "shapes-20260102-000000", "coco-20270101-000000", "shapes-20280101-000000"):
        (tmp_path / name).mkdir()
        if "2028" not in name:
            (tmp_path / name / "last.keras").touch()
    assert training.last_run(tmp_path, "shapes").name == "shapes-20260102-000000"
    first = training.new_run(tmp_path, "shapes")
    first.mkdir()
    assert training.new_run(tmp_path, "shapes") != first


def test_files_that_are_no_model_are_named(tmp_path):
    (tmp_path / "text.keras").write_text("no model")
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "other.keras")
    for name, reason in (
        ("absent.keras", "no such"),
        ("text.keras", "no Keras model"),
        ("other.keras", "not a MaskRCNN"),
    ):
        with pytest.raises(ValueError, match=rf"{name}.*{reason}"):
            training.load(tmp_path / name)

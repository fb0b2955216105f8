"""The learning rate, SGD, weight decay, accumulated gradients, averaged weights, and which layers learn."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops

import maskrcnn_edu as mr
from maskrcnn_edu import optimizers, runs
from maskrcnn_edu.presets import RECIPE, scaled

SMALL = {
    "stem_channels": 4, "stage_channels": (8, 8, 8), "fpn_channels": 8, "rpn_channels": 8, "proposals": 10,
    "proposals_training": 10, "roi_batch_size": 8, "box_fc_channels": (16,), "mask_conv_channels": (8,),
    "batch_size": 2, "max_instances": 6,
}  # fmt: skip


def new_model(**changes):
    keras.utils.set_random_seed(0)
    model = mr.MaskRCNN(mr.Config.tiny(**{**SMALL, **changes}), mr.ShapesDataset.class_names)
    model.compile()
    return model


def values(variables):
    return [np.array(ops.convert_to_numpy(v)) for v in variables]


def test_learning_rate_by_hand():
    rate = optimizers.Schedule(
        peak=0.1, steps=100, warmup_steps=10, warmup_factor=0.5, shape="steps", lr_steps=(0.5, 0.9)
    )
    found = [float(rate(step)) for step in (0, 5, 10, 49, 50, 90)]
    np.testing.assert_allclose(found, [0.05, 0.075, 0.1, 0.1, 0.01, 0.001], rtol=1e-5)
    rate = optimizers.Schedule(peak=0.1, steps=110, warmup_steps=10, warmup_factor=0.0, shape="cosine")
    np.testing.assert_allclose([float(rate(s)) for s in (0, 10, 60, 110, 500)], [0, 0.1, 0.05, 0, 0], atol=1e-7)
    assert optimizers.Schedule.from_config(rate.get_config()).get_config() == rate.get_config()


def test_sgd_by_hand():
    """PyTorch's: the decay goes through the momentum, and the rate scales the velocity."""
    weight = keras.Variable([2.0], name="kernel")
    optimizer = optimizers.SGD(learning_rate=0.1, momentum=0.5, weight_decay=0.1)
    optimizer.build([weight])
    optimizer.apply([ops.convert_to_tensor([1.0])], [weight])  # velocity 1 + .1 x 2 = 1.2
    np.testing.assert_allclose(values([weight]), [[2 - 0.12]], rtol=1e-6)
    optimizer.apply([ops.convert_to_tensor([1.0])], [weight])  # velocity .6 + 1 + .188 = 1.788
    np.testing.assert_allclose(values([weight]), [[1.88 - 0.1788]], rtol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_leaves_norms_alone(name):
    model = new_model(optimizer=name, learning_rate=0.1, weight_decay=0.5, warmup_steps=0, gradient_clip=0)
    for variable in model.trainable_variables:
        variable.assign(ops.ones(variable.shape))  # biases start at 0, where nothing decays
    optimizer = model.optimizer
    optimizer.apply([ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    changed = {v.path for v in model.trainable_variables if not np.allclose(values([v])[0], 1)}
    assert changed == {v.path for v in model.trainable_variables if v.name in ("kernel", "bias")}


def test_accumulated_half_batches_are_one_whole_batch():
    """Where every image counts the same: each gives as many anchors to the RPN's loss."""
    only_rpn = {
        "loss_weights": (1, 0, 0, 0, 0), "optimizer": "sgd", "learning_rate": 0.1, "warmup_steps": 0,
        "backbone_norm": "frozen", "schedule": "steps", "lr_steps": (),
        # TensorFlow 2.21 corrupts its memory on a CPU with one image and 4 or 8 channels.
        "stem_channels": 16, "stage_channels": (32, 32, 32), "fpn_channels": 32, "rpn_channels": 32,
    }  # fmt: skip
    dataset = mr.ShapesDataset(4)
    whole, halves = new_model(**only_rpn), new_model(**only_rpn, gradient_accumulation=2)
    (batch,) = (batch for batch, _ in zip(mr.loader(dataset, whole.config), range(1), strict=False))
    start = values(whole.trainable_variables)
    whole.train_on_batch(batch)
    for half in (slice(0, 1), slice(1, 2)):
        assert all(map(np.array_equal, values(halves.trainable_variables), start))
        halves.train_on_batch({name: value[half] for name, value in batch.items()})
    moved = 0
    for mine, theirs, before in zip(*map(values, (halves.trainable_variables, whole.trainable_variables)), start,
                                    strict=True):  # fmt: skip
        np.testing.assert_allclose(mine, theirs, atol=2e-6)
        moved += np.abs(theirs - before).sum()
    assert moved > 0.1


@pytest.mark.parametrize("accumulation", [1, 3])
def test_averaged_weights_follow_the_updates(accumulation):
    model = new_model(ema=0.9, gradient_accumulation=accumulation)
    weights, average = zip(*optimizers.averages(model.optimizer), strict=True)
    expected = values(weights)
    assert all(map(np.array_equal, values(average), expected))
    batch = next(iter(mr.loader(mr.ShapesDataset(4), model.config)))
    for update in range(3):
        for _ in range(accumulation):
            model.train_on_batch(batch)
        share = 0.9 if update else 0.0  # Keras starts from the weights after the first update
        expected = [share * e + (1 - share) * w for e, w in zip(expected, values(weights), strict=True)]
        if accumulation == 1:
            for found, wanted in zip(values(average), expected, strict=True):
                np.testing.assert_allclose(found, wanted, atol=1e-6)
    before = values(weights), values(average)
    optimizers.swap_averages(model)
    assert all(map(np.array_equal, values(weights), before[1])) and all(map(np.array_equal, values(average), before[0]))


def test_fit_ends_with_the_averages_and_can_go_on():
    model = new_model(ema=0.5, warmup_steps=0)
    for _ in range(2):
        before = values(model.trainable_variables)
        model.fit(mr.loader(mr.ShapesDataset(4), model.config), steps_per_epoch=2, verbose=0)
        assert not all(map(np.array_equal, values(model.trainable_variables), before))
        for weight, average in optimizers.averages(model.optimizer):
            np.testing.assert_array_equal(*values([weight, average]))


@pytest.mark.parametrize(
    ("layers", "frozen"),
    [
        ("heads", ("stem", "res2", "res3", "res4")), ("4+", ("stem", "res2", "res3")), ("3+", ("stem", "res2")),
        ("all", ()), (r"(box|class)_.*", ("stem", "res", "fpn", "rpn", "mask")),
    ],
)  # fmt: skip
def test_frozen_layers_and_their_statistics_stay(layers, frozen):
    model = new_model(trainable=layers, warmup_steps=0)
    before = {v.path: value for v, value in zip(model.variables, values(model.variables), strict=True)}
    model.fit(mr.loader(mr.ShapesDataset(4), model.config), steps_per_epoch=2, verbose=0)
    for variable, value in zip(model.variables, values(model.variables), strict=True):
        if variable.path in before and not variable.path.startswith("mask_rcnn"):
            same = np.array_equal(value, before[variable.path])
            if variable.path.startswith(frozen or ("nothing",)):
                assert same, variable.path
            elif variable.path.startswith(("class_logits/kernel", "box_fc1/kernel")):
                assert not same, variable.path


def test_patterns_that_leave_nothing_to_learn():
    with pytest.raises(mr.InputError, match="'resnet' matches no layer.*heads.*stem"):
        new_model(trainable="resnet")
    with pytest.raises(mr.InputError, match="cannot learn"):
        new_model(trainable=r"stem_norm", backbone_norm="frozen")


def test_turns_of_the_layers():
    config = mr.Config.matterport()
    turns = [optimizers.trainable_at(config, step, 160) for step in (0, 39, 40, 119, 120, 159)]
    assert turns == [("heads", 40)] * 2 + [("4+", 120)] * 2 + [("all", 160)] * 2
    rate = optimizers.build_schedule(config)
    np.testing.assert_allclose([float(rate(s)) for s in (0, 119_999, 120_000)], [1e-3, 1e-3, 1e-4], rtol=1e-5)


def test_layers_that_begin_to_learn_leave_the_others_momentum_as_it_is():
    model = new_model(trainable=("heads", "all"), trainable_steps=(0.5,), ema=0.5)
    model.fit(mr.loader(mr.ShapesDataset(4), model.config), steps_per_epoch=2, verbose=0)
    before = {v.path: value for v, value in zip(model.optimizer.variables, values(model.optimizer.variables),
                                                strict=True)}  # fmt: skip
    optimizers.change_trainable(model, "all")
    after = {v.path: value for v, value in zip(model.optimizer.variables, values(model.optimizer.variables),
                                               strict=True)}  # fmt: skip
    assert set(before) < set(after) and all(np.array_equal(after[path], value) for path, value in before.items())
    assert any("stem_kernel" in path for path in set(after) - set(before))
    for weight, average in optimizers.averages(model.optimizer):
        if weight.path.startswith("stem/"):
            np.testing.assert_array_equal(*values([weight, average]))


def test_the_learning_rate_scales_with_the_batch():
    recipe = mr.Config.detectron2_1x()
    config = scaled(dataclasses.replace(recipe, batch_size=2), recipe)
    assert (config.learning_rate, config.train_steps, config.warmup_steps) == (0.0025, 720_000, 8000)
    config = scaled(dataclasses.replace(recipe, batch_size=2, gradient_accumulation=8), recipe)
    assert (config.learning_rate, config.train_steps) == (0.02, 720_000)


def test_recipes_say_what_their_sources_say():
    """Detectron2: Base-RCNN-FPN.yaml, the 1x and 3x files, configs/new_baselines; the seed: samples/coco/coco.py."""
    lsj, long = mr.Config.lsj_100(), mr.Config.lsj_400()
    assert (lsj.batch_size, lsj.learning_rate, lsj.weight_decay, lsj.warmup_steps) == (64, 0.1, 4e-5, 500)
    assert [round(share * 184_375) for share in lsj.lr_steps] == [163_889, 177_546] and lsj.train_steps == 184_375
    assert long.train_steps == 737_500 and long.lr_steps == lsj.lr_steps and long.trainable == ("all",)
    assert {lsj.backbone_norm, lsj.fpn_norm, lsj.head_norm} == {"sync"} and lsj.rpn_convs == 2
    three = mr.Config.detectron2()
    assert three.image_min_sizes_training == (640, 672, 704, 736, 768, 800) and lsj.image_min_sizes_training == ()
    assert mr.Config.detectron2(image_max_size=533, image_min_size=320).image_min_sizes_training == ()
    assert (lsj.large_scale_jitter, lsj.training_canvas_size) == ((0.1, 2.0), 1024)
    assert [round(share * three.train_steps) for share in three.lr_steps] == [210_000, 250_000]
    assert set(RECIPE) < {field.name for field in dataclasses.fields(mr.Config)}


def test_half_precision_learns_what_float32_does():
    """Losses on one batch, then after an update. Not the box head's: proposals of nearly equal scores change places."""
    models = [new_model(precision=precision, warmup_steps=0) for precision in ("float32", "bfloat16", "float16")]
    batch = next(iter(mr.loader(mr.ShapesDataset(4), models[0].config)))
    for _ in range(2):
        losses = [model.train_on_batch(batch, return_dict=True) for model in models]
        for name in ("rpn_class_loss", "rpn_box_loss", "mask_loss"):
            found = [float(each[name]) for each in losses]
            np.testing.assert_allclose(found[1:], found[0], rtol=0.05, err_msg=name)
    assert losses[0]["loss"] > 1 and {v.dtype for model in models for v in model.trainable_variables} == {"float32"}


def test_float16_leaves_an_update_out_that_overflows():
    model = new_model(precision="float16", warmup_steps=0)
    batch, start = next(iter(mr.loader(mr.ShapesDataset(4), model.config))), values(model.trainable_variables)
    model.optimizer.dynamic_scale.assign(2.0**60)
    model.train_on_batch(batch)
    assert all(map(np.array_equal, values(model.trainable_variables), start))
    assert float(model.optimizer.dynamic_scale) == 2.0**59


def test_float16_scales_the_loss_and_survives_saving(tmp_path):
    model = new_model(precision="float16", ema=0.9, gradient_accumulation=2)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    excluded = optimizers.unwrapped(model.optimizer)
    assert not any(excluded._use_weight_decay(v) for v in model.trainable_variables if v.name == "gamma")
    model.fit(mr.loader(mr.ShapesDataset(4), model.config), steps_per_epoch=3, verbose=0)
    runs.save(model, tmp_path / "half.keras", runs.Progress(step=3))
    again = runs.load(tmp_path / "half.keras")
    assert isinstance(again.optimizer, keras.optimizers.LossScaleOptimizer)
    for mine, theirs in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(*values([mine, theirs]), err_msg=mine.path)

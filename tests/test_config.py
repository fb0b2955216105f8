"""Config: presets, what it refuses, and that it travels through JSON unchanged."""

import dataclasses
import json
import math

import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu.config import PRESETS
from maskrcnn_edu.config_values import ANY_SIGN, CHOICES, FRACTIONS, MAY_BE_EMPTY, MAY_BE_ZERO

Config = mr.Config
FIELDS = {field.name: field for field in dataclasses.fields(Config)}
NUMBERS = [name for name, field in FIELDS.items() if type(field.default) in (int, float)]
LISTS = [name for name, field in FIELDS.items() if type(field.default) is tuple and "trainable" not in name]
SWITCHES = [name for name, field in FIELDS.items() if type(field.default) is bool]
EXAMPLES = {"large_scale_jitter": (0.1, 2.0), "colour_jitter": (0.4, 0.4, 0.2)}  # of lists that are empty by default
WORDS = [name for name, field in FIELDS.items() if type(field.default) is str]


def refused(name, **changes):
    """Config.tiny refuses the changes with one sentence that names the field."""
    with pytest.raises(ValueError, match=rf"Config\.\w*.*\b{name}\b") as caught:
        Config.tiny(**changes)
    assert isinstance(caught.value, mr.InputError) and "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets_construct_and_can_be_changed(preset):
    config = preset(num_classes=7)
    assert config.num_classes == 7 and config != preset()
    assert len(config.anchor_sizes) == config.num_levels == len(config.strides)
    assert config.canvas_size % config.size_divisor == 0 and config.canvas_size >= config.image_max_size


def test_coco_is_detectron2s():
    assert Config.coco() == Config()
    assert Config.coco(depth=101).stage_blocks == (3, 4, 23, 3)
    assert Config().strides == (4, 8, 16, 32, 64) and Config().canvas_size == 1344
    with pytest.raises(mr.InputError, match="depth is 34"):
        Config.coco(depth=34)


def test_every_field_is_documented_and_every_table_is_of_fields():
    for name, field in FIELDS.items():
        assert field.metadata["doc"].strip().endswith((".", "...")), name
        assert type(field.default) in (int, float, bool, str, tuple), name
    assert set(CHOICES) == set(WORDS)
    assert (MAY_BE_ZERO | FRACTIONS | MAY_BE_EMPTY) <= set(FIELDS)
    for name in WORDS:
        for choice in CHOICES[name]:
            assert choice in FIELDS[name].metadata["doc"] or name == "mask_paste"
            assert getattr(Config.tiny(**{name: choice}), name) == choice


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers(name):
    bad = [-1, math.nan, math.inf, -math.inf, "1", "", None, True, [1], 1j, {}]
    if name not in MAY_BE_ZERO:
        bad.append(0)
    if name in FRACTIONS:
        bad.append(1.5)
    if type(FIELDS[name].default) is int:
        bad.append(2.5)
    for value in bad:
        refused(name, **{name: value})
    kept = getattr(Config.tiny(), name)
    assert type(getattr(Config.tiny(**{name: np.float64(kept)}), name)) is type(FIELDS[name].default)


def test_layers_that_learn():
    assert Config.tiny(trainable="4+").trainable == ("4+",)
    config = Config.tiny(trainable=["heads", r"res.*|stem"], trainable_steps=[0.5])
    assert config.trainable == ("heads", r"res.*|stem") and config.trainable_steps == (0.5,)
    for wrong in (3, None, (), ("heads", 4), "res("):
        refused("trainable", trainable=wrong)
    for steps in ((), (0.2, 0.1), (0.5, 1.0), (0.5, "1"), (-0.5, 0.5), 0.5):
        refused("trainable_steps", trainable=("heads", "4+", "all"), trainable_steps=steps)


@pytest.mark.parametrize("name", LISTS)
def test_lists(name):
    good = getattr(Config.tiny(), name) or EXAMPLES.get(name, (8,))
    assert getattr(Config.tiny(**{name: list(good)}), name) == good
    bad = ["1,2,3", 3, None, {1, 2, 3}, {0: 1}, True]
    bad += [(*good[:-1], wrong) for wrong in (math.nan, math.inf, "1", None, True, (1,))]
    if name not in ANY_SIGN:
        bad.append((*good[:-1], -1))
    if name not in MAY_BE_ZERO | ANY_SIGN:
        bad.append((*good[:-1], 0))
    if name not in MAY_BE_EMPTY:
        bad.append(())
    for value in bad:
        refused(name, **{name: value})


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("value", ["True", "false", "", 1, 0, None, [True]])
def test_switches_are_true_or_false(name, value):
    refused(name, **{name: value})


@pytest.mark.parametrize("name", WORDS)
@pytest.mark.parametrize("value", ["other", "", None, 1, True, [], ["batch"]])
def test_words_are_known(name, value):
    refused(name, **{name: value})


@pytest.mark.parametrize(
    "name, changes",
    [
        ("num_classes", {"num_classes": 1}),
        ("image_max_size", {"image_min_size": 128, "image_max_size": 127}),
        ("stage_channels", {"stage_blocks": (1, 1)}),
        ("stage_blocks", {"stage_channels": (8, 8, 8, 8)}),
        ("stage_blocks", {"stage_blocks": (1, 1, 1.5)}),
        ("box_conv_channels", {"box_conv_channels": (32.5,)}),
        ("anchor_sizes", {"anchor_sizes": (16, 32)}),
        ("anchor_sizes", {"extra_level": True}),
        ("size_divisor", {"size_divisor": 8}),
        ("size_divisor", {"size_divisor": 40}),
        ("rpn_negative_threshold", {"rpn_negative_threshold": 0.8}),
        ("mask_activation", {"mask_activation": "softmax", "class_agnostic_masks": True}),
        ("pixel_mean", {"pixel_mean": (1, 2)}),
        ("pixel_std", {"pixel_std": (1, 2, 3, 4)}),
        ("pixel_mean", {"pixel_mean": (1, 2), "image_channels": 4}),
        ("image_min_sizes_training", {"image_min_sizes_training": (96, 129)}),
        ("image_min_sizes_training", {"image_min_sizes_training": (96,), "large_scale_jitter": (0.1, 2)}),
        ("large_scale_jitter", {"large_scale_jitter": (0.1,)}),
        ("large_scale_jitter", {"large_scale_jitter": (2, 0.1)}),
        ("colour_jitter", {"colour_jitter": (0.4, 0.4)}),
        ("colour_jitter", {"colour_jitter": (0.4, 0.4, 0.4), "image_channels": 1}),
        ("box_delta_weights", {"box_delta_weights": (1, 1)}),
        ("loss_weights", {"loss_weights": (1, 1, 1, 1)}),
    ],
)
def test_combinations_that_cannot_be(name, changes):
    refused(name, **changes)


def test_pixel_mean_suits_any_number_of_channels():
    assert Config.tiny(image_channels=1).pixel_mean == pytest.approx((114.495,))
    assert Config.tiny(image_channels=5).pixel_std == pytest.approx((57.63,), abs=1e-6)
    assert Config.tiny(image_channels=2, pixel_mean=(1, 2), pixel_std=[3]).pixel_mean == (1, 2)
    assert (
        dataclasses.replace(Config.tiny(image_channels=5), image_channels=4).pixel_mean
        == Config.tiny(image_channels=4).pixel_mean
    )


def test_the_canvas_of_large_scale_jitter():
    config = Config.coco(large_scale_jitter=(0.1, 2.0))
    assert (config.training_canvas_size, config.canvas_size) == (1024, 1344) == (1024, Config().training_canvas_size)


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="num_clases"):
        Config(num_clases=3)


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_travels_through_json(preset):
    config = preset(lr_steps=[0.5, 0.75], box_conv_channels=[16, 16], stage_channels=list(preset().stage_channels))
    assert config.lr_steps == (0.5, 0.75) and config.box_conv_channels == (16, 16)
    again = Config(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert again == config and hash(again) == hash(config)
    for name, field in FIELDS.items():
        assert type(getattr(again, name)) is type(getattr(config, name)) is type(field.default)


def test_frozen_and_replace():
    config = Config.tiny()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_classes = 5
    changed = dataclasses.replace(config, num_classes=5, anchor_sizes=[8, 16, 32])
    assert changed.num_classes == 5 and changed.anchor_sizes == (8.0, 16.0, 32.0) and config.num_classes == 4
    with pytest.raises(ValueError, match="num_classes"):
        dataclasses.replace(config, num_classes=0)
    with pytest.raises(ValueError, match="anchor_sizes"):
        dataclasses.replace(config, stage_blocks=(1, 1), stage_channels=(8, 8))

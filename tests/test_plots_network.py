"""Activations, weights, distributions, data and training: the numbers drawn are the numbers that are there."""

import dataclasses

import keras
import numpy as np
import pytest
from test_plots import drawn

import maskrcnn_edu as mr
from maskrcnn_edu import plots
from maskrcnn_edu.errors import InputError

SHAPES = mr.ShapesDataset(12, seed=1)


@pytest.fixture(scope="module")
def model():
    return keras.saving.load_model(mr.files("shapes.keras"))


@pytest.fixture
def damaged():
    """A small network with one fault of each kind."""
    layers = [keras.layers.Dense(4, name=name) for name in ("good", "dead", "constant", "large", "broken")]
    network = keras.Sequential([keras.Input((5,)), *layers])
    rng = np.random.default_rng(0)
    for layer in layers:
        values = rng.normal(size=layer.kernel.shape)
        if layer.name == "dead":
            values[1:] = 0
        layer.kernel.assign({"constant": 0 * values + 3, "large": 5000 * values}.get(layer.name, values))
    kernel = np.array(layers[4].kernel)
    kernel[0, 0] = np.nan
    layers[4].kernel.assign(kernel)
    return network


def test_activations_are_the_layer_s_channels(model):
    image = SHAPES.image(0)
    values = mr.stages.activations(model, image, "res3_0_relu")
    sheet = plots.activations(model, image, "res3_0_relu", channels=[3, 60])
    for ax, channel in zip(sheet.axes, (3, 60), strict=False):
        assert ax.get_title().startswith(str(channel))
        np.testing.assert_array_equal(ax.images[0].get_array(), values[..., channel])
    assert "64 channels of 16 × 16" in sheet.get_suptitle()
    limits = {ax.images[0].get_clim() for ax in sheet.axes[:2]}
    assert len(limits) == 1  # one scale, so that channels compare
    signed = plots.activations(model, image, "fpn_output4", channels=2).axes[0].images[0]
    assert signed.get_clim()[0] == -signed.get_clim()[1]
    for layer in ("rpn_logits", "box_fc1", "mask_deconv", "mask_logits", "box_deltas_by_class"):
        sheet = plots.activations(model, image, layer)
        drawn(sheet.axes[0])
        assert sheet.get_figwidth() <= 8 and np.isfinite(sheet.axes[0].images[0].get_array()).any()
    for wrong, says in (
        ({"layer": "nope"}, "no layer 'nope'"), ({"layer": "box_fc1", "roi": 99}, "roi is 99"),
        ({"layer": "stem", "channels": [16]}, "has 16"), ({"layer": "rpn_logits", "level": 9}, "level is 9"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            plots.activations(model, image, **wrong)


def test_weight_statistics_raise_alerts(damaged, model):
    rows = {row.name.split("/")[-2]: row for row in plots.measure_weights(damaged, "kernel")}
    alerts = {name: row.alert for name, row in rows.items()}
    assert alerts == {
        "good": "", "dead": "mostly dead", "constant": "all of one value", "large": "large values",
        "broken": "1 not finite",
    }  # fmt: skip
    kernel = np.asarray(damaged.get_layer("dead").kernel)
    row = rows["dead"]
    np.testing.assert_allclose(row[2:6], [kernel.min(), kernel.max(), kernel.mean(), kernel.std()], rtol=1e-5)
    assert row.dead == pytest.approx(0.75) and row.shape == (4, 4)
    texts = [text.get_text() for text in plots.weight_statistics(damaged).axes[0].texts]
    assert {"weight", "shape", "min", "max", "mean", "std", "dead", "alert"} <= set(texts)
    assert {"mostly dead", "1 not finite", "5×4"} <= set(texts)
    assert not any(row.alert for row in plots.measure_weights(model))  # what ships is sound
    sheet = plots.weight_statistics(model)
    drawn(sheet.axes[0])
    extents = [text.get_window_extent() for text in sheet.axes[0].texts]
    assert min(box.x0 for box in extents) >= 0 and max(box.x1 for box in extents) <= 800
    with pytest.raises(InputError, match="'nope'"):
        plots.weight_statistics(model, "nope")


def test_weight_histograms_count_every_value(damaged):
    sheet = plots.weight_histograms(damaged)
    for ax, layer in zip(sheet.axes, damaged.layers, strict=False):
        kernel = np.asarray(layer.kernel)
        assert sum(patch.get_height() for patch in ax.patches) == np.isfinite(kernel).sum()
        assert layer.name in ax.get_title()
    assert sheet.axes[4].texts[0].get_text() == "1 not finite"
    with pytest.raises(InputError, match="'nope'"):
        plots.weight_histograms(damaged, "nope")


def test_distributions_of_a_photograph_and_of_a_pixel(model):
    found = mr.stages.stages(model, SHAPES.image(0))
    sheet = plots.distributions(found)
    assert len(sheet.axes) == 7
    np.testing.assert_allclose(
        sheet.axes[4].collections[0].get_offsets()[:, 0], found.proposals[:, 3] - found.proposals[:, 1]
    )
    assert sum(patch.get_width() for patch in sheet.axes[5].patches) == len(found.proposals)
    drawn(plots.distributions(mr.stages.stages(model, np.zeros((1, 1), np.uint8))).axes[0])


def test_dataset_overview_counts(model):
    sheet = plots.dataset_overview(SHAPES, config=model.config)
    found = [SHAPES.instances(i) for i in range(len(SHAPES))]
    count = sum(len(one.boxes) for one in found)
    assert sheet.get_suptitle() == f"ShapesDataset: 12 images, {count} instances"
    images, per_class = sheet.axes[1], sheet.axes[2]
    assert sum(patch.get_height() for patch in images.patches) == 12
    assert {label.get_text() for label in per_class.get_yticklabels()} == {"circle", "square", "triangle"}
    assert sum(patch.get_width() for patch in per_class.patches) == count
    assert sum(patch.get_height() for patch in sheet.axes[3].patches) == count
    assert [line.get_xdata()[0] for line in sheet.axes[3].lines] == [16, 32, 64]
    assert "4 images (of 12)" in plots.dataset_overview(SHAPES, limit=4).get_suptitle()
    with pytest.raises(InputError, match="no images"):
        plots.dataset_overview(mr.Subset(SHAPES, []))


class Empty(mr.Dataset):
    """An image without objects."""

    class_names = SHAPES.class_names

    def __len__(self):
        return 1

    def load_image(self, i):
        return np.zeros((40, 60, 3), np.uint8)

    def load_masks(self, i):
        return np.zeros((0, 40, 60), bool), np.zeros(0, int)


def test_a_dataset_without_objects(model):
    drawn(plots.dataset_overview(Empty()).axes[0])
    assert len(plots.augmentations(Empty(), model.config, count=2).axes) == 2


def test_augmentations_are_the_loader_s(model):
    sheet = plots.augmentations(SHAPES, model.config, 2, count=6, seed=3)
    config = dataclasses.replace(model.config, batch_size=6)
    batch = next(iter(mr.loader(mr.Subset(SHAPES, [2]), config, seed=3)))
    flips = set()
    for k, ax in enumerate(sheet.axes):
        shown, objects = ax.images[0].get_array(), batch["classes"][k] != 0
        covered = (np.abs(shown.astype(int) - batch["image"][k]).max(-1) > 0).mean()
        masks = SHAPES.instances(2).masks.any(0).mean()
        assert covered == pytest.approx(masks, abs=0.03)  # what is changed is what the masks cover
        lefts = [patch.get_x() for patch in ax.patches]
        np.testing.assert_allclose(lefts, batch["boxes"][k][objects][:, 1])
        flips.add(tuple(lefts))
    assert len(flips) == 2  # both ways round
    with pytest.raises(InputError, match="index 99"):
        plots.augmentations(SHAPES, model.config, 99)
    with pytest.raises(InputError, match="count is 0"):
        plots.augmentations(SHAPES, model.config, count=0)


def write_log(directory, text):
    directory.mkdir(exist_ok=True)
    (directory / "log.csv").write_text(text)
    return directory


def test_loss_curves_of_a_run(tmp_path):
    lines = ["epoch,box_loss,learning_rate,loss,val_loss", "0,0.5,0.01,1.5,", "1,0.4,0.01,1.2,1.3", "2,0.3,0.01,1.0,"]
    run = write_log(tmp_path / "shapes-1", "\n".join([*lines, "3,0.2,0.01,0.9,1.1\n"]))
    ax = plots.loss_curves(run)
    lines = {line.get_label(): line.get_ydata().tolist() for line in ax.lines}
    assert lines == {"total": [1.5, 1.2, 1.0, 0.9], "total, validation": [1.3, 1.1], "box": [0.5, 0.4, 0.3, 0.2]}
    assert ax.get_xlabel() == "epoch" and ax.get_title() == "shapes-1" and ax.get_yscale() == "log"
    by_step = plots.loss_curves(
        write_log(tmp_path / "b", "step,loss,note\n250,1.0,x\n500,nan,y\n750,0,z\n") / "log.csv"
    )
    assert by_step.lines[0].get_xdata().tolist() == [250, 750] and by_step.get_yscale() == "linear"
    half = plots.loss_curves(write_log(tmp_path / "c", "epoch,loss\n0,1.0\n1"))  # killed while it wrote
    assert half.lines[0].get_ydata().tolist() == [1.0]


def test_validation_s_precision_has_its_own_axis(tmp_path):
    lines = ["step,learning_rate,loss,bbox_AP,segm_AP", "250,0.1,1.0,,", "500,0.1,0.9,0.4,-1", "750,0.1,0.8,0.5,0.3"]
    ax = plots.loss_curves(write_log(tmp_path / "run", "\n".join(lines) + "\n"))
    beside = ax.figure.axes[1]
    assert beside.get_ylim() == (0, 1)
    assert {line.get_label(): line.get_xdata().tolist() for line in beside.lines} == {
        "AP of boxes": [500, 750], "AP of masks": [750],
    }  # fmt: skip
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["total", "AP of boxes", "AP of masks"]


@pytest.mark.parametrize(
    "log, says", [("", "no line yet"), ("epoch,loss\n", "no line yet"), ("epoch,accuracy\n0,1\n", "no loss")]
)
def test_a_log_without_a_loss_is_named(tmp_path, log, says):
    with pytest.raises(InputError, match=says):
        plots.loss_curves(write_log(tmp_path / "run", log))


def test_a_log_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="no such log"):
        plots.loss_curves(tmp_path)

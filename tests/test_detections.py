"""Photographs of any number of channels on their way into the network."""

import numpy as np
import pytest
from PIL import Image

import maskrcnn_edu as mr
from maskrcnn_edu.detections import as_photograph

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def test_grey_and_colour_become_what_the_network_takes():
    grey = np.asarray(Image.fromarray(RGB).convert("L"))
    np.testing.assert_array_equal(as_photograph(RGB, channels=1)[..., 0], grey)
    np.testing.assert_array_equal(as_photograph(np.dstack([RGB, grey]), channels=1)[..., 0], grey)
    np.testing.assert_array_equal(as_photograph(Image.fromarray(RGB), channels=1)[..., 0], grey)
    np.testing.assert_array_equal(as_photograph(grey, channels=1)[..., 0], grey)
    np.testing.assert_array_equal(as_photograph(grey), np.dstack([grey] * 3))
    np.testing.assert_array_equal(as_photograph(np.dstack([RGB, grey]), channels=4)[..., 3], grey)
    five = np.dstack([RGB, grey, grey])
    np.testing.assert_array_equal(as_photograph(five / 255, channels=5), five)


@pytest.mark.parametrize(
    "channels, given", [(5, RGB), (4, RGB), (2, RGB[..., 0]), (3, RGB[..., :2]), (1, RGB[..., :2])]
)
def test_other_numbers_of_channels_are_named(channels, given):
    with pytest.raises(mr.InputError, match="Image 7 has shape"):
        as_photograph(given, 7, channels)


class Stained(mr.ShapesDataset):
    """Shapes with as many channels as wanted."""

    def __init__(self, count, channels):
        super().__init__(count)
        self.channels = channels

    def load_image(self, i):
        return np.ascontiguousarray(np.tile(super().load_image(i), 2)[..., : self.channels])


@pytest.mark.parametrize("channels", [1, 5])
def test_a_model_of_other_channels_trains_detects_and_is_saved(tmp_path, channels):
    config = mr.Config.tiny(image_channels=channels, batch_size=2, detection_score_threshold=0.0, stem_channels=8)
    dataset = Stained(4, channels)
    model = mr.MaskRCNN(config, dataset.class_names)
    model.compile()
    history = model.fit(mr.loader(dataset, config), steps_per_epoch=2, verbose=0).history
    assert np.isfinite(history["loss"][0])
    images = [dataset.image(0), dataset.image(1)[:80]]
    found = model.detect(images)
    assert found[1].masks.shape[1:] == (80, 128)
    model.save(tmp_path / "model.keras")
    again = mr.runs.load(tmp_path / "model.keras")
    np.testing.assert_allclose(again.detect(images)[0].boxes, found[0].boxes, atol=1e-3)
    assert "AP" in mr.evaluate(model, dataset, limit=1)["bbox"]

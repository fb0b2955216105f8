"""loader: shapes, order, randomness."""

import itertools
import pickle
import time

import grain
import numpy as np
import pytest

from maskrcnn_edu.config import Config
from maskrcnn_edu.datasets import Dataset, ShapesDataset, Subset, loader
from maskrcnn_edu.errors import InputError


class Ladder(Dataset):
    """Three 60 x 90 images with 30 squares of growing size, the last one a crowd; the first image is empty."""

    class_names = ["background", "left", "middle", "right"]

    def __len__(self):
        return 3

    def load_image(self, i):
        return np.full((60, 90, 3), 100 + i, np.uint8)

    def load_masks(self, i):
        masks = np.zeros((30 if i else 0, 60, 90), bool)
        for k, mask in enumerate(masks):
            mask[: k + 1, : k + 2] = True
        return masks, np.array([1] * 29 + [-2])[: len(masks)]


def take(batches, count):
    return list(itertools.islice(batches, count))


def same(one, other):
    return all(np.array_equal(one[key], other[key]) for key in one)


def test_shapes_and_types_of_a_batch():
    config = Config.tiny(batch_size=2)
    (batch,) = take(loader(ShapesDataset(3), config), 1)
    shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
    assert shapes == {
        "image": ((2, 128, 128, 3), "uint8"),
        "image_size": ((2, 2), "float32"),
        "boxes": ((2, 16, 4), "float32"),
        "classes": ((2, 16), "int32"),
        "masks": ((2, 16, 56, 56), "uint8"),
        "seed": ((2,), "int32"),
    }


def test_no_masks_without_a_mask_head():
    (batch,) = take(loader(ShapesDataset(8), Config.tiny(mask_head=False)), 1)
    assert "masks" not in batch and len(batch["boxes"]) == 8


def test_evaluation_comes_once_in_order_and_unflipped():
    dataset = ShapesDataset(7)
    batches = list(loader(dataset, Config.tiny(batch_size=3), training=False))
    assert [len(b["image"]) for b in batches] == [3, 3, 1]
    images = np.concatenate([b["image"] for b in batches])
    np.testing.assert_array_equal(images, [dataset.image(i) for i in range(7)])
    found = dataset.instances(6)
    count = len(found.classes)
    np.testing.assert_array_equal(batches[2]["boxes"][0, :count], found.boxes)
    np.testing.assert_array_equal(batches[2]["classes"][0, :count], found.classes)
    assert not batches[2]["boxes"][0, count:].any() and not batches[2]["classes"][0, count:].any()


def test_boxes_scale_and_image_is_padded():
    config = Config.tiny(image_min_size=120, image_max_size=150, batch_size=3)
    (batch,) = loader(Ladder(), config, training=False)
    assert batch["image"].shape == (3, 160, 160, 3)
    np.testing.assert_array_equal(batch["image_size"], [[100, 150]] * 3)
    assert (batch["image"][1, :100, :150] == 101).all() and not batch["image"][1, 100:].any()
    # 30 objects for 16 slots: the largest, in the dataset's order, the crowd among them.
    np.testing.assert_allclose(batch["boxes"][1, -1], np.array([0, 0, 30, 31]) * 150 / 90, rtol=1e-6)
    assert batch["classes"][1].tolist() == [1] * 15 + [-2]
    assert (batch["masks"][1] == 255).all()
    assert not batch["classes"][0].any() and not batch["masks"][0].any()


def test_objects_that_shrink_below_a_pixel_go():
    config = Config.tiny(image_min_size=20, image_max_size=32, max_instances=40, batch_size=3)
    (batch,) = loader(Ladder(), config, training=False)
    boxes = batch["boxes"][1]
    sides = (boxes[:, 2:] - boxes[:, :2])[batch["classes"][1] != 0]
    assert len(sides) == 28 and sides.min() == 1


def test_half_of_the_images_are_flipped_with_their_boxes():
    dataset, config = Subset(Ladder(), [1]), Config.tiny(batch_size=60)
    (batch,) = take(loader(dataset, config), 1)
    flipped = batch["boxes"][:, 0, 1] > 0
    assert 15 < flipped.sum() < 45
    width = batch["image_size"][:, 1]
    np.testing.assert_array_equal(batch["boxes"][flipped, 0, 3], width[flipped])
    (batch,) = take(loader(dataset, Config.tiny(batch_size=60, horizontal_flip=False)), 1)
    assert not batch["boxes"][:, 0, 1].any()


def test_batch_k_depends_on_seed_and_k_only():
    dataset, config = ShapesDataset(5), Config.tiny(batch_size=4)
    batches = take(loader(dataset, config, seed=7), 6)
    assert all(map(same, batches, take(loader(dataset, config, seed=7), 6)))
    assert all(map(same, batches[4:], take(loader(dataset, config, seed=7, first_step=4), 2)))
    assert not same(batches[0], take(loader(dataset, config, seed=8), 1)[0])


def test_epochs_hold_every_image_once_and_differ():
    dataset, config = ShapesDataset(12), Config.tiny(batch_size=6, horizontal_flip=False)
    batches = take(loader(dataset, config), 6)
    epochs = [np.concatenate([a["image"], b["image"]]) for a, b in zip(batches[::2], batches[1::2], strict=True)]
    everything = {dataset.image(i).tobytes() for i in range(12)}
    assert all({image.tobytes() for image in epoch} == everything for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    seeds = np.concatenate([batch["seed"] for batch in batches])
    assert len(set(seeds.tolist())) == len(seeds) and seeds.min() >= 0


def test_steps_per_epoch_is_one_pass():
    assert loader(ShapesDataset(17), Config.tiny()).steps_per_epoch == 3
    assert loader(ShapesDataset(3), Config.tiny(), training=False).steps_per_epoch == 1


def test_few_batches_are_read_ahead():
    loaded = []

    class Counting(Ladder):
        def load_image(self, i):
            loaded.append(i)
            return super().load_image(i)

    batches = loader(Counting(), Config.tiny(batch_size=2))
    assert isinstance(batches, grain.IterDataset)  # of a MapDataset Keras would read 500 batches ahead
    iterator = iter(batches)
    next(iterator)
    time.sleep(0.3)
    assert 2 * 2 <= len(loaded) <= 2 * 8


def test_datasets_travel_to_worker_processes():
    dataset = pickle.loads(pickle.dumps(ShapesDataset(3) + ShapesDataset(3, seed=1)))
    assert len(dataset) == 6 and dataset.image(5).shape == (128, 128, 3)


@pytest.mark.parametrize(
    "dataset, config, words",
    [
        (ShapesDataset(3), Config.tiny(num_classes=5), "Config.num_classes is 5"),
        (Subset(ShapesDataset(3), []), Config.tiny(), "no images"),
    ],
)
def test_bad_input_is_named(dataset, config, words):
    with pytest.raises(InputError, match=words):
        loader(dataset, config)


def test_grey_images_are_named():
    class Grey(Ladder):
        def load_image(self, i):
            return np.zeros((60, 90, 1), np.uint8)

    with pytest.raises(InputError, match="1 channels"):
        take(loader(Grey(), Config.tiny(), training=False), 1)

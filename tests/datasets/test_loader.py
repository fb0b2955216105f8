"""loader: shapes, order, randomness."""

import itertools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
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

    with pytest.raises(InputError, match="1 channels, but Config.image_channels is 3"):
        take(loader(Grey(), Config.tiny(), training=False), 1)
    (batch,) = take(loader(Grey(), Config.tiny(image_channels=1, batch_size=2)), 1)
    assert batch["image"].shape == (2, 128, 128, 1)


EVERYTHING = dict(
    large_scale_jitter=(0.5, 2.0), jitter_size=96, copy_paste=0.7, colour_jitter=(0.4, 0.4, 0.4), quarter_turns=True
)


@pytest.mark.parametrize("family", ["detectron2", "torchvision", "matterport"])
def test_everything_at_once_is_right_on_the_canvas(family):
    """The shapes' own colours: a box's mask shows the same object as its pixels do."""
    config = Config.tiny(batch_size=32, **{**EVERYTHING, "colour_jitter": ()}, resize=family)
    (batch,) = take(loader(ShapesDataset(32, size=64), config), 1)
    assert batch["image"].shape == (32, 96, 96, 3) and batch["image_size"].max() == 96
    assert batch["image"].dtype == (np.float32 if family == "torchvision" else np.uint8)
    boxes, classes = batch["boxes"], batch["classes"]
    used = classes != 0
    sides = (boxes[..., 2:] - boxes[..., :2])[used]
    assert used.any(1).sum() > 25 and sides.min() >= 1 and not boxes[~used].any() and not batch["masks"][~used].any()
    assert (boxes[used] >= 0).all() and (boxes[..., 2:] <= batch["image_size"][:, None]).all()
    checked = 0
    for image, one_boxes, masks in zip(batch["image"], boxes, batch["masks"], strict=True):
        for box, mask in zip(one_boxes, masks, strict=True):
            y1, x1, y2, x2 = box.round().astype(int)
            if min(y2 - y1, x2 - x1) < 20 or (mask > 250).mean() < 0.3:
                continue
            inside = np.zeros((y2 - y1, x2 - x1), bool)
            cells = np.linspace(0, 55, y2 - y1).round().astype(int), np.linspace(0, 55, x2 - x1).round().astype(int)
            inside = mask[np.ix_(*cells)] > 250
            # A shape is of one colour with a light slope (at most +-20) and grain.
            assert image[y1:y2, x1:x2][inside].astype(float).std(0).max() < 20
            checked += 1
    assert checked > 20


def test_shards_add_up_to_the_whole_batch():
    dataset, config = ShapesDataset(7), Config.tiny(batch_size=6, **EVERYTHING)
    whole = take(loader(dataset, config, seed=3), 4)
    for count in (2, 3):
        parts = [take(loader(dataset, config, seed=3, shard=(k, count)), 4) for k in range(count)]
        for step, batch in enumerate(whole):
            joined = {key: np.concatenate([part[step][key] for part in parts]) for key in batch}
            assert same(batch, joined)
    rest = [list(loader(dataset, config, training=False, shard=(k, 3))) for k in range(3)]
    assert [[len(b["image"]) for b in part] for part in rest] == [[2, 1], [2], [2]]


def test_image_ids_tell_what_a_batch_holds():
    class Numbered(ShapesDataset):
        def image_id(self, i):
            return 1000 + i

        def load_masks(self, i):
            loaded.append(self.image_id(i))
            return super().load_masks(i)

    loaded, config = [], Config.tiny(batch_size=5, **EVERYTHING)
    batches = loader(Numbered(9), config)
    for step in (0, 3, 10**7):
        ids = batches.image_ids(step)
        assert not loaded and 5 < len(ids) <= 10
        next(iter(loader(Numbered(9), config, first_step=step).make(step)[0].values()))
        assert loaded == ids
        loaded.clear()


class Album(Ladder):
    """Six images; those in `bad` cannot be read."""

    def __init__(self, bad):
        self.bad = bad

    def __len__(self):
        return 6

    def load_image(self, i):
        if i in self.bad:
            raise InputError(f"picture-{i}.jpg: the image cannot be read (truncated).")
        return super().load_image(i)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_ends_the_run_or_is_replaced(workers):
    config = Config.tiny(batch_size=2, horizontal_flip=False)
    batches = loader(Album([4]), config, workers=workers)
    with pytest.raises(InputError, match="picture-4"):
        take(batches, 3)
    assert [str(failure)[:9] for failure in batches.failures] == ["picture-4"]

    batches = loader(Album([4, 5]), config, workers=workers, skip_bad=True)
    values = np.concatenate([batch["image"][:, 0, 0, 0] for batch in take(batches, 3)])
    ids = np.concatenate([batches.image_ids(step) for step in range(3)])
    np.testing.assert_array_equal(values, [100 if i in (4, 5) else 100 + i for i in ids])  # the next: round to image 0
    assert set(batches.skipped) == {4, 5} and "picture-4" in batches.skipped[4]
    batches.close()


def test_when_nothing_can_be_read_it_says_so():
    with pytest.raises(InputError, match="None of the 6 images of Album can be read; the last: picture"):
        take(loader(Album(range(6)), Config.tiny(), skip_bad=True), 1)


def test_training_leaves_out_what_has_nothing_to_learn():
    class Half(Ladder):
        def trains(self, i):
            return i > 0

    batches = loader(Half() + Subset(Half(), [2, 0]), Config.tiny(batch_size=3, horizontal_flip=False))
    assert batches.steps_per_epoch == 1
    (batch,) = take(batches, 1)
    assert sorted(batch["image"][:, 0, 0, 0].tolist()) == [101, 102, 102]
    assert loader(Half(), Config.tiny(batch_size=1), training=False).steps_per_epoch == 3
    with pytest.raises(InputError, match="no image with an object"):
        loader(Subset(Half(), [0]), Config.tiny())


def double(image, masks):
    return np.repeat(image, 2, 1), np.repeat(masks, 2, 2)


def test_worker_processes_make_the_same_batches():
    dataset, config = ShapesDataset(5), Config.tiny(batch_size=4, **EVERYTHING)
    expected = take(loader(dataset, config, seed=7, augment=double), 8)
    batches = loader(dataset, config, seed=7, workers=2, augment=double)
    assert all(map(same, expected, take(batches, 8)))
    again = iter(batches)
    again.set_state({"step": 5})
    assert all(map(same, expected[5:], take(again, 3)))
    batches.close()
    last = list(loader(dataset, Config.tiny(batch_size=1), training=False, workers=2))
    assert [len(batch["image"]) for batch in last] == [1] * 5


def test_a_script_with_workers_ends_quietly(tmp_path):
    lines = [
        "import sys, maskrcnn_edu as mr",
        "def run():",
        "    batches = mr.loader(mr.ShapesDataset(4), mr.Config.tiny(batch_size=2), workers=1)",
        "    kept = [batch for batch, _ in zip(batches, range(6))]",
        "    print(len(kept))",
    ]
    script = tmp_path / "script.py"
    light = "    assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"  # in a worker
    script.write_text("\n".join([*lines, "if __name__ == '__main__':", "    run()", "else:", light]))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.stdout == "6\n" and done.returncode == 0
    assert "Traceback" not in done.stderr and "leaked" not in done.stderr

    script.write_text("\n".join([*lines, "run()"]))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("Traceback") == 1
    assert done.stderr.strip().splitlines()[-1].startswith("maskrcnn_edu.errors.InputError: loader: workers=1 needs")


def test_workers_that_cannot_start_end_the_script(tmp_path):
    """A dataset that is more than a pipe holds must not wait for ever for a worker that has ended."""
    lines = [
        "import numpy as np, maskrcnn_edu as mr",
        "class Heavy(mr.ShapesDataset):",
        "    ballast = None",
        "def run():",
        "    dataset = Heavy(4)",
        "    dataset.ballast = np.random.default_rng(0).bytes(1_000_000)",
        "    batches = mr.loader(dataset, mr.Config.tiny(batch_size=2), workers=2)",
        "    print(len([batch for batch, _ in zip(batches, range(6))]))",
        "if __name__ == '__main__':",
        "    run()",
    ]
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}

    def run(*more):
        (tmp_path / "script.py").write_text("\n".join([*lines, *more]))
        command = [sys.executable, tmp_path / "script.py"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
        assert not list((tmp_path / "tmp").iterdir())  # what was handed over
        return done

    assert run().stdout == "6\n"
    done = run("else:", "    raise OSError('not here')")
    assert done.returncode == 1 and "not here" in done.stderr
    assert "InputError: A worker process of the loader ended with exit code 1, for the reason" in done.stderr


def test_a_killed_worker_is_named():
    class Deadly(ShapesDataset):
        def load_image(self, i):
            if multiprocessing.parent_process():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().load_image(i)

    batches = loader(Deadly(3), Config.tiny(batch_size=1), workers=1)
    with pytest.raises(InputError, match=r"worker process .*exit code -9"):
        take(batches, 4)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"shard": (2, 2)}, r"shard is \(2, 2\)"),
        ({"shard": 3}, "shard is 3"),
        ({"shard": (0, 3)}, "Config.batch_size is 8"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"first_step": -2}, "first_step is -2"),
        ({"augment": double, "training": False}, "augment is for training"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(InputError, match=words):
        loader(ShapesDataset(3), Config.tiny(), **arguments)


def test_a_users_function_cannot_carry_keypoints():
    class Dots(Ladder):
        keypoint_names = ["dot"]

    with pytest.raises(InputError, match="augment returns no keypoints"):
        loader(Dots(), Config.tiny(keypoints=1), augment=double)

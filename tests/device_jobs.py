"""What tests/test_distribution.py runs in processes of their own: python device_jobs.py JOB RESULT [ARGUMENTS].

Devices are settled once in a process, so that none of this could share one with other tests.
"""

import dataclasses
import json
import sys
from pathlib import Path

import keras
import numpy as np

import maskrcnn_edu as mr
from maskrcnn_edu import cli

# As small as a Mask R-CNN can be. Group norm: with batch norm the halves of a batch would not be alone.
CONFIG = mr.Config.tiny(
    image_min_size=64, image_max_size=64, anchor_sizes=(8, 16, 32), stem_channels=8, stage_channels=(8, 8, 8),
    fpn_channels=8, rpn_channels=8, proposals_per_level_training=30, proposals_training=20, roi_batch_size=16,
    box_fc_channels=(16,), mask_conv_channels=(8,), batch_size=4, max_instances=8, backbone_norm="group",
    warmup_steps=0,
)  # fmt: skip
CLIP = 0.5  # below the gradient's norm, so that it shows who clips what


def new_model(config=CONFIG, clip=None):
    keras.utils.set_random_seed(1)
    model = mr.MaskRCNN(config, mr.ShapesDataset.class_names)
    model.compile(keras.optimizers.SGD(1.0, global_clipnorm=clip))
    return model


def weights(model):
    return np.concatenate([np.asarray(keras.ops.convert_to_numpy(v)).ravel() for v in model.trainable_variables])


def statistics(model):
    """What batch norms keep."""
    kept = [v for v in model.non_trainable_variables if "moving" in v.path]
    return np.concatenate([keras.ops.convert_to_numpy(v).ravel() for v in kept])


def difference(a, b):
    return float(np.abs(a - b).max())


def update(config=CONFIG, clip=None):
    """The losses that `fit` reports for a step on the first batch, and what the step added to the weights."""
    model = new_model(config, clip)
    before = weights(model)
    history = model.fit(mr.loader(mr.ShapesDataset(16, size=64), config), steps_per_epoch=1, verbose=0).history
    return model, {name: value[0] for name, value in history.items()}, weights(model) - before


def two_devices(result):
    """A step on two devices, on one, and on each half of the batch alone."""
    data, sync = mr.ShapesDataset(16, size=64), dataclasses.replace(CONFIG, backbone_norm="sync")
    with mr.devices(2):
        found = {"about": mr.distribution.describe()}
        model, found["losses"], change = update()
        try:
            model.evaluate(mr.loader(mr.Subset(data, range(3)), CONFIG, training=False), verbose=0)
        except mr.InputError as error:
            found["three"] = str(error)
        synced, _, clipped = update(sync, CLIP)
        synced = statistics(synced)
    found["clipped"] = float(np.linalg.norm(clipped))

    whole, _, _ = update(dataclasses.replace(CONFIG, backbone_norm="batch"))
    found["statistics"] = difference(statistics(whole), synced)
    found["statistics_moved"] = difference(statistics(new_model(sync)), synced)

    batch = next(iter(mr.loader(data, CONFIG)))
    halves, changes = [], []
    for half in (slice(0, 2), slice(2, 4)):
        model = new_model()
        before = weights(model)
        halves.append(model.train_on_batch({name: array[half] for name, array in batch.items()}, return_dict=True))
        changes.append(weights(model) - before)
    found["halves"] = {name: float(halves[0][name] + halves[1][name]) / 2 for name in halves[0]}
    found["update"] = difference((changes[0] + changes[1]) / 2, change)
    found["largest"], found["norm"] = float(np.abs(change).max()), float(np.linalg.norm(change))
    Path(result).write_text(json.dumps(found))


def one_of_two_machines(result):
    """A step as one of several processes; how they find each other is in the environment."""
    with mr.devices():
        model, losses, change = update()
        mr.runs.save(model, Path(result).with_suffix(".keras"))
        found = {"shard": mr.distribution.shard(), "about": mr.distribution.describe(), "losses": losses}
        mr.distribution.check_same(3, "three")
        try:
            mr.distribution.check_same(mr.distribution.shard()[0], "their number")
        except mr.InputError as error:
            found["disagreement"] = str(error)
    found["norm"] = float(np.linalg.norm(change))
    Path(result).write_text(json.dumps(found))


def train_command(save_every, *arguments):
    """The command line, with more frequent checkpoints."""
    sys.exit(cli.main(["train", *arguments, "--save-every", save_every]))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])

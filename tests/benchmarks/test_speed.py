"""How long things take: `python -m pytest -m speed tests/benchmarks`. Nothing is asserted about the times."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

import maskrcnn_edu as mr
from maskrcnn_edu import benchmark as stages
from maskrcnn_edu.backend import compiled, island
from maskrcnn_edu.roi_align import pool_from_pyramid

pytestmark = pytest.mark.speed
RNG = np.random.default_rng(0)
COCO = {"image_min_size": 768, "image_max_size": 1024, "detection_score_threshold": 0.0}


def boxes(*shape, height=768, width=1024):
    corner = RNG.uniform(0, [0.8 * height, 0.8 * width], (*shape, 2))
    size = np.exp(RNG.uniform(np.log(10), np.log(400), (*shape, 2)))
    return np.concatenate([corner, np.minimum(corner + size, [height, width])], -1).astype(np.float32)


def run(benchmark, function, *arguments):
    """Times `function(*arguments)`; its first call, which compiles, does not count, nor does copying arrays there."""
    stages.fastest(function, arguments, 1)
    benchmark.pedantic(lambda: stages.finished(function(*arguments)), rounds=7)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return mr.MaskRCNN(mr.Config.torchvision(**COCO))


@pytest.mark.parametrize("form", ["graph", "island"])
def test_nms_of_5_times_1000_boxes(benchmark, model, form):
    nms = island(mr.boxes.nms, 0.7) if form == "island" else lambda b, s: mr.boxes.nms(b, s, 0.7)
    scores = RNG.uniform(size=(5, 1000)).astype(np.float32)
    run(benchmark, compiled(lambda b, s: nms(b, s), model), *map(ops.convert_to_tensor, (boxes(5, 1000), scores)))


@pytest.mark.parametrize("form", ["graph", "island"])
@pytest.mark.parametrize("side", [7, 14])
def test_roi_align_of_1000_boxes(benchmark, model, form, side):
    pyramid = [RNG.normal(size=(1, 768 // s, 1024 // s, 256)) for s in (4, 8, 16, 32)]
    pyramid = [ops.convert_to_tensor(level, dtype="float32") for level in pyramid]
    align = island(pool_from_pyramid, side, model.config)
    if form == "graph":
        align = lambda levels, rois: pool_from_pyramid(levels, rois, side, model.config)  # noqa: E731
    run(
        benchmark,
        compiled(lambda levels, rois: align(levels, rois), model),
        pyramid,
        ops.convert_to_tensor(boxes(1, 1000)),
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_detection_r50_768_x_1024(benchmark, precision):
    model = mr.MaskRCNN(mr.Config.torchvision(**COCO, precision=precision))
    run(benchmark, model.detect, [stages.photograph(768, 1024)])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_step_r50_2_x_512_x_512(benchmark, precision):
    side = {"image_min_size": 512, "image_max_size": 512, "batch_size": 2, "roi_batch_size": 128}
    model = mr.MaskRCNN(mr.Config.torchvision(**side, precision=precision))
    model.compile(keras.optimizers.SGD(1e-5, momentum=0.9))
    run(benchmark, model.train_on_batch, stages.synthetic_batch(model.config))


@pytest.mark.parametrize("module", ["keras", "keras, maskrcnn_edu"])
def test_import(benchmark, module):
    command = [sys.executable, "-c", f"import {module}"]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, stderr=subprocess.DEVNULL), rounds=3)

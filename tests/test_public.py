"""The public surface: what functions accept, and what `import maskrcnn_edu` does and does not load."""

import subprocess
import sys

import numpy as np
import pytest
from keras import ops

import maskrcnn_edu as mr

BOXES = [[0.0, 0.0, 10.0, 12.0], [4.0, 2.0, 20.0, 30.0], [0.0, 0.0, 9.0, 12.0]]
SCORES = [0.5, 0.9, 0.8]
KINDS = {
    "float32": np.float32,
    "float64": np.float64,
    "int64": lambda x: np.array(x, np.int64) if np.array_equal(x, np.array(x, np.int64)) else np.array(x),
    "list": lambda x: x,
    "tensor": lambda x: ops.convert_to_tensor(x, dtype="float32"),
}

CALLS = {
    "area": lambda k: mr.boxes.area(k(BOXES)),
    "giou": lambda k: mr.boxes.giou(k(BOXES), k(BOXES)),
    "intersection": lambda k: mr.boxes.intersection(k(BOXES), k(BOXES)),
    "iou": lambda k: mr.boxes.iou(k(BOXES), k(BOXES)),
    "encode": lambda k: mr.boxes.encode(k(BOXES), k(BOXES[::-1])),
    "decode": lambda k: mr.boxes.decode(k([[0.1, 0.0, 0.2, 0.3]] * 3), k(BOXES)),
    "clip": lambda k: mr.boxes.clip(k([BOXES]), k([[8.0, 9.0]])),
    "nms": lambda k: mr.boxes.nms(k(BOXES), k(SCORES), 0.5),
    "nms_by_class": lambda k: mr.boxes.nms(k(BOXES), k(SCORES), 0.5, classes=k([1, 1, 2])),
    "class_nms": lambda k: mr.boxes.class_nms(k([BOXES]), k([SCORES]), k([[1, 1, 1]]), 0.5, 2)[1],
    "roi_align": lambda k: mr.roi_align.roi_align(k(FEATURE), k([BOXES]), 4, 2),
    "roi_align_adaptive": lambda k: mr.roi_align.roi_align(k(FEATURE), k([BOXES]), 4, 2, sampling_ratio=0),
    "roi_pool": lambda k: mr.roi_align.roi_pool(k(FEATURE), k([BOXES]), 4, 2),
    "crop_and_resize": lambda k: mr.roi_align.crop_and_resize(k(FEATURE), k([BOXES]), 4, 2),
    "paste": lambda k: mr.masks.paste(k(np.ones((3, 4, 4)).tolist()), k(BOXES), 16, 20),
    "pyramid_anchors": lambda k: mr.anchors.pyramid_anchors(k([64, 32]), mr.Config.tiny()),
}
FEATURE = np.random.default_rng(0).integers(0, 9, (1, 8, 8, 3)).astype(float).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CALLS)
def test_takes_arrays_lists_and_tensors(name, kind):
    found, expected = np.asarray(CALLS[name](KINDS[kind])), np.asarray(CALLS[name](np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_public_name_is_there():
    assert all(hasattr(mr, name) for name in mr.__all__) and set(mr.__all__) <= set(dir(mr))
    with pytest.raises(AttributeError, match="no_such_name"):
        mr.no_such_name  # noqa: B018


def python(code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "tiny.keras"
    config = mr.Config.tiny(stem_channels=4, stage_channels=(4, 4, 4), fpn_channels=4, box_fc_channels=(4,))
    mr.MaskRCNN(config, ["background", "circle", "square", "triangle"]).save(path)
    return path


@pytest.mark.parametrize("imports", ["import keras, maskrcnn_edu", "import maskrcnn_edu, keras"])
def test_import_registers_the_model(saved, imports):
    python(
        f"{imports}, sys; model = keras.saving.load_model(sys.argv[1]);"
        "assert type(model) is maskrcnn_edu.MaskRCNN and model.class_names[3] == 'triangle'",
        saved,
    )


def test_command_line_starts_without_keras():
    python(
        "import sys; sys.argv = ['maskrcnn-edu']; import maskrcnn_edu;"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules;"
        "from maskrcnn_edu import Config, InputError, ShapesDataset, plots;"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )

"""What a training run starts from: --model coco, imagenet, a file, and which recipe it then follows."""

import json

import pytest
from test_published import NARROW, SHARED, enter, narrow_file, narrow_name  # noqa: F401  fixtures

import maskrcnn_edu as mr
from maskrcnn_edu.cli import main
from maskrcnn_edu.weights import published
from maskrcnn_edu.weights.start import coco_weights, imagenet_weights

COCO = SHARED / "coco_sample"


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (mr.Config.coco(), "detectron2-r50"), (mr.Config.detectron2_1x(), "detectron2-r50"),
        (mr.Config.coco(101), "detectron2-r101"), (mr.Config.finetune(num_classes=3), "detectron2-r50"),
        (mr.Config.torchvision(), "torchvision-v1"), (mr.Config.torchvision_v2(), "torchvision-v2"),
        (mr.Config.torchvision_keypoint(), "torchvision-keypoint"), (mr.Config.matterport(), "matterport-coco"),
        (mr.Config.detectron2_keypoint(), "detectron2-keypoint-r50"),
    ],
)  # fmt: skip
def test_coco_weights_suit_the_network(config, name):
    assert coco_weights(config) == name


@pytest.mark.parametrize("config", [mr.Config.tiny(), mr.Config.lsj_100(), mr.Config.detectron2(rpn_convs=2)])
def test_networks_that_nobody_has_published(config):
    with pytest.raises(mr.InputError, match="no published COCO weights.*detectron2.*--model new"):
        coco_weights(config)


def test_imagenet_weights_suit_the_depth():
    assert imagenet_weights(mr.Config.coco(50)) == "imagenet-resnet50"
    assert imagenet_weights(mr.Config.detectron2(101)) == "imagenet-resnet101"
    for config in (mr.Config.small(), mr.Config.torchvision()):
        with pytest.raises(mr.InputError, match="ResNet-50 and ResNet-101"):
            imagenet_weights(config)


@pytest.mark.skipif(not COCO.is_dir(), reason="needs ../shared/coco_sample")
def test_train_and_evaluate_coco_as_a_new_user_types_it(narrow_file, narrow_name, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(published, "default_cache", lambda: narrow_file.parent)
    options = ["coco", "--dataset", str(COCO), "--logs", str(tmp_path / "logs")]
    changes = [
        word
        for field, value in {**NARROW, "image_min_sizes_training": ()}.items()
        for word in ("--set", f"{field}={value}")
    ]
    assert main(["train", *options, "--model", "coco", "--preset", "finetune", "--steps", "2", *changes]) == 0
    printed = capsys.readouterr().out
    assert "narrow: " in printed and "filled from detectron2" in printed and "first values" not in printed  # COCO's 80
    (run,) = (tmp_path / "logs").iterdir()
    config = json.loads((run / "run.json").read_text())["config"]
    assert config["pixel_std"] == [1.0, 1.0, 1.0] and config["schedule"] == "cosine" and config["trainable"] == ["3+"]
    for model in ("last", "narrow", str(run / "last.keras")):
        assert main(["evaluate", *options, "--model", model, "--limit", "2"]) == 0
        assert "segm: AP" in capsys.readouterr().out

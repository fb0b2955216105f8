"""The published weights: their names, where they come from, and the cache that keeps them."""

import dataclasses
import functools
import hashlib
import os
from pathlib import Path

from maskrcnn_edu.config import Config
from maskrcnn_edu.datasets.coco_classes import COCO_NAMES, COCO_RAW_NAMES, PERSON_NAMES
from maskrcnn_edu.download import download
from maskrcnn_edu.errors import InputError

TORCHVISION = "https://download.pytorch.org/models/"
DETECTRON2 = "https://dl.fbaipublicfiles.com/detectron2/"
MATTERPORT = "https://github.com/matterport/Mask_RCNN/releases/download/v2.0/"
KERAS = "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"


@dataclasses.dataclass(frozen=True)
class Published:
    """A published weight file.

    checksum: "sha256:..." or "md5:..." in hexadecimal, whole or its first digits; "" where none is known.
    preset, settings: the classmethod of Config and its arguments.
    backbone_only: an ImageNet file, which leaves the pyramid and the heads to be trained.
    box_ap, mask_ap, keypoint_ap: on COCO val2017 (the seed: minival), in percent, as its publisher gives them.
    """

    name: str
    url: str
    checksum: str
    preset: str
    settings: dict = dataclasses.field(default_factory=dict)
    class_names: tuple = ()
    box_ap: float | None = None
    mask_ap: float | None = None
    keypoint_ap: float | None = None
    backbone_only: bool = False

    @property
    def file(self) -> str:
        """The publisher's file name, which the cache keeps."""
        return self.url.rsplit("/", 1)[-1]

    def config(self, **changes) -> Config:
        """The settings that the weights were trained for, or with `changes`."""
        return getattr(Config, self.preset)(**{**self.settings, **changes})


# torchvision's names end in the first digits of the sha256, and its digits here are what several projects recorded.
# What Detectron2's end in is no digest of the file: the two sha256 here are recorded by a mirror of the model zoo
# (xboix/detectron2-coco), the first by two other projects as well. The md5 are from keras.applications.
PUBLISHED = {
    entry.name: entry
    for entry in (
        Published(
            "matterport-coco", MATTERPORT + "mask_rcnn_coco.h5", "",
            "matterport", {"depth": 101}, COCO_NAMES, 34.7, 29.6,
        ),
        Published(
            "torchvision-v1", TORCHVISION + "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth",
            "sha256:bf2d0c1efbc936eeee2bc95a48e80ebc86b891f61b0106485937fc29f9315fc0",
            "torchvision", {}, COCO_RAW_NAMES, 37.9, 34.6,
        ),
        Published(
            "torchvision-v2", TORCHVISION + "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
            "sha256:73cbd0190fcbe3ba339921fbce2c3a0b6bb9126c9a133c85e43a2a8e060a109e",
            "torchvision_v2", {}, COCO_RAW_NAMES, 47.4, 41.8,
        ),
        Published(
            "torchvision-keypoint", TORCHVISION + "keypointrcnn_resnet50_fpn_coco-fc266e95.pth",
            "sha256:fc266e953d2b302cdcbb9ae66f71f6b0d4649928bf02dc573961e361e4918926",
            "torchvision_keypoint", {}, PERSON_NAMES, 54.6, None, 65.0,
        ),
        Published(
            "detectron2-r50",
            DETECTRON2 + "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217.pkl",
            "sha256:9a737e290372f1f70994ebcbd89d8004dbb3ae30a605fd915a190fa4a782dd66",
            "detectron2", {"depth": 50}, COCO_NAMES, 41.0, 37.2,
        ),
        Published(
            "detectron2-r101",
            DETECTRON2 + "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72.pkl", "",
            "detectron2", {"depth": 101}, COCO_NAMES, 42.9, 38.6,
        ),
        Published(
            "detectron2-keypoint-r50",
            DETECTRON2 + "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b.pkl",
            "sha256:48cc65c6f9ff63dabe64bf6082eb257d8515b42b31f0e44ff43cf9470f5107e4",
            "detectron2_keypoint", {}, PERSON_NAMES, 55.4, None, 65.5,
        ),
        Published(
            "imagenet-resnet50", KERAS + "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "md5:4d473c1dd8becc155b73f8504c6f6626", "coco", {"depth": 50}, COCO_NAMES, backbone_only=True,
        ),
        Published(
            "imagenet-resnet101", KERAS + "resnet101_weights_tf_dim_ordering_tf_kernels_notop.h5",
            "md5:88cf7a10940856eca736dc7b7e228a21", "coco", {"depth": 101}, COCO_NAMES, backbone_only=True,
        ),
    )
}  # fmt: skip


def find(name: str) -> Published:
    """The entry of that name. Raises InputError, which lists the names, if there is none."""
    if name not in PUBLISHED:
        raise InputError(f"{name!r} is no name of published weights; choose one of {', '.join(PUBLISHED)}.")
    return PUBLISHED[name]


def default_cache() -> Path:
    """The folder maskrcnn_edu in Keras' own: $KERAS_HOME, or .keras in the home directory."""
    return Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "maskrcnn_edu"


def cached(name: str, cache=None) -> Path:
    """Where the cache keeps that file, whether it is there or not."""
    folder = Path(cache).expanduser() if cache is not None else default_cache()
    return folder / find(name).file


def fetch(name: str, cache=None) -> Path:
    """The path of a published weight file, downloaded from its publisher unless the cache has it.

    Args:
        name: one of PUBLISHED.
        cache: the folder that keeps the file, under its publisher's name; by default `default_cache()`. A file that
            was put there by hand is taken.

    A file is taken only if its checksum is right (one without a known checksum must be readable to its end); the
    cache keeps no other. Raises InputError: unknown name; a download that failed, with what to put where instead.
    """
    published, path = find(name), cached(name, cache)
    if path.is_file():
        flaw = _flaw(published, path)
        if flaw is None:
            return path
        path.unlink()
        flaw = f"{path} was damaged, {flaw}, and is removed; "
    else:
        flaw = ""
    try:
        download(published.url, path, functools.partial(_flaw, published))
    except Exception as error:  # urllib, ssl, http, socket and OSError each have their own
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(
            f"{name} could not be fetched ({flaw}{reason}): download {published.url} by other means and put the file "
            f"here: {path}."
        ) from error
    return path


def _flaw(published, path):
    """What is wrong with the file, or None."""
    if not published.checksum:
        return _unreadable(path)
    algorithm, wanted = published.checksum.split(":")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    return None if found.startswith(wanted) else f"its {algorithm} is {found} instead of {wanted}"


def _unreadable(path):
    from maskrcnn_edu.weights.readers import read

    try:
        read(path)
    except InputError as error:
        return str(error).removeprefix(f"{path} ")
    return None

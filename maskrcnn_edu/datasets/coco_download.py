"""COCO from its publisher: what each split needs, fetched and unpacked where CocoDataset looks for it.

The real archives (up to 19 GB) were not fetched where this was written: tests use small ones on a local server.
"""

from pathlib import Path

from maskrcnn_edu.datasets.coco import FOLDERS
from maskrcnn_edu.download import download, unpack
from maskrcnn_edu.errors import InputError

COCO = "http://images.cocodataset.org/"
# The split of val2014 into 35k and 5k images that the seed and others used before 2017; from its author's Dropbox.
MINIVAL = {
    "valminusminival2014": "https://dl.dropboxusercontent.com/s/s3tw5zcg7395368/instances_valminusminival2014.json.zip",
    "minival2014": "https://dl.dropboxusercontent.com/s/o43o90bna78omob/instances_minival2014.json.zip",
}
SPLITS = ("train2014", "val2014", "valminusminival2014", "minival2014", "train2017", "val2017")


def fetch(directory, split, keypoints=False, progress=None):
    """Downloads and unpacks the pictures and the annotations of a split, unless they are there.

    A download that breaks off goes on at the next call; nothing is left half unpacked. Each archive is removed once it
    is unpacked.

    Args:
        directory: the dataset's folder; made if need be.
        split: one of SPLITS.
        progress: called with the archive's name, the bytes that are there and the bytes in all.

    Raises:
        InputError: an unknown split; a download that failed, with what to put where instead; a bad archive.
    """
    if split not in SPLITS:
        raise InputError(f"{split!r} cannot be downloaded; choose one of {', '.join(SPLITS)}.")
    if split in MINIVAL and keypoints:
        raise InputError(f"{split} has no keypoints; use val2014.")
    directory = Path(directory)
    pictures = FOLDERS.get(split, split)
    kind = "person_keypoints" if keypoints else "instances"
    if not (directory / "annotations" / f"{kind}_{split}.json").is_file():
        if split in MINIVAL:
            _fetch(MINIVAL[split], directory, directory / "annotations", progress)
        else:
            _fetch(f"{COCO}annotations/annotations_trainval{split[-4:]}.zip", directory, directory, progress)
    if not (directory / pictures).is_dir():
        _fetch(f"{COCO}zips/{pictures}.zip", directory, directory, progress)


def _fetch(url, directory, target, progress):
    """Downloads an archive into `directory` and unpacks it into `target`."""
    name = url.rsplit("/", 1)[-1]
    archive = directory / name
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not archive.is_file():
            download(url, archive, progress=progress and (lambda there, total: progress(name, there, total)))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{url} could not be fetched ({str(error).rstrip('.')}): try again to go on from there, or download it by "
            f"other means and put it here: {archive}."
        ) from error
    unpack(archive, target)
    archive.unlink()

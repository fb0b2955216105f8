"""CocoDataset: pictures and instances in the COCO format."""

import json
import math
import os
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from maskrcnn_edu.datasets.dataset import Dataset, read_image
from maskrcnn_edu.errors import InputError

# The two annotations of COCO's own train2017 without any height, area 0.0: (annotation id, image id).
# https://github.com/cocodataset/cocoapi/issues/355. They are skipped; any other box without an area is an error.
WITHOUT_AREA = {(918, 200365), (2206849, 550395)}

NEEDED = {
    "images": ("id", "file_name", "height", "width"),
    "categories": ("id", "name"),
    "annotations": ("id", "image_id", "category_id", "bbox", "segmentation", "area", "iscrowd"),
}
KEYPOINTS_NEEDED = {"categories": ("keypoints", "skeleton"), "annotations": ("keypoints", "num_keypoints")}


class CocoDataset(Dataset):
    """Images of `{directory}/{split}/` with the instances of `{directory}/annotations/instances_{split}.json`.

    Masks may be polygons, uncompressed or compressed RLE; iscrowd 1 gives a negative class id. Images without
    annotations stay in. The whole annotation file is checked at once, the pictures when they are loaded.

    With `keypoints=True` the file is `person_keypoints_{split}.json`, and instances carry their person's keypoints.
    A person without a labelled keypoint stays in, as a box and mask alone.

    Attributes:
        annotations: the parsed file, as pycocotools takes it.
        category_ids: the file's category id of each class; None for background.
        keypoint_names: the file's names of the K keypoints; empty without keypoints.
        skeleton: the pairs of keypoints (from 0) that a drawing joins.

    Raises:
        InputError: a missing file, or an annotation, image or category that cannot be, with its id.
    """

    def __init__(self, directory, split="val2017", keypoints=False):
        self.directory, self.split = Path(directory), split
        kind = "person_keypoints" if keypoints else "instances"
        self.file = self.directory / "annotations" / f"{kind}_{split}.json"
        self.annotations = _parse(self.file)
        images, categories = (_by_id(self.file, self.annotations[kind], kind) for kind in ("images", "categories"))
        _check_images(self.file, images.values())
        _check_files(self.directory / split, images.values())
        _check_annotations(self.file, self.annotations["annotations"], images, categories)

        self.keypoint_names, self.skeleton = [], []
        if keypoints:
            self.keypoint_names, self.skeleton = _checked_keypoints(self.file, self.annotations)

        self.category_ids = [None, *sorted(categories)]
        self.class_names = ["background"] + [categories[c]["name"] for c in self.category_ids[1:]]
        self._classes = {category: k for k, category in enumerate(self.category_ids)}
        self._images = list(images.values())
        self._objects = {image_id: [] for image_id in images}
        for annotation in self.annotations["annotations"]:
            if (annotation["id"], annotation["image_id"]) not in WITHOUT_AREA:
                self._objects[annotation["image_id"]].append(annotation)

    def __len__(self):
        return len(self._images)

    def image_id(self, i):
        """The file's own id of image `i`."""
        return self._images[i]["id"]

    def path(self, i) -> Path:
        """Where image `i` lies."""
        return self.directory / self.split / self._images[i]["file_name"]

    def load_image(self, i):
        image, told = read_image(self.path(i)), self._images[i]
        if image.shape[:2] != (told["height"], told["width"]):
            raise InputError(
                f"{self.path(i)}: the image is {image.shape[0]} x {image.shape[1]} pixels (height x width), "
                f"but {self.file} says {told['height']} x {told['width']}; correct one of them."
            )
        return image

    def load_masks(self, i):
        height, width = self._images[i]["height"], self._images[i]["width"]
        objects = self._objects[self.image_id(i)]
        masks = np.zeros((len(objects), height, width), bool)
        for mask, annotation in zip(masks, objects, strict=True):
            mask[:] = self._decode(annotation, height, width)
        classes = [self._classes[a["category_id"]] * (-1 if a["iscrowd"] else 1) for a in objects]
        return masks, np.array(classes, int)

    def load_keypoints(self, i):
        shape = (-1, len(self.keypoint_names), 3)
        objects = self._objects[self.image_id(i)]
        return np.array([a["keypoints"] for a in objects], np.float32).reshape(shape)

    def annotations_of(self, i, size=None):
        """The file's own entries: its boxes and areas follow the polygons, not the pixels."""
        objects = self._objects[self.image_id(i)]
        return [{**entry, "category_id": self._classes[entry["category_id"]]} for entry in objects]

    def _decode(self, annotation, height, width):
        """The mask of one annotation, (height, width) uint8."""
        segmentation = annotation["segmentation"]
        try:
            if isinstance(segmentation, list):
                return rle.decode(rle.merge(rle.frPyObjects(segmentation, height, width)))
            if isinstance(segmentation["counts"], list):
                segmentation = rle.frPyObjects(segmentation, height, width)
            return rle.decode(segmentation)
        except Exception as error:  # pycocotools has no error of its own
            raise InputError(
                f"{self.file}: annotation {annotation['id']} has a segmentation that cannot be decoded ({error}); "
                "correct it."
            ) from error


def _parse(file):
    """The JSON file as a dict whose lists have all the keys that COCO's have."""
    try:
        with open(file, encoding="utf-8") as opened:
            content = json.load(opened)
    except FileNotFoundError:
        if not file.parents[1].is_dir():
            raise InputError(f"{file.parents[1]}: there is no such folder; check the path.") from None
        raise InputError(f"{file}: there is no such annotation file; check the directory and the split.") from None
    except OSError as error:
        raise InputError(f"{file}: the annotation file cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: this is not valid JSON ({error}); it may be damaged, so replace it.") from None
    for kind, keys in NEEDED.items():
        if not isinstance(content, dict) or not isinstance(content.get(kind), list):
            raise InputError(f'{file}: the list "{kind}" is missing; give an instances file in the COCO format.')
        _check_keys(file, kind, content[kind], keys)
    return content


def _check_keys(file, kind, entries, keys):
    needed = set(keys)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InputError(f'{file}: entry {position} of "{kind}" is {entry!r}; give an object.')
        if not needed <= entry.keys():
            missing = next(key for key in keys if key not in entry)
            raise InputError(f'{file}: entry {position} of "{kind}" (id {entry.get("id")}) has no "{missing}"; add it.')
        if not isinstance(entry["id"], int):
            raise InputError(f'{file}: entry {position} of "{kind}" has id {entry["id"]!r}; give a whole number.')


def _by_id(file, entries, kind):
    found = {entry["id"]: entry for entry in entries}
    if len(found) < len(entries):
        ids = [entry["id"] for entry in entries]
        double = next(i for i in found if ids.count(i) > 1)
        raise InputError(f'{file}: id {double} comes twice in "{kind}"; make ids unique.')
    return found


def _check_images(file, images):
    for image in images:
        sides = image["height"], image["width"]
        if not all(isinstance(side, int) and side > 0 for side in sides) or not isinstance(image["file_name"], str):
            raise InputError(
                f"{file}: image {image['id']} has height, width, file_name {sides[0]!r}, {sides[1]!r}, "
                f"{image['file_name']!r}; give two positive whole numbers and a string."
            )


def _check_files(folder, images):
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of images; check the directory and the split.")
    present = set(os.listdir(folder))  # one look instead of 118,000
    for image in images:
        name = image["file_name"]
        if name not in present and not (folder / name).is_file():
            raise InputError(f"{folder / name}: the file of image {image['id']} is missing; add it or drop the image.")


def _check_annotations(file, annotations, images, categories):
    _by_id(file, annotations, "annotations")
    for annotation in annotations:
        image = images.get(annotation["image_id"])
        if image is None:
            wrong = f'has image_id {annotation["image_id"]}, which is not in "images"; add it or drop the annotation'
        elif annotation["category_id"] not in categories:
            wrong = f'has category_id {annotation["category_id"]}, which is not in "categories"; add it'
        elif annotation["iscrowd"] not in (0, 1):
            wrong = f"has iscrowd {annotation['iscrowd']!r}; give 0 or 1"
        elif (annotation["id"], annotation["image_id"]) in WITHOUT_AREA:
            continue
        else:
            wrong = _wrong_box(annotation["bbox"]) or _wrong_segmentation(annotation["segmentation"], image)
        if wrong:
            raise InputError(f"{file}: annotation {annotation['id']} {wrong}.")


def _wrong_box(box):
    """What is wrong with x, y, width, height; None if nothing is."""
    if not _finite(box) or len(box) != 4:
        return f"has bbox {box!r}; give four finite numbers, x, y, width and height"
    if box[2] <= 0 or box[3] <= 0:
        return f"has bbox {box!r} without an area; give a width and height above 0"
    return None


def _wrong_segmentation(segmentation, image):
    """What is wrong with polygons or RLE; None if nothing is."""
    if isinstance(segmentation, dict):
        return _wrong_rle(segmentation, image)
    if not isinstance(segmentation, list) or not segmentation:
        return "has no segmentation; give a list of polygons, or RLE"
    # Far outside, pycocotools would walk along every edge, pixel by pixel.
    limit = 10 * max(image["height"], image["width"])
    for polygon in segmentation:
        if not _finite(polygon) or len(polygon) < 6 or len(polygon) % 2:
            return "has a polygon that is not x, y of three points or more; correct or drop it"
        if min(polygon) < -limit or max(polygon) > limit:
            return "has a polygon far outside the image; give its points in pixels"
    return None


def _wrong_rle(segmentation, image):
    size, counts = [image["height"], image["width"]], segmentation.get("counts")
    if segmentation.get("size") != size:
        return f"has RLE of size {segmentation.get('size')}, but image {image['id']} is {size}; correct one of them"
    if isinstance(counts, str):
        return None  # decoded and checked when it is loaded
    if not isinstance(counts, list) or not all(isinstance(n, int) and n >= 0 for n in counts):
        return "has RLE counts that are neither a string nor a list of whole numbers; correct them"
    if sum(counts) != size[0] * size[1]:
        return f"has RLE counts for {sum(counts)} pixels, but image {image['id']} has {size[0] * size[1]}; correct them"
    return None


def _finite(numbers):
    """A list of finite numbers."""
    try:
        return isinstance(numbers, list) and math.isfinite(sum(numbers))
    except (TypeError, OverflowError):
        return False


def _checked_keypoints(file, content):
    """Names and skeleton (from 0) of a keypoint file; its annotations have three numbers a keypoint, or InputError."""
    for kind, keys in KEYPOINTS_NEEDED.items():
        _check_keys(file, kind, content[kind], keys)
    categories = content["categories"]
    names, skeleton = (categories[0]["keypoints"], categories[0]["skeleton"]) if categories else ([], [])
    for category in categories:
        wrong = _wrong_names(category, names)
        if wrong:
            raise InputError(f"{file}: category {category['id']} {wrong}.")
    for annotation in content["annotations"]:
        wrong = _wrong_keypoints(annotation, len(names))
        if wrong:
            raise InputError(f"{file}: annotation {annotation['id']} {wrong}.")
    return names, [[a - 1, b - 1] for a, b in skeleton]


def _wrong_names(category, names):
    """What is wrong with a category's keypoints, whose names are to be those of the others; None if nothing is."""
    keypoints, skeleton = category["keypoints"], category["skeleton"]
    if not isinstance(keypoints, list) or not keypoints or not all(isinstance(name, str) for name in keypoints):
        return f"has keypoints {keypoints!r}; give a list of names"
    if len(set(keypoints)) < len(keypoints) or keypoints != names:
        return "has a keypoint name twice, or other names than the first category; give all categories the same names"
    known = range(1, len(names) + 1)
    if not isinstance(skeleton, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(end, int) and end in known for end in pair)
        for pair in skeleton
    ):
        return f"has a skeleton that is not pairs of numbers from 1 to {len(names)}; correct it"
    return None


def _wrong_keypoints(annotation, count):
    """What is wrong with x, y, visibility of `count` keypoints; None if nothing is."""
    keypoints, labelled = annotation["keypoints"], annotation["num_keypoints"]
    if not _finite(keypoints) or len(keypoints) != 3 * count:
        return f"has keypoints that are not {3 * count} finite numbers, x, y and visibility of each; correct them"
    if any(visibility not in (0, 1, 2) for visibility in keypoints[2::3]):
        return "has a keypoint whose visibility is not 0, 1 or 2; correct it"
    if not isinstance(labelled, int) or not 0 <= labelled <= count:
        return f"has num_keypoints {labelled!r}; give how many are labelled, 0 to {count}"
    return None

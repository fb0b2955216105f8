"""CocoDataset: pictures and instances in the COCO format."""

import functools
from pathlib import Path

import numpy as np
from pycocotools import mask as rle

from maskrcnn_edu.datasets import coco_file
from maskrcnn_edu.datasets.dataset import Dataset
from maskrcnn_edu.datasets.image_file import read_image
from maskrcnn_edu.errors import InputError

# The folder of the pictures of the splits of 2014 that only have an annotation file of their own (the seed's 35k + 5k).
FOLDERS = {"valminusminival2014": "val2014", "minival2014": "val2014", "test-dev2017": "test2017"}


class CocoDataset(Dataset):
    """Images of `{directory}/{split}/` with the instances of `{directory}/annotations/instances_{split}.json`.

    Masks may be polygons, uncompressed or compressed RLE; iscrowd 1 gives a negative class id. Boxes are the file's
    own, as in torchvision and Detectron2: evaluation compares with them, and they follow a polygon's corners, where a
    mask has whole pixels. The whole annotation file is checked at once, the pictures and compressed RLE when they are
    loaded.

    Images without annotations stay in, but training leaves them out, and those that have nothing but crowds
    (`trains`; as torchvision and Detectron2).

    A test split, published without annotations, has `image_info_{split}.json` instead: the dataset is not `labelled`.

    With `keypoints=True` the file is `person_keypoints_{split}.json`, and instances carry their person's keypoints.
    A person without a labelled keypoint stays in, as a box and mask alone; training leaves out images in which nobody
    has one (Detectron2).

    The pictures of valminusminival2014 and minival2014 lie in val2014, those of test-dev2017 in test2017.

    Args:
        channels: of the images, as in `read_image`.
        skip_bad: leaves out entries of the file that cannot be, instead of an error.

    Attributes:
        problems: with skip_bad, what was left out and why: a list of sentences.
        annotations: the parsed file, as pycocotools takes it.
        category_ids: the file's category id of each class; None for background.
        keypoint_names: the file's names of the K keypoints; empty without keypoints.
        skeleton: the pairs of keypoints (from 0) that a drawing joins.

    Raises:
        InputError: a missing file, or an annotation, image or category that cannot be, with its id.
    """

    def __init__(self, directory, split="val2017", keypoints=False, channels=3, skip_bad=False):
        self.directory, self.split, self.channels = Path(directory), split, channels
        self.folder = self.directory / FOLDERS.get(split, split)
        kind = "person_keypoints" if keypoints else "instances"
        self.file = self.directory / "annotations" / f"{kind}_{split}.json"
        unlabelled = self.file.with_name(f"image_info_{split}.json")
        if unlabelled.is_file() and not self.file.exists():
            self.file, self.labelled = unlabelled, False
        self.annotations = coco_file.parse(self.file, self.labelled)
        images, categories, annotations, problems = coco_file.check(self.file, self.folder, self.annotations, keypoints)
        if problems and not skip_bad:
            more = f" ({len(problems) - 1} more: maskrcnn-edu check-dataset lists them)" if len(problems) > 1 else ""
            raise InputError(problems[0].removesuffix(".") + more + ".")
        self.problems = problems

        self.keypoint_names, self.skeleton = [], []
        if keypoints and categories:
            category = next(iter(categories.values()))
            self.keypoint_names = category["keypoints"]
            self.skeleton = [[a - 1, b - 1] for a, b in category["skeleton"]]

        self.category_ids = [None, *sorted(categories)]
        self.class_names = ["background"] + [categories[c]["name"] for c in self.category_ids[1:]]
        self._classes = {category: k for k, category in enumerate(self.category_ids)}
        self._images = list(images.values())
        self._objects = {image_id: [] for image_id in images}
        for annotation in annotations.values():
            self._objects[annotation["image_id"]].append(annotation)

    def __len__(self):
        return len(self._images)

    def image_id(self, i):
        """The file's own id of image `i`."""
        return self._images[i]["id"]

    def path(self, i) -> Path:
        """Where image `i` lies."""
        return self.folder / self._images[i]["file_name"]

    def trains(self, i):
        objects = [entry for entry in self._objects[self.image_id(i)] if not entry["iscrowd"]]
        return any(entry["num_keypoints"] > 0 for entry in objects) if self.keypoint_names else bool(objects)

    def load_image(self, i):
        image, told = read_image(self.path(i), self.channels), self._images[i]
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

    def load_boxes(self, i):
        image, objects = self._images[i], self._objects[self.image_id(i)]
        x, y, width, height = np.array([a["bbox"] for a in objects], np.float32).reshape(-1, 4).T
        limit = np.float32([image["height"], image["width"]] * 2)
        return np.clip(np.stack([y, x, y + height, x + width], axis=1), 0, limit)

    def load_keypoints(self, i):
        shape = (-1, len(self.keypoint_names), 3)
        objects = self._objects[self.image_id(i)]
        return np.array([a["keypoints"] for a in objects], np.float32).reshape(shape)

    def annotations_of(self, i, size=None):
        """The file's own entries: its boxes and areas follow the polygons, not the pixels."""
        objects = self._objects[self.image_id(i)]
        return [{**entry, "category_id": self._classes[entry["category_id"]]} for entry in objects]

    def problems_of(self, i):
        """What is wrong with the picture of image `i` and with its segmentations: sentences, one by one."""
        height, width = self._images[i]["height"], self._images[i]["width"]
        attempts = [lambda: self.image(i)]
        attempts += [functools.partial(self._decode, a, height, width) for a in self._objects[self.image_id(i)]]
        for attempt in attempts:
            try:
                attempt()
            except InputError as error:
                yield str(error)

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

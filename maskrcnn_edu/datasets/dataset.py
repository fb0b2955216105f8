"""Dataset: pictures and their instances, to be subclassed; parts and sums of datasets."""

import abc
from typing import NamedTuple

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.masks import encode_rle


class Instances(NamedTuple):
    """The N objects of one image.

    Attributes:
        boxes: (N, 4) float32 y1, x1, y2, x2 in pixels of the image; tight around the masks, or the dataset's own.
        classes: (N,) int32, 1 .. C; negative for a crowd of that class.
        masks: (N, H, W) bool.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray


class KeypointInstances(NamedTuple):
    """The N objects of one image of a dataset with keypoints.

    Attributes:
        boxes, classes, masks: as in `Instances`.
        keypoints: (N, K, 3) float32 x, y, visibility as in COCO: pixel indices; 0 not labelled, 1 hidden, 2 seen.
    """

    boxes: np.ndarray
    classes: np.ndarray
    masks: np.ndarray
    keypoints: np.ndarray


class Dataset(abc.ABC):
    """Pictures with masks. A subclass gives `class_names`, `__len__`, `load_image` and `load_masks`:

        class Balloons(Dataset):
            class_names = ["background", "balloon"]

            def __init__(self, folder):
                self.files = sorted(Path(folder).glob("*.jpg"))

            def __len__(self):
                return len(self.files)

            def load_image(self, i):
                return read_image(self.files[i])

            def load_masks(self, i):
                masks = np.load(self.files[i].with_suffix(".npy"))  # (N, H, W) bool
                return masks, np.ones(len(masks), int)

    Datasets of the same objects add up: `Balloons("mine") + Balloons("yours")`. With `keypoint_names` and
    `load_keypoints` it has keypoints as well.
    """

    class_names: list  # "background" first: a class id is an index into this list
    keypoint_names: list = ()  # of K keypoints; left_NAME and right_NAME change places when an image is flipped
    category_ids: list = ()  # the id of each class in results files; by default its number
    labelled = True  # False: pictures alone, to detect on

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abc.abstractmethod
    def load_image(self, i) -> np.ndarray:
        """Image `i`, (H, W, C) uint8."""

    @abc.abstractmethod
    def load_masks(self, i) -> tuple:
        """Masks (N, H, W) bool and class ids (N,) int of image `i`.

        A negative class id marks a crowd, a mask over many objects: training ignores it, evaluation calls it iscrowd.
        """

    def load_boxes(self, i):
        """The dataset's own boxes of the objects of `load_masks(i)`: (N, 4) inside the image, with an area.

        None, as here: tight boxes around the masks are computed.
        """
        return None

    def load_keypoints(self, i) -> np.ndarray:
        """Keypoints (N, K, 3) x, y, visibility of the objects of `load_masks(i)`, in COCO's way: pixel indices.

        A subclass with `keypoint_names` gives it.
        """
        raise InputError(f"{type(self).__name__} has keypoint_names but no load_keypoints(i); write it.")

    def image_id(self, i):
        """The name of image `i` in results and messages; here `i` itself."""
        return i

    def trains(self, i) -> bool:
        """Whether training has a use for image `i`; asked of every image at the start, so without loading it. Yes."""
        return True

    def image(self, i) -> np.ndarray:
        """`load_image(i)`, checked: (H, W, C) uint8.

        Raises:
            InputError: the subclass returned something else.
        """
        image = np.asarray(self.load_image(i))
        if image.ndim != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise InputError(
                f"{self._name(i)}: load_image gives {image.dtype} of shape {image.shape}; "
                "give uint8 (height, width, channels)."
            )
        return image

    def instances(self, i, size=None) -> Instances:
        """`load_masks(i)`, checked, with its boxes; masks without a pixel are left out.

        A dataset with `keypoint_names` gives `KeypointInstances`.

        Args:
            size: (height, width) of the image, where the caller has it; otherwise the image is loaded to know.

        Raises:
            InputError: masks of another size than the image, class ids that `class_names` does not have, or keypoints
                that are not K an object.
        """
        height, width = size or self.image(i).shape[:2]
        masks, classes = (np.asarray(array) for array in self.load_masks(i))
        if len(masks) == len(classes) == 0:
            masks, classes = np.zeros((0, height, width), bool), np.zeros(0, int)
        self._check_masks(i, masks, (height, width))
        self._check_classes(i, classes, len(masks))
        boxes = boxes_from_masks(masks)
        visible = boxes[:, 2] > 0
        given = self.load_boxes(i)
        boxes = boxes if given is None else self._checked_boxes(i, given, len(masks), (height, width))
        if not visible.all():
            boxes, masks, classes = boxes[visible], masks[visible], classes[visible]
        found = Instances(boxes, classes.astype(np.int32), masks)
        if not len(self.keypoint_names):
            return found
        return KeypointInstances(*found, self._keypoints(i, len(visible))[visible])

    def _checked_boxes(self, i, boxes, count, size):
        boxes = np.asarray(boxes, np.float32)
        if boxes.shape != (count, 4):
            raise InputError(f"{self._name(i)}: load_boxes gives shape {boxes.shape}; give {(count, 4)}, one a mask.")
        inside = (boxes[:, :2] >= 0) & (boxes[:, 2:] <= size) & (boxes[:, :2] < boxes[:, 2:])
        if not inside.all():
            wrong = boxes[~inside.all(1)][0].tolist()
            raise InputError(
                f"{self._name(i)}: load_boxes gives y1, x1, y2, x2 {wrong}; give boxes with an area inside the image "
                f"of {size[0]} x {size[1]} pixels."
            )
        return boxes

    def _keypoints(self, i, count):
        keypoints = np.asarray(self.load_keypoints(i), np.float32)
        shape = (count, len(self.keypoint_names), 3)
        if keypoints.shape != shape or not np.isfinite(keypoints).all():
            raise InputError(
                f"{self._name(i)}: load_keypoints gives shape {keypoints.shape}; give {shape}, finite numbers."
            )
        return keypoints

    def annotations_of(self, i, size=None) -> list:
        """The objects of image `i` as COCO's annotation entries, with our class number as `category_id`.

        Evaluation compares with these: bbox x y width height, area, iscrowd and the mask as RLE.
        """
        from pycocotools import mask as rle

        found = self.instances(i, size)
        boxes, classes, masks = found[:3]
        entries = []
        for (y1, x1, y2, x2), label, runs in zip(boxes.tolist(), classes.tolist(), encode_rle(masks), strict=True):
            entries.append(
                {
                    "category_id": abs(label),
                    "iscrowd": int(label < 0),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(rle.area(runs)),
                    "segmentation": runs,
                }
            )
        if len(self.keypoint_names):
            for entry, points in zip(entries, found.keypoints, strict=True):
                entry["keypoints"] = points.ravel().tolist()
                entry["num_keypoints"] = int(np.count_nonzero(points[:, 2]))
        return entries

    def _check_masks(self, i, masks, size):
        if masks.shape[1:] != size:
            raise InputError(
                f"{self._name(i)}: load_masks gives masks of shape {masks.shape} for an image of {size[0]} x {size[1]} "
                f"pixels; give (N, {size[0]}, {size[1]})."
            )
        if masks.dtype != bool:
            raise InputError(f"{self._name(i)}: load_masks gives masks of {masks.dtype}; give bool, such as masks > 0.")

    def _check_classes(self, i, classes, count):
        check_class_names(type(self).__name__, self.class_names)
        if classes.shape != (count,) or not np.issubdtype(classes.dtype, np.integer):
            raise InputError(
                f"{self._name(i)}: load_masks gives class ids of {classes.dtype} and shape {classes.shape} "
                f"for {count} masks; give one whole number a mask."
            )
        unknown = classes[(classes == 0) | (abs(classes) >= len(self.class_names))]
        if len(unknown):
            raise InputError(
                f"{self._name(i)}: class id {unknown[0]} is unknown; "
                f"class_names allows 1 to {len(self.class_names) - 1}, negative for a crowd."
            )

    def _name(self, i):
        return f"{type(self).__name__} image {i} (id {self.image_id(i)})"

    def __add__(self, other) -> "ConcatenatedDataset":
        return ConcatenatedDataset([self, other])


class Subset(Dataset):
    """Some images of a dataset, in the order of `indices`.

    Raises:
        InputError: an index that the dataset does not have.
    """

    def __init__(self, dataset, indices):
        self.dataset = dataset
        self.indices = [int(i) for i in indices]
        self.class_names, self.keypoint_names = dataset.class_names, dataset.keypoint_names
        self.category_ids, self.labelled = dataset.category_ids, dataset.labelled
        outside = [i for i in self.indices if not 0 <= i < len(dataset)]
        if outside:
            raise InputError(f"Subset: index {outside[0]} is not one of the dataset's {len(dataset)} images; drop it.")

    def __len__(self):
        return len(self.indices)

    def load_image(self, i):
        return self.dataset.image(self.indices[i])

    def load_masks(self, i):
        return self.dataset.load_masks(self.indices[i])

    def load_boxes(self, i):
        return self.dataset.load_boxes(self.indices[i])

    def load_keypoints(self, i):
        return self.dataset.load_keypoints(self.indices[i])

    def instances(self, i, size=None):
        return self.dataset.instances(self.indices[i], size)

    def trains(self, i):
        return self.dataset.trains(self.indices[i])

    def annotations_of(self, i, size=None):
        return self.dataset.annotations_of(self.indices[i], size)

    def image_id(self, i):
        return self.dataset.image_id(self.indices[i])


class ConcatenatedDataset(Dataset):
    """Several datasets one after the other. Classes of the same name become one class.

    Image ids stay what they were, unless two images share one: then an image's id is its position.

    Raises:
        InputError: no dataset, one whose classes do not start with "background", or different keypoints.
    """

    def __init__(self, datasets):
        self.datasets = list(datasets)
        if not self.datasets:
            raise InputError("ConcatenatedDataset: the list of datasets is empty; give at least one.")
        for dataset in self.datasets:
            check_class_names(type(dataset).__name__, dataset.class_names)
        self.class_names = list(dict.fromkeys(name for dataset in self.datasets for name in dataset.class_names))
        self.keypoint_names = self.datasets[0].keypoint_names
        if any(list(dataset.keypoint_names) != list(self.keypoint_names) for dataset in self.datasets):
            raise InputError("ConcatenatedDataset: keypoint_names differ; give datasets with the same keypoints.")
        self._new_ids = [np.array([self.class_names.index(n) for n in d.class_names], np.int32) for d in self.datasets]
        self._ends = np.cumsum([len(dataset) for dataset in self.datasets])
        ids = [dataset.image_id(j) for dataset in self.datasets for j in range(len(dataset))]
        self._image_ids = ids if len(set(ids)) == len(ids) else list(range(len(ids)))

    def __len__(self):
        return int(self._ends[-1])

    def load_image(self, i):
        which, j = self._find(i)
        return self.datasets[which].image(j)

    def load_masks(self, i):
        found = self.instances(i)
        return found.masks, found.classes

    def load_boxes(self, i):
        return self.instances(i).boxes

    def load_keypoints(self, i):
        return self.instances(i).keypoints

    def instances(self, i, size=None):
        which, j = self._find(i)
        found = self.datasets[which].instances(j, size)
        return found._replace(classes=np.sign(found.classes) * self._new_ids[which][abs(found.classes)])

    def trains(self, i):
        which, j = self._find(i)
        return self.datasets[which].trains(j)

    def annotations_of(self, i, size=None):
        which, j = self._find(i)
        entries = self.datasets[which].annotations_of(j, size)
        return [{**entry, "category_id": int(self._new_ids[which][entry["category_id"]])} for entry in entries]

    def image_id(self, i):
        return self._image_ids[i]

    def _find(self, i):
        """Which dataset image `i` is in, and its index there."""
        i = range(len(self))[i]
        which = int(np.searchsorted(self._ends, i, side="right"))
        return which, int(i - self._ends[which] + len(self.datasets[which]))


def check_class_names(owner, names):
    """`names` start with "background" and no name comes twice, or an InputError that starts with `owner`."""
    if not names or names[0] != "background":
        raise InputError(f'{owner}: class_names is {names!r}; put "background" first.')
    if len(set(names)) < len(names):
        raise InputError(f"{owner}: class_names {names!r} has a name twice; give every class its own.")


def boxes_from_masks(masks) -> np.ndarray:
    """The tight box of each mask (N, H, W): (N, 4) float32 y1, x1, y2, x2; zeros for a mask without a pixel."""
    height, width = masks.shape[1:]
    rows, columns = masks.any(2), masks.any(1)
    boxes = np.stack(
        [
            rows.argmax(1),
            columns.argmax(1),
            height - rows[:, ::-1].argmax(1),
            width - columns[:, ::-1].argmax(1),
        ],
        axis=1,
    )
    return np.where(rows.any(1)[:, None], boxes, 0).astype(np.float32)

"""Evaluation: COCO's average precision of boxes, masks and keypoints, computed by pycocotools."""

import contextlib
import io

import numpy as np

from maskrcnn_edu.datasets.coco_classes import is_unused
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.masks import encode_rle

# pycocotools' twelve numbers in its order: precision at IoU .50:.95, .50, .75, of small, medium and large objects, then
# recall with 1, 10 and 100 detections an image, and of small, medium and large objects.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
OKS_KEYPOINTS = 17
# Its ten numbers of keypoints, where object keypoint similarity stands for IoU: 20 detections, no small objects.
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")


def evaluate(model, dataset, limit=None, batch_size=1, per_class=False, progress=None):
    """Detects on a dataset and scores the detections: {"bbox": {...}, "segm": {...}}, each with the twelve METRICS.

    A model with a keypoint head is scored on "keypoints" too, with the ten KEYPOINT_METRICS. For them the area of
    a detection is the extent of its keypoints, as for results in COCO's keypoint format, which have no boxes.

    Args:
        model: a MaskRCNN; without a mask head there is no "segm".
        dataset: a Dataset with the model's classes, known by their names, in any order. Crowds count as COCO's
            iscrowd: matching one is no mistake.
        limit: only the first so many images.
        batch_size: images run together.
        per_class: adds {"per_class": {"bbox": {class name: AP}, "segm": ...}}.
        progress: called with the number of images done, if given.

    Numbers are between 0 and 1; -1 where there is nothing to measure, as pycocotools has it.

    Raises:
        InputError: the dataset has no images, or other classes than the model, or no keypoints where the model has.
    """
    numbers = class_numbers(model, dataset)
    kinds = ["bbox"] + ["segm"] * bool(model.mask_head) + ["keypoints"] * bool(getattr(model, "keypoint_head", None))
    offset = 0.0
    if "keypoints" in kinds:
        _check_keypoints(model, dataset)
        offset = model.config.keypoint_offset
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count < 1:
        raise InputError(f"{type(dataset).__name__} has no images to evaluate; give at least one.")
    images, truth, results = [], [], []
    for start in range(0, count, batch_size):
        positions = range(start, min(start + batch_size, count))
        photographs = [dataset.image(i) for i in positions]
        for i, photograph, found in zip(positions, photographs, model.detect(photographs, batch_size), strict=True):
            height, width = photograph.shape[:2]
            images.append({"id": i, "height": height, "width": width})
            truth += [{**entry, "image_id": i} for entry in dataset.annotations_of(i, (height, width))]
            results += [entry for entry in as_coco(found, i, numbers, offset) if entry["category_id"]]
        if progress:
            progress(len(images))
    return _score(images, truth, results, dataset.class_names, kinds, per_class)


def _check_keypoints(model, dataset):
    """COCO's similarity of keypoints is defined for its 17 of a person; or InputError."""
    given, wanted = len(dataset.keypoint_names), model.config.keypoints
    if given != wanted or wanted != OKS_KEYPOINTS:
        raise InputError(
            f"{type(dataset).__name__} has {given} keypoints and the model {wanted}; keypoints are evaluated on COCO's "
            f"{OKS_KEYPOINTS} of a person: CocoDataset(..., keypoints=True), or --keypoints."
        )


def check_classes(model, dataset, source="The model"):
    """Raises InputError, which names the `source` of the model, unless it was made for the dataset's classes."""
    if len(model.class_names) != len(dataset.class_names):
        raise InputError(
            f"{source} knows {len(model.class_names)} classes and {type(dataset).__name__} has "
            f"{len(dataset.class_names)}, background included; use a model trained on these classes."
        )


def class_numbers(model, dataset, source="The model"):
    """The dataset's number of each of the model's classes, by name; 0 for torchvision's unused ones.

    A model whose classes were never named ("class 1", ...) has the dataset's. Raises InputError, which names the
    `source` of the model, if it was made for other classes.
    """
    if model.class_names[1:] == [f"class {i}" for i in range(1, len(model.class_names))]:
        check_classes(model, dataset, source)
        return list(range(len(dataset.class_names)))
    used = [name for name in model.class_names if not is_unused(name) or name in dataset.class_names]
    lacking = [name for name in dataset.class_names if name not in used]
    if lacking or len(used) != len(dataset.class_names):
        raise InputError(
            f"{source} knows {len(used)} classes and {type(dataset).__name__} has {len(dataset.class_names)}, "
            f"background included{_without(lacking)}; use a model trained on these classes."
        )
    numbers = {name: number for number, name in enumerate(dataset.class_names)}
    return [numbers.get(name, 0) for name in model.class_names]


def _without(lacking):
    return f", among them {', '.join(lacking)}, which it does not know" if lacking else ""


def as_coco(detections, image_id, category_ids=None, keypoint_offset=0.5):
    """Detections as COCO's result entries: a list of dicts with image_id, category_id, bbox x y w h, score, and a mask
    as RLE and keypoints where the model gives them.

    keypoint_offset: Config.keypoint_offset, what COCO's pixel indices lack to the places in the detections.
    category_ids: the dataset's id of each class (index 0 is background); by default the class number itself.
    """
    corners = np.asarray(detections.boxes, np.float64)
    sides = corners[:, 2:] - corners[:, :2]
    entries = []
    for i in range(len(detections)):
        label = int(detections.classes[i])
        entry = {
            "image_id": image_id,
            "category_id": label if category_ids is None else category_ids[label],
            "bbox": [float(v) for v in (corners[i, 1], corners[i, 0], sides[i, 1], sides[i, 0])],
            "score": float(detections.scores[i]),
        }
        if detections.masks is not None:
            (entry["segmentation"],) = encode_rle(detections.masks[i : i + 1])
        if detections.keypoints is not None:
            entry["keypoints"] = (detections.keypoints[i] - np.float32([keypoint_offset] * 2 + [0])).ravel().tolist()
        entries.append(entry)
    return entries


def _score(images, truth, results, class_names, kinds, per_class):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = [{**entry, "id": number} for number, entry in enumerate(truth, start=1)]  # id 0 means "unmatched" there
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names) if i]
    scores, by_class = {}, {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        reference, found = COCO(), COCO()
        reference.dataset = {"images": images, "annotations": truth, "categories": categories}
        reference.createIndex()
        for kind in kinds:
            found.dataset = {"images": images, "annotations": _sized(results, kind), "categories": categories}
            found.createIndex()
            run = COCOeval(reference, found, kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            names = KEYPOINT_METRICS if kind == "keypoints" else METRICS
            scores[kind] = dict(zip(names, map(float, run.stats), strict=True))
            by_class[kind] = _class_precision(run, class_names)
    return {**scores, "per_class": by_class} if per_class else scores


def _sized(results, kind):
    """Result entries with the area that decides whether a detection is small, medium or large, by its kind."""
    from pycocotools import mask as coco_mask

    sized = []
    for number, entry in enumerate(results, start=1):
        if kind == "keypoints":
            area = float(np.ptp(entry["keypoints"][0::3]) * np.ptp(entry["keypoints"][1::3]))
        elif kind == "bbox":
            area = entry["bbox"][2] * entry["bbox"][3]
        else:
            area = float(coco_mask.area(entry["segmentation"]))
        sized.append({**entry, "id": number, "iscrowd": 0, "area": area})
    return sized


def _class_precision(run, class_names):
    """AP (.50:.95, all sizes, 100 detections) of each class; -1 for a class without objects."""
    precision = run.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class)
    names = class_names[1:]
    return {
        name: float(values[values > -1].mean()) if (values > -1).any() else -1.0
        for name, values in zip(names, np.moveaxis(precision, -1, 0), strict=True)
    }

"""Evaluation: COCO's average precision of boxes and masks, computed by pycocotools."""

import contextlib
import io

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.masks import encode_rle

# pycocotools' twelve numbers in its order: precision at IoU .50:.95, .50, .75, of small, medium and large objects, then
# recall with 1, 10 and 100 detections an image, and of small, medium and large objects.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def evaluate(model, dataset, limit=None, batch_size=1, per_class=False, progress=None):
    """Detects on a dataset and scores the detections: {"bbox": {...}, "segm": {...}}, each with the twelve METRICS.

    Args:
        model: a MaskRCNN; without a mask head there is no "segm".
        dataset: a Dataset with the model's classes. Crowds count as COCO's iscrowd: matching one is no mistake.
        limit: only the first so many images.
        batch_size: images run together.
        per_class: adds {"per_class": {"bbox": {class name: AP}, "segm": ...}}.
        progress: called with the number of images done, if given.

    Numbers are between 0 and 1; -1 where there is nothing to measure, as pycocotools has it.

    Raises:
        InputError: the dataset has no images, or other classes than the model.
    """
    check_classes(model, dataset)
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
            results += as_coco(found, i)
        if progress:
            progress(len(images))
    return _score(images, truth, results, dataset.class_names, bool(model.mask_head), per_class)


def check_classes(model, dataset, source="The model"):
    """Raises InputError, which names the `source` of the model, unless it was made for the dataset's classes."""
    if len(model.class_names) != len(dataset.class_names):
        raise InputError(
            f"{source} knows {len(model.class_names)} classes and {type(dataset).__name__} has "
            f"{len(dataset.class_names)}, background included; use a model trained on these classes."
        )


def as_coco(detections, image_id, category_ids=None):
    """Detections as COCO's result entries: a list of dicts with image_id, category_id, bbox x y w h, score, RLE mask.

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
        entries.append(entry)
    return entries


def _score(images, truth, results, class_names, with_masks, per_class):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth = [{**entry, "id": number} for number, entry in enumerate(truth, start=1)]  # id 0 means "unmatched" there
    categories = [{"id": i, "name": name} for i, name in enumerate(class_names) if i]
    scores, by_class = {}, {}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        reference, found = COCO(), COCO()
        reference.dataset = {"images": images, "annotations": truth, "categories": categories}
        reference.createIndex()
        for kind in ("bbox", "segm") if with_masks else ("bbox",):
            found.dataset = {"images": images, "annotations": _sized(results, kind), "categories": categories}
            found.createIndex()
            run = COCOeval(reference, found, kind)
            run.evaluate()
            run.accumulate()
            run.summarize()
            scores[kind] = dict(zip(METRICS, map(float, run.stats), strict=True))
            by_class[kind] = _class_precision(run, class_names)
    return {**scores, "per_class": by_class} if per_class else scores


def _sized(results, kind):
    """Result entries with the area that decides whether a detection is small, medium or large."""
    from pycocotools import mask as coco_mask

    sized = []
    for number, entry in enumerate(results, start=1):
        area = entry["bbox"][2] * entry["bbox"][3] if kind == "bbox" else float(coco_mask.area(entry["segmentation"]))
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

"""Boxes of many images in one table, and what pycocotools says about them at one IoU threshold."""

import contextlib
import io

import numpy as np

from maskrcnn_edu.errors import InputError
from maskrcnn_edu.widgets.base import checked_boxes, checked_classes, checked_scores

PER_IMAGE = 100  # detections of a class on an image, as COCO counts


def rows_of(images, name):
    """Boxes of all images as rows (N, 7) float32: image, class, score (detections) or crowd (truth), and the box.

    Detections are best first within an image and class, the best PER_IMAGE of each. name: detections or truth.
    Raises InputError: an entry without boxes or classes, arrays that do not match.
    """
    rows = [np.zeros((0, 7), np.float32)]
    for i, of_image in enumerate(images):
        missing = [field for field in ("boxes", "classes") if not hasattr(of_image, field)]
        if missing:
            raise InputError(
                f"{name}[{i}] is a {type(of_image).__name__} without {missing[0]}; give Detections or Instances."
            )
        boxes = checked_boxes(of_image.boxes, f"{name}[{i}].boxes")
        classes = checked_classes(of_image.classes, len(boxes), f"{name}[{i}].classes")
        if name == "detections":
            third = checked_scores(of_image.scores, len(boxes), f"{name}[{i}].scores")
        else:
            third = classes < 0
        table = np.column_stack([np.full(len(boxes), i), abs(classes), third, boxes]).astype(np.float32)
        if name == "detections":
            table = table[np.argsort(-table[:, 2], kind="stable")]
            table = np.concatenate([rows[0], *(table[table[:, 1] == c][:PER_IMAGE] for c in np.unique(table[:, 1]))])
        rows.append(table)
    return np.ascontiguousarray(np.concatenate(rows))


def evaluated(found, objects, images, classes, iou_threshold):
    """pycocotools' answer at one IoU threshold, of detections and objects in rows, see `rows_of`.

    -> for each detection (N,) 1 if it hits an object, 0 if none, -1 if it lies on a crowd; AP by class (classes,), -1
    without objects. images, classes: how many there are; class 0 is background.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    matches, ap = np.zeros(len(found), int), np.full(classes, -1.0)
    if not len(objects):
        return matches, ap
    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = (COCO() for _ in range(2))
        frame = {
            "images": [{"id": i} for i in range(images)],
            "categories": [{"id": i} for i in range(1, classes)],
        }
        truth.dataset = {**frame, "annotations": _annotations(objects, crowd=True)}
        results.dataset = {**frame, "annotations": _annotations(found, crowd=False)}
        for part in (truth, results):
            part.createIndex()
        run = COCOeval(truth, results, "bbox")
        run.params.iouThrs, run.params.maxDets = np.array([iou_threshold]), [PER_IMAGE]
        run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
        run.evaluate()
        run.accumulate()
    for entry in filter(None, run.evalImgs):
        of = np.array(entry["dtIds"], int) - 1
        matches[of] = np.where(entry["dtIgnore"][0], -1, entry["dtMatches"][0] > 0)
    for number, values in enumerate(np.moveaxis(run.eval["precision"][0, :, :, 0, 0], -1, 0), start=1):
        if (values > -1).any():
            ap[number] = values.mean()
    return matches, ap


def _annotations(rows, crowd):
    """COCO's entries for rows, of objects (crowd) or of detections."""
    return [
        {
            "id": number, "image_id": int(row[0]), "category_id": int(row[1]), "bbox": [x1, y1, x2 - x1, y2 - y1],
            "area": (x2 - x1) * (y2 - y1), **({"iscrowd": int(row[2])} if crowd else {"score": row[2], "iscrowd": 0}),
        }
        for number, row in enumerate(rows.tolist(), start=1)
        for y1, x1, y2, x2 in [row[3:]]
    ]  # fmt: skip

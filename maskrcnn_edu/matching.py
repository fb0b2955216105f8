"""Which detection is a hit: COCO's matching of detections with objects, on one image."""

import numpy as np

from maskrcnn_edu.errors import InputError

FALSE_ALARM, ON_CROWD = -1, -2


def overlaps(truth, found, kind="boxes"):
    """IoU of each detection with each object, by pycocotools: (D, G).

    truth: a dataset's instances. found: `Detections`. kind: "boxes" or "masks". For a crowd, a negative class, it is
    the share of the detection that lies on it, which is COCO's rule.

    Raises:
        InputError: an unknown kind, or masks that are missing or of different sizes.
    """
    from pycocotools import mask as coco_mask

    from maskrcnn_edu.masks import encode_rle

    crowd = [int(label < 0) for label in truth.classes]
    if not len(found.boxes) or not len(truth.boxes):
        return np.zeros((len(found.boxes), len(truth.boxes)))
    if kind == "boxes":
        return np.nan_to_num(coco_mask.iou(_corner_and_sides(found), _corner_and_sides(truth), crowd))
    if kind != "masks":
        raise InputError(f"kind is {kind!r}; choose boxes or masks.")
    ours, theirs = getattr(found, "masks", None), getattr(truth, "masks", None)
    if ours is None or theirs is None or np.shape(ours)[1:] != np.shape(theirs)[1:]:
        raise InputError("Detections and ground truth need masks of the same size; give both, or kind boxes.")
    return coco_mask.iou(encode_rle(ours), encode_rle(theirs), crowd)


def match_detections(iou, truth_classes, classes, scores, iou_threshold=0.5):
    """COCO's greedy matching: from the best score down, a detection takes the free object that it overlaps most.

    iou (D, G) as `overlaps` gives it, truth_classes (G,), classes (D,), scores (D,) -> (D,) int: the object that each
    detection hits, FALSE_ALARM if there is none of its class from `iou_threshold` on, ON_CROWD if only a crowd is
    there, which counts neither way.
    """
    iou, truth_classes, classes = np.asarray(iou), np.asarray(truth_classes), np.asarray(classes)
    hits, free = np.full(len(classes), FALSE_ALARM), truth_classes > 0
    for d in np.argsort(-np.asarray(scores, np.float64), kind="stable"):  # NaN comes last
        fits = np.where(free & (truth_classes == classes[d]), iou[d], 0.0)
        if fits.max(initial=0) >= iou_threshold:
            hits[d] = fits.argmax()
            free[hits[d]] = False
        elif np.where(truth_classes == -classes[d], iou[d], 0.0).max(initial=0) >= iou_threshold:
            hits[d] = ON_CROWD
    return hits


def _corner_and_sides(objects):
    """Boxes as pycocotools takes them, (N, 4) x y width height; it reads memory row by row, whatever the strides."""
    y1, x1, y2, x2 = np.asarray(objects.boxes, np.float64).T
    return np.ascontiguousarray(np.stack([x1, y1, x2 - x1, y2 - y1], axis=1))

"""COCO's average precision in little memory: pycocotools matches each image as it comes and sums up at the end.

Its own `evaluate` keeps all detections and a dict for each image, class and size of object: gigabytes for COCO. The
numbers are the same; tests compare them.
"""

import contextlib
import copy
import io
import sys
from collections import defaultdict

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskrcnn_edu.evaluation import KEYPOINT_METRICS, METRICS

# A matched detection. rank: its place among those of its image and class; matched, ignored: one bit for each of
# pycocotools' (size of objects, threshold) pairs.
MATCHED = np.dtype([("class", "i4"), ("rank", "i4"), ("score", "f8"), ("matched", "u8"), ("ignored", "u8")])


class AveragePrecision:
    """The average precision of one kind of answer, image by image: 32 bytes are kept of each detection.

    Args:
        kind: bbox | segm | keypoints.
        class_names: background first; entries have these numbers as category_id.
    """

    def __init__(self, kind, class_names):
        self.kind, self.names = kind, class_names[1:]
        self.run = COCOeval(iouType=kind)
        self.limits, self.sizes = list(self.run.params.maxDets), self.run.params.areaRng
        self.found, self.objects = {}, np.zeros((len(class_names), len(self.sizes)), int)

    def match(self, truth, entries, size):
        """The detections of one image matched with its objects: what `add` takes. Any thread may do this.

        truth: COCO's annotation entries; entries: its result entries; size: (height, width).
        """
        run = COCOeval(iouType=self.kind)
        image = COCO()  # knows the size, for polygons
        image.imgs = {0: {"height": size[0], "width": size[1]}}
        run._gts, run._dts = defaultdict(list), defaultdict(list)
        for number, entry in enumerate(truth, start=1):  # id 0 means "unmatched" there
            ignore = entry["iscrowd"] or (self.kind == "keypoints" and entry["num_keypoints"] == 0)
            entry = {**entry, "id": number, "image_id": 0, "ignore": ignore}
            if self.kind == "segm":
                entry["segmentation"] = image.annToRLE(entry)
            run._gts[0, entry["category_id"]].append(entry)
        for number, entry in enumerate(entries, start=1):
            run._dts[0, entry["category_id"]].append({**entry, "id": number, "area": self._area(entry)})
        overlap = run.computeOks if self.kind == "keypoints" else run.computeIoU
        found, objects = [np.zeros(0, MATCHED)], np.zeros_like(self.objects)
        for label in sorted({label for _, label in (*run._gts, *run._dts)}):
            run.ious = {(0, label): overlap(0, label)}
            parts = [run.evaluateImg(0, label, area, self.limits[-1]) for area in self.sizes]
            of_class = np.zeros(len(parts[0]["dtScores"]), MATCHED)
            of_class["class"], of_class["rank"] = label, np.arange(len(of_class))
            of_class["score"] = parts[0]["dtScores"]
            of_class["matched"] = _packed([part["dtMatches"] > 0 for part in parts])
            of_class["ignored"] = _packed([part["dtIgnore"] for part in parts])
            found.append(of_class)
            objects[label] = [np.count_nonzero(part["gtIgnore"] == 0) for part in parts]
        return np.concatenate(found), objects

    def _area(self, entry):
        """What decides whether a detection is small, medium or large, as COCO's server has it for each kind."""
        if self.kind == "keypoints":
            return float(np.ptp(entry["keypoints"][0::3]) * np.ptp(entry["keypoints"][1::3]))
        if self.kind == "bbox":
            return entry["bbox"][2] * entry["bbox"][3]
        return float(coco_mask.area(entry["segmentation"]))

    def add(self, image_id, matched):
        """Takes what `match` gave for an image."""
        found, objects = matched
        self.found[image_id] = found
        self.objects += objects

    def compute(self):
        """Sums up; the methods below give the numbers."""
        # Of equal scores the first counts first, in pycocotools by image id.
        order = sorted(self.found, key=lambda image_id: (type(image_id).__name__, image_id))
        found = np.concatenate([self.found[image_id] for image_id in order])
        of_class = [found[found["class"] == label] for label in range(len(self.objects))]
        run, parts = self.run, []
        run.params.catIds, run.params.imgIds = list(range(1, len(self.objects))), [0]
        run.params.maxDets = [sys.maxsize]  # who counts is decided here, by rank: all images are one to it
        run._paramsEval = copy.deepcopy(run.params)
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            for limit in self.limits:
                run.evalImgs = [
                    self._one_image(of_class[label][of_class[label]["rank"] < limit], label, size)
                    for label in run.params.catIds
                    for size in range(len(self.sizes))
                ]
                run.accumulate()
                parts.append(run.eval)
            run.eval = {name: np.concatenate([part[name] for part in parts], -1) for name in ("precision", "recall")}
            run.params.maxDets = self.limits
            run.summarize()
        self.scores = parts[-1]["scores"][:, :, :, 0, 0]

    def _one_image(self, found, label, size):
        """The detections of a class as pycocotools has those of one image."""
        thresholds = len(self.run.params.iouThrs)
        bits = slice(size * thresholds, (size + 1) * thresholds)
        return {
            "dtScores": found["score"],
            "dtMatches": _unpacked(found["matched"], bits),
            "dtIgnore": _unpacked(found["ignored"], bits),
            "gtIgnore": np.zeros(self.objects[label, size]),
        }

    def metrics(self):
        """METRICS or KEYPOINT_METRICS by name."""
        names = KEYPOINT_METRICS if self.kind == "keypoints" else METRICS
        return dict(zip(names, map(float, self.run.stats), strict=True))

    def by_class(self):
        """{class name: {"AP", "AP50", "AP75", "APs", "APm", "APl"}}, -1 for a class without objects."""
        precision = self.run.eval["precision"][..., -1]  # (IoU, recall, class, size)
        table = {"AP": precision[:, :, :, 0], "AP50": precision[:1, :, :, 0], "AP75": precision[5:6, :, :, 0]}
        sizes = enumerate(self.run.params.areaRngLbl)
        table |= {f"AP{label[0]}": precision[:, :, :, i] for i, label in sizes if label != "all"}
        return {
            name: {metric: _mean(values[:, :, k]) for metric, values in table.items()}
            for k, name in enumerate(self.names)
        }

    def curves(self):
        """Precision over recall: see `evaluate`."""
        params = self.run.params
        return {
            "recall": np.array(params.recThrs),
            "precision": self.run.eval["precision"][:, :, :, 0, -1],
            "scores": self.scores,
            "iou": np.array(params.iouThrs),
            "classes": list(self.names),
        }


def _mean(values):
    return float(values[values > -1].mean()) if (values > -1).any() else -1.0


def _packed(parts):
    """Lists of (T, N) bool as the bits of (N,) whole numbers."""
    bits = np.concatenate(parts).astype(np.uint64)
    return bits.T @ (np.uint64(1) << np.arange(len(bits), dtype=np.uint64))


def _unpacked(numbers, bits):
    """(N,) whole numbers -> (T, N) bool, the T of a slice of bits."""
    return (numbers >> np.arange(bits.start, bits.stop, dtype=np.uint64)[:, None]) & np.uint64(1) > 0

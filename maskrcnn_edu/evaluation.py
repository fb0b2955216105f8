"""Evaluation: detects on a dataset and has the detections scored; COCO's results files."""

import contextlib
import json
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from maskrcnn_edu.datasets.coco_classes import is_unused
from maskrcnn_edu.detections import padded_size
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.masks import encode_rle

# pycocotools' twelve numbers in its order: precision at IoU .50:.95, .50, .75, of small, medium and large objects, then
# recall with 1, 10 and 100 detections an image, and of small, medium and large objects.
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
# Its ten numbers of keypoints, where object keypoint similarity stands for IoU: 20 detections, no small objects.
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
OKS_KEYPOINTS = 17
RESULT_FIELDS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # of COCO's results, by kind
HELD_BATCHES = 8  # photographs that wait for others of their padded size, in batches


def evaluate(model, dataset, limit=None, batch_size=1, per_class=False, progress=None, results=None, curves=False):
    """Detects on a dataset and scores the detections: {"bbox": {...}, "segm": {...}}, each with the twelve METRICS.

    A model with a keypoint head is scored on "keypoints" too, with the ten KEYPOINT_METRICS. For them the area of
    a detection is the extent of its keypoints, as for results in COCO's keypoint format, which have no boxes.

    Args:
        model: a MaskRCNN; without a mask head there is no "segm".
        dataset: a Dataset with the model's classes, known by their names, in any order. Crowds count as COCO's
            iscrowd: matching one is no mistake. One that is not `labelled` is detected on, but not scored: {}.
        limit: only the first so many images.
        batch_size: images run together, those of one padded size.
        per_class: adds {"per_class": {"bbox": {class name: AP}, "segm": ...}} and the same by size of object,
            {"per_class_sizes": {"bbox": {class name: {"AP", "AP50", "AP75", "APs", "APm", "APl"}}, "segm": ...}}.
        progress: called with the number of images done, if given.
        results: a folder for bbox.json, segm.json and keypoints.json, the detections in COCO's results format with the
            dataset's own ids. pycocotools on such a file gives the numbers that are returned here.
        curves: adds {"curves": {"bbox": {...}, "segm": ...}}: recall (101,), precision (T, 101, C) at each of these
            recalls, scores (T, 101, C) where it is reached, iou (T,) thresholds and the names of the C classes. -1
            where a class has no objects.

    Numbers are between 0 and 1; -1 where there is nothing to measure, as pycocotools has it.

    Raises:
        InputError: the dataset has no images, or other classes than the model, or no keypoints where the model has, or
            an image that cannot be read. No results file is written then.
    """
    from maskrcnn_edu.average_precision import AveragePrecision

    numbers = class_numbers(model, dataset)
    kinds = ["bbox"] + ["segm"] * bool(model.mask_head) + ["keypoints"] * bool(getattr(model, "keypoint_head", None))
    offset = 0.0
    if "keypoints" in kinds:
        _check_keypoints(model, dataset)
        offset = model.config.keypoint_offset
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if count < 1:
        raise InputError(f"{type(dataset).__name__} has no images to evaluate; give at least one.")
    if not dataset.labelled and results is None:
        raise InputError(f"{type(dataset).__name__} has no annotations to compare with; ask for results files alone.")
    measures = [AveragePrecision(kind, dataset.class_names) for kind in kinds if dataset.labelled]

    def encode(i, finish, size):
        entries = [entry for entry in as_coco(finish(), i, numbers, offset) if entry["category_id"]]
        truth = dataset.annotations_of(i, size) if measures else []
        return entries, [measure.match(truth, entries, size) for measure in measures]

    with _results_files(results, kinds, dataset) as write:
        for done, (i, (entries, matched)) in enumerate(_overlapped(model, dataset, count, batch_size, encode), start=1):
            write(i, entries)
            for measure, of_image in zip(measures, matched, strict=True):
                measure.add(dataset.image_id(i), of_image)
            if progress:
                progress(done)
    for measure in measures:
        measure.compute()
    scores = {measure.kind: measure.metrics() for measure in measures}
    if per_class:
        by_size = {measure.kind: measure.by_class() for measure in measures}
        by_class = {kind: {name: row["AP"] for name, row in rows.items()} for kind, rows in by_size.items()}
        scores |= {"per_class": by_class, "per_class_sizes": by_size}
    if curves:
        scores["curves"] = {measure.kind: measure.curves() for measure in measures}
    return scores


def _overlapped(model, dataset, count, batch_size, encode):
    """Yields (i, encode(i, finish, size)) for the images, in the order in which they are run.

    While the network looks at a batch, one thread reads the next photographs and another encodes the last detections.
    Little waits anywhere, so memory is bounded.
    """
    waiting = deque()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as encoder:
        batches = _batches(model, dataset, count, batch_size)
        upcoming = reader.submit(next, batches, None)
        while batch := upcoming.result():
            upcoming = reader.submit(next, batches, None)
            positions, photographs = zip(*batch, strict=True)
            unfinished = model.detect_later(list(photographs), batch_size)
            for i, photograph, finish in zip(positions, photographs, unfinished, strict=True):
                waiting.append((i, encoder.submit(encode, i, finish, photograph.shape[:2])))
            while len(waiting) > batch_size:
                i, encoded = waiting.popleft()
                yield i, encoded.result()
        for i, encoded in waiting:
            yield i, encoded.result()


def _batches(model, dataset, count, batch_size):
    """Yields lists of (i, photograph) that share a padded size: the network runs them together."""
    groups = {}
    for i in range(count):
        photograph = dataset.image(i)
        size = padded_size(photograph, model.config) if batch_size > 1 else None
        group = groups.setdefault(size, [])
        group.append((i, photograph))
        if len(group) == batch_size or sum(map(len, groups.values())) == HELD_BATCHES * batch_size:
            yield groups.pop(max(groups, key=lambda size: len(groups[size])))
    yield from groups.values()


@contextlib.contextmanager
def _results_files(folder, kinds, dataset):
    """A function that takes (i, entries): it adds them to COCO's results files in `folder`, or does nothing without.

    The files are written aside and renamed when all is done; an error or Ctrl-C leaves nothing.
    """
    if folder is None:
        yield lambda i, entries: None
        return
    folder, category_ids = Path(folder), dataset.category_ids
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    asides = {kind: folder / f".{kind}.json-being-written" for kind in kinds}
    separator = "[\n"

    def write(i, entries):
        nonlocal separator
        for entry in entries:
            label = entry["category_id"]
            own = {"image_id": dataset.image_id(i), "category_id": category_ids[label] if category_ids else label}
            for kind, file in files.items():
                field = RESULT_FIELDS[kind]
                file.write(separator + json.dumps({**own, field: entry[field], "score": entry["score"]}))
            separator = ",\n"

    try:
        with contextlib.ExitStack() as stack:
            files = {kind: stack.enter_context(open(aside, "w")) for kind, aside in asides.items()}
            yield write
            for file in files.values():
                file.write("[]\n" if separator == "[\n" else "\n]\n")
        for kind, aside in asides.items():
            os.replace(aside, folder / f"{kind}.json")
    except BaseException:
        for aside in asides.values():
            aside.unlink(missing_ok=True)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


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

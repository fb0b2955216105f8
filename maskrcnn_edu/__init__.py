"""Mask R-CNN to learn from and to keep using.

The names below are the public surface; each loads its file when it is first used.
"""

import importlib
import multiprocessing
import sys
from pathlib import Path

__version__ = "0.1.0"

_HOME = {
    "CocoDataset": "datasets",
    "ConcatenatedDataset": "datasets",
    "Config": "config",
    "Dataset": "datasets",
    "Detections": "detections",
    "InputError": "errors",
    "MaskRCNN": "model",
    "ShapesDataset": "datasets",
    "Subset": "datasets",
    "devices": "distribution",
    "evaluate": "evaluation",
    "files": "shipped",
    "loader": "datasets",
    "read_image": "datasets",
}
_MODULES = (
    "anchors", "backbone", "boxes", "callbacks", "datasets", "detections", "distribution", "evaluation", "export",
    "heads", "keypoints", "losses", "masks", "matching", "optimizers", "plots", "proposals", "roi_align", "runs",
    "stages", "targets", "training", "validation", "weights", "widgets",
)  # fmt: skip
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"maskrcnn_edu.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'maskrcnn_edu' has no attribute {name!r}")
    return getattr(importlib.import_module(f"maskrcnn_edu.{_HOME[name]}"), name)


def __dir__():
    return __all__


# Keras opens a saved model only once its class is registered, so `import maskrcnn_edu` registers it. The command line
# (whose --help should not wait for TensorFlow) and the loader's worker processes (which never see a model) do without.
# A worker runs the user's script again before it has a parent: until then it is `_inheriting`.
_in_worker = multiprocessing.parent_process() or getattr(multiprocessing.current_process(), "_inheriting", False)
if not _in_worker and Path(sys.argv[0]).stem != "maskrcnn-edu":
    importlib.import_module("maskrcnn_edu.model")

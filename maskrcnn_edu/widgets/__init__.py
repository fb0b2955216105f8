"""Interactive pictures for notebooks and web pages: each shows one idea, and is moved by mouse or keys.

They need the extra `book`: pip install "maskrcnn_edu[book]". Each loads when it is first used.
"""

import importlib

from maskrcnn_edu.errors import InputError

_HOME = {
    "AnchorExplorer": "anchor_explorer",
    "DetectionExplorer": "detection_explorer",
    "FieldExplorer": "field_explorer",
    "IoUPlayground": "iou_playground",
    "MaskExplorer": "mask_explorer",
    "MatchingExplorer": "matching_explorer",
    "NMSStepper": "nms_stepper",
    "PrecisionRecallExplorer": "precision_recall_explorer",
    "ProposalExplorer": "proposal_explorer",
    "ResizeExplorer": "resize_explorer",
    "RoIAlignExplorer": "roi_align_explorer",
    "TrainingMonitor": "training_monitor",
}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'maskrcnn_edu.widgets' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"maskrcnn_edu.widgets.{_HOME[name]}")
    except ModuleNotFoundError as error:
        if error.name not in ("anywidget", "ipywidgets", "traitlets"):
            raise
        raise InputError(f'{name} needs {error.name}: pip install "maskrcnn_edu[book]".') from None
    return getattr(module, name)


def __dir__():
    return __all__

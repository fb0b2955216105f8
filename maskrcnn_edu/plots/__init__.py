"""Still pictures, drawn with matplotlib. Nothing here shows a window or touches pyplot's state.

Each function returns what it drew on: Axes where it is one picture (`ax` draws on yours), a Figure where it is several.
Both show themselves at the end of a notebook's cell; `.savefig(file)` of a Figure, `.figure.savefig(file)` of Axes,
writes them.
"""

from maskrcnn_edu.plots.canvas import COLOURS, colour, images, picture
from maskrcnn_edu.plots.data import augmentations, dataset_overview
from maskrcnn_edu.plots.metrics import differences, overlap_matrix, precision_recall
from maskrcnn_edu.plots.network import activations, distributions, measure_weights, weight_histograms, weight_statistics
from maskrcnn_edu.plots.objects import FILL, instances, top_masks
from maskrcnn_edu.plots.pipeline import detection_stages
from maskrcnn_edu.plots.regions import anchors, boxes, proposals, refinement, view_of
from maskrcnn_edu.plots.rois import mask_targets, rois_with_masks
from maskrcnn_edu.plots.training import loss_curves, read_log

__all__ = [
    "COLOURS", "FILL", "activations", "anchors", "augmentations", "boxes", "colour", "dataset_overview",
    "detection_stages", "differences", "distributions", "images", "instances", "loss_curves", "mask_targets",
    "measure_weights", "overlap_matrix", "picture", "precision_recall", "proposals", "read_log", "refinement",
    "rois_with_masks", "top_masks", "view_of", "weight_histograms", "weight_statistics",
]  # fmt: skip

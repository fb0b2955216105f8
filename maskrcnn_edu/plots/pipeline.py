"""Detection on one photograph, stage by stage."""

import numpy as np

from maskrcnn_edu.plots.canvas import class_name, colour, panels
from maskrcnn_edu.plots.objects import instances
from maskrcnn_edu.plots.regions import boxes, refinement, view_of


def detection_stages(model, image=None, *, count=20):
    """The eight stages of detection, from the best anchors to the masks, each on the image.

    All but the last are on the network's input, the last on the photograph.

    Args:
        model: a MaskRCNN, or the `Stages` that `mr.stages.stages(model, image)` has given.
        image: a photograph, as `model.detect` takes it.
        count: follow so many of the best anchors, and draw so many RoIs.

    Returns:
        The Figure.

    Raises:
        InputError: what is no image.
    """
    from maskrcnn_edu import stages

    found = model if isinstance(model, stages.Stages) else stages.stages(model, image)
    best = np.argsort(-found.objectness, kind="stable")[:count]
    survives = _survivors(found, best)
    titles = [
        f"1 The best {len(best)} of {len(found.anchors):,} anchors",
        "2 Refined by the RPN",
        "3 Cut to the image",
        f"4 After NMS: {survives.sum()} of these {len(best)}",
        f"5 RoIs: the best {min(count, len(found.proposals))} of {len(found.proposals)}",
        f"6 Classes from {found.config.detection_score_threshold:g}: {len(found.candidates)}, refined",
        f"7 After NMS in each class: {len(found.kept)}",
        f"8 {'Masks' if found.detections.masks is not None else 'Detections'}",
    ]
    image, candidates, first = found.image, found.candidates, np.arange(min(count, len(found.candidates)))
    view = view_of(image, np.concatenate([found.anchors[best], found.refined[best]]))
    height, width = view[2:] - view[:2]
    sheet, grid = panels(titles, 2, aspect=height / width, largest=4)
    boxes(image, found.anchors[best], view=view, ax=grid[0])
    refinement(image, found.anchors[best], found.refined[best], view=view, ax=grid[1])
    boxes(image, found.clipped[best], view=view, ax=grid[2])
    colours = [colour(i) for i in np.flatnonzero(survives)]  # an anchor keeps its colour
    boxes(image, found.clipped[best[survives]], colours=colours, view=view, ax=grid[3])
    boxes(image, found.proposals[:count], view=view, ax=grid[4])
    refinement(image, found.proposals[found.candidate_rois[first]], candidates[first], view=view, ax=grid[5])
    captions = [_caption(found, i) for i in found.kept]
    boxes(image, candidates[found.kept], captions=captions, view=view, ax=grid[6])
    instances(found.photograph, found.detections, captions=[""] * len(found.detections), ax=grid[7])
    return sheet


def _survivors(found, best):
    """Which of the best anchors NMS keeps: exact, since greedy NMS decides about a box by better ones alone."""
    from maskrcnn_edu.boxes import nms

    levels = found.levels[best] if found.config.proposal_choice == "per_level" else None
    return np.asarray(nms(found.clipped[best], found.objectness[best], found.config.rpn_nms_threshold, levels))


def _caption(found, i):
    return f"{class_name(found.candidate_classes[i], found.class_names)} {found.candidate_scores[i]:.2f}"

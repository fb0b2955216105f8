"""From photographs to the network's input, and from its output back to the photographs' pixels."""

import dataclasses

import numpy as np
from PIL import Image

from maskrcnn_edu import keypoints, masks
from maskrcnn_edu.datasets.image_file import PILLOW_MODES
from maskrcnn_edu.datasets.transforms import corner, network_size, pad, to_network_size
from maskrcnn_edu.errors import InputError


@dataclasses.dataclass
class Detections:
    """What was found on one photograph, best first.

    boxes (N, 4) float32 y1 x1 y2 x2 in its pixels; classes (N,) int from 1; scores (N,) float32; masks (N, H, W) bool,
    or None from a model without a mask head. From a model with a keypoint head: keypoints (N, K, 3) float32, in COCO's
    order x, y and a third column that is the keypoint's probability, or 1 (Config.keypoint_visibility); and
    keypoint_scores (N, K), the heatmap's value there, a logit.
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    keypoint_scores: np.ndarray | None = None

    def __len__(self):
        return len(self.scores)


def as_photograph(image, position=0, channels=3):
    """Any image array as (H, W, channels) uint8; see `MaskRCNN.detect` for what is taken."""
    if hasattr(image, "convert"):  # a picture of Pillow's may have a palette
        image = image.convert(PILLOW_MODES.get(channels, "RGB"))
    image = np.asarray(image)
    if image.dtype.kind not in "buif":
        raise InputError(f"Image {position} is of type {image.dtype}; give uint8 or float pixels.")
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or 0 in image.shape or image.shape[-1] not in ({1, 3, 4} if channels in (1, 3) else {channels}):
        wanted = "(H, W), (H, W, 1) or (H, W, 3)" if channels in (1, 3) else f"(H, W, {channels})"
        raise InputError(f"Image {position} has shape {image.shape}; give {wanted}.")
    image = image[..., :3] if channels == 3 else image
    if image.dtype.kind == "f":
        if not np.isfinite(image).all():
            raise InputError(f"Image {position} has NaN or infinite pixels; replace them first.")
        image = image * 255.0 if image.max() <= 1 else image
    elif image.dtype == bool:
        image = image * 255
    if image.dtype != np.uint8:
        if image.min() < 0 or image.max() > 255:
            raise InputError(f"Image {position} has values from {image.min()} to {image.max()}; scale them to 0..255.")
        image = np.rint(image).astype(np.uint8)
    if channels == 1 and image.shape[2] > 1:
        image = np.asarray(Image.fromarray(image[..., :3]).convert("L"))[..., None]
    return np.broadcast_to(image, (*image.shape[:2], channels))


def padded_size(photograph, config):
    """Height and width of the network's input for a photograph: a bounded number of sizes, each compiled once."""
    if config.resize == "matterport":
        return config.canvas_size, config.canvas_size
    return tuple(config.round_up(side) for side in network_size(*photograph.shape[:2], config))


def to_batch(photographs, size, batch_size, config):
    """The network's input for up to `batch_size` photographs of one padded `size`; blank images fill it up.

    A dict of image (B, H, W, C), image_size (B, 2) and window (B, 4): where the photograph lies in the image. To the
    seed's network the padding is part of the image, so there image_size is all of it.
    """
    resized = [to_network_size(photograph, config) for photograph in photographs]
    image = np.zeros((batch_size, *size, config.image_channels), resized[0].dtype)
    window = np.tile(np.float32([0, 0, 1, 1]), (batch_size, 1))
    for i, photograph in enumerate(resized):
        height, width = photograph.shape[:2]
        top, left = corner((height, width), size, config)
        window[i] = top, left, top + height, left + width
        image[i] = pad(photograph, *size, top, left)
    whole = np.tile(np.float32(size), (batch_size, 1))
    return {"image": image, "image_size": whole if config.resize == "matterport" else window[:, 2:], "window": window}


def on_photograph(result, photograph, window, config):
    """The network's output for one image, as Detections in the photograph's pixels.

    result: boxes (D, 4), classes (D,), scores (D,), masks (D, m, m) and keypoint_heatmaps (D, m, m, K) in the network's
    frame, used slots first.
    """
    height, width = photograph.shape[:2]
    rescale = {"continuous": rescaled, "matterport": rescaled_and_rounded}[config.box_frame]
    n = int(np.count_nonzero(result["scores"]))
    found = rescale(result["boxes"][:n], window, np.float32([height, width]))
    kept = (found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])  # rounding can leave nothing
    found, classes, scores = found[kept], result["classes"][:n][kept], result["scores"][:n][kept]
    pasted = None
    if config.mask_head:
        probabilities = result["masks"][:n][kept]
        pasted = masks.paste(probabilities, found, height, width, config.mask_paste, config.mask_threshold)
    detections = Detections(found, classes, scores, pasted)
    if config.keypoints:
        heatmaps, rois = result["keypoint_heatmaps"][:n][kept], result["boxes"][:n][kept]
        places, detections.keypoint_scores, probabilities = keypoints.decode(heatmaps, rois)
        scale = np.float32([width, height]) / (window[2:] - window[:2])[::-1]
        third = probabilities if config.keypoint_visibility == "score" else np.ones_like(probabilities)
        detections.keypoints = np.concatenate([places * scale, third[..., None]], axis=-1)
    return detections


def rescaled(found, window, photograph_size):
    """Boxes (N, 4) of the network's input in the photograph's pixels; the window starts at its corner."""
    limit = np.tile(photograph_size, 2)
    return np.clip(found * (limit / np.tile(window[2:] - window[:2], 2)), 0, limit)


def rescaled_and_rounded(found, window, photograph_size):
    """The seed's way back: from first and last pixels in its window to whole pixels of the photograph."""
    first, last = np.tile(window[:2], 2), window[2:] - 1
    share = (found - first) / np.tile(last - window[:2], 2)
    return np.around(share * np.tile(photograph_size - 1, 2)).astype(np.float32) + np.float32([0, 0, 1, 1])

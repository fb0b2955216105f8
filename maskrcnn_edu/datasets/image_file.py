"""read_image: a picture file as an array."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from maskrcnn_edu.errors import InputError

PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by number of channels


def read_image(path, channels=3) -> np.ndarray:
    """The picture in a file as (H, W, channels) uint8, upright (its EXIF orientation applied).

    Three channels are RGB, one is grey, four are RGB and alpha (or whatever a file with four channels holds). More, or
    two, come from NumPy's .npy files: (H, W, channels) uint8, taken as they are. Sixteen-bit greys are divided by 257,
    so that their whole range becomes 0..255; floating-point greys are 0..1, or 0..255 if something is above 1.

    Raises:
        InputError: no such file, one that Pillow cannot read to its end, or another number of channels in a .npy file.
    """
    if not Path(path).exists():
        raise InputError(f"{path}: there is no such image file; check the path.")
    if Path(path).is_dir():
        raise InputError(f"{path} is a folder; give the pictures in it, such as {path}/*.jpg.")
    if Path(path).suffix == ".npy":
        return _read_array(path, channels)
    if channels not in PILLOW_MODES:
        raise InputError(f"{path}: only .npy files have {channels} channels; save the image with np.save.")
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow would cut everything above 255
                image = Image.fromarray(np.clip(np.asarray(image) // 257, 0, 255).astype(np.uint8))
            if image.mode == "F":
                grey = np.asarray(image)
                if not np.isfinite(grey).all():
                    raise ValueError("it has NaN or infinite pixels")
                image = Image.fromarray(np.clip(grey * (255 if grey.max() <= 1 else 1), 0, 255).astype(np.uint8))
            image = np.asarray(image.convert(PILLOW_MODES[channels]))
            return image[..., None] if channels == 1 else image
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged files
        raise InputError(f"{path}: the image cannot be read ({error}); it is damaged, or no picture.") from error


def _read_array(path, channels):
    try:
        image = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path}: the array cannot be read ({error}); it is damaged, or no array.") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != channels:
        raise InputError(
            f"{path}: the array is {image.dtype} of shape {image.shape}; save uint8 (height, width, {channels})."
        )
    return image

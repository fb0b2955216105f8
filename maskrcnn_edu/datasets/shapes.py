"""ShapesDataset: circles, squares and triangles on textured backgrounds, drawn on the spot."""

import operator

import numpy as np
from PIL import Image

from maskrcnn_edu.datasets.dataset import Dataset
from maskrcnn_edu.errors import InputError

TRAIN_SEED = 0
TEST_SEED = 1

MAX_SHAPES = 5
MIN_VISIBLE = 0.3  # share of a shape that later shapes must leave in sight
BACKGROUND_DISTANCE = 90  # of a shape's colour from the background's mean, in RGB
COLOUR_DISTANCE = 60  # between the colours of two shapes
CACHE_BYTES = 2**28


class ShapesDataset(Dataset):
    """`count` pictures of `size` x `size` pixels with one to five shapes, which may cover each other in part.

    Image i depends on `seed`, `size` and i alone: two seeds (TRAIN_SEED, TEST_SEED) have no picture in common, and a
    larger `count` only adds pictures. Sides are size/8 (at least 8) to size/2 pixels; masks hold the visible part.

    Raises:
        InputError: `count` below 1, `seed` below 0 or `size` below 32.
    """

    class_names = ["background", "circle", "square", "triangle"]

    def __init__(self, count, seed=TRAIN_SEED, size=128):
        self.count = _whole("count", count, 1)
        self.seed = _whole("seed", seed, 0)
        self.size = _whole("size", size, 32)
        # Image and masks are asked for one after the other, again in every epoch; drawing takes over a millisecond.
        self._cache = {}
        self._cache_length = CACHE_BYTES // (4 * self.size**2)

    def __len__(self):
        return self.count

    def load_image(self, i):
        return self._picture(i)[0].copy()

    def load_masks(self, i):
        _, labels, classes = self._picture(i)
        return labels == np.arange(1, len(classes) + 1)[:, None, None], classes

    def _picture(self, i):
        """Image (H, W, 3), labels (H, W) uint8 with k + 1 where shape k is in sight, and the shapes' classes."""
        i = range(self.count)[i]
        if i in self._cache:
            return self._cache[i]
        picture = _draw(np.random.default_rng([self.seed, i]), self.size)
        if len(self._cache) < self._cache_length:
            self._cache[i] = picture
        return picture


def _draw(rng, size):
    """One picture: image, labels and classes as `ShapesDataset._picture` gives them."""
    image = _background(rng, size)
    colours = [image.mean((0, 1))]
    labels = np.zeros((size, size), np.uint8)
    areas = []
    classes = rng.integers(1, 4, rng.integers(1, MAX_SHAPES + 1))
    for label, kind in enumerate(classes, start=1):
        shape = _place(rng, kind, labels, areas)
        colours.append(_colour(rng, colours))
        labels[shape] = label
        areas.append(np.count_nonzero(shape))
        image[shape] = _shade(rng, colours[-1], size)[shape]
    image += rng.normal(0, 4, (size, size, 1)).astype(np.float32)  # a little grain, so that no surface is flat
    return np.clip(image, 0, 255).astype(np.uint8), labels, classes


def _place(rng, kind, labels, areas):
    """A shape (H, W) bool, drawn again until it leaves enough of every earlier shape in sight."""
    while True:
        shape = _shape(rng, kind, len(labels))
        left = np.bincount(labels[~shape], minlength=len(areas) + 1)[1:]
        if np.all(left >= MIN_VISIBLE * np.array(areas)):
            return shape


def _shape(rng, kind, size):
    """A circle (1), square (2) or triangle (3) anywhere inside the picture, (H, W) bool."""
    side = rng.integers(max(8, size // 8), size // 2 + 1)
    top, left = rng.integers(0, size - side + 1, 2)
    # Pixel centres, from -1 to 1 over the shape's box.
    y, x = ((np.arange(size) + 0.5 - start) * 2 / side - 1 for start in (top, left))
    y = y[:, None]
    if kind == 1:
        return y**2 + x**2 <= 1
    if kind == 2:
        return (abs(y) <= 1) & (abs(x) <= 1)
    return (abs(x) * 2 <= y + 1) & (y <= 1)


def _colour(rng, others):
    """A colour (3,) that differs from the background's, which is the first of `others`, and from the other shapes'."""
    least = np.array([BACKGROUND_DISTANCE] + [COLOUR_DISTANCE] * (len(others) - 1))
    while True:
        colour = rng.uniform(25, 235, 3)
        if np.all(np.linalg.norm(colour - others, axis=1) >= least):
            return colour


def _shade(rng, colour, size):
    """`colour` over the whole picture (H, W, 3), a little lighter towards one side."""
    return colour.astype(np.float32) + _gradient(rng, size)[..., None] * 14


def _background(rng, size):
    """A texture (H, W, 3) float32 between two colours: clouds, noise, a gradient or stripes."""
    texture = (_clouds, _noise, _gradient, _stripes)[rng.integers(4)]
    middle = rng.uniform(80, 180) + rng.uniform(-45, 45, 3)  # no loud colours behind the shapes
    change = rng.uniform(-35, 35, 3)
    return middle.astype(np.float32) + texture(rng, size)[..., None] * change.astype(np.float32)


def _clouds(rng, size):
    coarse = rng.uniform(-1, 1, (6, 6)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def _noise(rng, size):
    return rng.uniform(-1, 1, (size, size)).astype(np.float32)


def _gradient(rng, size):
    """From -1 to 1 in a random direction."""
    angle = rng.uniform(0, 2 * np.pi)
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return (np.sin(angle) * line[:, None] + np.cos(angle) * line).astype(np.float32) / np.sqrt(2).astype(np.float32)


def _stripes(rng, size):
    waves = rng.uniform(3, 9)
    return np.sin(waves * np.pi * _gradient(rng, size))


def _whole(name, value, least):
    """`value` as an int of at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(f"ShapesDataset: {name} is {value!r}; give a whole number of at least {least}.")
    return number

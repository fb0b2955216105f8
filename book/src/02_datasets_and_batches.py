# ---
# jupyter:
#   book:
#     title: Datasets and batches
#     library: [datasets.transforms]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Datasets and batches
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/02_datasets_and_batches.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F02_datasets_and_batches.ipynb) (neither has been tried)
#
# **Photographs come in all sizes, with one object or thirty. A batch is one array. How does the one become the other, and what must move along when a picture is resized, padded and flipped?**
#
# After this chapter you can
#
# - resize and pad pictures by the rules of the three systems whose weights are published, Detectron2, torchvision and the seed, and take boxes along;
# - write a Dataset for pictures of your own, and read and write COCO's files;
# - augment pictures so that every epoch differs and every run is the same.
#
# You need chapter 01 (boxes and masks). The chapter runs in about ten seconds on two cores, without a GPU or a network.

# %%
# On Colab or Binder: install what is missing. At home this does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("maskrcnn_edu") is None:
    address = "maskrcnn_edu[book] @ git+https://github.com/maskrcnn-edu/maskrcnn_edu"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", address], check=True)

# %%
import json
import math
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage.data
import skimage.filters
import skimage.measure
import skimage.segmentation
from PIL import Image

import maskrcnn_edu as mr
from maskrcnn_edu.book import check
from maskrcnn_edu.datasets import augmentation, transforms

rng = np.random.default_rng(0)

# %% [markdown]
# Three photographs, three sizes. Figure 2.1 shows them as they are, and as the network gets them. `Config.small()` holds the numbers of a small network, for pictures of at most 320 pixels.

# %%
photographs = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea()]
small = mr.Config.small()

fig, axes = plt.subplots(2, 3, figsize=(6.6, 4.7), layout="constrained")
for (above, below), photograph in zip(axes.T, photographs, strict=True):
    height, width = transforms.network_size(*photograph.shape[:2], small)
    canvas = transforms.pad(transforms.to_network_size(photograph, small), small.canvas_size, small.canvas_size)
    above.imshow(photograph)
    above.set(title=f"{photograph.shape[0]} x {photograph.shape[1]}", xlim=(0, 600), ylim=(512, 0))
    below.imshow(canvas)
    below.set_title(f"{height} x {width} on {small.canvas_size} x {small.canvas_size}")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
    ax.title.set_fontsize(10)
plt.show()

# %% [markdown]
# **Figure 2.1.** Above: photographs in one scale. Below: the same as one array (3, 320, 320, 3). Each keeps its shape; what is missing is black, to the right and below.
#
# Objects make a second problem. One picture has two, another twenty, and the array of boxes has one length. The answer to both is the same: bring everything near a common size, then pad to it, and remember which part is real.

# %% [markdown]
# ## 1. To what size?
#
# Stretching every photograph to one square would be simple, but a circle would become an ellipse, and a different one in each photograph. So height and width get the same factor. The papers' rule has two numbers: the short side becomes `min_size` pixels, unless the long side would pass `max_size`; then that decides. Fast R-CNN had 600 and 1000 (section 5.2); FPN (section 5.1) and Mask R-CNN (section 3.1) have a short side of 800, and the systems in use cut the long one at 1333:
#
# $$\text{scale} = \min\Big(\frac{\text{min\_size}}{\min(H, W)},\ \frac{\text{max\_size}}{\max(H, W)}\Big)$$
#
# The three systems, with the weights that were trained by them, are three **families**. They agree on this and differ in details that decide whether published weights give their published numbers. Detectron2 rounds to the nearest pixel, torchvision rounds down. The seed never makes an image smaller for the short side's sake.


# %%
def resized_size(height, width, min_size, max_size):
    """Detectron2: height and width with the short side at min_size, or less so that the long one is at most max_size."""
    scale = min_size / min(height, width)
    height, width = (min_size, scale * width) if height < width else (scale * height, min_size)
    shrink = min(1, max_size / max(height, width))
    return max(1, int(height * shrink + 0.5)), max(1, int(width * shrink + 0.5))


def floor_resized_size(height, width, min_size, max_size):
    """torchvision: the same scale, but rounded down."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def matterport_size(height, width, min_size, max_size):
    """The seed: enlarged to a short side of min_size, or to a long side of max_size."""
    scale = max(1, min_size / min(height, width))
    if round(max(height, width) * scale) > max_size:
        scale = max_size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


# %% [markdown]
# By hand, a photograph of 480 x 640. Detectron2 with 800 and 1333: the scale is $800/480 = 1.667$, the long side $1066.67$, which is rounded to 1067 and is below 1333. torchvision cuts it to 1066. The seed with 800 and 1024 begins with 1.667 too, but 1067 is more than 1024, so the scale is $1024/640 = 1.6$ and the height 768.

# %% tags=["nbval-check-output"]
print("Detectron2 ", resized_size(480, 640, 800, 1333))
print("torchvision", floor_resized_size(480, 640, 800, 1333))
print("the seed   ", matterport_size(480, 640, 800, 1024))
sizes = rng.integers(20, 3000, (500, 2))
for mine in (resized_size, floor_resized_size, matterport_size):
    theirs = getattr(transforms, mine.__name__)
    check(mine.__name__, [mine(h, w, 800, 1333) for h, w in sizes], [theirs(h, w, 800, 1333) for h, w in sizes])

# %% [markdown]
# Figure 2.2 has a photograph of any shape under the three rules, at their published numbers; 800 is the short side for all, and 1333 the most for the long one, with the seed 1024. Move the sliders and look for three things. At which width does the long side take over? What does the seed do with a photograph of 1000 x 1024? And how much of each canvas is black for a panorama, alone and in one batch with an upright photograph?

# %%
mr.widgets.ResizeExplorer(photographs[1][::2, ::2], size=(480, 640))

# %% [markdown]
# **Figure 2.2.** A photograph of 480 x 640 as each family's network gets it; all three canvases in one scale. The seed puts it in the middle of a square. The rows "Boxes" are the factors of section 3.
#
# From a width of 800 on, with a height of 480, the long side decides: $800/480$ times 800 is 1333. The seed leaves 1000 x 1024 as it is, since nothing has to be enlarged. And a batch has one canvas: a panorama of 480 x 1280 is 3% black to Detectron2 alone, and 54% beside the upright photograph. So a loader does well to put photographs of like shape together (exercise 2).

# %% [markdown]
# ## 2. New pixels from old
#
# A pixel of the resized image lies somewhere between the pixels of the old one. Where exactly? Pixel $i$ covers $[i, i+1)$ and its centre is at $i + \frac12$. If $n$ pixels become $n'$, the new centre $i' + \frac12$ belongs at $(i' + \frac12)\, n / n'$, and in units of old pixel centres that is
#
# $$u = \Big(i' + \tfrac12\Big)\frac{n}{n'} - \tfrac12$$
#
# **Bilinear** interpolation takes the two neighbours of $u$ along each axis and mixes them by distance.


# %%
def resize_plain(image, height, width):
    """(H, W, C) -> (height, width, C) float32: bilinear between the nearest pixels, without antialias."""
    for axis, size in ((0, height), (1, width)):
        pixels = image.shape[axis]
        position = np.clip((np.arange(size) + 0.5) * (pixels / size) - 0.5, 0, pixels - 1)
        below = np.minimum(position.astype(int), max(pixels - 2, 0))
        share = (position - below).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        above = np.minimum(below + 1, pixels - 1)
        image = np.take(image, below, axis) * (1 - share) + np.take(image, above, axis) * share
    return image


# %% [markdown]
# By hand: two pixels, 0 and 100, become four. The new centres lie at $u = -0.25, 0.25, 0.75, 1.25$. The outer two are beyond the old centres and take the border's value, so the result is 0, 25, 75, 100.

# %% tags=["nbval-check-output"]
print(resize_plain(np.float32([0, 100]).reshape(1, 2, 1), 1, 4).ravel())
for height, width in ((7, 90), (200, 33), (1, 1)):
    noise = rng.integers(0, 256, (50, 40, 3), dtype=np.uint8)
    check(
        f"resize_plain, {height} x {width}",
        resize_plain(noise, height, width),
        transforms.resize_plain(noise, height, width),
    )

# %% [markdown]
# Two neighbours are enough to enlarge. When an image becomes five times smaller, a new pixel stands for 25 old ones, and two a side are an arbitrary choice among them. **Antialiasing** widens the filter by the factor of shrinking, so that all take part. Detectron2 resizes with Pillow, which does so; torchvision's detection models do not. Figure 2.3 shows stripes that become narrower than a new pixel.

# %%
y, x = np.mgrid[:600, :600]
rings = np.uint8(127.5 + 127.5 * np.cos((y**2 + x**2) / 700))[..., None].repeat(3, axis=2)
plain, smooth = resize_plain(rings, 120, 120), transforms.resize(rings, 120, 120)
fig, axes = plt.subplots(1, 3, figsize=(8.4, 3.1), layout="constrained")
for ax, (name, shown) in zip(
    axes,
    (("600 x 600: a corner", rings[480:, 480:]), ("120 x 120, plain", plain), ("120 x 120, antialias", smooth)),
    strict=True,
):
    ax.imshow(np.uint8(shown), interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(name, fontsize=9)
plt.show()
print(
    f"spread of grey values in the lower right quarter: plain {plain[60:, 60:].std():.0f}, antialias {smooth[60:, 60:].std():.0f}"
)

# %% [markdown]
# **Figure 2.3.** Rings that get finer towards the lower right. Left: the lower right corner, 120 of 600 pixels a side; the stripes are really there. Middle and right: the whole picture in 120 x 120. Plain bilinear sampling draws new rings that are not there; with antialiasing what is too fine becomes grey.
#
# Neither is wrong for a network that was trained with it. What is wrong is to train with one and detect with the other.
#
# ## 3. Boxes move along; padding
#
# A box is in pixels of the image, so it is multiplied by the two factors, new height over old and new width over old. Because of rounding they differ a little: take both from the real sizes, not from the scale. Masks travel cropped to their boxes (chapter 01) and need nothing at all.
#
# To pad, a canvas of zeros gets the image in its top left corner, where boxes stay valid as they are. Its sides are a multiple of 32, the largest stride of the pyramid's convolutions (chapter 03).


# %%
def pad(image, height, width, top=0, left=0):
    """The image (H, W, C) on a canvas of zeros, (height, width, C), its first pixel at (top, left)."""
    padded = np.zeros((height, width, image.shape[2]), image.dtype)
    padded[top : top + image.shape[0], left : left + image.shape[1]] = image
    return padded


# %% [markdown]
# Objects are padded too: an array of boxes has $G$ **slots**, and those that are not needed have class 0 and a box of zeros. By hand: two boxes and $G = 3$ give the two boxes and a row of zeros.


# %% tags=["nbval-check-output"]
def slots(array, count):
    """`array` with zeros behind it, up to `count` entries."""
    return np.concatenate([array, np.zeros((count - len(array), *array.shape[1:]), array.dtype)])


print(slots(np.float32([[1, 2, 5, 8], [0, 0, 4, 4]]), 3))
check("pad", pad(photographs[2], 480, 512, 3, 9), transforms.pad(photographs[2], 480, 512, 3, 9))

# %% [markdown]
# ## 4. A dataset of one's own
#
# The library asks four things of a dataset: the class names with background first, how many images, image $i$, and the masks of image $i$ with their classes. Boxes it computes from the masks. Here is a dataset from a photograph of coins that comes with scikit-image: segmented by a watershed from what is surely coin and surely background, and cut into six pictures of different sizes. Figure 2.4 shows three.


# %%
class Coins(mr.Dataset):
    """Parts of a photograph of coins; every coin a mask."""

    class_names = ["background", "coin"]
    windows = [
        (0, 0, 150, 250),
        (20, 100, 200, 384),
        (140, 0, 303, 180),
        (0, 200, 303, 384),
        (60, 60, 200, 340),
        (100, 0, 303, 384),
    ]

    def __init__(self):
        photograph = skimage.data.coins()
        self.photograph = photograph[..., None].repeat(3, axis=2)
        marks = np.where(photograph > 150, 2, np.where(photograph < 30, 1, 0))  # surely coin, surely background
        seen = skimage.segmentation.watershed(skimage.filters.sobel(photograph), marks) == 2
        parts = skimage.measure.label(seen)
        filled = [region for region in skimage.measure.regionprops(parts) if region.area > 500]
        self.coins = np.zeros((len(filled), *photograph.shape), bool)
        for coin, region in zip(self.coins, filled, strict=True):
            coin[region.slice] = region.image_filled

    def __len__(self):
        return len(self.windows)

    def load_image(self, i):
        y1, x1, y2, x2 = self.windows[i]
        return self.photograph[y1:y2, x1:x2]

    def load_masks(self, i):
        y1, x1, y2, x2 = self.windows[i]
        masks = self.coins[:, y1:y2, x1:x2]
        masks = masks[masks.sum((1, 2)) > 200]
        return masks, np.ones(len(masks), int)


coins = Coins()
for i in range(len(coins)):
    found = coins.instances(i)
    print(f"image {i}: {coins.image(i).shape[0]} x {coins.image(i).shape[1]}, {len(found.boxes)} coins")

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
for i, ax in enumerate(axes):
    found = coins.instances(i)
    mr.plots.instances(coins.image(i), boxes=found.boxes, masks=found.masks, captions=[""] * len(found.boxes), ax=ax)
plt.show()

# %% [markdown]
# **Figure 2.4.** Three pictures of the dataset with masks and boxes. Coins that the edge cuts keep what is left of them, down to 200 pixels.
#
# `mr.ShapesDataset`, which the book trains on, is such a class too: it draws circles, squares and triangles when asked for picture $i$, from random numbers that depend on $i$ and the seed alone. So it needs no files and has as many pictures as you like.
#
# ### COCO's layout
#
# Most public data comes as COCO does: a folder of images, and one JSON file with three lists. `images` says which files there are and how large, `categories` gives classes an id and a name, and `annotations` has one entry an object, with the ids of its image and its category. `bbox` is $x, y$, width, height, in this order; `segmentation` is a list of polygons, or RLE (chapter 01). Let us write the coins like this and read them back with the class that reads COCO.

# %%
folder = tempfile.TemporaryDirectory()
root = Path(folder.name)
(root / "coins").mkdir()
(root / "annotations").mkdir()
content = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "coin"}]}
for i in range(len(coins)):
    image = coins.image(i)
    Image.fromarray(image).save(root / "coins" / f"{i:012d}.png")
    content["images"].append(
        {"id": 100 + i, "file_name": f"{i:012d}.png", "height": image.shape[0], "width": image.shape[1]}
    )
    for entry in coins.annotations_of(i):
        entry |= {"id": len(content["annotations"]) + 1, "image_id": 100 + i, "category_id": 7}
        content["annotations"].append(entry)
(root / "annotations" / "instances_coins.json").write_text(json.dumps(content))

again = mr.CocoDataset(root, "coins")
print("classes:", again.class_names, "ids in the file:", again.category_ids)
print("first annotation:", {key: content["annotations"][0][key] for key in ("image_id", "category_id", "bbox", "area")})
for i in range(2):
    check(f"boxes of image {i}", coins.instances(i).boxes, again.instances(i).boxes)
    check(f"masks of image {i}", coins.instances(i).masks, again.instances(i).masks)

# %% [markdown]
# The category id in the file is 7 and the class in the network is 1: ids in files may have gaps (COCO's 80 classes have ids up to 90), and a network's classes may not. `CocoDataset` keeps the table between them.
#
# ## 5. Augmentation
#
# A flipped photograph of a cat is a photograph of a cat. Detectron2 trains Mask R-CNN with this flip and with short sides that change from picture to picture; newer recipes crop, paste and change colours. What counts here is that boxes and masks move along. A pixel's left edge $x$ goes to $W - x$, so the box's right edge becomes its left:
#
# $$x_1' = W - x_2 \qquad x_2' = W - x_1$$
#
# By hand: in a picture 10 wide, the box from 1 to 4 goes to 6 to 9.


# %% tags=["nbval-check-output"]
def flipped(image, boxes, masks):
    """Left and right exchanged: (H, W, C), (N, 4), (N, H, W)."""
    y1, x1, y2, x2 = boxes.T
    width = image.shape[1]
    return image[:, ::-1], np.stack([y1, width - x2, y2, width - x1], axis=1), masks[:, :, ::-1]


print(flipped(np.zeros((5, 10, 3)), np.float32([[0, 1, 5, 4]]), np.zeros((1, 5, 10), bool))[1])
found = coins.instances(0)
scene = augmentation.Scene(coins.image(0), found.boxes, found.classes, found.masks, np.zeros((len(found.boxes), 0, 3)))
theirs = augmentation.flip(scene, [])
mine = flipped(scene.image, scene.boxes, scene.masks)
check("flip: image", mine[0], theirs.image)
check("flip: boxes", mine[1], theirs.boxes)
check("flip: masks", mine[2], theirs.masks)
check("boxes of flipped masks", mr.datasets.dataset.boxes_from_masks(mine[2]), mine[1])

# %% [markdown]
# The last line checks a law rather than the library: the box of a flipped mask is the flipped box. Such a law tests any augmentation.
#
# Figure 2.5 is what training sees when all that `Config` knows is switched on: flips, colours, and large-scale jitter (Ghiasi et al., 2021), which resizes by a random factor, here from 0.5 to 2, and cuts out a square.

# %%
lively = mr.Config.small(num_classes=2, large_scale_jitter=(0.5, 2.0), jitter_size=192, colour_jitter=(0.4, 0.4, 0.4))
mr.plots.augmentations(coins, lively, i=0, count=4)

# %% [markdown]
# **Figure 2.5.** One picture as training sees it four times. Boxes are tight around what is left of a coin.
#
# ### Break it: the flip of pixel indices
#
# In code that counts pixels, index $i$ goes to $W - 1 - i$, and many a flip of boxes is written so. For edges it is one pixel off. Measure it, beside the coarser mistake of flipping the image and forgetting the boxes.

# %% tags=["nbval-check-output"]
for side in (8, 16, 32, 128):
    left = rng.uniform(0, 512 - side, 200)
    boxes = np.stack([0 * left, left, 0 * left + side, left + side], axis=1).astype("float32")
    right = np.stack([boxes[:, 0], 512 - boxes[:, 3], boxes[:, 2], 512 - boxes[:, 1]], axis=1)
    results = [
        np.diag(np.asarray(mr.boxes.iou(right, wrong))).mean() for wrong in (right - np.float32([0, 1, 0, 1]), boxes)
    ]
    print(f"side {side:>3}: IoU with the true box {results[0]:.2f} one pixel off, {results[1]:.2f} without the flip")

# %% [markdown]
# Forgetting the boxes shows in the first picture that you draw. One pixel does not, but a box of 8 pixels loses a fifth of its IoU in half of all training pictures, and the network learns the average of two places. Only the law above finds it.

# %% [markdown]
# ## 6. Batches
#
# A loader does for each image of a batch what we have done: read, augment, resize, pad, fill slots. It takes two more decisions.
#
# **Which images.** Every epoch visits all images once in a new order. In the library this order depends on the seed and the number of the epoch alone, so anyone can say which images are in batch $k$ without reading any.


# %% tags=["nbval-check-output"]
def images_of_batch(k, count, batch_size, seed):
    """Indices of the images in batch k of an endless row of epochs."""
    epochs, places = np.divmod(np.arange(k * batch_size, (k + 1) * batch_size), count)
    return [
        int(np.random.default_rng([seed, epoch]).permutation(count)[place])
        for epoch, place in zip(epochs, places, strict=True)
    ]


tiny = mr.Config.tiny()
shapes = mr.ShapesDataset(20)
batches = mr.loader(shapes, tiny, seed=3)
for k in (0, 2, 7):
    check(f"images of batch {k}", images_of_batch(k, 20, 8, 3), batches.image_ids(k))
print("batch 2:", images_of_batch(2, 20, 8, 3), "- the last four are the next epoch's first")

# %% [markdown]
# **Which random numbers.** Every place in this row has its own generator, made from the seed and the place. So batch $k$ is the same in every run, with any number of worker processes, and also when training was stopped before it and goes on.

# %%
batch = next(iter(batches))
for name, array in batch.items():
    print(f"{name:<11} {array.shape!s:<20} {array.dtype}")
print("objects in each image:", (batch["classes"] != 0).sum(1).tolist(), "of", tiny.max_instances, "slots")
row = iter(batches)
third = [next(row) for _ in range(3)][2]
continued = next(iter(mr.loader(shapes, tiny, seed=3, first_step=2)))
check("batch 2, begun there", third["image"], continued["image"])
check("its boxes", third["boxes"], continued["boxes"])

# %% [markdown]
# Four of the batch's eight pictures are in Figure 2.6. `image_size` tells the network which part is image: what is beyond is 0 after normalising, and proposals are cut off there.

# %%
fig, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
for ax, image, boxes, classes in zip(axes, batch["image"], batch["boxes"], batch["classes"], strict=False):
    real = classes != 0
    mr.plots.instances(image, boxes=boxes[real], classes=classes[real], captions=[""] * int(real.sum()), ax=ax)
plt.show()

# %% [markdown]
# **Figure 2.6.** Half of a training batch of drawn shapes with its ground truth: a box and a mask of cells for each object, here the boxes.
#
# ### Break it: every worker draws the same numbers
#
# Loaders use several processes. When a process is copied, its random generator is copied with it, and all draw the same. Somebody with four workers, each augmenting every fourth image with "random" scales, gets this:

# %% tags=["nbval-check-output"]
copied = [np.random.default_rng(0) for _ in range(4)]
scales = [copied[i % 4].uniform(0.1, 2.0) for i in range(64)]
own = [np.random.default_rng([0, i]).uniform(0.1, 2.0) for i in range(64)]
print(f"64 images, {len(set(scales))} different scales; with a generator a place {len(set(own))}")
epochs = [np.random.default_rng([0, i]).random() < 0.5 for _ in range(10) for i in range(64)]
seen_flipped = np.reshape(epochs, (10, 64)).sum(0)
print(
    f"numbers from the image alone, not the place: {np.isin(seen_flipped, (0, 10)).sum()} of 64 images look the same in all of 10 epochs"
)
places = np.reshape([np.random.default_rng([0, i]).random() < 0.5 for i in range(640)], (10, 64)).sum(0)
print(f"numbers from the place in the row: {np.isin(places, (0, 10)).sum()} of 64")

# %% [markdown]
# Nothing fails, the loss falls, and only a quarter of the augmentation is there. Of the projects on GitHub that drew NumPy's random numbers in PyTorch's worker processes more than 95% did this (Pärnamaa, 2021); PyTorch has since given each worker a seed of its own. The second mistake is its sibling: a generator for each image, but the same one in every epoch. Then an image is flipped always or never, and the augmentation is worth nothing. Keras' `fit` repeats a dataset of fixed length in just this way; so the library's loader has no end, and `fit` is told `steps_per_epoch`.

# %% [markdown]
# > **How the others do it**
# >
# > *Detectron2.* Short side 800, long side at most 1333, Pillow's antialiased bilinear on uint8, sizes rounded to the nearest pixel. Padded right and below to a multiple of 32 within the batch; a training batch has upright photographs only, or none (`AspectRatioGroupedDataset`). Training draws the short side from 640, 672, ..., 800. Channels in the order BGR.
# >
# > *torchvision.* The same sides, rounded down; bilinear without antialiasing on floats that are normalised already. Normalisation comes first, so the padding is 0 in the normalised image: the mean colour.
# >
# > *The seed* (matterport/Mask_RCNN). Enlarged to a short side of 800, but at most 1024 on the long one; scikit-image's bilinear, cut back to uint8; in the middle of a square of 1024. It pads before the mean is subtracted, so to its network padding is black, not the mean colour.
# >
# > *Here.* All three, chosen by `Config.resize`. A batch always has the largest canvas, since shapes then never change and nothing is compiled twice; the price is computing on padding (exercise 2).

# %% [markdown]
# ## Exercises
#
# **1 (recall).** A COCO photograph of 427 x 640 goes into Detectron2's network. What size does it get, to what is it padded alone, and where does a box (100, 200, 150, 300) go?
#
# <details><summary>Hint</summary>
#
# 800/427 is 1.874.
#
# </details>
#
# <details><summary>Solution</summary>
#
# 800 x 1199, padded to 800 x 1216. The box is multiplied by 800/427 and 1199/640.
#
# ```python
# assert resized_size(427, 640, 800, 1333) == (800, 1199)
# print(np.round(np.float32([100, 200, 150, 300]) * np.tile([800 / 427, 1199 / 640], 2), 1))
# ```
#
# </details>
#
# **2 (understand).** How much of a square canvas of 1344 pixels is padding for photographs of 480 x 640, 640 x 480 and 500 x 500? And on a canvas just large enough for a batch of these three?
#
# <details><summary>Hint</summary>
#
# `resized_size` for each, then areas.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# sizes = [resized_size(h, w, 800, 1333) for h, w in ((480, 640), (640, 480), (500, 500))]
# real = sum(h * w for h, w in sizes)
# tight = max(-(-h // 32) * 32 for h, _ in sizes) * max(-(-w // 32) * 32 for _, w in sizes)
# print(f"{1 - real / (3 * 1344**2):.0%} of the largest canvas, {1 - real / (3 * tight):.0%} of the batch's own")
# ```
#
# 57% and 34%. Detectron2 fills a batch with upright photographs only or with the others only, and torchvision's training script sorts by ratio into more groups. Both save most of the second number.
#
# </details>
#
# **3 (build).** Write a turn by 90 degrees against the clock for image, boxes and masks, and test it with the law: the box of a turned mask is the turned box.
#
# <details><summary>Hint</summary>
#
# `np.rot90`. What was right becomes top: $y' = W - x$, $x' = y$.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def turned(image, boxes, masks):
#     y1, x1, y2, x2 = boxes.T
#     width = image.shape[1]
#     boxes = np.stack([width - x2, y1, width - x1, y2], axis=1)
#     return np.rot90(image), boxes, np.rot90(masks, axes=(1, 2))
#
#
# mine, theirs = turned(scene.image, scene.boxes, scene.masks), augmentation.turn(scene, 1)
# check("turn: boxes", mine[1], theirs.boxes)
# check("the law", mr.datasets.dataset.boxes_from_masks(mine[2]), mine[1])
# ```
#
# </details>
#
# **4 (measure).** Resizing also moves boxes to where no pixel edge is. For the coins, compare each resized box with the tight box of its resized mask, at half the size. How large is the difference, and why does the library crop masks before it resizes?
#
# <details><summary>Hint</summary>
#
# `transforms.resize` on a mask times 255, then a threshold of 127.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# height, width = np.array(scene.image.shape[:2]) // 2
# halves = [transforms.resize(mask[..., None].astype(np.uint8) * 255, height, width)[..., 0] > 127 for mask in scene.masks]
# apart = np.abs(mr.datasets.dataset.boxes_from_masks(np.array(halves)) - scene.boxes / 2)
# print(f"mean {apart.mean():.2f}, largest {apart.max():.2f} pixels")
# assert 0 < apart.max() < 3
# ```
#
# A fraction of a pixel on average. A box in continuous pixels loses nothing by resizing, a mask of whole pixels does; so masks are cropped at the photograph's own resolution and the boxes are scaled.
#
# </details>
#
# **5 (research).** Large-scale jitter draws scales from 0.1 to 2 (Ghiasi et al., 2021, section 3). Draw 2000 views of a photograph of 480 x 640 on a square of 1024 and look at how large an object of 100 pixels appears. How does this compare with short sides from 640 to 800? Why might it need longer training?
#
# <details><summary>Hint</summary>
#
# `augmentation.jittered_view(480, 640, rng, (0.1, 2.0), 1024)` gives the size and the window.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# jittered = [100 * augmentation.jittered_view(480, 640, rng, (0.1, 2.0), 1024)[0][0] / 480 for _ in range(2000)]
# classic = [100 * resized_size(480, 640, short, 1333)[0] / 480 for short in (640, 800)]
# print(f"jitter {min(jittered):.0f} to {max(jittered):.0f} pixels, short sides {classic[0]:.0f} to {classic[1]:.0f}")
# assert max(jittered) / min(jittered) > 10
# ```
#
# Factor 20 instead of 1.25. Each object is seen at sizes that different pyramid levels answer for, so each level has more to learn from fewer repetitions. The paper trains several times longer than the usual schedules.
#
# </details>

# %% [markdown]
# ## Summary
#
# Pictures keep their shape and are brought near a common size, by a rule that differs between the families in its rounding, its filter and its place on the canvas. What is missing is padded with zeros, pixels and slots alike, and `image_size` and class 0 say what is real. Boxes are multiplied by the two real factors. A dataset is four methods; COCO's layout is one reader of it. Augmentations obey a law: the box of the moved mask is the moved box. And all randomness comes from the seed and the place in the row, so that no two epochs are alike and no two runs differ.
#
# **Read now:** [`maskrcnn_edu/datasets/transforms.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/datasets/transforms.py), then [`maskrcnn_edu/datasets/augmentation.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/datasets/augmentation.py) and [`maskrcnn_edu/datasets/loader.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/datasets/loader.py), which puts them together.
#
# **Next:** chapter 03 sends a batch through the backbone.
#
# ## Further reading
#
# - T.-Y. Lin et al.: *Microsoft COCO: Common Objects in Context*, ECCV 2014. [arXiv:1405.0312](https://arxiv.org/abs/1405.0312)
# - R. Girshick: *Fast R-CNN*, ICCV 2015. Section 5.2, on one scale or many. [arXiv:1504.08083](https://arxiv.org/abs/1504.08083)
# - T.-Y. Lin, P. Dollár, R. Girshick, K. He, B. Hariharan, S. Belongie: *Feature Pyramid Networks for Object Detection*, CVPR 2017. Section 5.1. [arXiv:1612.03144](https://arxiv.org/abs/1612.03144)
# - G. Ghiasi et al.: *Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation*, CVPR 2021. [arXiv:2012.07177](https://arxiv.org/abs/2012.07177)
# - T. Pärnamaa: [*Using PyTorch + NumPy? You're making a mistake*](https://tanelp.github.io/posts/a-bug-that-plagues-thousands-of-open-source-ml-projects/), 2021. The copied generator, found in thousands of projects.
# - R. Zhang: *Making Convolutional Networks Shift-Invariant Again*, ICML 2019. On sampling without antialiasing, inside the network. [arXiv:1904.11486](https://arxiv.org/abs/1904.11486)

# ---
# jupyter:
#   book:
#     title: Images, masks, boxes
#     library: [masks, datasets.dataset, datasets.transforms]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Images, masks, boxes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/01_images_masks_boxes.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F01_images_masks_boxes.ipynb) (neither has been tried)
#
# **A photograph is 720,000 numbers. How does a file say which of them are the spoon?**
#
# After this chapter you can
#
# - read and write COCO annotations: polygons, run lengths, boxes;
# - turn each of them into pixels and back, and say how many pixels are lost on the way;
# - store a mask of any size in 28 x 28 cells, which is how the network sees it and answers with it, and paste it back.
#
# You need NumPy and the preface. The chapter runs in about ten seconds on two cores, without a GPU or a network.

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
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import skimage
from PIL import Image, ImageDraw

import maskrcnn_edu as mr
from maskrcnn_edu.book import check

rng = np.random.default_rng(0)

# %% [markdown]
# An **annotation** is what a person has said about one object on one picture: its class and its outline. Here are two, made by clicking around the objects of a photograph. Each list is $x, y, x, y, \ldots$ in pixels. The cup covers the spoon's handle, so the spoon is one object in two pieces, and has two polygons.

# %%
image = skimage.data.coffee()  # by Rachel Michetti, in the public domain
# fmt: off
cup = [[
    173, 105, 176, 85, 184, 67, 200, 48, 222, 32, 250, 21, 285, 18, 320, 21, 350, 31, 378, 49, 398, 72, 407, 95,
    409, 118, 407, 138, 402, 158, 397, 175, 390, 192, 386, 200, 381, 212, 377, 220, 373, 232, 364, 240, 352, 245,
    340, 252, 332, 261, 322, 272, 308, 280, 288, 285, 268, 284, 258, 280, 256, 246, 248, 258, 241, 272, 235, 288,
    229, 303, 222, 309, 209, 304, 201, 297, 197, 285, 198, 272, 205, 256, 217, 236, 203, 226, 190, 210, 180, 190,
    176, 150,
]]
spoon = [
    [
        390, 192, 389, 203, 385, 217, 384, 232, 385, 240, 391, 247, 399, 256, 404, 266, 406, 278, 404, 292, 398, 305,
        388, 315, 374, 322, 360, 325, 346, 322, 336, 314, 329, 302, 326, 288, 327, 274, 332, 261, 340, 252, 352, 245,
        364, 240, 373, 232, 377, 220, 381, 212, 386, 200,
    ],
    [
        398, 71, 404, 67, 413, 66, 421, 69, 424, 76, 422, 86, 417, 105, 411, 124, 408, 132, 409, 118, 407, 98, 403, 84,
    ],
]
# fmt: on

fig, axes = plt.subplots(1, 3, figsize=(9, 2.3), layout="constrained")
pale = np.uint8(170 + image.mean(-1) / 3)
mr.plots.picture(image, axes[0], "what a person clicks")
mr.plots.picture(pale, axes[1], "what the masks are")
mr.plots.picture(pale, axes[2], "what the boxes are")
for polygons, colour in ((cup, "tab:cyan"), (spoon, "tab:orange")):
    points = [np.reshape(polygon, (-1, 2)) for polygon in polygons]
    for corners in points:
        axes[0].plot(*corners[np.r_[: len(corners), 0]].T, ".-", color=colour, markersize=3, linewidth=0.8)
        axes[1].fill(*corners.T, color=colour, alpha=0.8, linewidth=0)
    low, high = np.concatenate(points).min(0), np.concatenate(points).max(0)
    axes[2].add_patch(plt.Rectangle(low, *(high - low), fill=False, color=colour, linewidth=1.5))
plt.show()

# %% [markdown]
# **Figure 1.1.** A cup (blue) and a spoon (orange): as the points that were clicked, as pixels, and as boxes.
#
# Figure 1.1 has three forms of the same statement, and this chapter is about the ways between them. Polygons and run lengths are how masks lie in files. Boxes are computed from masks. And for the network each mask is cut out with its box and made small; what it answers is small as well and must be pasted back. At the end we go this way round once and measure how much of the spoon arrives.

# %% [markdown]
# ## 1. Pixels
#
# An image is an array (height, width, channels) of bytes. The first index counts rows from the top, so $y$ comes before $x$. We treat the plane as continuous: pixel $(i, j)$ is the square $[i, i+1) \times [j, j+1)$, and its **centre** is $(i + \frac12, j + \frac12)$. Almost every mistake of this chapter is a forgotten half.

# %% tags=["nbval-check-output"]
height, width, channels = image.shape
print(f"{height} rows, {width} columns, {channels} channels of {image.dtype}: {image.size:,} numbers")
print("the pixel in row 280, column 340, which is on the spoon:", image[280, 340])

# %% [markdown]
# A **mask** is an array (height, width) of true and false. A picture with $N$ objects has $N$ of them, $(N, H, W)$. One array with the number of the object in each pixel would be smaller, but then a pixel could not belong to two objects. In COCO that happens.

# %% [markdown]
# ## 2. From polygon to pixels
#
# A pixel is part of the object if its centre is inside the polygon. Whether a point $(y, x)$ is inside is decided by the **even-odd rule**: walk from the point to the right and count the edges you cross. Odd is inside. The edge from $(y_1, x_1)$ to $(y_2, x_2)$ is crossed if one end lies above the point's row and the other does not, and if the edge is to the right of the point at that height:
#
# $$(y_1 \le y) \ne (y_2 \le y) \quad\text{and}\quad x < x_1 + \frac{y - y_1}{y_2 - y_1}(x_2 - x_1)$$
#
# The function does this for all pixels at once, edge by edge. `^=` flips a pixel each time it meets an edge, and an even number of flips is none.


# %%
def polygon_mask(polygon, height, width):
    """Corners x, y, x, y, ... -> (height, width) bool: the pixels whose centre is inside."""
    corners = np.reshape(np.asarray(polygon, float), (-1, 2))
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None, :] + 0.5
    inside = np.zeros((height, width), bool)
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        if y1 != y2:  # a level edge is never crossed by walking to the right
            inside ^= ((y1 <= y) != (y2 <= y)) & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
    return inside


# %% [markdown]
# By hand: the triangle with corners $(0, 0)$, $(4, 0)$ and $(0, 4)$ holds the points with $x + y < 4$. The centre of pixel $(i, j)$ has $x + y = i + j + 1$, so the pixels with $i + j < 3$ are inside: 3 in the first row, 2 in the second, 1 in the third. Six pixels, though the area is 8. The four pixels on the long side are cut in half by it, and their centres lie on it. They would be the missing two.

# %% tags=["nbval-check-output"]
triangle = polygon_mask([0, 0, 4, 0, 0, 4], 4, 5)
print(triangle.astype(int))

# %% [markdown]
# An object in several pieces is the union of its polygons. (A hole cannot be written like this: COCO's polygons are all added. Section 4 has a form that can.)


# %%
def polygons_mask(polygons, height, width):
    return np.any([polygon_mask(polygon, height, width) for polygon in polygons], axis=0)


cup_mask, spoon_mask = (polygons_mask(polygons, height, width) for polygons in (cup, spoon))

fig, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
for ax, (x1, x2, y1, y2) in zip(axes, ((0, 5, 0, 4), (372, 412, 228, 260)), strict=True):
    points, mask = (np.float32([0, 0, 4, 0, 0, 4]), triangle) if x1 == 0 else (np.float32(spoon[0]), spoon_mask)
    ax.imshow(mask, extent=(0, mask.shape[1], mask.shape[0], 0), cmap="Blues", vmax=2)
    points = np.append(points, points[:2]).reshape(-1, 2)
    ax.plot(*points.T, "o-", color="tab:orange")
    y, x = np.mgrid[y1:y2, x1:x2] + 0.5
    ax.plot(x.ravel(), y.ravel(), ".", color="0.4", markersize=4 if x1 == 0 else 1.5)
    ax.set(xlim=(x1, x2), ylim=(y2, y1), xlabel="x, pixels", ylabel="y, pixels", aspect="equal")
axes[0].set(title="the triangle", xticks=range(6), yticks=range(5))
axes[1].set_title("the right side of the spoon")
plt.show()

# %% [markdown]
# **Figure 1.2.** Polygons and the pixels whose centres (grey) they hold. A pixel is in or out as a whole, and its centre decides.
#
# Figure 1.2 shows that the last decision is made at the centres. A tool that decides otherwise gives another mask from the same polygon. The COCO toolkit, `pycocotools`, is the one that counts, because evaluation uses it: it enlarges the polygon five times, rounds it, and asks in each column where the enlarged outline enters and leaves.

# %%
from pycocotools import mask as coco_mask


def toolkit_mask(polygons, height, width):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)


def mask_iou(a, b):
    """Intersection over union: the pixels that both masks have, over those that one of them has."""
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


# %% tags=["nbval-check-output"]
for name, polygons in (("cup", cup), ("spoon", spoon)):
    mine, theirs = (function(polygons, height, width) for function in (polygons_mask, toolkit_mask))
    print(f"{name:<6} {mine.sum():>6} pixels, {np.count_nonzero(mine ^ theirs):>3} of another opinion, ", end="")
    print(f"IoU {mask_iou(mine, theirs):.4f}")

# %% [markdown]
# **IoU**, intersection over union, is the field's measure of agreement: 1 for equal masks, 0 for masks that share no pixel. The two ways agree but for some pixels at the edge. So the library leaves polygons to `pycocotools`: being a little different from the evaluation would cost a little AP (average precision, by which detectors are compared), and nothing would be won.
#
# ### Break it: a pen with a width
#
# Drawing libraries have polygons too, and this is how many home-made datasets come about. But Pillow draws the outline as well, with a pen one pixel wide. And scikit-image counts from the other origin: there the centre of the first pixel is at $(0, 0)$. Squares show what this does.


# %%
def pillow_mask(polygon, height, width):
    paper = Image.new("1", (width, height))
    ImageDraw.Draw(paper).polygon(polygon, fill=1, outline=1)
    return np.asarray(paper)


def skimage_mask(polygon, height, width):
    return skimage.draw.polygon2mask((height, width), np.reshape(polygon, (-1, 2))[:, ::-1])


print("side   pixels: right  Pillow  scikit-image   IoU: Pillow  scikit-image")
for side in (4, 8, 16, 32, 64):
    square = (np.float32([0, 0, side, 0, side, side, 0, side]) + 10).tolist()
    right, pillow, scikit = (f(square, 100, 100) for f in (polygon_mask, pillow_mask, skimage_mask))
    print(f"{side:>4}   {right.sum():>13}  {pillow.sum():>6}  {scikit.sum():>12}", end="   ")
    print(f"{mask_iou(right, pillow):>11.3f}  {mask_iou(right, scikit):>12.3f}")

# %% [markdown]
# All sides land on whole pixels here, so nothing has to be rounded and the right answer is the side squared. Both libraries add a row and a column. An object of 8 pixels loses a fifth of its IoU before any network has seen it. Nothing fails, the pictures look right, and AP of small objects is low for ever.

# %% [markdown]
# ## 3. From pixels to a box
#
# The box of an object is the smallest one that holds its mask. In rows: it begins where the first row with a true pixel begins, and ends where the last one *ends*, which is one more than its index.
#
# $$y_1 = \min \{ i : \exists j\; M_{ij} \} \qquad y_2 = 1 + \max \{ i : \exists j\; M_{ij} \}$$
#
# and likewise for $x$. `argmax` of a boolean array is the index of its first true. From the other end, `argmax` of the reversed array counts the false rows below the object. A mask without a pixel gets a box of zeros, as a padding slot has.


# %%
def boxes_from_masks(masks):
    """(N, H, W) bool -> (N, 4) float32 y1, x1, y2, x2; zeros for a mask without a pixel."""
    height, width = masks.shape[1:]
    rows, columns = masks.any(2), masks.any(1)
    boxes = np.stack(
        [rows.argmax(1), columns.argmax(1), height - rows[:, ::-1].argmax(1), width - columns[:, ::-1].argmax(1)],
        axis=1,
    )
    return np.where(rows.any(1)[:, None], boxes, 0).astype(np.float32)


# %% [markdown]
# By hand: in this mask the rows 0 to 2 and the columns 1 to 3 have a true pixel, so the box is $(0, 1, 3, 4)$. It is the toy example of the next section, too.

# %% tags=["nbval-check-output"]
toy = np.array([[0, 1, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1]], bool)
print(boxes_from_masks(toy[None])[0])
random_masks = rng.uniform(size=(50, 30, 40)) < 0.002  # few pixels each, in some none
check("boxes_from_masks", boxes_from_masks(random_masks), mr.datasets.dataset.boxes_from_masks(random_masks))
print("empty masks among them:", np.count_nonzero(~random_masks.any((1, 2))))

# %% [markdown]
# Why not take the box from the polygon? COCO's file does: its `bbox` is $x, y$, width, height of the polygon, with fractions. We compute it from the pixels, because then every dataset has its boxes in one convention, however its masks are stored, and they stay right when an image is flipped, cropped or resized. The spoon was clicked on whole pixels, so for it they agree; move the clicks 0.3 pixels down and to the right, and they do not.

# %% tags=["nbval-check-output"]
for move in (0, 0.3):
    moved = [(np.array(polygon) + move).tolist() for polygon in spoon]
    clicks = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in moved])
    box = boxes_from_masks(polygons_mask(moved, height, width)[None])[0].astype(int)
    print(f"from the polygons {[*clicks.min(0)[::-1].tolist(), *clicks.max(0)[::-1].tolist()]}, ", end="")
    print(f"from the pixels {box.tolist()}")
print(f"of the box is spoon: {spoon_mask.sum() / np.prod(box[2:] - box[:2]):.0%}")

# %% [markdown]
# Both pieces are in one box, and three quarters of the box are not spoon. That is why the masks exist.
#
# ### Break it: the last pixel left out
#
# `np.nonzero(mask)` gives the indices of the true pixels, and their minimum and maximum look like a box. It lacks the last row and the last column. The area of a square of side $s$ becomes $(s-1)^2$ instead of $s^2$.


# %%
def boxes_without_end(masks):
    places = [np.argwhere(mask) for mask in masks]
    return np.float32([[*found.min(0), *found.max(0)] for found in places])


for side in (1, 4, 16, 64, 256):
    mask = np.zeros((1, 300, 300), bool)
    mask[0, 20 : 20 + side, 30 : 30 + side] = True
    wrong, right = boxes_without_end(mask), boxes_from_masks(mask)
    print(f"side {side:>3}: IoU of the boxes {float(mr.boxes.iou(wrong, right)[0, 0]):.3f}")

# %% [markdown]
# An object one pixel high or wide has no area at all, and a loss that takes the logarithm of its height, as chapter 05's does, is infinite. `torchvision.ops.masks_to_boxes` is defined in this way. Whoever trains torchvision's detector on its boxes can meet a box of height 0, which the model refuses.

# %% [markdown]
# ## 4. Run lengths
#
# A mask of the photograph has 240,000 pixels, nearly all of them equal to their neighbour. So COCO's files hold the lengths of the runs of equal pixels: so many zeros, so many ones, so many zeros. This is **run-length encoding**, RLE. Two agreements belong to it. The first run is of zeros, and has length 0 if the first pixel is a one. And the pixels are read column by column, from top to bottom, which is how Matlab, one of the toolkit's languages, stores arrays.


# %%
def run_lengths(mask):
    """(H, W) bool -> lengths of the runs, zeros first, down the columns: a list of int."""
    pixels = mask.ravel(order="F")
    starts = np.flatnonzero(np.diff(pixels, prepend=False))  # where a pixel differs from the one before it
    return np.diff(starts, prepend=0, append=pixels.size).tolist()


# %% [markdown]
# By hand: the columns of the toy mask are 000, 110, 111 and 011. Written in a row they are 000110111011: three zeros, two ones, one zero, three ones, one zero, two ones.

# %% tags=["nbval-check-output"]
print(toy.astype(int))
print(run_lengths(toy))

# %% [markdown]
# The other way round, `np.repeat` writes zeros and ones in turn, each as often as its run says, and the reshape puts the columns back.


# %%
def mask_of_runs(runs, height, width):
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape((height, width), order="F")


fig, axes = plt.subplots(1, 3, figsize=(9, 2.8), width_ratios=(4, 5, 1.5), layout="constrained")
order = np.arange(toy.size).reshape(toy.shape, order="F")
axes[0].imshow(toy, cmap="Blues", vmax=2)
for (i, j), n in np.ndenumerate(order):
    axes[0].text(j, i, n, ha="center", va="center")
axes[0].set(title="the order of reading", xticks=range(4), yticks=range(3), xlabel="column", ylabel="row")
ends = np.cumsum(run_lengths(spoon_mask))
runs = np.diff(ends[: len(ends) // 2 * 2].reshape(-1, 2))[:, 0]
axes[1].bar(np.arange(len(runs)), runs, width=1)
axes[1].set(title=f"the spoon: {len(runs)} runs of ones", xlabel="run", ylabel="length, pixels")
axes[2].imshow(mask_of_runs(run_lengths(spoon_mask), height, width)[55:335, 315:435], cmap="Blues", vmax=2)
axes[2].set(title="and back", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# **Figure 1.3.** Left: the toy mask, its pixels numbered as run lengths count them. Middle: the lengths of the spoon's runs of ones from left to right; each is a cut from top to bottom through one of its pieces, and where one piece is above the other, short and long take turns. Right: the mask that the runs give back.
#
# Figure 1.3 also shows what makes a mask cheap: one or two runs for each column that the object touches, however large the image. COCO then squeezes the numbers into a string. Neighbouring columns are alike, so from the fourth number on each is replaced by its difference from the one two places before it, which belongs to the last column. Differences are small, and are written in groups of five bits: four and a sign for a small number, and a sixth bit that says whether more groups follow. Adding 48, the code of the letter "0", makes each group a printable letter.


# %%
def compress(runs):
    """COCO's string for a list of run lengths."""
    letters = ""
    for i, run in enumerate(runs):
        left, more = run - runs[i - 2] if i > 2 else run, True
        while more:
            group, left = left & 31, left >> 5
            more = left != (-1 if group & 16 else 0)  # what is left is only the sign, which bit 16 already tells
            letters += chr(48 + group + 32 * more)
    return letters


def encode_rle(masks):
    """(N, H, W) bool -> a list of {"size": [H, W], "counts": str}."""
    return [{"size": list(mask.shape), "counts": compress(run_lengths(mask))} for mask in masks]


# %% [markdown]
# The toy's runs 3, 2, 1, 3, 1, 2 become 3, 2, 1 and the differences 3 - 2, 1 - 1 and 2 - 3. The last is -1, in five bits 11111 or 31, and 48 + 31 is the code of "O". The library asks `pycocotools` for the string, so the check is against the toolkit's C code.

# %% tags=["nbval-check-output"]
print(encode_rle(toy[None])[0])


def letters(encoded):
    return [ord(letter) for runs in encoded for letter in runs["counts"]]


masks = np.stack([cup_mask, spoon_mask, ~cup_mask])
check("encode_rle, objects", letters(encode_rle(masks)), letters(mr.masks.encode_rle(masks)))
noise = rng.uniform(size=(20, 30, 40)) < 0.5
check("encode_rle, noise", letters(encode_rle(noise)), letters(mr.masks.encode_rle(noise)))

# %% tags=["nbval-check-output"]
sizes = {
    "bytes of the array": spoon_mask.nbytes,
    "one bit a pixel": len(np.packbits(spoon_mask)),
    "run lengths as text": len(json.dumps(run_lengths(spoon_mask))),
    "compressed run lengths": len(encode_rle(spoon_mask[None])[0]["counts"]),
    "polygons as text": len(json.dumps(spoon)),
}
for name, size in sizes.items():
    print(f"{name:<24}{size:>8,} bytes")

# %% [markdown]
# ### Break it: along the rows
#
# NumPy reads along the rows unless it is told otherwise. Who writes `reshape(height, width)` for COCO's runs gets this:

# %%
runs = np.array(run_lengths(spoon_mask))
by_rows = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.1), layout="constrained")
for ax, mask, title in zip(axes, (spoon_mask, by_rows), ("down the columns", "along the rows"), strict=True):
    ax.imshow(mask, cmap="Blues", vmax=1.5, interpolation="nearest")
    ax.set(title=title, xlabel="x, pixels", ylabel="y, pixels")
plt.show()
square = spoon_mask[:, 150:550]
wrong = np.repeat(np.arange(len(run_lengths(square))) % 2 == 1, run_lengths(square)).reshape(square.shape)
print(f"IoU with the spoon: {mask_iou(spoon_mask, by_rows):.3f}")
print(f"on a square image:  {mask_iou(square, wrong):.3f}; transposed {mask_iou(square.T, wrong):.3f}")

# %% [markdown]
# **Figure 1.4.** The spoon's run lengths read in both ways. The number of pixels is the same.
#
# In Figure 1.4 anyone sees the mistake. On a square image the result is the transposed mask: a whole object with a clean outline, in a wrong place. On the Shapes pictures, which are square and have round and square objects, one could overlook that for a while. The area, which many people check, is right in both.

# %% [markdown]
# ## 5. An annotation file
#
# Now we have what a COCO file needs: a list of images, one of categories, one of annotations. We write our own. The saucer is stored as run lengths: its disc, without what stands on it. And `iscrowd` is 1 where one mask covers many objects, such as a heap of apples; training then leaves the region alone, and evaluation does not count what is found there as wrong.

# %%
# fmt: off
disc = polygon_mask([
    178, 72, 150, 86, 122, 108, 100, 136, 85, 168, 77, 205, 78, 240, 87, 275, 104, 308, 130, 338, 162, 362, 200, 378,
    240, 386, 285, 389, 330, 386, 370, 376, 408, 358, 438, 334, 460, 304, 474, 270, 479, 235, 475, 200, 463, 165,
    445, 135, 418, 108, 350, 60, 240, 50,
], height, width)
# fmt: on
saucer_mask = disc & ~cup_mask & ~spoon_mask


def entry(number, category, mask, segmentation):
    y1, x1, y2, x2 = boxes_from_masks(mask[None])[0].tolist()
    return {
        "id": number, "image_id": 1, "category_id": category, "iscrowd": 0, "area": int(mask.sum()),
        "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": segmentation,
    }  # fmt: skip


annotations = {
    "images": [{"id": 1, "file_name": "coffee.png", "height": height, "width": width}],
    "categories": [{"id": 47, "name": "cup"}, {"id": 50, "name": "spoon"}, {"id": 91, "name": "saucer"}],
    "annotations": [
        entry(1, 47, cup_mask, cup),
        entry(2, 50, spoon_mask, spoon),
        entry(3, 91, saucer_mask, encode_rle(saucer_mask[None])[0]),
    ],
}
folder = Path(tempfile.mkdtemp())
(folder / "mine").mkdir()
(folder / "annotations").mkdir()
Image.fromarray(image).save(folder / "mine" / "coffee.png")
(folder / "annotations" / "instances_mine.json").write_text(json.dumps(annotations))

dataset = mr.CocoDataset(folder, "mine")
found = dataset.instances(0)
fig, ax = plt.subplots(figsize=(4, 2.7), layout="constrained")
mr.plots.instances(dataset.image(0), found, class_names=dataset.class_names, ax=ax)
plt.show()

# %% [markdown]
# **Figure 1.5.** What the library reads from the file: `mr.CocoDataset` decodes polygons and runs, and computes the boxes from the pixels.
#
# For Figure 1.5 it has renumbered the classes: COCO's category ids have gaps (80 classes, ids up to 90), ours run from 1 to $C - 1$, in the order of the ids. 0 is the background. The box check compares your boxes of the toolkit's masks with the library's.

# %% tags=["nbval-check-output"]
print("classes:", list(enumerate(dataset.class_names)))
for label, box, mask, mine in zip(
    found.classes, found.boxes, found.masks, (cup_mask, spoon_mask, saucer_mask), strict=True
):
    print(f"{dataset.class_names[label]:<7} {mask.sum():>6} pixels, box {box.astype(int).tolist()}", end="")
    print(f", IoU with your mask {mask_iou(mask, mine):.4f}")
check("boxes", boxes_from_masks(found.masks), found.boxes)

# %% [markdown]
# ## 6. Box-cropped masks
#
# The network wants batches. COCO has up to some hundred objects on an image; with 100 slots and an image of 800 x 1216 pixels, full masks are 97 MB for each image, nearly all of it zeros outside the boxes. So we cut each mask out with its box and resize it to a fixed number of cells: 100 masks of 56 x 56 are 0.3 MB, whatever the image. The seed called these "mini masks". The mask head's answer has the same form, 28 x 28 cells in a box.
#
# A cell that an outline passes through is neither 0 nor 1. We store how much of it is covered, 0 to 255. The resize is Pillow's, which averages with a triangle as wide as two cells: if a cell is $r$ pixels high ($r \ge 1$), then the pixel at $i$ counts in cell $k$ with a weight proportional to
#
# $$\max\left(0,\; 1 - \frac{\left|i + \tfrac12 - (k + \tfrac12)\, r\right|}{r}\right)$$
#
# and a cell's weights add up to 1.


# %%
def crop_masks(masks, boxes, side):
    """(N, H, W) bool, (N, 4) -> (N, side, side) uint8, 0 (nothing) to 255 (all)."""
    crops = np.zeros((len(masks), side, side), np.uint8)
    for crop, mask, (y1, x1, y2, x2) in zip(crops, masks, boxes, strict=True):
        top, left = int(y1), int(x1)
        part = Image.fromarray(mask[top : int(np.ceil(y2)), left : int(np.ceil(x2))].astype(np.uint8) * 255)
        window = (x1 - left, y1 - top, x2 - left, y2 - top)
        crop[:] = part.resize((side, side), Image.Resampling.BILINEAR, box=window)
    return crops


# %% [markdown]
# By hand: a mask of 4 x 4 pixels whose left half is true, in 2 x 2 cells, so $r = 2$. The first cell's centre is at 1. The pixels' centres are 0.5, 1.5, 2.5 and 3.5, and their weights are 3/4, 3/4, 1/4 and 0, divided by their sum 7/4: 3/7, 3/7, 1/7 and 0. Two of the pixels are true: $255 \cdot 6/7 = 219$. The second cell gets $255 \cdot 1/7 = 36$. So "how much of a cell is covered" is a little blurred: each cell looks half a cell into its neighbours. The half at which we cut later stays where it was.

# %% tags=["nbval-check-output"]
half = np.zeros((1, 4, 4), bool)
half[:, :, :2] = True
print(crop_masks(half, [(0, 0, 4, 4)], 2)[0])

some = np.concatenate([found.masks, found.masks])
places = np.concatenate([found.boxes, found.boxes + rng.uniform(-4, 4, (3, 4))]).astype(
    "float32"
)  # whole, and fractions
for side in (14, 56):
    check(
        f"crop_masks, {side} cells",
        crop_masks(some, places, side),
        mr.datasets.transforms.crop_masks(some, places, side),
    )

# %% [markdown]
# ## 7. Pasting
#
# The way back. Given $m \times m$ values in a box, which pixels of the image belong to the object? Each pixel's centre is looked up in the grid. Pixel $i$ of the image lies at
#
# $$u_i = \frac{i + \tfrac12 - y_1}{y_2 - y_1}\, m - \tfrac12$$
#
# in units where cell $k$ has its centre at $k$: the first half goes from a pixel's index to its centre, the last from a centre to a cell's index. Between cells we interpolate: cell $k$ counts with $\max(0, 1 - |u_i - k|)$, a hat around $u_i$. These weights are a matrix $W_y$ of as many rows as pixels and $m$ columns. With another, $W_x$, for the columns, the resized mask is a product, and a pixel is set where it reaches the threshold $\theta$:
#
# $$W_y \, M \, W_x^\top \ge \theta$$
#
# The paper does it in one sentence of section 3.1: the mask is "resized to the RoI size, and binarized at a threshold of 0.5".


# %%
def hat(position, side):
    return np.maximum(1 - np.abs(position[:, None] - np.arange(side, dtype=np.float32)), 0)


def pixel_centre_matrix(low, high, side, size):
    """Weights of `side` cells between `low` and `high` for each of `size` pixels: (size, side)."""
    if high <= low:
        return np.zeros((size, side), np.float32)
    position = (np.arange(size, dtype=np.float32) + 0.5 - low) / (high - low) * side - 0.5
    return hat(position, side)


def paste(masks, boxes, height, width, threshold=0.5):
    """(N, m, m) from 0 to 1, (N, 4) -> (N, height, width) bool."""
    masks, boxes = np.asarray(masks, np.float32), np.asarray(boxes, np.float32)
    pasted = np.zeros((len(masks), height, width), bool)
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        wy = pixel_centre_matrix(y1, y2, masks.shape[1], height)
        wx = pixel_centre_matrix(x1, x2, masks.shape[2], width)
        pasted[i] = wy @ masks[i] @ wx.T >= threshold
    return pasted


# %% [markdown]
# By hand: two cells, 1 and 0, in a box from 1 to 5. Pixel 1 has its centre at 1.5, and $u = 0.5 / 4 \cdot 2 - 0.5 = -0.25$: three quarters of the first cell. A quarter is missing, as if a cell of zeros lay around the grid. Pixels 2, 3 and 4 have $u = 0.25$, $0.75$ and $1.25$. So in pixels 1 to 4 the first cell has the weights 0.75, 0.75, 0.25, 0 and the second 0, 0.25, 0.75, 0.75. Since the second cell is 0, the result is the first cell's weights, and it reaches one half in pixels 1 and 2: half of the box. Pixels 0 and 5, outside the box, have a quarter, and stay below.

# %% tags=["nbval-check-output"]
print(pixel_centre_matrix(1, 5, 2, 6))

probabilities = rng.uniform(size=(30, 28, 28)).astype("float32")
corner = rng.uniform(-10, 60, (30, 2))
anywhere = np.concatenate([corner, corner + rng.uniform(0, 60, (30, 2))], axis=1).astype("float32")
check("paste", paste(probabilities, anywhere, 80, 90), mr.masks.paste(probabilities, anywhere, 80, 90))
check(
    "paste, threshold 0.3",
    paste(probabilities, anywhere, 80, 90, 0.3),
    mr.masks.paste(probabilities, anywhere, 80, 90, threshold=0.3),
)

# %% [markdown]
# The library's `paste` computes only the pixels in reach of the box, since 100 detections on a large photograph would otherwise take most of the time, and it has the two other systems' ways beside this one.
#
# ### There and back
#
# How good is a mask of 28 x 28 cells at all? Cut each object out, paste it back, compare.

# %%
grids = (7, 14, 28, 56, 112)


def there_and_back(masks, boxes, side):
    return paste(crop_masks(masks, boxes, side) / 255, boxes, *masks.shape[1:])


fig, axes = plt.subplots(2, 4, figsize=(9, 5.6), layout="constrained")
box = found.boxes[1].astype(int)
for column, side in zip(axes.T, grids, strict=False):
    column[0].imshow(crop_masks(found.masks[1:2], found.boxes[1:2], side)[0], cmap="gray")
    column[0].set_title(f"{side} x {side} cells")
    back = there_and_back(found.masks[1:2], found.boxes[1:2], side)[0]
    shades = np.uint8([[255, 255, 255], [213, 94, 0], [0, 114, 178], [190, 190, 190]])  # none, lost, gained, both
    column[1].imshow(shades[found.masks[1] + 2 * back][box[0] : box[2], box[1] : box[3]])
    column[1].set_title(f"IoU {mask_iou(found.masks[1], back):.3f}")
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
plt.show()

# %% [markdown]
# **Figure 1.6.** Above: the spoon in its box, as the network would be given it, stretched to a square. Below: pasted back on the image. Grey is right, orange lost, blue gained.
#
# The table has Figure 1.6 in numbers, for all three objects, and beside each IoU what is left of it when a cell may only be 0 or 1.

# %% tags=["nbval-check-output"]
print("IoU after crop and paste; in brackets: with cells of 0 or 1\n")
print("cells  " + "".join(f"{dataset.class_names[label]:>16}" for label in found.classes))
for side in grids:
    soft = there_and_back(found.masks, found.boxes, side)
    cells = crop_masks(found.masks, found.boxes, side) >= 128
    hard = paste(cells, found.boxes, height, width)
    pairs = [(mask_iou(a, b), mask_iou(a, c)) for a, b, c in zip(found.masks, soft, hard, strict=True)]
    print(f"{side:>3}    " + "".join(f"{one:>9.3f} ({two:.3f})"[:17].rjust(16) for one, two in pairs))

# %% [markdown]
# At 28 cells the compact cup keeps 0.99, the spoon with its thin neck 0.97. For a network that answers with the covered share this is the ceiling, and COCO's strictest threshold is an IoU of 0.95. The share is worth more than twice as many cells: 28 with it are better than 56 without, for each of the three. That is why ground truth travels at 56 cells with shares, and is only cut at one half when it is seen through an RoI (chapter 08).
#
# Move the threshold and the box below. Look for two things: how little the threshold matters for the spoon's compact bowl and how much for its neck; and how much IoU one pixel of error in the box costs.

# %%
mr.widgets.MaskExplorer(
    crop_masks(found.masks[1:2], found.boxes[1:2], 28)[0] / 255, found.boxes[1], dataset.image(0), found.masks[1]
)

# %% [markdown]
# ### Break it: without the halves
#
# Leave out both halves in $u_i$, and look up pixel $i$ at $(i - y_1) / (y_2 - y_1) \cdot m$. This is what one writes first.


# %%
def paste_by_corners(masks, boxes, height, width):
    pasted = np.zeros((len(masks), height, width), bool)
    for i, (y1, x1, y2, x2) in enumerate(boxes):
        wy = hat((np.arange(height, dtype=np.float32) - y1) / (y2 - y1) * masks.shape[1], masks.shape[1])
        wx = hat((np.arange(width, dtype=np.float32) - x1) / (x2 - x1) * masks.shape[2], masks.shape[2])
        pasted[i] = wy @ masks[i] @ wx.T >= 0.5
    return pasted


print("side of the disc   right   without the halves   its centre moves by")
for side in (14, 28, 56, 112, 224, 448):
    y, x = np.mgrid[:500, :500] + 0.5
    disc = ((y - 250) ** 2 + (x - 250) ** 2 < (side / 2) ** 2)[None]
    place = boxes_from_masks(disc)
    crops = crop_masks(disc, place, 28) / np.float32(255)
    right, wrong = paste(crops, place, 500, 500)[0], paste_by_corners(crops, place, 500, 500)[0]
    moved = np.argwhere(wrong).mean() - np.argwhere(disc[0]).mean()
    print(f"{side:>16}   {mask_iou(disc[0], right):.3f}   {mask_iou(disc[0], wrong):>18.3f}   {moved:>+12.2f} pixels")

# %% [markdown]
# The mask moves up and left by half a cell less half a pixel: not at all where a cell is a pixel, 7.5 pixels at a side of 448. In units of the object that is always the same 1/56, so IoU falls to 0.94 for all large objects, and the picture still looks right. AP at an IoU of 0.5 does not notice. At 0.95 not one of these discs would count as found, though every other part of the network were perfect. Chapter 07 has the same half pixel on the way into the network.

# %% [markdown]
# > **How the others do it**
# >
# > *Paper.* Masks of 28 x 28 (figure 4), resized to the RoI and cut at 0.5 (section 3.1). How the resize treats half pixels is left to the code.
# >
# > *Detectron2.* Keeps polygons as polygons until the loss, and draws them in each RoI at 28 x 28 with COCO's toolkit: nothing is lost on the way there. It pastes as we do, by sampling at pixel centres.
# >
# > *torchvision.* Full masks for every image of a batch; the target is RoIAlign of the mask, soft. For pasting it puts a border of one cell around the mask (30 x 30), enlarges the box accordingly, rounds it to whole pixels and resizes.
# >
# > *The seed* (matterport/Mask_RCNN). Masks are (height, width, objects). Its mini masks are 56 x 56 and bool, rounded at one half: the brackets of the table above. Its boxes end one after the last pixel, as here. It pastes into boxes rounded to whole pixels with scikit-image's resize. A crowd has a negative class id, which we have kept. Its balloon example draws polygons with `skimage.draw.polygon`: see the pen above.

# %% [markdown]
# ## Exercises
#
# **1 (recall).** A mask of 3 rows and 3 columns is true on its diagonal. Give its box, its run lengths and its area.
#
# <details><summary>Hint</summary>
#
# The columns are 100, 010 and 001. What comes first in a list of runs?
#
# </details>
#
# <details><summary>Solution</summary>
#
# The box is (0, 0, 3, 3). The runs are 0, 1, 3, 1, 3, 1: no zeros first, then a one, three zeros, and so on. The area is 3, a third of the box.
#
# ```python
# diagonal = np.eye(3, dtype=bool)
# assert run_lengths(diagonal) == [0, 1, 3, 1, 3, 1]
# assert boxes_from_masks(diagonal[None]).tolist() == [[0, 0, 3, 3]]
# ```
#
# </details>
#
# **2 (understand).** A zebra stands before a white wall, its black stripes are annotated. How many runs does the mask have if the stripes are upright, and how many if the zebra lies down? What does this say about when to store a mask as run lengths, and when as polygons?
#
# <details><summary>Hint</summary>
#
# Runs go down the columns. How often does a column change its colour?
#
# </details>
#
# <details><summary>Solution</summary>
#
# With upright stripes that fill the height, a stripe is one run, however wide: neighbouring columns of ones join. Lying, each column changes at every stripe, so there are as many runs as columns times stripes. Run lengths cost one run for each change down a column, polygons one point for each corner. Noisy masks with holes are for run lengths, drawn outlines for polygons; this is also what COCO does with them.
#
# ```python
# stripes = np.arange(100)[None, :].repeat(60, axis=0) % 20 < 10
# print(len(run_lengths(stripes)), len(run_lengths(stripes.T)))
# assert len(run_lengths(stripes)) < 20 < 500 < len(run_lengths(stripes.T))
# ```
#
# </details>
#
# **3 (build).** Write `decompress`, the inverse of `compress`, and check it on the cup and on noise.
#
# <details><summary>Hint</summary>
#
# A letter minus 48 has six bits: five of the number, lowest first, and 32 for "more follows". If the last group has bit 16, the number is negative: subtract 1 shifted left by all the bits read.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def decompress(letters):
#     runs, value, bits = [], 0, 0
#     for letter in letters:
#         code = ord(letter) - 48
#         value |= (code & 31) << bits
#         bits += 5
#         if code & 32:
#             continue
#         if code & 16:
#             value -= 1 << bits
#         runs.append(value + (runs[-2] if len(runs) > 2 else 0))
#         value, bits = 0, 0
#     return runs
#
#
# for mask in (cup_mask, ~cup_mask, *noise):
#     assert decompress(compress(run_lengths(mask))) == run_lengths(mask)
# check("mask of the string", mask_of_runs(decompress(mr.masks.encode_rle(masks)[0]["counts"]), height, width), masks[0])
# ```
#
# </details>
#
# **4 (measure).** `crop_masks` cuts the part out before it resizes it. Pillow could take the box from the whole mask in one call. Is the result the same? Which is better, there and back?
#
# <details><summary>Hint</summary>
#
# Outside its tight box a mask is 0. What do the outermost cells average over in each case?
#
# </details>
#
# <details><summary>Solution</summary>
#
# Not the same: with the whole mask, the outermost cells also average over half a cell of zeros beyond the box. Cut out, they average over what is inside only, and an outline that curves away from the box's edge comes out a little too full.
#
# ```python
# def crop_whole(masks, boxes, side):
#     return np.stack([
#         np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).resize(
#             (side, side), Image.Resampling.BILINEAR, box=(x1, y1, x2, y2)
#         ))
#         for mask, (y1, x1, y2, x2) in zip(masks, boxes, strict=True)
#     ])
#
#
# for side in (14, 28, 56):
#     cut = paste(crop_masks(found.masks, found.boxes, side) / 255, found.boxes, height, width)
#     whole = paste(crop_whole(found.masks, found.boxes, side) / 255, found.boxes, height, width)
#     print(side, [f"{mask_iou(t, a):.4f} {mask_iou(t, b):.4f}" for t, a, b in zip(found.masks, cut, whole)])
# ```
#
# There and back the whole mask is the better one from 28 cells on, by 0.001 to 0.003 of IoU, and costs a copy of the whole image for each object. The library takes the cheaper one; at 56 cells both are far above what a network reaches.
#
# </details>
#
# **5 (research).** IoU of masks hides errors at the edge of large objects. *Boundary IoU* (Cheng et al., 2021) compares only the pixels within a distance $d$ of each mask's own outline, with $d$ 2% of the image's diagonal. Measure it for masks that went there and back at 28 and at 56 cells, for the three objects. Which object's number changes most against mask IoU, and why?
#
# <details><summary>Hint</summary>
#
# A mask without its erosion is its rim: `scipy.ndimage.binary_erosion` with `iterations=d`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# from scipy.ndimage import binary_erosion
#
# distance = round(0.02 * np.hypot(height, width))
#
#
# def rim(mask):
#     return mask & ~binary_erosion(np.pad(mask, distance), iterations=distance)[distance:-distance, distance:-distance]
#
#
# for side in (28, 56):
#     for label, mask, back in zip(found.classes, found.masks, there_and_back(found.masks, found.boxes, side)):
#         both = mask_iou(mask, back), mask_iou(rim(mask), rim(back))
#         print(f"{side} cells, {dataset.class_names[label]:<7} mask IoU {both[0]:.3f}, boundary IoU {both[1]:.3f}")
#         assert both[1] <= both[0]
# ```
#
# The saucer and the cup, since they have much inside. The spoon is hardly thicker than twice $d$: nearly all of it is rim. So boundary IoU asks the same precision in pixels from large objects as mask IoU asks from small ones. The paper finds that heads which refine outlines, such as PointRend, gain more in it than in mask AP.
#
# </details>

# %% [markdown]
# ## Summary
#
# An image is a plane of unit squares, and a pixel's centre is half a step from its index. A polygon becomes a mask by asking each centre whether it is inside. A box is the tight one around the mask, and ends after the last pixel. Run lengths go down the columns and begin with zeros. For the network, each mask is cut out with its box and stored as the covered share of a few cells; pasting looks each pixel's centre up in that grid and cuts at one half. Each of these steps has a half in it that is easily lost, costs small objects most, and does not show in a picture.
#
# **Read now:** [`maskrcnn_edu/masks.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/masks.py), with the other systems' ways of pasting beside yours; `boxes_from_masks` at the end of [`datasets/dataset.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/datasets/dataset.py) and `crop_masks` in [`datasets/transforms.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/datasets/transforms.py).
#
# **Next:** chapter 02 makes batches of such images and annotations, and has to keep boxes and masks right while it resizes, flips and pads.
#
# ## Further reading
#
# - T.-Y. Lin et al.: *Microsoft COCO: Common Objects in Context*, ECCV 2014. Section 4 tells how the outlines were made. [arXiv:1405.0312](https://arxiv.org/abs/1405.0312)
# - The COCO toolkit's [`maskApi.c`](https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c): run lengths, their strings, and polygons, in 230 lines of C.
# - K. He, G. Gkioxari, P. Dollár, R. Girshick: *Mask R-CNN*, ICCV 2017. Section 3.1. [arXiv:1703.06870](https://arxiv.org/abs/1703.06870)
# - B. Cheng, R. Girshick, P. Dollár, A. Berg, A. Kirillov: *Boundary IoU: Improving Object-Centric Image Segmentation Evaluation*, CVPR 2021. [arXiv:2103.16562](https://arxiv.org/abs/2103.16562)
# - A. Kirillov, Y. Wu, K. He, R. Girshick: *PointRend: Image Segmentation as Rendering*, CVPR 2020. Finer than 28 x 28, where it matters. [arXiv:1912.08193](https://arxiv.org/abs/1912.08193)

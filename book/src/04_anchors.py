# ---
# jupyter:
#   book:
#     title: Anchors
#     library: [anchors]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Anchors
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/04_anchors.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F04_anchors.ipynb) (neither has been tried)
#
# **A convolutional network answers with a grid of numbers, the same grid for every picture. Objects are anywhere, of any size, none or twenty. How can the grid speak about them?**
#
# After this chapter you can
#
# - build the anchors of a feature pyramid, and say which anchor the 1234th number of the network's output belongs to;
# - compute for any object how well the best anchor fits it, before a network is trained;
# - recognise three mistakes in anchors that raise no error.
#
# You need chapter 03 (the pyramid, its levels and strides). The chapter runs in about ten seconds on two cores, without a GPU or a network.

# %%
# On Colab or Binder: install what is missing. At home this does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("maskrcnn_edu") is None:
    address = "maskrcnn_edu[book] @ git+https://github.com/maskrcnn-edu/maskrcnn_edu"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", address], check=True)

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import skimage.data
from keras import ops

import maskrcnn_edu as mr
from maskrcnn_edu.book import check
from maskrcnn_edu.proposals import run_rpn_head

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# The library ships a small detector that was trained on drawn circles, squares and triangles. Its first half, the region proposal network (RPN), looks at each cell of each pyramid level and gives a score from 0 to 1 that an object is there, its **objectness**. We ask it about a hundred pictures it has never seen, keep the answers for later, and look at those for one picture. (`logits` are the scores before the sigmoid; `deltas` say how to correct a box, which is chapter 05.)

# %%
model = keras.saving.load_model(mr.files("shapes.keras"))
config = model.config
dataset = mr.ShapesDataset(100, seed=1)
images = np.stack([dataset.image(i) for i in range(len(dataset))])
objects = [dataset.instances(i).boxes for i in range(len(dataset))]
sizes = np.full((len(images), 2), 128, np.float32)  # height and width of each picture
logits, deltas = run_rpn_head(model.rpn, model.backbone(model.normalise(images, sizes)))

shown, ratios = 8, len(config.anchor_ratios)
fig, axes = plt.subplots(1, 4, figsize=(9, 2.8), layout="constrained")
mr.plots.instances(images[shown], boxes=objects[shown], ax=axes[0])
axes[0].set_title("objects", fontsize=10)
for ax, level, stride in zip(axes[1:], logits, config.strides, strict=True):
    cells = 128 // stride
    objectness = ops.sigmoid(level[shown]).numpy().reshape(cells, cells, ratios).max(-1)
    drawn = ax.imshow(objectness, cmap="viridis", vmin=0, vmax=1)
    ax.set_title(f"P{int(np.log2(stride))}: {cells} x {cells} cells", fontsize=10)
    ax.axis("off")
fig.colorbar(drawn, ax=axes[1:], shrink=0.8, label="objectness")
plt.show()

# %% [markdown]
# **Figure 4.1.** A picture, and where the RPN sees an object on the levels P2, P3 and P4. The small square lights up on P2 and P3, the two large shapes on P4, the triangle a little on P3, too; each around its middle.
#
# In Figure 4.1 a cell does not say "object" about nothing in particular. It answers a fixed question: is there an object that roughly fills *this* box? The boxes in the questions are the **anchors**. They are laid out once, before training, from four numbers: stride, size, ratio and the size of the picture. No anchor is ever learnt. This chapter lays them out, and measures what they can and cannot reach.

# %% [markdown]
# ## 1. The anchors of one cell
#
# A cell asks about several shapes. They share an area and differ in the **ratio** $\rho$ of height to width. With $s$ the side of the square one (Faster R-CNN, section 3.1.1; three ratios 1:2, 1:1, 2:1):
#
# $$h = s\sqrt{\rho} \qquad w = \frac{s}{\sqrt{\rho}} \qquad\Rightarrow\qquad hw = s^2, \quad \frac{h}{w} = \rho$$
#
# We write them around the origin, so that adding a place puts them there.


# %%
def cell_anchors(size, ratios):
    """Anchors around the origin, one a ratio (height / width), each of area size**2: (A, 4) float32."""
    ratios = np.asarray(ratios, np.float64)
    h, w = size * np.sqrt(ratios), size / np.sqrt(ratios)
    return (np.stack([-h, -w, h, w], axis=-1) / 2).astype(np.float32)


# %% [markdown]
# By hand: size 8 and ratio 4. The height is $8 \cdot 2 = 16$, the width $8 / 2 = 4$, the area $64 = 8^2$. Around the origin this is $(-8, -2, 8, 2)$. Ratio 1/4 lies on its side. Figure 4.2 draws the usual three ratios.

# %% tags=["nbval-check-output"]
print(cell_anchors(8, [0.25, 1, 4]))

# %%
fig, ax = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
for (y1, x1, y2, x2), ratio, colour in zip(
    cell_anchors(64, config.anchor_ratios), config.anchor_ratios, ("tab:blue", "tab:orange", "tab:green"), strict=True
):
    name = f"{ratio:g}: {y2 - y1:.1f} x {x2 - x1:.1f}"
    ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=2, label=name))
ax.plot(0, 0, "k+")
ax.set(xlim=(-60, 60), ylim=(55, -55), xlabel="x, pixels", ylabel="y, pixels", aspect="equal")
ax.legend(title="ratio: height x width", loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# **Figure 4.2.** Three anchors of size 64, ratios 1:2, 1:1 and 2:1. All cover 4096 pixels.

# %% tags=["nbval-check-output"]
check("cell_anchors", cell_anchors(32, [0.5, 1, 2]), mr.anchors.cell_anchors(32, [0.5, 1, 2]))

# %% [markdown]
# ## 2. The anchors of one level
#
# A level of **stride** $\sigma$ has one cell for each $\sigma \times \sigma$ pixels. Cell $(i, j)$ puts its anchors at $(\sigma i, \sigma j)$, the upper left corner of what it covers. Not at its middle: Detectron2 and torchvision do so, and the network learns the constant half cell like any other shift. What matters is that training and use agree, which we shall break below.


# %%
def level_anchors(grid, stride, size, ratios):
    """Anchors of one level: (grid_h * grid_w * A, 4) float32, row by row, cell by cell, ratio by ratio."""
    y, x = np.meshgrid(np.arange(grid[0]) * stride, np.arange(grid[1]) * stride, indexing="ij")
    corner = np.stack([y, x, y, x], axis=-1).astype(np.float32)
    return (corner[:, :, None] + cell_anchors(size, ratios)).reshape(-1, 4)


# %% [markdown]
# `corner` has shape $(H, W, 4)$ and the anchors of a cell $(A, 4)$; with an axis between, they broadcast to $(H, W, A, 4)$. `reshape` then runs through the last index fastest. So anchor $a$ of cell $(i, j)$ is number
#
# $$k = (iW + j)A + a$$
#
# This order is a contract. The RPN answers with an array $(H, W, A)$ and is flattened in the same order; number $k$ of one belongs to number $k$ of the other, and nothing but the order says so.
#
# By hand: a grid of 2 x 3 cells, stride 4, one square anchor of size 8. The centres are (0, 0), (0, 4), (0, 8) in the first row, then (4, 0), (4, 4), (4, 8). Cell (1, 1) is number $1 \cdot 3 + 1 = 4$, centred at (4, 4): the box (0, 0, 8, 8). With three anchors a cell, the last of cell (1, 1) is number $(1 \cdot 3 + 1) \cdot 3 + 2 = 14$. Figure 4.3 has the levels of the small detector.

# %% tags=["nbval-check-output"]
print(level_anchors((2, 3), 4, 8, [1])[4])
answers = np.arange(2 * 3 * 3).reshape(2, 3, 3)  # stands for the head's output (H, W, A), numbered
print(answers[1, 1, 2], level_anchors((2, 3), 4, 8, [0.5, 1, 2])[14].round(1))

# %%
fig, axes = plt.subplots(1, 3, figsize=(9, 3.5), layout="constrained")
for ax, stride, size in zip(axes, config.strides, config.anchor_sizes, strict=True):
    cells = 128 // stride
    boxes = level_anchors((cells, cells), stride, size, config.anchor_ratios)
    mr.plots.picture(images[shown], ax)
    centres = (boxes[::ratios, :2] + boxes[::ratios, 2:]) / 2
    ax.plot(centres[:, 1], centres[:, 0], ".", color="white", markersize=2)
    middle = (cells // 2 * cells + cells // 2) * ratios
    for (y1, x1, y2, x2), colour in zip(boxes[middle : middle + ratios], mr.plots.COLOURS, strict=False):
        ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=colour, lw=1.8))
    ax.set_title(f"P{int(np.log2(stride))}: stride {stride}, size {size:g}, {len(boxes)} anchors", fontsize=10)
plt.show()

# %% [markdown]
# **Figure 4.3.** Each white dot is the centre of three anchors; those of one cell are drawn. From level to level stride and size double, so the picture of anchors only grows: each level has a quarter of the anchors of the one before.

# %% tags=["nbval-check-output"]
check("level_anchors", level_anchors((7, 5), 8, 32, [0.5, 1, 2]), mr.anchors.level_anchors((7, 5), 8, 32, [0.5, 1, 2]))

# %% [markdown]
# ## 3. The anchors of the pyramid
#
# Faster R-CNN had one feature map and put nine anchors in each of its cells, three sizes times three ratios. A feature pyramid has a level for each scale anyway, so FPN gives each level one size (FPN, section 4.1): 32, 64, 128, 256, 512 on P2 to P6, and the three ratios. The size is 8 times the stride on every level.
#
# A level's grid is the picture's size divided by the stride, rounded up. The picture is padded to a multiple of 32 beforehand, so only P6, of stride 64, ever needs the rounding.


# %%
def anchors_by_level(image_size, config):
    """One (n, 4) array a level, finest first, for a network input of `image_size` (height, width) pixels."""
    height, width = image_size
    levels = []
    for stride, size in zip(config.strides, config.anchor_sizes, strict=True):
        grid = -(-height // stride), -(-width // stride)
        levels.append(level_anchors(grid, stride, size, config.anchor_ratios))
    return levels


def pyramid_anchors(image_size, config):
    """All anchors for a network input of `image_size` (height, width) pixels: (N, 4) float32, finest level first."""
    return np.concatenate(anchors_by_level(image_size, config))


# %% [markdown]
# Left out here: the library refuses a size that is no multiple of 32, and it has torchvision's rounded anchors (exercise 3) and the seed's way to name a box by its last pixel.
#
# By hand: COCO's usual input, 800 x 1344. P2 has $200 \cdot 336 \cdot 3 = 201{,}600$ anchors, P3 a quarter, and so on. P6 has $\lceil 800/64 \rceil \cdot 21 \cdot 3 = 13 \cdot 21 \cdot 3 = 819$.

# %% tags=["nbval-check-output"]
coco = mr.Config()
for stride, size, level in zip(coco.strides, coco.anchor_sizes, anchors_by_level((800, 1344), coco), strict=True):
    print(f"stride {stride:>2}  size {size:>3g}  {len(level):>7,} anchors")
print(f"{'together':<18} {len(pyramid_anchors((800, 1344), coco)):>7,}")
for size in ((128, 128), (800, 1344)):
    settings = config if size == (128, 128) else coco
    check(f"pyramid_anchors {size[0]}", pyramid_anchors(size, settings), mr.anchors.pyramid_anchors(size, settings))

# %% [markdown]
# A quarter of a million questions about one photograph, of which perhaps fifty should be answered with yes. Three quarters of them are on the finest level. Keep this imbalance in mind: chapter 06 has to train against it. Figure 4.4 shows one cell of each level.

# %%
fig, ax = plt.subplots(figsize=(5.8, 4.7), layout="constrained")
mr.plots.anchors(skimage.data.coffee(), coco, ax=ax)
plt.show()

# %% [markdown]
# **Figure 4.4.** The anchors of one cell of each level on a photograph of 800 x 1200 pixels as the network sees it, padded to 1216: the black strip. Each level's three anchors are twice as large as those of the level before. At the picture's edge anchors reach over it; the library keeps them, as FPN does (section 5.1).

# %% [markdown]
# ## 4. What the anchors can reach
#
# The network will correct the best anchor, so the best anchor should be near. "Near" is measured by **IoU**, the area two boxes share divided by the area they cover together: 1 for equal boxes, 0 for boxes that do not touch. Chapter 05 builds it; here we use the library's. The thresholds that will matter in chapter 06 are 0.7, from which on an anchor counts as a hit, and 0.3, below which it counts as background.
#
# We can compute the worst case without a network. Take a square object whose side is exactly an anchor's, $s$. Centres are $\sigma$ apart, so the object is at most $\sigma/2$ off in each direction, a share $\epsilon = \sigma / 2s$ of its side. The two share $(1 - \epsilon)^2$ of an area, so
#
# $$\mathrm{IoU} \ge \frac{(1 - \epsilon)^2}{2 - (1 - \epsilon)^2}$$
#
# With FPN's $s = 8\sigma$, $\epsilon$ is 1/16 and the bound 0.78. Places are covered well. Now let the object sit perfectly but have a side of $\sqrt 2 \, s$, halfway to the next level. The anchor lies inside it and has half its area: IoU 0.5. Between two levels, sizes are covered badly.

# %% tags=["nbval-check-output"]
for name, epsilon in (("COCO, size 8 strides", 1 / 16), ("Shapes, size 4 strides", 1 / 8)):
    shared = (1 - epsilon) ** 2
    print(f"{name:<22} worst place {shared / (2 - shared):.2f}")
between = mr.boxes.iou(cell_anchors(32, [1]), cell_anchors(32 * np.sqrt(2), [1]))[0, 0]
print(f"{'both':<22} worst size  {between:.2f}")

# %% [markdown]
# The whole picture: objects of every height and width, each in 20 random places, and the IoU of the best of all anchors (Figure 4.5).


# %%
def best_iou(boxes, anchors):
    """The IoU of each box (N, 4) with the anchor that fits it best: (N,)."""
    return np.asarray(mr.boxes.iou(boxes, anchors)).max(1)


sides = 2 ** np.arange(4, 9.01, 0.125)
places = rng.uniform(240, 272, (20, 1, 2))
height, width = (side.ravel() for side in np.meshgrid(sides, sides, indexing="ij"))
half = np.stack([height, width], axis=-1) / 2
candidates = np.concatenate([places - half, places + half], axis=-1)  # (20, n, 4)
anchors = pyramid_anchors((512, 512), coco)
anchors = anchors[np.all((anchors[:, :2] < 290) & (anchors[:, 2:] > 222), axis=1)]  # the others are far away
reach = np.mean([best_iou(boxes, anchors) for boxes in candidates], axis=0).reshape(len(sides), -1)

fig, ax = plt.subplots(figsize=(5.6, 4.4), layout="constrained")
drawn = ax.pcolormesh(sides, sides, reach, cmap="viridis", vmin=0, vmax=1, shading="nearest")
lines = ax.contour(sides, sides, reach, levels=(0.3, 0.5, 0.7), colors="white", linewidths=(1, 1, 2))
ax.clabel(lines, fontsize=8)
ax.set(xscale="log", yscale="log", xlabel="width of the object, pixels", ylabel="height of the object, pixels")
ticks = (16, 32, 64, 128, 256, 512)
ax.set(xticks=ticks, yticks=ticks, xticklabels=ticks, yticklabels=ticks, aspect="equal")
ax.minorticks_off()
fig.colorbar(drawn, label="IoU of the best anchor")
plt.show()

# %% [markdown]
# **Figure 4.5.** How well COCO's anchors fit an object, by its height and width. Each thick line encloses the three anchors of a level, and there the best anchor reaches 0.7; P6 begins in the upper right corner. The valleys between the levels are at about 0.5. Towards the upper left and lower right, where objects are long and thin, the anchors lose touch, and so they do below 32 pixels.
#
# So 0.7 is reached on islands, and most objects between them would have no anchor to learn them. Chapter 06 has a rule against that: an object's best anchor is positive whatever its IoU. How often is the rule needed? On the Shapes pictures:

# %% tags=["nbval-check-output"]
shape_anchors = anchors_by_level((128, 128), config)
print("anchors of   objects with a best IoU of 0.3, 0.5, 0.7 or more")
for name, boxes in (*zip(("P2", "P3", "P4"), shape_anchors, strict=True), ("all", np.concatenate(shape_anchors))):
    best = np.concatenate([best_iou(found, boxes) for found in objects])
    print(f"{name:<12} " + "  ".join(f"{np.mean(best >= threshold):>6.1%}" for threshold in (0.3, 0.5, 0.7)))

# %% [markdown]
# Every object has an anchor of at least 0.5, but fewer than half have one of 0.7. No single level would do. And an IoU of 0.5 is enough: the shipped detector, which learnt from these anchors, finds these objects with boxes of IoU 0.93 on average, as section 5 shows.
#
# Drag the object below. Look for a place and a size at which no anchor reaches 0.7; then change the level's size or stride until one does, and watch how the number of anchors pays for it.

# %%
mr.widgets.AnchorExplorer(images[shown], objects[shown][0], config)

# %% [markdown]
# ## 5. Break it
#
# The network's answers for our hundred pictures lie in `logits` and `deltas`. They were learnt for the right anchors. We now apply them to wrong ones, and keep the 60 best boxes of each picture, the **proposals**. Three numbers are reported: the share of objects that some proposal reaches with IoU 0.5 (the **recall**), the same with 0.75, and the mean IoU of an object with its best proposal.


# %%
def report(name, levels):
    """Prints how well the proposals reach the objects if the anchors are `levels`."""
    proposals = np.asarray(model.select(logits, deltas, levels, sizes)[0])
    best = np.concatenate([best_iou(found, boxes) for found, boxes in zip(objects, proposals, strict=True)])
    print(
        f"{name:<20} recall {np.mean(best >= 0.5):.2f} at 0.5, {np.mean(best >= 0.75):.2f} at 0.75; IoU {best.mean():.2f}"
    )


report("right", shape_anchors)

# %% [markdown]
# ### Break it: columns before rows
#
# `np.meshgrid` counts x first unless it is told `indexing="ij"`. Forget it, and the anchors of cell $(i, j)$ go to cell $(j, i)$. The next slip moves the ratio from the last axis to the first. On square pictures both give arrays of the right shape, with exactly the right boxes in it.

# %%
columns_first = [
    level.reshape(128 // stride, 128 // stride, ratios, 4).swapaxes(0, 1).reshape(-1, 4)
    for level, stride in zip(shape_anchors, config.strides, strict=True)
]
ratio_first = [level.reshape(-1, ratios, 4).swapaxes(0, 1).reshape(-1, 4) for level in shape_anchors]
report("right", shape_anchors)
report("columns before rows", columns_first)
report("ratios before cells", ratio_first)

# %% [markdown]
# The first mirrors the picture on its diagonal, and only objects near the diagonal survive. The second scatters the boxes; what it still reaches, it reaches by chance. A network that is *trained* with either fails quietly: its loss falls, since background is right for nearly every anchor, and it never finds much. Test the order with a picture that is not square, or with one number worked out by hand, as in section 2.
#
# ### Break it: half a cell
#
# Somebody reads that anchors belong to the *middle* of their cell, which is a sound idea, and moves them by half a stride. The weights were trained on the corners.

# %%
half_a_cell = [level + stride / 2 for level, stride in zip(shape_anchors, config.strides, strict=True)]
report("right", shape_anchors)
report("half a cell off", half_a_cell)

# %% [markdown]
# At 0.5 nothing is lost, and a test that asks for IoU 0.5 passes. At 0.75 more than half of the objects are gone. Every box is off by 2, 4 or 8 pixels, an eighth of its anchor's size. A mistake of this size is easily taken for a badly trained network. It is why weights come with their conventions, and why the library has a `Config` for each published file.
#
# ### Break it: height over width, or width over height
#
# The seed counts ratios as width / height, Detectron2 as height / width. Both write them as 0.5, 1, 2. Read by the other's rule, the first and the third anchor of each cell change places.

# %%
swapped = [
    level_anchors((128 // stride, 128 // stride), stride, size, config.anchor_ratios[::-1])
    for stride, size in zip(config.strides, config.anchor_sizes, strict=True)
]
report("right", shape_anchors)
report("ratios swapped", swapped)

long_ones = [
    boxes[np.abs(np.log((boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1]))) > 0.25] for boxes in objects
]
print(f"objects at least 1.28 times longer one way: {sum(map(len, long_ones))} of {sum(map(len, objects))}")

# %% [markdown]
# Almost nothing happens, because nearly all shapes are as high as wide, and the square anchor serves them. The mistake waits for the first picture with a person or a car. A data set on which a mistake cannot show is no test for it.

# %% [markdown]
# > **How the others do it**
# >
# > *Paper.* Faster R-CNN: sizes 128, 256, 512 and three ratios in every cell of one map, nine anchors; those that cross the picture's edge take no part in training. FPN: one size a level, 32 to 512 on P2 to P6, and anchors over the edge do take part. Mask R-CNN follows FPN.
# >
# > *Detectron2.* As here: ratio is height / width, centres at multiples of the stride (offset 0), not rounded.
# >
# > *torchvision.* The same anchors with corners rounded to whole pixels, and the stride is the padded size divided by the number of cells, rounded down (exercise 3).
# >
# > *The seed* (matterport/Mask_RCNN). Centres at index times stride; ratio is width / height, so the three anchors of a cell come in the opposite order. Sizes 32 to 512. Boxes are normalised to 0..1 inside the network and named there by their last pixel.

# %% [markdown]
# ## Exercises
#
# **1 (recall).** A picture is 512 x 512 and the pyramid has P2 to P6 with three ratios. How many anchors are there, and which share lies on P2?
#
# <details><summary>Hint</summary>
#
# P2 has 128 x 128 cells, and each level a quarter of the cells of the one before.
#
# </details>
#
# <details><summary>Solution</summary>
#
# $3 (128^2 + 64^2 + 32^2 + 16^2 + 8^2) = 65{,}472$, three quarters of them on P2, since $1 + 1/4 + 1/16 + \ldots = 4/3$.
#
# ```python
# by_level = anchors_by_level((512, 512), coco)
# assert sum(map(len, by_level)) == 65472
# print(round(len(by_level[0]) / 65472, 3))
# ```
#
# </details>
#
# **2 (understand).** Write `cell_of(k, grid, A)`, which says from which row, column and ratio the $k$-th anchor of a level comes. Then answer the question of the opening: which anchor is number 1234 on P2 of a Shapes picture?
#
# <details><summary>Hint</summary>
#
# Undo $k = (iW + j)A + a$ with `divmod`, the last index first.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def cell_of(k, grid, A):
#     cell, a = divmod(k, A)
#     return *divmod(cell, grid[1]), a
#
#
# i, j, a = cell_of(1234, (32, 32), 3)
# print(i, j, a, level_anchors((32, 32), 4, 16, [0.5, 1, 2])[1234])
# np.testing.assert_allclose(
#     level_anchors((32, 32), 4, 16, [0.5, 1, 2])[1234], cell_anchors(16, [0.5, 1, 2])[a] + 4 * np.array([i, j, i, j])
# )
# ```
#
# Row 12, column 27, the square one.
#
# </details>
#
# **3 (build).** Write torchvision's anchors: round the anchors of a cell to whole pixels before they are moved. Check against `mr.anchors.rounded_level_anchors(image_size, grid, size, ratios)` for a padded picture of 800 x 1344. What IoU do the two kinds of anchors have?
#
# <details><summary>Hint</summary>
#
# `np.round` of `cell_anchors`; on P2 to P5 the stride is what you know. Which stride comes out for P6?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def rounded(image_size, grid, size, ratios):
#     stride_y, stride_x = image_size[0] // grid[0], image_size[1] // grid[1]
#     y, x = np.meshgrid(np.arange(grid[0]) * stride_y, np.arange(grid[1]) * stride_x, indexing="ij")
#     corner = np.stack([y, x, y, x], axis=-1).astype("float32")
#     return (corner[:, :, None] + np.round(cell_anchors(size, ratios))).reshape(-1, 4)
#
#
# for stride, size in ((4, 32), (64, 512)):
#     grid = -(-800 // stride), -(-1344 // stride)
#     theirs = mr.anchors.rounded_level_anchors((800, 1344), grid, size, [0.5, 1, 2])
#     check(f"rounded, stride {stride}", rounded((800, 1344), grid, size, [0.5, 1, 2]), theirs)
# plain, round_ones = cell_anchors(32, [0.5, 1, 2]), np.round(cell_anchors(32, [0.5, 1, 2]))
# print(np.round(np.diagonal(mr.boxes.iou(plain, round_ones)), 3))
# ```
#
# On P6 the grid is 13 x 21 and 800 // 13 = 61, not 64. In the last row a torchvision anchor is 36 pixels higher up. Rounding itself changes an anchor of 32 pixels by about 2% in IoU.
#
# </details>
#
# **4 (measure).** RetinaNet puts three sizes on each level: $s$, $2^{1/3}s$ and $2^{2/3}s$. Which share of the Shapes objects then has an anchor with IoU 0.7 or more, and how many anchors does it take? Is a finer stride with one size a better use of the same number?
#
# <details><summary>Hint</summary>
#
# Concatenate `level_anchors` for each size. For the finer stride, halve all strides: that is four times the anchors.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def coverage(scales, finer=1):
#     boxes = np.concatenate([
#         level_anchors((128 * finer // stride,) * 2, stride / finer, size * scale, config.anchor_ratios)
#         for stride, size in zip(config.strides, config.anchor_sizes, strict=True)
#         for scale in scales
#     ])
#     return len(boxes), np.mean(np.concatenate([best_iou(found, boxes) for found in objects]) >= 0.7)
#
#
# for name, result in {
#     "one size": coverage([1]),
#     "three sizes": coverage([1, 2 ** (1 / 3), 2 ** (2 / 3)]),
#     "half the stride": coverage([1], finer=2),
# }.items():
#     print(f"{name:<16} {result[0]:>6} anchors, {result[1]:.0%} of the objects at 0.7")
# assert coverage([1, 2 ** (1 / 3), 2 ** (2 / 3)])[1] > coverage([1], finer=2)[1]
# ```
#
# Three sizes help far more than a finer stride: sizes, not places, are what one size a level covers badly.
#
# </details>
#
# **5 (research).** YOLOv2 (Redmon and Farhadi, 2017) does not choose sizes and ratios by hand but clusters the objects' heights and widths: k-means with the distance $1 - \mathrm{IoU}$ of boxes about one centre. Do this on the objects of a thousand Shapes pictures with $k = 9$, and compare the mean best IoU with that of our nine boxes (three sizes, three ratios). Which ratios does the data ask for?
#
# <details><summary>Hint</summary>
#
# Put all boxes around the origin; assign each to the cluster of highest IoU; replace each cluster by the mean height and width of its members.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def around_origin(hw):
#     return np.concatenate([-hw / 2, hw / 2], axis=1).astype("float32")
#
#
# more = mr.ShapesDataset(1000, seed=0)
# found = np.concatenate([more.instances(i).boxes for i in range(len(more))])
# hw = found[:, 2:] - found[:, :2]
# clusters = hw[rng.permutation(len(hw))[:9]]
# for _ in range(30):
#     nearest = np.asarray(mr.boxes.iou(around_origin(hw), around_origin(clusters))).argmax(1)
#     clusters = np.stack([hw[nearest == c].mean(0) if (nearest == c).any() else clusters[c] for c in range(9)])
# by_hand = np.concatenate([cell_anchors(size, config.anchor_ratios) for size in config.anchor_sizes])
# ours, theirs = (best_iou(around_origin(hw), boxes).mean() for boxes in (by_hand, around_origin(clusters)))
# print(f"by hand {ours:.2f}, clustered {theirs:.2f}")
# print(np.round(clusters[np.argsort(clusters.prod(1))]))
# assert theirs > ours
# ```
#
# Nearly all clusters are squares of different sizes, since the shapes are. For data of one's own this shows quickly whether the usual anchors fit; a detector of this data would do better with more sizes and one ratio. Later detectors drop anchors altogether: FCOS (Tian et al., 2019) lets each cell say how far the four sides are away.
#
# </details>

# %% [markdown]
# ## Summary
#
# An anchor is a fixed box that gives a number of the network's output its meaning. A cell of a level has one anchor a ratio, all of one area; a level has one size, 8 strides in the paper; sizes double from level to level. The order, row by row, cell by cell, ratio by ratio, ties output $k$ to anchor $k$. Places are covered densely, sizes within a factor of $\sqrt 2$: every Shapes object has an anchor of IoU 0.5, fewer than half have one of 0.7. Wrong anchors raise no error. They cost recall, and half a cell costs it only where precision is asked for.
#
# **Read now:** [`maskrcnn_edu/anchors.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/anchors.py). You have written all but the rounded anchors and the check of the size.
#
# **Next:** chapter 05 builds IoU, and the deltas by which the network moves an anchor onto its object.
#
# ## Further reading
#
# - S. Ren, K. He, R. Girshick, J. Sun: *Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks*, NeurIPS 2015. Section 3.1.1 introduces anchors. [arXiv:1506.01497](https://arxiv.org/abs/1506.01497)
# - T.-Y. Lin et al.: *Feature Pyramid Networks for Object Detection*, CVPR 2017. Section 4.1: one size a level. [arXiv:1612.03144](https://arxiv.org/abs/1612.03144)
# - T.-Y. Lin et al.: *Focal Loss for Dense Object Detection*, ICCV 2017. Three sizes a level. [arXiv:1708.02002](https://arxiv.org/abs/1708.02002)
# - J. Redmon, A. Farhadi: *YOLO9000: Better, Faster, Stronger*, CVPR 2017. Section 2, "Dimension Clusters". [arXiv:1612.08242](https://arxiv.org/abs/1612.08242)
# - Z. Tian, C. Shen, H. Chen, T. He: *FCOS: Fully Convolutional One-Stage Object Detection*, ICCV 2019. Detection without anchors. [arXiv:1904.01355](https://arxiv.org/abs/1904.01355)

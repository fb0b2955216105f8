# ---
# jupyter:
#   book:
#     title: Overlap, deltas and NMS
#     library: [boxes]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Overlap, deltas and NMS
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/05_overlap_deltas_nms.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F05_overlap_deltas_nms.ipynb) (neither has been tried)
#
# **A detector sees one circle and draws ten boxes around it. Which one do we keep, and how do we even say that ten boxes mean the same thing?**
#
# After this chapter you can
#
# - measure how well two boxes agree, and know what the number is blind to;
# - write one box as a correction of another, which is what every box regression in Mask R-CNN learns;
# - thin a heap of boxes down to one for each object, and say when this goes wrong.
#
# You need chapter 04 (what an anchor is). The chapter runs in half a minute on a laptop, without a GPU or a network.

# %%
# On Colab or Binder: install what is missing. At home this does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("maskrcnn_edu") is None:
    address = "maskrcnn_edu[book] @ git+https://github.com/maskrcnn-edu/maskrcnn_edu"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", address], check=True)

# %%
import dataclasses
import math

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import maskrcnn_edu as mr
from maskrcnn_edu.backend import as_float
from maskrcnn_edu.book import check

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# The library ships a small detector that was trained on drawn circles, squares and triangles. Here it runs on a hundred pictures it has never seen, once with its last step switched off. That step, non-maximum suppression, is the end of this chapter; a threshold of 1 switches it off.

# %%
model = keras.saving.load_model(mr.files("shapes.keras"))
pictures = mr.ShapesDataset(100, seed=1)
images = [pictures.image(i) for i in range(len(pictures))]
truth = [pictures.instances(i) for i in range(len(pictures))]
final = model.detect(images, batch_size=10)

unsuppressed = mr.MaskRCNN(
    dataclasses.replace(model.config, detection_nms_threshold=1.0, max_detections=180), model.class_names
)
unsuppressed.set_weights(model.get_weights())
heap = unsuppressed.detect(images, batch_size=10)

shown = 8
fig, axes = plt.subplots(1, 2, figsize=(9, 4.5), layout="constrained")
for ax, found, title in zip(axes, (heap[shown], final[shown]), ("before suppression", "after"), strict=True):
    mr.plots.instances(images[shown], boxes=found.boxes, ax=ax)
    ax.set_title(f"{title}: {len(found)} boxes")
plt.show()

# %% [markdown]
# **Figure 5.1.** What the detector's last layer says about one picture, and what it hands out. Each object is found many times, since neighbouring anchors see the same thing.
#
# Figure 5.1 asks for three tools. To call two boxes "the same" we need a measure of **overlap**. The boxes sit where they do because a network moved them there from their anchors, by numbers called **deltas**. And to keep one box for each object we need a rule, **non-maximum suppression**. We build them in this order.

# %% [markdown]
# ## 1. Overlap
#
# A box is $(y_1, x_1, y_2, x_2)$ in continuous pixels and covers $[y_1, y_2) \times [x_1, x_2)$. Its area is height times width. A box whose corners are the wrong way round is empty, and so is a padding slot $(0, 0, 0, 0)$: both have area 0.
#
# The functions use `keras.ops`, which is NumPy's vocabulary on TensorFlow's or JAX's tensors. `as_float` turns a list, an array or a tensor into a float32 tensor.


# %%
def area(boxes):
    """(..., 4) -> (...)."""
    y1, x1, y2, x2 = ops.unstack(as_float(boxes), 4, axis=-1)
    return ops.maximum(y2 - y1, 0.0) * ops.maximum(x2 - x1, 0.0)


# %% [markdown]
# Two boxes share a box: it begins at the larger of the two tops and ends at the smaller of the two bottoms, and likewise for left and right. If it ends before it begins, they share nothing.
#
# We want this for every box of one set with every box of another: $N$ boxes and $M$ boxes give an $(N, M)$ table. Inserting an axis in each, `a[:, None]` and `b[None, :]`, makes the comparison broadcast to that shape.


# %%
def intersection(a, b):
    """(..., N, 4), (..., M, 4) -> (..., N, M)."""
    a, b = as_float(a)[..., :, None, :], as_float(b)[..., None, :, :]
    height = ops.minimum(a[..., 2], b[..., 2]) - ops.maximum(a[..., 0], b[..., 0])
    width = ops.minimum(a[..., 3], b[..., 3]) - ops.maximum(a[..., 1], b[..., 1])
    return ops.maximum(height, 0.0) * ops.maximum(width, 0.0)


# %% [markdown]
# The shared area alone says little: 50 shared pixels are everything for a small box and nothing for a large one. Divide by the area that the two cover together, and you get **intersection over union**, the Jaccard index of the two sets of points:
#
# $$\mathrm{IoU}(a, b) = \frac{|a \cap b|}{|a \cup b|} = \frac{|a \cap b|}{|a| + |b| - |a \cap b|}$$
#
# It is 1 for equal boxes, 0 for boxes that do not touch, and does not depend on the unit of length. Two empty boxes would give $0/0$; we define that as 0. The inner `where` matters: without it the division by 0 still happens, and its NaN comes back through the gradient.


# %%
def iou(a, b):
    """(..., N, 4), (..., M, 4) -> (..., N, M), in [0, 1]. Two empty boxes have IoU 0."""
    a, b = as_float(a), as_float(b)
    shared = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - shared
    return ops.where(union > 0, shared / ops.where(union > 0, union, 1.0), 0.0)


# %% [markdown]
# By hand: a box of 4 x 4 and one of 4 x 6 that starts 1 lower and 2 further right. They share 3 x 2 = 6 cells. The union has 16 + 24 - 6 = 34 cells, so IoU is 6/34, about 0.176. Count the cells in Figure 5.2.

# %%
first, second = [0, 0, 4, 4], [1, 2, 5, 8]

fig, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
for (y1, x1, y2, x2), colour, name in ((first, "tab:blue", "first"), (second, "tab:orange", "second")):
    ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, color=colour, alpha=0.4, label=name))
ax.set(xlim=(-0.5, 8.5), ylim=(5.5, -0.5), xticks=range(9), yticks=range(6), xlabel="x", ylabel="y", aspect="equal")
ax.grid(color="0.8")
ax.legend(loc="upper right")
plt.show()

print(f"shared {intersection([first], [second])[0, 0]:.0f}, IoU {iou([first], [second])[0, 0]:.3f}")

# %% [markdown]
# **Figure 5.2.** The two boxes of the toy example. The darker cells are the intersection. The y axis points down, as in an image.
#
# Now the check that ends every construction in this book: your function against the library's, on random input. "Exact" means bit for bit.


# %% tags=["nbval-check-output"]
def random_boxes(n, size=100.0):
    corners = rng.uniform(0, size, (n, 2))
    return np.concatenate([corners, corners + rng.uniform(1, size / 2, (n, 2))], axis=1).astype("float32")


a, b = random_boxes(200), random_boxes(300)
check("area", area(a), mr.boxes.area(a))
check("intersection", intersection(a, b), mr.boxes.intersection(a, b))
check("iou", iou(a, b), mr.boxes.iou(a, b))

# %% [markdown]
# ### What the number feels like
#
# An IoU of 0.5 sounds poor. Shift a square of side $s$ sideways by $d$: the intersection is $s(s-d)$, the union $s(s+d)$, so $\mathrm{IoU} = (s-d)/(s+d)$. IoU falls to 0.5 at $d = s/3$, as Figure 5.3 shows for four sizes. A third of its width is a visible error on a large object, but 3 pixels on a small one.

# %%
shifts = np.linspace(0, 20, 81)
fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
for side in (8, 16, 32, 64):
    shifted = np.stack([0 * shifts, shifts, 0 * shifts + side, shifts + side], axis=1)
    ax.plot(shifts, iou([[0, 0, side, side]], shifted)[0], label=f"{side} pixels")
ax.axhline(0.5, color="0.6", linewidth=1, linestyle="--")
ax.set(xlabel="shift to the side, pixels", ylabel="IoU", xlim=(0, 20), ylim=(0, 1), xticks=range(0, 21, 4))
fig.legend(title="side of the square", loc="outside right center")
plt.show()

# %% [markdown]
# **Figure 5.3.** The same shift costs a small box far more. This is one reason why small objects score lower in every benchmark.
#
# Move the two boxes below yourself. Look for two pairs that look quite different to you and have the same IoU.

# %%
mr.widgets.IoUPlayground()

# %% [markdown]
# ### What IoU cannot see
#
# Two boxes that do not touch have IoU 0 whether they are 1 or 1000 pixels apart. As a loss this gives no direction to move in. **Generalised IoU** (Rezatofighi et al., 2019) subtracts the empty share of the smallest box $c$ that encloses both (their hull), and so keeps falling with distance:
#
# $$\mathrm{GIoU}(a, b) = \mathrm{IoU}(a, b) - \frac{|c| - |a \cup b|}{|c|}$$
#
# Mask R-CNN does not use it: its box loss compares deltas, which come next. DETR and many detectors since do.


# %%
def giou(a, b):
    """(..., N, 4), (..., M, 4) -> (..., N, M), in [-1, 1]. An empty hull gives 0."""
    a, b = as_float(a), as_float(b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection(a, b)
    low = ops.minimum(a[..., :, None, :2], b[..., None, :, :2])
    high = ops.maximum(a[..., :, None, 2:], b[..., None, :, 2:])
    hull = area(ops.concatenate([low, high], axis=-1))
    return iou(a, b) - ops.where(hull > 0, (hull - union) / ops.where(hull > 0, hull, 1.0), 0.0)


# %% tags=["nbval-check-output"]
gaps = [0, 10, 40, 90]
beside = [[0, 10 + gap, 10, 20 + gap] for gap in gaps]
plain, general = iou([[0, 0, 10, 10]], beside)[0], giou([[0, 0, 10, 10]], beside)[0]
for i, gap in enumerate(gaps):
    print(f"gap {gap:>2} pixels: IoU {plain[i]:.2f}  GIoU {general[i]:.2f}")
check("giou", giou(a, b), mr.boxes.giou(a, b))

# %% [markdown]
# ### Break it: one pixel too many
#
# Older code counted a box's pixels inclusively and wrote its width as $x_2 - x_1 + 1$. The convention is consistent as long as everybody follows it. Measure what happens when one function does not: IoU with a `+ 1` against ours, on pairs of boxes that truly overlap by half.


# %%
def iou_plus_one(a, b):
    grown = np.float32([0, 0, 1, 1])
    return iou(a + grown, b + grown)


for side in (4, 8, 16, 32, 128):
    square = np.float32([[0, 0, side, side]])
    beside = square + np.float32([0, side / 3, 0, side / 3])
    plus_one = float(iou_plus_one(square, beside)[0, 0])
    print(f"side {side:>3}: IoU {float(iou(square, beside)[0, 0]):.3f}, with + 1 {plus_one:.3f}")

# %% [markdown]
# A box of 4 pixels gains 0.08, one of 128 pixels almost nothing. The mistake hides on large objects and changes which small anchors count as matched. COCO calls an object small if its area is below 32 x 32 pixels, and 41% of its objects are (cocodataset.org, detection evaluation).
#
# ### Break it: swapped x and y
#
# Torchvision and Detectron2 store $(x_1, y_1, x_2, y_2)$, we store $(y_1, x_1, y_2, x_2)$. What does IoU say to a mix-up?

# %%
swap = [1, 0, 3, 2]
both = np.abs(iou(a, b) - iou(a[:, swap], b[:, swap])).max()
print(f"x and y swapped in both sets: largest change of IoU {both:.1g}")
near = a + rng.normal(0, 2, a.shape).astype("float32")
right, wrong = (
    np.mean([iou(a[i : i + 1], other[i : i + 1])[0, 0] for i in range(200)]) for other in (near, near[:, swap])
)
print(f"boxes and their slightly moved copies: mean IoU {right:.2f}; with x and y swapped in the copies {wrong:.2f}")

# %% [markdown]
# Swapped in both, nothing changes at all: IoU cannot tell x from y. Such a bug survives every test of matching and only shows in the picture. Swapped in one, most boxes lose each other. So convert formats at the door, once, where files are read.

# %% [markdown]
# ## 2. Deltas
#
# A network does not answer in pixels. It is asked, at each anchor, how the anchor should be changed to fit the object. The four answers are the **deltas**. Let box $b$ have centre $(c_y, c_x)$, height $h$ and width $w$, and the reference box $r$ (an anchor or a proposal) $(c_y^r, c_x^r)$, $h^r$ and $w^r$. Faster R-CNN, equation 2:
#
# $$t_y = \frac{c_y - c_y^r}{h^r} \qquad t_x = \frac{c_x - c_x^r}{w^r} \qquad t_h = \log\frac{h}{h^r} \qquad t_w = \log\frac{w}{w^r}$$
#
# Shifts are measured in sizes of the reference, so that "half a box down" is 0.5 for a dog in the foreground and for one on the horizon. Sizes are ratios, and their logarithm treats twice as large and half as large alike: $+0.69$ and $-0.69$. All four are around 0 when the anchor is good, whatever its size. That is what a linear layer can learn.


# %%
def centre_size(boxes):
    y1, x1, y2, x2 = ops.unstack(boxes, 4, axis=-1)
    h, w = ops.maximum(y2 - y1, 1e-6), ops.maximum(x2 - x1, 1e-6)
    return 0.5 * (y1 + y2), 0.5 * (x1 + x2), h, w


def encode(boxes, reference, weights=(1.0, 1.0, 1.0, 1.0)):
    """Deltas (dy, dx, dh, dw) that turn `reference` into `boxes`: (..., 4), (..., 4) -> (..., 4)."""
    cy, cx, h, w = centre_size(as_float(boxes))
    ry, rx, rh, rw = centre_size(as_float(reference))
    wy, wx, wh, ww = weights
    return ops.stack([wy * (cy - ry) / rh, wx * (cx - rx) / rw, wh * ops.log(h / rh), ww * ops.log(w / rw)], axis=-1)


# %% [markdown]
# The smallest size of a millionth of a pixel is for padding slots: their size is 0, and $\log 0$ would be $-\infty$. What comes out for them is meaningless but finite, and the losses leave them out.
#
# By hand: the anchor is the square $(0, 0, 4, 4)$, the object $(0, 1, 8, 5)$. The centre goes from $(2, 2)$ to $(4, 3)$, which is 2/4 of a height down and 1/4 of a width right. The height doubles, the width stays. So the deltas are $(0.5, 0.25, \log 2, 0)$.

# %% tags=["nbval-check-output"]
print(np.round(encode([0, 1, 8, 5], [0, 0, 4, 4]), 4))

# %% [markdown]
# Back again: solve the four equations for the box. One thing is added. $t_h$ comes from a network that may say anything, and $e^{t_h}$ turns a wrong 20 into a box 485 million times too high. So the log sizes are cut at $\log(1000/16)$: an anchor of 16 pixels may become 1000 pixels high, not more. The number is Detectron's and has been copied ever since.

# %%
MAX_LOG_SIZE = math.log(1000 / 16)


def decode(deltas, reference, weights=(1.0, 1.0, 1.0, 1.0)):
    """The inverse of `encode`: (..., 4), (..., 4) -> boxes (..., 4)."""
    deltas, reference = as_float(deltas), as_float(reference)
    dy, dx, dh, dw = (delta / weight for delta, weight in zip(ops.unstack(deltas, 4, axis=-1), weights, strict=True))
    y1, x1, y2, x2 = ops.unstack(reference, 4, axis=-1)
    rh, rw = y2 - y1, x2 - x1
    cy, cx = y1 + 0.5 * rh + dy * rh, x1 + 0.5 * rw + dx * rw
    h = rh * ops.exp(ops.minimum(dh, MAX_LOG_SIZE))
    w = rw * ops.exp(ops.minimum(dw, MAX_LOG_SIZE))
    return ops.stack([cy - 0.5 * h, cx - 0.5 * w, cy + 0.5 * h, cx + 0.5 * w], axis=-1)


# %%
anchor, deltas = np.float32([20, 20, 60, 60]), np.float32([0.25, 0.5, math.log(0.5), math.log(1.75)])
steps = [("anchor", 0 * deltas), ("shifted", deltas * [1, 1, 0, 0]), ("shifted and resized", deltas)]

fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
for (name, part), style, colour in zip(steps, (":", "--", "-"), ("0.4", "tab:blue", "tab:orange"), strict=True):
    y1, x1, y2, x2 = np.asarray(decode(part, anchor))
    ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ls=style, lw=2, ec=colour, label=name))
    ax.plot((x1 + x2) / 2, (y1 + y2) / 2, "o", color=colour)
ax.annotate("", (60, 50), (40, 40), arrowprops={"arrowstyle": "->"})
ax.set(xlim=(0, 140), ylim=(80, 5), xlabel="x, pixels", ylabel="y, pixels", aspect="equal")
ax.legend(loc="upper right")
plt.show()

# %% [markdown]
# **Figure 5.4.** Deltas $(0.25, 0.5, \log 0.5, \log 1.75)$ applied to an anchor of 40 x 40. First the centre moves by a quarter of the height and half the width, then the box is resized about its new centre.
#
# In Figure 5.4 the order does not matter: shifts are in units of the reference and not of the resized box.

# %% tags=["nbval-check-output"]
reference, targets = random_boxes(500), random_boxes(500)
weights = (10.0, 10.0, 5.0, 5.0)
check("encode", encode(targets, reference, weights), mr.boxes.encode(targets, reference, weights))
there = encode(targets, reference, weights)
check("decode", decode(there * 3, reference, weights), mr.boxes.decode(there * 3, reference, weights))

# %% [markdown]
# ### Why the box head multiplies by 10, 10, 5, 5
#
# The deltas are regression targets, and a loss such as smooth L1 works best on targets of about unit size. How large are they? The box head is trained on RoIs that overlap an object by at least half. So draw many boxes about the objects of our hundred pictures, each edge off by a random share of the object's size, keep those with $\mathrm{IoU} \ge 0.5$, and encode. We do not know how far off a network's boxes are, and try three amounts.

# %% tags=["nbval-check-output"]
objects = np.concatenate([instances.boxes for instances in truth])
centres = np.repeat(objects, 100, axis=0)
sides = np.tile(centres[:, 2:] - centres[:, :2], (1, 2))
print("edges off by   kept    std of dy     dx     dh     dw")
for noise in (0.1, 0.15, 0.3):
    rois = np.float32(centres + rng.normal(0, noise, centres.shape) * sides)
    overlap = [iou(rois[100 * i : 100 * i + 100], objects[i : i + 1])[:, 0] for i in range(len(objects))]
    positive = np.concatenate(overlap) >= 0.5
    spread = np.asarray(encode(centres[positive], rois[positive])).std(axis=0)
    print(f"{noise:>12.0%}   {positive.mean():>4.0%}        " + "  ".join(f"{value:.3f}" for value in spread))

# %% [markdown]
# About 0.1 for shifts and 0.2 for sizes, and not much more however bad the boxes are, since $\mathrm{IoU} \ge 0.5$ sorts out the worst. A size varies twice as much as a shift: the centre is the mean of two edges, the size their difference. The weights 10, 10, 5, 5 are one over these numbers. The seed writes the same thing as `BBOX_STD_DEV = [0.1, 0.1, 0.2, 0.2]`. The RPN, whose anchors are further off, goes without weights in Detectron2 and torchvision.
#
# ### Break it: no limit
#
# A network that has just been initialised, or that trains with too high a learning rate, answers with large deltas. Here they have a standard deviation of 20. We decode with and without the limit and look at what reaches the next stage.

# %% tags=["nbval-check-output"]
wild = rng.normal(0, 20, (1000, 4)).astype("float32")
sizes = np.asarray(reference[:, 2:] - reference[:, :2])[rng.integers(0, 500, 1000)]
with np.errstate(over="ignore"):
    heights = {
        "without limit": sizes[:, 0] * np.exp(wild[:, 2]),
        "with limit": sizes[:, 0] * np.exp(np.minimum(wild[:, 2], MAX_LOG_SIZE)),
    }
    for name, height in heights.items():
        square = height**2  # the area of a box as wide as it is high
        print(f"{name:<14} highest {height.max():.0e} pixels, areas that overflow float32: {np.isinf(square).sum()}")

# %% [markdown]
# An infinite area makes IoU $\infty/\infty$, which is NaN, and NaN compares as false with every threshold: such a box suppresses nothing and is never suppressed. One step later it is in a loss, and from there in every weight.

# %% [markdown]
# ## 3. Non-maximum suppression
#
# The rule is older than deep learning. Sort the boxes by score. Take the best, keep it, and drop every box that overlaps it by more than a threshold $\theta$. Take the best of what is left, and so on. As a loop in NumPy:


# %%
def nms_loop(boxes, scores, iou_threshold):
    """(N, 4), (N,) -> (N,) bool: True where a box is kept."""
    overlap, keep = np.asarray(iou(boxes, boxes)), np.zeros(len(scores), bool)
    for i in np.argsort(-np.asarray(scores), kind="stable"):
        keep[i] = not np.any(overlap[i, keep] > iou_threshold)
    return keep


# %% [markdown]
# By hand: three boxes of 10 x 10, each 3 pixels to the right of the one before. Neighbours share 70 of 130 pixels, IoU 0.54; the first and the third share 40 of 160, IoU 0.25. With $\theta = 0.5$ and falling scores the first suppresses the second. The third overlaps only the second, which is gone, so it stays. If the middle one scores best, it takes both with it.

# %% tags=["nbval-check-output"]
chain = np.float32([[0, 0, 10, 10], [0, 3, 10, 13], [0, 6, 10, 16]])
print(np.round(iou(chain, chain), 2))
print("scores .9 .8 .7:", nms_loop(chain, [0.9, 0.8, 0.7], 0.5))
print("scores .7 .9 .8:", nms_loop(chain, [0.7, 0.9, 0.8], 0.5))

# %% [markdown]
# ### The same answer without a loop over boxes
#
# The loop makes one decision after the other, a thousand times for the RPN. A tensor library wants all of them at once. Write the rule as a condition on the answer: with boxes sorted by score, $k_j$ says that box $j$ is kept, and $S_{ij}$ that $i$ is better than $j$ and overlaps it too much. Then
#
# $$k_j = \neg \bigvee_{i < j} \left( k_i \wedge S_{ij} \right)$$
#
# "Kept unless a better kept box suppresses it." Since $k_j$ depends on better boxes only, this has one solution, the greedy one. To find it, start with everybody kept, apply the rule to all boxes at once, and repeat until nothing changes. After the first round the best box is right for ever; after the second every box that depends on it alone; each round settles the next link of the chain. A solution that no longer changes is called a **fixed point**.


# %%
def greedy_keep(suppresses):
    """Boxes best first: (..., N, N) bool [i, j]: i suppresses j -> (..., N) bool, True where a box is kept."""
    rank = ops.arange(suppresses.shape[-1])
    better = rank[:, None] < rank[None, :]
    suppresses = ops.logical_and(suppresses, better)

    def rule(keep, _):
        hit = ops.any(ops.logical_and(keep[..., :, None], suppresses), axis=-2)
        return ops.logical_not(hit), keep

    def changed(keep, previous):
        return ops.any(keep != previous)

    everyone = ops.logical_not(ops.any(ops.zeros_like(suppresses), axis=-2))
    return ops.while_loop(changed, rule, rule(everyone, everyone))[0]


# %% [markdown]
# `ops.while_loop` becomes a loop inside the compiled graph. Its state is the present and the previous answer, and it starts from `everyone`, which is True for every box. `nms` sorts, asks `greedy_keep`, and puts the answer back into the order in which the boxes came: `rank` is the inverse of the permutation `order`.
#
# A detector suppresses within a class: a person on a horse is not a duplicate of the horse. So a pair must also agree in class before it can suppress.


# %%
def nms(boxes, scores, iou_threshold, classes=None):
    """(..., N, 4), (..., N) -> (..., N) bool, True where a box is kept; with `classes` (..., N), within each class."""
    boxes, scores = as_float(boxes), as_float(scores)
    order = ops.argsort(-scores, axis=-1)
    rank = ops.argsort(order, axis=-1)
    ordered = ops.take_along_axis(boxes, order[..., None], axis=-2)
    suppresses = iou(ordered, ordered) > iou_threshold
    if classes is not None:
        c = ops.take_along_axis(ops.convert_to_tensor(classes), order, axis=-1)
        suppresses = ops.logical_and(suppresses, c[..., :, None] == c[..., None, :])
    return ops.take_along_axis(greedy_keep(suppresses), rank, axis=-1)


# %% [markdown]
# Watch it on a longer chain, nine boxes in a row. Each suppresses the next one, so the answer is every second box. The start, "everybody", is wrong almost everywhere.


# %%
def rounds(boxes, threshold):
    """The answers of the fixed point, round by round, for boxes sorted by score: (rounds, N) bool."""
    suppresses = np.triu(np.asarray(iou(boxes, boxes)) > threshold, 1)
    answers = [np.ones(len(boxes), bool)]
    while True:
        keep = ~np.any(answers[-1][:, None] & suppresses, axis=0)
        if (keep == answers[-1]).all():
            return np.array(answers)
        answers.append(keep)


row = np.float32([[0, 3 * i, 10, 3 * i + 10] for i in range(9)])
answers = rounds(row, 0.5)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
axes[0].imshow(np.triu(np.asarray(iou(row, row)) > 0.5, 1), cmap="Greys", vmax=1.5)
axes[0].set(xlabel="box j", ylabel="box i", title="i suppresses j", xticks=range(9), yticks=range(9))
axes[1].imshow(answers, cmap="Blues", vmax=1.5, aspect="auto")
axes[1].set(xlabel="box", ylabel="round", title="kept", xticks=range(9), yticks=range(len(answers)))
plt.show()

# %% [markdown]
# **Figure 5.5.** Left: who suppresses whom among nine boxes in a row, best first. Right: the fixed point, round by round; dark is "kept". Each round settles one more box from the left.
#
# The chain of Figure 5.5 is the worst case: as many rounds as boxes. Heaps of boxes in pictures are not chains. The best box of an object suppresses nearly all others directly. Eight objects, and boxes that scatter about them as a detector's do:

# %% tags=["nbval-check-output"]
eight = random_boxes(8, 400)
for n in (10, 100, 1000):
    about = eight[rng.integers(0, 8, n)]
    scattered = np.float32(about + rng.normal(0, 0.08, (n, 4)) * np.tile(about[:, 2:] - about[:, :2], (1, 2)))
    answers = rounds(scattered, 0.5)
    print(f"{n:>4} boxes, {answers[-1].sum():>2} kept: {len(answers)} rounds instead of {n} steps")

# %% tags=["nbval-check-output"]
many, scores, classes = random_boxes(400), rng.uniform(size=400).astype("float32"), rng.integers(1, 4, 400)
check("nms, the loop", nms_loop(many, scores, 0.5), mr.boxes.nms(many, scores, 0.5))
check("nms", nms(many, scores, 0.5), mr.boxes.nms(many, scores, 0.5))
check("nms within classes", nms(many, scores, 0.5, classes), mr.boxes.nms(many, scores, 0.5, classes))

# %% [markdown]
# Step through the heap of Figure 5.1 yourself, from the best score down. Then move the threshold and watch which decisions change.

# %%
example = heap[shown]
mr.widgets.NMSStepper(example.boxes, example.scores, example.classes, images[shown])

# %% [markdown]
# ### The last step of the detector
#
# After NMS the detector keeps the best `count` boxes of an image. The result must have a fixed shape, so unused slots get score 0.


# %%
def class_nms(boxes, scores, classes, iou_threshold, count):
    """(B, N, 4), (B, N), (B, N) -> indices (B, count) into N and scores (B, count), best first; 0 in unused slots."""
    keep = nms(boxes, scores, iou_threshold, classes)
    kept_scores, kept = ops.top_k(ops.where(keep, scores, 0.0), count)
    return kept, kept_scores


# %% [markdown]
# For COCO this asks too much: 1000 RoIs times 80 classes are 80,000 candidates, and their table of IoU would have 6.4 billion entries. The library's `class_nms` uses that a box is judged by better boxes alone. It settles the best 1000 candidates, keeps what survives, then judges the next 1000 against those kept and among themselves, and stops when 100 are kept. This is exact, not an approximation. With a chunk of 50 instead of 1000, the check below takes it through several rounds.

# %% tags=["nbval-check-output"]
batch = [many[None], scores[None], classes[None]]
index, best = class_nms(*batch, 0.5, 100)
their_index, their_best = mr.boxes.class_nms(*batch, 0.5, 100, chunk=50)
check("class_nms, indices", index, their_index)
check("class_nms, scores", best, their_best)

# %% [markdown]
# ### Break it: every threshold but the right one
#
# Back to the heap of Figure 5.1. We put your `nms` behind the detector, with thresholds from 0.05 to 1, on all hundred pictures, and count. An object is **found** if a box of its class overlaps it by at least 0.5; a box can find one object. The boxes that find none are **false alarms**, duplicates mostly. Only boxes with a score of at least 0.5 take part.


# %% tags=["nbval-check-output"]
def found_and_false(boxes, classes, true_boxes, true_classes):
    """Each box, best first, takes the free object of its class that it overlaps most. -> objects taken, boxes left."""
    overlap = np.asarray(iou(boxes, true_boxes)) * (classes[:, None] == true_classes[None, :])
    taken = np.zeros(len(true_boxes), bool)
    for row in overlap:
        best = np.argmax(np.where(taken, 0, row))
        taken[best] |= row[best] >= 0.5
    return taken.sum(), len(boxes) - taken.sum()


def count_all(threshold, by_class=True):
    total = np.zeros(2, int)
    for i, candidates in enumerate(heap):
        good = candidates.scores >= 0.5
        boxes, classes = candidates.boxes[good], candidates.classes[good]
        keep = np.asarray(nms(boxes, candidates.scores[good], threshold, classes if by_class else None))
        total += found_and_false(boxes[keep], classes[keep], truth[i].boxes, truth[i].classes)
    return total


thresholds = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0)
counts = np.array([count_all(threshold) for threshold in thresholds])
print(f"threshold   found of {len(objects)}   false alarms")
for threshold, (hit, false) in zip(thresholds, counts, strict=True):
    print(f"{threshold:>9}   {hit:>12}   {false:>12}")

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for ax, values, title in zip(axes, counts.T, ("objects found", "false alarms"), strict=True):
    ax.plot(thresholds, values, "o-")
    ax.set(xlabel="NMS threshold", title=title, xlim=(0, 1.03))
axes[0].axhline(len(objects), color="0.6", linewidth=1, linestyle="--")
axes[0].set(ylim=(260, 282), yticks=range(260, 283, 5))
axes[1].set_yscale("symlog")  # like a logarithm, but 0 has a place
axes[1].set(ylim=(-0.2, 5000), yticks=(0, 1, 10, 100, 1000), yticklabels=("0", "1", "10", "100", "1000"))
plt.show()

# %% [markdown]
# **Figure 5.6.** The trained detector with your NMS behind it. The dashed line is the number of objects. The scale on the right is logarithmic.
#
# Figure 5.6 is a trade. With a low threshold an object that overlaps another of its class is taken for a duplicate and lost: 262 of 280 are found at 0.05, 274 at 0.5. With a high one every object is reported many times, nine times where nothing is suppressed. Between 0.3 and 0.5 little changes, which is why so few people tune this number. It also shows what NMS cannot do: no threshold is right both for a crowd and for a heap of duplicates.
#
# And without classes?

# %%
for by_class in (True, False):
    hit, false = count_all(0.5, by_class)
    print(f"{'within classes' if by_class else 'all classes together':<21} {hit} found, {false} false alarms")

# %% [markdown]
# Suppression across classes does two things. Where the network is unsure between a square and a circle it reports both, and the second goes: two false alarms fewer. Where two objects of different classes truly overlap, one of them goes: one object fewer. Which effect wins depends on the data. The published systems all suppress within classes.

# %% [markdown]
# > **How the others do it**
# >
# > *Paper.* R-CNN's deltas, and greedy NMS at 0.7 for proposals (Faster R-CNN, section 3.3). For detections the text names no threshold; its code, Detectron, was published with 0.5.
# >
# > *Detectron2.* Boxes are $x_1, y_1, x_2, y_2$ and deltas $dx, dy, dw, dh$. Weights are 1, 1, 1, 1 in the RPN and 10, 10, 5, 5 in the box head; the limit is $\log(1000/16)$. NMS within classes is torchvision's.
# >
# > *torchvision.* The same deltas, weights and limit. Where there are few boxes, NMS within classes (`batched_nms`) shifts the boxes of each class to a place of their own, so that classes never overlap, and runs one NMS (exercise 3). Otherwise it loops over the classes.
# >
# > *The seed* (matterport/Mask_RCNN). Boxes are $y_1, x_1, y_2, x_2$ as here, but normalised to 0..1 inside the network. It scales the deltas of both stages by 0.1, 0.1, 0.2, 0.2 and sets no limit on log sizes. Only the best class of each RoI takes part in the final NMS, at 0.3.

# %% [markdown]
# ## Exercises
#
# **1 (recall).** Two boxes of 4 x 4, one shifted by 2 down and 2 right. What is their IoU? And what are the deltas that turn the first into the second?
#
# <details><summary>Hint</summary>
#
# They share a square of 2 x 2.
#
# </details>
#
# <details><summary>Solution</summary>
#
# The intersection is 4, the union 16 + 16 - 4 = 28, so IoU is 1/7. The centre moves by half a height and half a width and the size stays, so the deltas are (0.5, 0.5, 0, 0).
#
# ```python
# np.testing.assert_allclose(iou([[0, 0, 4, 4]], [[2, 2, 6, 6]]), [[1 / 7]], rtol=1e-6)
# np.testing.assert_allclose(encode([2, 2, 6, 6], [0, 0, 4, 4]), [0.5, 0.5, 0, 0])
# ```
#
# </details>
#
# **2 (understand).** A box lies wholly inside another of twice its height and width. What is the largest IoU they can have? Why does this make one anchor size for each pyramid level sufficient only together with several ratios?
#
# <details><summary>Hint</summary>
#
# The intersection is the smaller box, the union the larger one.
#
# </details>
#
# <details><summary>Solution</summary>
#
# 1/4, wherever it lies inside. Sizes on neighbouring levels differ by a factor of 2, so an object is at most a factor of $\sqrt 2$ from the nearest one: a square then has IoU of at least 1/2 with a well-placed anchor. An elongated object of the same area does worse. A ratio of 1:2 against a square of the same area gives $\sqrt{1/2} / (2 - \sqrt{1/2})$, about 0.55; at 1:4 it is 1/3, below the RPN's 0.7 and hardly above its 0.3. Hence the anchors of ratio 1:2 and 2:1.
#
# ```python
# for ratio in (1, 2, 4):
#     h, w = np.sqrt(ratio), 1 / np.sqrt(ratio)  # a box of area 1
#     print(ratio, round(float(iou([[-0.5, -0.5, 0.5, 0.5]], [[-h / 2, -w / 2, h / 2, w / 2]])[0, 0]), 2))
# ```
#
# </details>
#
# **3 (build).** Write NMS within classes by torchvision's trick: add a large offset times the class to all coordinates and call `nms` without classes. Check it against `nms` with classes. Then give the boxes 80 classes and an offset of a million, and explain what you see.
#
# <details><summary>Hint</summary>
#
# float32 has 24 bits. How far apart are two neighbouring numbers near 80 million?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def nms_by_offset(boxes, scores, iou_threshold, classes, offset):
#     return nms(boxes + offset * np.float32(classes)[:, None], scores, iou_threshold)
#
#
# check("offset 200", nms_by_offset(many, scores, 0.5, classes, 200), nms(many, scores, 0.5, classes))
# eighty = rng.integers(1, 81, 400)
# check("offset 1,000,000", nms_by_offset(many, scores, 0.5, eighty, 1e6), nms(many, scores, 0.5, eighty))
# ```
#
# An offset just larger than the image is right. Near 80 million, neighbouring float32 numbers are 8 apart, so coordinates are rounded to multiples of 8 pixels and overlaps are wrong. torchvision takes the largest coordinate plus 1 as its offset for this reason.
#
# </details>
#
# **4 (measure).** How many rounds does the fixed point need on the real heaps of this chapter, picture by picture? Draw a histogram, and look at the picture with the most.
#
# <details><summary>Hint</summary>
#
# `rounds` wants the boxes sorted by score, and `heap[i]` is sorted already.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# needed = [len(rounds(candidates.boxes, 0.5)) - 1 for candidates in heap]
# print(np.bincount(needed))
# assert max(needed) < max(len(candidates) for candidates in heap) / 2
# ```
#
# Mostly two to four. The most are needed where an object is found by boxes that lie in a chain across it.
#
# </details>
#
# **5 (research).** Soft-NMS (Bodla et al., 2017) does not drop a box that overlaps a better one but lowers its score, for example by $e^{-\mathrm{IoU}^2/\sigma}$. Write it as a loop, run it on the heaps, and compare found objects and false alarms at a score of 0.5. Does it help where objects of one class overlap?
#
# <details><summary>Hint</summary>
#
# In each turn take the best box that is left, then multiply the scores of the remaining boxes.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def soft_nms(boxes, scores, sigma=0.5):
#     """The decayed scores, in the order of the input."""
#     overlap, scores, left = np.asarray(iou(boxes, boxes)), np.array(scores), np.ones(len(scores), bool)
#     while left.any():
#         best = np.argmax(np.where(left, scores, -1))
#         left[best] = False
#         scores[left] *= np.exp(-(overlap[best, left] ** 2) / sigma)
#     return scores
#
#
# for sigma in (0.1, 0.3, 0.5):
#     total = np.zeros(2, int)
#     for i, candidates in enumerate(heap):
#         decayed = np.array(candidates.scores)
#         for c in np.unique(candidates.classes):
#             own = candidates.classes == c
#             decayed[own] = soft_nms(candidates.boxes[own], decayed[own], sigma)
#         good = decayed >= 0.5
#         own = truth[i]
#         total += found_and_false(candidates.boxes[good], candidates.classes[good], own.boxes, own.classes)
#     print(sigma, total)
# ```
#
# With a fixed score threshold sigma plays the part of $\theta$. Soft-NMS was made for AP, which ranks all boxes instead of cutting at 0.5: the second half of the book measures it so.
#
# </details>

# %% [markdown]
# ## Summary
#
# Overlap is intersection over union. It has no unit, cannot tell x from y, punishes small boxes for small shifts and is blind beyond contact. Deltas say how to change a reference box, in units of that box and as logarithms, so that one set of numbers serves all sizes; decoding limits the logarithm, since a network may say anything. Greedy NMS keeps a box unless a better kept box of its class overlaps it by more than a threshold; it is the one fixed point of that rule, and a few rounds over a whole table find it.
#
# **Read now:** [`maskrcnn_edu/boxes.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/boxes.py). You have written most of it; what is new are `clip` and the chunks of `class_nms`.
#
# **Next:** chapter 06 trains the region proposal network, which uses all three tools: IoU decides which anchors are positive, `encode` makes their targets, and NMS thins the proposals.
#
# ## Further reading
#
# - S. Ren, K. He, R. Girshick, J. Sun: *Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks*, NeurIPS 2015. Equation 2 and section 3.3. [arXiv:1506.01497](https://arxiv.org/abs/1506.01497)
# - R. Girshick, J. Donahue, T. Darrell, J. Malik: *Rich feature hierarchies for accurate object detection and semantic segmentation*, CVPR 2014. Appendix C derives the deltas. [arXiv:1311.2524](https://arxiv.org/abs/1311.2524)
# - H. Rezatofighi et al.: *Generalized Intersection over Union*, CVPR 2019. [arXiv:1902.09630](https://arxiv.org/abs/1902.09630)
# - N. Bodla, B. Singh, R. Chellappa, L. Davis: *Soft-NMS: Improving Object Detection With One Line of Code*, ICCV 2017. [arXiv:1704.04503](https://arxiv.org/abs/1704.04503)
# - J. Hosang, R. Benenson, B. Schiele: *Learning non-maximum suppression*, CVPR 2017. Why greedy suppression cannot be right everywhere. [arXiv:1705.02950](https://arxiv.org/abs/1705.02950)

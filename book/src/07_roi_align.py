# ---
# jupyter:
#   book:
#     title: RoIAlign
#     library: [roi_align]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · RoIAlign
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/07_roi_align.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F07_roi_align.ipynb) (neither has been tried)
#
# **A proposal is a box of any size at any place. A head wants an array of 7 x 7. How is the one cut out of the other, and what does half a pixel cost?**
#
# After this chapter you can
#
# - write the three samplers, RoIPool, crop-and-resize and RoIAlign, and say where each of them looks;
# - measure how far off a sampler is, in pixels, and what that costs in AP;
# - tell a mistake that a network can learn to undo from one that it cannot;
# - choose the pyramid level that a RoI is read from.
#
# You need chapter 03 (feature maps and strides) and chapter 05 (boxes). The chapter runs in about half a minute on a laptop, without a GPU or a network.

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
from functools import partial

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
# The shipped detector looks at a picture it has never seen. Take one object of it, and the pyramid level with a stride of 16 pixels.

# %%
model = keras.saving.load_model(mr.files("shapes.keras"))
pictures = mr.ShapesDataset(30, seed=1)
shown = 8
found = mr.stages.stages(model, pictures.image(shown))
roi, stride = found.detections.boxes[0], 16
coarse = found.pyramid[2]
channel = int(np.argmax(coarse.std((0, 1))))

rounded = np.floor(roi / stride + 0.5)
rounded = stride * (rounded + [0, 0, 1, 1])
fig, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
axes[0].imshow(found.image / 255, extent=(0, 128, 128, 0))
axes[1].imshow(coarse[..., channel], extent=(0, 128, 128, 0))
for ax, title in zip(axes, ("the picture", f"channel {channel} of $P_4$: 8 x 8 cells"), strict=True):
    for (y1, x1, y2, x2), style, name in ((roi, "-", "the RoI"), (rounded, ":", "rounded to cells")):
        ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="white", lw=2.5, ls=style, label=name))
    ax.set(title=title, xlabel="x, pixels", ylabel="y, pixels", xticks=range(0, 129, 16), yticks=range(0, 129, 16))
    ax.grid(color="white", alpha=0.25)
axes[0].legend(loc="lower left", facecolor="0.3", labelcolor="white")
plt.show()

# %% [markdown]
# **Figure 7.1.** A RoI (region of interest: a box that a head is run on) lies across the cells of the feature map. Rounded to whole cells it is another box.
#
# Figure 7.1 is the whole problem. A feature map has values at cells, and the edges of the RoI fall between them. Either we round the box until it fits the cells, or we ask the map for values between its cells. The first is RoIPool, the second RoIAlign.

# %% [markdown]
# ## 1. RoIPool: round everything
#
# Fast R-CNN (section 2.1) cuts the RoI into a grid of bins and takes the maximum in each. Before that, coordinates are divided by the stride $s$ and rounded; its paper does not say so, its code does (Mask R-CNN, section 3). The RoI then covers the cells from $\mathrm{round}(y_1/s)$ to $\mathrm{round}(y_2/s)$, both included: $l$ cells. These are split into $P$ bins, and since $l/P$ is rarely whole, the bins are rounded too, outwards:
#
# $$\text{bin } i: \quad \mathrm{round}(y_1 / s) + \left[\, \lfloor i\, l / P \rfloor,\ \lceil (i + 1)\, l / P \rceil \,\right)$$
#
# Each bin gives the largest value among its cells. Here it is as a loop over RoIs and bins. The library does the same with masks over all cells, so that it can be compiled; slow in both forms, it is there to be compared with.


# %%
def roi_pool(feature, boxes, stride, output_size):
    """feature (B, H, W, C), boxes (B, R, 4) pixels -> (B, R, P, P, C), the maximum over each bin. Empty bins give 0."""
    feature, boxes = np.asarray(feature, np.float32), np.asarray(boxes, np.float32)
    height, width = feature.shape[1:3]
    pooled = np.zeros((*boxes.shape[:2], output_size, output_size, feature.shape[3]), np.float32)

    def bins(low, high, cells):
        first = np.floor(low / stride + 0.5)
        length = max(np.floor(high / stride + 0.5) - first + 1, np.float32(1))
        edges = np.arange(output_size + 1, dtype=np.float32) * (length / output_size)
        starts, ends = first + np.floor(edges[:-1]), first + np.ceil(edges[1:])
        return np.clip(np.stack([starts, ends], axis=1), 0, cells).astype(int)

    for b, r in np.ndindex(boxes.shape[:2]):
        y1, x1, y2, x2 = boxes[b, r]
        for i, (top, bottom) in enumerate(bins(y1, y2, height)):
            for j, (left, right) in enumerate(bins(x1, x2, width)):
                if bottom > top and right > left:
                    pooled[b, r, i, j] = feature[b, top:bottom, left:right].max(axis=(0, 1))
    return pooled


# %% [markdown]
# By hand: a map of 5 x 5 cells with stride 8, and in row $i$, column $j$ the value $10 i + j$. The RoI is $(6, 9, 22, 29)$, and we want 2 x 2 bins. Divided by 8 it is $(0.75, 1.125, 2.75, 3.625)$, rounded $(1, 1, 3, 4)$: rows 1 to 3 and columns 1 to 4. Three rows make two bins of 1.5, rounded outwards to rows 1 and 2, and rows 2 and 3. Four columns make two bins of two. The maximum is at the lower right of each bin: 22, 24, 32 and 34.

# %% tags=["nbval-check-output"]
toy = (10 * np.arange(5)[:, None] + np.arange(5)).astype("float32")[None, :, :, None]
toy_roi = np.float32([[[6, 9, 22, 29]]])
print(roi_pool(toy, toy_roi, 8, 2)[0, 0, :, :, 0])

# %% [markdown]
# Row 2 is in both bins, and the RoI that ended at 22 pixels now ends at 32, the end of row 3. Nobody is told.

# %% [markdown]
# ## 2. A value between cells
#
# Bilinear interpolation gives each place the values of the cells around it, weighted by how near they are. Along one axis a cell at distance $d$ from the place has the weight
#
# $$w(d) = \max(0,\ 1 - |d|)$$
#
# which is 1 on the cell's centre and falls to 0 at the centres of its neighbours, like a hat. In two dimensions the weights of row and column are multiplied (paper, section 3; the formula is that of Spatial Transformer Networks).
#
# Since rows and columns separate, reading $P$ places along an axis is a matrix with a row for each place and a column for each cell. If several samples are averaged, so are their rows. The matrix of a RoI is therefore small, and all the reading is two matrix products: $\mathbf{W}_y\, \mathbf{F}\, \mathbf{W}_x^\top$.


# %%
def interpolation_matrix(position, weight, cells):
    """Samples (..., P, S) along one axis, in cells, and their weights -> matrix (..., P, cells)."""
    distance = ops.abs(position[..., None] - ops.cast(ops.arange(cells), "float32"))
    return ops.sum(weight[..., None] * ops.maximum(1.0 - distance, 0.0), axis=-2)


def read(feature, rows, cols):
    """Wy F Wx^T for every RoI and channel: (B, H, W, C), (B, R, P, H), (B, R, P, W) -> (B, R, P, P, C)."""
    lines = ops.einsum("brph,bhwc->brpwc", rows, feature)
    return ops.einsum("brqw,brpwc->brpqc", cols, lines)


# %% [markdown]
# By hand: a sample at 1.25 takes 0.75 of cell 1 and 0.25 of cell 2. Two samples at 0.5 and 1, averaged, take half of (0.5, 0.5, 0, 0, 0) and half of (0, 1, 0, 0, 0).

# %% tags=["nbval-check-output"]
print(np.asarray(interpolation_matrix(np.float32([[1.25]]), np.float32([[1]]), 5)))
print(np.asarray(interpolation_matrix(np.float32([[0.5, 1]]), np.float32([[0.5, 0.5]]), 5)))

# %% [markdown]
# ## 3. RoIAlign: where the samples are
#
# Cell $k$ of a map with stride $s$ stands for the pixels from $k s$ to $(k + 1) s$. Its centre is at pixel $(k + \tfrac12) s$. So the pixel coordinate $y$ lies at the position
#
# $$\frac{y}{s} - \frac12$$
#
# counted in cells, with 0 at the centre of the first. This half is easy to forget, and the chapter will forget it on purpose. Nothing is rounded. The RoI is divided into $P$ equal bins, each bin holds $S \times S$ samples, evenly spaced, and gives their average:
#
# $$\text{sample } k \text{ of bin } i: \quad \frac{y_1}{s} - \frac12 + \frac{y_2 - y_1}{s P} \left( i + \frac{k + 1/2}{S} \right), \qquad k = 0 \ldots S - 1$$
#
# At the border of the map there is one more rule, which all implementations share: a sample at most one cell outside takes the value at the edge, one farther out counts as 0.


# %%
def align_samples(low, high, stride, bins, cells, sampling_ratio, aligned):
    """Edges of RoIs along one axis (B, R), pixels -> positions in cells and weights of the samples, (B, R, P, S)."""
    start, length = low / stride - (0.5 if aligned else 0.0), (high - low) / stride
    if not aligned:
        length = ops.maximum(length, 1.0)
    start, bin_size, cells = start[..., None, None], length[..., None, None] / bins, cells[..., None, None]
    bin_index = ops.cast(ops.arange(bins), "float32")[:, None]
    sample_index = ops.cast(ops.arange(sampling_ratio), "float32")
    position = start + bin_size * (bin_index + (sample_index + 0.5) / sampling_ratio)
    counts = ops.logical_and(position >= -1.0, position <= cells)
    return ops.clip(position, 0.0, cells - 1.0), ops.where(counts, 1.0 / sampling_ratio, 0.0)


def roi_align(feature, boxes, stride, output_size, sampling_ratio=2, aligned=True):
    """feature (B, H, W, C), boxes (B, R, 4) pixels -> (B, R, P, P, C), the average of samples in each bin."""
    feature, boxes = as_float(feature), as_float(boxes)
    matrices = []
    for axis, cells in enumerate(feature.shape[1:3]):
        low, high = boxes[..., axis], boxes[..., axis + 2]
        all_cells = ops.full_like(low, float(cells))
        samples = align_samples(low, high, stride, output_size, all_cells, sampling_ratio, aligned)
        matrices.append(interpolation_matrix(*samples, cells))
    return read(feature, *matrices)


# %% [markdown]
# `aligned=False` is the first published form, without the half and with RoIs of at least one cell. It lives on in torchvision's weights.
#
# By hand, the same RoI: along y it goes from $6/8 - 0.5 = 0.25$ to $2.25$ cells, bins of 1. The samples of the first bin are at 0.5 and 1, on average at 0.75; those of the second at 1.5 and 2, on average 1.75. Along x it goes from 0.625 to 3.125; the averages are 1.25 and 2.5. The toy map is linear, $10 i + j$, so the average of the samples is the value at the average place: 8.75, 10, 18.75, 20.

# %% tags=["nbval-check-output"]
print(np.asarray(roi_align(toy, toy_roi, 8, 2))[0, 0, :, :, 0])

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
y1, x1, y2, x2 = toy_roi[0, 0]
for ax, title in zip(
    axes, ("RoIPool: four bins of whole cells", "RoIAlign: four bins, 2 x 2 samples each"), strict=True
):
    ax.imshow(toy[0, :, :, 0], extent=(0, 40, 40, 0), cmap="Greys", alpha=0.35)
    for i, j in np.ndindex(5, 5):
        ax.text(8 * j + 7.3, 8 * i + 1, f"{toy[0, i, j, 0]:.0f}", ha="right", va="top", color="0.25", fontsize=9)
    ax.add_patch(plt.Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec="black", lw=2))
    ax.set(title=title, xlabel="x, pixels", ylabel="y, pixels", xticks=range(0, 41, 8), yticks=range(0, 41, 8))
    ax.grid(color="0.75")
for (top, bottom), colour in zip(((1, 3), (2, 4)), ("tab:blue", "tab:orange"), strict=True):
    for left in (1, 3):
        box = plt.Rectangle((8 * left + 0.5, 8 * top + 0.5), 15, 8 * (bottom - top) - 1, fill=False, ec=colour, lw=2)
        axes[0].add_patch(box)
y, x = (
    np.ravel(8 * (np.asarray(align_samples(*np.float32([[[a]], [[b]]]), 8, 2, np.float32([[5]]), 2, True)[0]) + 0.5))
    for a, b in ((y1, y2), (x1, x2))
)
axes[1].axhline((y1 + y2) / 2, x1 / 40, x2 / 40, color="black", lw=1)
axes[1].plot([(x1 + x2) / 2] * 2, [y1, y2], color="black", lw=1)
axes[1].plot(*(v.ravel() for v in np.meshgrid(x, y)), "o", color="tab:orange", ms=6)
plt.show()

# %% [markdown]
# **Figure 7.2.** The toy example. Black: the RoI. Left: the bins that RoIPool makes of it; those of the upper row (blue) and of the lower row (orange) share cells; together they miss the RoI's upper edge and reach 10 pixels below it. Right: RoIAlign's bins are quarters of the RoI, and each averages four samples.
#
# Compare the two halves of Figure 7.2, then check both functions on random input. The library reads large maps another way, by gathering the four cells around each sample, since there the matrices would be almost all zeros. The numbers agree up to rounding. What is left out here is `sampling_ratio=0`, where each RoI has as many samples as cells; exercise 3 builds it.


# %% tags=["nbval-check-output"]
def random_boxes(n, size=128.0):
    corners = rng.uniform(0, 0.7 * size, (n, 2))
    return np.float32(np.concatenate([corners, corners + rng.uniform(1, size / 3, (n, 2))], axis=1))


feature = rng.normal(size=(2, 16, 20, 8)).astype("float32")
rois = np.stack([random_boxes(50), random_boxes(50)])
check("roi_pool", roi_pool(feature, rois, 8, 7), mr.roi_align.roi_pool(feature, rois, 8, 7))
check("roi_align", roi_align(feature, rois, 8, 7), mr.roi_align.roi_align(feature, rois, 8, 7))
for ratio, aligned in ((1, True), (3, True), (2, False)):
    how = {"sampling_ratio": ratio, "aligned": aligned}
    mine, theirs = (f(feature, rois, 8, 7, **how) for f in (roi_align, mr.roi_align.roi_align))
    check(f"  ratio {ratio}, aligned {aligned}", mine, theirs)

# %% [markdown]
# Move the RoI over a real feature map yourself. Push it by less than a cell: RoIAlign's output slides along, RoIPool's stands still and then jumps. Then make the RoI smaller than seven cells, and look at how many bins of RoIPool show the same cell.

# %%
fine = found.pyramid[1]
mr.widgets.RoIAlignExplorer(fine, roi, stride=8, channel=int(np.argmax(fine.std((0, 1)))))

# %% [markdown]
# ## 4. Crop-and-resize
#
# The seed uses an operation that TensorFlow had already, `tf.image.crop_and_resize`. It takes one bilinear sample for each output cell, and it takes boxes relative to the image, 0 to 1. Its samples run from corner to corner: the first lies on the box's first pixel, the last on its last pixel, and so the first and last cell centres of the map are put on the first and last pixels of the image. In the frame of the seed, with an image of $H s$ pixels and $H$ cells, a pixel coordinate lies at the position
#
# $$\frac{y}{H s - 1}\, (H - 1)$$
#
# There is no half in it. At the upper edge, pixel 0 is at position 0, where RoIAlign says $-\tfrac12$. At the lower edge it is the other way round.


# %%
def corner_samples(low, high, stride, bins, cells):
    """Edges of RoIs along one axis (B, R), pixels -> positions in cells and weights of the samples, (B, R, P, 1)."""
    last_pixel, last_cell = stride * cells - 1.0, cells - 1.0
    first, last = low / last_pixel * last_cell, (high - 1.0) / last_pixel * last_cell
    share = np.linspace(0, 1, bins, dtype=np.float32)
    position = first[..., None] + (last - first)[..., None] * share
    last_cell = last_cell[..., None]
    weight = ops.where(ops.logical_and(position >= 0.0, position <= last_cell), 1.0, 0.0)
    return ops.clip(position, 0.0, last_cell)[..., None], weight[..., None]


def crop_and_resize(feature, boxes, stride, output_size):
    """feature (B, H, W, C), boxes (B, R, 4) pixels -> (B, R, P, P, C): a sample a bin, corner to corner, 0 outside."""
    feature, boxes = as_float(feature), as_float(boxes)
    matrices = []
    for axis, cells in enumerate(feature.shape[1:3]):
        low, high = boxes[..., axis], boxes[..., axis + 2]
        samples = corner_samples(low, high, stride, output_size, ops.full_like(low, float(cells)))
        matrices.append(interpolation_matrix(*samples, cells))
    return read(feature, *matrices)


# %% [markdown]
# By hand, on the toy map: an image of 40 pixels and 5 cells, so a pixel is 4/39 of a cell. The RoI's first and last pixels are 6 and 21 along y, 9 and 28 along x. With 2 x 2 outputs these corners are all that is read: positions $24/39 \approx 0.615$ and $84/39 \approx 2.154$ along y, $36/39 \approx 0.923$ and $112/39 \approx 2.872$ along x. The first value is $6.15 + 0.92 = 7.08$.

# %% tags=["nbval-check-output"]
print(np.round(crop_and_resize(toy, toy_roi, 8, 2)[0, 0, :, :, 0], 3))
mine, theirs = (f(feature, rois, 8, 7) for f in (crop_and_resize, mr.roi_align.crop_and_resize))
check("crop_and_resize", mine, theirs)

# %% [markdown]
# ## 5. Where did you look?
#
# Now a trick to measure all samplers with one ruler. Give them a map whose values are coordinates: each cell holds the pixel coordinate of its own centre. What comes out is where the sampler has looked. Bilinear interpolation of a linear map is exact, so RoIAlign should answer with the centre of every bin, to the last digit. RoIPool takes maxima; the mean of the largest and the smallest coordinate is the middle of its bin. We average over the bins of a RoI and compare with the centre of the RoI.

# %% tags=["nbval-check-output"]
samplers = {
    "RoIAlign": roi_align,
    "without the half": partial(roi_align, aligned=False),
    "crop-and-resize": crop_and_resize,
    "RoIPool": roi_pool,
}
corners = rng.uniform(50, 300, (300, 2))  # well inside an image of 512 pixels, and larger than any cell
inside = np.float32(np.concatenate([corners, corners + rng.uniform(40, 150, (300, 2))], axis=1))[None]


def centre_errors(sampler, stride, size=512):
    """By how many pixels a sampler misses the centres of the RoIs, y and x: (R, 2)."""
    centres = (np.arange(size // stride, dtype=np.float32) + 0.5) * stride
    coordinates = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1)[None]
    largest, smallest = sampler(coordinates, inside, stride, 7), -sampler(-coordinates, inside, stride, 7)
    looked_at = np.mean(np.asarray(largest + smallest) / 2, axis=(2, 3))[0]
    return looked_at - (inside[0, :, :2] + inside[0, :, 2:]) / 2


print("error in pixels, mean ± standard deviation")
print(f"{'stride':>18}" + "".join(f"{stride:>14}" for stride in (4, 8, 16, 32)))
for name, sampler in samplers.items():
    cells = [centre_errors(sampler, stride) for stride in (4, 8, 16, 32)]
    print(f"{name:>18}" + "".join(f"{np.abs(e.mean().round(1)):>8.1f} ± {e.std():.1f}" for e in cells))

# %%
fig, axes = plt.subplots(1, 4, figsize=(9, 2.8), sharey=True, layout="constrained")
for ax, (name, sampler) in zip(axes, samplers.items(), strict=True):
    ax.hist(centre_errors(sampler, 16).ravel(), bins=np.arange(-9.75, 21, 1.5))
    ax.axvline(0, color="black", lw=1, ls="--")
    ax.set(title=name, xlabel="error, pixels", xticks=(-8, 0, 8, 16))
axes[0].set_ylabel("RoIs and axes")
plt.show()

# %% [markdown]
# **Figure 7.3.** By how much each sampler misses the centre of a RoI at stride 16, for 300 RoIs and two axes. Half a cell is 8 pixels.
#
# Figure 7.3 shows two kinds of error, and the difference matters for the rest of the chapter. Without the half, *every* RoI is read half a cell too far down and right: a constant. RoIPool adds a number that differs from RoI to RoI, as the edges happen to fall; there is also a constant part, because the last cell is counted in. Crop-and-resize is right in the middle of the image and off by up to half a cell towards its edges.
#
# A pixel error of 8 is nothing to a classifier: a dog stays a dog. It is a lot for a mask, whose own cells are smaller than that, and for a box that shall have an IoU of 0.9.

# %% [markdown]
# ## 6. What it costs
#
# ### Break it: the half forgotten
#
# Whoever loads weights into a network with the other convention makes this mistake. The shapes are right, nothing warns. We take the shipped model, which was trained with RoIAlign, and change nothing but its sampler.
#
# What it costs is told by **average precision** (AP). AP50 says how well the detections are ranked, from 0 to 1, if a detection counts as right from an IoU of 0.5 with an object of its class; AP75 asks for 0.75; AP alone is the mean over ten thresholds from 0.5 to 0.95. For mask AP the IoU is that of masks. A later chapter builds these numbers; here `mr.evaluate` gives them.


# %%
def changed(**settings):
    """The shipped model with other settings and the same weights."""
    other = mr.MaskRCNN(dataclasses.replace(model.config, **settings), model.class_names)
    other.set_weights(model.get_weights())
    return other


variants = {
    "RoIAlign": model,
    "without the half": changed(roi_aligned=False),
    "crop-and-resize": changed(roi_sampler="crop_and_resize"),
    "RoIPool": changed(roi_sampler="roi_pool"),
}


def print_scores(variants):
    print(f"{'':>18}   box AP   AP50   AP75    mask AP   AP50   AP75")
    for name, variant in variants.items():
        scores = mr.evaluate(variant, pictures, batch_size=10)
        boxes, masks = ("".join(f"{scores[kind][n]:7.2f}" for n in ("AP", "AP50", "AP75")) for kind in ("bbox", "segm"))
        print(f"{name:>18}  {boxes}    {masks}")


print_scores(variants)

# %%
fig, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
for ax, (name, variant) in zip(axes, variants.items(), strict=True):
    detections = variant.detect([pictures.image(shown)], batch_size=10)[0]
    good = detections.scores >= 0.5
    masks, boxes = detections.masks[good], detections.boxes[good]
    mr.plots.instances(pictures.image(shown), boxes=boxes, masks=masks, ax=ax, title=name)
plt.show()

# %% [markdown]
# **Figure 7.4.** The same weights with four samplers. The objects are found; their outlines are not.
#
# Without the half, AP50 hardly moves and AP75 collapses. This is the signature of a geometric mistake: the network still sees what is there, and puts it in the wrong place, as Figure 7.4 shows. Whoever looks at AP50 alone, or at loss curves of a classifier, does not notice.
#
# ### A fair comparison
#
# That was unfair to the other samplers: the weights had never seen them. The paper trains each one anew. We do the same in small. Keep the shipped backbone. Read 14 x 14 features of RoIs with each sampler from the map of stride 8, and let a *linear* map turn the 48 channels of each cell into the four mask pixels that lie in it. Such a map is fitted in closed form, by least squares, in a blink; each sampler gets its own. RoIs are ground-truth boxes whose edges are off by 8% of their size, as a detector's are. Targets are the true masks as seen through the RoI (chapter 08).


# %%
def batches(count, seed):
    """Level of stride 8 (B, 16, 16, 48), RoIs (B, 5, 4), which of them are real (B, 5), mask targets (B, 5, 28, 28)."""
    for batch in mr.loader(mr.ShapesDataset(count, seed=seed), model.config, training=False):
        level = model.backbone(model.normalise(batch["image"], batch["image_size"]))[1]
        boxes, real = batch["boxes"][:, :5], batch["classes"][:, :5] > 0
        sides = np.tile(boxes[..., 2:] - boxes[..., :2], 2)
        noisy = np.float32(boxes + rng.normal(0, 0.08, boxes.shape) * sides)
        yield level, noisy, real, np.asarray(mr.targets.mask_targets(batch["masks"][:, :5], boxes, noisy, 28))


def as_rows(blocks):
    """(N, 28, 28) -> a row for each of 14 x 14 cells with the four pixels in it, (N * 196, 4)."""
    return blocks.reshape(-1, 14, 2, 14, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)


def with_one(features):
    rows = features.reshape(-1, features.shape[-1])
    return np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)


def fit(features, masks):
    a = with_one(features)
    return np.linalg.solve(a.T @ a + np.eye(a.shape[1]), a.T @ as_rows(masks))


def mask_ious(features, masks, weights):
    """IoU of each predicted mask with its target: (N,)."""
    predicted = (with_one(features) @ weights).reshape(-1, 14, 14, 2, 2).transpose(0, 1, 3, 2, 4) > 0.5
    predicted, masks = predicted.reshape(-1, 784), masks.reshape(-1, 784) > 0.5
    return (predicted & masks).sum(1) / (predicted | masks).sum(1)


# %%
seen = {}
for part, count, seed in (("fit", 120, 0), ("test", 60, 1)):
    levels, noisy, real, masks = zip(*batches(count, seed), strict=True)
    seen[part] = {
        name: np.concatenate(
            [np.asarray(sampler(*given, 8, 14))[r] for *given, r in zip(levels, noisy, real, strict=True)]
        )
        for name, sampler in samplers.items()
    }
    seen[part]["masks"] = np.concatenate([m[r] for m, r in zip(masks, real, strict=True)])

print(f"{len(seen['fit']['masks'])} RoIs to fit, {len(seen['test']['masks'])} to test")
print(f"{'sampler':>18}   mean IoU   IoU above 0.75")
for name in samplers:
    ious = mask_ious(seen["test"][name], seen["test"]["masks"], fit(seen["fit"][name], seen["fit"]["masks"]))
    print(f"{name:>18}   {ious.mean():8.3f}   {(ious > 0.75).mean():14.0%}")

# %% [markdown]
# RoIAlign before RoIPool, as in the paper, and the reasons can be read off Figure 7.3. Forgetting the half, which ruined the trained model, costs next to nothing once the weights know of it: the shift is the same for every RoI, and each cell's feature knows enough about its neighbourhood to undo it. This is why torchvision can publish good weights without the half. RoIPool's rounding differs from RoI to RoI. Nothing in the feature tells by how much, so no weights can undo it.
#
# So there are two rules. Rounding costs accuracy whatever you train. A convention costs nothing as long as everybody follows it, and almost everything if one function does not.
#
# ### Break it: pixels where 0..1 is wanted
#
# `tf.image.crop_and_resize` takes boxes from 0 to 1, the functions of this chapter take pixels. Hand either of them the other's boxes.

# %% tags=["nbval-check-output"]
feature_map = np.asarray(found.pyramid[1])[None]
proposals = found.proposals[None]
right = np.asarray(crop_and_resize(feature_map, proposals, 8, 7))
pixels_for_relative = np.asarray(crop_and_resize(feature_map, proposals * 127, 8, 7))  # what the operation would read
relative_for_pixels = np.asarray(roi_align(feature_map, proposals / 127, 8, 7))
print(
    f"right:                    {np.mean(right == 0):4.0%} zeros, standard deviation over RoIs {right.std(1).mean():.3f}"
)
for name, wrong in (
    ("pixels for 0..1:         ", pixels_for_relative),
    ("0..1 for pixels:         ", relative_for_pixels),
):
    print(f"{name} {np.mean(wrong == 0):4.0%} zeros, standard deviation over RoIs {wrong.std(1).mean():.3f}")

# %% [markdown]
# Pixels taken for shares lie far outside the image: all zeros. Shares taken for pixels are RoIs of less than a pixel in the upper left corner: every RoI has nearly the same feature, and nothing is zero. In both cases the shapes are right and training runs. The classifier learns how frequent the classes are, and no more. One look at the spread over RoIs, as printed above, finds it.

# %% [markdown]
# ## 7. Which level?
#
# With a feature pyramid there is one more choice. A large RoI covers hundreds of cells of $P_2$ and a 7 x 7 grid of samples would miss most of them; a small one lies within a single cell of $P_5$. FPN (equation 1) reads a RoI of height $h$ and width $w$ from level
#
# $$k = \left\lfloor 4 + \log_2 \frac{\sqrt{h w}}{224} \right\rfloor$$
#
# cut to the levels there are, 2 to 5. 224 is the side of ImageNet's pictures, on which backbones are trained: a RoI of that size is read from the stride at which a backbone without a pyramid would read it.


# %%
def roi_level(boxes, config):
    """Level (0 = finest) that a RoI is read from: (..., 4) -> (...)."""
    side = ops.sqrt(ops.maximum(mr.boxes.area(boxes), 1e-12))  # log2 of an empty slot stays finite
    level = ops.floor(config.roi_canonical_level + ops.log2(side / config.roi_canonical_size + 1e-8))
    return ops.cast(ops.clip(level - 2, 0, len(config.stage_blocks) - 1), "int32")


# %% [markdown]
# By hand: a square of 224 pixels gives $4 + 0$, so $P_4$, which the function counts as 2. One of 223 pixels is already on $P_3$, and so is one of 112. One of 100 gives $4 - 1.16 = 2.84$, rounded down 2. The tiny $10^{-8}$ is Detectron's, against a logarithm of 0.

# %% tags=["nbval-check-output"]
coco = mr.Config.coco()
for side in (1000, 448, 224, 223, 112, 100, 10):
    print(f"{side:>5} pixels: P{int(roi_level([0, 0, side, side], coco)) + 2}")
squares = random_boxes(1000, 1000)
check("roi_level", roi_level(squares, coco), mr.roi_align.roi_level(squares, coco))

# %%
sides = np.geomspace(16, 1200, 600)
level = np.asarray(roi_level(np.stack([0 * sides, 0 * sides, sides, sides], axis=1), coco)) + 2
nearest = np.clip(4 + np.round(np.log2(sides / 224)), 2, 5)
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for values, style, name in ((level, "-", "rounded down (FPN)"), (nearest, "--", "nearest (the seed)")):
    axes[0].plot(sides, values, style, label=name)
    axes[1].plot(sides, sides / 2**values, style, label=name)
axes[0].set(ylabel="level", yticks=(2, 3, 4, 5), yticklabels=("$P_2$", "$P_3$", "$P_4$", "$P_5$"))
axes[1].set(ylabel="side of the RoI, cells of its level", ylim=(0, 42), yticks=(0, 7, 14, 28, 42))
axes[1].grid(axis="y", color="0.85")
for ax in axes:
    ax.set(xlabel="side of the RoI, pixels", xscale="log", xticks=(16, 56, 112, 224, 448, 1000), xlim=(16, 1200))
    ax.set_xticks([], minor=True)
    ax.set_xticklabels((16, 56, 112, 224, 448, 1000))
axes[0].legend()
plt.show()

# %% [markdown]
# **Figure 7.5.** Left: the level of a square RoI. Right: how many cells of that level its side covers. With rounding down, RoIs from 112 to 896 pixels cover 14 to 28 cells.
#
# The right half of Figure 7.5 explains two numbers that look arbitrary. A RoI of 14 to 28 cells, cut into 14 x 14 bins, has one to two cells in a bin: two samples along each axis miss nothing, and more would not help. Exercise 4 measures it. And RoIs smaller than 56 pixels have less than 14 cells even on $P_2$: small objects are blurred here, whatever the sampler does.
#
# ### Break it: the wrong level
#
# Read everything from the finest level, everything from the coarsest, or round to the nearest level as the seed does. In the shipped model, which works on pictures of 128 pixels, the canonical size is 32 pixels on $P_3$; a canonical size of 1000 sends every RoI to the finest level, one of 1 to the coarsest.

# %%
print_scores(
    {
        "nearest": changed(roi_level_rounding="nearest"),
        "all from P2": changed(roi_canonical_size=1000),
        "all from P4": changed(roi_canonical_size=1),
    }
)

# %% [markdown]
# Compare with the first row of the table in section 6. Everything from $P_2$ costs the boxes little: the network has learnt features there as well, and they are finer than needed. The masks of large objects suffer. Everything from $P_4$, stride 16, is much worse, since small objects then have three cells or fewer. The wrong rounding sends about half of the RoIs one level too coarse. It takes nearly a tenth off the mask AP, and AP50 does not show it.

# %% [markdown]
# > **How the others do it**
# >
# > *Paper.* RoIAlign with four samples a bin, averaged or the maximum of them; section 3 says that results hardly depend on where the samples lie and how many there are, as long as nothing is quantised. Table 2c: RoIAlign brings about 3 points of mask AP over RoIPool at stride 16, about 5 of AP75. Table 2d: at stride 32 it brings 7.3 points, 10.5 of AP75. RoIWarp, which interpolates but still rounds the RoI, does no better than RoIPool.
# >
# > *Detectron2.* As here, with the half. The number of samples follows the size of the bin (`sampling_ratio=0`). Its name for the half, `aligned`, tells of its history: the first RoIAlign, in Caffe2, lacked it.
# >
# > *torchvision.* Mask R-CNN uses 2 x 2 samples without the half, and RoIs of at least one cell, for the sake of published weights. Its `roi_align` has the same switch `aligned`.
# >
# > *The seed* (matterport/Mask_RCNN). `crop_and_resize`: one sample a bin, corner to corner, no average. The level is the nearest, $4 + \mathrm{round}(\ldots)$, not the one below. Boxes are normalised to 0..1. On a large RoI one sample a bin skips cells, which RoIPool, for all its rounding, does not.

# %% [markdown]
# ## Exercises
#
# **1 (recall).** A RoI of 56 x 84 pixels is read from a map of stride 8 into 7 x 7 bins with 2 x 2 samples each. How large is a bin, in cells, and how far apart are neighbouring samples?
#
# <details><summary>Hint</summary>
#
# First divide by the stride, then by 7, then by 2.
#
# </details>
#
# <details><summary>Solution</summary>
#
# 7 x 10.5 cells, so a bin is 1 x 1.5 cells, and samples are 0.5 and 0.75 cells apart.
#
# ```python
# cells = np.float32([[10]])
# y, _ = align_samples(np.float32([[0]]), np.float32([[56]]), 8, 7, cells, 2, True)
# x, _ = align_samples(np.float32([[8]]), np.float32([[92]]), 8, 7, np.float32([[20]]), 2, True)
# gaps = [float(v[0, 0, 3, 1] - v[0, 0, 3, 0]) for v in (y, x)]
# np.testing.assert_allclose(gaps, [0.5, 0.75])
# ```
#
# </details>
#
# **2 (understand).** Express `aligned=False` through `aligned=True`: by what must a box be changed so that both give the same? For which boxes is that not possible?
#
# <details><summary>Hint</summary>
#
# $y/s$ is $(y + ?)/s - 1/2$.
#
# </details>
#
# <details><summary>Solution</summary>
#
# Shift the box by half a stride down and right. That holds for RoIs with sides of at least one cell; smaller ones are enlarged to a cell by `aligned=False`.
#
# ```python
# large = rois[:, np.all(rois[..., 2:] - rois[..., :2] >= 8, axis=(0, 2))]
# check("shifted by half a cell", roi_align(feature, large, 8, 7, aligned=False), roi_align(feature, large + 4, 8, 7))
# ```
#
# </details>
#
# **3 (build).** Write RoIAlign with adaptive sampling for one RoI: along each axis $\lceil l / P \rceil$ samples a bin, $l$ being the RoI's length in cells. Check it against the library's `sampling_ratio=0`.
#
# <details><summary>Hint</summary>
#
# `align_samples` takes any number of samples; only it may now differ between the axes.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def adaptive(feature, box, stride, bins):
#     matrices = []
#     for axis, cells in enumerate(feature.shape[1:3]):
#         low, high = np.float32([[box[axis]]]), np.float32([[box[axis + 2]]])
#         count = int(np.ceil((high - low) / stride / bins).item())
#         samples = align_samples(low, high, stride, bins, np.float32([[cells]]), count, True)
#         matrices.append(interpolation_matrix(*samples, cells))
#     return read(as_float(feature), *matrices)
#
#
# for box in ([3, 5, 30, 100], [10, 0, 125, 160], [40, 40, 44, 49]):
#     theirs = mr.roi_align.roi_align(feature[:1], np.float32([[box]]), 8, 7, sampling_ratio=0)
#     check(f"adaptive {box}", adaptive(feature[:1], box, 8, 7), theirs)
# ```
#
# The library limits the samples of a bin to 64, so that a loop of fixed length serves all RoIs.
#
# </details>
#
# **4 (measure).** How many samples are enough? On a real map, compare 1, 2, 4 and 8 samples an axis with 32, for RoIs whose bins are half a cell, one, two and four cells wide.
#
# <details><summary>Hint</summary>
#
# Take a level of `found.pyramid` and squares of 3.5, 7, 14 and 28 cells; of the finest level, so that they fit.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# finest = found.pyramid[0][None]
# print("cells a bin   error with 1, 2, 4, 8 samples, relative to the map's deviation")
# for width in (0.5, 1, 2, 4):
#     side = 4 * 7 * width
#     corner = rng.uniform(0, 128 - side, (100, 2))
#     squares = np.float32(np.concatenate([corner, corner + side], axis=1))[None]
#     best = np.asarray(roi_align(finest, squares, 4, 7, 32))
#     errors = [np.std(np.asarray(roi_align(finest, squares, 4, 7, n)) - best) / finest.std() for n in (1, 2, 4, 8)]
#     print(f"{width:>11}   " + "  ".join(f"{error:.3f}" for error in errors))
#     assert errors[0] > errors[1] > errors[3]
# ```
#
# Two samples are enough for bins of up to two cells, which is what the level rule gives. One sample, as crop-and-resize has it, is not.
#
# </details>
#
# **5 (research).** Precise RoI pooling (Jiang et al., IoU-Net, 2018) takes no samples at all. It integrates the bilinear surface over each bin, exactly, so that the output is also differentiable with respect to the box. Since the surface is a sum of hats, and hats separate, the integral is again a product of two matrices. Write it, and compare with `roi_align` with many samples.
#
# <details><summary>Hint</summary>
#
# The antiderivative of the hat is a smooth step: $(d+1)^2/2$ from -1 to 0, then $1 - (1-d)^2/2$ up to 1. The weight of a cell is the difference of two steps, over the width of the bin.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def step(d):
#     d = np.clip(d, -1, 1)
#     return np.where(d < 0, (d + 1) ** 2 / 2, 1 - (1 - d) ** 2 / 2)
#
#
# def integral_matrix(low, high, stride, bins, cells):
#     edges = np.linspace(low / stride - 0.5, high / stride - 0.5, bins + 1)[:, None] - np.arange(cells)
#     return (step(edges[1:]) - step(edges[:-1])) / ((high - low) / stride / bins)
#
#
# y1, x1, y2, x2 = box = [20, 24, 90, 116]
# wy, wx = integral_matrix(y1, y2, 8, 7, 16), integral_matrix(x1, x2, 8, 7, 20)
# exact = np.einsum("ph,hwc,qw->pqc", wy, feature[0], wx)
# for n in (2, 8, 64):
#     sampled = np.asarray(roi_align(feature[:1], np.float32([[box]]), 8, 7, n))[0, 0]
#     print(f"{n:>2} samples an axis: largest difference {np.abs(sampled - exact).max():.1g}")
# assert np.abs(sampled - exact).max() < 1e-3
# ```
#
# </details>

# %% [markdown]
# ## Summary
#
# A head needs a feature of fixed size from a box of any size. RoIPool rounds the box and its bins to cells and takes maxima; its error is up to a cell, and differs from RoI to RoI. RoIAlign rounds nothing: it takes bilinear samples at exact places, half a cell away from $y/s$ since cells have their centres in their middle, and averages them in each bin. Crop-and-resize takes one sample a bin from corner to corner. A map that holds its own coordinates shows where a sampler looks. A constant error can be learnt away but must not be mixed up; a random one stays. In a pyramid, a RoI is read from the level on which it covers 14 to 28 cells.
#
# **Read now:** [`maskrcnn_edu/roi_align.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/roi_align.py). New in it are `pool_from_pyramid`, which lays all levels on one sheet so that one pass serves RoIs of every level, and the gathering form for large maps.
#
# **Next:** chapter 08 puts the heads on these features: what is it, where exactly, and which pixels?
#
# ## Further reading
#
# - K. He, G. Gkioxari, P. Dollár, R. Girshick: *Mask R-CNN*, ICCV 2017. Section 3 and tables 2c and 2d. [arXiv:1703.06870](https://arxiv.org/abs/1703.06870)
# - R. Girshick: *Fast R-CNN*, ICCV 2015. Section 2.1, RoIPool. [arXiv:1504.08083](https://arxiv.org/abs/1504.08083)
# - M. Jaderberg, K. Simonyan, A. Zisserman, K. Kavukcuoglu: *Spatial Transformer Networks*, NeurIPS 2015. Bilinear sampling and its gradient. [arXiv:1506.02025](https://arxiv.org/abs/1506.02025)
# - T.-Y. Lin et al.: *Feature Pyramid Networks for Object Detection*, CVPR 2017. Equation 1. [arXiv:1612.03144](https://arxiv.org/abs/1612.03144)
# - B. Jiang et al.: *Acquisition of Localization Confidence for Accurate Object Detection* (IoU-Net), ECCV 2018. Precise RoI pooling. [arXiv:1807.11590](https://arxiv.org/abs/1807.11590)

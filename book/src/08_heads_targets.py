# ---
# jupyter:
#   book:
#     title: Heads and their targets
#     library: [heads, targets, losses]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Heads and their targets
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/08_heads_targets.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F08_heads_targets.ipynb) (neither has been tried)
#
# **A RoI lies somewhere near an object. What is it, where exactly does it end, and which pixels belong to it? And what do we tell a network that has to learn this, when its RoIs fit no object precisely?**
#
# After this chapter you can
#
# - give each RoI a class, a box and a mask to learn, and choose the RoIs that take part;
# - write both heads, with the deconvolution as one matrix product and one class's kernel in place of all;
# - write the three losses, and say which RoIs count in which of them;
# - train a mask head on your own machine in a few seconds, and measure it.
#
# You need chapters 05 (IoU, deltas), 06 (matching and sampling) and 07 (RoIAlign). The chapter runs in about half a minute on a laptop, without a GPU or a network.

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

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers, ops

import maskrcnn_edu as mr
from maskrcnn_edu.backend import gather, random_keys
from maskrcnn_edu.book import check
from maskrcnn_edu.boxes import area, encode, iou
from maskrcnn_edu.losses import binary_cross_entropy, mean_where, smooth_l1, sum_where
from maskrcnn_edu.roi_align import interpolation_matrix, pool_from_pyramid
from maskrcnn_edu.targets import IGNORED, NEGATIVE, POSITIVE, ROI_STREAM, match, sample

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# Here is one training picture for the shipped detector, with the RoIs that its heads would learn from.

# %%
model = keras.saving.load_model(mr.files("shapes.keras"))
config = model.config
batch = next(iter(mr.loader(mr.ShapesDataset(8, seed=1), config, training=False)))
shown = 2
taught = mr.stages.training_stages(model, batch, shown)

fig, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
for ax, label, name in ((axes[0], POSITIVE, "positive"), (axes[1], NEGATIVE, "negative")):
    some = taught.rois[taught.roi_labels == label]
    colours = ["tab:orange" if label == POSITIVE else "tab:blue"] * len(some)
    mr.plots.instances(taught.image, boxes=some, colours=colours, ax=ax, title=f"{len(some)} {name} RoIs")
plt.show()

# %% [markdown]
# **Figure 8.1.** The sampled RoIs of one picture. Left: those that overlap an object by at least half; they learn its class, its box and its mask. Right: the others; they learn that they are background.
#
# Figure 8.1 already contains three decisions: when a RoI counts as an object, how many of each kind take part, and what each of them learns. We take them in this order, and build the heads along the way.

# %% [markdown]
# ## 1. The targets of a RoI
#
# A RoI is **positive** if its IoU with some object is at least 0.5, otherwise **negative** (paper, section 3.1). It learns the object that it fits best. There is no zone between, as there is for anchors: the RoIs come from a network that has sorted already.
#
# Most proposals are background, and a head that sees little else learns to say "background". So RoIs are sampled: at most a quarter positive, filled up with negatives. `match` and `sample` are those of chapter 06.
#
# Two things are new. The ground-truth boxes themselves join the proposals; at the beginning of training no proposal overlaps anything by half, and without them the mask head would see nothing for a long time. And proposals come in slots, some of them empty: boxes of zeros. These must be *ignored*, not negative. We come back to what happens otherwise.
#
# The positive RoI's box target is the deltas of chapter 05 from the RoI to its object, with the weights 10, 10, 5, 5.


# %%
def max_positive_rois(config):
    """Most positives among the sampled RoIs of an image."""
    return max(1, int(config.roi_batch_size * config.roi_positive_fraction))


def roi_targets(proposals, truth, config):
    """What the heads learn: proposals (B, R, 4) -> dict of sampled rois, label, matched, class and deltas."""
    is_object = truth["classes"] > 0
    real = ops.where(is_object[..., None], truth["boxes"], 0.0)
    candidates = ops.concatenate([proposals, real], axis=1)
    overlap = ops.where(is_object[..., None], iou(truth["boxes"], candidates), 0.0)
    matched, label = match(overlap, config.roi_threshold, config.roi_threshold)
    label = ops.where(area(candidates) > 0, label, IGNORED)  # an empty slot is no negative
    keys = random_keys(truth["seed"], label.shape[1], ROI_STREAM)
    index, label = sample(label, config.roi_batch_size, max_positive_rois(config), keys)
    rois, matched = gather(candidates, index), gather(matched, index)
    return {
        "rois": rois,
        "label": label,
        "matched": matched,
        "class": ops.where(label == POSITIVE, gather(truth["classes"], matched), 0),
        "deltas": encode(gather(truth["boxes"], matched), rois, config.box_delta_weights),
    }


# %% [markdown]
# The library's function also knows crowds, regions of COCO in which nobody outlined the single objects: a RoI that lies on one is ignored as well.
#
# By hand: one object of class 2 at $(10, 10, 50, 50)$ and four proposals. The first, $(10, 10, 50, 40)$, covers three quarters of it: IoU 0.75, positive. The second is 20 too low: it shares 20 x 40 of 2400 pixels, IoU 1/3, negative. The third is an empty slot, the fourth lies elsewhere. The object's own box comes fifth, positive. With four slots, at most half positive, all four real ones are taken, positives first. The first proposal's centre must move by 5 of 30 pixels, times 10: $d_x = 1.667$. Its width grows by 40/30, and $5 \log(4/3) = 1.438$.

# %% tags=["nbval-check-output"]
four = mr.Config.tiny(roi_batch_size=4, roi_positive_fraction=0.5)
proposals = np.float32([[[10, 10, 50, 40], [30, 10, 70, 50], [0, 0, 0, 0], [80, 80, 120, 120]]])
truth = {"boxes": np.float32([[[10, 10, 50, 50]]]), "classes": np.int32([[2]]), "seed": np.int32([0])}
toy_targets = {name: np.asarray(value)[0] for name, value in roi_targets(proposals, truth, four).items()}
for i in range(4):
    box, t = (" ".join(f"{v:7.3f}" for v in toy_targets[name][i]) for name in ("rois", "deltas"))
    what = "positive" if toy_targets["label"][i] == POSITIVE else "negative"
    print(f"{box}   {what}, class {toy_targets['class'][i]}" + (f", deltas {t}" if what == "positive" else ""))


# %% tags=["nbval-check-output"]
def random_boxes(*shape, size=128.0):
    corners = rng.uniform(0, 0.7 * size, (*shape, 2))
    return np.float32(np.concatenate([corners, corners + rng.uniform(8, size / 3, (*shape, 2))], axis=-1))


objects = random_boxes(4, 6)
near = np.repeat(objects, 10, axis=1) + rng.normal(0, 4, (4, 60, 4)).astype("float32")
near[:, 50:] = 0  # empty slots
given = {"boxes": objects, "classes": rng.integers(0, 4, (4, 6)).astype("int32"), "seed": np.arange(4, dtype="int32")}
mine, theirs = roi_targets(near, given, config), mr.targets.roi_targets(near, given, config)
for name in mine:
    check(name, mine[name], theirs[name])

# %% [markdown]
# ## 2. The box head
#
# A RoI's feature of 7 x 7 cells is flattened and goes through two dense layers. Then two answers: a logit for each class, background included, and four deltas for each class *except* background (Faster R-CNN with FPN, section 4.2). Why deltas for each class? Because a person's box is corrected in another way than a bicycle's; the class's own four are used, the rest is ignored.


# %%
def build_box_head(config):
    """(N, P, P, C) -> class logits (N, classes) and deltas (N, classes - 1, 4)."""
    side = config.box_pool_size
    feature = keras.Input((side, side, config.fpn_channels))
    x = layers.Flatten()(feature)
    for units in config.box_fc_channels:
        x = layers.Dense(units, "relu")(x)
    logits = layers.Dense(config.num_classes, kernel_initializer=keras.initializers.RandomNormal(stddev=0.01))(x)
    small = keras.initializers.RandomNormal(stddev=0.001)
    deltas = layers.Dense((config.num_classes - 1) * 4, kernel_initializer=small)(x)
    return keras.Model(feature, [logits, layers.Reshape((config.num_classes - 1, 4))(deltas)])


# %% [markdown]
# By hand: with 48 channels, two layers of 128 and 4 classes the head has $49 \cdot 48 \cdot 128 + 128$ weights in the first layer, $128 \cdot 128 + 128$ in the second, $128 \cdot 4 + 4$ for the classes and $128 \cdot 12 + 12$ for the boxes: 301,056 + 128 + 16,512 + 516 + 1,548 = 319,760. The small first weights make all classes equally likely at the beginning, and leave the boxes where the proposals are.

# %% tags=["nbval-check-output"]
box_head = build_box_head(config)
print(f"{box_head.count_params():,} weights")
box_head.set_weights(model.box_head.get_weights())
roi_features = rng.normal(size=(10, 7, 7, 48)).astype("float32")
for name, mine, theirs in zip(("logits", "deltas"), box_head(roi_features), model.box_head(roi_features), strict=True):
    check(name, mine, theirs)

# %% [markdown]
# Two losses (Fast R-CNN, section 2.3). The **class loss** is softmax cross-entropy, averaged over all sampled RoIs, positive and negative. The **box loss** is the L1 distance between the true class's deltas and their targets, of positive RoIs only:
#
# $$L_\text{class} = -\frac{1}{S} \sum_{i=1}^{S} \log p_i(c_i) \qquad L_\text{box} = \frac{1}{S} \sum_{i:\, c_i > 0} \left\lVert t_i(c_i) - t_i^* \right\rVert_1$$
#
# $S$ is the number of sampled RoIs, the same in both. So a positive weighs as much whether it is alone in its picture or one of many. A background RoI has no box; nothing can be asked of its deltas. `sum_where(x, mask)` adds up `x` where the mask holds, `mean_where` averages there, and both give 0 where it holds nowhere; `smooth_l1` is that of chapter 06.


# %%
def class_loss(logits, target, label):
    """Softmax cross-entropy averaged over the sampled RoIs. logits (B, S, C), target class (B, S)."""
    log_p = ops.log_softmax(logits, axis=-1)
    right = ops.one_hot(target, logits.shape[-1], dtype="float32")
    return mean_where(-ops.sum(log_p * right, axis=-1), label != IGNORED)


def box_loss(deltas, target, target_class, label, beta):
    """deltas (B, S, C - 1, 4), target (B, S, 4). Positives only, over the number of sampled RoIs."""
    own = ops.one_hot(target_class - 1, deltas.shape[2], dtype="float32")  # background (-1): all zeros
    own_deltas = ops.sum(deltas * own[..., None], axis=2)
    distance = ops.sum(smooth_l1(own_deltas, target, beta), axis=-1)
    sampled = ops.sum(ops.cast(label != IGNORED, "float32"))
    return sum_where(distance, label == POSITIVE) / ops.maximum(sampled, 1.0)


# %% [markdown]
# By hand: two classes, three slots. The first RoI has logits $(0, \log 3)$, so probabilities 1/4 and 3/4, and class 1: $-\log 0.75 = 0.288$. The second has the same logits and is background: $-\log 0.25 = 1.386$. The third slot is empty and its logits are absurd. The mean is 0.837. In the box loss only the first counts; its deltas are off by 1 and by 2, so the loss is $3 / 2 = 1.5$.

# %% tags=["nbval-check-output"]
label = np.int32([[POSITIVE, NEGATIVE, IGNORED]])
logits = np.float32([[[0, np.log(3)], [0, np.log(3)], [99, -99]]])
target_class = np.int32([[1, 0, 0]])
deltas, goal = np.float32([[[[1, 0, 0, 2]], [[9, 9, 9, 9]], [[9, 9, 9, 9]]]]), np.zeros((1, 3, 4), np.float32)
print(f"class loss {class_loss(logits, target_class, label):.3f}, ", end="")
print(f"box loss {box_loss(deltas, goal, target_class, label, 0):.3f}")

# %% tags=["nbval-check-output"]
heads = {name: np.asarray(value) for name, value in model(batch)["heads"].items()}
classes_and_label = heads["class"], heads["label"]
check(
    "class_loss",
    class_loss(heads["logits"], *classes_and_label),
    mr.losses.class_loss(heads["logits"], *classes_and_label),
)
arguments = heads["predicted_deltas"], heads["deltas"], *classes_and_label, 1 / 9
check("box_loss", box_loss(*arguments), mr.losses.box_loss(*arguments))

# %% [markdown]
# ### Break it: background in the box loss
#
# Somebody averages the distance over all sampled RoIs and forgets the condition $c_i > 0$. `target_class - 1` is then $-1$ for background, which in NumPy means the last class. Nothing fails.


# %%
def box_loss_of_all(deltas, target, target_class):
    own = np.take_along_axis(deltas, (target_class - 1)[..., None, None] % deltas.shape[2], axis=2)[:, :, 0]
    return np.abs(own - target).sum(-1)


distance = box_loss_of_all(heads["predicted_deltas"], heads["deltas"], heads["class"])
positive, negative = heads["label"] == POSITIVE, heads["label"] == NEGATIVE
sampled = positive.sum() + negative.sum()
print(f"{positive.sum()} positive and {negative.sum()} negative RoIs in {len(batch['image'])} pictures")
print(f"box loss of the positives {distance[positive].sum() / sampled:.2f}, of all {distance.sum() / sampled:.2f}")
print(f"largest target: positive {np.abs(heads['deltas'][positive]).max():.1f}, ", end="")
print(f"negative {np.abs(heads['deltas'][negative]).max():.1f}")

# %% [markdown]
# Almost the whole loss now comes from RoIs that have no box. Their targets are deltas to some object far away, in units of ten times the RoI, so they are large and cannot be guessed from what the RoI shows. And they all pull at the last class: triangles get bad boxes first. In a training this looks like a box loss that stays high from the beginning while the other losses fall.
#
# ### Break it: empty slots in the class loss (the seed)
#
# The seed pads the RoIs of a picture with zeros up to a fixed number, 200, and gives the padding class 0. Class 0 is background. So each empty slot is a background RoI, of which the head sees the upper left corner of the picture. Our sampled RoIs have a label for "empty"; drop it, and ask for 200 RoIs as the seed does.

# %%
many = dataclasses.replace(config, roi_batch_size=200)
found = [mr.stages.stages(model, image) for image in batch["image"]]
slots = np.zeros((8, 200, 4), np.float32)
for i, one in enumerate(found):
    slots[i, : len(one.proposals)] = one.proposals
learnt = roi_targets(slots, {name: batch[name] for name in ("boxes", "classes", "seed")}, many)
pyramid = model.backbone(model.normalise(batch["image"], batch["image_size"]))
logits = np.asarray(model.run_box_head(pyramid, learnt["rois"])[0])
target, label = np.asarray(learnt["class"]), np.asarray(learnt["label"])
padded = np.where(label == IGNORED, NEGATIVE, label)
print(f"{(label == POSITIVE).sum()} positive, {(label == NEGATIVE).sum()} negative, {(label == IGNORED).sum()} empty")
for name, used in (("empty slots ignored", label), ("as background", padded)):
    loss = float(class_loss(logits, target, used))
    print(f"{name:>20}: class loss {loss:.4f}, weight of a real RoI 1/{(used != IGNORED).sum()}")

# %% [markdown]
# The loss is smaller, which looks like success. But each real RoI now weighs a third of what it should. The class branch learns with a third of its learning rate, and the fewer proposals survive NMS, the less it learns. How much a picture teaches depends on how full its slots are. It also teaches something false: that what lies in the corner of the picture is background.
#
# ### What the trained head says
#
# In detection the head runs on all proposals. Each class of each RoI is a candidate; those above a score go into NMS within their class (chapter 05). Figure 8.2 follows the best of them.

# %% tags=["nbval-check-output"]
one = found[shown]
best = one.class_probabilities.argmax(1)
print(f"{len(one.proposals)} proposals: {(best == 0).sum()} are background to the head")
print(f"{len(one.candidates)} candidates score above {config.detection_score_threshold}, NMS keeps {len(one.kept)}")

# %%
top = np.unique(one.candidate_rois[one.candidate_scores >= 0.5])[:10]  # proposals come best first
chosen = [np.flatnonzero(one.candidate_rois == r)[0] for r in top]
fig, ax = plt.subplots(figsize=(4.8, 4.8), layout="constrained")
mr.plots.refinement(one.image, one.proposals[top], one.candidates[chosen], ax=ax)
plt.show()

# %% [markdown]
# **Figure 8.2.** The best ten proposals that the head takes for an object with a score of at least 0.5, dotted, and what its deltas make of them, solid. Different proposals of one object end in nearly the same box.

# %% [markdown]
# ## 3. What the mask head is taught
#
# The mask head answers in a grid of $m \times m$ cells *inside the RoI*, 28 x 28 in the paper. Its target is therefore the object's mask seen through the RoI: cut out, and resized to the grid. If the RoI misses a part of the object, that part is in no target; if it reaches beyond, those cells are empty.
#
# Our ground-truth masks travel cropped to the object's own box, as $M \times M$ cells of coverage (chapter 01). So there are two frames. The centre of cell $k$ of the RoI $(y_1, \ldots)$ lies in the picture at $y_1 + (y_2 - y_1)(k + \tfrac12)/m$, and in the mask of the box $b$ at
#
# $$\frac{y - b_1}{b_3 - b_1}\, M - \frac12$$
#
# which is chapter 07's half again. There we interpolate, with chapter 07's matrices: $\mathbf{W}_y\, \text{mask}\, \mathbf{W}_x^\top$. A cell that is covered by half or more is set to 1.


# %%
def mask_targets(masks, mask_boxes, rois, side):
    """masks (B, P, M, M) coverage 0..255 of mask_boxes (B, P, 4), rois (B, P, 4) -> (B, P, side, side), 0 or 1."""
    cells = masks.shape[-1]
    centres = (ops.cast(ops.arange(side), "float32") + 0.5) / side

    def matrix(low, high, box_low, box_high):  # (B, P) each -> (B, P, side, M)
        scale = cells / ops.maximum(box_high - box_low, 1e-6)
        position = (low[..., None] + (high - low)[..., None] * centres - box_low[..., None]) * scale[..., None]
        inside = ops.logical_and(position >= 0.0, position <= cells)  # outside its box the mask is 0
        centred = ops.clip(position - 0.5, 0.0, cells - 1.0)
        return interpolation_matrix(centred[..., None], ops.cast(inside, "float32")[..., None], cells)

    wy, wx = (matrix(rois[..., i], rois[..., i + 2], mask_boxes[..., i], mask_boxes[..., i + 2]) for i in (0, 1))
    seen = ops.einsum("bpym,bpmn,bpxn->bpyx", wy, ops.cast(masks, "float32") / 255.0, wx)
    return ops.cast(seen >= 0.5, "float32")


# %% [markdown]
# By hand: an object with the box $(0, 0, 8, 8)$ and a mask of 4 x 4, whose left half is set. The RoI $(0, 2, 8, 10)$ is shifted by 2 pixels, one cell, to the right. Its cell centres lie at $x = 3, 5, 7, 9$, which are cells 1, 2, 3 of the mask and one beyond it. Only cell 1 is set: the target is one column.

# %% tags=["nbval-check-output"]
left_half = np.zeros((1, 1, 4, 4), np.uint8)
left_half[..., :2] = 255
print(np.asarray(mask_targets(left_half, np.float32([[[0, 0, 8, 8]]]), np.float32([[[0, 2, 8, 10]]]), 4))[0, 0])

positives = max_positive_rois(config)
matched = heads["matched"][:, :positives]
arguments = gather(batch["masks"], matched), gather(batch["boxes"], matched), heads["rois"][:, :positives], 28
check("mask_targets", mask_targets(*arguments), mr.targets.mask_targets(*arguments))

# %%
kept = min(7, len(taught.masks))
fig, axes = plt.subplots(2, kept, figsize=(9, 2.9), layout="constrained")
for column in range(kept):
    y1, x1, y2, x2 = taught.rois[column]
    axes[0, column].imshow(taught.image / 255, extent=(0, 128, 128, 0))
    axes[0, column].set(
        xlim=(x1, x2), ylim=(y2, y1), title=taught.class_names[taught.roi_classes[column]], aspect="auto"
    )
    axes[1, column].imshow(taught.masks[column], cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
for ax in axes.flat:
    ax.set(xticks=(), yticks=(), box_aspect=1)
plt.show()

# %% [markdown]
# **Figure 8.3.** Positive RoIs, each stretched to a square as the head sees it, and the 28 x 28 mask that it is to answer. Where the RoI cuts the object off, the target is cut off, too.
#
# Look at Figure 8.3 for two RoIs of the same object: their targets differ, and both are right. The mask is relative to the RoI, as the deltas are.

# %% [markdown]
# ## 4. The mask head
#
# A few 3 x 3 convolutions on 14 x 14 cells, then a deconvolution (transposed convolution) that doubles the side, then a 1 x 1 convolution with one output for each class (paper, figure 4).
#
# ### The deconvolution is a matrix product
#
# A transposed convolution puts a copy of its kernel at every input cell, scaled by the cell's value, and adds up where copies overlap. With a kernel of 2 x 2 and stride 2 they do not overlap: every cell becomes a block of its own. So it is a linear map from the $C$ channels of a cell to the $2 \cdot 2 \cdot D$ numbers of a block, one matrix for all cells, and then the blocks are put where they belong.


# %%
class Conv2DTranspose(layers.Conv2DTranspose):
    """A transposed convolution whose stride is its kernel's side: (N, H, W, C) -> (N, k H, k W, D)."""

    def call(self, x):
        (side, _, units, channels), (height, width) = self.kernel.shape, x.shape[1:3]
        kernel = ops.reshape(ops.transpose(self.kernel, (3, 0, 1, 2)), (channels, side * side * units))
        blocks = ops.reshape(ops.matmul(x, kernel), (-1, height, width, side, side, units))
        blocks = ops.transpose(blocks, (0, 1, 3, 2, 4, 5))  # cell row, row in the block, cell column, column in it
        return self.activation(ops.reshape(blocks, (-1, height * side, width * side, units)) + self.bias)


# %% [markdown]
# By hand: two cells with the values 2 and 10, kernel 1, 2 / 3, 4. Each becomes its multiple of the kernel. Keras' own layer, the general one, is the check.

# %% tags=["nbval-check-output"]
tiny = Conv2DTranspose(1, 2, 2)
tiny.build((None, 1, 2, 1))
tiny.set_weights([np.float32([[1, 2], [3, 4]]).reshape(2, 2, 1, 1), np.float32([0])])
print(np.asarray(tiny(np.float32([[[[2], [10]]]])))[0, :, :, 0])

x = rng.normal(size=(3, 14, 14, 32)).astype("float32")
mine, theirs = Conv2DTranspose(16, 2, 2, activation="relu"), layers.Conv2DTranspose(16, 2, 2, activation="relu")
theirs(x), mine(x)
mine.set_weights(theirs.get_weights())
check("deconvolution", mine(x), theirs(x))

# %% [markdown]
# ### One class's kernel
#
# The last layer would give one mask for each of COCO's 80 classes, of which 79 are thrown away. We know the class before: in training it is the true one, in detection the box head's. A 1 x 1 convolution is a dot product with a kernel of $C$ numbers for each class, so fetch the one kernel that is wanted. This saves work, and shows what the paper means by **decoupling**: the mask head is not asked *what* it sees. It draws the outline of the class it was told.


# %%
class MaskPredictor(layers.Layer):
    """x (N, H, W, C), classes (N,) from 1 -> logits (N, H, W) of each one's class."""

    def __init__(self, masks, **kwargs):
        super().__init__(**kwargs)
        self.masks = masks

    def build(self, x_shape, classes_shape):
        small = keras.initializers.RandomNormal(stddev=0.001)
        self.kernel = self.add_weight(name="kernel", shape=(self.masks, x_shape[-1]), initializer=small)
        self.bias = self.add_weight(name="bias", shape=(self.masks,), initializer="zeros")

    def call(self, x, classes):
        channel = ops.clip(classes, 1, self.masks) - 1  # an empty slot has class 0; nobody looks at its mask
        kernel, bias = ops.take(self.kernel, channel, axis=0), ops.take(self.bias, channel, axis=0)
        return ops.einsum("nhwc,nc->nhw", x, kernel) + bias[:, None, None]

    def compute_output_shape(self, x_shape, classes_shape):
        return x_shape[:-1]


def build_mask_head(config):
    """feature (N, P, P, C), classes (N,) from 1 -> mask logits (N, 2P, 2P), all classes' ones for softmax masks."""
    side = config.mask_pool_size
    feature = x = keras.Input((side, side, config.fpn_channels))
    classes = keras.Input((), dtype="int32")
    for channels in config.mask_conv_channels:
        x = layers.Conv2D(channels, 3, padding="same", activation="relu", kernel_initializer="he_normal")(x)
    x = Conv2DTranspose(x.shape[-1], 2, 2, activation="relu", kernel_initializer="he_normal")(x)
    if config.mask_activation == "softmax":
        logits = layers.Conv2D(config.num_classes, 1, kernel_initializer=keras.initializers.RandomNormal(stddev=0.001))(
            x
        )
    else:
        logits = MaskPredictor(config.num_classes - 1)(x, classes)
    return keras.Model([feature, classes], logits)


# %% tags=["nbval-check-output"]
mask_head = build_mask_head(config)
mask_head.set_weights(model.mask_head.get_weights())
some = rng.normal(size=(10, 14, 14, 48)).astype("float32"), rng.integers(1, 4, 10)
check("mask head", mask_head(some), model.mask_head(some))

# %% [markdown]
# What does decoupling look like? Take the RoI of one object and ask the shipped head for a circle, for a square and for a triangle. `pool_from_pyramid` is RoIAlign on the level that suits the RoI (chapter 07, sections 3 and 7).

# %%
detected = one.candidates[one.kept][0]
feature = pool_from_pyramid([level[None] for level in one.pyramid], detected[None, None], 14, config)
feature = np.asarray(feature)[0]
asked = [np.asarray(ops.sigmoid(mask_head([feature, np.int32([c])])))[0] for c in (1, 2, 3)]
fig, axes = plt.subplots(1, 4, figsize=(9, 2.5), layout="constrained")
y1, x1, y2, x2 = detected
axes[0].imshow(one.image / 255, extent=(0, 128, 128, 0))
axes[0].set(xlim=(x1, x2), ylim=(y2, y1), title="the RoI", aspect="auto", box_aspect=1)
for ax, mask, name in zip(axes[1:], asked, model.class_names[1:], strict=True):
    ax.imshow(mask, vmin=0, vmax=1)
    ax.set_title(f"asked for a {name}")
for ax in axes:
    ax.set(xticks=(), yticks=())
plt.show()
print("it is a", model.class_names[one.candidate_classes[one.kept][0]])

# %% [markdown]
# **Figure 8.4.** One RoI and the three masks that the head could give, probabilities from 0 (dark) to 1 (yellow). Only the mask that is asked for is computed in detection.
#
# ### Loss and training
#
# The **mask loss** is binary cross-entropy of the true class's mask, averaged over the cells of the positive RoIs (paper, section 3). Whether the other classes' masks are right does not matter, and they get no gradient from this RoI. So a wrong question gets no sensible answer: the kernels for squares and triangles have never been trained on a circle, and in Figure 8.4 they find scraps of an edge.


# %%
def mask_loss(logits, target, positive):
    """logits, target (B, P, m, m), positive (B, P) bool -> the mean over the positive RoIs' cells."""
    return mean_where(ops.mean(binary_cross_entropy(logits, target), axis=(-2, -1)), positive)


# %% tags=["nbval-check-output"]
level_logits = np.zeros((1, 2, 28, 28), np.float32)
print(f"a head that knows nothing: {mask_loss(level_logits, level_logits, np.array([[True, False]])):.3f}, log 2")
arguments = heads["mask_logits"], heads["masks"], heads["label"][:, :positives] == POSITIVE
check("mask_loss", mask_loss(*arguments), mr.losses.mask_loss(*arguments))

# %% [markdown]
# Now train a mask head from nothing, in a few seconds. The shipped backbone stays as it is, so its features of all RoIs are computed once: 120 pictures, each object three times with a box that is off by about 8%. Testing is on 60 other pictures, with the same noise.


# %%
def mask_examples(count, seed, copies):
    """Features (N, 14, 14, 48), classes (N,) and targets (N, 28, 28) of noisy boxes of the objects of `count` pictures."""
    examples = []
    for given in mr.loader(mr.ShapesDataset(count, seed=seed), config, training=False):
        levels = model.backbone(model.normalise(given["image"], given["image_size"]))
        real = given["classes"] > 0
        for _ in range(copies):
            sides = np.tile(given["boxes"][..., 2:] - given["boxes"][..., :2], 2)
            rois = np.float32(given["boxes"] + rng.normal(0, 0.08, sides.shape) * sides)[:, :5]
            targets = mask_targets(given["masks"][:, :5], given["boxes"][:, :5], rois, 28)
            read = pool_from_pyramid(levels, rois, 14, config)
            values = (np.asarray(read), given["classes"][:, :5], np.asarray(targets))
            examples.append([value[real[:, :5]] for value in values])
    return [np.concatenate(values) for values in zip(*examples, strict=True)]


features, classes, masks = mask_examples(120, 0, 3)
test_features, test_classes, test_masks = mask_examples(60, 1, 1)
print(f"{len(masks)} RoIs to train on, {len(test_masks)} to test")


# %%
def mean_iou(predicted, truth):
    """Mean IoU of masks (N, m, m) bool."""
    truth = truth > 0.5
    return float(np.mean((predicted & truth).sum((1, 2)) / np.maximum((predicted | truth).sum((1, 2)), 1)))


def train(head, loss, predict, targets, stops=(1, 2, 4, 8, 16)):
    """Trains to each of the epochs in `stops`, and prints the IoU on the test RoIs there."""
    head.compile(keras.optimizers.AdamW(2e-3), loss=loss, jit_compile=False)
    epoch, scores = 0, []
    for stop in stops:
        head.fit([features, classes], targets, batch_size=32, initial_epoch=epoch, epochs=stop, verbose=0)
        epoch = stop
        scores.append(mean_iou(predict(head.predict([test_features, test_classes], 64, verbose=0)), test_masks))
    return dict(zip(stops, scores, strict=True))


def all_positive(target, logits):
    return mask_loss(logits[:, None], target[:, None], ops.ones_like(target[:, :1, 0], dtype="bool"))


own_head = build_mask_head(config)
own = train(own_head, all_positive, lambda logits: logits > 0, masks)
shipped = mean_iou(np.asarray(model.mask_head([test_features, test_classes])) > 0, test_masks)
print("epoch     " + "".join(f"{stop:>7}" for stop in own))
print("mean IoU  " + "".join(f"{score:7.3f}" for score in own.values()) + f"   shipped head {shipped:.3f}")

# %%
grid = np.concatenate([np.flatnonzero(test_classes == c)[:3] for c in (1, 2, 3)])
mine = np.asarray(ops.sigmoid(own_head([test_features[grid], test_classes[grid]])))
fig, axes = plt.subplots(2, len(grid), figsize=(9, 2.4), layout="constrained")
for column, (target, mask) in enumerate(zip(test_masks[grid], mine, strict=True)):
    axes[0, column].imshow(target, vmin=0, vmax=1)
    axes[1, column].imshow(mask, vmin=0, vmax=1)
for ax in axes.flat:
    ax.set(xticks=(), yticks=())
axes[0, 0].set_ylabel("target")
axes[1, 0].set_ylabel("your head")
plt.show()

# %% [markdown]
# **Figure 8.5.** Test RoIs: three circles, three squares, three triangles. Above the target, below the probabilities of the head trained in this notebook.
#
# A few seconds give most of what the shipped head knows, since the backbone has learnt already where edges are. In Figure 8.5 most outlines are right to about a cell. What is left to learn are the doubts inside some surfaces, and objects of which another covers a part.
#
# ### Break it: softmax masks
#
# In semantic segmentation each pixel chooses one class: softmax. It looks natural to do the same here, with background as one of the classes. The paper tried it (table 2b).


# %%
def softmax_loss(target, logits):
    """target (N, m, m): the class of each cell; logits (N, m, m, C)."""
    return keras.losses.sparse_categorical_crossentropy(target, logits, from_logits=True)


def own_class_wins(logits):
    probability = np.asarray(ops.softmax(logits, axis=-1))
    return np.take_along_axis(probability, test_classes[:, None, None, None], axis=-1)[..., 0] > 0.5


softmax_head = build_mask_head(dataclasses.replace(config, mask_activation="softmax"))
competing = train(softmax_head, softmax_loss, own_class_wins, masks * classes[:, None, None])
print("epoch     " + "".join(f"{stop:>7}" for stop in own))
print("sigmoid   " + "".join(f"{score:7.3f}" for score in own.values()))
print("softmax   " + "".join(f"{score:7.3f}" for score in competing.values()))

# %% [markdown]
# The same features, layers and number of steps, and about six hundredths less IoU at the end: with softmax the mask head must also say *which* class it sees, cell by cell, though the box head has said it already from the whole RoI. A cell on the surface of a shape looks like any other class's surface. Where the head hesitates between square and circle, neither reaches one half, and the cell is lost. The paper loses 5.5 points of AP in this way. Here, with three classes and a small data set, the size of the gap is no more than an example; its direction is the paper's.

# %% [markdown]
# From the 28 x 28 probabilities to pixels is one more step: the mask is stretched to its box and cut at a threshold. Move the threshold and the box below, and watch the IoU with the true mask. Switch the half-pixel shift off: it is chapter 07's mistake at the other end of the network.

# %%
picture = mr.ShapesDataset(8, seed=1)
real = picture.instances(shown)
best_match = int(np.argmax(iou(one.detections.boxes[:1], real.boxes)[0]))
truth_mask = real.masks[best_match]
mr.widgets.MaskExplorer(one.mask_probabilities[0], one.detections.boxes[0], picture.image(shown), truth_mask)

# %% [markdown]
# > **How the others do it**
# >
# > *Paper.* RoIs are positive from IoU 0.5, one to three negatives; 64 RoIs a picture on C4, 512 with FPN. The mask loss is defined on positive RoIs only. Table 2b: sigmoid masks are 5.5 points of AP better than softmax masks (30.3 and 24.8). One mask for all classes together, class-agnostic, is nearly as good (29.7 against 30.3, section 4.2).
# >
# > *Detectron2.* 512 RoIs, a quarter positive, ground truth among them. Mask targets are drawn from the polygons into the RoI's grid. Background is the last class, not the first. The box loss is plain L1 over all sampled RoIs' number.
# >
# > *torchvision.* The same numbers. Mask targets are RoIAlign of the full mask and stay soft; boxes use smooth L1 with $\beta = 1/9$.
# >
# > *The seed* (matterport/Mask_RCNN). 200 RoIs, a third positive, targets are resized and rounded. The box head's dense layers are written as a 7 x 7 and a 1 x 1 convolution with batch normalisation. Ground-truth boxes do not join the proposals. Empty slots count as background in the class loss.

# %% [markdown]
# ## Exercises
#
# **1 (recall).** A picture has 3 objects and 100 proposals, of which 12 are positive; at most 8 of 32 sampled RoIs may be positive. How many RoIs count in the class loss, in the box loss, in the mask loss?
#
# <details><summary>Hint</summary>
#
# The ground truth joins, and the rest is filled up with negatives.
#
# </details>
#
# <details><summary>Solution</summary>
#
# 15 positives with the ground truth, of which 8 are drawn, and 24 of the 88 negatives. 32 count in the class loss, 8 in the box and mask losses; the box loss is still divided by 32.
#
# ```python
# label = np.int32([[POSITIVE] * 15 + [NEGATIVE] * 88])
# _, drawn = sample(label, 32, 8, rng.uniform(0.01, 1, label.shape).astype("float32"))
# assert np.sum(np.asarray(drawn) == POSITIVE) == 8 and np.sum(np.asarray(drawn) == NEGATIVE) == 24
# ```
#
# </details>
#
# **2 (understand).** The mask target of a RoI is cut at one half, and the RoI's cells are about two pixels wide. What is the best IoU with the true mask that a perfect mask head can reach? Measure it on the Shapes, with the true boxes as RoIs.
#
# <details><summary>Hint</summary>
#
# `mask_targets` of the box itself, then `mr.masks.paste`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# ious = []
# for i in range(8):
#     real = picture.instances(i)
#     crops = mr.datasets.transforms.crop_masks(real.masks, real.boxes, 56)
#     perfect = np.asarray(mask_targets(crops[None], real.boxes[None], real.boxes[None], 28))[0]
#     pasted = mr.masks.paste(perfect, real.boxes, 128, 128)
#     ious.append(mean_iou(pasted, real.masks.astype("float32")))
# print(round(float(np.mean(ious)), 3))
# assert np.mean(ious) > 0.95
# ```
#
# Not 1: what the grid loses cannot be won back. On COCO, with objects of 300 pixels, the limit of 28 x 28 is felt more; PointRend (Kirillov et al., 2020) was made for it.
#
# </details>
#
# **3 (build).** Write `keras.ops`-free NumPy for the deconvolution with a loop over cells, and check it against `Conv2DTranspose`.
#
# <details><summary>Hint</summary>
#
# The kernel has the shape (row, column, output, input). Each cell adds `kernel @ value` to its block.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def deconvolve(x, kernel, bias):
#     out = np.zeros((len(x), 28, 28, kernel.shape[2]), np.float32)
#     for i in range(14):
#         for j in range(14):
#             out[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = np.einsum("abdc,nc->nabd", kernel, x[:, i, j])
#     return np.maximum(out + bias, 0)
#
#
# layer = Conv2DTranspose(16, 2, 2, activation="relu")
# layer.build(x.shape)
# check("by a loop", deconvolve(x, *layer.get_weights()), layer(x))
# ```
#
# </details>
#
# **4 (measure).** How does the mask head depend on the quality of its boxes? Read the test RoIs with other amounts of noise and measure the mean IoU of masks with their targets. Then give it boxes without any.
#
# <details><summary>Hint</summary>
#
# `mask_examples` has the noise built in; write a variant that takes it as an argument.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# given = next(iter(mr.loader(mr.ShapesDataset(8, seed=1), config, training=False)))
# levels = model.backbone(model.normalise(given["image"], given["image_size"]))
# real, boxes = given["classes"] > 0, given["boxes"]
# scores = []
# for noise in (0, 0.08, 0.2, 0.4):
#     rois = np.float32(boxes + rng.normal(0, noise, boxes.shape) * np.tile(boxes[..., 2:] - boxes[..., :2], 2))
#     goal = np.asarray(mask_targets(given["masks"], boxes, rois, 28))[real]
#     read = np.asarray(pool_from_pyramid(levels, rois, 14, config))[real]
#     scores.append(mean_iou(np.asarray(own_head([read, given["classes"][real]])) > 0, goal))
#     print(f"noise {noise:.2f}: {scores[-1]:.3f}")
# assert scores[1] > scores[3]
# ```
#
# In detection the mask head therefore runs on the *refined* boxes, after NMS, and not on the proposals.
#
# </details>
#
# **5 (research).** Class-agnostic masks: one kernel for all classes. Train such a head (`MaskPredictor(1)`) on the same features and compare. When would you expect a difference?
#
# <details><summary>Hint</summary>
#
# `MaskPredictor` clips the class to the number of its kernels, so a single one serves all.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# agnostic = build_mask_head(dataclasses.replace(config, num_classes=2))
# print({stop: round(score, 3) for stop, score in train(agnostic, all_positive, lambda z: z > 0, masks, (4, 8)).items()})
# assert agnostic.count_params() < own_head.count_params()
# ```
#
# The paper finds hardly a difference on COCO: the object in a RoI is mostly the one in its middle. Where two objects share a RoI, the class says which is meant.
#
# </details>

# %% [markdown]
# ## Summary
#
# RoIs that overlap an object by half are positive and learn its class, its deltas and its mask; the rest learn to be background; empty slots learn nothing. A quarter of the sample is positive at most, and ground-truth boxes join it. The class loss counts all sampled RoIs, box and mask loss the positives, with the channel of the true class alone. A mask target is the object's mask seen through the RoI. The mask head doubles its grid with one matrix product and computes one class's mask; because it does not have to say what it sees, it learns outlines better.
#
# **Read now:** [`maskrcnn_edu/heads.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/heads.py), [`maskrcnn_edu/targets.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/targets.py) and [`maskrcnn_edu/losses.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/losses.py). New in them are crowds, soft mask targets and the keypoint head.
#
# **Next:** all parts are there. Chapter 09 puts them together, and chapter 10 trains them; both are planned.
#
# ## Further reading
#
# - K. He, G. Gkioxari, P. Dollár, R. Girshick: *Mask R-CNN*, ICCV 2017. Sections 3 and 4.2, table 2b. [arXiv:1703.06870](https://arxiv.org/abs/1703.06870)
# - R. Girshick: *Fast R-CNN*, ICCV 2015. Section 2.3, the losses and the sampling. [arXiv:1504.08083](https://arxiv.org/abs/1504.08083)
# - T.-Y. Lin et al.: *Feature Pyramid Networks for Object Detection*, CVPR 2017. Section 4.2. [arXiv:1612.03144](https://arxiv.org/abs/1612.03144)
# - V. Dumoulin, F. Visin: *A guide to convolution arithmetic for deep learning*, 2016. Transposed convolutions. [arXiv:1603.07285](https://arxiv.org/abs/1603.07285)
# - A. Kirillov, Y. Wu, K. He, R. Girshick: *PointRend: Image Segmentation as Rendering*, CVPR 2020. [arXiv:1912.08193](https://arxiv.org/abs/1912.08193)

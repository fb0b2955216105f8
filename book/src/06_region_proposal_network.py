# ---
# jupyter:
#   book:
#     title: The region proposal network
#     library: [proposals, targets, losses]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · The region proposal network
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/06_region_proposal_network.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F06_region_proposal_network.ipynb) (neither has been tried)
#
# **A picture has 4032 anchors and three objects. Which sixty boxes are worth a second look, and how does a network learn to choose them?**
#
# After this chapter you can
#
# - say for each anchor what it should learn: an object, the background, or nothing;
# - write the two losses of the region proposal network (RPN) so that they never give NaN;
# - train an RPN alone in under a minute and watch its recall grow, and tell what goes wrong when it does not.
#
# You need chapters 03 (the pyramid), 04 (anchors) and 05 (IoU, deltas, NMS). The chapter runs in less than a minute on a laptop, without a GPU or a network.

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
from keras import ops

import maskrcnn_edu as mr
from maskrcnn_edu import boxes
from maskrcnn_edu.anchors import anchors_by_level, pyramid_anchors
from maskrcnn_edu.backbone import build_backbone, conv
from maskrcnn_edu.backend import Conv2D, gather, random_keys
from maskrcnn_edu.book import check
from maskrcnn_edu.optimizers import build_optimizer
from maskrcnn_edu.targets import CROWD_COVER, IGNORED, NEGATIVE, POSITIVE, RPN_STREAM

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# The settings are those of the shipped detector, without masks, and one picture will serve as the example. We let the shipped detector show where this chapter is going.

# %%
config = mr.Config.tiny(mask_head=False)
test_set = mr.ShapesDataset(100, seed=1)
test_images = np.stack([test_set.image(i) for i in range(len(test_set))])
test_truth = [test_set.instances(i).boxes for i in range(len(test_set))]
image, truth = test_set.image(8), test_set.instances(8)

shipped = keras.saving.load_model(mr.files("shapes.keras"))
seen = mr.stages.stages(shipped, image)
fig, axes = plt.subplots(1, 2, figsize=(9, 4.1), layout="constrained")
some = rng.permutation(len(seen.anchors))[:25]
mr.plots.boxes(image, seen.anchors[some], ax=axes[0])
axes[0].set_title(f"25 of {len(seen.anchors)} anchors", fontsize=9)
mr.plots.proposals(image, seen.proposals, seen.proposal_scores, count=20, truth=truth, ax=axes[1])
plt.show()

# %% [markdown]
# **Figure 6.1.** What the RPN is given, and what it makes of it. Right: the 20 best proposals of a trained RPN; dashed: the true boxes.
#
# Figure 6.1 is a sieve. For each anchor the network gives a number, the **objectness**, which says whether an object is there at all; its class is nobody's business yet. And it gives four deltas, which move the anchor onto the object. What is left after sorting and suppression are the **proposals**. Missing an object here is final, since nothing later looks anywhere else. A wrong proposal is cheap: the heads of chapter 08 sort it out. So the RPN is judged by its **recall**, the share of objects that some proposal reaches.

# %% [markdown]
# ## 1. The head
#
# A 3 x 3 convolution looks around each cell, then two 1 x 1 convolutions answer: one logit and four deltas for each of the cell's $A$ anchors (Faster R-CNN, section 3.1). The same weights run on every level (FPN, section 4.1). This works because anchors grow with the stride: an object that fills its anchor looks alike on all levels.


# %%
def build_rpn_head(config):
    """(B, H, W, C) -> logits (B, H, W, A), deltas (B, H, W, A * 4). The same weights serve every level."""
    feature = keras.Input((None, None, config.fpn_channels), name="level")
    small = keras.initializers.RandomNormal(stddev=0.01)
    x = feature
    for i in range(config.rpn_convs):
        x = conv(x, config.rpn_channels, 3, f"rpn_conv{i + 1}", activation="relu", init=small)
    num_anchors = len(config.anchor_ratios)
    logits = Conv2D(num_anchors, 1, kernel_initializer=small, name="rpn_logits", dtype="float32")(x)
    deltas = Conv2D(num_anchors * 4, 1, kernel_initializer=small, name="rpn_deltas", dtype="float32")(x)
    return keras.Model(feature, [logits, deltas], name="rpn")


def run_rpn_head(head, pyramid):
    """The head on all levels -> lists, finest level first, of logits (B, n) and deltas (B, n, 4), in anchor order."""
    logits, deltas = [], []
    for level in pyramid:
        level_logits, level_deltas = head(level)
        n = level_logits.shape[1] * level_logits.shape[2] * level_logits.shape[3]
        logits.append(ops.reshape(level_logits, (-1, n)))
        deltas.append(ops.reshape(level_deltas, (-1, n, 4)))
    return logits, deltas


# %% [markdown]
# By hand: with 48 channels the 3 x 3 convolution has $9 \cdot 48 \cdot 48 + 48 = 20{,}784$ weights, the logits $48 \cdot 3 + 3 = 147$ and the deltas $48 \cdot 12 + 12 = 588$. Together 21,519, which is little beside the backbone. Filled with the shipped weights, our head must say what the shipped one says.

# %% tags=["nbval-check-output"]
head = build_rpn_head(config)
print(f"{head.count_params():,} weights")
head.set_weights(shipped.rpn.get_weights())
pyramid = [level[None] for level in seen.pyramid]
ours, theirs = run_rpn_head(head, pyramid), mr.proposals.run_rpn_head(shipped.rpn, pyramid)
check("run_rpn_head, logits", ops.concatenate(ours[0], axis=1), ops.concatenate(theirs[0], axis=1))
check("run_rpn_head, deltas", ops.concatenate(ours[1], axis=1), ops.concatenate(theirs[1], axis=1))

# %% [markdown]
# ## 2. Matching: what should an anchor learn?
#
# Take the table of IoU, objects by anchors, $(G, N)$. Each anchor looks down its column for the object it fits best. From 0.7 on it is **positive** and learns that object. Below 0.3 it is **negative**: background. Between, it is **neutral** and learns nothing, since either answer would be half wrong (Faster R-CNN, section 3.1.2).
#
# Chapter 04 found that fewer than half of the Shapes objects have an anchor of 0.7. The others would never be learnt. So a second rule: the anchors that fit an *object* best, its row's maximum, are positive too, however low their IoU.


# %%
def match(iou, positive_threshold, negative_threshold, low_quality=False):
    """The object that each box fits best, and whether it fits: iou (..., G, N) -> matched (..., N), label (..., N)."""
    best = ops.max(iou, axis=-2)
    matched = ops.argmax(iou, axis=-2)
    label = ops.where(best >= positive_threshold, POSITIVE, ops.where(best < negative_threshold, NEGATIVE, IGNORED))
    if low_quality:
        best_of_object = ops.max(iou, axis=-1, keepdims=True)
        favourite = ops.any(ops.logical_and(iou == best_of_object, iou > 0), axis=-2)
        label = ops.where(favourite, POSITIVE, label)
    return matched, label


# %% [markdown]
# By hand: two objects, five anchors.
#
# | | anchor 0 | 1 | 2 | 3 | 4 |
# |---|---|---|---|---|---|
# | object 0 | **0.8** | 0.5 | 0.1 | 0.0 | 0.6 |
# | object 1 | 0.1 | 0.2 | 0.2 | 0.0 | **0.4** |
#
# Anchor 0 reaches 0.7 with object 0: positive. Anchor 1 is between: neutral. Anchors 2 and 3 are negative. Anchor 4 fits object 0 with 0.6, which would be neutral; but it is the best that object 1 has, so it is positive. And which object does it learn? `matched` still says object 0. Section 7 comes back to this.

# %% tags=["nbval-check-output"]
table = np.float32([[0.8, 0.5, 0.1, 0.0, 0.6], [0.1, 0.2, 0.2, 0.0, 0.4]])
for low_quality in (False, True):
    matched, label = match(table, 0.7, 0.3, low_quality)
    print(f"second rule {low_quality!s:<5}  matched {np.asarray(matched)}  label {np.asarray(label)}")

# %% [markdown]
# COCO also has **crowds**: regions full of objects that nobody outlined one by one. An anchor that lies on a crowd by more than half (`CROWD_COVER`) may well be on an object, so it is no background either. And since arrays have a fixed shape, ground truth comes in slots, of which most are empty: class 0, a box of zeros. A crowd has a negative class.


# %%
def match_with_crowds(candidates, gt_boxes, gt_classes, **thresholds):
    """`match` of candidates (B, N, 4) or (N, 4) with the objects; candidates on a crowd are IGNORED, not NEGATIVE."""
    is_object, is_crowd = (gt_classes > 0)[..., None], (gt_classes < 0)[..., None]
    matched, label = match(ops.where(is_object, boxes.iou(gt_boxes, candidates), 0.0), **thresholds)
    shared = ops.where(is_crowd, boxes.intersection(gt_boxes, candidates), 0.0)
    on_crowd = ops.max(shared, axis=-2) > CROWD_COVER * boxes.area(candidates)
    return matched, ops.where(ops.logical_and(on_crowd, label == NEGATIVE), IGNORED, label)


# %%
training_set = mr.ShapesDataset(1000)
batch = next(iter(mr.loader(training_set, config, seed=0)))
anchors = pyramid_anchors((128, 128), config)
thresholds = {"positive_threshold": 0.7, "negative_threshold": 0.3, "low_quality": True}
mine = match_with_crowds(anchors, batch["boxes"], batch["classes"], **thresholds)
theirs = mr.targets.match_with_crowds(anchors, batch["boxes"], batch["classes"], **thresholds)
check("match, object", mine[0], theirs[0])
check("match, label", mine[1], theirs[1])

fig, ax = plt.subplots(figsize=(6.2, 6.2), layout="constrained")
mr.plots.anchors(image, config, truth, count=40, ax=ax)
plt.show()

# %% [markdown]
# **Figure 6.2.** The example's anchors by what they learn. Neutral and negative ones are drawn in part. Three positives stand against thousands of negatives.
#
# Move the thresholds of Figure 6.2 yourself. Switch the second rule off: which objects have no positive anchor at 0.7, and how low must the threshold go until all three have one?

# %%
mr.widgets.MatchingExplorer(image, truth.boxes, config=config)

# %% [markdown]
# ## 3. Sampling
#
# Of 4032 anchors about four are positive. A network that always says "background" is right 99.9% of the time. So the loss looks at a small random choice: 64 anchors of a picture here, 256 on COCO, at most half of them positive, the rest negative (Faster R-CNN, section 3.1.3). With few positives the rest is filled with negatives.
#
# The choice must be made without a loop and have a fixed shape. Give every anchor a random key. Positives among the best `max_positive` keys of all positives get rank 2 + key, negatives rank key, everything else rank 0. The best `count` ranks are the sample.


# %%
def sample(label, count, max_positive, keys):
    """label (B, N), keys (B, N) random in (0, 1) -> indices (B, count) and their labels (B, count), positives first."""
    n = label.shape[1]
    count, max_positive = min(count, n), min(max_positive, n)
    positive_keys = ops.where(label == POSITIVE, keys, 0.0)
    bar = ops.top_k(positive_keys, max_positive)[0][:, -1:]
    chosen = ops.logical_and(label == POSITIVE, positive_keys >= bar)
    rank = ops.where(chosen, 2.0 + keys, ops.where(label == NEGATIVE, keys, 0.0))
    rank, indices = ops.top_k(rank, count)
    return indices, ops.where(rank >= 2.0, POSITIVE, ops.where(rank > 0.0, NEGATIVE, IGNORED))


# %% [markdown]
# By hand: labels 1, 0, 1, -1, 0 with keys .3, .5, .9, .8, .6; four places, one positive at most. The best positive key is .9, so anchor 2 is in with rank 2.9, and anchor 0 is out. Then come the negatives 4 (.6) and 1 (.5). The fourth place stays empty and is marked IGNORED.

# %% tags=["nbval-check-output"]
index, chosen = sample(ops.array([[1, 0, 1, -1, 0]]), 4, 1, ops.array([[0.3, 0.5, 0.9, 0.8, 0.6]]))
print(np.asarray(index)[0, :3], np.asarray(chosen)[0])

# %% [markdown]
# Where do the keys come from? Not from a random generator with a state, but from a hash of the picture's seed and the anchor's number (`random_keys`). So a run that is stopped and continued draws what it would have drawn, on TensorFlow and on JAX. `RPN_STREAM` is one more number in the hash, so that the heads of chapter 08 draw other keys for the same picture. `gather(x, index)` takes for each picture of a batch its own rows of `x`: $(B, N, \ldots)$ and $(B, K)$ give $(B, K, \ldots)$. All together, the targets of the RPN:


# %%
def rpn_targets(anchors, truth, config):
    """What the RPN learns: anchors (N, 4) -> dict of sampled anchor indices, labels (B, S) and deltas (B, S, 4)."""
    matched, label = match_with_crowds(
        anchors, truth["boxes"], truth["classes"], low_quality=True,
        positive_threshold=config.rpn_positive_threshold, negative_threshold=config.rpn_negative_threshold,
    )  # fmt: skip
    max_positive = max(1, int(config.rpn_batch_size * config.rpn_positive_fraction))
    keys = random_keys(truth["seed"], label.shape[1], RPN_STREAM)
    index, label = sample(label, config.rpn_batch_size, max_positive, keys)
    reference = ops.take(ops.convert_to_tensor(anchors), index, axis=0)
    deltas = boxes.encode(gather(truth["boxes"], gather(matched, index)), reference)
    return {"index": index, "label": label, "deltas": deltas}


# %% tags=["nbval-check-output"]
mine, theirs = (f(anchors, batch, config) for f in (rpn_targets, mr.targets.rpn_targets))
for name in mine:
    check(f"rpn_targets, {name}", mine[name], theirs[name])
label = np.asarray(match_with_crowds(anchors, batch["boxes"], batch["classes"], **thresholds)[1])
for name, labels in (("all anchors", label), ("sample", np.asarray(mine["label"]))):
    counts = [int((labels == kind).sum()) for kind in (POSITIVE, IGNORED, NEGATIVE)]
    print(f"{name:<12} {counts[0]:>4} positive  {counts[1]:>4} neutral  {counts[2]:>6} negative in 8 pictures")

# %% [markdown]
# ## 4. Loss
#
# Objectness is a yes or no. With $z$ the logit and $a$ the right answer, 1 or 0, binary cross-entropy is $-a \log \sigma(z) - (1 - a) \log(1 - \sigma(z))$. Computed like this, $\sigma(-120)$ is 0 in float32 and its logarithm $-\infty$. The same expression, rearranged, cannot overflow:
#
# $$L(z, a) = \max(z, 0) - za + \log(1 + e^{-|z|})$$
#
# For the deltas, **smooth L1** (Fast R-CNN, equation 3): like $|d|$, rounded to a parabola below $\beta$. $\beta = 0$ is plain L1, which is what we use.
#
# Over what do we average? Both losses are divided by the number of *sampled* anchors, positive or not. Then a positive anchor's deltas weigh the same whether it is alone in its picture or one of twenty. An empty set gives 0: the divisor is at least 1. (The library writes the sums below with its `mean_where` and `sum_where`, which other losses share.)


# %%
def smooth_l1(prediction, target, beta):
    """|d|, rounded to a parabola below `beta`; beta 0 is plain L1."""
    distance = ops.abs(prediction - target)
    if beta == 0:
        return distance
    return ops.where(distance < beta, 0.5 * distance * distance / beta, distance - 0.5 * beta)


def binary_cross_entropy(logits, target):
    """-log p of the right answer, computed from the logit so that it cannot overflow."""
    return ops.maximum(logits, 0.0) - logits * target + ops.log1p(ops.exp(-ops.abs(logits)))


def at_least_one(mask):
    return ops.maximum(ops.sum(ops.cast(mask, "float32")), 1.0)


def rpn_class_loss(logits, label):
    """Object or not, averaged over the sampled anchors. logits, label (B, S)."""
    loss = binary_cross_entropy(logits, ops.cast(label == POSITIVE, "float32"))
    return ops.sum(ops.where(label != IGNORED, loss, 0.0)) / at_least_one(label != IGNORED)


def rpn_box_loss(deltas, target, label, beta):
    """Smooth L1 of the positive anchors' deltas (B, S, 4), over the number of sampled anchors."""
    distance = ops.sum(smooth_l1(deltas, target, beta), axis=-1)
    return ops.sum(ops.where(label == POSITIVE, distance, 0.0)) / at_least_one(label != IGNORED)


# %% [markdown]
# By hand: logit 0 is a probability of one half, and costs $\log 2 = 0.693$ whatever the answer. So an untrained RPN starts near 0.69. An error of 0.5 in a delta costs 0.5 with L1; with $\beta = 1$, as in the seed, $0.5 \cdot 0.25 = 0.125$; with torchvision's 1/9 it costs $0.5 - 1/18 = 0.444$.

# %% tags=["nbval-check-output"]
print(
    f"{float(binary_cross_entropy(0.0, 1.0)):.3f}",
    [f"{float(smooth_l1(0.5, 0.0, beta)):.3f}" for beta in (0, 1, 1 / 9)],
)
logits = rng.normal(0, 30, (8, 64)).astype("float32")
guess = rng.normal(0, 1, (8, 64, 4)).astype("float32")
check("rpn_class_loss", rpn_class_loss(logits, mine["label"]), mr.losses.rpn_class_loss(logits, mine["label"]))
check(
    "rpn_box_loss",
    rpn_box_loss(guess, mine["deltas"], mine["label"], 1 / 9),
    mr.losses.rpn_box_loss(guess, mine["deltas"], mine["label"], 1 / 9),
)
nothing = np.full((8, 64), IGNORED)
print(f"nothing sampled: {float(rpn_class_loss(logits, nothing)):g}, {float(rpn_box_loss(guess, guess, nothing, 0)):g}")

# %%
distance = np.linspace(-3, 3, 241)
fig, axes = plt.subplots(1, 2, figsize=(7, 2.7), layout="constrained")
for target, name in ((1.0, "object"), (0.0, "background")):
    axes[0].plot(3 * distance, binary_cross_entropy(3 * distance, target), label=name)
axes[0].set(xlabel="logit", ylabel="loss", title="binary cross-entropy")
axes[0].legend(title="right answer")
for beta, name in ((0, "0, plain L1"), (1 / 9, "1/9"), (1, "1")):
    axes[1].plot(distance, smooth_l1(distance, 0.0, beta), label=name)
axes[1].set(xlabel="error of a delta", title="smooth L1", ylim=(0, 2), xlim=(-2, 2))
axes[1].legend(title="$\\beta$")
plt.show()

# %% [markdown]
# **Figure 6.3.** The two losses. A confident wrong answer costs as much as its logit says. Smooth L1 differs from L1 near 0, where L1 is a corner.
#
# In Figure 6.3 on the right, $\beta = 1$ hardly asks for more once a delta is within 0.2. A shift of a fifth of the height leaves an IoU of $0.8 / 1.2 = 0.67$. Plain L1 keeps pulling.

# %% [markdown]
# ## 5. From answers to proposals
#
# In use there is no ground truth. The RPN's 4032 answers become at most 60 proposals in five steps: on each level take the best by objectness, apply the deltas, cut at the picture's edge, suppress duplicates with NMS at 0.7 within the level, and then take the best of all levels together (Faster R-CNN, section 3.3; that each level is thinned alone before they meet is how Detectron, the paper's code, does it).


# %%
def select_proposals(logits, deltas, anchors, image_size, per_level, count, config):
    """Lists by level of logits (B, n), deltas (B, n, 4), anchors (n, 4) -> proposals (B, R, 4), logits (B, R)."""
    found_boxes, found_scores = [], []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        scores, index = ops.top_k(level_logits, min(per_level, level_logits.shape[1]))
        reference = ops.take(ops.convert_to_tensor(level_anchors), index, axis=0)
        candidate = boxes.decode(gather(level_deltas, index), reference)
        candidate = boxes.clip(candidate, image_size)
        height, width = candidate[..., 2] - candidate[..., 0], candidate[..., 3] - candidate[..., 1]
        usable = ops.minimum(height, width) > config.rpn_min_size
        suppresses = ops.logical_and(boxes.iou(candidate, candidate) > config.rpn_nms_threshold, usable[..., None])
        keep = ops.logical_and(boxes.greedy_keep(suppresses), usable)
        found_boxes.append(candidate)
        found_scores.append(ops.where(keep, scores, -float("inf")))
    candidates, scores = ops.concatenate(found_boxes, axis=1), ops.concatenate(found_scores, axis=1)
    scores, index = ops.top_k(scores, min(count, scores.shape[1]))
    proposals = ops.where((scores > -float("inf"))[..., None], gather(candidates, index), 0.0)
    return proposals, scores


# %% [markdown]
# Logits rank as well as probabilities, so no sigmoid is needed. A box that clipping has left empty is not usable: it is dropped and suppresses nobody. If fewer than `count` are left, the slots hold a box of zeros and the score $-\infty$. The threshold of 0.7 is high on purpose: two objects that overlap by half must both get through.
#
# By hand: one level, three anchors. The first two end up with IoU $8/10 = 0.8$ above 0.7, so the better one stays; the third has been pushed out of the picture and is empty after clipping. One proposal, two empty slots.

# %% tags=["nbval-check-output"]
three = np.float32([[0, 0, 10, 10], [0, 0, 8, 10], [0, 25, 10, 35]])
pushed = np.float32([[[0, 0, 0, 0], [0, 0, 0, 0], [0, 2, 0, 0]]])  # the third: two widths to the right
small = np.float32([[32, 32]])
boxes_left, scores_left = select_proposals([np.float32([[1, 3, 2]])], [pushed], [three], small, 3, 3, config)
print(np.asarray(boxes_left)[0].tolist(), np.asarray(scores_left)[0])

levels = anchors_by_level((128, 128), config)
sizes = np.full((len(test_images), 2), 128, np.float32)
answers = *ours, levels, sizes[:1], 100, 60, config
mine, theirs = select_proposals(*answers), mr.proposals.select_proposals(*answers)
check("select_proposals", mine[0], theirs[0])
check("their logits", mine[1], theirs[1])

# %% [markdown]
# ## 6. Train it
#
# Everything is there: a backbone, your head, your targets, your losses. A Keras model puts them together. `batch` is what `mr.loader` gives: pictures, boxes and classes in slots, and a seed for each picture.


# %%
class RPN(keras.Model):
    """Backbone and RPN head, trained alone."""

    def __init__(self, config, targets=rpn_targets):
        super().__init__()
        self.config, self.targets = config, targets
        self.backbone, self.head = build_backbone(config), build_rpn_head(config)
        self.built = True

    def call(self, batch, training=False):
        image = ops.cast(batch["image"], "float32")
        image = (image - np.float32(self.config.pixel_mean)) / np.float32(self.config.pixel_std)
        return run_rpn_head(self.head, self.backbone(image, training=training))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        logits, deltas = (ops.concatenate(levels, axis=1) for levels in y_pred)
        target = self.targets(pyramid_anchors(x["image"].shape[1:3], self.config), x, self.config)
        logits, deltas, label = gather(logits, target["index"]), gather(deltas, target["index"]), target["label"]
        return rpn_class_loss(logits, label) + rpn_box_loss(
            deltas, target["deltas"], label, self.config.rpn_smooth_l1_beta
        )

    def propose(self, images, count=60):
        """Proposals (B, count, 4) and their logits for pictures (B, H, W, 3)."""
        logits, deltas = self({"image": images})
        size = np.tile(np.float32(images.shape[1:3]), (len(images), 1))
        levels = anchors_by_level(images.shape[1:3], self.config)
        return [np.asarray(x) for x in select_proposals(logits, deltas, levels, size, 100, count, self.config)]


def best_iou(proposals, count):
    """The best IoU that each object of the test pictures has with the `count` best proposals of its picture."""
    pairs = zip(test_truth, proposals, strict=True)
    return np.concatenate([np.asarray(boxes.iou(objects, found[:count])).max(1) for objects, found in pairs])


# %% [markdown]
# Three hundred steps of eight pictures, from random weights. After every few steps the test pictures, which training never sees, tell the recall.

# %%
STEPS = 300


def train(rpn, marks, seed=0):
    """Trains up to each of `marks` steps; yields it, the mean loss since the last one, and proposals."""
    batches, done = iter(mr.loader(training_set, config, seed=seed)), 0
    rpn.compile(optimizer=build_optimizer(config, STEPS), jit_compile=False)
    for mark in marks:
        values = []
        for _ in range(mark - done):
            rpn.reset_metrics()
            values.append(float(rpn.train_on_batch(next(batches), return_dict=True)["loss"]))
        done = mark
        yield mark, np.mean(values) if values else np.nan, rpn.propose(test_images)[0]


rpn, history = RPN(config), []
print("step   loss   recall at 0.5 of the best 10, 60   at 0.75 of the best 60")
for step, loss, proposals in train(rpn, (0, 30, 60, 120, 180, 240, STEPS)):
    ten, sixty = best_iou(proposals, 10), best_iou(proposals, 60)
    history.append((step, loss, np.mean(ten >= 0.5), np.mean(sixty >= 0.5), np.mean(sixty >= 0.75), proposals[8]))
    print(
        f"{step:>4}   {f'{loss:.2f}' if step else '   -'}   {history[-1][2]:>26.2f}, {history[-1][3]:.2f}   {history[-1][4]:>22.2f}"
    )

# %%
step, loss, ten, sixty, strict, _ = zip(*history, strict=True)
fig, axes = plt.subplots(1, 2, figsize=(8, 2.9), layout="constrained")
axes[0].plot(step, loss, "o-")
axes[0].set(xlabel="step", ylabel="mean loss since the last point", ylim=(0, None))
for values, name in ((sixty, "best 60, IoU 0.5"), (ten, "best 10, IoU 0.5"), (strict, "best 60, IoU 0.75")):
    axes[1].plot(step, values, "o-", label=name)
axes[1].set(xlabel="step", ylabel="recall", ylim=(0, 1.02))
axes[1].legend(loc="lower right")
plt.show()

# %% [markdown]
# **Figure 6.4.** The RPN learns. First the sixty proposals cover the objects roughly, then the best ten do, and last their edges become right.
#
# The curves of Figure 6.4 rise one after the other. To tell a shape from the background is enough for IoU 0.5 with one of sixty boxes. To reach 0.75 takes the deltas, and those learn from positive anchors alone, a few in each picture. Early on recall may dip, while the learning rate is at its highest.

# %%
moments = [history[0], history[2], history[-1]]
fig, axes = plt.subplots(1, 3, figsize=(9, 3.3), layout="constrained")
for ax, (step, *_, found) in zip(axes, moments, strict=True):
    mr.plots.boxes(image, found[:10], ax=ax)
    ax.set_title(f"step {step}")
plt.show()

# %% [markdown]
# **Figure 6.5.** The ten best proposals for the example. Before training they are anchors at arbitrary places.
#
# From Figure 6.5 to use: try the shipped RPN, which has had 8000 steps. Lower `top-k` until an object is lost, then raise the NMS threshold and watch the duplicates push others out.

# %%
mr.widgets.ProposalExplorer(shipped, image, truth.boxes)

# %% [markdown]
# ## 7. Break it
#
# ### Break it: empty slots
#
# Ground truth comes in 16 slots, of which two or three are used. An empty slot's IoU is 0 with every anchor. So its best IoU is 0, and *every* anchor attains it. Leave out the `iou > 0` in `match`, and the second rule makes all of them positive.


# %%
def match_without_guard(iou, positive_threshold, negative_threshold):
    matched, label = match(iou, positive_threshold, negative_threshold)
    best_of_object = ops.max(iou, axis=-1, keepdims=True)
    return matched, ops.where(ops.any(iou == best_of_object, axis=-2), POSITIVE, label)


table = boxes.iou(batch["boxes"], anchors)
for name, (_, label) in {
    "right": match(table, 0.7, 0.3, low_quality=True),
    "without iou > 0": match_without_guard(table, 0.7, 0.3),
}.items():
    print(f"{name:<16} {int(ops.sum(label == POSITIVE)):>5} of {label.shape[0] * label.shape[1]} anchors are positive")

# %% [markdown]
# What does a network learn from that? Sixty steps with such targets, beside the first sixty of section 6:


# %%
def targets_without_guard(anchors, truth, config):
    """As `rpn_targets`, with the match above."""
    matched, label = match_without_guard(boxes.iou(truth["boxes"], anchors), 0.7, 0.3)
    keys = random_keys(truth["seed"], label.shape[1], RPN_STREAM)
    index, label = sample(label, config.rpn_batch_size, config.rpn_batch_size // 2, keys)
    reference = ops.take(ops.convert_to_tensor(anchors), index, axis=0)
    return {
        "index": index,
        "label": label,
        "deltas": boxes.encode(gather(truth["boxes"], gather(matched, index)), reference),
    }


keras.utils.set_random_seed(0)
flooded = RPN(config, targets_without_guard)
for _, _, proposals in train(flooded, (60,)):
    logits, target = ops.concatenate(flooded(batch)[0], axis=1), targets_without_guard(anchors, batch, config)
    loss = float(rpn_class_loss(gather(logits, target["index"]), target["label"]))
    print(f"class loss {loss:.4f}; of the anchors {np.mean(np.asarray(logits) > 0):.0%} are objects to it")
    print(
        f"recall of the best 10 at 0.5: {np.mean(best_iou(proposals, 10) >= 0.5):.2f}, with the right match {history[2][2]:.2f}"
    )

# %% [markdown]
# A network with such targets says "object" everywhere and is always right: the class loss is near 0 after a few steps. Its deltas try to lead every anchor of the picture to some object. A loss that falls too fast is a symptom as good as one that does not fall.
#
# ### Break it: no sampling
#
# Why not use all anchors? None would be wasted. The same network, the same pictures, but every positive and every negative anchor counts. We compare after 120 steps.


# %%
def every_anchor(anchors, truth, config):
    """As `rpn_targets`, without choosing."""
    matched, label = match_with_crowds(anchors, truth["boxes"], truth["classes"], **thresholds)
    index = ops.zeros_like(label) + ops.arange(label.shape[1], dtype=label.dtype)
    return {"index": index, "label": label, "deltas": boxes.encode(gather(truth["boxes"], matched), anchors)}


keras.utils.set_random_seed(0)
for step, loss, proposals in train(RPN(config, every_anchor), (120,)):
    found = best_iou(proposals, 60)
    print(
        f"all anchors  step {step}: loss {loss:.3f}, recall of the best 60 {np.mean(found >= 0.5):.2f}, at 0.75 {np.mean(found >= 0.75):.2f}"
    )
_, loss, _, recall, strict, _ = next(row for row in history if row[0] == 120)
print(f"sampled      step 120: loss {loss:.3f}, recall of the best 60 {recall:.2f}, at 0.75 {strict:.2f}")

# %% [markdown]
# The loss is *lower* and the recall is worse. Averaged over 4000 anchors, nearly all of them easy, the loss looks good whatever happens to the four positives. In a sample of 64 a positive has 15 negatives beside it, among all anchors 1000. Losses of different samplings cannot be compared; recall can. (One run of each; exercise 5 has another way out.)
#
# ### Break it: the wrong object of a forced match
#
# Back to anchor 4 of section 2. It was made positive for the sake of object 1, whose best anchor it is. But it fits object 0 better, so its deltas lead to object 0. Nobody learns object 1, though the second rule exists for its sake. The seed does this (`anchor_iou_argmax` in `build_rpn_targets`), and Detectron2, torchvision and our library do it too. How often? We count on the training pictures, and compare with a `match` that lets a forced anchor learn the object that forced it.


# %%
def match_own(iou, positive_threshold, negative_threshold):
    """As `match` with low_quality; a favourite learns the object whose favourite it is (the last, if of several)."""
    matched, label = (np.array(x) for x in match(iou, positive_threshold, negative_threshold, low_quality=True))
    iou = np.asarray(iou)
    for g in range(len(iou)):
        favourites = (iou[g] == iou[g].max()) & (iou[g] > 0) & (iou.max(0) < positive_threshold)
        matched[favourites] = g
    return matched, label


lost, total, example = {match: 0, match_own: 0}, 0, None
for i in range(len(training_set)):
    objects = training_set.instances(i).boxes
    table = np.asarray(boxes.iou(objects, anchors))
    total += len(objects)
    for rule, options in ((match, (0.7, 0.3, True)), (match_own, (0.7, 0.3))):
        matched, label = (np.asarray(x) for x in rule(table, *options))
        unlearnt = np.setdiff1d(np.arange(len(objects)), matched[label == POSITIVE])
        lost[rule] += len(unlearnt)
        if rule is match and len(unlearnt) and example is None:
            example = i, objects, unlearnt[0], table[unlearnt[0]].argmax(), table
print(f"objects that no anchor learns, of {total}: as published {lost[match]}, own object {lost[match_own]}")

i, objects, alone, anchor, table = example
other = table[:, anchor].argmax()
fig, ax = plt.subplots(figsize=(4.2, 4.2), layout="constrained")
colours = ["#009E73", "#E69F00", "#0072B2"]
names = [f"{table[alone, anchor]:.2f}", f"{table[other, anchor]:.2f}", "anchor"]
mr.plots.boxes(
    training_set.image(i), [objects[alone], objects[other], anchors[anchor]], colours=colours, captions=names, ax=ax
)
plt.show()

# %% [markdown]
# **Figure 6.6.** The anchor that is the best for one object and fits another one better; the numbers are its IoU with each.
#
# In Figure 6.6 the object with the lower IoU has no anchor of its own. This happens to about one object in two hundred here, to those that nearly coincide with another one. The repair mends only some of them: two objects can share their best anchor, and an anchor that reaches 0.7 with another object stays with that one. None of the systems below makes it. It is worth knowing before you look for the reason in crowded pictures.

# %% [markdown]
# > **How the others do it**
# >
# > *Paper.* Faster R-CNN: 256 anchors a picture, at most half positive, thresholds 0.7 and 0.3 with the second rule, anchors over the picture's edge left out in training. FPN keeps those. Training is joint with the heads, and no gradient passes through the coordinates of the proposals.
# >
# > *Detectron2.* As here. Both losses are divided by 256 times the pictures, even where fewer were sampled; plain L1. In training 2000 of each level before NMS and 1000 after, in use 1000 and 1000. The comment at its second rule says that a forced anchor is matched to the object that forced it; the code changes only the label.
# >
# > *torchvision.* Smooth L1 with $\beta = 1/9$; 2000 proposals after NMS in training; sides below 0.001 pixels are dropped.
# >
# > *The seed* (matterport/Mask_RCNN). Two logits and a softmax in place of one and a sigmoid (exercise 3), 512 channels, deltas scaled by 0.1, 0.1, 0.2, 0.2. Proposals: the best 6000 of all levels together, one NMS among them, then 2000 in training and 1000 in use. Targets are computed in NumPy while loading.

# %% [markdown]
# ## Exercises
#
# **1 (recall).** Before training, the class loss is near a certain number. Which one, and why? Check it with an untrained RPN and one batch.
#
# <details><summary>Hint</summary>
#
# The weights of the last layer have a standard deviation of 0.01.
#
# </details>
#
# <details><summary>Solution</summary>
#
# All logits are near 0, so $\log 2 = 0.69$ for each anchor whatever its label.
#
# ```python
# fresh = RPN(config)
# target = rpn_targets(anchors, batch, config)
# logits = gather(ops.concatenate(fresh(batch)[0], axis=1), target["index"])
# print(round(float(rpn_class_loss(logits, target["label"])), 2))
# assert abs(float(rpn_class_loss(logits, target["label"])) - np.log(2)) < 0.05
# ```
#
# </details>
#
# **2 (understand).** What would happen without the neutral zone, that is with both thresholds at 0.5? Which anchors change sides, and how many are there in the batch?
#
# <details><summary>Hint</summary>
#
# Call `match_with_crowds` twice and count.
#
# </details>
#
# <details><summary>Solution</summary>
#
# Anchors between 0.3 and 0.5 become negatives, those between 0.5 and 0.7 positives. An anchor of 0.49 and its neighbour of 0.51 look almost the same to the network and are told opposite things.
#
# ```python
# narrow = {"positive_threshold": 0.5, "negative_threshold": 0.5, "low_quality": True}
# before = np.asarray(match_with_crowds(anchors, batch["boxes"], batch["classes"], **thresholds)[1])
# after = np.asarray(match_with_crowds(anchors, batch["boxes"], batch["classes"], **narrow)[1])
# for name, kind in (("positive", POSITIVE), ("negative", NEGATIVE)):
#     print(f"{np.sum((before == IGNORED) & (after == kind))} neutral anchors become {name}")
# assert not np.any(after == IGNORED)
# ```
#
# </details>
#
# **3 (build).** The seed gives two logits for each anchor, background and object, and takes a softmax. Show that this is our sigmoid of one logit, and write the loss from two logits. (The library uses this to read the seed's weights into its own head.)
#
# <details><summary>Hint</summary>
#
# Divide numerator and denominator of the softmax by $e^{z_1}$.
#
# </details>
#
# <details><summary>Solution</summary>
#
# $e^{z_1} / (e^{z_0} + e^{z_1}) = 1 / (1 + e^{-(z_1 - z_0)})$: the sigmoid of the difference.
#
# ```python
# two = rng.normal(0, 3, (1000, 2)).astype("float32")
# answer = rng.integers(0, 2, 1000)
# softmax_loss = -np.asarray(ops.log_softmax(two, axis=-1))[np.arange(1000), answer]
# check("two logits or one", softmax_loss, binary_cross_entropy(two[:, 1] - two[:, 0], answer.astype("float32")))
# ```
#
# </details>
#
# **4 (measure).** Plot the recall of your trained RPN at IoU 0.5 against the number of proposals from 1 to 60, for small objects (side below 24 pixels), middle and large ones (above 48). Who needs the most proposals?
#
# <details><summary>Hint</summary>
#
# `best_iou(proposals, count)` gives the objects in the order of `np.concatenate(test_truth)`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# proposals = rpn.propose(test_images)[0]
# every = np.concatenate(test_truth)
# side = np.sqrt((every[:, 2] - every[:, 0]) * (every[:, 3] - every[:, 1]))
# group = np.digitize(side, [24, 48])
# for count in (1, 2, 5, 10, 20, 60):
#     hit = best_iou(proposals, count) >= 0.5
#     print(f"{count:>2} proposals: " + "  ".join(f"{hit[group == g].mean():.2f}" for g in range(3)))
# assert hit.mean() > 0.9
# ```
#
# </details>
#
# **5 (research).** RetinaNet (Lin et al., 2017) uses all anchors, and lowers the weight of those that are already right: the focal loss multiplies cross-entropy by $(1 - p)^2$, with $p$ the probability of the right answer, and is divided by the number of positives. Write it. By what factor does the weight of the average negative shrink in your trained RPN, compared with that of the average positive?
#
# <details><summary>Hint</summary>
#
# `binary_cross_entropy` is $-\log p$, so $p$ is `exp` of its negative.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def focal_loss(logits, label, gamma=2.0):
#     loss = binary_cross_entropy(logits, ops.cast(label == POSITIVE, "float32"))
#     weight = (1.0 - ops.exp(-loss)) ** gamma
#     return ops.sum(ops.where(label != IGNORED, weight * loss, 0.0)) / at_least_one(label == POSITIVE)
#
#
# label = np.asarray(match_with_crowds(anchors, batch["boxes"], batch["classes"], **thresholds)[1])
# logits = ops.concatenate(rpn(batch)[0], axis=1)
# loss = np.asarray(binary_cross_entropy(logits, (label == POSITIVE).astype("float32")))
# weight = (1 - np.exp(-loss)) ** 2
# print(f"weight of a positive {weight[label == POSITIVE].mean():.2g}, of a negative {weight[label == NEGATIVE].mean():.2g}")
# print(f"focal loss {float(focal_loss(logits, label)):.3f}")
# assert weight[label == NEGATIVE].mean() < weight[label == POSITIVE].mean()
# ```
#
# The weight does what sampling does, without chance: easy background hardly counts. To train with it, start the logits' bias at $-\log 99$, so that the first steps are not spent on calling everything background. That is section 3.3 of their paper.
#
# </details>

# %% [markdown]
# ## Summary
#
# The RPN asks one question at each anchor: object or not, and how to move. An anchor is positive from IoU 0.7 on or as an object's best, negative below 0.3, neutral between. A random, balanced sample keeps the background from drowning the rest. Two losses, divided by the size of the sample, train it; positives alone teach the deltas. In use the best of each level are decoded, clipped, thinned by NMS and merged. Recall is what counts, and it grows roughly first and precisely later. Empty slots and forced matches are where the mistakes sit.
#
# **Read now:** [`maskrcnn_edu/proposals.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/proposals.py), then the first half of [`targets.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/targets.py) and of [`losses.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/losses.py).
#
# **Next:** chapter 07 cuts the proposals out of the feature maps, to a fraction of a pixel.
#
# ## Further reading
#
# - S. Ren, K. He, R. Girshick, J. Sun: *Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks*, NeurIPS 2015. Section 3. [arXiv:1506.01497](https://arxiv.org/abs/1506.01497)
# - R. Girshick: *Fast R-CNN*, ICCV 2015. Smooth L1, equation 3. [arXiv:1504.08083](https://arxiv.org/abs/1504.08083)
# - T.-Y. Lin et al.: *Feature Pyramid Networks for Object Detection*, CVPR 2017. Section 4.1. [arXiv:1612.03144](https://arxiv.org/abs/1612.03144)
# - T.-Y. Lin et al.: *Focal Loss for Dense Object Detection*, ICCV 2017. [arXiv:1708.02002](https://arxiv.org/abs/1708.02002)
# - S. Zhang et al.: *Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection*, CVPR 2020. What matching is worth. [arXiv:1912.02424](https://arxiv.org/abs/1912.02424)

# ---
# jupyter:
#   book:
#     title: Gallery
#     library: [plots, widgets]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 90 · Gallery
#
# Every plot and widget of `maskrcnn_edu`, each with the one line that makes it: [`plots`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/plots/__init__.py) draw still pictures, [`widgets`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/widgets/__init__.py) are moved by hand. They take your own images, boxes, datasets and models in the same way. The page runs in three quarters of a minute.

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
from skimage import data, restoration

import maskrcnn_edu as mr

# %% [markdown]
# The model is the one that ships, trained on drawn shapes. The pictures are some that it has not seen. Their grain is taken off, because it would make this page three times as large.


# %%
def smooth(picture, weight=0.1, step=10):
    flat = restoration.denoise_tv_chambolle(picture, weight=weight, channel_axis=-1)
    return (np.rint(255 * flat / step) * step).astype("uint8")


class SmoothShapes(mr.ShapesDataset):
    def load_image(self, i):
        return smooth(super().load_image(i))


dataset = SmoothShapes(40, seed=1)
model = keras.saving.load_model(mr.files("shapes.keras"))
names = dataset.class_names
image, truth = dataset.image(17), dataset.instances(17)
found = model.detect([image])[0]

# %% [markdown]
# ## Plots
#
# A plot returns matplotlib's Axes, or a Figure if it has several. Both show themselves here;
# `.figure.savefig("file.png")` writes them. `ax=` draws on Axes of your own.
#
# ### What is on an image

# %% [markdown]
# The instances: masks, boxes, names and scores. Captions keep off each other and stay in the frame.

# %%
mr.plots.instances(image, found, class_names=names)

# %% [markdown]
# The same function draws ground truth.

# %%
mr.plots.instances(image, truth, class_names=names, title="ground truth")

# %% [markdown]
# Keypoints of a person, with their limbs. Hollow ones are hidden. Here on Axes of 2.5 inches. (Photograph: NASA, in the public domain.)

# %%
points = np.zeros((1, 17, 3))  # x, y, visibility, in COCO's order
points[0, :9] = [
    [222, 123, 2], [242, 101, 2], [205, 105, 2], [263, 103, 1], [183, 112, 1], [318, 214, 2], [130, 233, 2],
    [378, 395, 1], [78, 425, 2],
]  # fmt: skip
ax = plt.figure(figsize=(2.5, 2.5)).add_axes((0, 0, 1, 1))
mr.plots.instances(
    smooth(data.astronaut(), 0.15, 12), boxes=[[5, 25, 512, 440]], classes=[1], keypoints=points,
    class_names=["background", "person"], ax=ax,
)  # fmt: skip
plt.show()

# %% [markdown]
# Images side by side.

# %%
mr.plots.images([dataset.image(i) for i in range(4)], [f"image {i}" for i in range(4)])

# %% [markdown]
# The classes that cover most of an image, an instance in each colour.

# %%
mr.plots.top_masks(image, truth, class_names=names)

# %% [markdown]
# An image alone. `boxes`, `instances` and the others begin with it; what you draw on its Axes is in pixels.

# %%
mr.plots.picture(image, title="one picture")

# %% [markdown]
# The colours. `COLOURS` are told apart with all kinds of sight; `colour(i)` is that of instance `i`, and goes on from there, darker. Masks cover what is below them to the share `FILL`.

# %%
print(mr.plots.FILL, mr.plots.COLOURS[:5])
mr.plots.picture(np.array([[mr.plots.colour(i) for i in range(36)]]).repeat(4, 1).repeat(12, 0))

# %% [markdown]
# ### What was found, and what was not

# %% [markdown]
# Detections against ground truth: hits, misses and false alarms, with score and IoU.

# %%
mr.plots.differences(image, truth, found, class_names=names, score_threshold=0.1)

# %% [markdown]
# The IoU of each detection with each object.

# %%
mr.plots.overlap_matrix(truth, found, class_names=names, kind="masks")

# %% [markdown]
# Precision over recall: COCO's curves for the masks of 40 pictures, at three IoU thresholds.

# %%
mr.plots.precision_recall(mr.evaluate(model, dataset, batch_size=10, curves=True))

# %% [markdown]
# ### Detection, stage by stage

# %% [markdown]
# All of it at a glance, from the best anchors to the masks.

# %%
stages = mr.stages.stages(model, image)
mr.plots.detection_stages(stages, count=5)

# %% [markdown]
# `mr.stages.stages` keeps what each stage has computed, in pixels of the network's input. The plots below take single
# stages. First the anchors of one cell of each level.

# %%
mr.plots.anchors(image, model.config)

# %% [markdown]
# With ground truth: which anchors training calls positive, neutral and negative.

# %%
mr.plots.anchors(image, model.config, truth)

# %% [markdown]
# What the RPN makes of the best anchors: dotted before, solid after.

# %%
best = np.argsort(-stages.objectness)[:8]
mr.plots.refinement(stages.image, stages.anchors[best], stages.refined[best])

# %% [markdown]
# The proposals, coloured by objectness; the objects in dashed white.

# %%
mr.plots.proposals(stages.image, stages.proposals, stages.proposal_scores, count=15, truth=truth)

# %% [markdown]
# Any boxes, with captions of yours.

# %%
mr.plots.boxes(stages.image, stages.proposals[:4], captions=[f"{score:.3f}" for score in stages.proposal_scores[:4]])

# %% [markdown]
# Boxes that leave the image a little. `view_of` is the part of the plane that holds both; without it they are cut off.

# %%
least = stages.anchors.min(axis=1)
outside = stages.anchors[(-12 < least) & (least < 0)][::60]
mr.plots.boxes(stages.image, outside, view=mr.plots.view_of(stages.image, outside))

# %% [markdown]
# What the mask head answers in each RoI, cell by cell; the white line is one half.

# %%
mr.plots.rois_with_masks(
    stages.image, stages.candidates[stages.kept], stages.mask_probabilities,
    classes=stages.candidate_classes[stages.kept], scores=stages.candidate_scores[stages.kept], class_names=names,
)  # fmt: skip

# %% [markdown]
# How the answers are distributed: the RPN's deltas and objectness, the proposals' places and sides, the RoIs' classes.

# %%
mr.plots.distributions(stages)

# %% [markdown]
# ### Training

# %% [markdown]
# What the mask head is taught: positive RoIs, and below them the masks that it is to answer.

# %%
batch = next(iter(mr.loader(dataset, model.config, training=False)))
taught = mr.stages.training_stages(model, batch, 1)
mr.plots.mask_targets(taught)

# %% [markdown]
# RoIs of a training step. Positive ones are in colour, with the box that they are to become; negative ones grey.

# %%
mr.plots.refinement(taught.image, taught.rois[:14], taught.roi_targets[:14], refined=taught.roi_labels[:14] == 1)

# %% [markdown]
# The losses of a run, from its directory. This is the log of the weights that ship.

# %%
mr.plots.loss_curves(mr.files("shapes_log.csv"))

# %% [markdown]
# The numbers behind it, by name.

# %%
path, columns = mr.plots.read_log(mr.files("shapes_log.csv"))
print(path.name, {name: round(float(values[-1]), 3) for name, values in columns.items() if "loss" in name})

# %% [markdown]
# ### Data

# %% [markdown]
# What a dataset holds. With a Config, box sizes are those that the network sees, and dashed lines mark its anchors.

# %%
mr.plots.dataset_overview(dataset, config=model.config)

# %% [markdown]
# What training sees of one image: the loader's own augmentations, again and again.

# %%
mr.plots.augmentations(dataset, model.config, 17, count=4)

# %% [markdown]
# ### Inside the network

# %% [markdown]
# The channels of any layer. `mr.stages.layer_names(model)` lists them.

# %%
mr.plots.activations(model, image, "res2_0_relu")

# %% [markdown]
# Layers of the heads answer for each RoI that was detected.

# %%
mr.plots.activations(model, image, "mask_logits", roi=0)

# %% [markdown]
# The weights in numbers. An alert says what is conspicuous: values that are not finite, or very large; a kernel that is
# constant, or mostly dead. There is none here.

# %%
mr.plots.weight_statistics(model, "rpn")

# %% [markdown]
# One line of the table in numbers.

# %%
print(mr.plots.measure_weights(model, "rpn")[0])

# %% [markdown]
# And their histograms.

# %%
mr.plots.weight_histograms(model, "rpn", columns=4)

# %% [markdown]
# ## Widgets
#
# Each is moved by mouse or keys: Tab reaches its parts, arrows move them. They answer on the book's site without a kernel. With a kernel the state of each can be read and set from Python, such as `playground.box_a`.

# %% [markdown]
# ### Boxes and anchors

# %% [markdown]
# Two boxes: what they share, and the deltas that turn one into the other.

# %%
playground = mr.widgets.IoUPlayground()
playground

# %% [markdown]
# The anchors of a pyramid level, cell by cell, and how well they fit an object.

# %%
mr.widgets.AnchorExplorer(image, truth.boxes[0], model.config)

# %% [markdown]
# Which anchors become positive, negative or neutral as the two thresholds move. The finest level is left out; its anchors are smaller than all objects here.

# %%
mr.widgets.MatchingExplorer(image, truth.boxes, stages.anchors[stages.levels > 0])

# %% [markdown]
# A photograph of any shape as each family's network gets it.

# %%
mr.widgets.ResizeExplorer(image)

# %% [markdown]
# Non-maximum suppression, one decision at a time: who suppresses whom. Here among the model's candidates.

# %%
mr.widgets.NMSStepper(stages.candidates, stages.candidate_scores, stages.candidate_classes, stages.image)

# %% [markdown]
# ### Regions and masks

# %% [markdown]
# RoIAlign beside RoIPool on one channel of a feature map.

# %%
mr.widgets.RoIAlignExplorer(stages.pyramid[1], stride=8, channel=5)

# %% [markdown]
# From the mask head's 28 x 28 probabilities to pixels. Switch the half-pixel shift off and watch the IoU.

# %%
mr.widgets.MaskExplorer(stages.mask_probabilities[0], stages.detections.boxes[0], image, truth.masks[3])

# %% [markdown]
# ### A trained model

# %% [markdown]
# What the region proposal network proposes, and which objects that reaches.

# %%
mr.widgets.ProposalExplorer(model, image, truth.boxes)

# %% [markdown]
# Which pixels a cell of the backbone and of the pyramid answers to.

# %%
mr.widgets.FieldExplorer(model, image, places=3)

# %% [markdown]
# From candidates to instances; point at one to see its class probabilities, its RoI and its mask.

# %%
mr.widgets.DetectionExplorer(model, image)

# %% [markdown]
# Matches, precision, recall and average precision as the thresholds move.

# %%
shown = [17, 0, 1, 2]
images, truths = [dataset.image(i) for i in shown], [dataset.instances(i) for i in shown]
results = model.detect(images)
mr.widgets.PrecisionRecallExplorer(results, truths, images, names)

# %% [markdown]
# The losses of a training, running or finished: give its log directory. This one is of the weights that ship.

# %%
mr.widgets.TrainingMonitor()

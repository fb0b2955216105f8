# %% [markdown]
# ## Widgets
#
# Each is moved by mouse or keys: Tab reaches its parts, arrows move them. They answer on this page without a kernel.
# In a notebook their state can be read and set from Python, such as `playground.box_a`.

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
# Which anchors become positive, negative or neutral as the two thresholds move.

# %%
mr.widgets.MatchingExplorer(image, truth.boxes, config=model.config)

# %% [markdown]
# Non-maximum suppression, one decision at a time: who suppresses whom.

# %%
mr.widgets.NMSStepper()

# %% [markdown]
# ### Regions and masks

# %% [markdown]
# RoIAlign beside RoIPool on one channel of a feature map.

# %%
mr.widgets.RoIAlignExplorer(mr.stages.stages(model, image).pyramid[1], stride=8, channel=5)

# %% [markdown]
# From the mask head's 28 x 28 probabilities to pixels. Switch the half-pixel shift off and watch the IoU.

# %%
mr.widgets.MaskExplorer()

# %% [markdown]
# ### A trained model

# %% [markdown]
# What the region proposal network proposes, and which objects that reaches.

# %%
mr.widgets.ProposalExplorer(model, image, truth.boxes)

# %% [markdown]
# From candidates to instances; point at one to see its class probabilities, its RoI and its mask.

# %%
mr.widgets.DetectionExplorer(model, image)

# %% [markdown]
# Matches, precision, recall and average precision as the thresholds move.

# %%
results = model.detect([dataset.image(i) for i in range(12)])
images, truths = [dataset.image(i) for i in range(12)], [dataset.instances(i) for i in range(12)]
mr.widgets.PrecisionRecallExplorer(results, truths, images, names)

# %% [markdown]
# The losses of a training, running or finished: give its log directory. This one is of the weights that ship.

# %%
mr.widgets.TrainingMonitor()

# ---
# jupyter:
#   book:
#     title: See it work
#     library: [detections, stages]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · See it work
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/00_see_it_work.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F00_see_it_work.ipynb) (neither has been tried)
#
# **A photograph goes in. What comes out, and through whose hands has it gone?**
#
# After this chapter you can
#
# - run a trained Mask R-CNN on any picture, and read what it answers;
# - name the stages between the photograph and the answer, and say in which chapter each is built;
# - convert boxes from the network's pixels to the photograph's, and recognise three mistakes that leave a good network blind.
#
# You need nothing but Python, NumPy and a first course of deep learning. The chapter runs in half a minute on two cores, without a GPU or a network.

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
import skimage

import maskrcnn_edu as mr
from maskrcnn_edu.book import check

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# The library ships a small Mask R-CNN: 0.75 million weights, trained for 8000 steps on ten thousand pictures of circles, squares and triangles that a program had drawn. It has never seen a photograph. Here is one.

# %%
model = keras.saving.load_model(mr.files("shapes.keras"))
coins = skimage.data.coins()  # Greek coins from Pompeii, Brooklyn Museum
found = model.detect([coins])[0]


def at_least(found, score):
    """The detections that score so much."""
    good = found.scores >= score
    return mr.Detections(found.boxes[good], found.classes[good], found.scores[good], found.masks[good])


fig, ax = plt.subplots(figsize=(6.2, 4.9), layout="constrained")
sure = at_least(found, 0.5)
mr.plots.instances(coins, sure, captions=[f"{s:.2f}" for s in sure.scores], ax=ax)
plt.show()
names = [model.class_names[label] for label in sure.classes]
print(f"{len(found)} detections, {len(sure)} of them with a score of at least 0.5:")
print(", ".join(f"{names.count(name)} {name}s" for name in dict.fromkeys(names)))

# %% [markdown]
# **Figure 0.1.** A photograph of 24 coins, and what the detector of drawn shapes finds on it. The numbers are scores. Three coins are missed.
#
# Figure 0.1 is the whole task. Nobody told the network how many objects there are or where. For each one that it finds it gives four things: a **box** around it, its **class**, a **score** that says how sure it is, and a **mask**, the pixels that belong to it. Finding boxes is *object detection*; colouring every pixel by class is *semantic segmentation*; doing both, so that two coins side by side stay two, is **instance segmentation** (Mask R-CNN, section 1). The twenty-one coins have one class and are twenty-one objects.

# %% [markdown]
# ## 1. What comes out
#
# `model.detect` takes a list of pictures of any size and gives a list of `Detections`. They hold arrays with one entry for each object, best first.

# %%
for name in ("boxes", "classes", "scores", "masks"):
    array = getattr(found, name)
    print(f"{name:<8} {str(array.shape):<16} {array.dtype}")
y1, x1, y2, x2 = found.boxes[0]
print(f"\nthe best one: {model.class_names[found.classes[0]]}, score {found.scores[0]:.2f}, ", end="")
print(f"rows {y1:.0f} to {y2:.0f}, columns {x1:.0f} to {x2:.0f}, {found.masks[0].sum()} pixels")

# %% [markdown]
# A box is $(y_1, x_1, y_2, x_2)$ in pixels of the picture, y first. Class 0 is the background, and is never detected. A score is a probability in form: softmax has made it. Whether three quarters of the detections with score 0.75 are right is another question, and with photographs of coins they need not be. The model keeps everything from 0.05 on, and whoever uses it chooses where to cut.
#
# On pictures of the kind it was trained for it is rarely wrong. `ShapesDataset` with another seed draws some that it has never seen.

# %%
shapes = mr.ShapesDataset(100, seed=1)
images = [shapes.image(i) for i in range(len(shapes))]
truth = [shapes.instances(i) for i in range(len(shapes))]
results = model.detect(images, batch_size=10)
fig, axes = plt.subplots(1, 3, figsize=(9, 3.1), layout="constrained")
for ax, i in zip(axes, (74, 40, 86), strict=True):
    mr.plots.instances(images[i], at_least(results[i], 0.5), class_names=model.class_names, ax=ax)
plt.show()

# %% [markdown]
# **Figure 0.2.** Three drawn pictures of the test set and what is found on them.
#
# In Figure 0.2 the two triangles with a score of 0.65 are worth a look: of one little is to be seen, and the other is hidden by a triangle and a square. Three pictures say little; to say how good the model is we count on all hundred. An object is **found** if a detection of its class, with a score of at least 0.5, overlaps its box by at least a half (chapter 05 says what that means); each detection may find one object, and those that find none are **false alarms**.


# %%
def count(results, truth):
    """Objects found, and detections that find none."""
    hits, false = 0, 0
    for result, true in zip(results, truth, strict=True):
        good = at_least(result, 0.5)
        same = good.classes[:, None] == true.classes[None, :]
        overlap = np.asarray(mr.boxes.iou(good.boxes, true.boxes)) * same
        taken = np.zeros(len(true.boxes), bool)
        for row in overlap:
            best = np.argmax(np.where(taken, 0, row))
            taken[best] |= row[best] >= 0.5
        hits, false = hits + taken.sum(), false + len(good) - taken.sum()
    return hits, false


total = sum(len(true.boxes) for true in truth)
hits, false = count(results, truth)
print(f"{hits} of {total} objects found, {false} false alarms")

# %% [markdown]
# ## 2. On photographs
#
# Now two photographs with people and things in them.

# %%
photographs = [skimage.data.astronaut(), skimage.data.coffee()]  # by NASA and Rachel Michetti, public domain
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(2, 3), layout="constrained")
for ax, photograph, seen in zip(axes, photographs, model.detect(photographs), strict=True):
    mr.plots.instances(photograph, at_least(seen, 0.7), class_names=model.class_names, ax=ax)
plt.show()

# %% [markdown]
# **Figure 0.3.** The detector of shapes on photographs, from a score of 0.7 on.
#
# In Figure 0.3 it answers in the only words it has. A cup seen from above is round, and the coffee in it as well, so two of the answers make sense. A forehead is no circle, and yet its score is 0.97: softmax must share all probability out among four classes, and nothing in training ever looked like a face. A score compares the classes that the network knows. It does not say "this is like nothing I have learnt".
#
# For people, cups and spoons one needs weights that were trained on COCO, a data set of 118,000 photographs with objects of 80 classes. The library reads the published weights of Detectron2 and torchvision, the two systems in use, and of matterport/Mask_RCNN, the teaching implementation from which this one took the idea; the book calls it *the seed*. `maskrcnn-edu weights list` names them. They are between 170 and 260 MB and do not ship. If you have fetched some, with `maskrcnn-edu weights fetch torchvision-v1`, the next cell uses them; if not, it says so and goes on.

# %%
published = ("detectron2-r50", "torchvision-v2", "torchvision-v1", "matterport-coco")
here = [name for name in published if mr.weights.published.cached(name).is_file()]
if here:
    coco = mr.MaskRCNN.from_pretrained(here[0])
    print(f"Found the weights of {here[0]}: {coco.count_params():,} numbers, {len(coco.class_names) - 1} classes.")
    fig, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for ax, photograph, seen in zip(axes, photographs, coco.detect(photographs), strict=True):
        mr.plots.instances(photograph, at_least(seen, 0.7), class_names=coco.class_names, ax=ax)
    plt.show()
else:
    print("No published weights in the cache. Everything else in this chapter works without them.")

# %% [markdown]
# ## 3. What happens between
#
# `detect` hides the way. `mr.stages.stages` runs the same parts in the same order and keeps what each of them gives. The picture for it we draw ourselves: three shapes, of which the square hides a part of the circle. Change the numbers, and everything below follows.

# %%
own = np.full((128, 128, 3), (110, 130, 120), np.uint8)
y, x = np.mgrid[:128, :128] + 0.5
own[(y - 44) ** 2 + (x - 52) ** 2 < 32**2] = 180, 60, 70
own[58:102, 70:114] = 60, 90, 190
own[(y > 82) & (y < 122) & (abs(x - 32) < (y - 82) / 2)] = 230, 190, 60

stages = mr.stages.stages(model, own)
print(f"the network's input    {stages.image.shape}")
print(f"feature maps           {', '.join(str(level.shape) for level in stages.pyramid)}")
for name, array in (
    ("anchors", stages.anchors),
    ("proposals", stages.proposals),
    ("candidates", stages.candidates),
    ("detections", stages.kept),
):
    print(f"{name:<22} {len(array)}")
mr.plots.detection_stages(stages)

# %% [markdown]
# **Figure 0.4.** Eight pictures of one detection, row by row. Colours stay with their box from panel 1 to 4; dashed boxes are those before a correction, joined to the same box after it.
#
# Read Figure 0.4 as a funnel. It has two stages, which is what "R-CNN" of the later kind means.
#
# *First stage: is there something?* A convolutional network, the **backbone**, turns the picture into feature maps at several scales, the **pyramid** (chapter 03). Over every cell of every map lie boxes of fixed sizes and shapes, the **anchors** (chapter 04): 4032 of them. The **region proposal network** scores each anchor and says how it should be moved to fit what it sees: panels 1 to 3 (chapter 06). Neighbouring anchors find the same thing, so **non-maximum suppression** (NMS) keeps the best of each heap: panel 4 (chapter 05). Sixty **proposals** are left. The heads look at these, and what a head looks at is called a region of interest, **RoI**: panel 5.
#
# *Second stage: what is it?* From the feature maps the region of each proposal is cut out and resized to one size, by **RoIAlign** (chapter 07). The **heads** (chapter 08) look at each cut-out: the box head says how probable each class is and moves the box once more, panel 6; suppression within each class leaves the detections, panel 7; the mask head draws 28 x 28 cells in each box, which are pasted into the photograph (chapter 01), panel 8.
#
# So the expensive question is asked sixty times instead of 4032 times. The paper's loss is the sum of what the two stages get wrong (section 3): $L = L_{cls} + L_{box} + L_{mask}$ for the second, and two such terms for the first.
#
# If `stages` runs the same parts as `detect`, it must give the same result. A **check cell** compares such pairs in every chapter: `check` prints *exact* where all numbers are equal, *close* where they differ by rounding only, *DIFFERENT* otherwise, and the largest difference. Here it is the rounding of the compiler that `detect` uses.

# %%
direct, by_stages = model.detect([own])[0], stages.detections
check("classes", by_stages.classes, direct.classes)
check("scores", by_stages.scores, direct.scores)
check("boxes", by_stages.boxes / 128, direct.boxes / 128)
print(f"pixels of another opinion in the masks: {np.count_nonzero(by_stages.masks ^ direct.masks)}")

# %% [markdown]
# Now turn the knobs yourself. Lower the score, then raise the NMS threshold to 1, and look for where the false alarms come from in each case: weak candidates somewhere else, or good ones once more at the same place? Choose an instance to see its probabilities and the proposal it came from.

# %%
mr.widgets.DetectionExplorer(model, own)

# %% [markdown]
# The sixty proposals, the 0.05 and every other number of this network stand in its `Config`. Some of them, each with the chapter that explains it:

# %% tags=["nbval-check-output"]
for chapter, name in (
    ("02", "image_max_size"),
    ("03", "stage_channels"),
    ("04", "anchor_sizes"),
    ("05", "rpn_nms_threshold"),
    ("06", "proposals"),
    ("08", "detection_score_threshold"),
    ("08", "detection_nms_threshold"),
):
    print(f"{chapter}  {name:<26} {getattr(model.config, name)}")

# %% [markdown]
# ## 4. The way in and the way back
#
# The coins are 303 x 384 pixels and the astronaut 512 x 512, but this network takes pictures of 128. `detect` resizes each picture so that its sides fit and pads it with zeros at the right and below, to one of a few sizes (chapter 02). What the network answers is in pixels of that resized picture, and has to come back. If the resized picture lies in the network's input from the corner $(0, 0)$ to $(h, w)$, its **window**, and the photograph has $H \times W$ pixels, then a box goes back by
#
# $$b' = \left(y_1 \frac{H}{h},\; x_1 \frac{W}{w},\; y_2 \frac{H}{h},\; x_2 \frac{W}{w}\right)$$
#
# and is cut at the photograph's edge. Height and width have their own factor, since both have been rounded to whole pixels.


# %%
def rescaled(found, window, photograph_size):
    """Boxes (N, 4) of the network's input in the photograph's pixels; the window starts at its corner."""
    limit = np.tile(photograph_size, 2)
    return np.clip(found * (limit / np.tile(window[2:] - window[:2], 2)), 0, limit)


# %% [markdown]
# By hand: a photograph of 300 x 400 is resized to 96 x 128, so both factors are 3.125. The box $(16, 32, 48, 130)$ becomes $(50, 100, 150, 406.25)$, and the last number is cut to 400.

# %% tags=["nbval-check-output"]
print(rescaled(np.float32([[16, 32, 48, 130]]), np.float32([0, 0, 96, 128]), np.float32([300, 400])))
on_coins = mr.stages.stages(model, coins)
size, window = np.float32(coins.shape), on_coins.window
print(f"the coins' window in an input of {on_coins.image.shape[:2]}: {window.astype(int).tolist()}")
boxes = np.concatenate([on_coins.proposals, rng.uniform(-20, 150, (100, 4))]).astype("float32")
check("rescaled", rescaled(boxes, window, size), mr.detections.rescaled(boxes, window, size))
mine = rescaled(on_coins.candidates[on_coins.kept], window, size)
check("the coins' boxes", mine, on_coins.detections.boxes)

# %% [markdown]
# ### Break it: the way back forgotten
#
# Whoever takes boxes out of the middle of a network, or calls an exported model without its last step, has them in the network's pixels. On a picture of the network's own size nobody notices. Ten test pictures, drawn twice, three and four times as large, show it.

# %%
print("size of picture   objects   found   found without the way back")
for side in (128, 256, 384, 512):
    larger = mr.ShapesDataset(10, seed=1, size=side)
    pictures, objects = [larger.image(i) for i in range(10)], [larger.instances(i) for i in range(10)]
    right = model.detect(pictures, batch_size=10)
    wrong = [dataclasses.replace(result, boxes=result.boxes * (128 / side)) for result in right]
    number = sum(len(true.boxes) for true in objects)
    print(f"{side:>15}   {number:>7}   {count(right, objects)[0]:>5}   {count(wrong, objects)[0]:>26}")

# %% [markdown]
# ### Break it: pixels in another unit
#
# A network has learnt what a pixel of 200 looks like, and the code around it must hand over pixels of the same meaning. Some pipelines use 0 to 1, some -1 to 1, OpenCV reads blue before red. `detect` takes bytes, or floats from 0 to 1, and does the rest. Four mistakes, each made by calling it with bytes that mean something else:

# %%
mistakes = {
    "right": lambda image: image,
    "blue before red": lambda image: image[..., ::-1],
    "half as bright": lambda image: image // 2,
    "-1..1, cut at 0": lambda image: (np.clip(image / 127.5 - 1, 0, 1) * 255).astype(np.uint8),
    "0..1, as bytes": lambda image: (image / 255).astype(np.uint8),
}
print(f"{'pixels':<18} found of {total}   false alarms")
for name, spoil in mistakes.items():
    hits, false = count(model.detect([spoil(image) for image in images], batch_size=10), truth)
    print(f"{name:<18} {hits:>12}   {false:>12}")

# %% [markdown]
# Only the last one is loud. Colour and brightness say nothing about shapes, so this network has learnt to do without them, and the swap costs it nothing: a test on drawn shapes would never find that bug. Detectron2's published weights want blue first, torchvision's want red first, and there a swap costs **AP** without an error message. AP is average precision, the field's measure of a detector, from 0 to 1. This is why a model here carries its own means and deviations in its `Config`, and photographs travel as bytes until they are inside it.
#
# ### Break it: another scale
#
# Nine test pictures laid side by side make one of 384 x 384 pixels. `detect` shrinks it to 128, and each shape is a third as large as any it was trained on.

# %%
mosaic = np.concatenate([np.concatenate(images[row : row + 3], axis=1) for row in (0, 3, 6)])
alone = sum(len(at_least(result, 0.5)) for result in results[:9])
together = at_least(model.detect([mosaic])[0], 0.5)
print(f"nine pictures one by one: {alone} detections; as one picture: {len(together)}")
print(f"objects on them: {sum(len(true.boxes) for true in truth[:9])}")

# %% [markdown]
# A detector does not know objects of all sizes, but those of its anchors and its training. This one's smallest anchor is 16 pixels. The pyramid and augmentation with several sizes (chapters 02 to 04) widen the range; cutting a large photograph into overlapping tiles is the remedy in use.

# %% [markdown]
# > **How the others do it**
# >
# > *Paper.* Short side 800 pixels, and COCO's 80 classes. About 200 ms for a photograph on a GPU of 2017 (section 1).
# >
# > *Detectron2.* Blue before red, 0 to 255, minus the mean, not divided by a deviation. Short side 800, long side at most 1333, resized as bytes with antialiasing, padded to multiples of 32. It keeps scores above 0.05.
# >
# > *torchvision.* Red before blue, 0 to 1, minus the mean, divided by the deviation, resized in float without antialiasing after that. It also keeps scores above 0.05, and has 91 class ids, of which ten are never used.
# >
# > *The seed* (matterport/Mask_RCNN). Red before blue, 0 to 255, minus the mean. Pictures lie in the middle of a square of 1024 x 1024, so the window does not start at the corner, and its boxes are normalised to 0..1 inside the network. It keeps only scores of at least 0.7, and only the best class of each region: its pictures look cleaner for it.

# %% [markdown]
# ## Exercises
#
# **1 (recall).** Name the four arrays in `Detections` and their shapes for a photograph of 480 x 640 pixels with 7 detections. What would class 0 mean?
#
# <details><summary>Hint</summary>
#
# The first cell of section 1 prints them for the coins.
#
# </details>
#
# <details><summary>Solution</summary>
#
# boxes (7, 4), classes (7,), scores (7,), masks (7, 480, 640). Class 0 is the background, and does not occur.
#
# ```python
# n = len(found)
# assert found.boxes.shape == (n, 4) and found.masks.shape == (n, *coins.shape)
# assert found.classes.min() > 0
# ```
#
# </details>
#
# **2 (understand).** The network has 60 proposals and three classes, and `Detections` could hold 50 objects. How many candidates can there be at most, and why are there far fewer?
#
# <details><summary>Hint</summary>
#
# A proposal may be refined for every class. What must a candidate reach?
#
# </details>
#
# <details><summary>Solution</summary>
#
# 180: each proposal once for each class, with a box of its own. A candidate needs a score of 0.05, and the probabilities of one proposal's classes, background included, add up to 1. Most proposals are background, and those on an object have one likely class.
#
# ```python
# assert len(stages.proposals) * (len(model.class_names) - 1) == 180
# assert (stages.candidate_scores > 0.05).all() and len(stages.candidates) < 180
# ```
#
# </details>
#
# **3 (build).** Masks on a photograph hide it. Write `splash`, which keeps the colours inside the masks and makes the rest grey, and use it on the coffee cup. (It is the seed's best known picture: balloons in colour, all else grey.)
#
# <details><summary>Hint</summary>
#
# `masks.any(0)` is true where any object is; `np.where` chooses.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def splash(image, masks):
#     grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1).astype(np.uint8)
#     return np.where(masks.any(0)[..., None], image, grey)
#
#
# seen = at_least(model.detect([photographs[1]])[0], 0.7)
# splashed = splash(photographs[1], seen.masks)
# assert (splashed[seen.masks.any(0)] == photographs[1][seen.masks.any(0)]).all()
# mr.plots.picture(splashed)
# ```
#
# </details>
#
# **4 (measure).** How sure is "sure"? Collect the scores of all detections on the hundred test pictures from 0.05 on, and whether each found an object. For scores from 0 to 0.2, 0.2 to 0.4 and so on, which share is right?
#
# <details><summary>Hint</summary>
#
# The loop in `count` knows for each detection whether it takes an object.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# scores, right = [], []
# for result, true in zip(results, truth):
#     overlap = np.asarray(mr.boxes.iou(result.boxes, true.boxes)) * (result.classes[:, None] == true.classes)
#     taken = np.zeros(len(true.boxes), bool)
#     for score, row in zip(result.scores, overlap):
#         best = np.argmax(np.where(taken, 0, row))
#         free = not taken[best] and row[best] >= 0.5
#         taken[best] |= free
#         scores.append(score)
#         right.append(free)
# bins = np.digitize(scores, [0.2, 0.4, 0.6, 0.8])
# for b in range(5):
#     chosen = np.array(right)[bins == b]
#     print(f"{b / 5:.1f} to {(b + 1) / 5:.1f}: {len(chosen):>3} detections, {chosen.mean():.0%} right")
# assert np.mean(np.array(right)[bins == 4]) > 0.9
# ```
#
# If the share is near the middle of its range, the scores are calibrated. Detectors mostly are not, and need not be for AP, which only asks for the order.
#
# </details>

# **5 (research).** *Slicing Aided Hyper Inference* (Akyon et al., 2022) runs a detector on overlapping tiles of a large picture, moves the boxes to their places and thins them out by suppression. Do this for the picture of nine. What do the tiles win, which new false alarms do they make, and what can be done about these?
#
# <details><summary>Hint</summary>
#
# Tiles of 128 pixels, 64 apart. A box goes to its place by adding its tile's corner; `mr.boxes.nms(boxes, scores, 0.3, classes)` says which to keep. What does a tile show of an object on its edge?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def in_tiles(image, side, stride, drop_cut=False):
#     size, parts = np.array(image.shape[:2]), []
#     for y in range(0, size[0] - side + 1, stride):
#         for x in range(0, size[1] - side + 1, stride):
#             one, corner = model.detect([image[y : y + side, x : x + side]])[0], np.array([y, x])
#             low = (one.boxes[:, :2] > 2) | (corner == 0)
#             high = (one.boxes[:, 2:] < side - 2) | (corner + side == size)
#             good = (low & high).all(1) | (not drop_cut)
#             parts.append((one.boxes[good] + np.tile(corner, 2), one.classes[good], one.scores[good]))
#     boxes, classes, scores = map(np.concatenate, zip(*parts, strict=True))
#     keep = np.asarray(mr.boxes.nms(boxes.astype("float32"), scores, 0.3, classes))
#     return mr.Detections(boxes[keep], classes[keep], scores[keep], np.zeros((keep.sum(), 1, 1), bool))
#
#
# moves = [np.tile([128 * (i // 3), 128 * (i % 3)], 2) for i in range(9)]
# whole = mr.datasets.dataset.Instances(
#     boxes=np.concatenate([true.boxes + move for true, move in zip(truth, moves)]),
#     classes=np.concatenate([true.classes for true in truth[:9]]), masks=None,
# )
# for name, result in {
#     "as one picture": model.detect([mosaic])[0],
#     "tiles side by side": in_tiles(mosaic, 128, 128),
#     "tiles that overlap by half": in_tiles(mosaic, 128, 64),
#     "the same, cut objects dropped": in_tiles(mosaic, 128, 64, drop_cut=True),
# }.items():
#     hits, false = count([result], [whole])
#     print(f"{name:<30} {hits} of {len(whole.boxes)} found, {false} false alarms")
# assert count([result], [whole])[0] > count([together], [whole])[0]
# ```
#
# 10 of 19 are found in one piece, 18 in tiles. Tiles side by side do best, but only because they happen to be the nine pictures. Those that overlap make 13 false alarms: a tile's edge cuts an object, the rest is detected as an object of its own, and its IoU with the whole is too small for suppression. An object of up to 64 pixels is seen whole in some tile, so boxes that touch an edge inside the picture can go; one false alarm is left. Larger objects would need a pass over the whole picture besides. The authors' library can add one, and it compares boxes by the share of the *smaller* one that they have in common.
#
# </details>

# %% [markdown]
# ## Summary
#
# Instance segmentation gives a box, a class, a score and a mask for each object. Mask R-CNN does it in two stages: a region proposal network thins thousands of anchors down to some proposals, and heads look at each of these once more. A score compares the classes that the network knows, on pictures like those it has learnt from. Around the network, pictures are resized and boxes brought back; wrong units and forgotten factors cost everything or, worse, a little.
#
# **Read now:** [`maskrcnn_edu/detections.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/detections.py), the way in and the way back, and [`maskrcnn_edu/stages.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/stages.py), which has the order of the parts in forty lines.
#
# **Next:** chapter 01 begins at the beginning: how does a file say which pixels are the spoon?
#
# ## Further reading
#
# - K. He, G. Gkioxari, P. Dollár, R. Girshick: *Mask R-CNN*, ICCV 2017. Read sections 1 and 3 now, the rest as the chapters come. [arXiv:1703.06870](https://arxiv.org/abs/1703.06870)
# - S. Ren, K. He, R. Girshick, J. Sun: *Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks*, NeurIPS 2015. The two stages. [arXiv:1506.01497](https://arxiv.org/abs/1506.01497)
# - W. Abdulla: [*Splash of Color: Instance Segmentation with Mask R-CNN and TensorFlow*](https://engineering.matterport.com/splash-of-color-instance-segmentation-with-mask-r-cnn-and-tensorflow-7c761e238b46), 2018. The seed's tour.
# - F. C. Akyon, S. O. Altinuc, A. Temizel: *Slicing Aided Hyper Inference and Fine-tuning for Small Object Detection*, ICIP 2022. Large pictures in tiles. [arXiv:2202.06934](https://arxiv.org/abs/2202.06934)
# - C. Guo, G. Pleiss, Y. Sun, K. Weinberger: *On Calibration of Modern Neural Networks*, ICML 2017. Why a score is not a probability. [arXiv:1706.04599](https://arxiv.org/abs/1706.04599)

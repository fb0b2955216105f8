# ---
# jupyter:
#   book:
#     title: Backbone and FPN
#     library: [backbone]
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Backbone and FPN
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/maskrcnn-edu/maskrcnn_edu/blob/main/book/notebooks/03_backbone_and_fpn.ipynb) [![Open in Binder](https://mybinder.org/badge_logo.svg)](https://mybinder.org/v2/gh/maskrcnn-edu/maskrcnn_edu/main?labpath=book%2Fnotebooks%2F03_backbone_and_fpn.ipynb) (neither has been tried)
#
# **An object may be 16 pixels wide or 600, and the network's filters are 3 cells wide. Where in the network is each of them seen whole, and still in the right place?**
#
# After this chapter you can
#
# - build a residual network and the feature pyramid on top of it;
# - compute which pixels a cell of any layer can see, and measure which ones it does see;
# - say why padding and normalisation are written out by hand in a detector, and what it costs to leave them to the default.
#
# You need chapter 02 (what a batch is) and convolutions. The chapter runs in half a minute on two cores, without a GPU or a network.

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
import skimage.data
import tensorflow as tf
from keras import layers

import maskrcnn_edu as mr
from maskrcnn_edu.book import check

keras.utils.set_random_seed(0)
rng = np.random.default_rng(0)

# %% [markdown]
# The detector that ships with the library has a small backbone: three stages and three pyramid levels, trained on drawn shapes. Here is one channel of each level for one picture.

# %%
model = keras.saving.load_model(mr.files("shapes.keras"))
tiny = model.config
pictures = mr.ShapesDataset(100, seed=1)
shown = 23
image = pictures.image(shown)


def as_input(images):
    """Pictures of 128 x 128 pixels as the backbone takes them: (B, 128, 128, 3) uint8 -> float32, normalised."""
    images = np.asarray(images)
    return model.normalise(images, np.full((len(images), 2), 128, "float32"))


def strongest(feature):
    """The channel that varies most over the map: (H, W, channels) -> (H, W)."""
    return feature[..., feature.std((0, 1)).argmax()]


pyramid = [np.asarray(level)[0] for level in model.backbone(as_input([image]))]
fig, axes = plt.subplots(1, 4, figsize=(9, 2.6), layout="constrained")
axes[0].imshow(image)
axes[0].set_title("picture, 128 x 128 pixels", fontsize=10)
for k, (ax, level) in enumerate(zip(axes[1:], pyramid, strict=True), start=2):
    ax.imshow(strongest(level), cmap="viridis")
    ax.set_title(f"P{k}, {level.shape[0]} x {level.shape[1]} cells", fontsize=10)
for ax in axes:
    ax.set_axis_off()
plt.show()

# %% [markdown]
# **Figure 3.1.** A picture and one channel of each level of the feature pyramid. A cell of $P_2$ stands for 4 x 4 pixels, one of $P_4$ for 16 x 16.
#
# Each level in Figure 3.1 has 48 such channels, and everything that follows in Mask R-CNN reads only these maps. The photograph itself is not looked at again. So two things must be in them: what is there, and where. A deep layer knows more about the first, a shallow one about the second. The **backbone** makes both kinds of layers, and the **feature pyramid** combines them.

# %% [markdown]
# ## 1. A convolution that stays in place
#
# A convolution with kernel side $\kappa$ and stride $d$ computes every $d$-th position only. Where the kernel hangs over the border, zeros are put around the map. How many, and on which side?
#
# At stride 1 there is no choice: $(\kappa - 1)/2$ on each side keeps the size. At stride 2 on an even size there is one. The kernel's first position can be centred on the first pixel, which takes $(\kappa - 1)/2$ zeros before it. Or it can begin inside, and hang over at the end. Keras' and TensorFlow's `padding="same"` does the second, PyTorch's `padding=1` the first.
#
# By hand: eight pixels with the values 0 to 7, a kernel of three, $(0, 1, 0)$, which copies the pixel under its centre, and stride 2. With a zero on both sides the kernel stops at the pixels 0, 2, 4, 6. With "same" one zero is put at the end only, and it stops at 1, 3, 5, 7.

# %% tags=["nbval-check-output"]
row = np.arange(8, dtype="float32").reshape(1, 8, 1)
copy = np.float32([0, 1, 0]).reshape(3, 1, 1)
explicit = keras.ops.conv(np.pad(row, ((0, 0), (1, 1), (0, 0))), copy, strides=2, padding="valid")
same = keras.ops.conv(row, copy, strides=2, padding="same")
print("zeros on both sides:", np.asarray(explicit).ravel())
print('padding="same":     ', np.asarray(same).ravel())

# %% [markdown]
# Both outputs have four cells and nothing fails. But all that "same" sees has moved by one pixel, and the next layer at stride 2 adds a shift of one of its own, larger cells. We come back to what this costs. Our convolution writes its padding out.
#
# Behind a convolution stands a **normalisation**. Batch normalisation (Ioffe and Szegedy, 2015) subtracts a mean and divides by a standard deviation for each channel, then scales by $\gamma$ and shifts by $\beta$, which are learned:
#
# $$y = \gamma\,\frac{x - \mu}{\sqrt{v + \epsilon}} + \beta$$
#
# During training $\mu$ and $v$ come from the batch. A detector's batch is one or two large images on each device: too few to estimate anything. So Mask R-CNN starts from a network trained on ImageNet and keeps that network's $\mu$, $v$, $\gamma$ and $\beta$ as constants (He et al., 2016, appendix A, who say that it also saves memory). This is a **frozen norm**: one multiplication and one addition.


# %%
class FrozenNorm(layers.Layer):
    """Batch normalisation with fixed statistics, scale and shift. None of its weights is trainable."""

    def __init__(self, epsilon=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def build(self, shape):
        for name, start in (
            ("gamma", "ones"),
            ("beta", "zeros"),
            ("moving_mean", "zeros"),
            ("moving_variance", "ones"),
        ):
            setattr(self, name, self.add_weight(name=name, shape=(shape[-1],), initializer=start, trainable=False))

    def call(self, x):
        scale = self.gamma * keras.ops.rsqrt(self.moving_variance + self.epsilon)
        shift = self.beta - self.moving_mean * scale
        return x * keras.ops.cast(scale, x.dtype) + keras.ops.cast(shift, x.dtype)


# %% [markdown]
# By hand: $x = 3$, $\mu = 1$, $v = 4$, $\gamma = 2$, $\beta = 1$. Then $y = 2 \cdot (3 - 1)/2 + 1 = 3$. As the layer computes it: the scale is $2/2 = 1$, the shift $1 - 1 \cdot 1 = 0$, and $3 \cdot 1 + 0 = 3$.

# %% tags=["nbval-check-output"]
frozen = FrozenNorm(epsilon=0.0)
frozen.build((None, 1))
frozen.set_weights([np.float32([2]), np.float32([1]), np.float32([1]), np.float32([4])])  # gamma, beta, mean, variance
print(f"y = {np.asarray(frozen(np.float32([[3]])))[0, 0]:.1f}, trainable weights: {len(frozen.trainable_weights)}")

# %% [markdown]
# Who trains from scratch needs another one. The library has a word for each; here are four of them. Group normalisation (Wu and He, 2018) takes its statistics from groups of channels of one image, so that the batch does not matter.


# %%
def norm(x, kind, epsilon, name):
    """The normalisation `kind`: frozen | batch | group | none."""
    if kind == "none":
        return x
    if kind == "frozen":
        return FrozenNorm(epsilon, name=name)(x)
    if kind == "group":  # 32 groups, or the most that divide the channels
        return layers.GroupNormalization(groups=math.gcd(32, x.shape[-1]), epsilon=epsilon, name=name)(x)
    return layers.BatchNormalization(momentum=0.9, epsilon=epsilon, name=name)(x)


def conv(x, channels, kernel, name, norm_kind="none", epsilon=1e-5, stride=1, activation=None, init="he_normal"):
    """Conv2D, norm, activation. Padding is symmetric and explicit: Keras' "same" is off by one at stride 2."""
    if stride > 1 and kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    padding = "same" if stride == 1 else "valid"
    x = layers.Conv2D(
        channels, kernel, stride, padding, use_bias=norm_kind == "none", kernel_initializer=init, name=name
    )(x)
    x = norm(x, norm_kind, epsilon, f"{name}_norm")
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


# %% [markdown]
# Left out here: the library's `conv` takes its own subclass of `Conv2D`, which is faster with JAX on a CPU; its `norm` knows `sync` as well, a batch norm over all devices; and its `FrozenNorm` can be folded into the kernel of the convolution before it when detection is compiled. Otherwise these are its lines. A norm has a shift of its own, so the convolution before it needs no bias.
#
# To compare two pieces of network we give both the same random weights.


# %%
def same_weights(mine, theirs):
    """Gives both models the same random weights, variances not below zero."""
    signs = [np.abs if "variance" in weight.name else np.asarray for weight in mine.weights]
    values = [sign(rng.normal(size=weight.shape)) for sign, weight in zip(signs, mine.weights, strict=True)]
    mine.set_weights(values)
    theirs.set_weights(values)


given = keras.Input((None, None, 3))
for kind in ("none", "frozen", "group"):
    options = {"norm_kind": kind, "stride": 2, "activation": "relu"}
    mine = keras.Model(given, conv(given, 8, 3, "mine", **options))
    theirs = keras.Model(given, mr.backbone.conv(given, 8, 3, "theirs", **options))
    same_weights(mine, theirs)
    x = rng.normal(size=(2, 32, 48, 3)).astype("float32")
    check(f"conv, norm {kind}", mine(x), theirs(x))

# %% [markdown]
# ## 2. A residual network
#
# Fifty convolutions in a row do not train. A **residual block** (He et al., 2016, equation 1) adds its input to what its convolutions compute, so that the block only has to learn a change, and the gradient has a way around it:
#
# $$\mathbf{y} = \mathrm{relu}\big(\mathcal{F}(\mathbf{x}) + \mathbf{x}\big)$$
#
# Where the block changes the number of channels or the size, $\mathbf{x}$ passes through a 1 x 1 convolution first. $\mathcal{F}$ is two 3 x 3 convolutions in small networks, and in ResNet-50 a **bottleneck**: 1 x 1 down to a quarter of the channels, 3 x 3 there, 1 x 1 up again.


# %%
def residual_block(x, channels, stride, config, name):
    """y = relu(F(x) + shortcut(x)); F is 1x1, 3x3, 1x1 (bottleneck) or 3x3, 3x3 convolutions."""
    kind = {"norm_kind": config.backbone_norm, "epsilon": config.norm_epsilon}
    shortcut = x
    if stride > 1 or x.shape[-1] != channels:
        shortcut = conv(x, channels, 1, f"{name}_shortcut", stride=stride, **kind)
    if config.bottleneck:
        first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
        x = conv(x, channels // 4, 1, f"{name}_conv1", stride=first, activation="relu", **kind)
        x = conv(x, channels // 4, 3, f"{name}_conv2", stride=second, activation="relu", **kind)
        x = conv(x, channels, 1, f"{name}_conv3", **kind)
    else:
        x = conv(x, channels, 3, f"{name}_conv1", stride=stride, activation="relu", **kind)
        x = conv(x, channels, 3, f"{name}_conv2", **kind)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.Activation("relu", name=f"{name}_relu")(x)


# %% [markdown]
# The network begins with a **stem**, a 7 x 7 convolution and a max-pooling, each at stride 2. Then come stages of blocks. Each stage but the first halves the size with its first block, and usually doubles the channels. What the last block of a stage gives is $\mathbf{C}_2, \mathbf{C}_3, \ldots$; like $P_k$, $\mathbf{C}_k$ has stride $2^k$. Left out here is the seed's max-pooling, which pads below and to the right only.


# %%
def resnet(image, config):
    """Features C2, C3, ... at strides 4, 8, ...: (B, H, W, channels) -> list of (B, H / stride, W / stride, C)."""
    kind = {"norm_kind": config.backbone_norm, "epsilon": config.norm_epsilon}
    x = conv(image, config.stem_channels, 7, "stem", stride=2, activation="relu", **kind)
    x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)  # 0 is neutral: what is pooled has passed a relu
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    features = []
    for stage, (blocks, channels) in enumerate(zip(config.stage_blocks, config.stage_channels, strict=True), start=2):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            x = residual_block(x, channels, stride, config, f"res{stage}_{block}")
        features.append(x)
    return features


# %% [markdown]
# ResNet-50 has 3, 4, 6 and 3 blocks in its stages. Keras knows the shapes before anything is computed.

# %% tags=["nbval-check-output"]
coco = mr.Config.coco()
photograph = keras.Input((800, 1344, 3), name="photograph")
features = resnet(photograph, coco)
for k, feature in enumerate(features, start=2):
    print(
        f"C{k}: stride {2**k:>2}, {feature.shape[1]:>3} x {feature.shape[2]:>3} cells, {feature.shape[3]:>4} channels"
    )
resnet50 = keras.Model(photograph, features)
convolutions = [layer for layer in resnet50.layers if isinstance(layer, layers.Conv2D)]
print(f"{len(convolutions)} convolutions, {resnet50.count_params() / 1e6:.1f} million weights")

# %% [markdown]
# Fifty-three convolutions: the fifty of the name include the layer that tells ImageNet's classes apart, which a detector has no use for, and not the four on shortcuts. In 800 x 1344 pixels $\mathbf{C}_2$ has 67,200 cells with 256 numbers each, and $\mathbf{C}_5$ 1,050 cells with 2048.

# %% tags=["nbval-check-output"]
mine = keras.Model(given, resnet(given, tiny))
theirs = keras.Model(given, mr.backbone.resnet(given, tiny))
theirs.set_weights(mine.get_weights())
x = rng.normal(size=(2, 64, 96, 3)).astype("float32")
for k, (a, b) in enumerate(zip(mine(x), theirs(x), strict=True), start=2):
    check(f"resnet, C{k}", a, b)

# %% [markdown]
# ## 3. What a cell sees
#
# A cell of $\mathbf{C}_5$ was computed from cells below, and these from pixels. The pixels that can reach it are its **receptive field**. Follow the layers upwards (Araujo et al., 2019). Let $f_l$ be the side of the field behind layer $l$, $j_l$ how many pixels two neighbouring cells are apart, and $o_l$ the pixel position of cell 0's centre. With kernel side $\kappa_l$, stride $d_l$ and $a_l$ zeros before the first cell,
#
# $$f_l = f_{l-1} + (\kappa_l - 1)\, j_{l-1} \qquad o_l = o_{l-1} + \Big(\frac{\kappa_l - 1}{2} - a_l\Big)\, j_{l-1} \qquad j_l = d_l\, j_{l-1}$$
#
# and at the start $f_0 = 1$, $j_0 = 1$, and $o_0 = 0.5$, the centre of the first pixel.


# %%
def field_of(chain):
    """Side of the receptive field, stride and centre of cell 0 behind a chain of (kernel, stride, zeros before)."""
    side, step, centre = 1, 1, 0.5
    for kernel, stride, zeros in chain:
        side += (kernel - 1) * step
        centre += ((kernel - 1) / 2 - zeros) * step
        step *= stride
    return side, step, centre


def chain_of(config, stage, same=False):
    """The (kernel, stride, zeros before) of each layer up to C_stage, on its longest way; `same`: Keras' padding."""
    chain = [(7, 2), (3, 2)]
    for k, blocks in zip(range(2, stage + 1), config.stage_blocks, strict=False):
        for block in range(blocks):
            stride = 2 if block == 0 and k > 2 else 1
            if config.bottleneck:
                first, second = (stride, 1) if config.stride_in_1x1 else (1, stride)
                chain += [(1, first), (3, second), (1, 1)]
            else:
                chain += [(3, stride), (3, 1)]
    return [(kernel, d, (kernel - d) // 2 if same and kernel > 1 else kernel // 2) for kernel, d in chain]


# %% [markdown]
# By hand, the stem: $f = 1 + 6 \cdot 1 = 7$, $j = 2$. The pooling: $f = 7 + 2 \cdot 2 = 11$, $j = 4$. The three 3 x 3 convolutions of ResNet-50's $\mathbf{C}_2$ add $2 \cdot 4$ each: $f = 35$. With $a_l = (\kappa_l - 1)/2$ the centre never moves: cell $i$ looks at pixel $2^k i$, at every level.

# %% tags=["nbval-check-output"]
for name, config in (("ResNet-50", coco), ("ResNet-101", mr.Config.coco(101)), ("ours", tiny)):
    sides = [field_of(chain_of(config, k))[0] for k in range(2, 2 + len(config.stage_blocks))]
    print(f"{name:<10}", ", ".join(f"C{k} {side}" for k, side in enumerate(sides, start=2)))

# %% [markdown]
# So a cell of ResNet-50's last layer can see a square of 483 pixels, and one of its first stage 35. An object of 200 pixels cannot be recognised in $\mathbf{C}_2$ as a whole, whatever is learned.
#
# Is it true? The derivative of a cell with respect to the pixels says which of them matter: outside the field it is exactly zero. The next function measures it. A max-pooling passes the derivative to the largest of its inputs only, so we add up several pictures of noise. The side of the field depends on kernels and strides and not on channels, and a ResNet-50 with a sixteenth of the channels is measured in a second.


# %%
def influence(network, images, row, column):
    """How much each pixel matters to the cell (row, column): |d (sum of its channels) / d pixel|, (H, W)."""
    images = tf.convert_to_tensor(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        answer = tf.reduce_sum(network(images)[:, row, column])
    return np.abs(tape.gradient(answer, images)).sum((0, 3))


def extent(weight):
    """First and last + 1 row of what is not zero."""
    rows = np.flatnonzero(weight.any(1))
    return rows[0], rows[-1] + 1


# %% tags=["nbval-check-output"]
thin = dataclasses.replace(coco, stem_channels=8, stage_channels=(16, 32, 64, 128), fpn_channels=16)
thin_resnet = keras.Model(given, resnet(given, thin))
noise = rng.normal(size=(4, 640, 640, 3)).astype("float32")
for k, feature in enumerate(thin_resnet.outputs, start=2):
    top, bottom = extent(influence(keras.Model(given, feature), noise, 320 // 2**k, 320 // 2**k))
    side, step, centre = field_of(chain_of(thin, k))
    print(f"C{k}: computed {side}, centre {320 + centre}; measured {bottom - top}, centre {(top + bottom) / 2}")

# %% [markdown]
# The field is what a cell *can* see. What it *does* see is less. A pixel in the middle reaches the cell on many ways through the kernels, one at the corner on a single one. Luo et al. (2016) show that the influence falls like a bell curve and that its width grows only with the square root of the depth. They call it the **effective receptive field**. Figure 3.2 shows the derivative of the middle cell of each stage in the trained detector, added up over all hundred pictures.

# %%
stages = [model.backbone.get_layer(f"res{k}_0_relu").output for k in (2, 3, 4)]
everything = as_input([pictures.image(i) for i in range(100)])
measured = {
    f"C{k}": influence(keras.Model(model.backbone.inputs, output), everything, 64 // 2**k, 64 // 2**k)
    for k, output in enumerate(stages, start=2)
}


def side_of_share(weight, share=0.9):
    """Side of the centred square that holds this share of the influence."""
    inside = [weight[64 - h : 65 + h, 64 - h : 65 + h].sum() for h in range(64)]
    return 2 * int(np.searchsorted(inside, share * weight.sum())) + 1


fig, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
for k, (ax, (name, weight)) in enumerate(zip(axes, measured.items(), strict=True), start=2):
    side, _, centre = field_of(chain_of(tiny, k))
    ax.imshow(np.sqrt(weight / weight.max()), cmap="magma")
    ax.add_patch(plt.Rectangle((64 - side / 2, 64 - side / 2), side, side, fill=False, color="white", linewidth=1.5))
    most = side_of_share(weight)
    ax.add_patch(plt.Rectangle((64 - most / 2, 64 - most / 2), most, most, fill=False, color="cyan", linestyle="--"))
    ax.set(xlabel="x, pixels")
    ax.set_title(f"{name}: field {side}, nine tenths in {most}", fontsize=10)
axes[0].set_ylabel("y, pixels")
plt.show()

# %% [markdown]
# **Figure 3.2.** Influence of each pixel on the middle cell of three layers of the trained detector (its square root, so that faint parts show). White: the computed field. Dashed: the centred square that holds nine tenths of the influence.
#
# In Figure 3.2 the layers use less than their fields. When an object shall be seen whole, the field has to be larger than the object by a good margin.
#
# ### Break it: padding "same"
#
# Somebody ports a detector to Keras and writes `padding="same"` everywhere, since the shapes come out right. The formula says where cell 0 then looks. For even sizes "same" puts $(\kappa - 2)/2$ zeros before the first cell at stride 2.

# %% tags=["nbval-check-output"]
for name, config in (("ours", tiny), ("ResNet-50", coco)):
    for k in range(2, 2 + len(config.stage_blocks)):
        shift = field_of(chain_of(config, k, same=True))[2] - field_of(chain_of(config, k))[2]
        print(f"{name:<9} C{k}: looks {shift:>4.0f} pixels too far right and down, {shift / 2**k:.2f} cells")

# %% [markdown]
# Almost a whole cell in our network. In ResNet-50 less, since its stages shrink with 1 x 1 convolutions, which need no padding. With the stride in the 3 x 3, as in torchvision, it is as in ours. Now take the trained detector and change the padding of its four layers of stride 2, nothing else. The weights fit, no error is raised.


# %%
def resnet_same(image, config):
    """The detector's network with Keras' padding "same" throughout."""
    kind = {"padding": "same", "use_bias": False}
    bn = {"epsilon": config.norm_epsilon}

    def unit(x, channels, kernel, stride, name, relu=True):
        x = layers.Conv2D(channels, kernel, stride, name=name, **kind)(x)
        x = layers.BatchNormalization(name=f"{name}_norm", **bn)(x)
        return layers.Activation("relu")(x) if relu else x

    x = layers.MaxPooling2D(3, 2, padding="same")(unit(image, config.stem_channels, 7, 2, "stem"))
    features = []
    for k, channels in enumerate(config.stage_channels, start=2):
        stride, shortcut = (2 if k > 2 else 1), x
        if stride > 1 or x.shape[-1] != channels:
            shortcut = unit(x, channels, 1, stride, f"res{k}_0_shortcut", relu=False)
        x = unit(x, channels, 3, stride, f"res{k}_0_conv1")
        x = unit(x, channels, 3, 1, f"res{k}_0_conv2", relu=False)
        x = layers.Activation("relu")(layers.Add()([x, shortcut]))
        features.append(x)
    return features


truth = [pictures.instances(i) for i in range(100)]
images = [pictures.image(i) for i in range(100)]


def found(detections, least=0.5):
    """How many objects some detection of their class hits, with this IoU and a score of 0.5; and false alarms."""
    hits, false = 0, 0
    for one, own in zip(detections, truth, strict=True):
        good = one.scores >= 0.5
        same_thing = np.asarray(mr.boxes.iou(own.boxes, one.boxes[good])) >= least
        same_thing &= own.classes[:, None] == one.classes[good]
        hits += int(same_thing.any(1).sum())
        false += int((~same_thing.any(0)).sum())
    return hits, false


def displacement(detections):
    """Median of how much lower and further right a detection's centre lies than its object's, where IoU >= 0.3: (2,)."""
    moves = [np.zeros((0, 2))]
    for one, own in zip(detections, truth, strict=True):
        which, what = np.nonzero(np.asarray(mr.boxes.iou(own.boxes, one.boxes)) >= 0.3)
        moves.append((one.boxes[what, :2] + one.boxes[what, 2:] - own.boxes[which, :2] - own.boxes[which, 2:]) / 2)
    return np.median(np.concatenate(moves), axis=0).round(1) + 0.0  # no -0.0


# %%
def with_backbone(backbone):
    """The detector with another backbone."""
    other = mr.MaskRCNN(tiny, model.class_names)
    other.set_weights(model.get_weights())
    other.backbone = backbone
    return other


entry = keras.Input((None, None, 3))
moved = keras.Model(entry, mr.backbone.feature_pyramid(resnet_same(entry, tiny), tiny))
for layer in moved.layers:
    if layer.weights:
        layer.set_weights(model.backbone.get_layer(layer.name).get_weights())
moved_found = with_backbone(moved).detect(images, batch_size=10)
right_found = model.detect(images, batch_size=10)
objects = sum(len(own.boxes) for own in truth)
print(f"found of {objects}      at IoU 0.5   at IoU 0.75   boxes lie lower, and further right, by (median)")
for name, detections in (("explicit padding", right_found), ('padding="same"', moved_found)):
    down, right = displacement(detections)
    print(f"{name:<16} {found(detections)[0]:>12} {found(detections, 0.75)[0]:>13}   {down:.1f} and {right:.1f} pixels")

# %% [markdown]
# Every feature is still computed, but in the wrong place. The boxes lie 5 pixels too high and too far left: all that a layer of 16 pixels saw has moved by 15, and the three levels moved by different amounts. At an **IoU** of 0.5, when the two boxes share half of what they cover together (chapter 05), two thirds of the objects still count as found; at 0.75 not one. (Chapter 00 counts 274 and not 276 for the detector as it is, because there a detection may find one object only.) A test that only asks whether something was found would blame the training. Networks that are trained with "same" learn to live with it; it breaks where weights come from elsewhere.
#
# ### Break it: statistics of the batch
#
# The other default is batch normalisation in training mode. Somebody fine-tunes a detector with one image a step and leaves the norms on. They normalise with the mean and variance of that image, and so does everything behind them, before a single weight has been learned. Here the trained detector gets the statistics of four batches, and then the hundred pictures are counted again.


# %%
def with_statistics_of(batch):
    """The detector with the statistics that its norms see in one batch of pictures."""
    other = mr.MaskRCNN(tiny, model.class_names)
    other.set_weights(model.get_weights())
    for layer in other.backbone.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # forget what was, take what this batch says
    other.backbone(as_input(batch), training=True)
    return other


training = mr.ShapesDataset(64)
batches = {
    "64 drawn pictures": [training.image(i) for i in range(64)],
    "1 drawn picture": [training.image(0)],
    "1 photograph": [skimage.data.coffee()[100:356:2, 200:456:2]],
    "1 picture, all black": [np.zeros((128, 128, 3), np.uint8)],
}
answers = {"the whole training": right_found}
answers |= {name: with_statistics_of(batch).detect(images, batch_size=10) for name, batch in batches.items()}
print(f"with the statistics of    found of {objects}   false alarms")
for name, detections in answers.items():
    hits, false = found(detections)
    print(f"  {name:<21} {hits:>12} {false:>14}")

# %% [markdown]
# Pictures of the same kind give nearly the same constants, since one of them already has thousands of cells for each channel. One photograph costs ten objects, and a black picture 13 with 14 more false alarms. These were all found a moment ago; nothing about the shapes has changed, only what happened to be in the batch. In training it happens anew with every batch. The gradient then also chases statistics that jump, which no count after one step shows. Frozen norms rule this out: the answer to a picture depends on no other picture.

# %% [markdown]
# ## 4. The feature pyramid
#
# $\mathbf{C}_2$ is fine but has seen 27 pixels of context at most; $\mathbf{C}_4$ has seen much and is coarse. The **feature pyramid network** (Lin et al., 2017, section 3 and figure 3) walks back down. Each level takes its own $\mathbf{C}_k$ through a 1 x 1 convolution, which brings all to the same number of channels, and adds the level above, doubled in size by repeating each cell:
#
# $$\mathbf{M}_k = W_k * \mathbf{C}_k + \mathrm{up}_2(\mathbf{M}_{k+1}) \qquad P_k = V_k * \mathbf{M}_k$$
#
# where $W_k$ is 1 x 1, and the 3 x 3 convolution $V_k$ smooths what the repeated cells have made blocky. The topmost $\mathbf{M}$ has no level above.
#
# By hand: $\mathbf{M}_3$ is one row of two cells, $(10, 20)$, and $W_2 * \mathbf{C}_2$ is $(1, 2, 3, 4)$. Doubled, $\mathbf{M}_3$ is $(10, 10, 20, 20)$, so $\mathbf{M}_2$ is $(11, 12, 23, 24)$. The coarse value says what, the fine one where.

# %% tags=["nbval-check-output"]
coarse, fine = np.float32([10, 20]).reshape(1, 1, 2, 1), np.float32([1, 2, 3, 4]).reshape(1, 1, 4, 1)
print(np.asarray(fine + layers.UpSampling2D((1, 2))(coarse)).ravel())


# %%
def feature_pyramid(features, config):
    """P2, P3, ... from C2, C3, ...: lateral 1x1, coarser level doubled and added, 3x3 (FPN section 3, figure 3)."""
    kind = {"norm_kind": config.fpn_norm, "epsilon": config.norm_epsilon, "init": "glorot_uniform"}
    channels, merged, pyramid = config.fpn_channels, None, []
    for level in reversed(range(len(features))):
        lateral = conv(features[level], channels, 1, f"fpn_lateral{level + 2}", **kind)
        if merged is None:
            merged = lateral
        else:
            up = layers.UpSampling2D(2, name=f"fpn_up{level + 3}")(merged)
            merged = layers.Add(name=f"fpn_add{level + 2}")([lateral, up])
        pyramid.insert(0, conv(merged, channels, 3, f"fpn_output{level + 2}", **kind))
    if config.extra_level:  # P6: every other cell of P5
        pyramid.append(layers.MaxPooling2D(1, 2, name=f"fpn_extra{len(pyramid) + 2}")(pyramid[-1]))
    return pyramid


def build_backbone(config):
    """ResNet and FPN: normalised images (B, H, W, C) -> [P2, P3, ...]."""
    image = keras.Input((None, None, config.image_channels), name="normalised_image")
    return keras.Model(image, feature_pyramid(resnet(image, config), config), name="backbone")


# %% [markdown]
# The doubling only fits if every level has exactly twice the cells of the next. So height and width of the input are padded to a multiple of the coarsest $\mathbf{C}$'s stride, 32 for ResNet-50; this is where the number in chapter 02 comes from. The fifth level, $P_6$, is every other cell of $P_5$, made for the largest anchors (section 4.1 of the FPN paper). Only the region proposal network reads it.
#
# Your backbone takes the trained detector's weights. Here it is against the library's on four pictures; then a thin ResNet-50 with five levels.

# %% tags=["nbval-check-output"]
mine = build_backbone(tiny)
mine.set_weights(model.backbone.get_weights())
for k, (a, b) in enumerate(zip(mine(everything[:4]), model.backbone(everything[:4]), strict=True), start=2):
    check(f"backbone, P{k}", a, b)

mine, theirs = build_backbone(thin), mr.backbone.build_backbone(thin)
theirs.set_weights(mine.get_weights())
x = rng.normal(size=(1, 128, 192, 3)).astype("float32")
for k, (a, b) in enumerate(zip(mine(x), theirs(x), strict=True), start=2):
    check(f"thin ResNet-50, P{k}", a, b)

# %% [markdown]
# Five scales of one photograph are in Figure 3.3, from the thin ResNet-50. Its weights are random, so the values mean nothing. What you see is what the architecture alone does. Each level has a quarter of the cells of the one before. In $P_2$ stand the blocks of the coarser levels that were repeated and added. And all levels have a frame of their own: there the kernels read the zeros around the map. A frame of one cell is 4 pixels wide in $P_2$ and 64 in $P_6$.

# %%
photo = skimage.data.astronaut()
normalised = (photo[None].astype("float32") - coco.pixel_mean) / coco.pixel_std
scales = [np.asarray(level)[0] for level in mine(normalised)]
fig, axes = plt.subplots(1, 6, figsize=(9, 1.9), layout="constrained")
axes[0].imshow(photo)
axes[0].set_title("512 x 512 pixels", fontsize=9)
for k, (ax, level) in enumerate(zip(axes[1:], scales, strict=True), start=2):
    ax.imshow(strongest(level), cmap="viridis", interpolation="nearest")
    ax.set_title(f"P{k}: {level.shape[0]} x {level.shape[1]}", fontsize=9)
for ax in axes:
    ax.set_axis_off()
plt.show()

# %% [markdown]
# **Figure 3.3.** A photograph (Eileen Collins, NASA) and the five levels $P_2$ to $P_6$ that an untrained ResNet-50 with FPN makes of it. Strides 4, 8, 16, 32 and 64.
#
# ### What has been learned
#
# After training, channels answer to different things. Figure 3.4 shows the first eight of 48 channels of the finest level, and Figure 3.5 of the coarsest, for the picture of Figure 3.1.

# %%
mr.plots.activations(model, image, "fpn_output2", channels=8)

# %% [markdown]
# **Figure 3.4.** Eight channels of $P_2$ after training, in one scale of colours. Some answer along outlines (channel 0), some to what is filled (6), some hardly at all.

# %%
mr.plots.activations(model, image, "fpn_output4", channels=8)

# %% [markdown]
# **Figure 3.5.** Eight channels of $P_4$. With 8 x 8 cells no outline is left; a cell says that something of a kind is about here.
#
# Channel numbers of two levels have nothing to do with each other, and another training would order them otherwise. A channel is a direction in a space of 48 numbers a cell that happens to be an axis. Do not read too much into a single one.
#
# ### What changes on the way down
#
# A cell of $P_2$ can see as far as $\mathbf{C}_4$, since $\mathbf{M}_4$ was added into it. Figure 3.6 shows what a cell of $\mathbf{C}_k$ answers to, and beside it the cell of $P_k$ at the same place. Point at another place, then choose another level. Look for three things. At which places does the cell of $\mathbf{C}_2$ see nothing but background, and what does that of $P_2$ see there? How much of its field does a cell use? And how much of the field of $\mathbf{C}_4$ lies beyond the picture, where only zeros are?

# %%
mr.widgets.FieldExplorer(model, image)

# %% [markdown]
# **Figure 3.6.** The pixels that a cell (orange) answers to in the picture of Figure 3.1, the stronger the more colour: left $\mathbf{C}_2$, right $P_2$. Blue: all that can reach it. The influence's cube root is shown, so that faint parts can be seen.
#
# Over all hundred pictures, for the cell in the middle:

# %% tags=["nbval-check-output"]
for name, layer in (("C2", "res2_0_relu"), ("P2", "fpn_output2")):
    network = keras.Model(model.backbone.inputs, model.backbone.get_layer(layer).output)
    print(f"{name}: nine tenths of the influence in {side_of_share(influence(network, everything, 16, 16))} pixels")

# %% [markdown]
# That is the pyramid's purpose in two numbers. At the same resolution of 4 pixels, $P_2$ draws on almost three times the width. Which level an object is looked for on is decided by its size, in chapters 04 (anchors) and 07 (RoIs).

# %% [markdown]
# > **How the others do it**
# >
# > *Paper, Detectron2.* ResNet-50 or 101 with FPN, the stride of a stage in its first 1 x 1 convolution, frozen norms with $\epsilon = 10^{-5}$, zeros on both sides everywhere. $P_6$ is a max-pooling of $P_5$ with kernel 1 and stride 2, as here. No norms in the FPN.
# >
# > *torchvision.* The same, with the stride in the 3 x 3. Its first published weights (v1) go with $\epsilon = 0$; v2 has $10^{-5}$ and batch norms in the FPN.
# >
# > *The seed* (matterport/Mask_RCNN). Convolutions have biases, although a norm follows, and $\epsilon = 10^{-3}$. Its max-pooling in the stem is padded "same": by the formula of section 3 everything behind it looks 2 pixels further right and down. It was trained like this, and so its weights only work like this: `Config.matterport()` sets `stem_pool_same=True`.
# >
# > *keras.applications.* Its ImageNet weights also come with biases, and with $\epsilon = 1.001 \cdot 10^{-5}$.
# >
# > When weights move from one system to another, biases and $\epsilon$ can be folded into mean and $\gamma$. A stride in another place or another padding cannot: the network has to be built for it. This is why `Config` has fields for these.

# %% [markdown]
# ## Exercises
#
# **1 (recall).** A photograph of 800 x 1067 pixels goes into ResNet-50 with FPN. To what size is it padded, and how many cells has each of $P_2$ to $P_6$?
#
# <details><summary>Hint</summary>
#
# Multiples of 32. For $P_6$ every other cell of $P_5$ is taken, the first included.
#
# </details>
#
# <details><summary>Solution</summary>
#
# 800 x 1088. Then 200 x 272, 100 x 136, 50 x 68, 25 x 34, and 13 x 17.
#
# ```python
# given = keras.Input((800, 1088, 3))
# shapes = [tuple(level.shape[1:3]) for level in feature_pyramid(resnet(given, thin), thin)]
# assert shapes == [(200, 272), (100, 136), (50, 68), (25, 34), (13, 17)]
# ```
#
# </details>
#
# **2 (understand).** Three 3 x 3 convolutions of stride 1 in a row and one of 7 x 7: compare the fields and the number of weights for 64 channels. What else do three have that one has not?
#
# <details><summary>Hint</summary>
#
# `field_of([(3, 1, 1)] * 3)`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# The field is 7 in both cases. Three have $3 \cdot 9 \cdot 64^2 = 110{,}592$ weights, one has $49 \cdot 64^2 = 200{,}704$. The three have a relu after each.
#
# ```python
# assert field_of([(3, 1, 1)] * 3) == field_of([(7, 1, 3)])
# ```
#
# </details>
#
# **3 (build).** RetinaNet (Lin et al., 2017, *Focal Loss*) makes $P_6$ with a 3 x 3 convolution of stride 2 on $\mathbf{C}_5$, and $P_7$ with a relu and another one on $P_6$. Build both for 256 channels. How many cells and how many weights do they have for $\mathbf{C}_5$ of 25 x 34 cells? What does our $P_6$ cost?
#
# <details><summary>Hint</summary>
#
# `conv` can do it all, with `stride=2` and no norm.
#
# </details>
#
# <details><summary>Solution</summary>
#
# 5.3 million weights, most of them in the first, which reads 2048 channels. Our $P_6$ has none.
#
# ```python
# c5 = keras.Input((25, 34, 2048))
# p6 = conv(c5, 256, 3, "p6", stride=2)
# p7 = conv(layers.Activation("relu")(p6), 256, 3, "p7", stride=2)
# assert p6.shape[1:3] == (13, 17) and p7.shape[1:3] == (7, 9)
# print(f"{keras.Model(c5, p7).count_params():,} weights")
# ```
#
# </details>
#
# **4 (measure).** Cut the way down: give each $P_k$ only its own $\mathbf{C}_k$, with the trained weights. How many objects are still found, and which are lost?
#
# <details><summary>Hint</summary>
#
# Copy weights by layer name, as in the first break-it cell.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def without_top_down(features, config):
#     own = [conv(c, config.fpn_channels, 1, f"fpn_lateral{k}") for k, c in enumerate(features, start=2)]
#     return [conv(m, config.fpn_channels, 3, f"fpn_output{k}") for k, m in enumerate(own, start=2)]
#
#
# cut = keras.Model(entry, without_top_down(resnet(entry, tiny), tiny))
# for layer in cut.layers:
#     if layer.weights:
#         layer.set_weights(model.backbone.get_layer(layer.name).get_weights())
# hits, false = found(with_backbone(cut).detect(images, batch_size=10))
# print(hits, "found,", false, "false alarms")
# assert hits < found(right_found)[0]
# ```
#
# 234 instead of 276. Objects on $P_4$ are not touched by the cut; those on $P_2$ and $P_3$ are. The comparison is not fair to a pyramid without a way down, since this one was trained with it. Table 1 of the FPN paper trains both.
#
# </details>
#
# **5 (research).** Luo et al. (2016) report that the effective receptive field grows during training. Does it here? Compare the trained backbone with an untrained one.
#
# <details><summary>Hint</summary>
#
# `mr.backbone.build_backbone(tiny)` is untrained; use `influence` and `side_of_share` on the same pictures.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# untrained, names = mr.backbone.build_backbone(tiny), {f"C{k}": f"res{k}_0_relu" for k in (2, 3, 4)}
# for name, layer in (names | {"P2": "fpn_output2"}).items():
#     cell, sides = 64 // 2 ** int(name[1]), []
#     for backbone in (untrained, model.backbone):
#         one = keras.Model(backbone.inputs, backbone.get_layer(layer).output)
#         sides.append(side_of_share(influence(one, everything, cell, cell)))
#     print(f"{name}: untrained {sides[0]} pixels, trained {sides[1]}")
# ```
#
# Not in the stages: 23, 37 and 69 pixels before and after. In $P_2$ it even shrinks, from about 81 pixels to 65: training has given more weight to the fine level than chance had. The network is shallow, and its $\mathbf{C}_4$ sees 99 pixels from the start, where no object is larger than 64. There is little to gain. A fair test needs a deeper network and larger objects; Luo et al. used both.
#
# </details>

# %% [markdown]
# ## Summary
#
# A backbone is a row of convolutions whose maps get coarser and see more: in ResNet-50 from 35 to 483 pixels. Kernels and strides alone say how far a cell can see, and zeros on both sides keep every level centred on the same pixels. What a cell does see is concentrated in the middle of that. Norms of a pretrained network stay as they are, because a detector's batch is too small to estimate them again. The pyramid adds what coarse levels know into fine ones, so that small objects are recognised with context, and large ones cheaply.
#
# **Read now:** [`maskrcnn_edu/backbone.py`](https://github.com/maskrcnn-edu/maskrcnn_edu/blob/main/maskrcnn_edu/backbone.py). You have written all of it but the norm over several devices, the folding of frozen norms and the seed's max-pooling.
#
# **Next:** chapter 04 puts boxes on the cells of these levels: anchors.
#
# ## Further reading
#
# - K. He, X. Zhang, S. Ren, J. Sun: *Deep Residual Learning for Image Recognition*, CVPR 2016. [arXiv:1512.03385](https://arxiv.org/abs/1512.03385)
# - T.-Y. Lin, P. Dollár, R. Girshick, K. He, B. Hariharan, S. Belongie: *Feature Pyramid Networks for Object Detection*, CVPR 2017. [arXiv:1612.03144](https://arxiv.org/abs/1612.03144)
# - W. Luo, Y. Li, R. Urtasun, R. Zemel: *Understanding the Effective Receptive Field in Deep Convolutional Neural Networks*, NeurIPS 2016. [arXiv:1701.04128](https://arxiv.org/abs/1701.04128)
# - A. Araujo, W. Norris, J. Sim: *Computing Receptive Fields of Convolutional Neural Networks*, Distill 2019. [distill.pub/2019/computing-receptive-fields](https://distill.pub/2019/computing-receptive-fields/)
# - Y. Wu, K. He: *Group Normalization*, ECCV 2018. [arXiv:1803.08494](https://arxiv.org/abs/1803.08494)
# - S. Ioffe, C. Szegedy: *Batch Normalization*, ICML 2015. [arXiv:1502.03167](https://arxiv.org/abs/1502.03167)

"""The backbone: a residual network (He et al., 2016) and the feature pyramid on top of it (Lin et al., 2017)."""

import math

import keras
from keras import layers

from maskrcnn_edu.backend import Conv2D, is_traced


@keras.saving.register_keras_serializable("maskrcnn_edu")
class FrozenNorm(layers.Layer):
    """Batch normalisation with fixed statistics, scale and shift: y = (x - mean) / sqrt(variance + eps) * gamma + beta.

    None of its weights is trainable, whatever `trainable` says: a detector sees too few images a step to re-estimate
    what ImageNet's batches gave (He et al., 2016, appendix A; "frozen BN" in Detectron2 and torchvision).

    `convolution`: the layer whose output this is. Given its input too, a compiled detection folds the norm into the
    kernel, w' = w * gamma / sqrt(variance + eps), and leaves the convolution that comes before it out.
    """

    def __init__(self, epsilon=1e-5, convolution=None, **kwargs):
        super().__init__(autocast=False, **kwargs)  # a sum of half-precision statistics would move every channel
        self.epsilon = epsilon
        self._convolution = lambda: convolution  # no attribute: its kernel is not among this layer's weights

    def build(self, x_shape, convolved_shape=None):
        for name, start in (
            ("gamma", "ones"),
            ("beta", "zeros"),
            ("moving_mean", "zeros"),
            ("moving_variance", "ones"),
        ):
            setattr(self, name, self.add_weight(name=name, shape=(x_shape[-1],), initializer=start, trainable=False))

    def call(self, x, convolved=None, training=False):
        scale = self.gamma * keras.ops.rsqrt(self.moving_variance + self.epsilon)
        shift = self.beta - self.moving_mean * scale
        layer = self._convolution()
        if layer is not None and not training and is_traced(x):  # x itself is not used then, so that nobody computes it
            kernel = keras.ops.cast(layer.kernel * scale, x.dtype)
            return layer.convolution_op(convolved, kernel) + keras.ops.cast(shift, x.dtype)
        return x * keras.ops.cast(scale, x.dtype) + keras.ops.cast(shift, x.dtype)

    def compute_output_spec(self, x, convolved=None, training=False):
        return keras.KerasTensor(x.shape, x.dtype)

    def get_config(self):
        return {**super().get_config(), "epsilon": self.epsilon}


def norm(x, kind, epsilon, name, convolution=None, convolved=None):
    """The normalisation `kind`: frozen | batch | sync | group | none, of what a convolution made of `convolved`."""
    if kind == "none":
        return x
    if kind == "frozen":
        return FrozenNorm(epsilon, convolution, name=name)(x, convolved)
    if kind == "group":  # Wu and He, 2018: 32 groups, or the most that divide the channels
        return layers.GroupNormalization(groups=math.gcd(32, x.shape[-1]), epsilon=epsilon, name=name)(x)
    # JAX computes as if on one device, so that there every batch is the whole one, and Keras has no synchronised form.
    synchronised = kind == "sync" and keras.backend.backend() == "tensorflow"
    return layers.BatchNormalization(momentum=0.9, epsilon=epsilon, synchronized=synchronised, name=name)(x)


def conv(x, channels, kernel, name, norm_kind="none", epsilon=1e-5, stride=1, activation=None, init="he_normal"):
    """Conv2D, norm, activation. Padding is symmetric and explicit: Keras' "same" is off by one at stride 2."""
    if stride > 1 and kernel > 1:
        x = layers.ZeroPadding2D(kernel // 2, name=f"{name}_pad")(x)
    padding = "same" if stride == 1 else "valid"
    convolution = Conv2D(
        channels, kernel, stride, padding, use_bias=norm_kind == "none", kernel_initializer=init, name=name
    )  # fmt: skip
    x = norm(convolution(x), norm_kind, epsilon, f"{name}_norm", convolution, x)
    return layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


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


def resnet(image, config):
    """Features C2, C3, ... at strides 4, 8, ...: (B, H, W, channels) -> list of (B, H / stride, W / stride, C)."""
    kind = {"norm_kind": config.backbone_norm, "epsilon": config.norm_epsilon}
    x = conv(image, config.stem_channels, 7, "stem", stride=2, activation="relu", **kind)
    padding = ((0, 1), (0, 1)) if config.stem_pool_same else 1
    x = layers.ZeroPadding2D(padding, name="stem_pool_pad")(x)  # 0 is neutral: what is pooled has passed a relu
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    features = []
    for stage, (blocks, channels) in enumerate(zip(config.stage_blocks, config.stage_channels, strict=True), start=2):
        for block in range(blocks):
            stride = 2 if block == 0 and stage > 2 else 1
            x = residual_block(x, channels, stride, config, f"res{stage}_{block}")
        features.append(x)
    return features


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


def build_backbone(config) -> keras.Model:
    """ResNet and FPN: normalised images (B, H, W, C) -> [P2, P3, ...]. H and W are multiples of config.size_divisor."""
    image = keras.Input((None, None, config.image_channels), name="normalised_image")
    return keras.Model(image, feature_pyramid(resnet(image, config), config), name="backbone")

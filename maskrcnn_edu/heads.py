"""The heads: what a RoI's feature says about its class, its box, its mask and its keypoints."""

import keras
from keras import layers, ops

from maskrcnn_edu.backbone import conv
from maskrcnn_edu.backend import Conv2D


def build_box_head(config) -> keras.Model:
    """Class and box of a RoI (Faster R-CNN with FPN, section 4.2).

    (N, P, P, C) -> class logits (N, classes) and deltas (N, classes - 1, 4): background has no box.
    """
    side = config.box_pool_size
    feature = x = keras.Input((side, side, config.fpn_channels), name="roi_feature")
    kind = {"norm_kind": config.head_norm, "epsilon": config.norm_epsilon, "activation": "relu"}
    for i, channels in enumerate(config.box_conv_channels, start=1):
        x = conv(x, channels, 3, f"box_conv{i}", **kind)
    x = layers.Flatten(name="box_flatten")(x)
    for i, units in enumerate(config.box_fc_channels, start=1):
        x = layers.Dense(units, "relu", name=f"box_fc{i}")(x)
    # Small first weights: class probabilities start level, boxes start where the proposals are (Fast R-CNN).
    logits = layers.Dense(config.num_classes, kernel_initializer=_normal(0.01), name="class_logits", dtype="float32")(x)
    deltas = layers.Dense(
        (config.num_classes - 1) * 4, kernel_initializer=_normal(0.001), name="box_deltas", dtype="float32"
    )(x)  # fmt: skip
    deltas = layers.Reshape((config.num_classes - 1, 4), name="box_deltas_by_class", dtype="float32")(deltas)
    return keras.Model(feature, [logits, deltas], name="box_head")


def build_mask_head(config) -> keras.Model:
    """Mask of a RoI, given its class: convolutions, a deconvolution that doubles the side, a predictor (figure 4).

    feature (N, P, P, C), classes (N,) from 1 -> mask logits (N, 2P, 2P), or (N, 2P, 2P, classes) for softmax masks.
    """
    side = config.mask_pool_size
    feature = x = keras.Input((side, side, config.fpn_channels), name="roi_feature")
    classes = keras.Input((), dtype="int32", name="classes")
    kind = {"norm_kind": config.head_norm, "epsilon": config.norm_epsilon, "activation": "relu"}
    for i, channels in enumerate(config.mask_conv_channels, start=1):
        x = conv(x, channels, 3, f"mask_conv{i}", **kind)
    x = Conv2DTranspose(
        x.shape[-1], 2, 2, "valid", activation="relu", kernel_initializer="he_normal", name="mask_deconv"
    )(x)
    if config.mask_activation == "softmax":  # all classes are needed, since they compete in every pixel
        logits = Conv2D(config.num_classes, 1, kernel_initializer=_normal(0.001), name="mask_logits", dtype="float32")(
            x
        )
    else:
        masks = 1 if config.class_agnostic_masks else config.num_classes - 1
        logits = MaskPredictor(masks, name="mask_logits", dtype="float32")(x, classes)
    return keras.Model([feature, classes], logits, name="mask_head")


def build_keypoint_head(config) -> keras.Model:
    """Keypoints of a RoI: convolutions, a deconvolution that doubles the side, bilinear doubling (paper section 5).

    feature (N, P, P, C) -> heatmaps (N, 4P, 4P, keypoints), the logits of one softmax over all cells a keypoint.
    """
    side = config.keypoint_pool_size
    feature = x = keras.Input((side, side, config.fpn_channels), name="roi_feature")
    kind = {"norm_kind": config.head_norm, "epsilon": config.norm_epsilon, "activation": "relu"}
    for i, channels in enumerate(config.keypoint_conv_channels, start=1):
        x = conv(x, channels, 3, f"keypoint_conv{i}", **kind)
    x = layers.Conv2DTranspose(
        config.keypoints, 4, 2, "same", kernel_initializer=_normal(0.001), name="keypoint_logits", dtype="float32"
    )(x)
    x = layers.UpSampling2D(2, interpolation="bilinear", name="keypoint_up", dtype="float32")(x)
    return keras.Model(feature, x, name="keypoint_head")


@keras.saving.register_keras_serializable("maskrcnn_edu")
class Conv2DTranspose(layers.Conv2DTranspose):
    """A transposed convolution whose stride is its kernel's side: every cell becomes a block, and no blocks overlap.

    So it is one matrix product, cell (C) -> block (k, k, D). As a general transposed convolution, XLA on a CPU needs 40
    times as long for its gradient.
    """

    def call(self, x):
        (side, _, units, channels), (height, width) = self.kernel.shape, x.shape[1:3]
        kernel = ops.reshape(ops.transpose(self.kernel, (3, 0, 1, 2)), (channels, side * side * units))
        blocks = ops.reshape(ops.matmul(x, kernel), (-1, height, width, side, side, units))
        blocks = ops.transpose(blocks, (0, 1, 3, 2, 4, 5))
        return self.activation(ops.reshape(blocks, (-1, height * side, width * side, units)) + self.bias)


@keras.saving.register_keras_serializable("maskrcnn_edu")
class MaskPredictor(layers.Layer):
    """A 1x1 convolution with one output a class, of which only the asked class's is computed.

    x (N, H, W, C), classes (N,) from 1 -> logits (N, H, W). With a single output it serves every class.
    """

    def __init__(self, masks, **kwargs):
        super().__init__(**kwargs)
        self.masks = masks

    def build(self, x_shape, classes_shape):
        self.kernel = self.add_weight(name="kernel", shape=(self.masks, x_shape[-1]), initializer=_normal(0.001))
        self.bias = self.add_weight(name="bias", shape=(self.masks,), initializer="zeros")

    def call(self, x, classes):
        channel = ops.clip(classes, 1, self.masks) - 1  # an empty slot has class 0; nobody looks at its mask
        kernel, bias = ops.take(self.kernel, channel, axis=0), ops.take(self.bias, channel, axis=0)
        return ops.einsum("nhwc,nc->nhw", x, kernel) + bias[:, None, None]

    def compute_output_spec(self, x, classes):
        return keras.KerasTensor(x.shape[:-1], dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "masks": self.masks}


def _normal(stddev):
    return keras.initializers.RandomNormal(stddev=stddev)

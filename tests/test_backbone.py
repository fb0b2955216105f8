"""What of the backbone the oracles do not show."""

import keras
import numpy as np

import maskrcnn_edu as mr
from maskrcnn_edu.backbone import FrozenNorm, build_backbone
from maskrcnn_edu.backend import compiled


def test_a_compiled_detection_folds_the_frozen_norms_into_the_kernels():
    keras.utils.set_random_seed(0)
    config = mr.Config.coco(stage_blocks=(1, 1), stage_channels=(16, 32), stem_channels=8, fpn_channels=8,
        anchor_sizes=(32, 64, 128), size_divisor=8)  # fmt: skip
    backbone, rng = build_backbone(config), np.random.default_rng(0)
    norms = [layer for layer in backbone.layers if isinstance(layer, FrozenNorm)]
    assert len(norms) > 8
    for norm in norms:
        assert len(norm.weights) == 4 and not norm.trainable_weights  # the kernel before it is the convolution's
        for variable, (low, high) in zip(norm.weights, [(0.5, 2), (-1, 1), (-1, 1), (0.1, 3)], strict=True):
            variable.assign(rng.uniform(low, high, variable.shape))
    image = rng.normal(size=(1, 64, 96, 3)).astype(np.float32)
    plain = backbone(image)  # an eager call does not fold, nor does training
    for training in (False, True):
        found = compiled(lambda x, t=training: backbone(x, training=t), backbone)(image)
        for mine, theirs in zip(found, plain, strict=True):
            theirs = np.asarray(theirs)
            np.testing.assert_allclose(mine, theirs, atol=2e-5 * np.abs(theirs).max())

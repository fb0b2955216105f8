"""Presets: settings that belong together, each with where they come from; `Config.tiny()` is one."""

import dataclasses

from maskrcnn_edu.errors import InputError

# The fields that are a recipe: how a network is trained, not which one it is.
RECIPE = (
    "horizontal_flip", "image_min_sizes_training", "large_scale_jitter", "jitter_size", "copy_paste", "colour_jitter",
    "quarter_turns", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "gradient_clip",
    "train_steps", "warmup_steps", "warmup_factor", "schedule", "lr_steps", "gradient_accumulation", "ema",
    "trainable", "trainable_steps", "loss_weights",
)  # fmt: skip


def of_one_size(changes) -> dict:
    """`changes` of fields; those that set another image size also end a recipe's own short sides, unless they say."""
    other = {"image_min_size", "image_max_size"} & set(changes)
    return {"image_min_sizes_training": (), **changes} if other else dict(changes)


def scaled(config, reference):
    """`config`, whose batches differ from those of `reference`, with the learning rate and the steps that suit them.

    The rate is in proportion to the images an update (Goyal et al., 2017, section 2.1); steps and warm-up, which count
    batches, hold as many images in all.
    """
    images = [c.batch_size * c.gradient_accumulation for c in (config, reference)]
    longer = reference.batch_size / config.batch_size
    return dataclasses.replace(
        config, learning_rate=reference.learning_rate * images[0] / images[1],
        train_steps=max(1, round(reference.train_steps * longer)),
        warmup_steps=round(reference.warmup_steps * longer),
    )  # fmt: skip


class Presets:
    """The class methods of Config that build it; each takes changes, as in `Config.tiny(batch_size=4)`."""

    @classmethod
    def coco(cls, depth: int = 50, **changes):
        """Detectron2's Mask R-CNN R50-FPN or R101-FPN on COCO, 1x schedule; any field can be changed."""
        blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
        if depth not in blocks:
            raise InputError(f"Config.coco: depth is {depth}; choose 50 or 101.")
        return cls(**{"stage_blocks": blocks[depth], **changes})

    @classmethod
    def detectron2(cls, depth: int = 50, **changes):
        """Detectron2's mask_rcnn_R_50_FPN_3x or R_101 as published, for its weights: 81 classes, background first.

        Its recipe keeps the stem and the first stage of the ResNet as ImageNet left them (FREEZE_AT 2).
        """
        return cls.coco(depth, **{
            "pixel_std": (1.0, 1.0, 1.0), "sampling_ratio": 0, "train_steps": 270_000,
            "lr_steps": (210 / 270, 250 / 270), "trainable": ("3+",),
            "image_min_sizes_training": (640, 672, 704, 736, 768, 800), **of_one_size(changes),
        })  # fmt: skip

    @classmethod
    def detectron2_1x(cls, depth: int = 50, **changes):
        """Detectron2's mask_rcnn_R_50_FPN_1x: 12 epochs of COCO, from ImageNet."""
        return cls.detectron2(depth, **{"train_steps": 90_000, "lr_steps": (60 / 90, 80 / 90), **changes})

    @classmethod
    def lsj_100(cls, depth: int = 50, **changes):
        """Detectron2's new baseline mask_rcnn_R_50_FPN_100ep_LSJ: from scratch, norms everywhere, 64 images a step.

        Source: configs/new_baselines. There in float16; here Config's precision stays to be chosen.
        """
        return cls.detectron2(depth, **{
            "backbone_norm": "sync", "fpn_norm": "sync", "head_norm": "sync", "rpn_convs": 2,
            "box_conv_channels": (256,) * 4, "box_fc_channels": (1024,), "trainable": ("all",),
            "image_min_sizes_training": (), "large_scale_jitter": (0.1, 2.0), "jitter_size": 1024,
            "batch_size": 64, "learning_rate": 0.1, "weight_decay": 4e-5, "warmup_steps": 500, "warmup_factor": 0.067,
            "train_steps": 184_375, "lr_steps": (163_889 / 184_375, 177_546 / 184_375),
            **changes,
        })  # fmt: skip

    @classmethod
    def lsj_400(cls, depth: int = 50, **changes):
        """Detectron2's new baseline mask_rcnn_R_50_FPN_400ep_LSJ: lsj_100, four times as long."""
        return cls.lsj_100(depth, **{"train_steps": 4 * 184_375, **changes})

    @classmethod
    def finetune(cls, depth: int = 50, **changes):
        """A recipe of ours for some 300 photographs, from COCO weights: 13 epochs, a cosine from a low rate.

        The rate is Detectron2's for 2 images a step by the linear rule; the length is about that of torchvision's
        fine-tuning tutorial (10 epochs).
        """
        return cls.detectron2(depth, **{
            "batch_size": 2, "learning_rate": 0.0025, "train_steps": 2000, "warmup_steps": 200, "schedule": "cosine",
            "gradient_clip": 10.0, **changes,
        })  # fmt: skip

    @classmethod
    def torchvision(cls, **changes):
        """torchvision's maskrcnn_resnet50_fpn as published, for its weights: COCO's raw ids 1..90, so 91 classes."""
        return cls(**{
            "num_classes": 91, "resize": "torchvision", "stride_in_1x1": False, "norm_epsilon": 0.0,
            "anchor_rounding": True, "rpn_min_size": 1e-3, "rpn_smooth_l1_beta": 1 / 9, "proposals_training": 2000,
            "roi_aligned": False, "box_smooth_l1_beta": 1 / 9, "detection_min_size": 1e-2, "mask_paste": "torchvision",
            "soft_masks": True,
            **changes,
        })  # fmt: skip

    @classmethod
    def torchvision_v2(cls, **changes):
        """torchvision's maskrcnn_resnet50_fpn_v2: norms everywhere, two RPN convolutions, a convolutional box head."""
        return cls.torchvision(**{
            "norm_epsilon": 1e-5, "backbone_norm": "batch", "fpn_norm": "batch", "head_norm": "batch", "rpn_convs": 2,
            "box_conv_channels": (256,) * 4, "box_fc_channels": (1024,), **changes,
        })  # fmt: skip

    @classmethod
    def matterport(cls, depth: int = 101, **changes):
        """The seed's COCO model as published, for its weights: 1024-pixel squares, RoIs by crop-and-resize.

        Its recipe (samples/coco/coco.py) is 160 epochs of 1000 steps: 40 for the heads, 80 for stage 4 and up, 40 for
        all layers at a tenth of the rate. Weight decay is as elsewhere here; the seed divides each weight's share of it
        by the number of weights in the layer.
        """
        return cls.coco(depth, **{
            "resize": "matterport", "image_max_size": 1024, "size_divisor": 64, "pixel_mean": (123.7, 116.8, 103.9),
            "pixel_std": (1.0, 1.0, 1.0), "stem_pool_same": True, "norm_epsilon": 1e-3, "head_norm": "frozen",
            "anchor_ratios": (2.0, 1.0, 0.5), "box_frame": "matterport", "rpn_channels": 512,
            "proposal_choice": "joint", "proposals_per_level": 6000, "proposals_per_level_training": 6000,
            "proposals_training": 2000, "roi_sampler": "crop_and_resize", "roi_level_rounding": "nearest",
            "roi_batch_size": 200, "roi_positive_fraction": 0.33, "rpn_smooth_l1_beta": 1.0, "box_smooth_l1_beta": 1.0,
            "detection_rule": "best_class", "detection_score_threshold": 0.7, "detection_nms_threshold": 0.3,
            "mask_paste": "matterport", "learning_rate": 0.001, "batch_size": 2, "gradient_clip": 5.0,
            "train_steps": 160_000, "lr_steps": (120 / 160,), "warmup_steps": 0,
            "trainable": ("heads", "4+", "all"), "trainable_steps": (40 / 160, 120 / 160),
            **changes,
        })  # fmt: skip

    @classmethod
    def torchvision_keypoint(cls, **changes):
        """torchvision's keypointrcnn_resnet50_fpn as published: persons, their boxes and 17 keypoints, no masks."""
        return cls.torchvision(**{
            "num_classes": 2, "mask_head": False, "keypoints": 17, "keypoint_offset": 0.0, "keypoint_visibility": "one",
            **changes,
        })  # fmt: skip

    @classmethod
    def detectron2_keypoint(cls, **changes):
        """Detectron2's keypoint_rcnn_R_50_FPN_3x as published: persons, their boxes and 17 keypoints, no masks."""
        return cls.detectron2(**{
            "num_classes": 2, "mask_head": False, "keypoints": 17, "box_smooth_l1_beta": 0.5,
            "proposals_training": 1500, **changes,
        })  # fmt: skip

    @classmethod
    def small(cls, **changes):
        """For photographs on a laptop, from scratch: 256-pixel images, an 11-layer ResNet, batch normalisation."""
        return cls.tiny(**{
            "num_classes": 81, "image_min_size": 256, "image_max_size": 320, "stem_channels": 32,
            "stage_blocks": (1, 1, 1, 1), "stage_channels": (64, 128, 256, 256), "fpn_channels": 96, "rpn_channels": 96,
            "anchor_sizes": (16, 32, 64, 128), "size_divisor": 32, "roi_canonical_size": 112,
            "roi_canonical_level": 4, "proposals_training": 200, "proposals": 200, "proposals_per_level": 200,
            "proposals_per_level_training": 200, "rpn_batch_size": 128, "roi_batch_size": 64,
            "box_fc_channels": (256, 256), "mask_conv_channels": (64, 64), "batch_size": 4, "max_instances": 60,
            "learning_rate": 1e-3, "train_steps": 2000,
            **changes,
        })  # fmt: skip

    @classmethod
    def tiny(cls, **changes):
        """For Shapes on two CPU cores: 128-pixel images, three stages, under a million parameters."""
        return cls(**{
            "num_classes": 4, "image_min_size": 128, "image_max_size": 128, "size_divisor": 32, "max_instances": 16,
            "stem_channels": 16, "bottleneck": False, "stage_blocks": (1, 1, 1), "stage_channels": (32, 64, 128),
            "backbone_norm": "batch", "fpn_channels": 48, "extra_level": False, "anchor_sizes": (16, 32, 64),
            "rpn_channels": 48, "rpn_batch_size": 64, "proposals_per_level_training": 100, "proposals_training": 60,
            "proposals_per_level": 100, "proposals": 60, "roi_canonical_size": 32, "roi_canonical_level": 3,
            "roi_batch_size": 32, "roi_positive_fraction": 0.33, "box_fc_channels": (128, 128),
            "mask_conv_channels": (32, 32), "batch_size": 8, "optimizer": "adamw", "learning_rate": 3e-3,
            "weight_decay": 1e-4, "gradient_clip": 1.0, "train_steps": 1400, "warmup_steps": 100, "warmup_factor": 0.01,
            "schedule": "cosine", "max_detections": 50,
            **changes,
        })  # fmt: skip

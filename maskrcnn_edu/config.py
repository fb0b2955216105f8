"""Config: every number of Mask R-CNN that the paper and the reference systems name."""

import dataclasses

from maskrcnn_edu.config_values import checked
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.presets import Presets


def _field(default, doc):
    return dataclasses.field(default=default, metadata={"doc": doc})


@dataclasses.dataclass(frozen=True)
class Config(Presets):
    """A frozen record of every setting; `dataclasses.replace(config, field=value)` makes a changed copy.

    The defaults are Detectron2's Mask R-CNN R50-FPN (base configuration and 1x schedule) where it agrees with the
    paper, and the source is named where they are not. Paper: He et al., Mask R-CNN, 2017; FPN: Lin et al., Feature
    Pyramid Networks, 2017; Faster R-CNN: Ren et al., 2015. Lengths are pixels of the network's input.

    Raises:
        InputError (a ValueError): a value that cannot be, with the field's name.
    """

    # Classes
    num_classes: int = _field(81, "Classes, background (0) included. COCO: 80 + 1.")

    # The image on its way in
    image_channels: int = _field(3, "Channels of an image, uint8 each: 3 for RGB (the paper), 1 for grey, or more.")
    image_min_size: int = _field(800, "The short side is resized to this (FPN section 5.1) ...")
    image_max_size: int = _field(1333, "... unless the long side would pass this (Detectron2, torchvision).")
    resize: str = _field(
        "detectron2",
        "detectron2: Pillow, antialiased, uint8 | torchvision: plain bilinear, float, rounded down | "
        "matterport: enlarged only, centred in a square.",
    )
    size_divisor: int = _field(
        32, "Images are padded right and below to a multiple of this: the coarsest stride of FPN."
    )
    pixel_mean: tuple = _field(
        (123.675, 116.28, 103.53),
        "Subtracted from 0..255 (torchvision, Detectron2): a number a channel, or one for all. Three are RGB's: for "
        "other channels they become their mean.",
    )
    pixel_std: tuple = _field(
        (58.395, 57.12, 57.375), "Divides what is left (torchvision; Detectron2's ResNets use 1). As pixel_mean."
    )
    max_instances: int = _field(100, "Slots for ground truth in an image (the seed's MAX_GT_INSTANCES).")
    mask_crop_size: int = _field(
        56, "Ground-truth masks travel cropped to their box at this side (the seed's mini masks)."
    )

    # Augmentation of training images
    horizontal_flip: bool = _field(True, "Flip half of the training images left to right (FPN section 5.1).")
    image_min_sizes_training: tuple = _field(
        (), "Short sides to draw from, instead of image_min_size (Detectron2: 640, 672, 704, 736, 768, 800)."
    )
    large_scale_jitter: tuple = _field(
        (), "Smallest and largest scale: 0.1, 2.0 (Ghiasi et al., Simple Copy-Paste, 2021, section 3). Empty: off."
    )
    jitter_size: int = _field(
        1024, "Scale 1 fits this square; it is then cropped at random, or padded, to it (Ghiasi et al.)."
    )
    copy_paste: float = _field(0.0, "Share of images that get some objects of another one (Ghiasi et al.: 1).")
    colour_jitter: tuple = _field(
        (), "Most that brightness, contrast and saturation change: 0.4, 0.4, 0.4 (torchvision's ColorJitter)."
    )
    quarter_turns: bool = _field(
        False, "Turn by 0, 90, 180 or 270 degrees: for pictures without an up (Cohen and Welling, 2016)."
    )

    # Backbone: ResNet (He et al., 2016) and FPN
    stem_channels: int = _field(64, "Channels of the 7 x 7 convolution that starts a ResNet.")
    stem_pool_same: bool = _field(False, "Max-pooling of the stem pads below and right alone (Keras' same; the seed).")
    bottleneck: bool = _field(True, "Blocks of 1x1, 3x3, 1x1 convolutions; False: two 3x3, as in ResNet-18 and 34.")
    stage_blocks: tuple = _field((3, 4, 6, 3), "Blocks a stage, from C2: ResNet-50 (3,4,6,3), ResNet-101 (3,4,23,3).")
    stage_channels: tuple = _field((256, 512, 1024, 2048), "Channels that each stage puts out.")
    stride_in_1x1: bool = _field(
        True, "The block's stride sits in its first 1x1 (paper, Detectron2), not in the 3x3 (torchvision)."
    )
    backbone_norm: str = _field(
        "frozen", "frozen | batch | sync | group | none. Frozen: fine-tuning (paper). Sync: over all devices."
    )
    norm_epsilon: float = _field(1e-5, "Added to the variance in every norm (Detectron2 1e-5, the seed 1e-3).")
    fpn_channels: int = _field(256, "Channels of every pyramid level (FPN section 4).")
    fpn_norm: str = _field("none", "Norm after each FPN convolution: batch | sync | group | none (paper: none).")
    extra_level: bool = _field(True, "One more, coarser level by subsampling (P6; FPN section 4.1). RPN only.")

    precision: str = _field(
        "float32", "float32 | bfloat16 | float16: of convolutions and dense layers; weights and losses stay float32."
    )

    # Anchors and region proposals
    anchor_sizes: tuple = _field(
        (32.0, 64.0, 128.0, 256.0, 512.0), "Side of the square anchor on each level, finest first (FPN 4.1)."
    )
    anchor_ratios: tuple = _field((0.5, 1.0, 2.0), "Height / width of the anchors of a cell (Faster R-CNN 3.1.1).")
    anchor_rounding: bool = _field(False, "Round anchors to whole pixels; a stride is size // cells (torchvision).")
    box_frame: str = _field("continuous", "continuous | matterport: y2 and x2 are last pixels inside the network.")
    rpn_channels: int = _field(256, "Channels inside the RPN head (FPN 256, the seed 512).")
    rpn_convs: int = _field(1, "3x3 convolutions in the RPN head (torchvision v2: 2).")
    rpn_positive_threshold: float = _field(0.7, "Anchors of at least this IoU are positive (Faster R-CNN 3.1.2).")
    rpn_negative_threshold: float = _field(0.3, "Anchors below this IoU are negative (Faster R-CNN 3.1.2).")
    rpn_batch_size: int = _field(256, "Anchors sampled for the loss, an image (Faster R-CNN 3.1.3).")
    rpn_positive_fraction: float = _field(0.5, "At most this share of them positive (Faster R-CNN 3.1.3).")
    rpn_smooth_l1_beta: float = _field(0.0, "Where smooth L1 turns linear; 0 is plain L1 (torchvision 1/9).")
    proposal_choice: str = _field("per_level", "per_level (FPN) | joint: the best of all levels together (the seed).")
    rpn_nms_threshold: float = _field(0.7, "Proposals above this IoU with a better one are dropped (Faster R-CNN 3.3).")
    rpn_min_size: float = _field(0.0, "Proposals with a side not above this are dropped (torchvision 1e-3).")
    proposals_per_level_training: int = _field(2000, "Best proposals a level before NMS, training (Detectron2).")
    proposals_training: int = _field(
        1000, "Best proposals an image after NMS, training (Detectron2; torchvision 2000)."
    )
    proposals_per_level: int = _field(1000, "Best proposals a level before NMS, detection (FPN section 5.1.1).")
    proposals: int = _field(1000, "Best proposals an image after NMS, detection (paper section 3.1).")

    # Regions of interest
    roi_sampler: str = _field(
        "roi_align", "roi_align (paper section 3) | roi_pool (Fast R-CNN) | crop_and_resize (the seed)."
    )
    sampling_ratio: int = _field(
        2, "Samples a bin and axis in RoIAlign (torchvision 2); 0: as many as cells (Detectron2)."
    )
    roi_aligned: bool = _field(
        True, "Shift RoIs by half a cell, so that cell centres are at .5 (Detectron2; torchvision not)."
    )
    roi_level_rounding: str = _field("floor", "floor (FPN equation 1) | nearest (the seed).")
    roi_canonical_size: int = _field(224, "A RoI of this side is read from the canonical level (FPN equation 1).")
    roi_canonical_level: int = _field(4, "k0 of FPN equation 1.")
    roi_batch_size: int = _field(512, "RoIs sampled for the heads' losses, an image (FPN section 5.2).")
    roi_positive_fraction: float = _field(0.25, "At most this share of them positive (paper section 3.1).")
    roi_threshold: float = _field(0.5, "RoIs of at least this IoU are positive (paper section 3.1).")

    # Box head
    box_pool_size: int = _field(7, "Side of the RoI feature that the box head reads.")
    box_conv_channels: tuple = _field((), "Convolutions before the dense layers (torchvision v2: four of 256).")
    box_fc_channels: tuple = _field((1024, 1024), "Dense layers (FPN section 4.2).")
    head_norm: str = _field("none", "Norm after the convolutions of the heads: frozen | batch | sync | group | none.")
    box_delta_weights: tuple = _field((10.0, 10.0, 5.0, 5.0), "Scale of dy, dx, dh, dw in the box head (Fast R-CNN).")
    box_smooth_l1_beta: float = _field(0.0, "Where smooth L1 turns linear; 0 is plain L1 (torchvision 1/9).")

    # Mask head
    mask_head: bool = _field(True, "False: Faster R-CNN, boxes only.")
    mask_pool_size: int = _field(14, "Side of the RoI feature that the mask head reads; masks come out twice as large.")
    mask_conv_channels: tuple = _field((256, 256, 256, 256), "Convolutions before the deconvolution (paper figure 4).")
    class_agnostic_masks: bool = _field(
        False, "One mask for all classes instead of one a class (paper section 4.1, table 2)."
    )
    mask_activation: str = _field("sigmoid", "sigmoid | softmax over the classes, which compete then (paper table 2b).")

    # Keypoint head
    keypoints: int = _field(0, "Keypoints of an object (COCO's persons: 17); 0: no keypoint head (paper section 5).")
    keypoint_pool_size: int = _field(14, "Side of the RoI feature that it reads; heatmaps are four times as large.")
    keypoint_conv_channels: tuple = _field((512,) * 8, "Convolutions before the deconvolution (paper section 5).")
    keypoint_offset: float = _field(0.5, "COCO's pixel 0 is at this coordinate: its middle (torchvision 0).")
    keypoint_visibility: str = _field(
        "score", "Third column of detected keypoints: score, the probability (Detectron2) | one (torchvision)."
    )
    keypoint_loss_weight: float = _field(1.0, "Of the keypoint loss (Detectron2, torchvision).")

    soft_masks: bool = _field(False, "Mask targets keep the covered share of a cell (torchvision); else 0 or 1.")

    # Detections
    detection_rule: str = _field("every_class", "every_class of a RoI may be detected | best_class alone (the seed).")
    detection_score_threshold: float = _field(0.05, "Detections must score above this (Detectron2, torchvision).")
    detection_nms_threshold: float = _field(0.5, "NMS within a class (Detectron2, torchvision; the seed 0.3).")
    detection_min_size: float = _field(0.0, "Detections with a side not above this are dropped (torchvision 1e-2).")
    max_detections: int = _field(100, "Best detections an image (paper section 3.1).")
    mask_threshold: float = _field(0.5, "A pixel belongs to a mask from this probability on (paper section 3.1).")
    mask_paste: str = _field("detectron2", "detectron2 | torchvision: how masks are resized into their box.")

    # Training
    batch_size: int = _field(16, "Images a step (Detectron2, 8 GPUs x 2).")
    optimizer: str = _field("sgd", "sgd (with momentum) | adamw.")
    learning_rate: float = _field(0.02, "Peak learning rate, for batch_size images a step (Goyal et al., 2017).")
    momentum: float = _field(0.9, "Of SGD.")
    weight_decay: float = _field(1e-4, "L2 on all that learns but norms (Detectron2); sgd: through the momentum.")
    gradient_clip: float = _field(0.0, "Largest global norm of the gradient; 0: no clipping.")
    train_steps: int = _field(90_000, "Steps of a training run (Detectron2's 1x).")
    warmup_steps: int = _field(1000, "Steps of linear warm-up.")
    warmup_factor: float = _field(0.001, "The learning rate starts at this share of its peak.")
    schedule: str = _field("steps", "steps: divide by 10 at lr_steps | cosine: to 0 over train_steps.")
    lr_steps: tuple = _field((2 / 3, 8 / 9), "Where to divide the learning rate, as shares of train_steps.")
    gradient_accumulation: int = _field(1, "Batches whose gradients are averaged into one update of the weights.")
    ema: float = _field(0.0, "Momentum of a moving average of the weights, which is saved and evaluated; 0: none.")
    trainable: tuple = _field(
        ("all",),
        "Layers that learn: heads | 3+ | 4+ | 5+ (the ResNet from that stage on; Detectron2: 3+) | all | a regular "
        "expression on their names; several take turns (the seed).",
    )
    trainable_steps: tuple = _field((), "Where the next of `trainable` takes over, as shares of train_steps.")
    loss_weights: tuple = _field((1.0, 1.0, 1.0, 1.0, 1.0), "Of RPN class, RPN box, class, box, mask (the seed).")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = checked(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        self._check_together()

    def _check_together(self):
        """Conditions that involve more than one field."""
        if self.num_classes < 2:
            raise InputError(
                f"Config.num_classes is {self.num_classes}; it counts the background too, so give at least 2."
            )
        if self.image_max_size < self.image_min_size:
            raise InputError(
                f"Config.image_max_size is {self.image_max_size}, below image_min_size {self.image_min_size}; raise it."
            )
        if len(self.stage_blocks) != len(self.stage_channels):
            raise InputError("Config.stage_blocks and Config.stage_channels must have one entry a stage each.")
        if self.bottleneck and min(self.stage_channels) < 4:
            raise InputError(f"Config.stage_channels is {self.stage_channels}; a bottleneck needs at least 4 channels.")
        if self.num_levels < 2:
            raise InputError("Config.stage_blocks has one stage; the pyramid needs a second one, or extra_level.")
        if len(self.anchor_sizes) != self.num_levels:
            raise InputError(
                f"Config.anchor_sizes has {len(self.anchor_sizes)} entries; the pyramid has {self.num_levels} levels."
            )
        if self.size_divisor % self.strides[-1 - self.extra_level]:
            raise InputError(
                f"Config.size_divisor is {self.size_divisor}; it must be a multiple of the backbone's coarsest stride, "
                f"{self.strides[-1 - self.extra_level]}."
            )
        if self.rpn_negative_threshold > self.rpn_positive_threshold:
            raise InputError("Config.rpn_negative_threshold is above rpn_positive_threshold; lower it.")
        if self.mask_head and self.class_agnostic_masks and self.mask_activation == "softmax":
            raise InputError(
                "Config.mask_activation softmax needs one mask a class; set class_agnostic_masks to False."
            )
        if self.keypoints and self.box_frame != "continuous":
            raise InputError("Config.keypoints need box_frame continuous; set one of the two.")
        for name, length in (("box_delta_weights", 4), ("loss_weights", 5)):
            if len(getattr(self, name)) != length:
                raise InputError(f"Config.{name} needs {length} numbers; it has {len(getattr(self, name))}.")
        if len(self.trainable_steps) != len(self.trainable) - 1 or list(self.trainable_steps) != sorted(
            self.trainable_steps
        ):
            raise InputError(
                f"Config.trainable_steps is {self.trainable_steps}; give rising shares, one less than trainable has."
            )
        if not any(self.loss_weights):
            raise InputError("Config.loss_weights are all 0, so nothing would be learnt; give one that is not.")
        self._check_channels()
        self._check_augmentation()

    def _check_channels(self):
        """A pixel mean and deviation for each channel, or one for all."""
        for name in ("pixel_mean", "pixel_std"):
            values = getattr(self, name)
            if len(values) == 3 != self.image_channels:  # RGB's, from a preset
                object.__setattr__(self, name, (sum(values) / 3,))
            elif len(values) not in (1, self.image_channels):
                raise InputError(
                    f"Config.{name} has {len(values)} numbers for image_channels {self.image_channels}; give one a "
                    "channel, or one for all."
                )

    def _check_augmentation(self):
        """What the loader can do to training images."""
        sizes, jitter, colour = self.image_min_sizes_training, self.large_scale_jitter, self.colour_jitter
        if sizes and max(sizes) > self.image_max_size:
            raise InputError(
                f"Config.image_min_sizes_training has {max(sizes)}, above image_max_size {self.image_max_size}; "
                "lower it."
            )
        if jitter and (len(jitter) != 2 or jitter[0] > jitter[1]):
            raise InputError(f"Config.large_scale_jitter is {jitter}; give the smallest and the largest scale.")
        if jitter and sizes:
            raise InputError("Config.large_scale_jitter and image_min_sizes_training exclude each other; empty one.")
        if colour and len(colour) != 3:
            raise InputError(f"Config.colour_jitter is {colour}; give three, for brightness, contrast and saturation.")
        if colour and colour[2] and self.image_channels != 3:
            raise InputError(
                f"Config.colour_jitter changes the saturation of RGB, but image_channels is {self.image_channels}; "
                "set its third number to 0."
            )

    @property
    def num_levels(self) -> int:
        """Levels of the pyramid: one a stage, and the extra one."""
        return len(self.stage_blocks) + int(self.extra_level)

    @property
    def strides(self) -> tuple:
        """Pixels of the input to a cell of each level, finest (P2: 4) first."""
        return tuple(4 * 2**level for level in range(self.num_levels))

    @property
    def canvas_size(self) -> int:
        """Side of the square that images are padded to in a batch: image_max_size, rounded up to size_divisor."""
        return self.round_up(self.image_max_size)

    @property
    def training_canvas_size(self) -> int:
        """As canvas_size, for training: large-scale jitter has a square of its own."""
        return self.round_up(self.jitter_size) if self.large_scale_jitter else self.canvas_size

    def round_up(self, length: int) -> int:
        """`length` pixels, rounded up to a multiple of size_divisor."""
        return -(-int(length) // self.size_divisor) * self.size_divisor


PRESETS = {
    "tiny": Config.tiny, "small": Config.small, "coco": Config.coco, "detectron2": Config.detectron2,
    "matterport": Config.matterport, "torchvision": Config.torchvision, "torchvision_v2": Config.torchvision_v2,
    "torchvision_keypoint": Config.torchvision_keypoint, "detectron2_keypoint": Config.detectron2_keypoint,
    "detectron2_1x": Config.detectron2_1x, "lsj_100": Config.lsj_100, "lsj_400": Config.lsj_400,
    "finetune": Config.finetune,
}  # fmt: skip

"""What a field of Config may hold: the words, the ranges, and the sentence for what it may not."""

import re
from collections.abc import Sequence

from maskrcnn_edu.errors import InputError

# Values that a field written in words may take.
CHOICES = {
    "backbone_norm": ("frozen", "batch", "sync", "group", "none"),
    "fpn_norm": ("batch", "sync", "group", "none"),
    "head_norm": ("frozen", "batch", "sync", "group", "none"),
    "roi_sampler": ("roi_align", "roi_pool", "crop_and_resize"),
    "mask_activation": ("sigmoid", "softmax"),
    "mask_paste": ("detectron2", "torchvision", "matterport"),
    "keypoint_visibility": ("score", "one"),
    "resize": ("detectron2", "torchvision", "matterport"),
    "box_frame": ("continuous", "matterport"),
    "proposal_choice": ("per_level", "joint"),
    "detection_rule": ("every_class", "best_class"),
    "roi_level_rounding": ("floor", "nearest"),
    "precision": ("float32", "bfloat16", "float16"),
    "optimizer": ("sgd", "adamw"),
    "schedule": ("steps", "cosine"),
}
# Fields that may be 0; every other number must be positive.
MAY_BE_ZERO = {
    "sampling_ratio", "rpn_min_size", "rpn_smooth_l1_beta", "box_smooth_l1_beta", "detection_score_threshold",
    "rpn_negative_threshold", "weight_decay", "momentum", "warmup_steps", "gradient_clip", "loss_weights",
    "detection_nms_threshold", "rpn_nms_threshold", "detection_min_size", "norm_epsilon", "keypoints",
    "keypoint_offset", "copy_paste", "colour_jitter", "ema",
}  # fmt: skip
# Fields that are a share or a threshold: between 0 and 1.
FRACTIONS = {
    "rpn_positive_threshold", "rpn_negative_threshold", "rpn_positive_fraction", "rpn_nms_threshold", "roi_threshold",
    "roi_positive_fraction", "detection_score_threshold", "detection_nms_threshold", "mask_threshold", "momentum",
    "warmup_factor", "lr_steps", "copy_paste", "colour_jitter", "ema", "trainable_steps",
}  # fmt: skip
ANY_SIGN = {"pixel_mean"}
BELOW_ONE = {
    "detection_score_threshold",
    "momentum",
    "ema",
    "trainable_steps",
}  # at 1 nothing would be found, or learnt
LARGEST = 1e9  # of any number: more is a slip of the keyboard
MAY_BE_EMPTY = {
    "box_conv_channels", "mask_conv_channels", "keypoint_conv_channels", "lr_steps", "image_min_sizes_training",
    "large_scale_jitter", "colour_jitter", "trainable_steps",
}  # fmt: skip
WHOLE = {"box_conv_channels", "image_min_sizes_training"}  # empty by default, but of whole numbers


def checked(field, value):
    """`value` of `field` in the field's own type (lists become tuples), or an InputError with its name."""
    name, kind = f"Config.{field.name}", type(field.default)
    value = value.tolist() if hasattr(value, "tolist") else value  # NumPy's arrays and numbers
    if field.name == "trainable":
        return _checked_patterns(name, value)
    if kind is tuple:
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            raise InputError(f"{name} is {value!r}; give a list of numbers.")
        if not value and field.name not in MAY_BE_EMPTY:
            raise InputError(f"{name} is empty; give at least one number.")
        whole = field.default and all(isinstance(v, int) for v in field.default)
        whole = whole or field.name in WHOLE
        return tuple(_checked_number(field.name, name, v, int if whole else float) for v in value)
    if kind is bool:
        if not isinstance(value, bool):
            raise InputError(f"{name} is {value!r}; give True or False.")
        return value
    if kind is str:
        if not isinstance(value, str) or value not in CHOICES[field.name]:
            raise InputError(f"{name} is {value!r}; choose one of {', '.join(CHOICES[field.name])}.")
        return value
    return _checked_number(field.name, name, value, kind)


def _checked_patterns(name, value):
    """One regular expression, or several, as a tuple."""
    patterns = (value,) if isinstance(value, str) else value
    if not isinstance(patterns, Sequence) or not patterns or not all(isinstance(v, str) for v in patterns):
        raise InputError(f"{name} is {value!r}; give heads, 3+, 4+, 5+, all or a regular expression, or several.")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"{name} {pattern!r} is no regular expression ({error}).") from None
    return tuple(patterns)


def _checked_number(field_name, name, value, kind):
    try:
        number = kind(value)
        if isinstance(value, bool) or isinstance(value, str) or number != value:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {value!r}; give {'a whole number' if kind is int else 'a number'}.") from None
    if abs(number) > LARGEST:
        raise InputError(f"{name} is {value!r}; it must be finite and at most {LARGEST:.0e}.")
    if field_name not in ANY_SIGN and (number < 0 or (number == 0 and field_name not in MAY_BE_ZERO)):
        raise InputError(f"{name} is {value!r}; it must be {'at least' if field_name in MAY_BE_ZERO else 'above'} 0.")
    if field_name in FRACTIONS and number > 1:
        raise InputError(f"{name} is {value!r}; it must be at most 1.")
    if field_name in BELOW_ONE and number == 1:
        raise InputError(f"{name} is {value!r}; it must be below 1.")
    return number

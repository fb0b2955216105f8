"""Training: the optimizer and learning rate that a Config describes, and runs that can be stopped and gone on with."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("maskrcnn_edu")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up to the peak, then a cosine to 0 or a division by 10 at each of `lr_steps` (shares of the run)."""

    def __init__(self, peak, steps, warmup_steps, warmup_factor, shape, lr_steps=()):
        self.peak, self.steps, self.shape, self.lr_steps = peak, steps, shape, tuple(lr_steps)
        self.warmup_steps, self.warmup_factor = warmup_steps, warmup_factor

    def __call__(self, step):
        step = ops.cast(step, "float32")
        share = ops.minimum(step / max(self.warmup_steps, 1), 1.0)
        warm = self.warmup_factor + (1.0 - self.warmup_factor) * share if self.warmup_steps else 1.0
        if self.shape == "cosine":
            done = ops.clip((step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1), 0.0, 1.0)
            return self.peak * warm * 0.5 * (1.0 + ops.cos(math.pi * done))
        passed = sum(ops.cast(step >= share * self.steps, "float32") for share in self.lr_steps)
        return self.peak * warm * 0.1**passed

    def get_config(self):
        return {
            "peak": self.peak, "steps": self.steps, "shape": self.shape, "lr_steps": self.lr_steps,
            "warmup_steps": self.warmup_steps, "warmup_factor": self.warmup_factor,
        }  # fmt: skip


def build_optimizer(config, steps=None):
    """The optimizer of `config` for a run of `steps` (default: config.train_steps).

    Weight decay leaves norms and biases alone. A warm-up never takes more than a tenth of a short run.
    """
    steps = steps or config.train_steps
    rate = Schedule(
        config.learning_rate, steps, min(config.warmup_steps, steps // 10), config.warmup_factor,
        config.schedule, config.lr_steps,
    )  # fmt: skip
    clip = {"global_clipnorm": config.gradient_clip} if config.gradient_clip else {}
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, **clip)
    else:
        decay = {"weight_decay": config.weight_decay} if config.weight_decay else {}
        optimizer = keras.optimizers.SGD(rate, momentum=config.momentum, **decay, **clip)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer

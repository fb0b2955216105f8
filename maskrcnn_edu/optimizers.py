"""The optimizer that a Config describes: learning rate over time, weight decay, averaged weights, layers that learn."""

import math
import re

import keras
import numpy as np
from keras import ops

from maskrcnn_edu.errors import InputError

NORM_VARIABLES = ["gamma", "beta"]  # not decayed, as in Detectron2 (WEIGHT_DECAY_NORM 0); biases are, as there
# The seed's names of which layers learn, as regular expressions that a layer's whole name must match.
LAYERS = {
    "heads": r"(?!stem|res\d).*",
    "5+": r"(?!stem|res[2-4]).*",
    "4+": r"(?!stem|res[2-3]).*",
    "3+": r"(?!stem|res2).*",
    "all": r".*",
}


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


@keras.saving.register_keras_serializable("maskrcnn_edu")
class SGD(keras.optimizers.SGD):
    """Stochastic gradient descent as the published recipes mean it (PyTorch's):

        velocity <- momentum * velocity + gradient + weight_decay * weight;  weight <- weight - rate * velocity

    Keras' own takes the decay out of the weights beside the momentum. There the same number decays less, by the factor
    1 - momentum: a tenth.
    """

    def update_step(self, gradient, variable, learning_rate):
        gradient = ops.cast(gradient, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            gradient = ops.add(gradient, ops.multiply(ops.cast(self.weight_decay, variable.dtype), variable))
        if self.momentum:
            velocity = self.momentums[self._get_variable_index(variable)]
            gradient = ops.add(ops.multiply(velocity, ops.cast(self.momentum, variable.dtype)), gradient)
            self.assign(velocity, gradient)
        self.assign_sub(variable, ops.multiply(gradient, ops.cast(learning_rate, variable.dtype)))

    def _apply_weight_decay(self, variables):
        """Keras' hook for decay beside the momentum."""


def build_schedule(config, steps=None):
    """The learning rate of `config` over a run of `steps` (default: config.train_steps).

    A warm-up never takes more than a tenth of a short run.
    """
    steps = steps or config.train_steps
    return Schedule(
        config.learning_rate, steps, min(config.warmup_steps, steps // 10), config.warmup_factor,
        config.schedule, config.lr_steps,
    )  # fmt: skip


def build_optimizer(config, steps=None):
    """The optimizer of `config` for a run of `steps`."""
    options = {"learning_rate": build_schedule(config, steps), "weight_decay": config.weight_decay or None}
    if config.gradient_clip:
        options["global_clipnorm"] = config.gradient_clip
    if config.gradient_accumulation > 1:
        options["gradient_accumulation_steps"] = config.gradient_accumulation
    if config.ema:  # Keras averages after every batch, also where the weights change every few batches only
        options.update(use_ema=True, ema_momentum=config.ema ** (1 / config.gradient_accumulation))
    if config.optimizer == "adamw":
        return keras.optimizers.AdamW(**{**options, "weight_decay": config.weight_decay})
    return SGD(momentum=config.momentum, **options)


def prepare(optimizer, model):
    """Builds the optimizer for the model's weights that learn: norms without decay, averages from today's weights."""
    inner = unwrapped(optimizer)
    if optimizer.built:
        return
    if inner.weight_decay:
        inner.exclude_from_weight_decay(var_names=NORM_VARIABLES)
    optimizer.build(model.trainable_variables)
    for weight, average in averages(optimizer):
        average.assign(ops.copy(weight))
    if (
        keras.backend.backend() == "jax"
    ):  # whose steps take over their arguments' memory, so that none may be there twice
        inner._overwrite_model_variables_with_average_value = lambda weights: _overwrite(optimizer)


def unwrapped(optimizer):
    """The optimizer inside Keras' LossScaleOptimizer, which float16 needs; others as they are."""
    return getattr(optimizer, "inner_optimizer", optimizer)


# Averaged weights


def averages(optimizer):
    """Pairs of a weight and its moving average (Config.ema); none if the optimizer keeps no averages."""
    inner = unwrapped(optimizer)
    if not inner.use_ema:
        return []
    return list(zip(inner._trainable_variables, inner._model_variables_moving_average, strict=True))


def _overwrite(optimizer):
    """Puts the averages in the place of the weights, as Keras does when `fit` ends, in memory of their own."""
    for weight, average in averages(optimizer):
        weight.assign(ops.copy(average))


def swap_averages(model):
    """Exchanges the model's weights and their moving averages, to the last bit; twice is as if nothing had been."""
    for weight, average in averages(model.optimizer):
        weight_before, average_before = (np.array(ops.convert_to_numpy(v)) for v in (weight, average))
        weight.assign(average_before)
        average.assign(weight_before)


# Layers that learn


def set_trainable(model, layers):
    """Lets only some layers learn; the others are frozen, their norms' statistics too. `compile` the model afterwards.

    layers: heads (all but the ResNet) | 3+ | 4+ | 5+ (the ResNet from that stage on, and the heads) | all | a regular
    expression that the whole name of a layer must match, as in the seed.

    Raises InputError if that leaves nothing to learn.
    """
    pattern = re.compile(LAYERS.get(layers, layers))
    parts = (model.backbone, model.rpn, model.box_head, model.mask_head, model.keypoint_head)
    found = [layer for part in parts if part is not None for layer in part.layers if layer.weights]
    if not any(pattern.fullmatch(layer.name) for layer in found):
        names = ", ".join(layer.name for layer in found[:3])
        raise InputError(
            f"Config.trainable {layers!r} matches no layer; give {', '.join(LAYERS)} or a regular expression on names "
            f"such as {names}."
        )
    for layer in found:
        layer.trainable = bool(pattern.fullmatch(layer.name))
    if not model.trainable_variables:
        raise InputError(f"Config.trainable {layers!r} matches only layers that cannot learn (frozen norms).")
    model.trainable_layers = layers


def trainable_at(config, step, steps):
    """Which layers learn at a `step` of a run of `steps`, and at which step that ends."""
    bounds = [round(share * steps) for share in config.trainable_steps] + [steps]
    turn = sum(step >= bound for bound in bounds[:-1])
    return config.trainable[turn], bounds[turn]


def change_trainable(model, layers):
    """Lets other layers learn from now on; the optimizer keeps its count, and its state of those that learn on."""
    before = model.optimizer
    set_trainable(model, layers)
    model.compile(type(before).from_config(before.get_config()))
    known = {variable.path: variable for variable in before.variables}
    for variable in model.optimizer.variables:
        if variable.path in known:
            variable.assign(known[variable.path])

"""Mask R-CNN: the parts of the other files put together, for training and for detection."""

import dataclasses
from functools import partial

import keras
import numpy as np
from keras import ops

from maskrcnn_edu import distribution, losses, targets
from maskrcnn_edu.anchors import LAST_PIXEL, anchors_by_level
from maskrcnn_edu.backbone import build_backbone
from maskrcnn_edu.backend import compiled, gather, island, layers_compute_in, policy
from maskrcnn_edu.candidates import choose_detections
from maskrcnn_edu.config import Config
from maskrcnn_edu.datasets.dataset import check_class_names
from maskrcnn_edu.detections import as_photograph, on_photograph, padded_size, to_batch
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.heads import build_box_head, build_keypoint_head, build_mask_head
from maskrcnn_edu.optimizers import build_optimizer, prepare, set_trainable
from maskrcnn_edu.proposals import build_rpn_head, run_rpn_head, select_joint_proposals, select_proposals
from maskrcnn_edu.roi_align import pool_from_pyramid

LOSSES = ("rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss")
KEYPOINT_LOSS = "keypoint_loss"


@keras.saving.register_keras_serializable("maskrcnn_edu")
class MaskRCNN(keras.Model):
    """Mask R-CNN (He et al., 2017) with a feature pyramid; without its mask head, Faster R-CNN.

    Called on a batch with ground truth, as `mr.loader` gives it, it returns the ingredients of the losses; on a batch
    of images alone, its detections. Both are dicts of arrays of fixed size. `detect` takes photographs as they are.

    Args:
        config: a `Config`.
        class_names: names of the classes, background first; they are saved with the model.
    """

    def __init__(self, config, class_names=None, name="mask_rcnn", **kwargs):
        if not isinstance(config, Config):
            raise InputError(f"MaskRCNN takes a Config; it got {type(config).__name__}.")
        # Boxes and image sizes are inputs too, and bfloat16 could not hold them: the model casts what it wants cast.
        super().__init__(name=name, dtype=policy(config.precision), autocast=False, **kwargs)
        if class_names is None:
            class_names = ["background"] + [f"class {i}" for i in range(1, config.num_classes)]
        self.config, self.class_names = config, [str(name) for name in class_names]
        if isinstance(class_names, str) or len(self.class_names) != config.num_classes:
            raise InputError(
                f"class_names is {class_names!r}; Config.num_classes wants a list of {config.num_classes}."
            )
        check_class_names("MaskRCNN", self.class_names)
        with layers_compute_in(config.precision):
            self.backbone = build_backbone(config)
            self.rpn = build_rpn_head(config)
            self.box_head = build_box_head(config)
            self.mask_head = build_mask_head(config) if config.mask_head else None
            self.keypoint_head = build_keypoint_head(config) if config.keypoints else None
        set_trainable(self, config.trainable[0])
        self.loss_means = [keras.metrics.Mean(name=name) for name in self.loss_weights]
        self.built = True
        self._detect_batch = None

    @property
    def loss_weights(self):
        """The weight of each of the model's losses, by name."""
        weights = dict(zip(LOSSES[: 5 if self.mask_head else 4], self.config.loss_weights, strict=False))
        return {**weights, **({KEYPOINT_LOSS: self.config.keypoint_loss_weight} if self.keypoint_head else {})}

    # The forward pass

    def call(self, batch, training=False):
        """A batch (dict) as `mr.loader` gives it: image (B, H, W, C), image_size (B, 2), the rest for the losses."""
        dtypes = {name: "float32" for name in ("image_size", "window", "boxes", "keypoints")} | {"classes": "int32"}
        batch = {name: ops.cast(value, dtypes[name]) if name in dtypes else value for name, value in batch.items()}
        if None in batch["image"].shape[1:3]:
            raise InputError("The images of all batches must have one size while training; use mr.loader.")
        pyramid = self.backbone(self.normalise(batch["image"], batch["image_size"]), training=training)
        if self.config.box_frame == "matterport":
            batch = in_last_pixel_frame(batch)
        logits, deltas = run_rpn_head(self.rpn, pyramid)
        anchors = anchors_by_level(batch["image"].shape[1:3], self.config)
        proposals, scores = self.select(logits, deltas, anchors, batch["image_size"], training)
        if "boxes" in batch:
            if self.mask_head and "masks" not in batch:
                raise InputError(
                    "The batch has no masks, but the model has a mask head; give mr.loader the model's config."
                )
            if self.keypoint_head and "keypoints" not in batch:
                raise InputError(
                    "The batch has no keypoints, but the model has a keypoint head; give mr.loader the model's config."
                )
            truth = {name: batch[name] for name in ("boxes", "classes", "seed")}
            rpn = island(targets.rpn_targets, self.config)(np.concatenate(anchors), truth)
            rpn["logits"] = gather(ops.concatenate(logits, axis=1), rpn["index"])
            rpn["predicted_deltas"] = gather(ops.concatenate(deltas, axis=1), rpn["index"])
            return {"rpn": rpn, "heads": self._heads_for_losses(pyramid, proposals, batch, training)}
        return self._heads_for_detections(pyramid, proposals, scores > -float("inf"), batch)

    def select(self, logits, deltas, anchors, image_size, training=False):
        """The proposals (B, R, 4) and their scores (B, R), by the rule and numbers of the config; -inf: no proposal."""
        config = self.config
        rule = {"per_level": select_proposals, "joint": select_joint_proposals}[config.proposal_choice]
        per_level, count = config.proposals_per_level, config.proposals
        if training:
            per_level, count = config.proposals_per_level_training, config.proposals_training
        # No gradient passes: proposals are fixed inputs of the heads (approximate joint training, Faster R-CNN 3.2).
        logits, deltas = ([ops.stop_gradient(level) for level in levels] for levels in (logits, deltas))
        return island(rule, per_level, count, config)(logits, deltas, anchors, image_size)

    def normalise(self, image, image_size):
        """(image - mean) / std, with 0 in the padding: (B, H, W, C) 0..255, (B, 2) -> (B, H, W, C)."""
        height, width = ops.shape(image)[1:3]
        image = (ops.cast(image, "float32") - np.float32(self.config.pixel_mean)) / np.float32(self.config.pixel_std)
        size = ops.cast(image_size, "float32")[:, :, None, None]
        y = ops.cast(ops.arange(height), "float32")[None, :, None] < size[:, 0]
        x = ops.cast(ops.arange(width), "float32")[None, None, :] < size[:, 1]
        return ops.cast(ops.where(ops.logical_and(y, x)[..., None], image, 0.0), self.compute_dtype)

    def run_box_head(self, pyramid, rois, training=False):
        """RoIs (B, R, 4) -> class logits (B, R, C) and deltas (B, R, C - 1, 4)."""
        feature = self.pool(pyramid, rois, self.config.box_pool_size, training)
        logits, deltas = self.box_head(_merge(feature), training=training)
        return _split(logits, rois.shape[1]), _split(deltas, rois.shape[1])

    def pool(self, pyramid, rois, side, training=False):
        """Features of RoIs (B, R, 4), each from the level of its size: (B, R, side, side, C)."""
        if training:
            return pool_from_pyramid(pyramid, rois, side, self.config)
        return island(pool_from_pyramid, side, self.config)(pyramid, rois)

    def run_mask_head(self, pyramid, rois, classes, training=False):
        """RoIs (B, R, 4) of known classes (B, R) -> mask logits (B, R, m, m), with all classes last for softmax."""
        feature = self.pool(pyramid, rois, self.config.mask_pool_size, training)
        logits = self.mask_head([_merge(feature), ops.reshape(classes, (-1,))], training=training)
        return _split(logits, rois.shape[1])

    def run_keypoint_head(self, pyramid, rois, training=False):
        """RoIs (B, R, 4) -> heatmaps (B, R, m, m, K), logits."""
        feature = self.pool(pyramid, rois, self.config.keypoint_pool_size, training)
        return _split(self.keypoint_head(_merge(feature), training=training), rois.shape[1])

    # Training

    def _heads_for_losses(self, pyramid, proposals, batch, training):
        heads = targets.roi_targets(proposals, batch, self.config)
        heads["logits"], heads["predicted_deltas"] = self.run_box_head(pyramid, heads["rois"], training)
        # Only positives have a mask and keypoints; they come first.
        positives = min(targets.max_positive_rois(self.config), heads["label"].shape[1])
        rois, matched = heads["rois"][:, :positives], heads["matched"][:, :positives]
        if self.mask_head:
            side = 2 * self.config.mask_pool_size
            see = targets.soft_mask_targets if self.config.soft_masks else targets.mask_targets
            mask_boxes = batch.get("mask_boxes", batch["boxes"])  # masks may also cover the whole image
            heads["masks"] = see(gather(batch["masks"], matched), gather(mask_boxes, matched), rois, side)
            heads["mask_logits"] = self.run_mask_head(pyramid, rois, heads["class"][:, :positives], training)
        if self.keypoint_head:
            side = 4 * self.config.keypoint_pool_size
            heads["keypoints"] = targets.keypoint_targets(gather(batch["keypoints"], matched), rois, side)
            heads["keypoint_logits"] = self.run_keypoint_head(pyramid, rois, training)
        return heads

    def losses_by_name(self, outputs):
        """The losses of one batch, from what `call` returned for it: dict of scalars, ordered as `loss_weights`."""
        rpn, heads, config = outputs["rpn"], outputs["heads"], self.config
        values = [
            losses.rpn_class_loss(rpn["logits"], rpn["label"]),
            losses.rpn_box_loss(rpn["predicted_deltas"], rpn["deltas"], rpn["label"], config.rpn_smooth_l1_beta),
            losses.class_loss(heads["logits"], heads["class"], heads["label"]),
            losses.box_loss(
                heads["predicted_deltas"], heads["deltas"], heads["class"], heads["label"], config.box_smooth_l1_beta
            ),
        ]
        if self.mask_head:
            positives = heads["masks"].shape[1]
            positive = heads["label"][:, :positives] == targets.POSITIVE
            logits, target = ops.cast(heads["mask_logits"], "float32"), heads["masks"]
            if config.mask_activation == "softmax":
                values.append(losses.softmax_mask_loss(logits, target, heads["class"][:, :positives], positive))
            else:
                values.append(losses.mask_loss(logits, target, positive))
        if self.keypoint_head:
            positive = heads["label"][:, : heads["keypoints"].shape[1]] == targets.POSITIVE
            values.append(losses.keypoint_loss(heads["keypoint_logits"], heads["keypoints"], positive))
        return dict(zip(self.loss_weights, values, strict=True))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The weighted sum of the losses; `fit` minimises it. Each is a metric by its own name as well."""
        values = distribution.mean_of_parts(self.losses_by_name, y_pred)
        for mean in self.loss_means:
            mean.update_state(values[mean.name])
        loss = sum(weight * values[name] for name, weight in self.loss_weights.items())
        # TensorFlow's replicas sum their gradients. Keras divides its own losses so, and multiplies what it reports.
        return loss / distribution.replicas() if keras.backend.backend() == "tensorflow" else loss

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Keras' hook: the running mean of the total and of each loss."""
        means = self.get_metrics_result()
        if keras.backend.backend() == "tensorflow" and distribution.shard()[1] > 1:
            return {name: mean[None] for name, mean in means.items()}  # keras-team/keras 20585: fit reduces axis 0
        return means

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing is left to build; Keras would try to, with a batch averaged over the machines (issue 20585)."""

    def compile(self, optimizer=None, **kwargs):
        """As keras.Model.compile; without an optimizer, the one that the config describes.

        Whatever the optimizer, its weight decay leaves norms alone. XLA, Keras' default, makes training on
        TensorFlow twice as slow on a CPU, so there it is off unless asked for.
        """
        if keras.backend.backend() == "tensorflow":
            kwargs.setdefault("jit_compile", False)
        super().compile(optimizer=optimizer or build_optimizer(self.config), **kwargs)
        prepare(self.optimizer, self)  # now, or TensorFlow would trace the first step twice
        if keras.backend.backend() == "tensorflow" and distribution.replicas() > 1:
            distribution.reduce_before_apply(self.optimizer)

    def compile_from_config(self, config):
        """Keras' hook when a saved model is opened: compile again, with the optimizer's state to be filled."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(self, x=None, *args, steps_per_epoch=None, **kwargs):
        """As keras.Model.fit; x is a `mr.loader`, which has no end: an epoch defaults to one pass over its dataset.

        Raises InputError if the loader meets an image or annotation that it cannot read.
        """
        if hasattr(x, "steps_per_epoch"):
            steps_per_epoch = steps_per_epoch or x.steps_per_epoch
            kwargs.setdefault("shuffle", False)  # the loader has shuffled
        if hasattr(kwargs.get("validation_data"), "steps_per_epoch"):
            kwargs.setdefault("validation_steps", kwargs["validation_data"].steps_per_epoch)
        val = kwargs.get("validation_data")
        with distribution.failures_of(x, val):
            if val is not None:
                kwargs["validation_data"] = distribution.split(val, self)
            x = distribution.split(x, self, endless=True)
            return super().fit(x, *args, steps_per_epoch=steps_per_epoch, **kwargs)

    def evaluate(self, x=None, *args, steps=None, **kwargs):
        """As keras.Model.evaluate: the mean losses over `mr.loader(..., training=False)`. AP is in `mr.evaluate`."""
        steps = steps or getattr(x, "steps_per_epoch", None)
        with distribution.failures_of(x):
            return super().evaluate(distribution.split(x, self), *args, steps=steps, **kwargs)

    # Detection

    def _heads_for_detections(self, pyramid, proposals, exists, batch):
        logits, deltas = self.run_box_head(pyramid, proposals)
        choose = island(choose_detections, self.config)
        result = choose(logits, deltas, proposals, exists, batch["image_size"], batch.get("window"))
        if self.mask_head:
            result["masks"] = self.mask_probabilities(pyramid, result["boxes"], result["classes"])
        if self.keypoint_head:
            result["keypoint_heatmaps"] = self.run_keypoint_head(pyramid, result["boxes"])
        return result

    def mask_probabilities(self, pyramid, rois, classes):
        """RoIs (B, R, 4) of known classes (B, R) -> the probability of each cell (B, R, m, m)."""
        logits = ops.cast(self.run_mask_head(pyramid, rois, classes), "float32")
        if self.config.mask_activation == "sigmoid":
            return ops.sigmoid(logits)
        own = ops.one_hot(classes, self.config.num_classes, dtype="float32")
        return ops.einsum("brhwc,brc->brhw", ops.softmax(logits, axis=-1), own)

    def detect(self, images, batch_size=1):
        """Finds the objects on photographs.

        images: a list of arrays, or one array (B, H, W, C). Each is (H, W) or (H, W, 1) grey, or (H, W, 3) colour (a
        fourth channel, alpha, is dropped; where Config.image_channels is 1, colour becomes grey; other numbers of
        channels must be given as they are), of any size, uint8 0..255 or float (0..1 if nothing is above 1, else
        0..255). They are resized to config.image_min_size, grouped by padded size and run `batch_size` at a time. The
        first of each padded size takes some seconds longer, while the network is compiled for it.

        Returns a list with a `Detections` for each image. Raises InputError for what is no image, with its position.
        """
        return [finish() for finish in self.detect_later(images, batch_size)]

    def detect_later(self, images, batch_size=1):
        """As `detect`, with a function in place of each `Detections`: the network has run, the function does the rest.

        Masks are pasted, and keypoints read, where the function is called: perhaps in another thread.
        """
        if not isinstance(images, (list, tuple)):
            images = np.asarray(images)
            if images.ndim != 4:
                raise InputError(f"detect got one array of shape {images.shape}; give a list: detect([image]).")
        if batch_size != int(batch_size) or batch_size < 1:
            raise InputError(f"detect: batch_size is {batch_size}; give a whole number from 1 on.")
        photographs = [
            as_photograph(image, position, self.config.image_channels) for position, image in enumerate(images)
        ]
        groups = {}
        for position, photograph in enumerate(photographs):
            groups.setdefault(padded_size(photograph, self.config), []).append(position)
        found = [None] * len(photographs)
        for size, positions in groups.items():
            for start in range(0, len(positions), batch_size):
                chosen = positions[start : start + batch_size]
                for position, finish in zip(
                    chosen, self._detect_group([photographs[p] for p in chosen], size, batch_size), strict=True
                ):
                    found[position] = finish
        return found

    def _detect_group(self, photographs, size, batch_size):
        """`detect_later` on up to `batch_size` photographs of one padded size. Blank images fill the batch up."""
        batch = to_batch(photographs, size, batch_size, self.config)
        if self._detect_batch is None:
            self._detect_batch = compiled(lambda batch: self(batch, training=False), self)
        result = {name: np.asarray(value) for name, value in self._detect_batch(batch).items()}
        return [
            partial(
                on_photograph,
                {name: value[i] for name, value in result.items()},
                photograph,
                batch["window"][i],
                self.config,
            )  # fmt: skip
            for i, photograph in enumerate(photographs)
        ]

    def in_precision(self, precision):
        """A model with copies of these weights that computes in `precision`: float32, bfloat16 or float16.

        Half precision is faster where the processor has it, and finds a little less (README, "Measured").
        """
        settings = self.get_config()
        model = self.from_config({**settings, "config": {**settings["config"], "precision": precision}})
        model.set_weights(self.get_weights())
        return model

    # Saving, and published weights

    @classmethod
    def from_pretrained(cls, name, cache=None):
        """A model with published weights, the settings they were trained for and their class names.

        name: `maskrcnn-edu weights list` shows them; `mr.weights.load` takes files. cache: see `mr.weights.fetch`.
        The ImageNet names give a model to train, Config.coco(), of which only the ResNet has learnt something.

        Raises InputError: unknown name, or a file that cannot be fetched.
        """
        from maskrcnn_edu.weights import fetch, load  # not needed to train or to detect with a model of one's own
        from maskrcnn_edu.weights.published import find

        published = find(name)
        config = published.config()
        path = fetch(name, cache)
        model = cls(config, published.class_names)
        load(model, path)
        return model

    def get_config(self):
        return {
            "config": dataclasses.asdict(self.config), "class_names": self.class_names, "name": self.name,
            "trainable_layers": self.trainable_layers,
        }  # fmt: skip

    @classmethod
    def from_config(cls, config, custom_objects=None):
        model = cls(Config(**config["config"]), config["class_names"], config["name"])
        set_trainable(model, config.get("trainable_layers", "all"))  # before the optimizer is built for what learns
        return model


def in_last_pixel_frame(batch):
    """The seed's boxes inside the network: y2 and x2, and the edges that they are clipped to, are last pixels."""
    moved = {"image_size": batch["image_size"] - 1.0}
    moved.update({name: batch[name] - LAST_PIXEL for name in ("boxes", "window") if name in batch})
    return {**batch, **moved}


def _merge(x):
    """(B, R, ...) -> (B * R, ...): the heads treat every RoI alike."""
    return ops.reshape(x, (-1, *x.shape[2:]))


def _split(x, rois):
    """(B * R, ...) -> (B, R, ...)."""
    return ops.reshape(x, (-1, rois, *x.shape[1:]))

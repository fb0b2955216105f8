"""The assembled model: training steps on awkward batches, detection on awkward pictures, saving. Small and quick.

One model learns two Shapes pictures by heart, and most tests look at that one.
"""

import dataclasses

import keras
import numpy as np
import pytest

import maskrcnn_edu as mr
from maskrcnn_edu.backbone import FrozenNorm
from maskrcnn_edu.model import LOSSES

WEIGHTS = (1.0, 2.0, 0.5, 1.0, 1.5)
SIDE = 64


def small_config(**changes):
    """Config.tiny, narrower, on pictures of 64 pixels."""
    return mr.Config.tiny(**{
        "image_min_size": SIDE, "image_max_size": SIDE, "max_instances": 8, "mask_crop_size": 28, "stem_channels": 8,
        "stage_channels": (16, 24, 32), "fpn_channels": 24, "anchor_sizes": (8, 16, 32), "rpn_channels": 24,
        "proposals_per_level_training": 40, "proposals_training": 40, "proposals_per_level": 40, "proposals": 40,
        "roi_batch_size": 16, "box_fc_channels": (48,), "mask_conv_channels": (16,), "batch_size": 2,
        "train_steps": 400, "warmup_steps": 5, "max_detections": 12, "loss_weights": WEIGHTS,
        "horizontal_flip": False, **changes,
    })  # fmt: skip


def first_batch(dataset, config, training=False):
    return next(iter(mr.loader(dataset, config, training=training)))


@pytest.fixture(scope="module")
def pictures():
    return mr.ShapesDataset(3, size=SIDE)


@pytest.fixture(scope="module")
def batch(pictures):
    return first_batch(pictures, small_config())


@pytest.fixture(scope="module")
def learnt(pictures):
    """A model after 80 steps on two pictures, and what `fit` told."""
    keras.utils.set_random_seed(0)
    two = mr.Subset(pictures, [0, 1])
    model = mr.MaskRCNN(small_config(), pictures.class_names)
    model.compile()
    history = model.fit(mr.loader(two, model.config), steps_per_epoch=10, epochs=8, verbose=0)
    return model, history.history


@pytest.fixture
def model(learnt):
    """The same model for a test that may train it: weights and optimizer go back to what they were."""
    model, _ = learnt
    variables = [*model.variables, *model.optimizer.variables]
    before = [np.array(v) for v in variables]
    yield model
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)


@pytest.fixture(scope="module")
def boxes_only(pictures):
    """A model without mask head and with frozen normalisation."""
    model = mr.MaskRCNN(small_config(mask_head=False, backbone_norm="frozen", loss_weights=(1.0,) * 5))
    model.compile(optimizer=keras.optimizers.SGD(0.01))
    return model


def losses(model, batch):
    """The losses of one batch, without training."""
    model.reset_metrics()
    return {name: float(value) for name, value in model.test_on_batch(batch, return_dict=True).items()}


def step(model, batch):
    """The losses of one batch, and a training step on it."""
    model.reset_metrics()
    return {name: float(value) for name, value in model.train_on_batch(batch, return_dict=True).items()}


def same(found, expected, tolerance=1e-4):
    """Equal Detections."""
    np.testing.assert_array_equal(found.classes, expected.classes)
    np.testing.assert_allclose(found.scores, expected.scores, atol=tolerance)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=100 * tolerance)
    assert found.masks.shape == expected.masks.shape
    assert np.count_nonzero(found.masks != expected.masks) <= 0.01 * expected.masks.size


# Training


def test_learns_two_pictures_by_heart(learnt):
    _, history = learnt
    assert set(history) == {"loss", *LOSSES}
    assert all(len(values) == 8 and np.isfinite(values).all() for values in history.values())
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert all(history[name][-1] < history[name][0] for name in ("rpn_class_loss", "class_loss", "mask_loss"))


def test_loss_is_the_weighted_sum(learnt, batch):
    found = losses(learnt[0], batch)
    assert found["loss"] == pytest.approx(sum(w * found[name] for w, name in zip(WEIGHTS, LOSSES, strict=True)), 1e-5)


def crowds_only(batch):
    return {**batch, "classes": -abs(batch["classes"])}


def without_objects(batch):
    return {**batch, **{name: np.zeros_like(batch[name]) for name in ("boxes", "classes", "masks")}}


def one_without_objects(batch):
    emptied = {name: batch[name].copy() for name in ("boxes", "classes", "masks")}
    for array in emptied.values():
        array[1] = 0
    return {**batch, **emptied}


def every_slot_taken(batch):
    """All slots hold objects, of all sizes from a pixel to the picture, some of them twice in one place."""
    rng = np.random.default_rng(3)
    shape = batch["classes"].shape
    size = np.array([1, 1, 4, 9, 20, 40, 64, 64])[None, :, None] * np.ones((*shape, 2))
    corner = rng.uniform(0, 1, size.shape) * (SIDE - size)
    return {
        **batch,
        "boxes": np.concatenate([corner, corner + size], axis=-1).astype(np.float32),
        "classes": rng.integers(1, 4, shape).astype(np.int32),
        "masks": rng.integers(0, 256, batch["masks"].shape).astype(np.uint8),
    }


def outside_the_image(batch):
    return {**batch, "boxes": batch["boxes"] + 1000 * (batch["classes"] != 0)[..., None].astype(np.float32)}


def mostly_padding(batch):
    return {**batch, "image_size": np.float32([[SIDE, 1], [1, 1]])}


def in_numpys_own_types(batch):
    """float64 and int64, as arrays written by hand are."""
    return {name: array.astype(np.float64 if array.dtype.kind == "f" else np.int64) for name, array in batch.items()}


@pytest.mark.parametrize(
    "change",
    [
        crowds_only,
        without_objects,
        one_without_objects,
        every_slot_taken,
        outside_the_image,
        mostly_padding,
        in_numpys_own_types,
    ],
)
def test_steps_on_awkward_batches_stay_finite(model, batch, change):
    changed = change(batch)
    for _ in range(2):  # the second loss shows what the first gradient did
        found = step(model, changed)
        assert np.isfinite(list(found.values())).all(), found
    assert all(np.isfinite(np.array(v)).all() for v in [*model.variables, *model.optimizer.variables])
    if change in (crowds_only, without_objects):
        assert found["rpn_box_loss"] == found["box_loss"] == found["mask_loss"] == 0
        assert found["rpn_class_loss"] > 0  # what is no crowd is background


def test_last_batch_may_be_smaller(learnt, pictures, batch):
    model, _ = learnt
    found = model.evaluate(mr.loader(pictures, model.config, training=False), return_dict=True, verbose=0)
    assert set(found) == {"loss", *LOSSES} and np.isfinite(list(found.values())).all()
    assert np.isfinite(list(losses(model, {name: array[:1] for name, array in batch.items()}).values())).all()


@pytest.mark.parametrize("extra", [1, 8])
def test_more_empty_slots_change_nothing(pictures, extra):
    """More slots for ground truth than before, all of them empty: the same targets, so the same losses."""
    config = small_config()
    more = dataclasses.replace(config, max_instances=config.max_instances + extra)
    proposals = np.random.default_rng(0).uniform(0, 32, (2, 60, 4)).astype(np.float32)
    proposals[..., 2:] += proposals[..., :2]
    few, many = first_batch(pictures, config), first_batch(pictures, more)
    np.testing.assert_array_equal(many["boxes"][:, :-extra], few["boxes"])
    expected, found = (mr.targets.roi_targets(proposals, truth, config) for truth in (few, many))
    for name in ("rois", "label", "class", "deltas"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)
    anchors = mr.anchors.pyramid_anchors((SIDE, SIDE), config)
    expected, found = (mr.targets.rpn_targets(anchors, truth, config) for truth in (few, many))
    for name in ("index", "label", "deltas"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5, err_msg=name)


def test_sampling_of_an_image_does_not_depend_on_its_batch(batch):
    config = small_config()
    anchors = mr.anchors.pyramid_anchors((SIDE, SIDE), config)
    proposals = np.concatenate([batch["boxes"] + 3, batch["boxes"] + 30], axis=1)
    turned = {name: array[::-1] for name, array in batch.items()}
    pairs = [
        (mr.targets.rpn_targets(anchors, batch, config), mr.targets.rpn_targets(anchors, turned, config)),
        (mr.targets.roi_targets(proposals, batch, config), mr.targets.roi_targets(proposals[::-1], turned, config)),
    ]
    for both, reverse in pairs:
        for name in both:
            np.testing.assert_array_equal(both[name], np.array(reverse[name])[::-1], err_msg=name)


def test_every_trainable_variable_learns(model, batch):
    before = [np.array(v) for v in model.trainable_variables]
    batch = every_slot_taken(batch)
    for seed in range(3):
        step(model, {**batch, "seed": batch["seed"] + seed})
    still = [
        v.path for v, old in zip(model.trainable_variables, before, strict=True) if np.array_equal(np.array(v), old)
    ]
    assert len(before) > 30 and not still


def test_frozen_norm_stays_frozen(boxes_only, batch):
    model = boxes_only
    norms = [layer for layer in model.get_layer("backbone").layers if isinstance(layer, FrozenNorm)]
    model.trainable = True
    assert norms and not any(v is w for norm in norms for v in norm.weights for w in model.trainable_variables)
    before = [np.array(v) for norm in norms for v in norm.weights]
    kernel = np.array(model.get_layer("backbone").get_layer("stem").kernel)
    found = step(model, {name: array for name, array in batch.items() if name != "masks"})
    assert set(found) == {"loss", *LOSSES[:4]} and np.isfinite(list(found.values())).all()
    assert found["loss"] == pytest.approx(sum(found[name] for name in LOSSES[:4]), 1e-5)
    for old, new in zip(before, [v for norm in norms for v in norm.weights], strict=True):
        np.testing.assert_array_equal(np.array(new), old)
    assert (np.array(model.get_layer("backbone").get_layer("stem").kernel) != kernel).any()


def test_computes_in_bfloat16(learnt, batch):
    """Half precision for the convolutions; boxes, sizes and losses stay float32."""
    model = mr.MaskRCNN(small_config(precision="bfloat16"))
    assert keras.config.dtype_policy().name == "float32" and model.backbone.layers[1].compute_dtype == "bfloat16"
    model.set_weights(learnt[0].get_weights())
    model.compile()
    expected, found = losses(learnt[0], batch), losses(model, batch)
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.2)
    assert all(v.dtype == "float32" for v in model.trainable_variables)


def test_a_trained_model_goes_over_to_half_precision_and_back(learnt, pictures):
    exact, _ = learnt
    half = exact.in_precision("bfloat16")
    assert half.backbone.layers[1].compute_dtype == "bfloat16" and half.class_names == exact.class_names
    (expected,), (found,) = exact.detect([pictures.image(0)]), half.detect([pictures.image(0)])
    best = expected.scores > 0.5
    assert best.any() and np.asarray(mr.boxes.iou(expected.boxes[best], found.boxes)).max(axis=1).min() > 0.9
    assert not np.array_equal(expected.scores[:1], found.scores[:1])
    (again,) = half.in_precision("float32").detect([pictures.image(0)])
    np.testing.assert_array_equal(again.scores, expected.scores)


# Detection


def test_detections_are_well_formed(learnt, pictures):
    model, _ = learnt
    config = model.config
    images = [pictures.image(0), pictures.image(1), pictures.image(2)[:40, :57]]
    found = model.detect(images)
    assert len(found[0]) and len(found[1])
    for image, detections in zip(images, found, strict=True):
        height, width = image.shape[:2]
        n = len(detections)
        assert n <= config.max_detections
        assert detections.boxes.shape == (n, 4) and detections.boxes.dtype == np.float32
        assert detections.classes.shape == detections.scores.shape == (n,)
        assert detections.masks.shape == (n, height, width) and detections.masks.dtype == bool
        assert (np.diff(detections.scores) <= 0).all()
        assert ((detections.scores > config.detection_score_threshold) & (detections.scores <= 1)).all()
        assert np.issubdtype(detections.classes.dtype, np.integer)
        assert ((detections.classes >= 1) & (detections.classes < config.num_classes)).all()
        y1, x1, y2, x2 = detections.boxes.T
        assert ((y1 >= 0) & (x1 >= 0) & (y2 <= height) & (x2 <= width) & (y1 < y2) & (x1 < x2)).all()
        for mask, box in zip(detections.masks, detections.boxes, strict=True):
            top, left = np.maximum(np.floor(box[:2]).astype(int) - 1, 0)
            bottom, right = np.ceil(box[2:]).astype(int) + 1
            inside = np.zeros_like(mask)
            inside[top:bottom, left:right] = True
            assert not (mask & ~inside).any()


def test_detects_on_any_kind_of_picture(learnt, pictures):
    model, _ = learnt
    colour = pictures.image(0)
    grey = colour[..., 0]
    expected = model.detect([colour])[0]
    assert len(expected)
    alpha = np.full((SIDE, SIDE, 1), 7, np.uint8)
    for same_picture in (colour / 255, np.float32(colour), np.float32(colour / 255), colour.astype(np.int64),
                         np.concatenate([colour, alpha], axis=2), np.asfortranarray(colour)):  # fmt: skip
        same(model.detect([same_picture])[0], expected)
    expected = model.detect([np.stack([grey] * 3, axis=-1)])[0]
    for same_picture in (grey, grey[..., None]):
        same(model.detect([same_picture])[0], expected)
    same(model.detect([grey > 128])[0], model.detect([(grey > 128) * np.uint8(255)])[0])


def test_order_neighbours_and_batch_size_do_not_matter(learnt, pictures):
    model, _ = learnt
    first, second, third = (pictures.image(i) for i in range(3))
    images = [first, second[:30], np.zeros((1, 1), np.uint8), third[:, :20], third, second, first[:1]]
    alone = [model.detect([image])[0] for image in images]
    assert [d.masks.shape[1:] for d in alone] == [image.shape[:2] for image in images]
    for found in (model.detect(images), model.detect(images, batch_size=2)):
        assert len(found) == len(images)
        for one, expected in zip(found, alone, strict=True):
            same(one, expected)
    for one, expected in zip(model.detect(images[::-1]), alone[::-1], strict=True):
        same(one, expected)
    array = np.stack([first, second, third])
    for one, expected in zip(model.detect(array), (alone[0], alone[5], alone[4]), strict=True):
        same(one, expected)


def test_nothing_in_nothing_out(learnt):
    model, _ = learnt
    assert model.detect([]) == []
    assert model.detect(np.zeros((0, 9, 9, 3), np.uint8)) == []


@pytest.mark.parametrize(
    "bad",
    [
        np.full((5, 5), np.nan), np.full((5, 5, 3), np.inf), np.zeros((5, 5, 2)), np.zeros((5,)), np.zeros((0, 5, 3)),
        np.zeros((1, 5, 5, 3)), np.full((5, 5), -1), np.full((5, 5), 256), np.full((5, 5), -0.5), 3.0, "picture.jpg",
        None, np.full((5, 5), "a"), np.zeros((5, 5), complex),
    ],
    ids=lambda bad: f"{getattr(bad, 'dtype', type(bad).__name__)}{getattr(bad, 'shape', '')}",
)  # fmt: skip
def test_what_is_no_picture_is_refused_by_its_position(learnt, bad):
    with pytest.raises(mr.InputError, match=r"^Image 1 "):
        learnt[0].detect([np.zeros((5, 5), np.uint8), bad])


def test_sizes_compile_a_bounded_number_of_times(learnt, rng):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("counts TensorFlow's tracings")
    model, _ = learnt
    for height, width in rng.integers(1, 200, (50, 2)):
        model.detect([np.zeros((height, width), np.uint8)])
    # Padded sides are 32 or 64, one of them always 64; with batches of 1 here, and of 2 in another test.
    assert model._detect_batch.__wrapped__.experimental_get_tracing_count() <= 6


def test_without_mask_head_there_are_no_masks(boxes_only, pictures):
    (found,) = boxes_only.detect([pictures.image(0)])
    assert found.masks is None and len(found)


# The model as a Keras object


def test_is_an_ordinary_keras_model(learnt):
    model, _ = learnt
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    assert all(name in "\n".join(lines) for name in ("backbone", "rpn", "box_head", "mask_head"))
    assert model.get_layer("backbone") is model.backbone and model.count_params() > 10_000


def test_wrong_arguments_are_named():
    with pytest.raises(mr.InputError, match="circle.*list of 4"):
        mr.MaskRCNN(small_config(), ["background", "circle", "square"])
    with pytest.raises(mr.InputError, match="dict"):
        mr.MaskRCNN({"num_classes": 4})


def test_saved_and_opened_it_goes_on_where_it_was(model, batch, pictures, tmp_path):
    step(model, batch)
    model.save(tmp_path / "shapes.keras")
    opened = keras.saving.load_model(tmp_path / "shapes.keras")
    assert type(opened) is mr.MaskRCNN
    assert opened.class_names == pictures.class_names and opened.config == model.config
    same(opened.detect([pictures.image(1)])[0], model.detect([pictures.image(1)])[0], 1e-6)
    assert int(opened.optimizer.iterations) == int(model.optimizer.iterations) == 81
    for _ in range(3):
        expected, found = step(model, batch), step(opened, batch)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


# Every choice of Config


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"roi_sampler": "roi_pool"},
        {"roi_sampler": "crop_and_resize"},
        {"sampling_ratio": 0, "roi_aligned": False, "mask_paste": "torchvision"},
        {"mask_activation": "softmax"},
        {"class_agnostic_masks": True},
        {"num_classes": 2, "max_instances": 1},
        {"bottleneck": True, "stride_in_1x1": False, "box_conv_channels": (16,), "rpn_convs": 2},
        {"backbone_norm": "frozen", "fpn_norm": "batch", "head_norm": "batch", "optimizer": "sgd"},
        {"backbone_norm": "sync", "fpn_norm": "sync", "head_norm": "sync", "box_conv_channels": (16,)},
        {"backbone_norm": "group", "fpn_norm": "group", "head_norm": "group", "weight_decay": 0},
        {"backbone_norm": "none", "schedule": "steps", "lr_steps": ()},
        {"extra_level": True, "anchor_sizes": (8, 16, 32, 64)},
        {"mask_pool_size": 1, "box_pool_size": 1, "mask_crop_size": 1, "mask_conv_channels": ()},
        {"image_min_size": 1, "image_max_size": 1},
        {"proposals": 1, "proposals_training": 1, "roi_batch_size": 1, "rpn_batch_size": 1},
        {"rpn_batch_size": 10**6, "roi_batch_size": 10**4, "max_detections": 10**5},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_choice_trains_and_detects(changes, pictures):
    config = small_config(detection_score_threshold=0.01, **changes)
    model = mr.MaskRCNN(config)
    model.compile()
    boxed = [[8, 4, 30, 40], [1, 1, 60, 60]]
    data = {
        "image": np.stack([pictures.image(i)[: config.canvas_size, : config.canvas_size] for i in range(2)]),
        "image_size": np.full((2, 2), config.canvas_size, np.float32),
        "boxes": np.float32([boxed] * 2)[:, : config.max_instances],
        "classes": np.ones((2, min(2, config.max_instances)), np.int32),
        "masks": np.full((2, min(2, config.max_instances), config.mask_crop_size, config.mask_crop_size), 255, "u1"),
        "seed": np.int32([1, 2]),
    }
    assert np.isfinite(list(step(model, data).values())).all()
    (found,) = model.detect([pictures.image(0)[:50, :40]])
    assert len(found) and found.masks.shape == (len(found), 50, 40) and np.isfinite(found.boxes).all()

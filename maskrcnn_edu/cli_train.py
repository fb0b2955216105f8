"""The command line's part for training: maskrcnn-edu train."""

import argparse
import dataclasses
import shutil
import sys

from maskrcnn_edu.cli_data import YEARS
from maskrcnn_edu.commands import change, check_writable, on_devices, open_dataset
from maskrcnn_edu.config import PRESETS
from maskrcnn_edu.errors import InputError
from maskrcnn_edu.presets import of_one_size, scaled

DESCRIPTION = "Train a model. It goes to a folder of its own under --logs."
SAVE_EVERY = 250  # steps
# What a run keeps when it goes on: the option's name, and what it is when nobody gives it.
KEPT = {
    "seed": 0, "limit": None, "split": YEARS["train"]["2017"], "keypoints": False, "skip_bad": False,
    "save_every": None, "validate_every": None, "validate_split": None, "validate_limit": None, "patience": 0,
    "tensorboard": False,
}  # fmt: skip


def add_train(parser):
    """Gives the parser of `maskrcnn-edu train` its arguments, beside those of the dataset."""
    parser.set_defaults(run=train)
    parser.add_argument(
        "--model", metavar="MODEL",
        help="coco: the published COCO weights for the preset's network (detectron2-r50 for the default) | imagenet: a "
        "ResNet that knows ImageNet | last: go on with the last run | new: start anew | PATH of a .keras or published "
        "file | a name of weights list (default: imagenet where the preset freezes norms, else new)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=PRESETS,
        help="settings to start from (default: tiny for shapes, else coco); with known weights, only its recipe",
    )  # fmt: skip
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes",
        help="change a field of the preset, for example --set batch_size=4; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--scale-lr", action="store_true",
        help="with another batch_size: change learning rate, steps and warm-up in proportion (linear scaling rule)",
    )  # fmt: skip
    parser.add_argument("--steps", type=positive, metavar="N", help="steps of the whole run (default: the preset's)")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the first weights and the order of the batches (default: 0)"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N images")
    parser.add_argument(
        "--save-every", type=positive, metavar="N",
        help="steps between checkpoints, and between lines of log.csv (default: 250, or --validate-every)",
    )  # fmt: skip
    parser.add_argument("--validate-every", type=positive, metavar="N", help="measure the AP every N steps")
    parser.add_argument(
        "--validate-split", metavar="SPLIT", help="on this split (default: the val of --split's train, as val2017)"
    )
    parser.add_argument("--validate-limit", type=positive, metavar="N", help="on its first N images (default: all)")
    parser.add_argument("--patience", type=positive, metavar="N", help="stop after N validations without a better AP")
    parser.add_argument(
        "--workers", type=_count, default=0, metavar="N", help="processes that read the images (default: two threads)"
    )
    parser.add_argument(
        "--skip-bad", action="store_true",
        help="coco: leave out what cannot be read or used, and say how much that was, instead of stopping",
    )  # fmt: skip
    parser.add_argument(
        "--devices", type=_devices, metavar="N|all",
        help="share each batch between N GPUs of this machine, or parts of the CPU where there is none; "
        "with several machines, of each (README)",
    )  # fmt: skip
    parser.add_argument(
        "--tensorboard", action="store_true", help="curves and pictures for TensorBoard (pip install tensorboard)"
    )


def train(options):
    """Trains, and says where the result is."""
    record = _take_over(options)
    dataset = open_dataset(options, options.limit, training=True)
    validation = _validation_dataset(options)
    config = None if record else _adapted(_preset(options), options, dataset)
    check_writable(options.logs, folder=True)
    with on_devices(options.devices):
        _train(options, record, dataset, validation, config)


def _train(options, record, dataset, validation, config):
    import keras

    from maskrcnn_edu import distribution, optimizers, runs, training

    keras.utils.set_random_seed(options.seed)
    if record:
        run = runs.last_run(options.logs, options.data)
        progress = runs.progress_of(run / runs.CHECKPOINT)
        distribution.check_same(progress.step, f"the steps that {run} has done")
        steps = options.steps or record["steps"]
        if (progress.stopped or progress.step >= steps) and "result" in record:
            print(f"{run} has done its {progress.step} steps; {_to_train_on(progress)}")
            return
        model = _last_model(run, dataset, steps)
        print(f"Going on with {run} at step {progress.step} of {steps}.")
    else:
        run, progress = runs.new_run(options.logs, options.data), runs.Progress()
        model = _first_model(config, options, dataset)
        steps = options.steps or model.config.train_steps
        _announce(model.config, options, dataset, steps, run)
        model.compile(optimizers.build_optimizer(model.config, steps))
    print("The first step takes longer, while the model is compiled.", flush=True)
    try:
        result = training.train(
            model, dataset, run, steps, options.seed, progress, save_every=options.save_every, validation=validation,
            validate_every=options.validate_every, validation_limit=options.validate_limit, patience=options.patience,
            tensorboard=options.tensorboard, settings={"options": {name: getattr(options, name) for name in KEPT}},
            verbose=1 if sys.stdout.isatty() else 2, workers=options.workers, skip_bad=options.skip_bad,
        )  # fmt: skip
    except InputError:
        if (
            distribution.is_chief() and progress.step == 0
        ):  # it never got anywhere: leave nothing that --model last would find
            shutil.rmtree(run, ignore_errors=True)
        raise
    except KeyboardInterrupt:
        print(f"\nStopped at step {progress.step} and saved; --model last goes on from {run}.")
        raise
    early = f" at step {result['step']}, since the AP no longer rose" if result["stopped_early"] else ""
    folder = f" --dataset {options.dataset}{' --keypoints' * options.keypoints}" if options.dataset else ""
    print(f"Done{early}: {run / runs.CHECKPOINT}")
    print(f"Measure it: maskrcnn-edu evaluate {options.data}{folder} --model last --logs {options.logs}")


def _take_over(options):
    """Fills in the options that nobody gave: as the run that goes on had them, or with their defaults.

    Returns the run.json of the run that goes on, or None for a new one.
    """
    record, kept = None, {}
    if options.model == "last":
        if options.preset or options.changes or options.scale_lr:
            raise InputError("--preset and --set cannot change a run that goes on; leave them out, or use --model new.")
        from maskrcnn_edu import runs

        record = runs.read_record(runs.last_run(options.logs, options.data))
        kept = record.get("options", {})
        options.changes = [f"image_channels={record['config'].get('image_channels', 3)}"]  # for the pictures
    for name, default in KEPT.items():
        given = getattr(options, name)
        given = default if given is None else given
        if name in kept and given not in (default, kept[name]):
            raise InputError(
                f"--{name.replace('_', '-')} cannot change in a run that goes on, which has {kept[name]}; leave it out."
            )
        setattr(options, name, kept.get(name, given))
    options.save_every = options.save_every or options.validate_every or SAVE_EVERY
    if (options.validate_every or 0) % options.save_every:
        raise InputError(
            f"--validate-every {options.validate_every} is no multiple of --save-every {options.save_every}; make it "
            "one."
        )
    if options.patience and not options.validate_every:
        raise InputError("--patience counts validations; give --validate-every too.")
    return record


def _validation_dataset(options):
    """The Dataset to measure the AP on while training, or None."""
    if not options.validate_every:
        return None
    usual = dict(zip(YEARS["train"].values(), YEARS["val"].values(), strict=True))
    split = options.validate_split or usual.get(options.split) or options.split.replace("train", "val")
    return open_dataset(argparse.Namespace(**{**vars(options), "split": split}))


def _preset(options):
    return PRESETS[options.preset or ("tiny" if options.data == "shapes" else "coco")]()


def _adapted(config, options, dataset):
    """`config` for the classes of the dataset, with the changes of --set and --scale-lr."""
    changes = {"num_classes": len(dataset.class_names), **dict(map(change, options.changes))}
    if options.scale_lr:
        if "learning_rate" in changes:
            raise InputError("--scale-lr works out the learning rate; leave --set learning_rate out.")
        sizes = [changes.pop(name, getattr(config, name)) for name in ("batch_size", "gradient_accumulation")]
        config = scaled(dataclasses.replace(config, batch_size=sizes[0], gradient_accumulation=sizes[1]), config)
    return dataclasses.replace(config, **of_one_size(changes))


def _first_model(config, options, dataset):
    """The model that a new run starts from; prints what has been filled with known weights."""
    from maskrcnn_edu.model import MaskRCNN
    from maskrcnn_edu.weights import start

    name = options.model or ("imagenet" if config.backbone_norm == "frozen" else "new")
    if name == "new":
        if config.trainable != ("all",) and not any(change.startswith("trainable") for change in options.changes):
            print("All layers learn: what starts from random numbers cannot stay as the preset would have it.")
            config = dataclasses.replace(config, trainable=("all",), trainable_steps=())
        return MaskRCNN(config, dataset.class_names)
    if name == "imagenet":
        model, report = start.from_backbone(config, dataset.class_names)
    else:
        name = start.coco_weights(config) if name == "coco" else name

        def adapt(theirs):
            recipe = start.with_recipe(theirs, _preset(options)) if options.preset else theirs
            return _adapted(recipe, options, dataset)

        model, report = start.fine_tuned(name, dataset.class_names, adapt)
    print(f"{name}: {report}")
    return model


def _last_model(run, dataset, steps):
    """The model of a run that goes on; its learning rate is planned over `steps`."""
    from maskrcnn_edu import optimizers, runs
    from maskrcnn_edu.evaluation import check_classes

    model = runs.load(run / runs.CHECKPOINT)
    check_classes(model, dataset, run / runs.CHECKPOINT)
    model.optimizer.learning_rate = optimizers.build_schedule(model.config, steps)
    return model


def _to_train_on(progress):
    if progress.stopped:
        return "its AP no longer rose. Start from it with --model and its best.keras."
    return f"give --steps above {progress.step} to train on."


def _announce(config, options, dataset, steps, run):
    """Says what is about to happen: size, batch, learning rate, layers."""
    classes = len(dataset.class_names) - 1
    print(f"Training for {steps} steps on {len(dataset)} images of {classes} classes; log in {run}.")
    images = config.batch_size * config.gradient_accumulation
    print(
        f"{config.batch_size} images a step, {images} an update; {config.optimizer}, learning rate "
        f"{config.learning_rate:.3g} by {config.schedule}; layers that learn: {', then '.join(config.trainable)}."
    )
    preset = _preset(options)
    usual = preset.batch_size * preset.gradient_accumulation
    if images != usual and not options.scale_lr and (options.preset or options.model in (None, "new", "imagenet")):
        print(
            f"The preset's learning rate is meant for {usual} images an update; --scale-lr would change it with them."
        )


def _count(text):
    return 0 if text == "0" else positive(text)


def _devices(text):
    return text if text == "all" else positive(text)


def positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)

"""What the commands of the command line do; `cli.py` has their arguments."""

import ast
import contextlib
import dataclasses
import logging
import os
import sys
import tempfile
from pathlib import Path

from maskrcnn_edu import cli_data, cli_model
from maskrcnn_edu.config import Config
from maskrcnn_edu.errors import InputError

SHAPES_TRAINING_IMAGES = 10_000
SHAPES_TEST_IMAGES = 200
DEMO_IMAGES = 6
DRAWN_SCORE = 0.5  # pictures with every doubtful detection are hard to read


def demo(options):
    check_writable(options.out, folder=True)
    import_keras()
    from maskrcnn_edu import runs
    from maskrcnn_edu.datasets import ShapesDataset
    from maskrcnn_edu.datasets.shapes import TEST_SEED
    from maskrcnn_edu.shipped import files

    model = runs.load(files("shapes.keras"))
    dataset = ShapesDataset(DEMO_IMAGES, seed=TEST_SEED)
    out = _folder(options.out)
    print("Looking at pictures; the first takes a few seconds longer, while the model is compiled.")
    for i in range(len(dataset)):
        image = dataset.load_image(i)
        found = _from_score(model.detect([image])[0], DRAWN_SCORE)
        _draw(out / f"shapes-{i + 1}.png", image, found, model.class_names)
        print(f"\n{out / f'shapes-{i + 1}.png'}")
        _print_detections(found, model.class_names)


def evaluate(options):
    dataset = open_dataset(options)
    if options.out:
        check_writable(options.out)
    if options.results:
        check_writable(options.results, folder=True)
    import_keras()
    from maskrcnn_edu import runs
    from maskrcnn_edu.evaluation import class_numbers
    from maskrcnn_edu.evaluation import evaluate as measure

    if not dataset.labelled and not options.results:
        raise InputError(f"{dataset.file} has no annotations to compare with; give --results DIR to write detections.")
    path = cli_model.path_of(options, options.data)
    model = cli_model.open_model(path, options.precision, options.keypoints)
    class_numbers(model, dataset, path)  # before the wait, and with the path
    dataset.channels = model.config.image_channels
    count = min(options.limit or len(dataset), len(dataset))
    print(f"Evaluating {path} on {count} images; the first takes longer, while the model is compiled.", flush=True)
    scores = measure(
        model, dataset, options.limit, options.batch_size, per_class=True, progress=_progress_bar(count),
        results=options.results,
    )  # fmt: skip
    scores.pop("per_class")
    by_class = scores.pop("per_class_sizes")
    if options.out:  # first: whoever reads what is printed may stop reading
        runs.write_json(options.out, scores)
    if options.results:
        print(f"Detections in COCO's results format: {options.results}")
    if not dataset.labelled:
        print(f"{dataset.file} has no annotations, so nothing is measured.")
        return
    for kind, values in scores.items():
        print(f"{kind}: " + "  ".join(f"{name} {_score(value)}" for name, value in values.items()))
    for kind, rows in by_class.items():
        header = "".join(f"{metric:>8}" for metric in next(iter(rows.values())))
        print(f"\n{f'{kind} by class':<22}{header}")
        for name, row in rows.items():
            print(f"  {name:<20}" + "".join(f"{_score(value):>8}" for value in row.values()))


def detect(options):
    from maskrcnn_edu.datasets import read_image

    images = [read_image(path) for path in options.images]  # all of them first: a bad one should not cost a wait
    check_writable(options.out, folder=True)
    import_keras()
    from maskrcnn_edu import runs
    from maskrcnn_edu.evaluation import as_coco

    model = cli_model.open_model(cli_model.path_of(options), options.precision)
    out = _folder(options.out)
    print(
        "The first photograph of each size takes some seconds longer, while the model is compiled for it.", flush=True
    )
    entries = []
    for path, image, image_id, picture in zip(
        options.images, images, _image_ids(options.images), _picture_names(options.images), strict=True
    ):
        (found,) = model.detect([image])
        for entry in as_coco(found, image_id, keypoint_offset=model.config.keypoint_offset):
            entries.append(
                {**entry, "file_name": Path(path).name, "category_name": model.class_names[entry["category_id"]]}
            )
        found = _from_score(found, options.score)
        _draw(out / picture, image, found, model.class_names)
        print(f"\n{path}: {len(found)} found, drawn in {out / picture}")
        _print_detections(found, model.class_names)
    runs.write_json(out / "detections.json", entries)
    print(f"\nAll of them in COCO's results format: {out / 'detections.json'}")


# What the commands share


def import_keras():
    """Keras, on one device."""
    with _quietly():
        import keras

        keras.ops.zeros(1)  # wakes the devices: a missing GPU is complained about now
    return keras


@contextlib.contextmanager
def on_devices(count):
    """Keras, on `count` devices and the machines that the environment names (`mr.devices`)."""
    with contextlib.ExitStack() as scope:
        with _quietly():
            from maskrcnn_edu import distribution

            scope.enter_context(distribution.devices(count))
            import_keras()
        if distribution.replicas() > 1:
            print(f"On {distribution.describe()}.", flush=True)
        yield


@contextlib.contextmanager
def _quietly():
    """Starts Keras without the notes that TensorFlow writes past Python onto stderr; they would bury ours."""
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend not in ("tensorflow", "jax"):
        raise InputError(f"KERAS_BACKEND is {backend!r}; set it to tensorflow or jax.")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("absl").setLevel(logging.ERROR)  # Grain would warn that JAX's profiler is missing
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"KERAS_BACKEND={backend} needs the package {error.name}, which is not installed.") from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def open_dataset(options, limit=None, training=False):
    from maskrcnn_edu.datasets import ShapesDataset, Subset
    from maskrcnn_edu.datasets.shapes import TEST_SEED, TRAIN_SEED

    if options.data == "coco":
        channels = dict(map(change, getattr(options, "changes", ()))).get("image_channels", 3)
        dataset = cli_data.open_coco(options, channels, getattr(options, "skip_bad", False))
        if problems := getattr(dataset, "problems", ()):
            print(f"Left out, since they are wrong: {len(problems)} entries (check-dataset lists them).")
    elif options.dataset:
        raise InputError("--dataset is for coco; shapes are drawn on the spot, so leave it out.")
    elif training:
        dataset = ShapesDataset(SHAPES_TRAINING_IMAGES, TRAIN_SEED)
    else:
        dataset = ShapesDataset(SHAPES_TEST_IMAGES, TEST_SEED)
    return Subset(dataset, range(min(limit, len(dataset)))) if limit else dataset


def change(text):
    """FIELD=VALUE of --set as a pair; Config checks the value."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(f"--set {text}: write FIELD=VALUE, for example --set batch_size=4.")
    fields = [field.name for field in dataclasses.fields(Config)]
    if name not in fields:
        import difflib

        near = difflib.get_close_matches(name, fields, 1)
        raise InputError(f"--set {text}: Config has no field {name!r}{f'; did you mean {near[0]}?' if near else '.'}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word, such as group


def check_writable(path, folder=False):
    """Raises InputError unless a file, or a folder of files, can be written at `path`; makes nothing."""
    path = Path(path)
    if path.exists() and path.is_dir() != folder:
        raise InputError(f"{path} is a {'folder; give a file' if path.is_dir() else 'file; give a folder'}.")
    there = path if folder else path.parent
    while not there.exists():
        there = there.parent
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another place.") from None


def _score(value):
    """A score of COCO's; a dash where there was nothing to measure."""
    return "-" if value < 0 else f"{value:.3f}"


def _folder(path):
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    return path


def _from_score(found, score):
    """The detections that score at least `score`."""
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    kept = found.scores >= score
    return type(found)(**{name: value[kept] if value is not None else None for name, value in values.items()})


def _draw(path, image, found, class_names):
    """A picture of the detections, written aside and renamed."""
    from maskrcnn_edu import plots

    figure = plots.instances(image, found, class_names=class_names).figure
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, format="png", dpi=120, bbox_inches="tight")
    os.replace(aside, path)


def _print_detections(found, class_names):
    print(f"  {'class':<20}{'score':>6}   {'y1':>7}{'x1':>7}{'y2':>7}{'x2':>7}{'pixels':>9}")
    for i in range(len(found)):
        box = "".join(f"{v:7.1f}" for v in found.boxes[i])
        pixels = f"{found.masks[i].sum():9d}" if found.masks is not None else ""
        print(f"  {class_names[found.classes[i]]:<20}{found.scores[i]:6.2f}   {box}{pixels}")


def _image_ids(paths):
    """COCO's names are numbers, which are the ids; other pictures are numbered as they come."""
    stems = [Path(path).stem for path in paths]
    if all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(paths) + 1))


def _picture_names(paths):
    """A name for each drawing; pictures of one name from several folders get a number."""
    names = []
    for path in paths:
        stem, number = Path(path).stem, 2
        name = f"{stem}.png"
        while name in names:
            name, number = f"{stem}-{number}.png", number + 1
        names.append(name)
    return names


def _progress_bar(count):
    """A progress bar over `count` images where somebody watches: a function of how many are done, or None."""
    if not sys.stdout.isatty():
        return None
    import keras

    return keras.utils.Progbar(count, unit_name="image").update

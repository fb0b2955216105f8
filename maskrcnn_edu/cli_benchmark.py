"""The command `benchmark`: time by stage on this machine, beside the last run's."""

import dataclasses
import json
import platform
from pathlib import Path

from maskrcnn_edu import cli_model, commands
from maskrcnn_edu.config import PRESETS
from maskrcnn_edu.errors import InputError

DESCRIPTION = (
    "Time a detection by stage, and a step of training, on this machine; compares with the last run of the same "
    "settings, which benchmark.json under --logs holds."
)
TOTALS = ("whole", "first", "training step", "first training step")  # no stages of a detection


def add_benchmark(parser):
    parser.set_defaults(run=benchmark)
    parser.add_argument(
        "--model", default="new", metavar="new|coco|last|PATH|NAME",
        help="whose network to time; new: weights drawn at random, since they do not change the time "
        "(default: %(default)s)",
    )  # fmt: skip
    cli_model.add_precision(parser)
    parser.add_argument("--preset", choices=PRESETS, help="settings of a new model (default: coco)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes", help="change a field of them"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), default=(768, 1024),
        help="of the photograph, and of the network's input (default: 768 1024)",
    )  # fmt: skip
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="photographs at a time (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="the fastest counts (default: 5)")
    parser.add_argument("--train", action="store_true", help="time a step of training too (a new model only)")
    cli_model.add_logs(parser)


def benchmark(options):
    if min(*options.size, options.batch, options.repeats) < 1:
        raise InputError("--size, --batch and --repeats are whole numbers from 1 on.")
    if options.model != "new" and (options.train or options.preset or options.changes):
        raise InputError("--train, --preset and --set are for a new model; leave out --model.")
    file = Path(options.logs) / "benchmark.json"
    runs = _earlier_runs(file)
    commands.check_writable(options.logs, folder=True)
    keras = commands.import_keras()
    from maskrcnn_edu import benchmark
    from maskrcnn_edu.runs import write_json

    keras.utils.set_random_seed(0)
    model = _model(options)
    height, width = options.size
    precision, backend = model.config.precision, keras.backend.backend()
    settings = {
        "machine": platform.node(), "backend": backend, "batch": options.batch, "size": [height, width],
        "config": json.loads(json.dumps(dataclasses.asdict(model.config))),
    }  # fmt: skip
    print(f"{options.batch} x {height} x {width}, {precision}, {backend}. First calls compile and take some seconds.")
    image = benchmark.photograph(height, width, len(model.config.pixel_mean))
    seconds, found = benchmark.time_detection(model, image, options.batch, options.repeats)
    if options.train:
        seconds.update(benchmark.time_training(model, options.repeats))
    last = next((run["seconds"] for run in runs if run["settings"] == settings), {})
    _print_table(seconds, last)
    print(f"{found} detections; memory at most {benchmark.peak_memory() / 2**30:.2f} GB.")
    runs = [run for run in runs if run["settings"] != settings]
    write_json(file, [*runs, {"settings": settings, "seconds": seconds, "detections": found}])


def _model(options):
    """The model that is asked for. A new one's boxes all count, since it is sure of none."""
    from maskrcnn_edu.model import MaskRCNN

    if options.model != "new":
        return cli_model.open_model(cli_model.path_of(options), options.precision)
    side = {"image_min_size": min(options.size), "image_max_size": max(options.size)}
    changes = {**side, "detection_score_threshold": 0.0, **dict(map(commands.change, options.changes))}
    if options.precision:
        changes["precision"] = options.precision
    return MaskRCNN(PRESETS[options.preset or "coco"](**changes))


def _earlier_runs(file):
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read ({error}); remove it, or give another --logs.") from error


def _print_table(seconds, last):
    """Milliseconds, share of all stages, and how that compares with the last run of the same settings."""
    stages = {name: value for name, value in seconds.items() if name not in TOTALS}
    print(f"{'stage':<22}{'ms':>9}{'share':>8}" + (f"{'last run':>11}{'ratio':>8}" if last else ""))
    for name, value in [*stages.items(), *((name, seconds[name]) for name in TOTALS if name in seconds)]:
        share = f"{value / sum(stages.values()):8.0%}" if name in stages else " " * 8
        line = f"{name:<22}{1000 * value:>9.1f}{share}"
        if name in last:
            line += f"{1000 * last[name]:>11.1f}{value / last[name]:>8.2f}"
        print(line)
    if not last:
        print("There is no earlier run of these settings to compare with.")

"""The command line: maskrcnn-edu demo | train | evaluate | detect | export | benchmark | weights | check-dataset |
book.

Keras and TensorFlow are imported inside the commands, so that --help answers at once. Exit codes: 0 done, 1 problems
found by check-dataset, 2 bad input (one sentence on stderr), 3 another machine of the run was lost, 130 interrupted.
"""

import argparse
import os
import sys

from maskrcnn_edu import (
    __version__,
    book,
    cli_benchmark,
    cli_data,
    cli_export,
    cli_model,
    cli_train,
    cli_weights,
    commands,
)
from maskrcnn_edu.errors import InputError, WorkerLost


def main(arguments=None) -> int:
    """Runs one command; `arguments` default to those of the process."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except InputError as error:
        print(f"maskrcnn-edu: {error}", file=sys.stderr)
        return 2
    except WorkerLost as error:
        print(f"maskrcnn-edu: {error}", file=sys.stderr)
        sys.stdout.flush()
        os._exit(3)  # JAX would wait for the lost machine before it lets this process end
    except BrokenPipeError:  # whoever read our output has closed it, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if error.filename is None:
            raise
        print(f"maskrcnn-edu: {error.filename}: {error.strerror}; check the path and its permissions.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("maskrcnn-edu: interrupted.", file=sys.stderr)
        return 130
    return 0


def _parser():
    parser = argparse.ArgumentParser(
        "maskrcnn-edu", description="Mask R-CNN: find the objects on a picture, with their boxes and masks."
    )
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    demo = _command(
        subparsers, "demo", commands.demo, "Detect on drawn shapes with the weights that ship, to see that it works."
    )
    demo.add_argument("--out", metavar="DIR", default="demo", help="where the pictures go (default: %(default)s)")

    train = subparsers.add_parser("train", help=cli_train.DESCRIPTION, description=cli_train.DESCRIPTION)
    _dataset_arguments(train, "train")
    cli_model.add_logs(train)
    cli_train.add_train(train)

    evaluate = _command(
        subparsers, "evaluate", commands.evaluate, "Measure a model: COCO's twelve numbers for boxes and masks."
    )
    _dataset_arguments(evaluate, "val")
    cli_model.add_model(evaluate)
    cli_model.add_precision(evaluate)
    evaluate.add_argument("--limit", type=cli_train.positive, metavar="N", help="only the first N images")
    evaluate.add_argument(
        "--batch-size", type=cli_train.positive, default=1, metavar="N", help="images run together (default: 1)"
    )
    evaluate.add_argument("--out", metavar="FILE", help="write the numbers to this JSON file")
    evaluate.add_argument(
        "--results", metavar="DIR",
        help="write the detections there in COCO's results format: bbox.json, segm.json, keypoints.json",
    )  # fmt: skip

    detect = _command(
        subparsers, "detect", commands.detect, "Find objects on photographs; draws them and lists them as COCO does."
    )
    detect.add_argument("images", nargs="+", metavar="IMAGE", help="picture files")
    cli_model.add_model(detect)
    cli_model.add_precision(detect)
    detect.add_argument(
        "--out",
        metavar="DIR",
        default="detections",
        help="where pictures and detections.json go (default: %(default)s)",
    )
    detect.add_argument(
        "--score", type=_share, default=commands.DRAWN_SCORE, metavar="S",
        help="draw and print what scores at least this; detections.json has all (default: %(default)s)",
    )  # fmt: skip

    export = subparsers.add_parser("export", help=cli_export.DESCRIPTION, description=cli_export.DESCRIPTION)
    cli_export.add_export(export)

    benchmark = subparsers.add_parser(
        "benchmark", help=cli_benchmark.DESCRIPTION, description=cli_benchmark.DESCRIPTION
    )
    cli_benchmark.add_benchmark(benchmark)

    weights = subparsers.add_parser("weights", help=cli_weights.DESCRIPTION, description=cli_weights.DESCRIPTION)
    cli_weights.add_weights(weights)
    check = subparsers.add_parser("check-dataset", help=cli_data.DESCRIPTION, description=cli_data.DESCRIPTION)
    cli_data.add_check(check)

    notebooks = _command(
        subparsers, "book", book.open_book, "Copy the book's notebooks to a folder and open them in JupyterLab."
    )
    notebooks.add_argument(
        "folder", nargs="?", default="maskrcnn_book", metavar="DIR",
        help="where they go; a notebook that is there already stays as it is (default: %(default)s)",
    )  # fmt: skip
    notebooks.add_argument("--no-open", action="store_true", help="copy only")
    return parser


def _command(subparsers, name, run, description):
    parser = subparsers.add_parser(name, help=description, description=description)
    parser.set_defaults(run=run)
    return parser


def _dataset_arguments(parser, kind):
    parser.add_argument(
        "data", choices=["shapes", "coco"], metavar="shapes|coco", help="drawn shapes, or a folder in COCO's layout"
    )
    parser.add_argument(
        "--dataset", metavar="DIR", help="COCO's folder: annotations/instances_SPLIT.json and SPLIT/ with the pictures"
    )
    cli_data.add_split(parser, kind)
    cli_data.add_download(parser)


def _share(text):
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number between 0 and 1")
    return share


if __name__ == "__main__":
    sys.exit(main())

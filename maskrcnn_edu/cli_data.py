"""The command line's part for datasets in COCO's layout: --dataset, --split, --year, --download; and check-dataset."""

import argparse
import os
import sys

from maskrcnn_edu.errors import InputError

DESCRIPTION = "Read every picture and annotation of a dataset once and print each problem with its place."
# The seed trained on train2014 and the 35k images of valminusminival2014, and measured on minival2014.
YEARS = {
    "train": {"2014": "train2014+valminusminival2014", "2017": "train2017"},
    "val": {"2014": "minival2014", "2017": "val2017"},
}


def add_split(parser, kind):
    """Gives a parser --split and --year; `kind`: train or val, the split of a year that it is for."""

    def of_year(year):
        if year not in YEARS[kind]:
            raise argparse.ArgumentTypeError(f"{year} is not one of {', '.join(YEARS[kind])}")
        return YEARS[kind][year]

    parser.add_argument(
        "--split", default=YEARS[kind]["2017"], metavar="SPLIT[+SPLIT]",
        help="folder and annotation file to use; two joined by + are one dataset (default: %(default)s)",
    )  # fmt: skip
    years = " | ".join(f"{year}: {split}" for year, split in YEARS[kind].items())
    parser.add_argument("--year", type=of_year, dest="split", help=f"COCO's splits of that year, for --split: {years}")
    parser.add_argument("--keypoints", action="store_true", help="coco's persons: person_keypoints_SPLIT.json instead")


def add_download(parser):
    """Gives a parser --download."""
    parser.add_argument(
        "--download", action="store_true",
        help="fetch what the split needs from COCO's publisher into --dataset, unless it is there (train2017: 19 GB)",
    )  # fmt: skip


def open_coco(options, channels=3, skip_bad=False):
    """The Dataset that --dataset, --split, --keypoints and --download describe."""
    from maskrcnn_edu.datasets import CocoDataset, ConcatenatedDataset, coco_download

    if not options.dataset:
        raise InputError("coco needs --dataset DIR, a folder with annotations/ and the pictures.")
    splits = options.split.split("+")
    if getattr(options, "download", False):
        for split in splits:
            coco_download.fetch(options.dataset, split, options.keypoints, _Progress())
    parts = [CocoDataset(options.dataset, split, options.keypoints, channels, skip_bad) for split in splits]
    return parts[0] if len(parts) == 1 else ConcatenatedDataset(parts)


class _Progress:
    """A line for each archive; where somebody watches, it is drawn over as the bytes come."""

    def __init__(self):
        self.shown = None

    def __call__(self, name, there, total):
        watched = sys.stdout.isatty()
        of_all = f" of {total / 1e6:,.0f}" if total else ""
        state = (name, int(100 * there / total) if total else there // 10**7) if watched else name
        if state != self.shown or there == total:
            end = "\r" if watched and there != total else "\n"
            if watched or state != self.shown:
                print(f"{name}: {f'{there / 1e6:,.0f}' if watched else ''}{of_all} MB", end=end, flush=True)
            self.shown = state


def add_check(parser):
    """Gives the parser of `maskrcnn-edu check-dataset` its arguments."""
    parser.set_defaults(run=check)
    parser.add_argument("dataset", metavar="DIR", help="a folder in COCO's layout: annotations/, and the pictures")
    add_split(parser, "val")
    parser.add_argument("--channels", type=int, default=3, metavar="N", help="of the pictures (default: %(default)s)")


def check(options):
    """Prints every problem and a summary; 1 if there was a problem, else 0."""
    from maskrcnn_edu.datasets import CocoDataset

    if not os.path.isdir(options.dataset):
        raise InputError(f"{options.dataset}: there is no such folder; check the path.")
    problems = images = objects = 0
    for split in options.split.split("+"):
        try:
            dataset = CocoDataset(options.dataset, split, options.keypoints, options.channels, skip_bad=True)
        except InputError as error:  # a file that holds nothing to go through
            print(error)
            problems += 1
            continue
        images += len(dataset.annotations["images"])
        objects += len(dataset.annotations["annotations"])
        for problem in dataset.problems:
            print(problem)
        problems += len(dataset.problems)
        for i in range(len(dataset)):
            for problem in dataset.problems_of(i):
                print(problem)
                problems += 1
            if sys.stderr.isatty():
                print(f"\r{split}: {i + 1} of {len(dataset)} images", end="", file=sys.stderr, flush=True)
        if sys.stderr.isatty():
            print(file=sys.stderr)
    found = f"{problems} problem{'s' * (problems != 1)}" if problems else "no problem"
    print(f"{options.dataset}: {found} in {options.split}, in which {images} images and {objects} objects are listed.")
    return 1 if problems else 0

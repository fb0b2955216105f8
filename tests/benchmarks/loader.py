"""How fast the loader is, where its time goes, and whether its memory stays flat. A script: it asserts nothing.

taskset -c 0 python tests/benchmarks/loader.py ../shared/coco_sample
python tests/benchmarks/loader.py ../shared/coco_sample --workers 2
python tests/benchmarks/loader.py ../shared/coco_sample --memory 2000 --batch-size 1
"""

import argparse
import ast
import cProfile
import itertools
import pstats
import time

import maskrcnn_edu as mr

# The functions that a stage is made of, by the name of their file and their own.
STAGES = {
    "decode JPEG": [("image_file.py", "read_image")],
    "masks from polygons and RLE": [("coco.py", "load_masks")],
    "boxes, checks": [("dataset.py", "instances"), ("coco.py", "load_image")],
    "augment at own resolution": [("augmentation.py", "augment")],
    "resize and crop": [("transforms.py", "resized_window")],
    "copy-paste": [("augmentation.py", "seen"), ("augmentation.py", "paste")],
    "boxes in the window": [("transforms.py", "crop_boxes")],
    "masks into their boxes": [("transforms.py", "crop_masks")],
    "pad": [("transforms.py", "pad")],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", help="a folder in COCO's layout")
    parser.add_argument("--split", default="train2017")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--batches", type=int, default=60, help="batches to measure (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--memory", type=int, default=0, metavar="N", help="watch the memory over N batches instead")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="FIELD=VALUE")
    options = parser.parse_args()
    changes = {"large_scale_jitter": (0.1, 2.0), "jitter_size": 1024, "batch_size": options.batch_size}
    changes.update((name, ast.literal_eval(value)) for name, _, value in (c.partition("=") for c in options.changes))
    config = mr.Config.coco(**changes)
    dataset = mr.CocoDataset(options.dataset, options.split)
    batches = mr.loader(dataset, config, workers=options.workers)
    if options.memory:
        watch_memory(batches, options.memory)
        return
    iterator = iter(batches)
    for _ in range(6):  # the first are made before the workers have started, the next while they start
        next(iterator)
    start = time.perf_counter()
    for _ in range(options.batches):
        next(iterator)
    rate = options.batches * config.batch_size / (time.perf_counter() - start)
    batches.close()
    print(f"{rate:.1f} images/s, workers {options.workers}, canvas {config.training_canvas_size}")
    if not options.workers:
        profile(dataset, config, options.batches)


def profile(dataset, config, count):
    """Milliseconds an image by stage, without threads: cumulative times of the stages' own functions."""
    batches = mr.loader(dataset, config)
    run = cProfile.Profile()
    run.enable()
    for step in range(count):
        batches.make(step)
    run.disable()
    times = {
        (file.rsplit("/", 1)[-1], name): row[3] for (file, _, name), row in pstats.Stats(run).stats.items()
    }  # fmt: skip
    images = count * config.batch_size
    total = sum(row[2] for row in pstats.Stats(run).stats.values())
    for stage, functions in STAGES.items():
        spent = sum(times.get(function, 0.0) for function in functions)
        if stage == "boxes, checks":  # without what they call
            spent -= times.get(("coco.py", "load_masks"), 0.0) + times.get(("image_file.py", "read_image"), 0.0)
        print(f"{stage:<30}{1000 * spent / images:8.2f} ms")
    print(f"{'all, with the stacking':<30}{1000 * total / images:8.2f} ms")


def watch_memory(batches, count):
    import os

    import psutil

    process = psutil.Process(os.getpid())
    for step, _ in enumerate(itertools.islice(batches, count), 1):
        if step in (50, 100) or step % 250 == 0:
            family = [process, *process.children(recursive=True)]
            print(f"batch {step}: {sum(one.memory_info().rss for one in family) / 2**20:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()

"""Seconds of a detection against image size, batch and depth: a table, and a plot.

    python tests/benchmarks/cost_by_size.py --out cost_by_size

Each setting runs in a process of its own, so that its peak memory is its own. Writes cost_by_size.json and .png.
"""

import argparse
import json
import resource
import subprocess
import sys

SHORT_SIDES, BATCHES, DEPTHS = (400, 800, 1200), (1, 2, 4), (50, 101)


def measure(short, batch, depth, repeats):
    """Seconds an image and gigabytes, in this process."""
    import keras

    import maskrcnn_edu as mr
    from maskrcnn_edu import benchmark

    keras.utils.set_random_seed(0)
    sides = {"image_min_size": short, "image_max_size": short * 4 // 3}
    model = mr.MaskRCNN(mr.Config.coco(depth, **sides, detection_score_threshold=0.0))
    images = [benchmark.photograph(short, short * 4 // 3)] * batch
    found, seconds = benchmark.fastest(model.detect, (images, batch), repeats)
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds / batch, "gigabytes": gigabytes, "detections": len(found[0])}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default="cost_by_size")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--one", nargs=3, type=int, metavar=("SHORT", "BATCH", "DEPTH"), help="only this, as JSON")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.repeats)))
        return
    results = []
    print(f"{'depth':>6}{'short side':>12}{'batch':>7}{'s / image':>11}{'GB':>7}")
    for depth in DEPTHS:
        for short in SHORT_SIDES:
            for batch in BATCHES:
                command = [sys.executable, __file__, "--repeats", str(options.repeats), "--one"]
                command += [str(short), str(batch), str(depth)]
                told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                found = json.loads(told.splitlines()[-1])
                results.append({"depth": depth, "short": short, "batch": batch, **found})
                print(f"{depth:>6}{short:>12}{batch:>7}{found['seconds']:>11.2f}{found['gigabytes']:>7.2f}", flush=True)
    with open(f"{options.out}.json", "w") as file:
        json.dump(results, file, indent=1)
    draw(results, f"{options.out}.png")


def draw(results, path):
    from matplotlib.figure import Figure

    from maskrcnn_edu.plots import COLOURS

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, name, label in zip(axes, ("seconds", "gigabytes"), ("seconds an image", "peak memory, GB"), strict=True):
        for depth, line in zip(DEPTHS, ("-", "--"), strict=True):
            for batch, mark, colour in zip(BATCHES, "os^", COLOURS, strict=False):
                own = [r for r in results if (r["depth"], r["batch"]) == (depth, batch)]
                sides, values = [r["short"] for r in own], [r[name] for r in own]
                ax.plot(sides, values, line + mark, color=colour, label=f"ResNet-{depth}, batch {batch}")
        ax.set(xlabel="short side, pixels", ylabel=label, xticks=SHORT_SIDES, ylim=(0, None))
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()

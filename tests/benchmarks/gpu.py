"""Images a second on a GPU, JAX beside torchvision in one run: inference and training at 800 x 1333.

    KERAS_BACKEND=jax python tests/benchmarks/gpu.py
    KERAS_BACKEND=jax python tests/benchmarks/gpu.py --size 128 192 --batches 1 2 --cpu      # to try the script

Each setting runs in a process of its own. Both systems get the same sizes, 1000 proposals, 100 detections and 512
sampled RoIs; torchvision's masks are pasted on the device, ours in NumPy (both within the time). Where torchvision is
not installed, ours run alone.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "jax")


def ours(task, size, batch, precision, repeats, cpu):
    import keras

    import maskrcnn_edu as mr
    from maskrcnn_edu import benchmark

    keras.utils.set_random_seed(0)
    config = mr.Config.torchvision(
        image_min_size=min(size), image_max_size=max(size), precision=precision, batch_size=batch,
        detection_score_threshold=0.0,
    )  # fmt: skip
    model = mr.MaskRCNN(config)
    if task == "detect":
        images = [benchmark.photograph(*size)] * batch
        return benchmark.fastest(model.detect, (images, batch), repeats)[1]
    model.compile(keras.optimizers.SGD(1e-5, momentum=0.9))
    return benchmark.fastest(model.train_on_batch, (benchmark.synthetic_batch(config),), repeats)[1]


def theirs(task, size, batch, precision, repeats, cpu):
    import numpy as np
    import torch
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    device = "cpu" if cpu else "cuda"
    rng = np.random.default_rng(0)
    net = maskrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=min(size), max_size=max(size), box_score_thresh=0.0
    ).to(device)
    precise = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
    shape = size if task == "detect" else (max(size), max(size))  # ours trains on squares
    images = [torch.from_numpy(rng.random((3, *shape), np.float32)).to(device) for _ in range(batch)]
    if task == "detect":
        net.eval()

        def step():
            with torch.inference_mode(), precise:
                return [{k: v.cpu() for k, v in found.items()} for found in net(images)]
    else:
        net.train()
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9)
        corners = np.sort(rng.uniform(0, max(size), (3, 2, 2)), axis=1).reshape(3, 4)
        boxes = torch.tensor(corners + [0, 0, 2, 2], dtype=torch.float32, device=device)
        masks = torch.ones((3, *shape), dtype=torch.uint8, device=device)
        labels = torch.tensor([1, 2, 3], device=device)
        targets = [{"boxes": boxes, "labels": labels, "masks": masks} for _ in range(batch)]

        def step():
            with precise:
                loss = sum(net(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.item()

    best = float("inf")
    for turn in range(repeats + 1):
        start = time.perf_counter()
        step()
        if not cpu:
            torch.cuda.synchronize()
        if turn:
            best = min(best, time.perf_counter() - start)
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1333), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cpu", action="store_true", help="without a GPU, to try the script")
    parser.add_argument("--one", nargs=4, metavar=("SYSTEM", "TASK", "BATCH", "PRECISION"), help="only this, as JSON")
    options = parser.parse_args()
    if options.cpu:
        os.environ["JAX_PLATFORMS"] = "cpu"
    if options.one:
        system, task, batch, precision = options.one
        measure = {"ours": ours, "torchvision": theirs}[system]
        print(json.dumps(measure(task, tuple(options.size), int(batch), precision, options.repeats, options.cpu)))
        return
    systems = ["ours"] + ["torchvision"] * (importlib.util.find_spec("torchvision") is not None)
    print(
        f"{'task':<8}{'batch':>6} {'precision':<10}" + "".join(f"{s + ', images/s':>24}" for s in systems) + "   ratio"
    )
    for task in ("detect", "train"):
        for batch in options.batches:
            for precision in ("float32", "bfloat16"):
                rates = [batch / one(system, task, batch, precision, options) for system in systems]
                ratio = f"{rates[0] / rates[1]:8.2f}" if len(rates) == 2 else ""
                print(
                    f"{task:<8}{batch:>6} {precision:<10}" + "".join(f"{r:>24.2f}" for r in rates) + ratio, flush=True
                )


def one(system, task, batch, precision, options):
    command = [sys.executable, __file__, "--size", *map(str, options.size), "--repeats", str(options.repeats)]
    command += ["--cpu"] * options.cpu + ["--one", system, task, str(batch), precision]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"{system} {task} {batch} {precision} failed: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return float("nan")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

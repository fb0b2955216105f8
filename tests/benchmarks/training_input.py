"""How long training waits for its input: ResNet-50, 2 x 512 x 512. usage: python training_input.py COCO_DIR [STEPS]

Prints the milliseconds of a step, the share of them spent waiting for a batch, and what looking at the loss after every
step costs beside not looking.
"""

import sys
import time

import numpy as np

import maskrcnn_edu as mr


def main(folder, steps=20):
    dataset = mr.CocoDataset(folder, "train2017")
    config = mr.Config.coco(image_min_size=512, image_max_size=512, batch_size=2, num_classes=len(dataset.class_names))
    model = mr.MaskRCNN(config, dataset.class_names)
    model.compile()
    batches = iter(mr.loader(dataset, config))
    batch = next(batches)
    model.train_on_batch(batch)  # compiles
    waited = worked = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        model.train_on_batch(batch)
        waited, worked = waited + ready - start, worked + time.perf_counter() - ready
    print(
        f"{1000 * (waited + worked) / steps:.0f} ms a step; waiting for input {100 * waited / (waited + worked):.2f} %"
    )
    logs = model.get_metrics_result()
    start = time.perf_counter()
    for _ in range(1000):
        np.isfinite(float(np.mean(logs["loss"])))
    print(f"looking at the loss: {(time.perf_counter() - start):.3f} ms a step")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

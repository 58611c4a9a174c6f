"""Measures the parts of the input's cost, and models from them what 1 to 16 worker processes give. Writes raw JSON.

    python experiments/input_rate/scaling.py --images=runs/jpegs --output=experiments/input_rate/scaling.json

See README.md beside this file. Processor time only, parts in turn: other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from inception_jax.benchmarks.input_sides import worker_seconds
from inception_jax.data import datasets, images, pipeline

BATCH, SIDE = 64, 224
THREADS = 4  # of a worker, the default
FILL_SECONDS = 1.0
COUNTS = (1, 2, 4, 8, 12, 16)
H200 = {"training": 11_570, "inference": 39_750}
"""Images per second of GoogLeNet on one H200 (experiments/step_time)."""


def training(dataset: datasets.Dataset, workers: int = 0) -> pipeline.TrainPipeline:
    """The training input, with one thread."""
    return pipeline.TrainPipeline(
        dataset, batch_size=BATCH, image_size=SIDE, seed=0, augmentation={}, threads=1, workers=workers
    )


def per_image(run: Callable[[], object], count: int) -> float:
    """Microseconds of the processor per image."""
    start = time.process_time()
    run()
    return 1e6 * (time.process_time() - start) / count


class Parts:
    """Measures each part once per call of its method; all in microseconds per image."""

    def __init__(self, folder: Path):
        self.photographs = datasets.load(f"folder:{folder}", "train")
        self.train = training(self.photographs)
        self.evaluation = pipeline.EvalPipeline(
            self.photographs, batch_size=BATCH, image_size=SIDE, threads=1, workers=0
        )
        noise = datasets.load(f"synthetic:10:{SIDE}", "train[:4096]")
        self.noise = training(noise)
        self.loader = training(noise, workers=1).batches(0)
        for number in range(11):  # every photograph is in the page cache, the worker has started, its queues are full
            self.train.batch(number)
            self.noise.batch(number)
            next(self.loader)
        self.batch = self.train.batch(0)["image"]
        self.number = 0

    def train_image(self) -> float:
        """A training image, made by a thread."""
        self.number += 1
        return per_image(lambda: self.train.batch(self.number), BATCH)

    def eval_image(self) -> float:
        """An evaluation image: the whole file is decoded."""
        return per_image(lambda: self.evaluation.batch(self.number % 8), BATCH)

    def python_image(self) -> float:
        """The part of a training image that holds Python's lock: without decoder and resize."""
        decoded, small = np.zeros((375, 500, 3), np.uint8), np.zeros((SIDE, SIDE, 3), np.uint8)
        real = images.jpeg_rows.decode, cv2.resize, cv2.flip
        images.jpeg_rows.decode = lambda *_, **__: decoded
        cv2.resize, cv2.flip = (lambda *_, **__: small), (lambda *_, **__: small)
        try:
            return per_image(lambda: self.train.batch(self.number), BATCH)
        finally:
            images.jpeg_rows.decode, cv2.resize, cv2.flip = real

    def hand_over(self) -> tuple[float, float]:
        """What a worker adds, (in it, in the trainer): by images of noise, whose own cost is taken off."""
        batches = 24
        time.sleep(FILL_SECONDS)
        own = worker_seconds(), time.process_time()
        for _ in range(batches):
            next(self.loader)
        trainer = time.process_time() - own[1]
        time.sleep(FILL_SECONDS)  # the queues are full again: the worker has made as many batches as were taken
        worker = worker_seconds() - own[0]
        made = per_image(lambda: [self.noise.batch(k) for k in range(8)], 8 * BATCH)
        return 1e6 * worker / (batches * BATCH) - made, 1e6 * trainer / (batches * BATCH)

    def copy(self) -> float:
        """One copy of a batch in memory."""
        target = np.empty_like(self.batch)
        return per_image(lambda: [np.copyto(target, self.batch) for _ in range(8)], 8 * BATCH)


def model(parts: dict[str, float], image: str, workers: int) -> dict[str, float]:
    """Images per second of so many workers of `THREADS` threads, each with cores of its own, by the parts alone."""
    one = parts[image] + max(0.0, parts["worker"])
    threads = THREADS / one
    lock = 1 / (parts["python_image"] + max(0.0, parts["worker"]))  # one thread at a time holds Python's lock
    trainer = 1 / parts["trainer"]  # one thread of the trainer takes all batches
    return {
        "images_per_second": 1e6 * min(workers * min(threads, lock), trainer),
        "of_workers": 1e6 * workers * min(threads, lock),
        "of_the_trainer": 1e6 * trainer,
        "cores": workers * THREADS,
    }


def main() -> None:
    """Measures, models, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, required=True, help="what corpus.py made")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    flags = parser.parse_args()
    measured = Parts(flags.images)
    rounds: list[dict[str, float]] = []
    for _ in range(flags.rounds):
        row = {name: getattr(measured, name)() for name in ("train_image", "eval_image", "python_image", "copy")}
        row["worker"], row["trainer"] = measured.hand_over()
        rounds.append(row)
    measured.loader.close()
    parts = {name: statistics.median(row[name] for row in rounds) for name in rounds[0]}
    modelled: dict[str, dict[str, object]] = {}
    for use, image in (("training", "train_image"), ("inference", "eval_image")):
        rates = {str(count): model(parts, image, count) for count in COUNTS}
        needed = H200[use] * (parts[image] + max(0.0, parts["worker"]) + parts["trainer"]) / 1e6
        workers = next((n for n in range(1, 129) if model(parts, image, n)["images_per_second"] >= H200[use]), None)
        modelled[use] = {"h200": H200[use], "cores_needed": needed, "workers_needed": workers, "rates": rates}
        print(f"{use}: {H200[use]:,} images/s need {math.ceil(needed)} cores; {workers} workers of {THREADS} threads")
        for count, rate in rates.items():
            print(f"  {count:>3s} workers {rate['images_per_second']:8,.0f} images/s")
    content = {"microseconds_per_image": parts, "rounds": rounds, "threads_per_worker": THREADS, "model": modelled}
    flags.output.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(parts))


if __name__ == "__main__":
    main()

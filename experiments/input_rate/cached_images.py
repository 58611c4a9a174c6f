"""Measures a training image that is decoded, and one that `data.cache_mb` keeps decoded, in processor time, in turn.

    python experiments/input_rate/cached_images.py --images=runs/jpegs \
        --output=experiments/input_rate/cached_images.json

Of the JPEGs that corpus.py made, at 224 pixels, and of the embedded digits as PNG files of 28 x 28 pixels. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import cv2

from inception_jax.data import datasets, digits
from inception_jax.data.pipeline import TrainPipeline

BATCH, BATCHES = 64, 2  # of a measurement
COUNTS = {"photographs": (224, 256), "digits": (28, 1024)}  # pixels of the network's input, images


def write_digits(folder: Path) -> None:
    """Writes class folders of PNG files."""
    images, labels, _ = digits.load("train")
    for number, (image, label) in enumerate(zip(images[: COUNTS["digits"][1]], labels, strict=False)):
        (folder / "train" / str(label)).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / "train" / str(label) / f"{number}.png"), cv2.resize(image, (28, 28)))


def measure(folder: Path, size: int, count: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds of one thread per image, by round: {"decoded": [...], "kept": [...]}."""
    dataset = datasets.load(f"folder:{folder}", f"train[:{count}]")

    def pipeline(cache_mb: int) -> TrainPipeline:
        return TrainPipeline(
            dataset, batch_size=BATCH, image_size=size, seed=0, augmentation={}, workers=0, cache_mb=cache_mb
        )

    sides, found = {"decoded": pipeline(0), "kept": pipeline(1000)}, {"decoded": [], "kept": []}
    first = -(-count // BATCH)  # batch of the second epoch
    for batch in range(first):
        sides["kept"].batch(batch)
    for number in range(rounds):
        for name, side in sides.items():
            start = time.thread_time()
            for batch in range(BATCHES):
                side.batch(first + BATCHES * number + batch)
            found[name].append((time.thread_time() - start) * 1e6 / (BATCH * BATCHES))
    return found


def main() -> None:
    """Measures both sets, and writes the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, required=True, help="what corpus.py made")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_digits(Path(folder))
        folders = {"photographs": flags.images, "digits": Path(folder)}
        result = {name: measure(folders[name], *COUNTS[name], flags.rounds) for name in COUNTS}
    flags.output.write_text(json.dumps(result, indent=1) + "\n")
    for name, found in result.items():
        ratios = [kept / decoded for decoded, kept in zip(found["decoded"], found["kept"], strict=True)]
        print(
            f"{name}: decoded {statistics.median(found['decoded']):.0f} µs, kept {statistics.median(found['kept']):.0f}"
            f" µs, {statistics.median(ratios):.3f} of the time ({min(ratios):.3f} to {max(ratios):.3f})"
        )


if __name__ == "__main__":
    main()

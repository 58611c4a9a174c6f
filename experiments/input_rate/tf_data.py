"""Measures the input of tf.data: images per second, and per CPU-second. Prints JSON.

    python experiments/input_rate/tf_data.py --images=runs/jpegs/train --seconds=8

Imports nothing of this repository. The same work as ours: random resized crop (8 to 100 % of the area) to 224 pixels,
random flip, batches of 64, uint8, two threads.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIDE, BATCH, PARALLEL = 224, 64, 2
WARMUP_BATCHES = 8


def tf_data(folder: Path) -> Iterator[Any]:
    """tf.data with the fused decode-and-crop, in one process."""
    import tensorflow as tf

    paths = sorted(map(str, folder.glob("*/*.jpg")))

    def load(path: Any) -> Any:
        encoded = tf.io.read_file(path)
        shape = tf.io.extract_jpeg_shape(encoded)
        begin, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            tf.zeros([1, 0, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=(3 / 4, 4 / 3),
            area_range=(0.08, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], size[0], size[1]])
        image = tf.image.decode_and_crop_jpeg(encoded, window, channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, (SIDE, SIDE)))
        return tf.cast(tf.round(image), tf.uint8)

    options = tf.data.Options()
    options.threading.private_threadpool_size = PARALLEL
    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths)).repeat()
    dataset = dataset.map(load, num_parallel_calls=PARALLEL).batch(BATCH).prefetch(2).with_options(options)
    return iter(dataset.as_numpy_iterator())


def main() -> None:
    """Measures tf.data."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--seconds", type=float, default=8.0)
    flags = parser.parse_args()
    batches = tf_data(flags.images)
    for _ in range(WARMUP_BATCHES):
        next(batches)
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < flags.seconds:
        next(batches)
        count += BATCH
    passed, cpu = time.perf_counter() - start, time.process_time() - cpu
    print(json.dumps({"images_per_second": count / passed, "images_per_cpu_second": count / cpu}))


if __name__ == "__main__":
    main()

"""Has the package `datasets` itself write a small data set, as `save_to_disk` and as a repository of the hub.

    python tests/data/make_huggingface_sets.py            the golden: tests/data/huggingface_by_datasets

The golden was written with Python 3.11, datasets 5.2.0 and pyarrow 26.0.1.
"""

import hashlib
import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

GOLDEN = Path(__file__).with_name("huggingface_by_datasets")
NAMES = ["round", "square", "flat"]
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=NAMES),
        "tags": datasets.List(datasets.ClassLabel(names=["small", "old"])),
        "note": datasets.Value("string"),
    }
)


def encoded(number: int) -> bytes:
    """The bytes of image `number`: PNG or JPEG."""
    pixels = np.random.default_rng(number).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG" if number % 2 else "PNG")
    return stream.getvalue()


def split(numbers: range, labelled: bool = True) -> datasets.Dataset:
    """The rows of some images."""
    suffixes = ("png", "jpg")
    rows = {
        "image": [{"bytes": encoded(number), "path": f"{number:03d}.{suffixes[number % 2]}"} for number in numbers],
        "label": [number % 3 if labelled else -1 for number in numbers],
        "tags": [[0] * (number % 2) + [1] * (number % 3 > 0) for number in numbers],
        "note": ["nothing"] * len(numbers),
    }
    return datasets.Dataset.from_dict(rows, features=FEATURES)


def main() -> None:
    """Writes the golden."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    parts = datasets.DatasetDict(
        {"train": split(range(7)), "validation": split(range(7, 10)), "test": split(range(10, 12), labelled=False)}
    )
    parts.save_to_disk(GOLDEN / "disk", num_shards={"train": 2, "validation": 1, "test": 1})
    folder = GOLDEN / "hub" / "data"
    folder.mkdir(parents=True)
    for name, part in parts.items():
        shards = 2 if name == "train" else 1
        for shard in range(shards):
            rows = part.shard(shards, shard, contiguous=True)
            rows.to_parquet(folder / f"{name}-{shard:05d}-of-{shards:05d}.parquet", batch_size=2)
    expected = {
        name: [[row["label"], row["tags"], hashlib.sha256(row["image"]["bytes"]).hexdigest()] for row in part]
        for name, part in parts.cast_column("image", datasets.Image(decode=False)).items()
    }
    (GOLDEN / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Has TFDS and TensorFlow themselves write a small data set in its three file formats. Needs both installed.

  python tests/data/make_prepared_sets.py FOLDER COUNT SHARDS    COUNT training examples in FOLDER/FORMAT/shapes/…
  python tests/data/make_prepared_sets.py                        the golden: tests/data/prepared_by_tfds

The golden was written with Python 3.11, tensorflow 2.21.0 and tensorflow-datasets 4.9.10. It has no ArrayRecord files,
each of which takes 64 kB.
"""

import hashlib
import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

GOLDEN = Path(__file__).with_name("prepared_by_tfds")
COUNTS = {"train": 1.0, "validation": 0.5, "test": 0.25}  # of the training examples


def encoded(number: int) -> bytes:
    """The bytes of image `number`: PNG or JPEG, in colour or grey."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(6, 14, 2)
    grey = number % 5 == 4
    image = Image.fromarray(rng.integers(0, 256, (height, width) if grey else (height, width, 3), dtype=np.uint8))
    stream = io.BytesIO()
    image.save(stream, "JPEG" if number % 2 else "PNG")
    return stream.getvalue()


class Shapes(tfds.core.GeneratorBasedBuilder):
    """`plain` has one image and one label; `pairs` several, one pair of them nested; `flags` has a bool per class."""

    VERSION = tfds.core.Version("1.2.0")
    BUILDER_CONFIGS = tuple(tfds.core.BuilderConfig(name=name) for name in ("plain", "pairs", "flags"))
    count = 8

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(None, None, 3))
        features = {"image": image}
        if self.builder_config.name == "flags":  # as CelebA has them
            features["attributes"] = {"young": np.bool_, "bald": np.bool_, "5_o_clock_shadow": np.bool_}
            features |= {"points": {"x": np.int64, "y": np.int64}, "bits": {"low": np.int64, "high": np.int64}}
            features |= {"odd": np.bool_, "late": np.bool_}
        else:
            features["label"] = tfds.features.ClassLabel(names=["round", "square", "flat"])
        if self.builder_config.name == "pairs":
            features |= {"other": image, "coarse": tfds.features.ClassLabel(num_classes=2)}
            features["tags"] = tfds.features.Sequence(tfds.features.ClassLabel(num_classes=4))
            features["second"] = {
                "view": tfds.features.Image(shape=(None, None, 1)),
                "size": tfds.features.ClassLabel(names=["small", "large"]),
            }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Noise.",
            features=tfds.features.FeaturesDict({**features, "number": np.int64}),
            supervised_keys=("image", "label") if self.builder_config.name == "plain" else None,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        starts = np.cumsum([0, *(int(self.count * part) for part in COUNTS.values())])
        return {
            split: self._generate_examples(int(start), int(stop))
            for split, start, stop in zip(COUNTS, starts, starts[1:], strict=False)
        }

    def _generate_examples(self, start, stop):
        for number in range(start, stop):
            example = {"image": io.BytesIO(encoded(number)), "number": number}
            if self.builder_config.name == "flags":
                bits = [bool(number >> place & 1) for place in range(4)]
                example["attributes"] = dict(zip(("young", "bald", "5_o_clock_shadow"), bits, strict=False))
                example |= {"points": {"x": number % 2, "y": 7 + number}, "bits": {"low": bits[0], "high": bits[3]}}
                example |= {"odd": bits[0], "late": bits[3]}
            else:
                example["label"] = number % 3
            if self.builder_config.name == "pairs":
                example |= {"other": io.BytesIO(encoded(number + 1)), "coarse": number % 2, "tags": [number % 4, 1]}
                example["second"] = {"view": io.BytesIO(encoded(10 * number + 4)), "size": number % 2}
            yield f"key{number}", example


def write(folder: Path, count: int, shards: int, formats: tuple[str, ...], configs: tuple[str, ...]) -> None:
    """Writes the data set below `folder/FORMAT`."""
    Shapes.count = count
    for file_format in formats:
        for config in configs:
            builder = Shapes(data_dir=folder / file_format, config=config, file_format=file_format)
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(num_shards=shards), file_format=file_format
            )


def expected(folder: Path, config: str) -> dict[str, list[list]]:
    """What TensorFlow reads of the TFRecord files: [label, number, SHA-256 of the bytes of the image] per example."""
    builder = tfds.builder_from_directory(folder / "tfrecord" / "shapes" / config / "1.2.0")
    found, in_order = {}, tfds.ReadConfig(interleave_cycle_length=1)  # else 16 records of each file in turn
    for split in COUNTS:
        decoders = {"image": tfds.decode.SkipDecoding()}
        dataset = builder.as_dataset(split=split, decoders=decoders, read_config=in_order)
        found[split] = [
            [int(e["label"]), int(e["number"]), hashlib.sha256(e["image"]).hexdigest()]
            for e in dataset.as_numpy_iterator()
        ]
    return found


def main() -> None:
    if len(sys.argv) > 1:
        folder, count, shards = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
        write(folder, count, shards, ("tfrecord", "array_record", "parquet"), ("plain", "flags"))
        (folder / "expected.json").write_text(json.dumps(expected(folder, "plain")))
        return
    shutil.rmtree(GOLDEN, ignore_errors=True)
    write(GOLDEN, 8, 2, ("tfrecord",), ("plain", "pairs", "flags"))
    write(GOLDEN, 8, 2, ("parquet",), ("plain", "flags"))
    (GOLDEN / "expected.json").write_text(json.dumps(expected(GOLDEN, "plain")) + "\n")
    print(tf.__version__, tfds.__version__)


if __name__ == "__main__":
    main()

"""Measures how long it takes to read one encoded image in random order, by the format of its file, in turn.

    python experiments/input_rate/records.py --images=runs/jpegs --output=experiments/input_rate/records.json

Of the JPEGs that corpus.py made, which are written in each format first. Nothing is decoded, and no row group of a
Parquet file is kept, as of a set that is much larger than what is kept. See README.md beside this file.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from inception_jax.data import datasets, prepare, tables

READS = 400  # per round; of row groups a twentieth
GROUPED = "Parquet, compressed, row groups of 100"


def write(images: Path, folder: Path) -> dict[str, datasets.Dataset]:
    """Writes the images in each format; returns {format: data set}."""
    files = datasets.load(f"folder:{images}", "train")
    records = [files.record(index) for index in range(files.num_examples)]
    names = pa.array([f"{index}.jpg" for index in range(len(records))])
    contents = pa.StructArray.from_arrays([pa.array([image for image, _ in records]), names], ["bytes", "path"])
    feature = {"image": {"_type": "Image"}, "label": {"names": files.class_names, "_type": "ClassLabel"}}
    rows = pa.table({"image": contents, "label": [label for _, label in records]})
    rows = rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    plain, compressed, arrow = (folder / name / "train" for name in ("plain", "compressed", "arrow"))
    for path in (plain, compressed, arrow):
        path.parent.mkdir()
    pa.parquet.write_table(
        rows, plain.with_suffix(".parquet"), compression="none", use_dictionary=False, row_group_size=350
    )
    pa.parquet.write_table(rows, compressed.with_suffix(".parquet"), row_group_size=100)
    with pa.OSFile(str(arrow.with_suffix(".arrow")), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=100)
    with tarfile.open(folder / "train.tar", "w") as tar:
        for index, (image, label) in enumerate(records):
            for name, content in ((f"{index}.jpg", image), (f"{index}.cls", b"%d" % label)):
                about = tarfile.TarInfo(name)
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
    with contextlib.redirect_stderr(io.StringIO()):
        code = prepare.main(
            ["huggingface", "--name=jpegs", f"--source={arrow.parent}", f"--data_dir={folder}", "--check=counts"]
        )
    if code:
        raise SystemExit(code)
    return {
        "files in class folders": files,
        "Arrow": datasets.load(f"huggingface:{arrow.parent}", "train"),
        "Parquet, neither compressed nor in a dictionary": datasets.load(f"huggingface:{plain.parent}", "train"),
        "tar": datasets.load(f"webdataset:{folder}/train.tar", "train"),
        "ArrayRecord": datasets.load("jpegs", "train", str(folder)),
        GROUPED: datasets.load(f"huggingface:{compressed.parent}", "train"),
    }


def main() -> None:
    """Measures all formats, and writes the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--images", type=Path, required=True, help="what corpus.py made")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    flags = parser.parse_args()
    tables.KEPT_BYTES = 1
    with tempfile.TemporaryDirectory() as folder:
        sets = write(flags.images, Path(folder))
        found: dict[str, list[float]] = {name: [] for name in sets}
        rng = np.random.default_rng(0)
        for number in range(flags.rounds + 1):
            for name, data in sets.items():
                count = READS // 20 if name == GROUPED else READS
                places = rng.integers(0, data.num_examples, count).tolist()
                start = time.process_time()
                for place in places:
                    data.record(place)
                if number:  # the first opens the files
                    found[name].append((time.process_time() - start) * 1e6 / count)
    flags.output.write_text(json.dumps(found, indent=1) + "\n")
    for name, rounds in found.items():
        print(f"{name}: {statistics.median(rounds):,.0f} µs ({min(rounds):,.0f} to {max(rounds):,.0f})")


if __name__ == "__main__":
    main()

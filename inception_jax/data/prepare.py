"""`python -m inception_jax.data.prepare NAME`: prepares a data set for TFDS and this package, without TensorFlow.

  python -m inception_jax.data.prepare fashion_mnist                                (Debian: dataset-fashion-mnist)
  python -m inception_jax.data.prepare fashion_mnist --source=FOLDER_OF_THE_FOUR_IDX_FILES
  python -m inception_jax.data.prepare imagenet2012 --source=FOLDER_OF_THE_TWO_TARS
  python -m inception_jax.data.prepare folder --name=flowers --source=FOLDER_OF_CLASS_FOLDERS
  python -m inception_jax.data.prepare folder --name=flowers --source=FOLDER --resize=256            (smaller images)
  python -m inception_jax.data.prepare huggingface --name=food101 --source=FOLDER_OR_ORGANIZATION/NAME
  python -m inception_jax.data.prepare digits                                       (optional: they are embedded)
  python -m inception_jax.data.prepare convert NAME --output=FOLDER              (TFRecord or Parquet to ArrayRecord)
  python -m inception_jax.data.prepare NAME --import=FILE.py                   (your own TFDS builder)

Nothing is downloaded, except by a builder of your own. After an interruption, the same command continues where it
stopped; with --import, TFDS begins anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inception_jax import standard_streams
from inception_jax.data import split_names
from inception_jax.data.label_sets import KINDS
from inception_jax.data.prepared_sets import KINDS_WITH_PATH, default_data_dir
from inception_jax.errors import ArgumentParser, UserError, nearest
from inception_jax.ranges import MAX_IMAGE_PIXELS, MAX_SIDE, Range

RAW = "raw"
"""The value of `--quality` without compression."""
NAMES = ("digits", "fashion_mnist", "imagenet2012", "folder", "huggingface", "convert")
_NAMED = ("folder", "huggingface")
_EMBEDDED = ("digits", "synthetic")  # names of data sets that are read from no folder
_OF_HUGGINGFACE = ("image_key", "label_key", "labels")
# The options that `convert` has no use for.
_NOT_OF_CONVERT = ("source", "class_names", "check", "max_pixels", "threads", "resize", "quality", *_OF_HUGGINGFACE)
_QUALITY = 95


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(
        prog="python -m inception_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data_set", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument(
        "prepared", metavar="PREPARED", nargs="?", help="with convert: the data set, as NAME or NAME/CONFIG:1.2.3"
    )
    parser.add_argument(
        "--data_dir",
        help="output folder (of convert: the folder that holds the data set); default: TFDS_DATA_DIR, else "
        "~/tensorflow_datasets",
    )
    parser.add_argument(
        "--import",
        dest="module",
        metavar="MODULE",
        help="a Python file or module that defines the TFDS builder of NAME; arrays of images are encoded as PNG",
    )
    parser.add_argument("--output", metavar="FOLDER", help="with convert: the folder of data sets to write to")
    parser.add_argument(
        "--source", help="folder of the original files; with huggingface also as in --config.data.name=huggingface:…"
    )
    parser.add_argument("--name", help="with folder and huggingface: the name of the new data set")
    parser.add_argument(
        "--class_names",
        metavar="FILE",
        help="with folder and huggingface: a class folder (or label) per line, in the order of the labels; default: "
        "alphabetical order, or the classes that the data set names",
    )
    parser.add_argument("--image_key", help="with huggingface: the column of the images; default: the only one")
    parser.add_argument("--label_key", help="with huggingface: the column of the labels; default: the only one")
    parser.add_argument(
        "--labels", choices=KINDS, help="with huggingface: multi where the column has lists of labels; default: single"
    )
    parser.add_argument(
        "--check",
        choices=("full", "counts"),
        help="full (default): compare the published checksums and decode every image; counts: only count examples",
    )
    parser.add_argument(
        "--max_pixels",
        type=int,
        metavar="N",
        help="with --check=full: an image of more pixels is an error (default 178,956,970, as in Pillow)",
    )
    parser.add_argument(
        "--resize",
        type=int,
        metavar="N",
        help="with folder, huggingface and imagenet2012: store images with a shorter side of N pixels, aspect ratio "
        "kept (smaller ones as they are), as NAME/resize_N_jpegQ or NAME/resize_N_raw",
    )
    parser.add_argument(
        "--quality",
        type=_quality,
        metavar="Q|raw",
        help=f"with --resize: of the JPEGs, 1 to 100 (default {_QUALITY}), or raw: BMP, no compression",
    )
    parser.add_argument(
        "--num_shards", type=int, help="files per split; default: TFDS's rule, at most 2,048 records per file"
    )
    parser.add_argument(
        "--threads", type=int, help="threads that read and decode; default: the number of cores, at most 8"
    )
    return parser.parse_args(arguments)


def _quality(value: str) -> int | str:
    if value == RAW or (value.isdecimal() and 1 <= int(value) <= 100):
        return value if value == RAW else int(value)
    raise argparse.ArgumentTypeError(f"{value!r}: 1 to 100, or {RAW}")


def prepare(options: argparse.Namespace) -> None:
    """Prepares the data set of a parsed command line.

    Raises:
      UserError: arguments that do not go together, or as `shards.write`.
    """
    if options.module is not None:
        _prepare_own(options)
        return
    if options.data_set not in NAMES:
        near = nearest(options.data_set, NAMES)
        raise UserError(
            f"unknown data set {options.data_set!r}{near}; can be prepared: {', '.join(NAMES)}; with --import what a "
            "file defines"
        )
    for field, allowed in (
        ("num_shards", Range(1, 100_000)),
        ("threads", Range(1, 1024)),
        ("max_pixels", Range(1, MAX_IMAGE_PIXELS)),
        ("resize", Range(1, MAX_SIDE)),
    ):
        if (value := getattr(options, field)) is not None and value not in allowed:
            raise UserError(f"--{field}: {value}; it must be {allowed}")
    for value, what in ((options.prepared, f"{options.prepared!r}"), (options.output, "--output")):
        if value is None and options.data_set == "convert":
            raise UserError("convert: the name of a prepared data set and --output=FOLDER are needed")
        if value is not None and options.data_set != "convert":
            raise UserError(f"{what}: only with `convert`")
    if options.data_set == "convert":
        _convert(options)
        return
    if (options.name is not None) != (options.data_set in _NAMED):
        raise UserError("--name=NAME: required with `folder` and `huggingface`, and not allowed with others")
    if options.class_names is not None and options.data_set not in _NAMED:
        raise UserError("--class_names: only with `folder` and `huggingface`; others have an order of their own")
    for field in _OF_HUGGINGFACE:
        if getattr(options, field) is not None and options.data_set != "huggingface":
            raise UserError(f"--{field}: only with `huggingface`")
    if options.source is not None and options.data_set == "digits":
        raise UserError("--source: digits are embedded, there is nothing to read")
    if options.resize is not None and options.data_set not in (*_NAMED, "imagenet2012"):
        raise UserError(
            f"--resize: only with folder, huggingface and imagenet2012; images of {options.data_set} are small"
        )
    if options.quality is not None and options.resize is None:
        raise UserError("--quality: only with --resize=N; images are stored as they are")
    if options.max_pixels is not None and options.check == "counts" and options.resize is None:
        raise UserError(
            f"--max_pixels: has no effect with --check={options.check}, which decodes no image; leave it out"
        )
    from inception_jax.data import builders, imagenet2012, shards  # two seconds: after the arguments are checked
    from inception_jax.data.crops import MAX_PIXELS

    fields: dict[str, Any] = {"data_dir": os.fspath(default_data_dir(options.data_dir)), "file_format": "array_record"}
    if options.resize is not None:
        from inception_jax.data.stored_size import StoredSize

        quality = None if options.quality == RAW else options.quality or _QUALITY
        fields["stored"] = StoredSize(options.resize, quality, options.max_pixels or MAX_PIXELS)
    builder: builders.SourceBuilder
    if options.data_set in _NAMED:
        if options.source is None or not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
            raise UserError(
                f"{options.data_set}: --source=FOLDER and --name=NAME are needed; a name consists of a-z, 0-9 and _"
            )
        if options.name in (*_EMBEDDED, *KINDS_WITH_PATH):
            raise UserError(f"--name={options.name}: means another data set in a config; choose another name")
        fields |= {"name": options.name, "source": options.source, "class_names": options.class_names}
        if options.data_set == "folder":
            builder = builders.ImageFolder(**fields)
        else:
            builder = _huggingface_builder(options, fields)
    else:
        kind = {
            "digits": builders.Digits,
            "fashion_mnist": builders.FashionMnist,
            "imagenet2012": imagenet2012.Imagenet2012,
        }[options.data_set]
        builder = kind(source=options.source, **fields)
    folder = shards.write(
        builder,
        full_check=options.check != "counts",
        max_pixels=options.max_pixels or MAX_PIXELS,
        num_shards=options.num_shards,
        threads=options.threads or min(8, len(os.sched_getaffinity(0))),
    )
    # A smaller copy is beside the original, whose name goes on to mean the original.
    name = builder.name if options.resize is None else f"{builder.name}/{builder.builder_config.name}"
    _say_next(folder, name, options.data_dir, options.labels)


def _say_next(folder: Path, name: str, data_dir: str | None, labels: str | None = None) -> None:
    """Prints how a run names the data set that was prepared, and its splits where "test" is none of them."""
    fields = {"name": name, "data_dir": data_dir, "labels": labels}
    if name in _EMBEDDED:
        fields |= {"name": f"folder:{folder}", "data_dir": None}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # a set of TFDS's own builders
        splits = [split["name"] for split in json.loads((folder / "dataset_info.json").read_text())["splits"]]
        fields |= _choose_splits(splits)
    flags = [f"--config.data.{field}={shlex.quote(value)}" for field, value in fields.items() if value is not None]
    print(f"next: python -m inception_jax.train --config=RECIPE {' '.join(flags)}", file=sys.stderr)


def _choose_splits(splits: Sequence[str]) -> dict[str, str]:
    """The fields of the splits that a run trains and evaluates on, where they are not "train" and "test"."""
    train = split_names.training(splits)
    kinds = {kind: split for split in reversed(splits) if (kind := split_names.kind_of(split))}
    kinds |= {split: split for split in splits}
    if train is None:
        return {}
    fields = {} if train == "train" else {"train_split": train}
    evaluation = kinds.get("test") or kinds.get("validation")
    if evaluation is None:
        return {"train_split": f"{train}[:90%]", "eval_split": f"{train}[90%:]"}
    return fields if evaluation == "test" else fields | {"eval_split": evaluation}


def _huggingface_builder(options: argparse.Namespace, fields: dict[str, Any]) -> Any:
    from inception_jax.data import builders

    keys = {"image_key": options.image_key, "label_key": options.label_key, "several": options.labels == "multi"}
    try:
        return builders.HuggingFace(**fields, **keys)
    except UserError as error:
        raise UserError(str(error).replace("--config.data.", "--")) from None


def _prepare_own(options: argparse.Namespace) -> None:
    if options.data_set in NAMES:
        raise UserError(f"--import: not with {options.data_set!r}, which is prepared by this package")
    for field in ("prepared", "output", "name", "num_shards", *_NOT_OF_CONVERT):
        if (value := getattr(options, field)) is not None:
            flag = repr(value) if field == "prepared" else f"--{field}"
            raise UserError(f"{flag}: has no effect with --import, where the builder decides; leave it out")
    from inception_jax.data import own_builders  # TFDS: after the arguments are checked

    folder, was_there = own_builders.prepare(options.data_set, options.module, default_data_dir(options.data_dir))
    again = "already prepared; remove this folder to prepare it again"
    print(f"{folder}: {again if was_there else 'prepared'}", file=sys.stderr)
    _say_next(Path(folder), options.data_set, options.data_dir)


def _convert(options: argparse.Namespace) -> None:
    for field in _NOT_OF_CONVERT:
        if getattr(options, field) is not None:
            raise UserError(f"--{field}: has no effect with `convert`, which copies records; leave it out")
    if options.name is not None:
        raise UserError(f"--name: not with `convert`; the data set keeps its name, {options.prepared!r}")
    from inception_jax.data import conversion  # TFDS: after the arguments are checked

    output = Path(options.output).expanduser()
    source = default_data_dir(options.data_dir)
    folder = conversion.convert(options.prepared, source, output, num_shards=options.num_shards)
    _say_next(folder, options.prepared, options.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 0; 2 after an error, printed in one line; 130 after Ctrl-C."""
    options = None
    try:
        options = _parse(arguments)
        prepare(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        is_own = options is not None and options.module is not None
        next_time = "begins anew" if is_own else "continues from here"
        print(f"\ninterrupted; the same command {next_time}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    standard_streams.prepare()
    sys.exit(main())

"""`python -m inception_jax.data.prepare NAME`: makes a data set that TFDS and this package can read, without
TensorFlow.

  python -m inception_jax.data.prepare fashion_mnist                                (Debian: dataset-fashion-mnist)
  python -m inception_jax.data.prepare fashion_mnist --source=FOLDER_OF_THE_FOUR_IDX_FILES
  python -m inception_jax.data.prepare imagenet2012 --source=FOLDER_OF_THE_TWO_TARS
  python -m inception_jax.data.prepare folder --name=flowers --source=FOLDER_OF_CLASS_FOLDERS
  python -m inception_jax.data.prepare digits                                       (needless: they are embedded)

Nothing is downloaded. Interrupted, the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence

from inception_jax.data.datasets import default_data_dir
from inception_jax.errors import UserError, nearest

NAMES = ("digits", "fashion_mnist", "imagenet2012", "folder")


class _PrepareParser(argparse.ArgumentParser):
    """argparse, with its errors said as all the others are."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; {self.prog} --help shows how it is used")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _PrepareParser(
        prog="python -m inception_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("data_set", metavar="NAME", help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--data_dir", help="where it is put; else TFDS_DATA_DIR, else ~/tensorflow_datasets")
    parser.add_argument("--source", help="folder of the original files")
    parser.add_argument("--name", help="folder: the name under which the data set will be known")
    parser.add_argument(
        "--check",
        choices=("full", "counts"),
        default="full",
        help="full: published checksums, and every image is decoded; counts: only the numbers of examples",
    )
    parser.add_argument(
        "--num_shards", type=int, help="files per split; else TFDS's rule, at most 2,048 records in a file"
    )
    parser.add_argument(
        "--threads", type=int, default=min(8, len(os.sched_getaffinity(0))), help="that read and decode"
    )
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> None:
    """Carries out a parsed command line. Raises `UserError`."""
    if options.data_set not in NAMES:
        near = nearest(options.data_set, NAMES)
        raise UserError(f"unknown data set {options.data_set!r}{near}; can be prepared: {', '.join(NAMES)}")
    for field in ("num_shards", "threads"):
        if getattr(options, field) is not None and getattr(options, field) < 1:
            raise UserError(f"--{field}: {getattr(options, field)}; 1 or more is needed")
    if (options.name is not None) != (options.data_set == "folder"):
        raise UserError("--name=NAME belongs to `folder`, and to it alone")
    if options.source is not None and options.data_set == "digits":
        raise UserError("--source: digits are embedded, there is nothing to read")
    from inception_jax.data import builders, imagenet2012, shards  # two seconds: not for a wrong command line

    fields = {"data_dir": os.fspath(default_data_dir(options.data_dir)), "file_format": "array_record"}
    if options.data_set == "folder":
        if options.source is None or not re.fullmatch(r"[a-z][a-z0-9_]*", options.name):
            raise UserError("folder: --source=FOLDER and --name=NAME are needed; a name is of a-z, 0-9 and _")
        builder = builders.ImageFolder(name=options.name, source=options.source, **fields)
    else:
        kind = {
            "digits": builders.Digits,
            "fashion_mnist": builders.FashionMnist,
            "imagenet2012": imagenet2012.Imagenet2012,
        }[options.data_set]
        builder = kind(source=options.source, **fields)
    shards.write(builder, full_check=options.check == "full", num_shards=options.num_shards, threads=options.threads)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code: 0; 2 after a mistake that was said in one line; 130 when interrupted."""
    try:
        prepare(_parse(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

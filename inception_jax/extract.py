"""`python -m inception_jax.extract`: extracts features of a data set or of image files, and computes the FID."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inception_jax import command_line
from inception_jax.errors import ArgumentParser, UserError
from inception_jax.progress_line import ProgressLine
from inception_jax.ranges import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inception_jax.data.datasets import Dataset
    from inception_jax.evaluation.trained_network import TrainedNetwork


def main(argv: list[str]) -> int:
    """Writes features or their statistics to an .npz file, or prints the FID between two files of statistics."""
    arguments = _arguments()
    flags = arguments.parse_args(argv)
    if flags.fid:
        arguments.refuse_unread({"fid", "json"}, "has no effect with --fid")
        return _fid(flags)
    for name in ("workdir", "output"):
        if getattr(flags, name) is None:
            raise UserError(f"--{name} is missing")
    if flags.images or flags.files:
        fields = {"class_names", "image_key", "label_key"}
        arguments.refuse({"data", "split", "no_labels"} | fields, "has no effect with image files")
    if flags.no_labels:
        arguments.refuse({"class_names", "label_key"}, "has no effect with --no_labels")
    command_line.other_data(flags)
    if flags.statistics:
        arguments.refuse({"pool", "dtype"}, "has no effect with --statistics, which are of pooled float32 features")
        if "," in (flags.endpoints or ""):
            raise UserError(f"--endpoints={flags.endpoints}: --statistics takes one endpoint")

    from inception_jax.evaluation import trained_network
    from inception_jax.runs import remote_workdir
    from inception_jax.training import host_devices, parallel

    files = _find_files(flags)
    if flags.devices != 1:
        few = min(len(files) or host_devices.FEWEST, flags.batch_size or host_devices.FEWEST)
        host_devices.use_two(None if flags.devices else few)
    parallel.enable_compilation_cache()
    step, flags.workdir = command_line.step(flags.step), remote_workdir.local_copy(flags.workdir)
    recipe, class_names = trained_network.load_config(flags.workdir), trained_network.load_class_names(flags.workdir)
    recipe.evaluation.image_size = flags.image_size or recipe.evaluation.image_size
    command_line.set_devices(recipe, flags)
    recipe.evaluation.batch_size = flags.batch_size or recipe.evaluation.batch_size
    recipe.evaluation.protocol = "single"  # features are of one crop
    recipe.data.max_pixels = flags.max_pixels or recipe.data.max_pixels
    trained_network.warn_of_running_statistics(recipe)
    trained = trained_network.load(recipe, flags.workdir, class_names, weights=flags.weights, step=step)
    return _extract(flags, trained, files)


def _arguments() -> ArgumentParser:
    arguments = command_line.parser("extract", "Write the features of a network, or their statistics for FID.")
    arguments.add_argument("--workdir", help="the run, or the output of convert")
    arguments.add_argument("--weights", choices=("raw", "ema"), help="default: ema where the run keeps it")
    arguments.add_argument("--step", help="'best' or a step; default: the newest checkpoint")
    arguments.add_argument(
        "--endpoints",
        metavar="NAME,NAME",
        help="the network's own names or TF-slim's, and logits; "
        "default: the last one before the classifier (global_pool in most networks)",
    )
    arguments.add_argument(
        "--output", metavar="FILE.npz", help="output: index, label and one array per endpoint, a row per example"
    )
    arguments.add_argument("--data", help="a data set; default: the run's")
    arguments.add_argument("--split", help="default: the run's evaluation split")
    command_line.add_data_fields(arguments, "class_names", "image_key", "label_key")
    arguments.add_argument(
        "--no_labels", action="store_true", help="the labels of the data set are not read: each is -1 in the output"
    )
    command_line.add_image_size(arguments, "in pixels; default: the run's")
    arguments.add_argument(
        "--batch_size", type=command_line.whole(1, MAX_BATCH), help="default: the run's; 32 for image files"
    )
    command_line.add_devices(arguments)
    arguments.add_argument("--pool", action="store_true", help="average maps over height and width")
    arguments.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="of the features")
    arguments.add_argument(
        "--statistics",
        action="store_true",
        help="write mean and covariance of one endpoint (mu, sigma; pytorch-fid reads the file)",
    )
    arguments.add_argument(
        "--fid", nargs=2, metavar="FILE.npz", help="the Fréchet distance between two files of statistics"
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    command_line.add_max_pixels(arguments, "the run's data.max_pixels")
    arguments.add_argument(
        "--files", metavar="LIST", help="also the image files named in LIST, one a line; - is standard input"
    )
    arguments.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="instead of a data set: files, folders, and patterns in quotes, such as 'photos/**/*.jpg'",
    )
    return arguments


def _fid(flags: argparse.Namespace) -> int:
    from inception_jax.features.image_sets import read_origin
    from inception_jax.features.statistics import frechet_distance, read_statistics

    first, second = flags.fid
    statistics = *read_statistics(first), *read_statistics(second)
    networks = read_origin(first)[1], read_origin(second)[1]
    if None not in networks and networks[0] != networks[1]:
        raise UserError(
            f"{first}: its statistics are of another network (weights, endpoint, dtype and image size: {networks[0]}) "
            f"than those of {second} ({networks[1]}); write one of them anew"
        )
    distance = frechet_distance(*statistics)
    print(json.dumps({"fid": distance}) if flags.json else f"Fréchet distance: {distance:.6g}")
    return 0


def _extract(flags: argparse.Namespace, trained: TrainedNetwork, files: list[str]) -> int:
    from inception_jax.evaluation import extraction

    named = flags.endpoints if flags.endpoints is not None else extraction.last_endpoint(trained)
    endpoints = [name for name in named.split(",") if name]
    pool = flags.pool or flags.statistics
    found = extraction.feature_shapes(trained, endpoints, pool=pool, dtype=flags.dtype)
    batches, batch_size, total = _batches(flags, trained, files)
    found_rows = extraction.features(trained, batches, endpoints, batch_size=batch_size, pool=pool, dtype=flags.dtype)
    with ProgressLine() as progress:
        rows = _counted(found_rows, total, progress)
        count = (
            _write_statistics(flags, rows, trained, endpoints[0])
            if flags.statistics
            else _write_features(flags, rows, files, trained, endpoints)
        )
    shapes = {name: [count, *shape.shape] for name, shape in found.items()}
    if flags.json:
        said = {"output": flags.output, "weights": trained.weights, "step": trained.step}
        print(json.dumps(said | {"examples": count, "features": shapes}))
        return 0
    named = ", ".join(f"{name} {'x'.join(map(str, shape.shape))}" for name, shape in found.items())
    what = "mean and covariance of" if flags.statistics else "features"
    print(f"{flags.output}: {count:,} examples, {what} {named} ({trained.weights} weights of step {trained.step:,})")
    return 0


def _batches(
    flags: argparse.Namespace, trained: TrainedNetwork, files: list[str]
) -> tuple[Iterable[dict[str, Any]], int, int]:
    """Returns (batches, rows of each, number of examples)."""
    from inception_jax.data import images
    from inception_jax.evaluation import extraction
    from inception_jax.runs import data_record
    from inception_jax.training import data_setup

    if files:
        count, devices = len(files), trained.devices.count
        size = -(-min(flags.batch_size or 32, count) // devices) * devices
        channels = trained.input.channels
        decoded = (images.decode_image_file(path, trained.config.data.max_pixels, channels) for path in files)
        return extraction.image_batches(decoded, size, trained.image_size, trained.crop, channels), size, count
    config = trained.config
    labelled = not flags.no_labels
    source = _open_split(flags, trained, labelled)
    workdir = Path(flags.workdir)
    if labelled and not flags.data:
        remedy = f"--data={config.data.name} extracts the features of the new classes nevertheless"
        data_record.refuse_other_classes(workdir, source, remedy)
    notes = data_record.note_other_examples(workdir, source) if labelled else []
    for line in [*source.account, *notes]:
        print(line, file=sys.stderr)
    data = data_setup.build_eval_data(config, source, trained.input, trained.devices)
    return data.batches(), data.batch_size, source.num_examples


def _open_split(flags: argparse.Namespace, trained: TrainedNetwork, labelled: bool) -> Dataset:
    """The split of the data set; where only its labels are amiss, the error says what does without them."""
    from inception_jax.training import data_setup

    split = flags.split or trained.config.data.eval_split
    try:
        (source,) = data_setup.load_splits(
            trained.config, split, other=command_line.other_data(flags), labelled=labelled
        )
    except UserError as error:
        if labelled:
            with contextlib.suppress(UserError):
                _open_split(flags, trained, False)
                error = UserError(f"{error}; --no_labels reads the images alone")
        raise error from None
    return source


def _find_files(flags: argparse.Namespace) -> list[str]:
    """The image files that the flags name, as `predict` finds them; an empty list: none are asked for.

    Raises:
      UserError: a name leads to no image, or a list names none; a folder cannot be read.
    """
    from inception_jax.data import image_files
    from inception_jax.data.names import printable

    if not flags.images and not flags.files:
        return []
    listed = image_files.read_list(flags.files) if flags.files else ()
    found = []
    for file in image_files.drop_repeated(itertools.chain(image_files.find(flags.images), listed)):
        if isinstance(file, image_files.Unreadable):
            raise UserError(f"{printable(file.path)}: {file.reason}")
        found.append(file)
    if not found:
        raise UserError(f"--files={flags.files}: no name in this list")
    return found


def _counted(rows: Iterable[dict[str, Any]], total: int, progress: ProgressLine) -> Iterable[dict[str, Any]]:
    """Yields the rows and reports the progress."""
    done = 0
    for batch in rows:
        done += len(batch["index"])
        progress("extract", done, total)
        yield batch


def _write_features(
    flags: argparse.Namespace,
    rows: Iterable[dict[str, Any]],
    files: list[str],
    trained: TrainedNetwork,
    endpoints: list[str],
) -> int:
    """Writes features with the names by which `score` knows the network and its input."""
    from inception_jax.data.names import printable
    from inception_jax.evaluation import extraction
    from inception_jax.features import network_digest
    from inception_jax.features.archive import RowArchive
    from inception_jax.features.fid_network import OWN

    count = 0
    with RowArchive(flags.output) as archive:
        for batch in rows:
            archive.add(batch)
            count += len(batch["index"])
        named: dict[str, Any] = {"file": [printable(path) for path in files]} if files else {}
        digests = [network_digest.digest(trained, None, extraction.own_name(trained, name)) for name in endpoints]
        archive.close(**named, input=OWN, network=list(zip(endpoints, digests, strict=True)))
    return count


def _write_statistics(
    flags: argparse.Namespace, rows: Iterable[dict[str, Any]], trained: TrainedNetwork, endpoint: str
) -> int:
    """Writes mean and covariance with the names by which `score` knows the network and its input, and their count."""
    from inception_jax.evaluation import extraction
    from inception_jax.features import network_digest
    from inception_jax.features.archive import RowArchive
    from inception_jax.features.fid_network import OWN
    from inception_jax.features.statistics import Moments

    moments = None
    with RowArchive(flags.output) as archive:
        for batch in rows:
            moments = moments or Moments(batch[endpoint].shape[1])
            moments.add(batch[endpoint])
        if moments is None:
            raise UserError("statistics of 0 images: a covariance needs two or more")
        named = {"input": OWN, "network": network_digest.digest(trained, None, extraction.own_name(trained, endpoint))}
        archive.close(mu=moments.mean, sigma=moments.covariance(), count=moments.count, **named)
    return moments.count


if __name__ == "__main__":
    command_line.run(main)

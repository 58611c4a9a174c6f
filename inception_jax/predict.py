"""`python -m inception_jax.predict`: classifies image files, or the images of a data set, with a trained network."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from inception_jax import command_line
from inception_jax.errors import ArgumentParser, UserError
from inception_jax.ranges import MAX_BATCH

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from inception_jax.data.datasets import Dataset
    from inception_jax.data.image_files import Unreadable
    from inception_jax.evaluation.trained_network import TrainedNetwork

_WEIGHTS = ("raw", "ema")


def main(argv: list[str]) -> int:
    """Prints the most probable classes of each image, and writes them to the files that are asked for.

    Raises:
      UserError: the flags are wrong, nothing was found, an output cannot be written, or, at the end, images were
        skipped.
    """
    flags = _arguments().parse_args(_with_values(argv))
    if flags.explain == _BARE and not flags.sheet:
        raise UserError(
            "--explain: the saliency maps need a place; add --sheet=FILE.png, or name a folder: --explain=DIR"
        )
    _check(flags)

    from inception_jax.evaluation.prediction_writer import PredictionWriter
    from inception_jax.training import host_devices, memory_check, parallel

    folder = None if flags.explain == _BARE else flags.explain
    of_data = flags.data is not None or flags.split is not None
    files = iter(()) if of_data else _find(flags, exclude=[path for path in (flags.sheet, folder) if path])
    # The names of a list may come slowly: how many there are is not waited for.
    first = [] if flags.files else list(itertools.islice(files, host_devices.FEWEST))
    if flags.devices != 1:
        few = min(flags.batch_size, len(first)) if first else flags.batch_size
        host_devices.use_two(None if flags.devices else few)
    parallel.enable_compilation_cache()
    title = flags.workdir or flags.weights
    trained = _of_run(flags) if flags.workdir else _of_file(flags)
    top_k, threshold = _check_top_k(flags.top_k, trained), _check_threshold(flags.threshold, trained)
    memory_check.refuse_batch("--batch_size", flags.batch_size, trained.image_size)
    keep = bool(flags.sheet or flags.explain)
    if of_data:
        images = _open_split(flags, trained)
        predictions = trained.predict_dataset(
            images, top_k, flags.batch_size, keep_images=keep, max_pixels=flags.max_pixels
        )
    else:
        named = itertools.chain(first, files)
        predictions = trained.predict_files(
            named, top_k, flags.batch_size, keep_images=keep, max_pixels=flags.max_pixels
        )
    if flags.explain:
        from inception_jax.features.explanation import explain

        predictions = explain(trained, predictions, batch_size=flags.batch_size)
    with PredictionWriter(
        top_k,
        json_file=flags.json,
        csv_file=flags.csv,
        sheet=flags.sheet,
        explanations=folder,
        threshold=threshold,
        csv_classes=trained.class_names if trained.label_columns and flags.top_k is None else None,
    ) as writer:
        for prediction in predictions:
            writer.add(prediction)
            if writer.is_unread:
                break
        for line in writer.finish(f"{trained.config.model.name}, {title}"):
            command_line.report(line)
    if not writer.total:
        raise UserError(f"--files={flags.files}: no name in this list")
    if writer.skipped:
        raise UserError(writer.describe_skipped())
    return 0


def _arguments() -> ArgumentParser:
    arguments = command_line.parser(
        "predict",
        "Classify image files, or the images of a data set, with the network of a run, or with published weights.",
    )
    add = arguments.add_argument
    add("--workdir", help="the run, also an address such as gs://bucket/run; or use --weights=FILE")
    add(
        "--weights",
        metavar="raw|ema|FILE",
        help="with --workdir: raw or ema (default: ema where "
        "the run keeps it); without: a file of published weights (one named raw or ema: ./raw)",
    )
    add("--step", help="'best' or a step; default: the newest checkpoint")
    add("--model", metavar="NAME", help="with a file: the network; default: detected")
    add("--source", metavar="NAME", help="with a file: the publisher; default: detected")
    add("--record", metavar="NAME", help="with a file: its record (convert --list)")
    add(
        "--top_k",
        "--top",
        type=command_line.whole(),
        metavar="K",
        help="classes per image (default: 5, or all of fewer; of a network for several labels all)",
    )
    add(
        "--threshold",
        type=float,
        metavar="P",
        help="of a network for several labels per image: the classes with at least this probability (default 0.5)",
    )
    add(
        "--batch_size",
        type=command_line.whole(1, MAX_BATCH),
        default=32,
        metavar="N",
        help="images per step (default 32)",
    )
    command_line.add_devices(arguments)
    command_line.add_max_pixels(arguments, "the run's data.max_pixels")
    add(
        "--files", metavar="LIST", help="also the files named in LIST, one a line or after each a zero byte; - is stdin"
    )
    add(
        "--data",
        metavar="NAME",
        help="instead of files: a data set, as config.data.name; labels are not read; default with --split: the "
        "run's, or imagenet2012",
    )
    add("--split", help="its split; default: the run's evaluation split")
    command_line.add_data_fields(arguments, "image_key")
    add("--json", nargs="?", metavar="FILE", help="one JSON object per image and line, instead of text; or in FILE")
    add("--csv", metavar="FILE", help="also a table, one row per image; - is stdout")
    add("--sheet", metavar="FILE.png", help="also a contact sheet: images, their classes and names")
    add(
        "--explain",
        nargs="?",
        metavar="DIR",
        help="saliency maps: beside the images of the sheet, or also as PNG files in DIR",
    )
    add("images", nargs="*", metavar="IMAGE", help="files, folders, and patterns in quotes, such as 'photos/**/*.jpg'")
    return arguments


_BARE = "-"  # the value of a flag that is given without one


def _with_values(argv: list[str]) -> list[str]:
    """Gives a value to the flags that need none: argparse would take the first image for it."""
    end = argv.index("--") if "--" in argv else len(argv)
    return [f"{word}={_BARE}" if word in ("--json", "--explain") else word for word in argv[:end]] + argv[end:]


def _find(flags: argparse.Namespace, exclude: list[str]) -> Iterator[str | Unreadable]:
    """The images that the flags name.

    Raises:
      UserError: there are none, or a list cannot be read.
    """
    from inception_jax.data import image_files

    if not flags.images and not flags.files:
        raise UserError(
            "no image: name files, folders or patterns, a list of them with --files=LIST, or a data set with --data"
        )
    listed = image_files.read_list(flags.files) if flags.files else ()
    found = itertools.chain(image_files.find(flags.images, exclude), listed)
    return image_files.drop_repeated(found) if flags.files else found


def _open_split(flags: argparse.Namespace, trained: TrainedNetwork) -> Dataset:
    """The images that --data and --split name."""
    from inception_jax.training import data_setup

    split = flags.split or trained.config.data.eval_split
    (source,) = data_setup.load_splits(trained.config, split, other=command_line.other_data(flags), labelled=False)
    for line in source.account:
        command_line.report(line)
    return source


def _check_top_k(top_k: int | None, trained: TrainedNetwork) -> int:
    """Raises UserError where more classes are asked for than there are.

    The default is 5, or all of fewer; of a network for several labels per image all.
    """
    count = len(trained.class_names)
    if top_k is not None and top_k > count > 0:
        raise UserError(f"--top_k={top_k}: the network has {count} classes; give {count} or less")
    return top_k or (count if trained.label_columns else min(5, count))


def _check_threshold(threshold: float | None, trained: TrainedNetwork) -> float | None:
    """The probability from which a class is a label of an image; None: the network is for one label per image.

    Raises:
      UserError: it has no effect, or is no probability.
    """
    if trained.label_columns is None:
        if threshold is not None:
            raise UserError(
                f"--threshold={threshold:g}: the network is for one label per image (config.data.labels = 'single'), "
                "whose probabilities add up to 1; --top_k=K chooses the most probable classes"
            )
        return None
    if threshold is None:
        return 0.5
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold={threshold:g}: a probability from 0 to 1 is needed")
    return threshold


def _check(flags: argparse.Namespace) -> None:
    """Raises UserError unless the flags name exactly one network, and either files or a data set."""
    if flags.data == "":
        raise UserError("--data: empty; name a data set, or leave the flag out")
    command_line.other_data(flags)
    if (flags.data is not None or flags.split is not None) and (flags.images or flags.files):
        given = "--split" if flags.data is None else "--data"
        raise UserError(f"{given}: not allowed with image files; name a data set or files")
    if flags.workdir:
        unread = [name for name in ("model", "source", "record") if getattr(flags, name)]
        if unread:
            raise UserError(
                f"--{unread[0]}: only with a file of published weights (--weights=FILE), not with --workdir"
            )
        if flags.weights not in (None, *_WEIGHTS):
            raise UserError(
                f"--weights={flags.weights}: with --workdir, 'raw' or 'ema'; use a file of weights without --workdir"
            )
    elif flags.weights is None:
        raise UserError("--workdir (a run) or --weights (a file of published weights) is missing")
    elif flags.weights in _WEIGHTS:
        raise UserError(
            f"--weights={flags.weights}: --workdir, the run, is missing (a file of that name: "
            f"--weights=./{flags.weights})"
        )
    elif flags.step:
        raise UserError("--step: only with --workdir; a file of weights has no steps")


def _of_run(flags: argparse.Namespace) -> TrainedNetwork:
    from inception_jax.evaluation import trained_network
    from inception_jax.runs import remote_workdir

    step, flags.workdir = command_line.step(flags.step), remote_workdir.local_copy(flags.workdir)
    recipe, class_names = trained_network.load_config(flags.workdir), trained_network.load_class_names(flags.workdir)
    trained_network.warn_of_running_statistics(recipe)
    _set_fields(recipe, flags)
    return trained_network.load(recipe, flags.workdir, class_names, weights=flags.weights, step=step)


def _of_file(flags: argparse.Namespace) -> TrainedNetwork:
    from pathlib import Path

    from inception_jax.pretrained import loading, workdir
    from inception_jax.runs import run_state

    if run_state.is_run(Path(flags.weights)):
        raise UserError(f"--weights={flags.weights}: the workdir of a run; name it by --workdir")
    loaded = loading.load_weights(
        flags.weights, model=flags.model, source=flags.source, record=flags.record, report=command_line.report
    )
    return workdir.build_network(loaded, lambda config: _set_fields(config, flags))


def _set_fields(config: ConfigDict, flags: argparse.Namespace) -> None:
    command_line.set_devices(config, flags)
    config.evaluation.batch_size = flags.batch_size


if __name__ == "__main__":
    command_line.run(main)

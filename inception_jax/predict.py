"""`python -m inception_jax.predict`: classifies image files with a trained network."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from inception_jax import command_line
from inception_jax.errors import UserError

if TYPE_CHECKING:
    from inception_jax.evaluation.trained_network import TrainedNetwork

_WEIGHTS = ("raw", "ema")


def main(argv: list[str]) -> int:
    """Prints the most probable classes of each image."""
    arguments = command_line.parser(
        "predict", "Classify image files with the network of a run, or with published weights."
    )
    arguments.add_argument("--workdir", help="the run, also an address such as gs://bucket/run; or use --weights=FILE")
    arguments.add_argument(
        "--weights",
        metavar="raw|ema|FILE",
        help="with --workdir: raw or ema (default: ema where "
        "the run keeps it); without: a file of published weights (one named raw or ema: ./raw)",
    )
    arguments.add_argument("--step", help="'best' or a step; default: the newest checkpoint")
    arguments.add_argument("--model", metavar="NAME", help="with a file: the network; default: detected")
    arguments.add_argument("--source", metavar="NAME", help="with a file: the publisher; default: detected")
    arguments.add_argument("--record", metavar="NAME", help="with a file: its record (convert --list)")
    arguments.add_argument("--top", type=int, default=5, metavar="K", help="classes per image (default 5)")
    arguments.add_argument("--json", action="store_true", help="one JSON object per image, one per line")
    arguments.add_argument("images", nargs="+", metavar="IMAGE", help="JPEG, PNG, WebP, GIF, BMP …")
    flags = arguments.parse_args(argv)
    if flags.top < 1:
        raise UserError(f"--top={flags.top}: 1 or more is needed")
    _check(flags)

    from inception_jax.data import images
    from inception_jax.training import parallel

    # All files are read before the network is: an unreadable one is reported at once, and nothing is printed before.
    decoded = [images.decode_image_file(path) for path in flags.images]
    parallel.enable_compilation_cache()
    trained = _of_run(flags) if flags.workdir else _of_file(flags)
    found = trained.predict(decoded, min(flags.top, len(trained.class_names)))
    for path, classes, probabilities in zip(flags.images, found["classes"], found["probabilities"], strict=True):
        named = [(trained.class_names[k], float(p)) for k, p in zip(classes, probabilities, strict=True)]
        if flags.json:
            print(json.dumps({"picture": path, "classes": [{"name": n, "probability": p} for n, p in named]}))
        else:
            print(path)
            for name, probability in named:
                print(f"  {100 * probability:6.2f} %  {name}")
    return 0


def _check(flags: argparse.Namespace) -> None:
    """Raises UserError unless the flags name exactly one network."""
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
    return trained_network.load(recipe, flags.workdir, class_names, weights=flags.weights, step=step)


def _of_file(flags: argparse.Namespace) -> TrainedNetwork:
    from inception_jax.pretrained import loading, workdir

    return workdir.build_network(
        loading.load_weights(
            flags.weights,
            model=flags.model,
            source=flags.source,
            record=flags.record,
            report=command_line.report,
        )
    )


if __name__ == "__main__":
    command_line.run(main)

"""`python -m inception_jax.data.show`: draws a batch as the network sees it, with its labels.

A command like the others: it stands above `training`, and nothing in this package imports it.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from inception_jax import command_line, recipe_files
from inception_jax.errors import ArgumentParser, UserError

if TYPE_CHECKING:
    from inception_jax.config import Config


def main(argv: list[str]) -> int:
    """Draws the sheet; prints its path."""
    flags, of_config = recipe_files.parse(_arguments(), argv)
    recipe, _ = recipe_files.load_config(of_config)
    if flags.output is None:
        raise UserError("--output=FILE.png is needed: the sheet to write")
    from inception_jax.config import Config
    from inception_jax.runs import batch_sheet

    batch_sheet.refuse_other_file(flags.output, "--output")
    if flags.seed is not None:
        recipe.seed = flags.seed
    draw(Config(recipe), flags)
    print(flags.output)
    return 0


def draw(config: Config, flags: argparse.Namespace) -> None:
    """Draws the sheet of a config.

    Args:
      config: of the recipe.
      flags: of the command.

    Raises:
      UserError: a field that does not fit, missing data, an image that cannot be decoded, or no such batch.
    """
    from inception_jax.runs import batch_sheet
    from inception_jax.training import augmentation_setup, batch_views, data_setup, network_setup
    from inception_jax.training.parallel import Devices

    devices, network_input = Devices(config.parallel.mode, config.parallel.devices), network_setup.read_input(config)
    split = config.data.train_split if flags.split == "train" else config.data.eval_split
    (dataset,) = data_setup.load_splits(config, split)
    where = f"{dataset.name}, {dataset.split}, batch {flags.step}"
    if flags.split == "eval":
        evaluation = data_setup.build_eval_data(config, dataset, network_input, devices)
        if flags.step >= evaluation.num_batches:
            raise UserError(
                f"--step={flags.step}: the evaluation of {dataset.split} has {evaluation.num_batches} batches, from 0"
            )
        batch = evaluation.batch(
            flags.step, min(flags.images, dataset.num_examples - flags.step * evaluation.batch_size)
        )
        images, captions = batch["image"], batch_views.view_labels(batch, dataset.class_names)
    else:
        accumulation = config.optimizer.accumulation
        micro_batch = devices.check_batch("batch_size", config.batch_size, accumulation) // accumulation
        augmentation = augmentation_setup.read_device_augmentation(config, micro_batch)
        training = data_setup.build_train_data(config, dataset, network_input, devices)
        rows = flags.images + (flags.images % 2 if augmentation.mixing else 0)  # partners are neighbours
        images, captions = batch_views.view_training_batch(
            training.batch(flags.step, rows), flags.step, config.seed, augmentation, network_input, dataset.class_names
        )
        where += f", seed {config.seed}"
    shown = images[: flags.images]
    batch_sheet.draw(shown, captions[: len(shown)], flags.output, title=f"{where}, {network_input.image_size} pixels")


def _arguments() -> ArgumentParser:
    """The flags of the command."""
    arguments = command_line.parser(
        "data.show", "Draw a batch as the network sees it: after all augmentations, with the normalization undone."
    )
    recipe_files.add_config(arguments)
    arguments.add_argument("--output", metavar="FILE.png", help="the sheet to write")
    arguments.add_argument(
        "--split",
        choices=("train", "eval"),
        default="train",
        help="train: a training batch (data.train_split); eval: an evaluation batch (data.eval_split), center crops",
    )
    arguments.add_argument(
        "--step", type=command_line.whole(0), default=0, metavar="K", help="number of the batch, from 0 (0)"
    )
    arguments.add_argument(
        "--seed", type=command_line.whole(0, 2**32 - 1), metavar="N", help="seed of the run; default: the recipe's"
    )
    arguments.add_argument(
        "--images", type=command_line.whole(1, 1024), default=32, metavar="N", help="images of the batch, at most (32)"
    )
    return arguments


if __name__ == "__main__":
    command_line.run(main)

"""`python -m inception_jax.summary`: output shapes, parameters and multiply-adds of a network, or of several."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inception_jax import command_line, network_tables, recipe_files
from inception_jax.errors import ArgumentParser, UserError, counted
from inception_jax.ranges import MAX_BATCH

if TYPE_CHECKING:
    from pathlib import Path

    from ml_collections import ConfigDict

    from inception_jax.models.cost import NetworkCost
    from inception_jax.models.module_steps import StepCost


def main(argv: list[str]) -> int:
    """Prints the summary of a network; no array is allocated, so it takes seconds at any size."""
    arguments = _arguments()
    flags, recipe = recipe_files.parse_with_config(arguments, argv)
    options: dict[str, Any] = {}
    if recipe is None:
        if flags.name is None:
            raise UserError("no network: name one, such as inception_v3, or give a recipe with --config=FILE.py")
        for name in [flags.name, *(flags.compare or [])]:
            recipe_files.check_model(name)
    elif flags.name is None:
        flags.name, options = _of_recipe(flags, recipe, recipe_files.find_workdir(argv))
    flags.num_classes = 1000 if flags.num_classes is None else flags.num_classes
    if flags.reduction and (flags.depth > 1 or flags.compare is not None):
        raise UserError("--reduction: not allowed with --depth or --compare")
    if flags.compare is not None:
        return _compare(flags, options)

    from inception_jax.models.cost import count_cost
    from inception_jax.models.module_steps import list_steps
    from inception_jax.models.registry import create_model, get_spec

    spec = get_spec(flags.name)
    model = create_model(flags.name, **{**options, "num_classes": flags.num_classes, **dict(flags.set)})
    cost = count_cost(model, spec.image_size if flags.image_size is None else flags.image_size)
    steps = list_steps(model, cost) if flags.depth > 1 or flags.reduction else None
    if flags.reduction:
        return _print_reductions(flags, cost, steps or {})
    if flags.json:
        print(json.dumps(as_json(flags.name, cost, steps), indent=2))
        return 0
    chosen = ", ".join(f"{name}={value}" for name, value in flags.set)
    _print_table(flags.name, f"{spec.paper}{f' ({chosen})' if chosen else ''}", model, cost, steps)
    return 0


def _arguments() -> ArgumentParser:
    """The flags of the command."""
    arguments = command_line.parser("summary", "A network block by block: output shapes, parameters, multiply-adds.")
    arguments.add_argument(
        "name",
        nargs="?",
        help="a network, such as inception_v3, or one that the recipe registers; default: the recipe's",
    )
    recipe_files.add_config(arguments)
    command_line.add_image_size(arguments, "height and width (default: the network's own)")
    arguments.add_argument(
        "--num_classes",
        type=command_line.whole(0, MAX_BATCH),
        metavar="N",
        help="outputs of the classifier (default: those of the run whose config.json is given; else 1000)",
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    command_line.add_options(
        arguments, "an option of create_model, such as module=naive or conv2_reduce=False; may be repeated"
    )
    arguments.add_argument(
        "--depth",
        type=command_line.whole(1, 2),
        default=1,
        metavar="1|2",
        help="2: also the branches and steps inside each block, with their weights (default 1)",
    )
    arguments.add_argument(
        "--reduction",
        action="store_true",
        help="print what the 1x1 convolutions before larger ones save: weights with them and without",
    )
    arguments.add_argument(
        "--compare",
        nargs="*",
        metavar="NAME",
        help="print one line for the network and for each NAME instead of its blocks (default: every other network)",
    )
    return arguments


def _print_reductions(flags: argparse.Namespace, cost: NetworkCost, steps: Mapping[str, Sequence[StepCost]]) -> int:
    """Prints what each 1x1 convolution before a larger one saves."""
    from inception_jax.models.module_steps import list_reductions

    found = list_reductions(cost, steps)
    if not found:
        raise UserError(f"--reduction: {flags.name} has no module with a 1x1 convolution before a larger one")
    if flags.json:
        rows = [dataclasses.asdict(one) | {"reduced": one.reduced} for one in found]
        print(json.dumps({"model": flags.name, "reductions": rows}, indent=2))
        return 0
    print(f"{flags.name}: weights of each convolution after a 1x1 reduction, and without that")
    print("(the multiply-adds per output pixel of a convolution with stride 1 are the same numbers)\n")
    print(network_tables.reduction_table(found))
    return 0


def _print_table(
    name: str, paper: str, model: Any, cost: NetworkCost, steps: Mapping[str, Sequence[StepCost]] | None
) -> None:
    """Prints the network block by block, and its sums."""
    from inception_jax.models.inception_v1 import InceptionV1

    print(f"{name}: {paper}")
    channels = "" if model.in_channels == 3 else f" of {counted(model.in_channels, 'channel')}"
    print(f"{cost.image_size}x{cost.image_size} pixels{channels}, {cost.num_classes} classes\n")
    if steps is not None:
        print(network_tables.step_table(cost, steps))
    elif isinstance(model, InceptionV1) and model.module == "reduced":
        print(network_tables.googlenet_table(model, cost))
        for line in network_tables.contradiction_lines(model, cost):
            print(line)
    else:
        print(network_tables.block_table(cost))
    print(f"\nparameters  {cost.parameters:>14,}   with auxiliary heads {cost.parameters_with_aux:>14,}")
    print(f"MACs        {cost.macs:>14,}   with auxiliary heads {cost.macs_with_aux:>14,}")
    if cost.uncounted:
        print(f"MACs without those of {', '.join(cost.uncounted)}: of other layers than convolutions and dense ones")


def _of_recipe(flags: argparse.Namespace, recipe: ConfigDict, workdir: Path | None) -> tuple[str, dict[str, Any]]:
    """The network of a recipe and its options; sets its image size and its number of classes, unless a flag gives them.

    The classes of a recipe are known where it sets `model.num_classes`, or is the config of a run: without the data, no
    other way says them.

    Args:
      flags: of the command.
      recipe: of `--config`.
      workdir: whose config.json it is; None: it is a recipe file.
    """
    from inception_jax.config import Config
    from inception_jax.runs import data_record

    config = Config(recipe)
    model = config.model
    flags.image_size = flags.image_size or config.data.image_size
    if flags.num_classes is None:
        flags.num_classes = model.num_classes
    if flags.num_classes is None and workdir is not None:
        names = data_record.read_all_class_names(workdir)
        flags.num_classes = None if names is None else len(names)
    rates = model.read("dropout_rate", "aux_dropout_rate")
    options = model.read("in_channels", "width_multiplier", "aux_heads") | model.options.read_specified()
    return model.name, options | {name: rate for name, rate in rates.items() if rate is not None}


def as_json(name: str, cost: NetworkCost, steps: Mapping[str, Sequence[StepCost]] | None = None) -> dict[str, Any]:
    """Converts a network's cost to a JSON object; blocks named `aux…` count in `parameters_with_aux` only.

    Args:
      name: of the network.
      cost: of the network.
      steps: from `module_steps.list_steps`: blocks with steps get the key "steps"; None: no block does.
    """
    blocks: list[dict[str, Any]] = []
    for b in cost.blocks:
        row: dict[str, Any] = {"name": b.name, "output": list(b.output), "parameters": b.parameters, "macs": b.macs}
        if steps and b.name in steps:
            inside = [dataclasses.asdict(step) for step in steps[b.name]]
            row["steps"] = [{key: value for key, value in step.items() if key != "block"} for step in inside]
        blocks.append(row)
    return {
        "model": name,
        "image_size": cost.image_size,
        "num_classes": cost.num_classes,
        "parameters": cost.parameters,
        "parameters_with_aux": cost.parameters_with_aux,
        "macs": cost.macs,
        **({"uncounted": list(cost.uncounted)} if cost.uncounted else {}),
        "blocks": blocks,
    }


def _compare(flags: argparse.Namespace, options: dict[str, Any]) -> int:
    if flags.depth > 1:
        raise UserError("--depth: not allowed with --compare, which prints one line per network")
    if flags.set:
        raise UserError("--set: not allowed with --compare, which takes every network with its default options")

    from inception_jax.models.cost import count_cost
    from inception_jax.models.registry import create_model, get_spec, model_names

    names = list(dict.fromkeys([flags.name, *(flags.compare or model_names())]))
    specs = {name: get_spec(name) for name in names}  # an unknown name is an error before anything is counted
    costs = {
        name: count_cost(
            create_model(name, num_classes=flags.num_classes, **(options if name == flags.name else {})),
            spec.image_size if flags.image_size is None else flags.image_size,
        )
        for name, spec in specs.items()
    }
    if flags.json:
        print(json.dumps(comparison_as_json(costs), indent=2))
        return 0
    print(f"{flags.num_classes} classes; parameters and MACs without auxiliary heads; ratios to {flags.name}\n")
    print(network_tables.comparison_table(costs))
    return 0


def comparison_as_json(costs: Mapping[str, NetworkCost]) -> dict[str, Any]:
    """Converts the costs of several networks to a JSON object; `…_ratio` is relative to the first network."""
    reference, first = next(iter(costs.items()))
    return {
        "reference": reference,
        "networks": [
            {name: value for name, value in as_json(model, one).items() if name != "blocks"}
            | {
                "macs_with_aux": one.macs_with_aux,
                "parameters_ratio": one.parameters / first.parameters,
                "macs_ratio": one.macs / first.macs,
            }
            for model, one in costs.items()
        ],
    }


if __name__ == "__main__":
    command_line.run(main)

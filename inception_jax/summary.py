"""`python -m inception_jax.summary`: output shapes, parameters and multiply-adds of a network, or of several."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inception_jax import command_line, recipe_files
from inception_jax.errors import ArgumentParser, UserError
from inception_jax.ranges import MAX_BATCH, MAX_SIDE
from inception_jax.runs.tables import UNKNOWN, format_table

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from inception_jax.models.cost import NetworkCost
    from inception_jax.models.inception_v1 import InceptionV1


def main(argv: list[str]) -> int:
    """Prints the summary of a network; no array is allocated, so it takes seconds at any size."""
    arguments = _arguments()
    if any(argument.startswith("--config") for argument in argv):
        flags, recipe, _ = recipe_files.parse_with_config(arguments, argv)
    else:
        flags, recipe = arguments.parse_args(argv), None
    options: dict[str, Any] = {}
    if recipe is None:
        if flags.name is None:
            raise UserError("no network: name one, such as inception_v3, or give a recipe with --config=FILE.py")
        for name in [flags.name, *(flags.compare or [])]:
            recipe_files.check_model(name)
    elif flags.name is None:
        flags.name, options = _of_recipe(flags, recipe)
    if flags.compare is not None:
        return _compare(flags, options)

    from inception_jax.models.cost import count_cost
    from inception_jax.models.registry import create_model, get_spec

    spec = get_spec(flags.name)
    model = create_model(flags.name, **{**options, "num_classes": flags.num_classes, **dict(flags.set)})
    cost = count_cost(model, spec.image_size if flags.image_size is None else flags.image_size)
    if flags.json:
        print(json.dumps(as_json(flags.name, cost), indent=2))
        return 0
    _print_table(flags.name, spec.paper, model, cost)
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
    arguments.add_argument(
        "--image_size",
        type=command_line.whole(1, MAX_SIDE),
        metavar="PIXELS",
        help="height and width (default: the network's own)",
    )
    arguments.add_argument(
        "--num_classes",
        type=command_line.whole(0, MAX_BATCH),
        default=1000,
        metavar="N",
        help="outputs of the classifier (default 1000)",
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments.add_argument(
        "--set",
        type=command_line.option,
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="an option of create_model, such as module=naive or conv2_reduce=False; may be repeated",
    )
    arguments.add_argument(
        "--compare",
        nargs="*",
        metavar="NAME",
        help="print one line for the network and for each NAME instead of its blocks (default: every other network)",
    )
    return arguments


def _print_table(name: str, paper: str, model: Any, cost: NetworkCost) -> None:
    """Prints the network block by block, and its sums."""
    from inception_jax.models.inception_v1 import InceptionV1

    print(f"{name}: {paper}")
    print(f"{cost.image_size}x{cost.image_size} pixels, {cost.num_classes} classes\n")
    print(
        googlenet_table(model, cost)
        if isinstance(model, InceptionV1) and model.module == "reduced"
        else block_table(cost)
    )
    print(f"\nparameters  {cost.parameters:>14,}   with auxiliary heads {cost.parameters_with_aux:>14,}")
    print(f"MACs        {cost.macs:>14,}   with auxiliary heads {cost.macs_with_aux:>14,}")
    if cost.uncounted:
        print(f"MACs without those of {', '.join(cost.uncounted)}: of other layers than convolutions and dense ones")


def _of_recipe(flags: argparse.Namespace, recipe: ConfigDict) -> tuple[str, dict[str, Any]]:
    """The network of a recipe and its options; sets the image size that the recipe trains at, unless a flag gives one.

    Without the data, the number of classes is not known.
    """
    from inception_jax.config import Config

    config = Config(recipe)
    model = config.model
    flags.image_size = flags.image_size or config.data.image_size
    rates = model.read("dropout_rate", "aux_dropout_rate")
    options = model.read("width_multiplier", "aux_heads") | model.options.read_specified()
    return model.name, options | {name: rate for name, rate in rates.items() if rate is not None}


def as_json(name: str, cost: NetworkCost) -> dict[str, Any]:
    """Converts a network's cost to a JSON object; blocks named `aux…` count in `parameters_with_aux` only."""
    return {
        "model": name,
        "image_size": cost.image_size,
        "num_classes": cost.num_classes,
        "parameters": cost.parameters,
        "parameters_with_aux": cost.parameters_with_aux,
        "macs": cost.macs,
        **({"uncounted": list(cost.uncounted)} if cost.uncounted else {}),
        "blocks": [
            {"name": b.name, "output": list(b.output), "parameters": b.parameters, "macs": b.macs} for b in cost.blocks
        ],
    }


def _compare(flags: argparse.Namespace, options: dict[str, Any]) -> int:
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
    print(comparison_table(costs))
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


def comparison_table(costs: Mapping[str, NetworkCost]) -> str:
    """Formats one line per network; the last two columns are ratios to the first network."""
    first = next(iter(costs.values()))
    rows = [["network", "pixels", "parameters", "with heads", "MACs", "parameters", "MACs"]]
    for name, one in costs.items():
        heads = f"{one.parameters_with_aux:,}" if one.parameters_with_aux != one.parameters else UNKNOWN
        ratios = (one.parameters / first.parameters, one.macs / first.macs)
        rows.append(
            [
                name,
                str(one.image_size),
                f"{one.parameters:,}",
                heads,
                f"{one.macs:,}",
                *(f"x {ratio:.2f}" for ratio in ratios),
            ]
        )
    return _aligned(rows, left=1)


def block_table(cost: NetworkCost) -> str:
    """Formats one line per block."""
    rows = [["block", "output", "parameters", "MACs"]]
    rows += [[b.name, _size(b.output), f"{b.parameters:,}", f"{b.macs:,}"] for b in cost.blocks]
    return _aligned(rows, left=2)


def googlenet_table(model: InceptionV1, cost: NetworkCost) -> str:
    """Formats GoogLeNet with the columns of Table 1 of arXiv:1409.4842: our numbers, then the paper's.

    Parameters are in thousands, operations in millions. As in the paper, conv2 and its reduction are one row, and
    response normalization has none; the auxiliary heads, which the paper's table does not contain, are in brackets.
    """
    from inception_jax.models import inception_v1

    rows = [["type", "patch/stride", "output", "depth", *_COLUMNS, "params", "ops", "paper: params", "ops"]]
    blocks = {block.name: block for block in cost.blocks}
    for name, block in blocks.items():
        if name in ("conv2_reduce", "norm1", "norm2"):
            continue
        parts = [block, blocks["conv2_reduce"]] if name == "conv2" and model.conv2_reduce else [block]
        parameters, macs = sum(b.parameters for b in parts), sum(b.macs for b in parts)
        widths = model.widths.get(name.removeprefix("inception_"))
        filters = [""] * 6 if widths is None else [str(_width(model, n)) for n in widths]
        if name == "conv2":
            filters[1:3] = [str(_width(model, 64)) if model.conv2_reduce else "", str(_width(model, 192))]
        kind, patch, depth = _kind(name, model)
        ours = [f"{parameters / 1000:,.1f}K", f"{macs / 1e6:,.1f}M"] if parameters else ["", ""]
        printed = inception_v1.PAPER_PARAMS_AND_OPS.get(name)
        theirs = [f"{printed[0]:g}K", f"{printed[1]:g}M"] if printed else ["", ""]
        rows.append([kind, patch, _size(block.output), depth, *filters, *ours, *theirs])
    return _aligned(rows, left=3)


_COLUMNS = ("#1x1", "#3x3 reduce", "#3x3", "#5x5 reduce", "#5x5", "pool proj")


def _width(model: InceptionV1, filters: int) -> int:
    """Filters after the width multiplier."""
    from inception_jax.models.layers import scaled_width

    return scaled_width(filters, model.width_multiplier, model.min_width)


def _kind(name: str, model: InceptionV1) -> tuple[str, str, str]:
    """A block's columns type, patch size/stride and depth (layers with parameters) in Table 1."""
    if name.startswith("inception_"):
        return f"inception ({name.removeprefix('inception_')})", "", "2"
    return {
        "conv1": ("convolution", "7x7/2", "1"),
        "conv2": ("convolution", "3x3/1", "2" if model.conv2_reduce else "1"),
        "pool4": ("max pool", f"{model.pool4_window}x{model.pool4_window}/2", "0"),
        "pool5": ("avg pool", "global", "0"),
        "classifier": ("linear", "", "1"),
        "aux1": ("(aux1 on 4a)", "", "3"),
        "aux2": ("(aux2 on 4d)", "", "3"),
    }.get(name, ("max pool", "3x3/2", "0"))


def _size(output: tuple[int, int, int]) -> str:
    return "x".join(str(n) for n in output)


def _aligned(rows: list[list[str]], left: int) -> str:
    """Aligns the first `left` columns to the left and the numbers after them to the right."""
    return format_table(rows, "l" * left + "r" * (len(rows[0]) - left))


if __name__ == "__main__":
    command_line.run(main)

"""Tables of networks: their blocks, the steps inside these, GoogLeNet's Table 1, reductions, networks side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from inception_jax.runs.tables import UNKNOWN, format_table

if TYPE_CHECKING:
    from inception_jax.models.cost import NetworkCost
    from inception_jax.models.inception_v1 import InceptionV1
    from inception_jax.models.module_steps import Reduction, StepCost


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


def step_table(cost: NetworkCost, steps: Mapping[str, Sequence[StepCost]]) -> str:
    """Formats one line per block, and below it one per branch, with the sum of its steps, and one per step.

    Args:
      cost: of the network.
      steps: from `module_steps.list_steps`.
    """
    rows = [["block", "operation", "output", "weights", "parameters", "MACs"]]
    for block in cost.blocks:
        weights = sum(_weights(cost, block.name))
        rows.append([block.name, "", _size(block.output), *_numbers(weights, block.parameters, block.macs)])
        branch = 0
        for step in steps.get(block.name, ()):
            if step.branch and step.branch != branch:
                inside = [one for one in steps[block.name] if one.branch == step.branch]
                sums = (sum(getattr(one, field) for one in inside) for field in ("weights", "parameters", "macs"))
                rows.append([f"  branch {step.branch}", "", "", *_numbers(*sums)])
            branch = step.branch
            indent = "    " if branch else "  "
            numbers = _numbers(step.weights, step.parameters, step.macs)
            rows.append([indent + step.name, step.operation, _size(step.output), *numbers])
    return _aligned(rows, left=3)


def reduction_table(reductions: Sequence[Reduction]) -> str:
    """Formats one line per reduction; multiply-adds per output pixel of a convolution are its weights."""
    rows = [["module", "convolution", "kernel", "channels", "direct", "1x1", "after it", "both", "direct / both"]]
    for one in reductions:
        names = [one.block, one.name, "x".join(map(str, one.kernel)), " > ".join(map(str, one.channels))]
        counts = [f"{number:,}" for number in (one.direct, one.reduce, one.convolve, one.reduced)]
        rows.append([*names, *counts, f"{one.direct / one.reduced:.2f}"])
    return _aligned(rows, left=4)


def googlenet_table(model: InceptionV1, cost: NetworkCost) -> str:
    """Formats GoogLeNet with the columns of Table 1 of arXiv:1409.4842: our numbers, then the paper's.

    Parameters are in thousands, operations in millions. "weights" are the parameters without biases, in units of 1,024,
    as the paper has them (3a: 163,328 are 159.5K). As in the paper, conv2 and its reduction are one row, dropout and
    softmax have one, and response normalization has none; the auxiliary heads, which the paper's table does not
    contain, are in brackets. A star stands at a number of the paper that does not follow from its own filter columns:
    see `contradictions`.
    """
    from inception_jax.models import inception_v1

    rows = [["type", "patch/stride", "output", "depth", *_COLUMNS, "params", "ops", "weights", "paper: params", "ops"]]
    blocks = {block.name: block for block in cost.blocks}
    wrong = {(name, field) for name, field, _, _ in contradictions(model, cost)}
    blank = [""] * 6
    for name, block in blocks.items():
        if name in ("conv2_reduce", "norm1", "norm2"):
            continue
        parts = [block, blocks["conv2_reduce"]] if name == "conv2" and model.conv2_reduce else [block]
        parameters, macs = sum(b.parameters for b in parts), sum(b.macs for b in parts)
        widths = model.widths.get(name.removeprefix("inception_"))
        filters = blank if widths is None else [str(_width(model, n)) for n in widths]
        if name == "conv2":
            filters = ["", str(_width(model, 64)) if model.conv2_reduce else "", str(_width(model, 192)), "", "", ""]
        kind, patch, depth = _kind(name, model)
        weights = sum(sum(_weights(cost, b.name)) for b in parts) / 1024
        ours = [f"{parameters / 1000:,.1f}K", f"{macs / 1e6:,.1f}M", f"{weights:,.1f}K"] if parameters else [""] * 3
        printed = inception_v1.PAPER_PARAMS_AND_OPS.get(name)
        marks = ["*" if (name, field) in wrong else "" for field in ("params", "ops")]
        theirs = [f"{printed[0]:g}K{marks[0]}", f"{printed[1]:g}M{marks[1]}"] if printed else ["", ""]
        if name == "classifier" and model.dropout_rate:
            kept = [f"dropout ({100 * model.dropout_rate:g}%)", "", _size(blocks["pool5"].output), "0"]
            rows.append([*kept, *blank, *[""] * 5])
        rows.append([kind, patch, _size(block.output), depth, *filters, *ours, *theirs])
        if name == "classifier":
            rows.append(["softmax", "", _size(block.output), "0", *blank, *[""] * 5])
    return _aligned(rows, left=3)


_COLUMNS = ("#1x1", "#3x3 reduce", "#3x3", "#5x5 reduce", "#5x5", "pool proj")

# Why a number of Table 1 does not follow from its filter columns, where that is known (facts: separable conv1 in the
# appendix of arXiv:1502.03167; 204 and 48 filters in Google's released graph, inception5h).
_REASONS = {
    ("conv1", "params"): "a separable 7x7 with 8 maps per colour has 2,712 weights",
    ("conv1", "ops"): "that separable convolution has 34.0M",
    ("inception_4a", "params"): "204 filters of 3x3 in place of 208 give 363.4K",
    ("inception_4b", "params"): "508 channels from such a 4a give 436.6K",
    ("inception_5a", "ops"): "48 filters of 5x5 reduce in place of 32 give 54.2M",
}


def contradictions(model: InceptionV1, cost: NetworkCost) -> list[tuple[str, str, float, float]]:
    """Lists the numbers of Table 1 that do not follow from the table's own filter columns.

    A number follows if it is ours, rounded or cut off: weights alone in units of 1,024, operations in millions.

    Args:
      model: the network; only of the paper's own there is anything to list.
      cost: of the network.

    Returns:
      (block, "params" or "ops", ours, the paper's), in the order of the table.
    """
    from inception_jax.models import inception_v1

    if not _is_table_1(model, cost):
        return []
    found = []
    for name, (params, ops) in inception_v1.PAPER_PARAMS_AND_OPS.items():
        parts = ("conv2", "conv2_reduce") if name == "conv2" else (name,)
        weights = sum(sum(_weights(cost, part)) for part in parts) / 1024
        macs = sum(block.macs for block in cost.blocks if block.name in parts) / 1e6
        for field, ours, theirs in (("params", weights, params), ("ops", macs, ops)):
            if theirs not in (int(ours), round(ours)):
                found.append((name, field, ours, theirs))
    return found


def contradiction_lines(model: InceptionV1, cost: NetworkCost) -> Iterator[str]:
    """Yields a line per number of Table 1 that does not follow from its own filter columns, after a heading."""
    found = contradictions(model, cost)
    if found:
        yield "* does not follow from the table's own filters (weights alone, in 1,024s; multiply-adds):"
    for name, field, ours, theirs in found:
        unit = "K" if field == "params" else "M"
        reason = _REASONS.get((name, field))
        tail = f"; {reason}" if reason else ""
        yield f"  {name} {field}: {theirs:g}{unit}, counted {ours:,.1f}{unit}{tail}"


def _is_table_1(model: InceptionV1, cost: NetworkCost) -> bool:
    """Whether the network is that of Table 1, whose numbers are for 224 pixels in colour and 1000 classes."""
    return (
        cost.image_size == 224
        and cost.num_classes == 1000
        and model.in_channels == 3
        and model.table == "paper"
        and model.modules is None
        and model.width_multiplier == 1
        and model.conv2_reduce
        and model.five_by_five == 5
    )


def _weights(cost: NetworkCost, block: str) -> Iterator[int]:
    """Elements of the kernels of a block's layers."""
    for layer in cost.layers:
        if layer.block == block:
            height, width, channels, features = layer.kernel
            yield height * width * channels * features


def _numbers(weights: int, parameters: int, macs: int) -> list[str]:
    return [f"{number:,}" if parameters else "" for number in (weights, parameters, macs)]


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

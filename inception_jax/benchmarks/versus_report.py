"""What a comparison says: its complaints, which fail the command, and its table."""

from __future__ import annotations

from typing import Any

from inception_jax.benchmarks.equivalents import EQUIVALENTS

_HEADER = ("side", "step", "ms/step", "p10", "p90", "images/s", "time", "p10", "p90", "loss")

# What must be the same on all sides, where both of two have told it.
_EQUAL = {
    "pictures": "pictures (SHA-256)",
    "parameters": "parameters",
    "macs": "multiply-adds",
    "threads": "threads",
}
_FREE = 0.05  # share of the cores that others may take before a table says so


def verdict(result: dict[str, Any]) -> list[str]:
    """Why a comparison must not be believed, a line each; nothing where all is well.

    Args:
      result: of `duel.compare`.
    """
    baseline, lines = result["baseline"], []
    reference = _told(result["sides"][baseline])
    for name, side in result["sides"].items():
        if "error" in side:
            lines.append(f"left out: {side['error']}")
            continue
        prepared = _told(side)
        for field, what in _EQUAL.items():
            if field in prepared and field in reference and prepared[field] != reference[field]:
                lines.append(f"{name}: its {what} are {prepared[field]}, those of {baseline} {reference[field]}")
        if not side["finite"]:
            lines.append(f"{name}: a loss or a logit is not a finite number")
        elif side["falling"] is False:
            losses = side["losses"]
            lines.append(
                f"{name}: the training loss does not fall: {losses['first_quarter']:.4g} is the mean of the first "
                f"quarter of {losses['steps']} steps, {losses['last_quarter']:.4g} of the last"
            )
    return lines


def _told(side: dict[str, Any]) -> dict[str, Any]:
    """A side's answer to `prepare`, its flags among the rest."""
    return {**side["prepared"].get("flags", {}), **side["prepared"]}


def table(result: dict[str, Any]) -> str:
    """The comparison as aligned text, with what it is about above and its complaints below."""
    rows = [_HEADER, *_rows(result)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([_title(result), *lines, *_notes(result), *(f"! {line}" for line in verdict(result))])


def markdown(result: dict[str, Any]) -> str:
    """The comparison as Markdown: a paragraph, a table, and its complaints."""
    rows = [_HEADER, ("---", "---", *("---:",) * (len(_HEADER) - 2)), *_rows(result)]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = [f"- {line}" for line in (*_notes(result), *(f"**{line}**" for line in verdict(result)))]
    return "\n".join([_title(result), "", *lines, "", *notes])


def _title(result: dict[str, Any]) -> str:
    task = result["task"]
    device = result["sides"][result["baseline"]]["prepared"].get("device", task["backend"])
    return (
        f"{task['model']}, {task['image_size']} px, batch {task['batch_size']}, {task['dtype']}, on {device}: "
        f'{result["rounds"]} rounds of {result["steps"]} steps; "time" is relative to {result["baseline"]} in the '
        "same round; medians, 10th and 90th percentiles"
    )


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for kind in result["task"]["kinds"]:
        for name, side in result["sides"].items():
            if kind not in side:
                continue
            seconds, ratio = side[kind]["step_seconds"], side[kind]["ratio"]
            losses = side["losses"] if kind == "train" else None
            rows.append(
                (
                    name,
                    kind,
                    *(f"{1e3 * seconds[key]:.4g}" for key in ("median", "p10", "p90")),
                    f"{side[kind]['images_per_second']:.4g}",
                    *(f"{ratio[key]:.3f}" for key in ("median", "p10", "p90")),
                    f"{_loss(losses['first_quarter'])} to {_loss(losses['last_quarter'])}" if losses else "",
                )
            )
    return rows


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def _notes(result: dict[str, Any]) -> list[str]:
    """What runs on each side, where the networks differ, and whether the machine was free for them."""
    notes, others, cores = [], result["cores_of_others"], result["cores"]
    if others is not None and others > _FREE * cores:
        notes.append(
            f"a busy machine: other processes took {others:.2g} of {cores} cores meanwhile; these times are not to be "
            "quoted (threads that spin, as PyTorch's do, suffer most)"
        )
    for name, side in result["sides"].items():
        prepared = side.get("prepared", {})
        flags = {key: value for key, value in prepared.get("flags", {}).items() if value not in (None, "", {})}
        words = [*prepared.get("versions", {}).items(), *flags.items()]
        if words:
            notes.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in words))
    record, differences = EQUIVALENTS.get(result["task"]["model"]), []
    if "train" in result["task"]["kinds"]:
        differences.append("a training step of ours also counts top-1 and top-5 and measures the gradient's norm")
    if result["task"]["dtype"] != "float32":
        differences.append("PyTorch's is autocast, which takes the classifiers in low precision, too; ours are float32")
    if record is not None:
        notes.append(f"in PyTorch: {record.torch}; what differs: {'; '.join((*record.differences, *differences))}")
    return notes

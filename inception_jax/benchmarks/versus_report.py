"""Checks the result of a comparison with other frameworks' steps, and formats it as text."""

from __future__ import annotations

from typing import Any

from inception_jax.benchmarks.equivalents import EQUIVALENTS, KERAS
from inception_jax.models import packed_kernels
from inception_jax.runs.tables import format_table

_HEADER = ("side", "step", "ms/step", "p10", "p90", "images/s", "time", "p10", "p90", "loss")

# What must be equal on two sides if both report it: {field: text}.
_EQUAL = {
    "pictures": "images (SHA-256)",
    "parameters": "parameters",
    "macs": "multiply-adds",
    "threads": "threads",
}
_MAX_LOAD_OF_OTHERS = 0.05  # fraction of the cores; a table mentions a higher load


def find_problems(result: dict[str, Any]) -> list[str]:
    """Finds reasons why a comparison is not valid.

    Args:
      result: from `paired.compare`.

    Returns:
      One line per reason; [] for a valid comparison.
    """
    baseline, lines = result["baseline"], []
    reference = _reported(result["sides"][baseline])
    for name, side in result["sides"].items():
        if "error" in side:
            lines.append(f"excluded: {side['error']}")
            continue
        prepared = _reported(side)
        for field, text in _EQUAL.items():
            if field in prepared and field in reference and prepared[field] != reference[field]:
                lines.append(f"{name}: its {text} are {prepared[field]}, those of {baseline} {reference[field]}")
        if not side["finite"]:
            lines.append(f"{name}: a loss or a logit is not finite")
        elif side["falling"] is False:
            losses = side["losses"]
            lines.append(
                f"{name}: the training loss does not fall: {losses['first_quarter']:.4g} is the mean of the first "
                f"quarter of {losses['steps']} steps, {losses['last_quarter']:.4g} of the last"
            )
    return lines


def _reported(side: dict[str, Any]) -> dict[str, Any]:
    """A side's answer to `prepare`, with its flags on the same level."""
    return {**side["prepared"].get("flags", {}), **side["prepared"]}


def format_text(result: dict[str, Any]) -> str:
    """Formats a comparison as aligned text: title, table, notes and problems."""
    table = format_table([_HEADER, *_rows(result)], "ll" + "r" * 8)
    return "\n".join([_title(result), table, *_notes(result), *(f"! {line}" for line in find_problems(result))])


def _title(result: dict[str, Any]) -> str:
    """The workload, the device and the meaning of the columns."""
    workload = result["task"]
    device = result["sides"][result["baseline"]]["prepared"].get("device", workload["backend"])
    return (
        f"{workload['model']}, {workload['image_size']} px, batch {workload['batch_size']}, {workload['dtype']}, "
        f"on {device}: "
        f'{result["rounds"]} rounds of {result["steps"]} steps; "time" is relative to {result["baseline"]} in the '
        "same round; medians, 10th and 90th percentiles"
    )


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows under `_HEADER`: a row per kind and side."""
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
                    f"{_format_loss(losses['first_quarter'])} to {_format_loss(losses['last_quarter'])}"
                    if losses
                    else "",
                )
            )
    return rows


def _note_devices(count: int) -> str:
    """How our forward pass divides a batch over the CPU."""
    if count > 1:
        return (
            f"our forward pass: {count} JAX devices on the same cores, each with 1/{count} of the batch, as evaluate, "
            "predict, extract and score compute it; the other sides have as many threads, one per core"
        )
    return (
        "our forward pass is of one JAX device; evaluate, predict, extract and score make a CPU two, which "
        "--what=inference times for even batches from 4 on, where JAX_NUM_CPU_DEVICES is not set"
    )


def _note_memory(sides: dict[str, Any]) -> list[str]:
    """The peaks of the processes' memory, of the sides whose both peaks are known."""
    peaks = {name: side["host_memory"] for name, side in sides.items() if len(side.get("host_memory", {})) == 2}
    parts = [f"{name} {peak['prepare'] / 1e9:.2f} and {peak['steps'] / 1e9:.2f} GB" for name, peak in peaks.items()]
    return [f"host memory at the most, until ready and while it took steps: {', '.join(parts)}"] if parts else []


def _format_loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3f}"


def note_settings(result: dict[str, Any]) -> list[str]:
    """Notes below a table: load of the machine by other processes; versions and settings of each side."""
    notes, others, cores = [], result["cores_of_others"], result["cores"]
    if others is not None and others > _MAX_LOAD_OF_OTHERS * cores:
        notes.append(
            f"the machine was busy: other processes used {others:.2g} of {cores} cores meanwhile; do not quote these "
            "times (threads that spin, as PyTorch's do, are slowed down most)"
        )
    for name, side in result["sides"].items():
        prepared = side.get("prepared", {})
        flags = {key: value for key, value in prepared.get("flags", {}).items() if value not in (None, "", {})}
        settings = [*prepared.get("versions", {}).items(), *flags.items()]
        if settings:
            notes.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in settings))
    return notes


def _notes(result: dict[str, Any]) -> list[str]:
    """Notes below the table: those of `note_settings`, memory, differences of the networks."""
    notes = note_settings(result) + _note_memory(result["sides"])
    if "inference" in result["task"]["kinds"] and result["task"]["backend"] == "cpu":
        notes.append(_note_devices(result["task"].get("devices", 1)))
        if packed_kernels.gains(result["task"].get("options", {}).get("convolution", "")):
            notes.append(
                "our weights are prepared before the time, as these commands do it: kernels in oneDNN's layouts, "
                "coefficients of batch norm"
            )
    if "onnxruntime" in result["sides"]:
        notes.append(
            "ONNX Runtime runs our network, exported with batch norm folded into the convolutions; NumPy normalizes "
            "the images, within the time"
        )
    if "keras" in result["sides"]:
        name = KERAS[result["task"]["model"]].name
        notes.append(
            f"in Keras: keras.applications.{name} in the stateless step of its guide for JAX; our training step also "
            "computes top-1 and top-5 accuracy and the gradient norm"
        )
    equivalent, differences = EQUIVALENTS.get(result["task"]["model"]), []
    if "torch" not in result["task"].get("peers", ("torch",)):
        return notes
    if "train" in result["task"]["kinds"]:
        differences.append("our training step also computes top-1 and top-5 accuracy and the gradient norm")
    if result["task"]["dtype"] != "float32":
        differences.append(
            "PyTorch uses autocast, which computes the classifiers in low precision, too; ours are float32"
        )
    if equivalent is not None:
        notes.append(
            f"in PyTorch: {equivalent.torch}; differences: {'; '.join((*equivalent.differences, *differences))}"
        )
    return notes

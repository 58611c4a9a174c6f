"""The ledger: what the live comparisons measured, for the README, for the tests, and for `convert --verify`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from inception_jax.errors import UserError
from inception_jax.parity import runs, verification
from inception_jax.parity.runs import Case
from inception_jax.pretrained.publishers import registry
from inception_jax.pretrained.variants import Variant
from inception_jax.runs import manifest
from inception_jax.runs.tables import format_table

LEDGER = Path(__file__).with_name("ledger.json")
BEGIN, END = "<!-- ledger -->", "<!-- end of ledger -->"

# The package by which one knows that a side's programs can run in an environment.
_PACKAGES = {"torch": "torch", "tf": "tensorflow"}


def read_ledger(path: Path = LEDGER) -> list[dict[str, Any]]:
    """The rows that were measured live, one per variant and case."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def read_open_cases(path: Path = LEDGER) -> set[tuple[str, str, str]]:
    """The cases that nobody has compared live yet: (source, network, case); the README's table leaves them empty."""
    return {tuple(case) for case in json.loads(path.read_text(encoding="utf-8"))["open"]} if path.exists() else set()


def write_ledger(rows: Iterable[Mapping[str, Any]], path: Path = LEDGER) -> None:
    """Puts rows in the place of those of the same variant and case, and lists the cases that have none."""
    kept = {_key(row): row for row in [*read_ledger(path), *rows]}
    left = sorted(
        (variant.source, variant.model, case.name)
        for variant in registry.all_variants()
        for case in verification.cases_of(variant)
        if (variant.model, variant.source, case.mode, case.dtype, case.size) not in kept
    )
    lines = ",\n".join(json.dumps(kept[key]) for key in sorted(kept))
    open_cases = ",\n".join(json.dumps(case) for case in left)
    manifest.replace_text(path, f'{{"rows": [\n{lines}\n],\n"open": [\n{open_cases}\n]}}\n')


def update_table(path: Path) -> None:
    """Renews the table between the README's two marks.

    Raises:
      UserError: the marks are not there.
    """
    text = path.read_text(encoding="utf-8")
    before, begun, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise UserError(f"{path}: no {BEGIN} … {END}")
    manifest.replace_text(path, f"{before}{BEGIN}\n\n{table(read_ledger(), markdown=True)}\n\n{END}{after}")


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("model", "source", "mode", "dtype", "size"))


def _row(variant: Variant, case: Case, against: str, version: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": variant.model,
        "source": variant.source,
        "mode": case.mode,
        "size": case.size,
        "dtype": case.dtype,
        "against": against,
        "version": version,
        "jax": jax.__version__,
        **found,
    }


def find_python(side: str, given: str | None) -> str | None:
    """The interpreter of a side: `given`, that of INCEPTION_JAX_TORCH_PYTHON or …_TF_PYTHON, this one, or None.

    Args:
      side: "torch" or "tf".
      given: by a flag.
    """
    chosen = given or os.environ.get(f"INCEPTION_JAX_{side.upper()}_PYTHON")
    if chosen:
        return chosen
    return runs.default_python() if importlib.util.find_spec(_PACKAGES[side]) else None


def verify_case(variant: Variant, case: Case, python: str | None, *, keep_goldens: bool = False) -> dict[str, Any]:
    """One row: against the publisher's code in `python`, or against the goldens where that is None.

    Raises:
      UserError: the publisher's code fails there, or there are no goldens.
    """
    if python is None:
        found, version = verification.verify_golden(variant, case)
        return _row(variant, case, "goldens", version, found)
    found, theirs = verification.verify_live(variant, case, python)
    if keep_goldens:
        verification.write_golden(variant, case, theirs)
    return _row(variant, case, "publisher's code", theirs.version, found)


def verify_variants(flags: argparse.Namespace) -> int:
    """`convert --verify` without a file: compares, prints a line per case and the ledger; 0 if everything is equal.

    Args:
      flags: `model`, `source` (None: all), `torch_python`, `tf_python`, `write_ledger` (the README to renew, or None).
    """
    variants = [
        f for f in registry.all_variants() if flags.model in (None, f.model) and flags.source in (None, f.source)
    ]
    if not variants:
        registry.get_variant(flags.model, flags.source)  # says what is wrong with the names
    rows, equal = [], True
    for variant in variants:
        side = runs.framework_of(variant.source)
        python = find_python(side, getattr(flags, f"{side}_python"))
        for case in verification.cases_of(variant):
            try:
                row = verify_case(variant, case, python, keep_goldens=bool(flags.write_ledger))
            except UserError as error:
                print(f"{variant.model} of {variant.source}, {case.name}: not compared: {error}", flush=True)
                equal = False
                continue
            rows.append(row)
            good = verification.is_equal(row, case.dtype)
            equal = equal and good
            numbers = ", ".join(f"{name} {_number(value)}" for name, value in _differences(row))
            print(
                f"{variant.model} of {variant.source}, {case.name}: {'equal' if good else 'DIFFERENT'} ({numbers}) "
                f"against {row['against']} ({row['version']})",
                flush=True,
            )
            if flags.write_ledger and row["against"] != "goldens":
                write_ledger([row])
    print(f"\n{table(rows)}")
    if flags.write_ledger:
        update_table(Path(flags.write_ledger))
    return 0 if equal else 1


def verify_file(
    variant: Variant, arrays: Mapping[str, Any], python: str | None, options: Mapping[str, Any] | None = None
) -> bool:
    """`convert --verify` with a file: its weights through the publisher's code, or the variant against the goldens.

    Prints a line per comparison. `options` of `create_model` are for our side; the publisher's code has its own.

    Returns:
      Whether everything is equal.
    """
    equal = True
    for dtype in ("float64", "float32"):
        case = Case("eval", variant.image_size, dtype=dtype)
        if python is None:
            if dtype == "float32":
                break
            case = verification.cases_of(variant)[0]
            row, version = verification.verify_golden(variant, case)
            what = "seeded weights (the publisher's code is not here to run the file's own) against goldens of"
        else:
            row, version = verification.verify_weights(variant, arrays, python, dtype, options)
            what = "these weights against"
        good = verification.is_equal(row, dtype)
        equal = equal and good
        numbers = ", ".join(f"{name} {_number(value)}" for name, value in _differences(row))
        print(
            f"{variant.model} of {variant.source}, {case.name}: {'equal' if good else 'DIFFERENT'} ({numbers}): "
            f"{what} {version}",
            flush=True,
        )
    return equal


def _differences(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    found = [("logits", row["logits"]["rms"])]
    found += [(f"aux{i + 1}", aux["rms"]) for i, aux in enumerate(row.get("aux", []))]
    return found + ([("gradients", row["gradients"]["rms"])] if "gradients" in row else [])


def table(rows: Iterable[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """The ledger for a person: one line per variant.

    Args:
      rows: of the ledger.
      markdown: as Markdown, for the README; else aligned for a terminal.
    """
    lines = [["network", "weights of", "evaluation", "max", "other size", "batch statistics", "gradients", "float32"]]
    variants: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        variants.setdefault((row["model"], row["source"]), {})[_column(row)] = row
    order = {name: i for i, name in enumerate(registry.source_names())}
    for (model, source), cells in sorted(variants.items(), key=lambda item: (item[0][0], order[item[0][1]])):
        train, plain = cells.get("train"), cells.get("eval")
        heads = [aux["rms"] for aux in train.get("aux", [])] if train else []
        gradients = [row["gradients"]["rms"] for row in (plain, train) if row and "gradients" in row]
        lines.append(
            [
                model,
                source,
                _number(plain and plain["logits"]["rms"]),
                _number(plain and plain["logits"]["max"]),
                _number(cells["other"]["logits"]["rms"] if "other" in cells else None),
                _number(max([train["logits"]["rms"], *heads]) if train else None),
                _number(max(gradients) if gradients else None),
                _number(cells["float32"]["logits"]["rms"] if "float32" in cells else None),
            ]
        )
    if not markdown:
        return format_table(lines, "ll" + "r" * 6)
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---|---|" + "---:|" * 6, *body])


def _column(row: Mapping[str, Any]) -> str:
    if row["dtype"] == "float32":
        return "float32"
    variant = registry.get_variant(row["model"], row["source"])
    return row["mode"] if row["size"] == variant.image_size else "other"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}".replace("e-0", "e-")

"""The ledger of parity: results of the live comparisons, their table, and the command `convert --verify`."""

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
PAGE = "inception_jax/parity/README.md"
BEGIN, END = "<!-- ledger -->", "<!-- end of ledger -->"

# A package that shows whether the programs of a framework can run in an environment.
_PACKAGES = {"torch": "torch", "tf": "tensorflow"}


def read_ledger(path: Path = LEDGER) -> list[dict[str, Any]]:
    """Reads the rows that were measured live, one per variant and case."""
    return json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []


def read_open_cases(path: Path = LEDGER) -> set[tuple[str, str, str]]:
    """Reads the cases not yet compared live, as (source, model, case name); their cells in the table are empty."""
    return {tuple(case) for case in json.loads(path.read_text(encoding="utf-8"))["open"]} if path.exists() else set()


def write_ledger(rows: Iterable[Mapping[str, Any]], path: Path = LEDGER) -> None:
    """Replaces the rows of the same variant and case, and updates the list of cases that have none.

    Args:
      rows: measured live.
      path: of the ledger.
    """
    merged = {_key(row): row for row in [*read_ledger(path), *rows]}
    missing = sorted(
        (variant.source, variant.model, case.name)
        for variant in registry.all_variants()
        for case in verification.cases_of(variant)
        if (variant.model, variant.source, case.mode, case.dtype, case.size) not in merged
    )
    lines = ",\n".join(json.dumps(merged[key]) for key in sorted(merged))
    open_cases = ",\n".join(json.dumps(case) for case in missing)
    manifest.replace_text(path, f'{{"rows": [\n{lines}\n],\n"open": [\n{open_cases}\n]}}\n')


def update_table(path: Path) -> None:
    """Replaces the table between the two comment markers of a Markdown file by that of the ledger.

    Args:
      path: of the file, such as this package's README.md.

    Raises:
      UserError: the file cannot be read, or has no such markers.
    """
    before, after = _around_table(path)
    manifest.replace_text(path, f"{before}{BEGIN}\n\n{format_ledger(read_ledger(), markdown=True)}\n\n{END}{after}")


def _around_table(path: Path) -> tuple[str, str]:
    """Returns the text of a page before and after the table; raises UserError as `update_table`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--write_ledger={path}: cannot be read ({reason}); give it {PAGE}") from None
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"--write_ledger={path}: has no lines {BEGIN} and {END}; give it {PAGE}")
    return before, after


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


def find_python(framework: str, given: str | None) -> str | None:
    """Finds the interpreter that runs the publishers' code of a framework.

    Args:
      framework: "torch" or "tf".
      given: by a flag; it comes first.

    Returns:
      `given`, that of INCEPTION_JAX_TORCH_PYTHON or INCEPTION_JAX_TF_PYTHON, this one where the framework is installed,
      or None.
    """
    chosen = given or os.environ.get(f"INCEPTION_JAX_{framework.upper()}_PYTHON")
    if chosen:
        return chosen
    return runs.default_python() if importlib.util.find_spec(_PACKAGES[framework]) else None


def verify_case(variant: Variant, case: Case, python: str | None, *, keep_goldens: bool = False) -> dict[str, Any]:
    """Compares one case with the publisher's code, or with the goldens where `python` is None.

    Args:
      variant: the publisher's variant.
      case: the comparison.
      python: the interpreter of the environment where the publisher's code is installed, or None.
      keep_goldens: whether to store the publisher's outputs as goldens.

    Returns:
      The row of the ledger.

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
    """Runs `convert --verify` without a file: compares, prints a line per case and the table.

    Args:
      flags: `model`, `source` (None: all), `torch_python`, `tf_python`, `write_ledger` (the Markdown file whose table
        is to be replaced, or None).

    Returns:
      The exit code: 0 if everything is equal, 1 otherwise.
    """
    variants = [
        f for f in registry.all_variants() if flags.model in (None, f.model) and flags.source in (None, f.source)
    ]
    if not variants:
        registry.get_variant(flags.model, flags.source)  # raises, and names what is wrong
    if flags.write_ledger:
        _around_table(Path(flags.write_ledger))  # refused now rather than after all comparisons
    rows, equal = [], True
    for variant in variants:
        framework = runs.framework_of(variant.source)
        python = find_python(framework, getattr(flags, f"{framework}_python"))
        for case in verification.cases_of(variant):
            try:
                row = verify_case(variant, case, python, keep_goldens=bool(flags.write_ledger))
            except UserError as error:
                print(f"{variant.model} of {variant.source}, {case.name}: not compared: {error}", flush=True)
                equal = False
                continue
            rows.append(row)
            equal = equal and verification.is_equal(row, case.dtype)
            print(f"{_summary(variant, case, row)} against {row['against']} ({row['version']})", flush=True)
            if flags.write_ledger and row["against"] != "goldens":
                write_ledger([row])
    print(f"\n{format_ledger(rows)}")
    if flags.write_ledger:
        update_table(Path(flags.write_ledger))
    return 0 if equal else 1


def verify_file(
    variant: Variant, arrays: Mapping[str, Any], python: str | None, options: Mapping[str, Any] | None = None
) -> bool:
    """Runs `convert --verify` with a file: compares its own weights, or seeded ones with a golden.

    Prints a line per comparison.

    Args:
      variant: the publisher's variant.
      arrays: {publisher's name: array}, as in the file.
      python: the interpreter of the environment where the publisher's code is installed, or None: compare with the
        goldens, which are of seeded weights.
      options: of `create_model`, for our side; the publisher's code has its own.

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
            what = "seeded weights (the publisher's code to run the file's own is not installed) against goldens of"
        else:
            row, version = verification.verify_weights(variant, arrays, python, dtype, options)
            what = "these weights against"
        equal = equal and verification.is_equal(row, case.dtype)
        print(f"{_summary(variant, case, row)}: {what} {version}", flush=True)
    return equal


def _summary(variant: Variant, case: Case, row: Mapping[str, Any]) -> str:
    """Formats a row, such as "inception_v3 of timm, eval_299_float64: equal (logits 1e-15, gradients 4e-13)"."""
    differences = [("logits", row["logits"]["rms"])]
    differences += [(f"aux{i + 1}", aux["rms"]) for i, aux in enumerate(row.get("aux", []))]
    differences += [("gradients", row["gradients"]["rms"])] if "gradients" in row else []
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in differences)
    result = "equal" if verification.is_equal(row, case.dtype) else "DIFFERENT"
    return f"{variant.model} of {variant.source}, {case.name}: {result} ({numbers})"


def format_ledger(rows: Iterable[Mapping[str, Any]], *, markdown: bool = False) -> str:
    """Formats rows of the ledger as a table, one line per variant.

    Args:
      rows: of the ledger.
      markdown: as Markdown, for this package's README.md; else aligned for a terminal.
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
                _number(plain["logits"]["rms"] if plain else None),
                _number(plain["logits"]["max"] if plain else None),
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
    """The column group of a row: "eval", "train", "other" (size) or "float32"."""
    if row["dtype"] == "float32":
        return "float32"
    variant = registry.get_variant(row["model"], row["source"])
    return row["mode"] if row["size"] == variant.image_size else "other"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}".replace("e-0", "e-")

"""Summarizes what the trials of sweeps needed to reach their target; writes JSON, prints two tables.

    python experiments/time_to_target/summarize.py --factors=runs/factors --seeds=runs/seeds \\
        --output=experiments/time_to_target/results.json

Without --factors and --seeds it prints the tables of the file. Of trials that have not reached the target the images
are infinite, as AlgoPerf counts them (https://arxiv.org/abs/2306.07179).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import runpy
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SECONDS = ("startup", "compile", "data_wait", "evaluation", "checkpoint", "training", "wall")


def read_trials(study: Path) -> list[dict[str, Any]]:
    """Reads the finished trials of a study: fields, seed, accuracy, what the target took, goodput, seconds by phase."""
    rows = []
    for path in sorted(study.glob("trials/*/result.json")):
        result, trial = (json.loads(path.with_name(name).read_text()) for name in ("result.json", "trial.json"))
        fields = {**trial["overrides"], **trial["params"]}
        rows.append(
            {
                "fields": fields,
                "seed": fields.pop("seed", 0),
                "top1": trial["value"],
                "reached": result["target"]["reached"],
                "goodput": round(result["goodput"], 3),
                "starts": len(trial["starts"]),
                "seconds": {name: round(result[f"{name}_seconds"], 1) for name in SECONDS},
            }
        )
    return rows


def images(row: dict[str, Any]) -> float:
    """Training images until the target; infinite where it was not reached."""
    return row["reached"]["images"] if row["reached"] else math.inf


def _cells(rows: list[dict[str, Any]]) -> list[str]:
    """Trials that reached the target, median of images, median of the final accuracy."""
    median = statistics.median(map(images, rows))
    reached = sum(row["reached"] is not None for row in rows)
    accuracy = 100 * statistics.median(row["top1"] for row in rows)
    return [f"{reached} of {len(rows)}", "never" if median == math.inf else f"{median:,.0f}", f"{accuracy:.2f}"]


def factors_table(rows: list[dict[str, Any]]) -> str:
    """By level of each factor."""
    lines = [
        "| factor | level | reached 82 % | median of images | median of the final accuracy |",
        "|---|---|---:|---:|---:|",
    ]
    for field in rows[0]["fields"]:
        values = [row["fields"][field] for row in rows]
        levels: list[tuple[str, list[dict[str, Any]]]] = [
            (str(level), [row for row in rows if row["fields"][field] == level]) for level in sorted({*values})
        ]
        if field == "optimizer.learning_rate":
            thirds = (0.003, 0.014, 0.065, 0.3)
            levels = [
                (f"{low} to {high}", [row for row in rows if low <= row["fields"][field] < high])
                for low, high in itertools.pairwise(thirds)
            ]
        lines += [f"| {field} | {level} | {' | '.join(_cells(chosen))} |" for level, chosen in levels]
    return "\n".join(lines)


def seeds_table(rows: list[dict[str, Any]]) -> str:
    """By config, over its seeds: the median and the range of the images, the accuracy, and the goodput."""
    lines = [
        "| config | reached 82 % | images, each seed | median | final accuracy | goodput |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, fields in runpy.run_path(str(HERE / "seeds.py"))["CONFIGS"].items():
        own = [row for row in rows if row["fields"] == fields]
        reached, median, accuracy = _cells(own)
        each = ", ".join(f"{images(row):,.0f}".replace("inf", "never") for row in own)
        goodput = statistics.median(row["goodput"] for row in own)
        lines.append(f"| {name} | {reached} | {each} | {median} | {accuracy} | {goodput:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Reads the studies, writes the file and prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--factors", type=Path, help="the study of factors.py")
    parser.add_argument("--seeds", type=Path, help="the study of seeds.py")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    flags = parser.parse_args()
    content = json.loads(flags.output.read_text()) if flags.output.exists() else {}
    for name in ("factors", "seeds"):
        if study := getattr(flags, name):
            content[name] = read_trials(study)
    flags.output.write_text(json.dumps(content, indent=1) + "\n")
    tables = {"factors": factors_table, "seeds": seeds_table}
    print("\n\n".join(tables[name](rows) for name, rows in content.items()))


if __name__ == "__main__":
    main()

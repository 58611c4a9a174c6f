"""A sweep whose driver and trials are killed on the way: is every trial there in the end, and none run twice?

    python experiments/learning_rate/interruptions.py --study=runs/learning_rate --output=results.json

Runs the sweep of README.md beside this file; further flags of `sweep` are handed on. SIGKILL strikes the driver twice
and a trial's process three times, at different points of the study; after each death of the driver the same command is
started again. Then everything that the study left on disk is audited.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# (trials that have ended, whom SIGKILL strikes then): in turn.
KILLS = ((2, "trial"), (5, "driver"), (8, "trial"), (12, "driver"), (15, "trial"))
ENDED = ("finished", "pruned", "diverged", "failed")
KEPT = ("number", "status", "params", "value", "message", "pruned_at", "seconds")


def records(study: Path) -> list[dict[str, Any]]:
    """trial.json of every trial, in order."""
    found = []
    for path in sorted(study.glob("trials/*/trial.json")):
        found.append(json.loads(path.read_text()))
    return found


def wait_for(what: Callable[[], Any], driver: subprocess.Popen, seconds: float) -> Any:
    """What is first not None or false; None when the driver ends before.

    Raises:
      TimeoutError: neither happened.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        if driver.poll() is not None:
            return None
        time.sleep(0.2)
    raise TimeoutError(f"nothing within {seconds:.0f} s")


def running_trial(study: Path) -> int | None:
    """The process of a trial that has already saved something, and has more to do."""
    for record in records(study):
        start = record["starts"][-1] if record["starts"] else None
        workdir = study / "trials" / f"{record['number']:04d}"
        if record["status"] == "running" and start and start["ended"] is None and any(workdir.glob("checkpoints/*")):
            return start["pid"]
    return None


def run(study: Path, words: list[str]) -> list[dict[str, Any]]:
    """Runs the sweep to its end, with its deaths.

    Returns:
      [{"ended": trials that had ended, "whom": "driver" or "trial", "pid", "seconds" since the start}].
    """
    deaths, began = [], time.monotonic()
    pending = list(KILLS)
    command = [sys.executable, "-m", "inception_jax.sweep", *words]
    driver = subprocess.Popen(command)
    while True:
        if pending:
            after, whom = pending[0]
            reached = wait_for(
                lambda after=after: sum(r["status"] in ENDED for r in records(study)) >= after, driver, 3600
            )
            pid = reached and wait_for(lambda: running_trial(study), driver, 600)
            if pid:
                pending.pop(0)
                os.kill(driver.pid if whom == "driver" else pid, signal.SIGKILL)
                deaths.append(
                    {
                        "ended": after,
                        "whom": whom,
                        "pid": driver.pid if whom == "driver" else pid,
                        "seconds": time.monotonic() - began,
                    }
                )
                print(f"SIGKILL to the {whom}, {deaths[-1]['pid']}", flush=True)
                if whom == "driver":
                    driver.wait()
                    driver = subprocess.Popen(command)
                continue
        code = driver.wait()
        if code != 0:
            raise SystemExit(f"the sweep ended with exit code {code}")
        return deaths


def audit(study: Path, trials: int) -> dict[str, Any]:
    """What the study left, and what is wrong with it ("complaints", to be empty)."""
    found, complaints = records(study), []
    if [record["number"] for record in found] != list(range(trials)):
        complaints.append(f"numbers {[record['number'] for record in found]} are not 0 to {trials - 1}")
    for record in found:
        name, workdir = f"trial {record['number']}", study / "trials" / f"{record['number']:04d}"
        if record["status"] not in ENDED:
            complaints.append(f"{name} is {record['status']}")
        rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for kind in ("train", "evaluation"):
            steps = [(row["step"], row.get("weights")) for row in rows if row["kind"] == kind]
            if len(steps) != len(set(steps)) or steps != sorted(steps, key=lambda step: step[0]):
                complaints.append(f"{name}: a step of its {kind} rows is there twice, or out of order")
        if record["status"] == "finished" and json.loads((workdir / "result.json").read_text())["status"] != "finished":
            complaints.append(f"{name}: its run has not finished")
        if record["status"] == "pruned" and record["pruned_at"] is None:
            complaints.append(f"{name}: nobody decided to prune it")
    journal = [json.loads(line) for line in (study / "journal.log").read_text().splitlines()]
    told = [entry["trial_id"] for entry in journal if entry.get("op_code") == 6]  # 6: a trial's new state and value
    counts = {status: sum(record["status"] == status for record in found) for status in ENDED}
    best = max((record for record in found if record["value"] is not None), key=lambda record: record["value"])
    return {
        "counts": counts,
        "starts": sum(len(record["starts"]) for record in found),
        "most_starts_of_a_trial": max(len(record["starts"]) for record in found),
        "states_told": len(told),
        "best": {"number": best["number"], "value": best["value"], "params": best["params"]},
        "trial_seconds": sum(record["seconds"] for record in found),
        "complaints": complaints,
        "trials": [
            {key: record[key] for key in KEPT} | {"exits": [start["exit"] for start in record["starts"]]}
            for record in found
        ],
    }


def main() -> None:
    """Runs and audits; exit code 1 where there is a complaint."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--study", type=Path, required=True, help="a new directory")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    flags, more = parser.parse_known_args()
    here = os.path.relpath(HERE)  # as a person would type it: the study keeps it
    words = [
        f"--config={here}/config.py",
        f"--space={here}/space.py",
        f"--study={flags.study}",
        f"--trials={flags.trials}",
        f"--workers={flags.workers}",
        *more,
    ]
    began = time.monotonic()
    deaths = run(flags.study, words)
    result = {"seconds": time.monotonic() - began, "deaths": deaths, **audit(flags.study, flags.trials)}
    flags.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "trials"}, indent=2))
    sys.exit(1 if result["complaints"] else 0)


if __name__ == "__main__":
    main()

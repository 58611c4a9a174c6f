"""Runs a sweep while its driver and its trials are killed, and checks that every trial is present exactly once.

    python experiments/learning_rate/interruptions.py --study=runs/learning_rate --output=results.json

It is the sweep of the README.md beside this file; further flags are passed on to `sweep`. SIGKILL strikes the driver
twice and a training process three times, at different points of the study; after each death of the driver, the same
command is started again. Then all files of the study are checked.
"""

from __future__ import annotations

import argparse
import functools
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
# (number of ended trials, target of the SIGKILL at that point), in order.
KILLS = ((2, "trial"), (5, "driver"), (8, "trial"), (12, "driver"), (15, "trial"))
ENDED = ("finished", "pruned", "diverged", "failed")
KEPT = ("number", "status", "params", "value", "message", "pruned_at", "seconds")


def records(study: Path) -> list[dict[str, Any]]:
    """Reads trial.json of every trial, in order."""
    return [json.loads(path.read_text()) for path in sorted(study.glob("trials/*/trial.json"))]


def wait_for(condition: Callable[[], Any], driver: subprocess.Popen[bytes], seconds: float) -> Any:
    """Waits until a condition is true.

    Args:
      condition: called every 0.2 s.
      driver: process of the sweep.
      seconds: limit.

    Returns:
      The first true result of the condition; None where the driver exits before.

    Raises:
      TimeoutError: neither happened within the limit.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        if driver.poll() is not None:
            return None
        time.sleep(0.2)
    raise TimeoutError(f"the condition did not become true within {seconds:.0f} s")


def have_ended(study: Path, count: int) -> bool:
    """Returns whether at least `count` trials have ended."""
    return sum(record["status"] in ENDED for record in records(study)) >= count


def running_trial(study: Path) -> int | None:
    """Process id of a running trial that has a checkpoint; None where there is none."""
    for record in records(study):
        start = record["starts"][-1] if record["starts"] else None
        workdir = study / "trials" / f"{record['number']:04d}"
        if record["status"] == "running" and start and start["ended"] is None and any(workdir.glob("checkpoints/*")):
            return int(start["pid"])
    return None


def run(study: Path, arguments: list[str]) -> list[dict[str, Any]]:
    """Runs the sweep to its end, and kills its processes as `KILLS` says.

    Args:
      study: directory of the study.
      arguments: of `sweep`.

    Returns:
      [{"ended": number of ended trials, "whom": "driver" or "trial", "pid", "seconds" since the start}].
    """
    deaths, began = [], time.monotonic()
    pending = list(KILLS)
    command = [sys.executable, "-m", "inception_jax.sweep", *arguments]
    driver = subprocess.Popen(command)
    while True:
        if pending:
            after, whom = pending[0]
            reached = wait_for(functools.partial(have_ended, study, after), driver, 3600)
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
    """Checks the files of a study.

    Args:
      study: its directory.
      trials: expected number of trials.

    Returns:
      The content of results.json without "seconds" and "deaths"; the list "complaints" has every fault found.
    """
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
            complaints.append(f"{name}: it has no decision to prune it")
    journal = [json.loads(line) for line in (study / "journal.log").read_text().splitlines()]
    state_changes = [
        entry["trial_id"] for entry in journal if entry.get("op_code") == 6
    ]  # 6: a trial's new state and value
    counts = {status: sum(record["status"] == status for record in found) for status in ENDED}
    best = max((record for record in found if record["value"] is not None), key=lambda record: record["value"])
    return {
        "counts": counts,
        "starts": sum(len(record["starts"]) for record in found),
        "most_starts_of_a_trial": max(len(record["starts"]) for record in found),
        "states_told": len(state_changes),
        "best": {"number": best["number"], "value": best["value"], "params": best["params"]},
        "trial_seconds": sum(record["seconds"] for record in found),
        "complaints": complaints,
        "trials": [
            {key: record[key] for key in KEPT} | {"exits": [start["exit"] for start in record["starts"]]}
            for record in found
        ],
    }


def main() -> None:
    """Runs the sweep and checks its files; exits with 1 where a check fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--study", type=Path, required=True, help="a new directory")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the results")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    flags, more = parser.parse_known_args()
    here = os.path.relpath(HERE)  # as a user would type it: study.json records it
    arguments = [
        f"--config={here}/config.py",
        f"--space={here}/space.py",
        f"--study={flags.study}",
        f"--trials={flags.trials}",
        f"--workers={flags.workers}",
        *more,
    ]
    began = time.monotonic()
    deaths = run(flags.study, arguments)
    result = {"seconds": time.monotonic() - began, "deaths": deaths, **audit(flags.study, flags.trials)}
    flags.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "trials"}, indent=2))
    sys.exit(1 if result["complaints"] else 0)


if __name__ == "__main__":
    main()

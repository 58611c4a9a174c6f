"""Stands in for `inception_jax.train` in the tests of the sweep: its files, signals and exit codes, in milliseconds.

    python fake_train.py --parent=PID -- --config=… [--config.FIELD=VALUE …] --workdir=DIR

It holds the workdir's lock, writes one evaluation and one checkpoint an epoch, goes on from the newest checkpoint,
saves on SIGTERM, and ends with its parent. What it shall do beside comes from the JSON file that FAKE_TRAIN names:

    {"epochs": 6, "seconds": 0.01, "linger": 0, "default": [], "3": [["exit", 2, 7], ["kill", 4], …]}

An epoch takes `seconds`, and what comes after the last one `linger`. The list of a trial's number has an entry for each
of its starts: ["exit", EPOCH, CODE], ["kill", EPOCH] (by itself, SIGKILL), ["nan", EPOCH], ["early", EPOCH] (early
stopping), ["deaf"] (to SIGTERM), or null: nothing special. `epochs.log` in the workdir tells which epochs were trained.
"""

import ctypes
import fcntl
import json
import math
import os
import signal
import sys
import time
from pathlib import Path


def quality(values, epoch, epochs):
    """The top-1 of an epoch: best at a learning rate of 0.01, and better with every epoch."""
    distance = math.log10(float(values.get("optimizer.learning_rate", 0.01))) + 2
    return max(0.0, 0.99 - 0.2 * distance**2) * (0.5 + 0.5 * epoch / epochs)


def main(arguments):
    split = arguments.index("--")
    parent = int(arguments[0].partition("=")[2])
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(143)
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    given = dict(word.removeprefix("--").removeprefix("config.").split("=", 1) for word in arguments[split + 1 :])
    workdir = Path(given["workdir"])
    (workdir / "arguments.json").write_text(json.dumps(arguments[split + 1 :]))
    behaviour = json.loads(Path(os.environ["FAKE_TRAIN"]).read_text())
    held = open(workdir / "lock", "a+")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("error: workdir in use", file=sys.stderr)
        sys.exit(4)
    held.truncate(0)
    held.write("held\n")
    held.flush()
    with open(workdir / "starts.log", "a") as file:
        start = file.tell()
        file.write("x")
    acts = behaviour.get(str(int(workdir.name)), behaviour.get("default", []))
    act = (acts[start] if start < len(acts) else None) or [None, -1]
    train(workdir, given, behaviour, act, stopped)
    held.truncate(0)


def train(workdir, given, behaviour, act, stopped):
    (workdir / "checkpoints").mkdir(exist_ok=True)
    done = max((int(entry.name) for entry in (workdir / "checkpoints").iterdir()), default=0)
    metrics = workdir / "metrics.jsonl"
    kept = (
        [line for line in metrics.read_text().splitlines() if json.loads(line)["step"] <= done]
        if metrics.exists()
        else []
    )
    (workdir / "metrics.new").write_text("".join(line + "\n" for line in kept))
    os.replace(workdir / "metrics.new", metrics)
    epochs = behaviour["epochs"]
    for epoch in range(done + 1, epochs + 1):
        time.sleep(behaviour["seconds"])
        with open(workdir / "epochs.log", "a") as file:
            file.write(f"{epoch}\n")
        if act[:2] == ["kill", epoch]:
            os.kill(os.getpid(), signal.SIGKILL)
        if act[:2] == ["exit", epoch]:
            leave(workdir, act[2])
        value = quality(given, epoch, epochs)
        with open(metrics, "a") as file:
            for weights, factor in (("raw", 0.9), ("ema", 1.0)):
                top1 = "NaN" if act[:2] == ["nan", epoch] else factor * value
                row = {
                    "kind": "evaluation",
                    "step": epoch,
                    "epoch": epoch,
                    "split": "test",
                    "weights": weights,
                    "loss": 1 - factor * value,
                    "top1": top1,
                    "top5": 1.0,
                    "count": 360,
                }
                file.write(json.dumps(row) + "\n")
        (workdir / "checkpoints" / str(epoch)).mkdir()
        if act[:2] == ["early", epoch]:
            time.sleep(behaviour["linger"])
            return write_result(workdir, status="finished", ended="early stopping: 1 evaluation")
        if value >= float(given.get("stop.target", "inf")):
            time.sleep(behaviour["linger"])
            target = {
                "metric": "top1",
                "value": float(given["stop.target"]),
                "reached": {"steps": epoch, "value": value},
            }
            return write_result(workdir, status="finished", ended=f"target reached: at {epoch}", target=target)
        if stopped and epoch < epochs and act != ["deaf"]:
            write_result(workdir, status="interrupted")
            sys.exit(143)
    time.sleep(behaviour["linger"])
    missed = {"metric": "top1", "value": float(given.get("stop.target", "nan")), "reached": None}
    write_result(workdir, status="finished", **({"target": missed} if "stop.target" in given else {}))


def write_result(workdir, **content):
    (workdir / "result.new").write_text(json.dumps(content))
    os.replace(workdir / "result.new", workdir / "result.json")


def leave(workdir, code):
    print(f"a line before\nerror: it left with {code}", file=sys.stderr)
    status = {3: "diverged"}.get(code, "failed")
    write_result(workdir, status=status, message=f"it left with {code}")
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])

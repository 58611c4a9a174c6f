"""Forks a driver of a sweep for each line that it reads: a request in JSON (see `conftest.Drivers.start`).

It answers with the process id, and writes the exit code to a file when there is one.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path

FAKE = Path(__file__).resolve().with_name("fake_train.py")

# Where a driver can be made to kill itself: (module, class or None, function), before it is called.
MOMENTS = {
    "ask": ("study", "Study", "begin_trial"),
    "queued": ("study", "Study", "_sampler"),
    "suggest": ("study", None, "_suggest"),
    "place": ("study", "Study", "set_workdir"),
    "record": ("running_trial", "RunningTrial", "save"),
    "start": ("running_trial", "RunningTrial", "start"),
    "report": ("study", "Study", "report"),
    "judge": ("study", "Study", "_ask_pruner"),
    "note": ("study", "Study", "_apply_decision"),
    "prune": ("running_trial", "RunningTrial", "request_stop"),
    "after": ("running_trial", "RunningTrial", "handle_exit"),
    "write": ("running_trial", "RunningTrial", "save_outcome"),
    "finish": ("study", "Study", "finish_trial"),
    "release": ("running_trial", "RunningTrial", "release"),
}


def fake_command(arguments, cores):
    """The command of a fake training process."""
    return [sys.executable, "-I", "-S", str(FAKE), f"--parent={os.getpid()}", "--", *arguments]


def timing(**seconds):
    """Short times."""
    from inception_jax.sweeps.running_trial import TrialTiming

    return TrialTiming(
        **{"poll": 0.01, "scan": 0.05, "heartbeat": 0.2, "backoff": 0.01, "locked_retry": 0.02} | seconds
    )


def die_at(name, count):
    """Makes this process kill itself at the given call of a function of `MOMENTS`; or ("answer", N) when the
    pruner has answered for evaluation N of trial 1, and nobody has written it down."""
    import importlib

    if name == "answer":
        die_at_answer(count)
        return
    module, owner, function = MOMENTS[name]
    holder = importlib.import_module(f"inception_jax.sweeps.{module}")
    holder = getattr(holder, owner) if owner else holder
    original, calls = getattr(holder, function), []

    def counted(*arguments, **keywords):
        calls.append(name)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **keywords)

    setattr(holder, function, counted)


def die_at_answer(evaluation):
    import optuna

    original = optuna.trial.Trial.set_user_attr

    def watched(trial, key, value):
        if key == "judged" and trial.number == 1 and value["evaluation"] == evaluation:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(trial, key, value)

    optuna.trial.Trial.set_user_attr = watched


def drive(request):
    """Becomes a driver."""
    from inception_jax import command_line, sweep
    from inception_jax.sweeps import report

    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT, 0o644)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    report.write = lambda directory, study=None: directory / "report.md"
    if request["die_at"]:
        die_at(*request["die_at"])
    sys.argv = ["sweep", *request["arguments"]]
    command_line.run(lambda argv: sweep.main(argv, command=fake_command, timing=timing(**request["timing"])))


def serve():
    """Forks until there are no more requests; then nothing that it started is left."""
    import optuna

    import inception_jax.config
    import inception_jax.sweep
    import inception_jax.sweeps.report

    optuna.samplers.TPESampler(seed=0)
    inception_jax.config.default()
    gc.collect()
    gc.freeze()
    outputs = {}

    def reap(*_):
        for process in list(outputs):
            try:
                done, status = os.waitpid(process, os.WNOHANG)
            except ChildProcessError:
                continue  # this handler ran again within itself, and has seen to that process
            if done:
                code = Path(outputs.pop(process)).with_suffix(".code")
                code.with_suffix(".new").write_text(str(os.waitstatus_to_exitcode(status)))
                code.with_suffix(".new").rename(code)

    signal.signal(signal.SIGCHLD, reap)
    for line in sys.stdin:
        request = json.loads(line)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        process = os.fork()
        if process == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            drive(request)
        outputs[process] = request["output"]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        print(process, flush=True)
    for process in list(outputs):
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    serve()

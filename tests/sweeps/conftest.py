"""Sweeps over `fake_train.py`: hundreds of trials in seconds, in this process or in drivers that can be killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

SPACE = """
from inception_jax.sweeps.space import choice, integer, real
def get_space():
    return {"optimizer.learning_rate": real(1e-4, 1.0, log=True), "optimizer.name": choice("sgd", "rmsprop")}
"""

STARTED = 30  # seconds in which anything that must happen has happened


class FakeStudy:
    """A study in a directory, and the command that works on it with fake training."""

    def __init__(self, directory):
        self.directory, self.path = directory / "study", directory
        self.behaviour()
        self.space(SPACE)

    def behaviour(self, epochs=4, seconds=0.005, linger=0, default=(), **by_number):
        """What the fake training does; keywords are `trial_3=[…]`."""
        content = {"epochs": epochs, "seconds": seconds, "linger": linger, "default": default}
        content |= {name.removeprefix("trial_"): acts for name, acts in by_number.items()}
        (self.path / "behaviour.json").write_text(json.dumps(content))
        os.environ["FAKE_TRAIN"] = str(self.path / "behaviour.json")
        self.epochs = epochs

    def space(self, text):
        (self.path / "space.py").write_text(text)

    def arguments(self, *more):
        return [
            "--config=configs/digits.py",
            f"--config.num_epochs={self.epochs}",
            f"--space={self.path / 'space.py'}",
            f"--study={self.directory}",
            *more,
        ]

    def trial(self, number):
        """Its record."""
        return json.loads((self.directory / "trials" / f"{number:04d}" / "trial.json").read_text())

    def trials(self):
        """All records, in order, as far as drivers have come to write them."""
        found = []
        for name in sorted(path.name for path in self.directory.glob("trials/*")):
            with contextlib.suppress(FileNotFoundError):
                found.append(self.trial(int(name)))
        return found

    def statuses(self):
        return [trial["status"] for trial in self.trials()]

    def epochs_trained(self, number):
        """Which epochs were trained, in order, repetitions included."""
        log = self.directory / "trials" / f"{number:04d}" / "epochs.log"
        return [int(line) for line in log.read_text().splitlines()] if log.exists() else []

    def log(self):
        return (self.directory / "sweep.log").read_text()

    def stored(self):
        """The study in Optuna's storage."""
        import optuna

        backend = optuna.storages.journal.JournalFileBackend(str(self.directory / "journal.log"))
        name = json.loads((self.directory / "study.json").read_text())["name"]
        return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A new study."""
    monkeypatch.setenv("FAKE_TRAIN", "")
    monkeypatch.chdir(ROOT)
    return FakeStudy(tmp_path)


@pytest.fixture
def sweep(study, monkeypatch):
    """Runs `sweep` with fake training to its end, in this process; returns the exit code. Errors are raised."""
    from inception_jax import sweep as command

    from . import driver_server

    monkeypatch.setattr("inception_jax.sweeps.report.write", lambda directory, study=None: directory / "report.md")

    def run(*more, **timing):
        return command.main(
            study.arguments(*more), command=driver_server.fake_command, timing=driver_server.timing(**timing)
        )

    return run


class Drivers:
    """A fork server of drivers: each is there in a moment, and can be killed like any process."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory()
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, str(HERE / "driver_server.py")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "JAX_PLATFORMS": "cpu",
                "PYTHONWARNINGS": "error,ignore:the load_module:DeprecationWarning",
            },
            text=True,
            start_new_session=True,
        )

    def start(self, study, *more, die_at=None, **timing):
        """Starts a driver of a study.

        Args:
          study: a FakeStudy.
          more: flags beside the study's.
          die_at: [name, N]: SIGKILL itself when it calls that for the Nth time; see `driver_server.MOMENTS`.
          timing: seconds that differ from `driver_server.timing`'s.
        """
        self._count += 1
        output = Path(self._folder.name) / f"{self._count}"
        request = {
            "arguments": study.arguments(*more),
            "output": str(output),
            "die_at": die_at,
            "timing": timing,
            "environment": {"FAKE_TRAIN": str(study.path / "behaviour.json")},
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return DriverProcess(int(self._server.stdout.readline()), output)

    def close(self):
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()
        self._folder.cleanup()


class DriverProcess:
    """A driver that was started."""

    def __init__(self, pid, output):
        self.pid, self._output = pid, output

    def poll(self):
        """Its exit code, minus the signal's number; None while it runs."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self._output.with_suffix(".code").read_text())
        return None

    def wait(self, seconds=120):
        return wait_for(lambda: self.poll() is not None, seconds) and self.poll()

    def send(self, number):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self):
        """SIGKILL, and its end."""
        self.send(signal.SIGKILL)
        return self.wait()

    def output(self):
        return self._output.read_text()


def wait_for(condition, seconds=STARTED):
    """Waits until a condition holds; fails where it never does."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.005)
    return found


@pytest.fixture(scope="session")
def drivers():
    """Starts drivers as processes of their own."""
    server = Drivers()
    yield server
    server.close()

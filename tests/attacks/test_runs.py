"""A small run under attack: kills with worker processes and under pmap, other places, users, clocks and ports.

Each test is a row of experiments/attacks. The network is that of configs/README.md, which compiles in an instant; a
run that a test interrupts must end with the bits of one that nobody interrupted.
"""

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inception_jax.fault_injection import InterruptedRun, ReferenceRun
from inception_jax.runs import lock

ROOT = Path(__file__).resolve().parents[2]
# An augmentation that takes its time, in front of the recipe's own.
SLOW = """def shift(*arguments):
    import time

    time.sleep({})
    return shifted(*arguments)


"""
pytestmark = [pytest.mark.attack, pytest.mark.slow, pytest.mark.timeout(1200)]

LONG = [
    "--config.num_steps=600", "--config.logging.every_steps=1", "--config.checkpoint.every_epochs=2.5",
    "--config.evaluation.every_epochs=7.5", "--config.logging.pictures=False",
]  # fmt: skip
WAYS = {
    "workers": (["--config.data.workers=1"], {}),
    "pmap": (["--config.parallel.mode=pmap"], {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_kills(way, own_recipe, start_command, tmp_path):
    """SIGKILL 25 times: while it starts, steps, saves, deletes and evaluates."""
    flags, environment = WAYS[way]

    def start(workdir):
        arguments = [f"--config={own_recipe}", *LONG, *flags, f"--workdir={workdir}"]
        return start_command("train", *arguments, environment=environment)

    _, err = (reference := start(tmp_path / "whole")).communicate(timeout=900)
    assert reference.returncode == 0, err
    run = InterruptedRun(
        lambda: start(tmp_path / "run"),
        lambda process: process.written()[1],
        tmp_path / "run",
        ReferenceRun(tmp_path / "whole"),
        random.Random(way),
    )
    run.kill(25, aims={"start": 3, "steps": 5, "save": 7, "deletion": 3, "evaluation": 3})
    run.finish()
    hits = collections.Counter(start.hit for start in run.starts if start.hit)
    print(dict(hits), [start.step for start in run.starts])
    assert sum(hits.values()) >= 25


@pytest.fixture(scope="module")
def environment(command_environment, tmp_path_factory):
    """As a user has it: no cache folder named, a home, and Python's warnings as they are."""
    variables = {
        k: v for k, v in command_environment.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "PYTHONWARNINGS")
    }
    return variables | {"HOME": str(tmp_path_factory.mktemp("home"))}


def train(environment, recipe, workdir, *flags, before=(), cwd=ROOT, steps=12, prefix=""):
    """Trains by `python -m`, maybe below another program or after shell commands; returns the finished process."""
    command = [sys.executable, "-m", "inception_jax.train", f"--config={recipe}", f"--workdir={workdir}"]
    command += [f"--config.num_steps={steps}", "--config.logging.pictures=False", *flags]
    if prefix:
        command = ["sh", "-c", f'{prefix}; exec "$@"', "sh", *command]
    return subprocess.run([*before, *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def outcome(workdir):
    """Status, fingerprint of the state, and last evaluation."""
    result = json.loads((workdir / "result.json").read_text())
    return result["status"], result["fingerprint"], result["metrics"]["test"]


@pytest.fixture(scope="module")
def whole(environment, own_recipe, tmp_path_factory):
    """What an undisturbed run of 12 steps leaves, and the workdir of one that has 6 of them."""
    folder = tmp_path_factory.mktemp("whole")
    for name, steps in (("run", 12), ("half", 6)):
        done = train(environment, own_recipe, folder / name, steps=steps)
        assert done.returncode == 0, done.stderr
    os.chmod(folder, 0o755)
    return folder


NAMESPACE = ["unshare", "--mount", "--uts", "--map-root-user"]


@pytest.fixture
def namespace():
    """Skips where this machine lets nobody mount anything."""
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets us make no namespace")


PLACES = {
    "renamed": {},
    "another directory": {"cwd": "/"},
    "another host name": {"before": NAMESPACE, "prefix": "hostname elsewhere"},
    "no HOME": {"without": ["HOME"]},
    "a HOME that does not exist": {"with": {"HOME": "/nonexistent/home"}},
    "a HOME that is read-only": {"with": {"HOME": "/sys"}},
    "a HOME that is a file": {"with": {"HOME": "/etc/passwd"}},
    "another time zone": {"with": {"TZ": "Pacific/Kiritimati"}},
    "no time zone": {"with": {"TZ": "no/such:zone"}},
    "no locale": {"with": {"LC_ALL": "C", "LANG": "", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}},
    "a clock that was set back": {"clock": -400 * 86400.0},
    "a clock that was set forward": {"clock": 400 * 86400.0},
    "a clock that stands": {"clock": None},
    "no /dev/shm": {"before": NAMESPACE, "prefix": "mount -t tmpfs -o ro none /dev/shm"},
    "no terminal, no streams": {"prefix": "exec <&- >&- 2>&-"},
    "nohup": {"before": ["nohup"]},
}


@pytest.mark.parametrize("place", PLACES)
def test_a_run_goes_on_elsewhere(place, whole, environment, own_recipe, namespace, tmp_path):
    """A run with half of its steps goes on in another place or environment: the same bits, and no traceback."""
    change = PLACES[place]
    workdir, recipe = shutil.copytree(whole / "half", tmp_path / "moved" / "run"), own_recipe
    variables = {name: value for name, value in environment.items() if name not in change.get("without", ())}
    if "clock" in change:
        recipe = shutil.copy(own_recipe, tmp_path / own_recipe.name)
        shift = (
            "lambda now=time.time(): now"
            if change["clock"] is None
            else f"lambda real=time.time: real() + {change['clock']}"
        )
        text = own_recipe.read_text()
        recipe = tmp_path / "mine.py"
        recipe.write_text(f"import time\ntime.time = {shift}\n{text}")
    extra = {key: change[key] for key in ("before", "prefix", "cwd") if key in change}
    done = train(variables | change.get("with", {}), recipe, workdir, **extra)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert outcome(workdir) == outcome(whole / "run")
    assert str(whole) not in (workdir / "result.json").read_text()


def test_another_user(whole, environment, own_recipe, tmp_path):
    """Not root: in a workdir of its own the run goes on, in one of somebody else's it is refused."""
    if os.getuid() or shutil.which("setpriv") is None:
        pytest.skip("only root can become another user")
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    place = Path("/var/tmp") / f"inception_jax_attack_{os.getpid()}"
    try:
        for name in ("mine", "theirs"):
            shutil.copytree(whole / "half", place / name)
        shutil.copy(own_recipe, place)
        subprocess.run(["chown", "-R", "65534", place / "mine"], check=True)
        readable = subprocess.run([*nobody, sys.executable, "-c", "import jax"], cwd="/", capture_output=True)
        if readable.returncode:
            pytest.skip("another user cannot read this Python")
        variables = environment | {"HOME": "/nonexistent"}
        done = train(variables, place / own_recipe.name, place / "mine", before=nobody)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        assert outcome(place / "mine") == outcome(whole / "run")
        done = train(variables, place / own_recipe.name, place / "theirs", before=nobody)
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.count("error: cannot write workdir") == 1
    finally:
        shutil.rmtree(place, ignore_errors=True)


READ_ONLY = "mount --bind {0} {0} && mount -o remount,bind,ro {0}"


def test_read_only_mounts(whole, environment, own_recipe, namespace, tmp_path):
    """A workdir that cannot be written is refused by who writes there, and can be used by who reads it."""
    import cv2
    import numpy as np

    workdir = shutil.copytree(whole / "run", tmp_path / "run")
    assert cv2.imwrite(str(tmp_path / "image.png"), np.full((16, 16, 3), 99, np.uint8))
    cache = tmp_path / "cache"
    cache.mkdir()
    read_only = READ_ONLY.format(workdir)

    def run(verb, *flags, prefix=read_only, **variables):
        script = f'{prefix} && exec "$0" -m inception_jax.{verb} "$@"'
        command = [*NAMESPACE, "sh", "-c", script, sys.executable, *map(str, flags)]
        return subprocess.run(
            command, cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=300
        )

    here = f"--workdir={workdir}"
    refused = {
        "train": [f"--config={own_recipe}", here, "--config.num_steps=24"],
        "evaluate": [here],
    }
    used = {"predict": [here, tmp_path / "image.png"], "compare": [workdir]}
    for verb, flags in refused.items():
        done = run(verb, *flags)
        assert done.returncode == 2 and "Traceback" not in done.stderr, (verb, done.stderr)
        assert done.stderr.count("error: ") == 1 and "Read-only file system" in done.stderr, (verb, done.stderr)
    for verb, flags in used.items():
        done = run(verb, *flags)
        assert done.returncode == 0 and "Traceback" not in done.stderr, (verb, done.stderr)
    shm = "mount -t tmpfs -o ro none /dev/shm"
    done = run(
        "train", f"--config={own_recipe}", f"--workdir={tmp_path / 'shm'}", "--config.data.workers=1", prefix=shm
    )
    assert done.returncode == 2 and "error: /dev/shm cannot be written (Read-only file system)" in done.stderr
    assert "Traceback" not in done.stderr
    # The folders of caches: the compiler's and TFDS's.
    for variable in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "TFDS_DATA_DIR", "MPLCONFIGDIR"):
        target = tmp_path / f"run_{variable}"
        done = run(
            "train", f"--config={own_recipe}", f"--workdir={target}", "--config.num_steps=2",
            prefix=READ_ONLY.format(cache), **{variable: str(cache)},
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, (variable, done.stderr)


def test_read_only_data(environment, own_recipe, namespace, tmp_path):
    """Class folders that cannot be written, an index of theirs included: trained on, evaluated and predicted."""
    import cv2
    import numpy as np

    data, here = tmp_path / "data", f"--workdir={tmp_path / 'run'}"
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for name in ("across", "down"):
            (data / split / name).mkdir(parents=True)
            for number in range(count):
                cv2.imwrite(str(data / split / name / f"{number}.jpg"), random.integers(0, 256, (20, 20, 3), np.uint8))
    fields = [f"--config.data.name=folder:{data}", "--config.num_steps=4", "--config.logging.pictures=False"]
    commands = {
        "train": [f"--config={own_recipe}", here, *fields, "--config.augmentation.rule=none"],
        "evaluate": [here],
        "extract": [here, f"--output={tmp_path / 'features.npz'}", "--endpoints=logits"],
        "predict": [here, data],
    }
    before = sorted(data.rglob("*"))
    for verb, flags in commands.items():
        script = f'{READ_ONLY.format(data)} && exec "$0" -m inception_jax.{verb} "$@"'
        command = [*NAMESPACE, "sh", "-c", script, sys.executable, *map(str, flags)]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0 and "Traceback" not in done.stderr, (verb, done.stderr)
    assert sorted(data.rglob("*")) == before


def test_ports_and_processes_that_do_not_match(environment, own_recipe, start_command, tmp_path):
    """A coordinator's port that is in use; three processes with three configs: one line each, and nothing is begun."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"--coordinator_address=127.0.0.1:{taken.getsockname()[1]}"
        done = train(environment, own_recipe, tmp_path / "port", address, "--num_processes=2", "--process_id=0")
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: ") and not (tmp_path / "port").exists()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=3", f"--workdir={tmp_path / 'three'}"]
    commands = [
        start_command(
            "train", f"--config={own_recipe}", *shared, f"--process_id={i}", f"--config.optimizer.learning_rate={i + 1}"
        )
        for i in range(3)
    ]
    for command in commands:
        _, err = command.communicate(timeout=200)
        assert command.returncode == 2 and "Traceback" not in err, err
        assert "differs from that of process 0" in err
    assert not (tmp_path / "three").exists()


SLOW_SPLIT = """
class Slow:
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, number):
        import os, sys, time

        if os.environ.get("READ_SLOWLY"):
            print("an example is read", file=sys.stderr, flush=True)
            time.sleep(0.2)
        return self.images[number], int(self.labels[number])


"""


@pytest.mark.parametrize(
    ("count", "victim", "action"), [(2, 1, "kill"), (2, 0, "kill"), (3, 2, "kill"), (2, 1, "stop")]
)
def test_a_peer_that_is_lost_in_an_evaluation(count, victim, action, own_recipe, environment, start_command, tmp_path):
    """`evaluate` in several processes, of which one goes: 8 and one line, no result; repeated, that of one process."""
    recipe, run, json_file = tmp_path / "mine.py", tmp_path / "run", "evaluations/test_raw_12_single/result.json"
    text = own_recipe.read_text().replace("def shift(", f"{SLOW_SPLIT}def shift(", 1)
    recipe.write_text(text.replace('"test": stripes(20, seed=1)', '"test": Slow(*stripes(30, seed=1))'))
    assert train(environment, recipe, run).returncode == 0
    alone = start_command("evaluate", f"--workdir={shutil.copytree(run, tmp_path / 'alone')}", "--weights=raw")
    assert alone.wait(timeout=120) == 0, alone.written()[1]

    def start(**variables):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        shared = [f"--coordinator_address={address}", f"--num_processes={count}", "--heartbeat_timeout_seconds=10"]
        shared += [f"--workdir={run}", "--weights=raw", f"--batch_size={2 * count}"]
        return [
            start_command("evaluate", *shared, f"--process_id={index}", environment=variables) for index in range(count)
        ]

    commands = start(READ_SLOWLY="1")
    deadline = time.monotonic() + 200
    while not all("an example is read" in command.written()[1] for command in commands):
        assert all(command.poll() is None for command in commands) and time.monotonic() < deadline
        time.sleep(0.02)
    commands[victim].send_signal(signal.SIGKILL if action == "kill" else signal.SIGSTOP)
    for index, command in enumerate(commands):
        if index != victim:
            code, err = command.wait(timeout=120), command.written()[1]
            # Where process 0 has gone, JAX's client may end the others with a text of its own.
            assert code == 8 or (victim == 0 and code in (-signal.SIGABRT, 134)), err
            assert "Traceback" not in err
            assert code != 8 or err.rstrip().rsplit("\n", 1)[-1].startswith("error: "), err
    commands[victim].kill()
    assert not (run / json_file).exists()
    for command in (again := start()):
        assert command.wait(timeout=120) == 0, again[0].written()[1]
    results = [json.loads((workdir / json_file).read_text()) for workdir in (run, tmp_path / "alone")]
    for name in ("step", "count", "loss", "top1", "mean_confidence"):
        assert results[0][name] == pytest.approx(results[1][name], rel=1e-6), name


def test_a_closed_terminal(own_recipe, environment, whole, tmp_path):
    """The terminal of a run goes away: SIGHUP, and every write to it fails. The run is saved, 129."""
    workdir = tmp_path / "run"
    leader, follower = os.openpty()
    slow = tmp_path / "mine.py"
    slow.write_text(own_recipe.read_text().replace("def shift(", f"{SLOW.format(0.05)}def shifted(", 1))
    command = ["setsid", "--ctty", sys.executable, "-m", "inception_jax.train", f"--config={slow}"]
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}", "--config.num_steps=400", "--config.logging.every_steps=1"],
        cwd=ROOT, env=environment, stdin=follower, stdout=follower, stderr=follower,
    )  # fmt: skip
    os.close(follower)
    os.set_blocking(leader, False)
    deadline = time.monotonic() + 120
    while not ((log := workdir / "metrics.jsonl").exists() and log.stat().st_size):
        assert process.poll() is None and time.monotonic() < deadline
        with contextlib.suppress(BlockingIOError):
            os.read(leader, 65536)
        time.sleep(0.01)
    os.close(leader)
    assert process.wait(timeout=60) == 128 + signal.SIGHUP
    result = json.loads((workdir / "result.json").read_text())
    assert (result["status"], result["signal"]) == ("interrupted", "SIGHUP")
    assert (workdir / "checkpoints" / str(result["steps"])).is_dir()


def test_no_inodes(whole, environment, own_recipe, namespace, tmp_path):
    """A file system without free inodes: one line, 6; with more of them the same command goes on to the same bits."""
    mounted, kept = tmp_path / "mounted", tmp_path / "kept"
    mounted.mkdir()
    command = [sys.executable, "-m", "inception_jax.train", f"--config={own_recipe}", f"--workdir={mounted}/run"]
    command += ["--config.num_steps=12", "--config.logging.pictures=False"]
    for inodes in (12, 40, 60):
        script = f"""
            mount -t tmpfs -o size=50m,nr_inodes={inodes} none {mounted} || exit 77
            "$@"; echo "first: $?" >&2
            mount -o remount,nr_inodes=10000 {mounted}
            "$@"; echo "second: $?" >&2
            rm -rf {kept}; cp -r {mounted}/run {kept}
        """
        done = subprocess.run(
            [*NAMESPACE, "sh", "-c", script, "sh", *command],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert "first: 6" in done.stderr and "second: 0" in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and "Event loop is closed" not in done.stderr, done.stderr
        assert outcome(kept) == outcome(whole / "run")


def test_twenty_thousand_steps(own_recipe, start_command, tmp_path):
    """Memory, descriptors, threads and the time of a step do not grow with the number of steps."""
    arguments = ["--config.num_steps=20000", "--config.logging.every_steps=5", "--config.checkpoint.every_epochs=125.0"]
    arguments += ["--config.evaluation.every_epochs=125.0", "--config.logging.pictures=False"]
    process = start_command("train", f"--config={own_recipe}", *arguments, f"--workdir={tmp_path / 'run'}")
    log, samples = tmp_path / "run" / "timing.jsonl", {}
    for step in (1000, 2000, 4000, 6000, 8000, 10000, 12000, 14000, 16000, 18000, 19900):
        while last_step(log) < step:
            assert process.poll() is None, process.written()[1]
            time.sleep(0.02)
        status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        samples[step] = {
            "rss_mb": int(status["VmRSS"].split()[0]) / 1e3,
            "threads": int(status["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{process.pid}/fd")),
        }
    assert process.wait(timeout=60) == 0
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for step, sample in samples.items():
        sample["step_ms"] = 1e3 * statistics.median(
            row["step_seconds"] for row in rows if step - 1000 < row["step"] <= step
        )
        print(step, sample)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "run").iterdir() if path.is_file()}
    print(sizes, sum(path.stat().st_size for path in (tmp_path / "run" / "tensorboard").iterdir()))
    early, late = samples[2000], samples[19900]
    assert late["rss_mb"] < early["rss_mb"] + 60
    assert late["threads"] <= early["threads"] + 2 and late["descriptors"] <= early["descriptors"] + 3
    assert late["step_ms"] < 2 * early["step_ms"]


def last_step(log):
    """The step of the newest row of a metric file; 0: it has none."""
    if not log.exists():
        return 0
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def test_exit_codes(own_recipe, environment, start_command, run_command, tmp_path):
    """The codes of the table in inception_jax/training/README.md, but for those of several processes and of images."""
    text = own_recipe.read_text()
    slow, stalled = tmp_path / "slow.py", tmp_path / "stalled.py"
    slow.write_text(text.replace("def shift(", f"{SLOW.format(0.02)}def shifted(", 1))
    stalled.write_text(text.replace("def shift(", f"{SLOW.format(60.0)}def shifted(", 1))
    workdir = tmp_path / "run"

    def code(*flags, recipe=own_recipe, at=workdir):
        done, _, err = run_command(
            "train", f"--config={recipe}", f"--workdir={at}", "--config.logging.pictures=False", *flags
        )
        assert "Traceback" not in err, err
        assert (err.count("error: ") == 1) == (done != 0), err
        return done

    assert code() == 0 and code() == 0  # trained; and the result is shown again
    assert code("--config.num_steps=6") == 2 and code("--config.batch_size=4") == 2 and code("--config.typo=1") == 2
    assert code("--config.faults.loss_limit=1e-9", at=tmp_path / "diverged") == 3
    with lock.lock_workdir(workdir):
        assert code("--config.num_steps=24") == 4
    for path in (workdir / "checkpoints").rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    assert code("--config.num_steps=24") == 5
    full = train(environment, own_recipe, tmp_path / "full", prefix="exec >/dev/full")
    assert full.returncode == 6 and full.stderr.count("error: cannot write standard output") == 1, full.stderr
    assert json.loads((tmp_path / "full" / "result.json").read_text())["status"] == "finished"
    assert code("--config.faults.stall_limit_seconds=1.0", recipe=stalled, at=tmp_path / "stalled") == 7
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        arguments = [f"--config={slow}", f"--workdir={tmp_path / number.name}", "--config.num_steps=500"]
        process = start_command("train", *arguments, "--config.logging.every_steps=1")
        while last_step(tmp_path / number.name / "timing.jsonl") < 2:
            assert process.poll() is None, process.written()[1]
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(timeout=60) == 128 + number, process.written()[1]
        assert "Traceback" not in process.written()[1]

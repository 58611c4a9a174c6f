"""What every test stands on: the CPU, strict dtype promotion, no display; and small runs of the real commands."""

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from .xla_flags import QUICK_COMPILATION

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# NumPy's threads wait for each other in busy loops: with three processes of tests on two cores the tests of features
# took 132 processor seconds with two threads, 32 with one.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# No test finds in a compilation cache what another suite has compiled, or writes to the user's. A command that runs in
# this process would set one for all later tests, and what XLA loads from there it cannot write to another file.
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""
# Eight devices of one processor: what a test on several devices needs, and no cost to a test on one.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", QUICK_COMPILATION]
)

# A suite in the background ignores SIGINT, and under nohup SIGHUP, and so would the runs that it starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import jax
import pytest

from inception_jax.file_locks import open_lock_file, wait_for_lock
from inception_jax.models.platforms import TRACED_FOR

from .launcher import Launcher

jax.config.update("jax_numpy_dtype_promotion", "strict")

ROOT = Path(__file__).resolve().parent.parent

# Tests that show on another network, size or setting what the default suite shows; `.ci/run` runs them, too.
EXTENDED = frozenset(
    line for line in (ROOT / "tests" / "extended.txt").read_text().splitlines() if line.startswith("tests/")
)


# Tests that trace no more of the layers than their forms for CPUs, which are what they run; and of these the tests of
# programs for accelerators, and of all that a trace holds.
FOR_CPUS = tuple(
    f"tests/{folder}/"
    for folder in ("diagnostics", "evaluation", "features", "models", "parallel", "parity", "pretrained", "training")
)
FOR_ALL_PLATFORMS = (
    "tests/models/test_convolution.py",
    "tests/models/test_depthwise.py",
    "tests/models/test_inception_v1.py::test_float64_throughout",
    "tests/models/test_inception_v2.py::test_float64_throughout",
    "tests/models/test_lrn.py",
    "tests/models/test_platforms.py",
    "tests/models/test_pooling.py",
    "tests/models/test_siblings.py::test_a_network_runs_fewer_convolutions",
    "tests/models/test_space_to_depth.py",
    "tests/models/test_tracing.py",
    "tests/training/test_accumulators.py",
    "tests/training/test_executables.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Chooses for which platforms a test and its fixtures trace."""
    for_cpus = item.nodeid.startswith(FOR_CPUS) and not item.nodeid.startswith(FOR_ALL_PLATFORMS)
    TRACED_FOR.set_global("cpu" if for_cpus else None)
    return (yield)


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config, items):
    """Marks the tests of extended.txt; refuses names there that are no test, where all tests are collected."""
    for item in items:
        if item.nodeid in EXTENDED:
            item.add_marker("extended")
    if config.args == config.getini("testpaths") and (unknown := EXTENDED - {item.nodeid for item in items}):
        text = f"tests/extended.txt: there is no test {min(unknown)}"
        if hasattr(config, "workerinput"):  # xdist reports an error of its own in its place
            os.write(2, f"{text}\n".encode())
        raise pytest.UsageError(text)


def pytest_collection_finish(session):
    """Collects garbage rarely: tracing makes millions of objects that stay, and a collection looks at them all."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


# GoogLeNet with both heads, LRN, dropout, random crops and EMA, small enough to be run many times. Not a whole number
# of steps per epoch, so that epochs end inside batches and inside rows of the log.
SMALL_RUN = {
    "batch_size": 16, "num_steps": 14, "data.image_size": 32, "model.width_multiplier": 0.25,
    "data.train_split": "train[:100]", "data.eval_split": "test[:40]", "logging.every_steps": 3,
    "evaluation.every_epochs": 0.8, "checkpoint.every_epochs": 0.7, "logging.pictures": False, "data.threads": 2,
}  # fmt: skip


@pytest.fixture
def x64():
    """float64 for one test: the precision in which exactness is proven."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def registrations():
    """Forgets after the test what it has registered."""
    from inception_jax import extension_files, extensions, metric_definitions
    from inception_jax.data import datasets, images
    from inception_jax.models import registry

    tables = (
        extensions.OPTIMIZERS, extensions.SINKS, extension_files.ORIGINS, extension_files.FILES,
        metric_definitions.METRICS, datasets._ADDED, images.CUSTOM, registry._SPECS,
    )  # fmt: skip
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)


@pytest.fixture(scope="session")
def command_environment(tmp_path_factory):
    """The environment of a command: one device, strict promotion, quick compilation, kept for the next command."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("INCEPTION_JAX")}
    return environment | {
        "XLA_FLAGS": QUICK_COMPILATION,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("xla")),
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "error,ignore:the load_module:DeprecationWarning",
        "TFDS_DATA_DIR": str(tmp_path_factory.mktemp("tfds")),
    }


@pytest.fixture(scope="session")
def start_command(command_environment):
    """Starts `python -m inception_jax.<name> arguments…` in the repository's root, by way of the fork server.

    `optimize` is for long runs; `environment` holds variables that differ from `command_environment`'s.
    """
    with Launcher(command_environment, ROOT) as launcher:

        def start(name, *arguments, optimize=False, environment=None, new_session=False):
            flags = {"XLA_FLAGS": ""} if optimize else {}
            return launcher.start(name, *arguments, environment=flags | (environment or {}), new_session=new_session)

        yield start


@pytest.fixture(scope="session")
def run_command(start_command):
    """Runs a command to its end; returns (exit code, stdout, stderr)."""

    def run(name, *arguments, timeout=400, optimize=False):
        process = start_command(name, *arguments, optimize=optimize)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        return process.returncode, out, err

    return run


@pytest.fixture(scope="session")
def small_arguments():
    """The arguments of a small training run, without its workdir."""
    return [
        "--config=configs/digits.py",
        *(f"--config.{path}={value}" for path, value in SMALL_RUN.items()),
    ]


@pytest.fixture(scope="session")
def own_recipe(tmp_path_factory):
    """The recipe of configs/README.md with a network and data of its own, in a file outside the package.

    Its network compiles in a fraction of a second: for what depends on no network of the package.
    """
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "configs" / "README.md").read_text(), re.DOTALL)
    file = tmp_path_factory.mktemp("elsewhere") / "mine.py"
    file.write_text(next(block for block in blocks if "register_model" in block))
    return file


@pytest.fixture(scope="session")
def small_run(tmp_path_factory, command_environment, small_arguments):
    """The workdir of a small run that nobody interrupted; read it, do not write to it.

    By the true `python -m`: what the other commands are compared with does not come from the fork server.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # of all workers of this session: the first makes the run, with what was compiled for it
    workdir, compiled = shared / "small_run", shared / "small_run_xla"
    cache = command_environment["JAX_COMPILATION_CACHE_DIR"]
    with os.fdopen(open_lock_file(shared / "small_run.lock")) as lock:
        wait_for_lock(lock)
        if compiled.exists():
            shutil.copytree(compiled, cache, dirs_exist_ok=True)
            return workdir
        done = subprocess.run(
            [
                *(sys.executable, "-m", "inception_jax.train"),
                *(*small_arguments, "--config.logging.pictures=True", f"--workdir={workdir}"),
            ],
            cwd=ROOT,
            env=command_environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"next: python -m inception_jax.predict --workdir={workdir} IMAGE …"
        shutil.copytree(cache, compiled)  # last: it says that the run is there
    return workdir

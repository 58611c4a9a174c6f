"""A run that was stopped, in whatever way, ends with the bits of one that was not."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from inception_jax.fault_injection import SHORT_DIGITS_RUN, InterruptedRun, ReferenceRun

STEPS = 24


# An augmentation that takes its time, in front of the recipe's own: 2 s for all steps.
SLOW = """def shift(*arguments):
    import time

    time.sleep(0.02)
    return shifted(*arguments)


def shifted("""


@pytest.fixture(scope="module", params=["own recipe", "two modules"])
def quick_arguments(request, own_recipe, small_arguments, tmp_path_factory):
    """The arguments of a run with a small network, which every start traces again.

    The recipe of configs/README.md, with EMA and several steps per execution; or the small run with two modules of
    GoogLeNet, and more of its steps.
    """
    if request.param == "two modules":
        recipe = Path(__file__).with_name("two_modules.py")
        return [f"--config={recipe}", *small_arguments[1:], f"--config.num_steps={STEPS}"]
    recipe = tmp_path_factory.mktemp("slow") / "mine.py"
    recipe.write_text(own_recipe.read_text().replace("def shift(", SLOW, 1))
    fields = [f"num_steps={STEPS}", "ema.decay=0.9", "logging.every_steps=7", "evaluation.every_epochs=0.4"]
    fields += ["checkpoint.every_epochs=0.7", "logging.pictures=False", "data.threads=2"]
    fields += ["parallel.steps_per_execution=4"]
    return [f"--config={recipe}", *(f"--config.{field}" for field in fields)]


@pytest.fixture(scope="module")
def quick_run(run_command, quick_arguments, tmp_path_factory):
    """The workdir of a run that nobody interrupted."""
    workdir = tmp_path_factory.mktemp("quick") / "run"
    code, _, err = run_command("train", *quick_arguments, f"--workdir={workdir}")
    assert code == 0, err
    return workdir


def outcome(workdir):
    result = json.loads((workdir / "result.json").read_text())
    assert result["status"] == "finished"
    return result["fingerprint"], (workdir / "metrics.jsonl").read_bytes(), result["metrics"]


def wait_for(condition, process, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def interrupted(start_command, arguments, workdir, reference):
    """The run to be interrupted; a failing test shows the seed of its random choices."""
    seed = random.randrange(10**6)
    print(f"seed of the interruptions: {seed}")
    return InterruptedRun(
        lambda: start_command("train", *arguments, f"--workdir={workdir}"),
        lambda process: process.written()[1],
        workdir,
        ReferenceRun(reference),
        random.Random(seed),
    )


def test_killed_at_random_moments(quick_run, start_command, quick_arguments, tmp_path):
    """SIGKILL while it steps, saves and ends; the bits and the log are those of the other run."""
    run = interrupted(start_command, quick_arguments, tmp_path / "run", quick_run)
    run.kill(2, aims={"save": 1})  # the first is at its steps, and one more comes after the last step
    run.finish()
    print(run.starts)
    assert run.hits() >= 2
    assert outcome(tmp_path / "run") == outcome(quick_run)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("number", "count"), [(signal.SIGKILL, 50), (signal.SIGTERM, 10)])
def test_interrupted_often(run_command, start_command, tmp_path_factory, tmp_path, number, count):
    """Fifty SIGKILLs over one run, most of them aimed into saves, deletions and evaluations; ten SIGTERMs."""
    arguments = [
        "--config=configs/digits.py",
        *(f"--config.{name}={value}" for name, value in SHORT_DIGITS_RUN.items()),
    ]
    reference = tmp_path_factory.getbasetemp() / "often"
    code, _, err = run_command("train", *arguments, f"--workdir={reference}")  # the second time, it is there
    assert code == 0, err
    run = interrupted(start_command, arguments, tmp_path / "run", reference)
    if number == signal.SIGKILL:
        run.kill(count)
    else:
        run.terminate(count)
    run.finish()
    print(run.starts)
    assert run.hits() >= count
    assert outcome(tmp_path / "run") == outcome(reference)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_says_so(quick_run, start_command, run_command, quick_arguments, tmp_path, number):
    workdir = tmp_path / "run"
    arguments = [*quick_arguments, f"--workdir={workdir}"]
    process = start_command("train", *arguments, "--json")
    log = workdir / "metrics.jsonl"
    assert wait_for(lambda: log.exists() and log.stat().st_size, process)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    stopped = json.loads(out)
    assert stopped["status"] == "interrupted" and stopped["signal"] == number.name
    assert 3 <= stopped["steps"] < STEPS
    code, _, err = run_command("train", *arguments)
    assert code == 0, err
    assert f"continued from step {stopped['steps']}" in err
    assert outcome(workdir) == outcome(quick_run)


def kept_steps(environment):
    """{file: (its inode, the time of its last use)} of the compiled steps that were kept."""
    folder = Path(environment["JAX_COMPILATION_CACHE_DIR"]) / "executables"
    return {path.name: (status.st_ino, status.st_mtime_ns) for path in folder.iterdir() for status in [path.stat()]}


def test_googlenet_continues_on_the_steps_that_its_first_start_compiled(
    small_run, run_command, small_arguments, command_environment, tmp_path
):
    """With EMA, as killed between its last two checkpoints; no step of a recipe's own network is kept."""
    workdir = shutil.copytree(small_run, tmp_path / "killed")
    *_, before, last = sorted((workdir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    shutil.rmtree(last)
    (workdir / "result.json").unlink()
    steps = kept_steps(command_environment)
    code, _, err = run_command("train", *small_arguments, f"--workdir={workdir}")
    assert code == 0 and f"continued from step {before.name}" in err, err
    used = kept_steps(command_environment)
    assert {name: inode for name, (inode, _) in used.items()} == {name: inode for name, (inode, _) in steps.items()}
    assert (
        sum(used[name] != steps[name] for name in used) == 4
    )  # training and evaluation: digest and executable of each
    assert outcome(workdir) == outcome(small_run)


def test_another_config_does_not_continue_a_run(small_run, run_command, small_arguments, tmp_path):
    workdir = shutil.copytree(small_run, tmp_path / "copy")
    code, _, err = run_command("train", *small_arguments, "--config.seed=1", f"--workdir={workdir}")
    assert code == 2
    assert "config.seed = 1: the run in" in err and "began with 0" in err
    assert outcome(workdir) == outcome(small_run)

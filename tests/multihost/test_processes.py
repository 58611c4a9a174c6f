"""Real processes over jax.distributed: one run, whoever is stopped or killed, and however many there are."""

import argparse
import contextlib
import csv
import json
import shutil
import signal
import socket
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from inception_jax import command_line, evaluate
from inception_jax import config as configs
from inception_jax.checkpoints import orbax_manager
from inception_jax.checkpoints.reading import load_variables
from inception_jax.errors import UserError
from inception_jax.evaluation import split_evaluation, split_predictions
from inception_jax.multihost import heartbeat, processes
from inception_jax.runs import environment as environment_of_runs
from inception_jax.runs.metric_files import read_rows
from inception_jax.training import restore

from ..xla_flags import QUICK_COMPILATION
from . import moments_scenario

SCENARIO = Path(__file__).with_name("step_scenario.py")
MOMENTS = Path(__file__).with_name("moments_scenario.py")

# In float64, where a wrong number cannot pass for a rounding.
DOUBLE = ["--config.model.dtype=float64", "--config.model.param_dtype=float64"]
STEPS = 24


def environment(devices, **variables):
    flags = f"{QUICK_COMPILATION} --xla_force_host_platform_device_count={devices}"
    return {"XLA_FLAGS": flags, "JAX_ENABLE_X64": "1"} | variables


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, *commands, seconds=300, pause=0.05):
    deadline = time.monotonic() + seconds
    while not condition():
        assert all(command.poll() is None for command in commands), [command.communicate()[1] for command in commands]
        assert time.monotonic() < deadline
        time.sleep(pause)


@pytest.fixture(scope="module")
def arguments(small_arguments):
    """Of the small run with a smaller network, which every start traces and compiles again, and more of its steps."""
    recipe = Path(__file__).parents[1] / "resume" / "two_modules.py"
    return [f"--config={recipe}", *small_arguments[1:], f"--config.num_steps={STEPS}"]


@pytest.fixture
def start_pair(start_command, arguments):
    """Starts two processes with two devices each."""

    def start(workdir, *more):
        shared = [
            f"--coordinator_address=127.0.0.1:{free_port()}",
            "--num_processes=2",
            "--heartbeat_timeout_seconds=30",
        ]
        return [
            start_command(
                "train",
                *arguments,
                *DOUBLE,
                f"--workdir={workdir}",
                *shared,
                f"--process_id={index}",
                *more,
                environment=environment(2),
            )
            for index in range(2)
        ]

    return start


@pytest.fixture(scope="module")
def train_alone(start_command, tmp_path_factory):
    """`train_alone(name, *arguments)`: the workdir of a run in float64 of one process with one device."""

    def train(name, *arguments):
        workdir = tmp_path_factory.mktemp(name) / "run"
        command = start_command("train", *arguments, *DOUBLE, f"--workdir={workdir}", environment=environment(1))
        _, err = command.communicate(timeout=400)
        assert command.returncode == 0, err
        return workdir

    return train


@pytest.fixture(scope="module")
def alone(train_alone, arguments):
    """The workdir of the run of `arguments`."""
    return train_alone("alone", *arguments)


def assert_equal_runs(one, other, tolerance=1e-10):
    """Metrics and final weights; the steps let the last bit of float64 grow a little."""
    rows = [read_rows(workdir / "metrics.jsonl") for workdir in (one, other)]
    for mine, theirs in zip(*rows, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert theirs[name] == (value if isinstance(value, str) else pytest.approx(value, rel=tolerance)), name
    for weights in ("raw", "ema"):
        trees = [load_variables(workdir, weights) for workdir in (one, other)]
        for mine, theirs in zip(*map(jax.tree.leaves, trees), strict=True):
            np.testing.assert_allclose(theirs, mine, rtol=0, atol=tolerance * max(1.0, np.abs(mine).max()))


def test_killed_stopped_and_continued_alone(alone, start_pair, start_command, arguments, tmp_path):
    """One run: of two processes one is killed in a save; of two more one gets SIGTERM; then one, under pmap.

    Several steps per execution: three with two processes, two with one; the other run takes single ones.
    """
    workdir = tmp_path / "run"
    first, second = start_pair(workdir, "--config.parallel.steps_per_execution=3")
    log, checkpoints = workdir / "metrics.jsonl", workdir / "checkpoints"
    wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") >= 4, first, second)
    wait_for(lambda: [*checkpoints.glob("*.orbax-checkpoint-tmp*")], first, second, pause=0.003)
    second.kill()
    out, err = first.communicate(timeout=240)
    assert first.returncode == 8 and out == "", err
    result = json.loads((workdir / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 8)
    # Gloo notices at once where it reads from the other at that moment, and sometimes not at all.
    lost = ("a collective failed: another process of this run has ended", "process 1 of this run has sent no heartbeat")
    assert any(f"error: {message}" in err for message in lost) and "Traceback" not in err

    first, second = start_pair(workdir, "--json", "--config.parallel.steps_per_execution=3")
    wait_for(lambda: "compiling" in first.written()[1], first, second)
    second.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=120)
    theirs, _ = second.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (143, 143), err
    assert "4 cpu devices of 2 processes" in err and "continued from step" in err
    stopped = json.loads(out)
    assert stopped["status"] == "interrupted" and stopped["steps"] < STEPS and theirs == ""

    last = start_command(
        "train",
        *arguments,
        *DOUBLE,
        "--config.parallel.mode=pmap",
        "--config.parallel.steps_per_execution=2",
        f"--workdir={workdir}",
        environment=environment(2),
    )
    _, err = last.communicate(timeout=400)
    assert last.returncode == 0, err
    assert f"continued from step {stopped['steps']}" in err
    assert_equal_runs(alone, workdir)


def test_numbers_as_arguments_and_kept_steps_give_the_bits_of_constants(start_command, tmp_path):
    port = free_port()
    pair = [start_command(SCENARIO, port, index, tmp_path, environment=environment(2)) for index in range(2)]
    wait_for(lambda: any(command.poll() is not None for command in pair))
    for command in sorted(pair, key=lambda command: command.poll() != 1):  # one that failed first
        out, err = command.communicate(timeout=60)
        # Lines of Gloo come before.
        assert command.returncode == 0 and out.splitlines()[-1] == "jit pmap jit pmap jit pmap", err
    assert len([*tmp_path.iterdir()]) == 4  # each process has its own


def test_features_on_devices_are_those_of_one_process(start_command, tmp_path):
    """Moments of two processes with two devices each: the bits of one process with four; copies count once."""
    port = free_port()
    pair = [
        start_command(MOMENTS, port, index, tmp_path, environment=environment(2) | {"JAX_ENABLE_X64": "0"})
        for index in range(2)
    ]
    wait_for(lambda: any(command.poll() is not None for command in pair))
    for command in sorted(pair, key=lambda command: command.poll() != 1):  # one that failed first
        _, err = command.communicate(timeout=60)
        assert command.returncode == 0, err
    found = [dict(np.load(tmp_path / f"{index}.npz")) for index in range(2)]
    rows, mask = moments_scenario.batches()
    rows = rows[mask].astype(np.float64)
    for mode in ("shard_map", "jit_of_all", "pmap", "jit"):
        for name, value in found[0].items():
            np.testing.assert_array_equal(value, found[1][name])
        assert found[0][f"{mode} count"] == len(rows)
        np.testing.assert_allclose(found[0][f"{mode} mean"], rows.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found[0][f"{mode} covariance"], np.cov(rows.T), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(*(np.sort(kept, axis=0) for kept in (found[0][f"{mode} rows"], rows)))
    for mode, state in (
        ("shard_map", moments_scenario.by_shard_map(moments_scenario.MOMENTS)),
        ("pmap", moments_scenario.by_pmap(moments_scenario.MOMENTS, list(range(moments_scenario.DEVICES)))),
    ):
        np.testing.assert_array_equal(found[0][f"{mode} covariance"], state.finish().covariance())
        np.testing.assert_array_equal(found[0][f"{mode} mean"], state.finish().mean)


def test_started_differently_they_do_not_begin(start_pair, start_command, arguments, tmp_path):
    address = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    pair = [
        start_command(
            "train",
            *arguments,
            f"--config.seed={index}",
            f"--workdir={tmp_path / 'run'}",
            *address,
            f"--process_id={index}",
            environment=environment(1),
        )
        for index in range(2)
    ]
    for command in pair:
        _, err = command.communicate(timeout=120)
        assert command.returncode == 2 and "the config of process 1 differs from that of process 0" in err, err
    assert not (tmp_path / "run").exists()


def test_processes_that_see_other_data_do_not_begin(start_command, arguments, tmp_path):
    """The same command, but one of them has an image more in its folder."""
    address = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    pair = []
    for index in range(2):
        for name in ("cat", "dog"):
            folder = tmp_path / str(index) / "pets" / name
            folder.mkdir(parents=True)
            for image in range(8 + index):
                (folder / f"{image}.png").write_bytes(b"1234")
        data = ["--config.data.name=folder:~/pets", "--config.data.train_split=train", "--config.data.eval_split=train"]
        pair.append(
            start_command(
                "train",
                *arguments,
                *data,
                f"--workdir={tmp_path / 'run'}",
                *address,
                f"--process_id={index}",
                environment=environment(1, HOME=str(tmp_path / str(index))),
            )
        )
    for command, seconds in ((pair[1], 120), (pair[0], 20)):  # process 0 ends last, but waits no 40 s for who has gone
        _, err = command.communicate(timeout=seconds)
        message = "the data of process 1 differs from that of process 0: all processes need the same files"
        assert command.returncode == 2 and message in err, err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def start_own(start_command, own_recipe):
    """Starts two processes with a recipe of its own: that of `own_recipe`, some of whose lines are others."""

    def start(folder, replaced, *more, devices=(1, 1)):
        text = own_recipe.read_text()
        for line, other in replaced.items():
            assert line in text
            text = text.replace(line, other)
        recipe = folder / "mine.py"
        recipe.write_text(f"import jax\n{text}")
        shared = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2", f"--workdir={folder / 'run'}"]
        shared += [f"--config={recipe}", "--heartbeat_timeout_seconds=10", "--config.logging.pictures=False", *more]
        return [
            start_command("train", *shared, f"--process_id={index}", environment=environment(count, JAX_ENABLE_X64="0"))
            for index, count in enumerate(devices)
        ]

    return start


def test_they_stop_early_together_where_a_metric_differs_between_them(start_own, tmp_path):
    """On process 0 it becomes better and better, on the other one never. That one would leave, and 0 wait forever."""
    metric = "return predictions.probabilities[:, 0].mean()"
    better = "CALLS.append(1) or (0.1 + 0.01 * len(CALLS) if jax.process_index() == 0 else 0.5)"
    fields = {"stop.patience": 2, "num_steps": 40, "evaluation.every_epochs": 1.0}
    pair = start_own(
        tmp_path,
        {metric: f"return {better}", "def mean_confidence": "CALLS = []\n\n\ndef mean_confidence"},
        *(f"--config.{name}={value}" for name, value in fields.items()),
    )
    ends = [command.communicate(timeout=60) for command in pair]
    assert [command.returncode for command in pair] == [0, 0], ends
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best"]["evaluations"] == 5 and result["ended"] == "all steps are done"


def test_weights_that_differ_between_them_do_not_begin(start_own, tmp_path):
    """The weights of `config.initialize` pass the same check: each process reads its own file of that path."""
    layer = "x = nn.Conv(self.features"
    drawn = f'images = images + self.param("own", lambda key: jnp.float32(jax.process_index()))\n        {layer}'
    pair = start_own(tmp_path, {layer: drawn})
    for command in pair:
        _, err = command.communicate(timeout=60)
        assert command.returncode == 2, err
        assert "the initial state of process 1 differs from that of process 0" in err and "(values: " in err
    assert not (tmp_path / "run" / "checkpoints" / "12").exists()


def test_unequal_numbers_of_devices_do_not_begin(start_own, tmp_path):
    pair = start_own(tmp_path, {}, devices=(1, 2))
    for command in pair:
        _, err = command.communicate(timeout=60)
        assert command.returncode == 2 and "the processes 0 to 1 have 1, 2 devices (cpu)" in err, err


def test_a_save_that_fails_on_one_ends_both(start_own, tmp_path):
    """In Orbax's thread, after the disk was looked at. Both would wait for 20 minutes."""
    full = """
from inception_jax.checkpoints import orbax_manager


async def fail(path, text):
    if jax.process_index() == 0:
        raise OSError(28, "No space left on device")


orbax_manager._write = fail
"""
    pair = start_own(tmp_path, {"import inception_jax\n": f"import inception_jax\n{full}"})
    (_, err), (_, other) = (command.communicate(timeout=60) for command in pair)
    assert [command.returncode for command in pair] == [6, 8], (err, other)
    assert err.splitlines()[-1].startswith("error: the disk is full: no checkpoint of step ") and "Traceback" not in err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("failed", 6)


def test_slurm_starts_an_evaluation(alone, start_command, tmp_path):
    """No flags: two tasks of `srun` find each other, and give and save what one process gives."""
    job = free_port() % 4096  # JAX takes the port from the job's number
    variables = {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
    }
    pair = [
        start_command(
            "evaluate",
            f"--workdir={alone}",
            "--weights=raw",
            "--json",
            f"--save_predictions={tmp_path / 'saved.npz'}",
            environment=environment(1, **variables, SLURM_PROCID=str(index), SLURM_LOCALID=str(index)),
        )
        for index in range(2)
    ]
    (out, err), (silent, other) = (command.communicate(timeout=200) for command in pair)
    assert [command.returncode for command in pair] == [0, 0], err + other
    assert silent == ""
    result, trained = json.loads(out), json.loads((alone / "result.json").read_text())["metrics"]["test[:40]"]["raw"]
    for name, value in trained.items():
        assert result[name] == pytest.approx(value, rel=1e-12), name
    folder = alone / "evaluations" / f"test[:40]_raw_{result['step']}_single"
    assert (folder / "result.json").exists() and list(folder.glob("*.png"))
    saved = split_predictions.load(tmp_path / "saved.npz")
    assert saved.index.tolist() == [*range(40)] and saved.about["members"][0]["step"] == result["step"]
    for name, value in saved.accumulate().result().items():
        assert value == pytest.approx(result[name], rel=1e-12), name


def test_an_ensemble_on_several_devices_and_processes_is_that_of_one(train_alone, start_command, own_recipe, tmp_path):
    """Four devices of two processes; of the last batch, the second process has no example."""
    recipe = tmp_path / "mine.py"
    recipe.write_text(own_recipe.read_text().replace("dtype=jnp.float32", "dtype=self.dtype"))
    run = train_alone(
        "own", f"--config={recipe}", "--config.checkpoint.every_epochs=1.0", "--config.logging.pictures=False"
    )
    earlier = shutil.copytree(run, tmp_path / "earlier")
    steps = sorted(int(path.name) for path in (earlier / "checkpoints").glob("[0-9]*"))
    shutil.rmtree(earlier / "checkpoints" / str(steps[-1]))
    flags = [f"--ensemble={run},{earlier}", "--weights=raw", "--batch_size=16", "--json"]
    shared = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    commands = [
        start_command("evaluate", *flags, f"--save_predictions={tmp_path / 'one.npz'}", environment=environment(1)),
        *(
            start_command(
                *("evaluate", *flags, f"--save_predictions={tmp_path / 'two.npz'}"),
                *(*shared, f"--process_id={index}"),
                environment=environment(2),
            )
            for index in range(2)
        ),
    ]
    (expected, _), (found, err), (silent, other) = (command.communicate(timeout=200) for command in commands)
    assert [command.returncode for command in commands] == [0, 0, 0] and silent == "", err + other
    one, two = (json.loads(out) for out in (expected, found))
    assert [member["step"] for member in two["members"]] == [steps[-1], steps[-2]] and two["count"] == 20
    for key in one.keys() - {"environment", "members"}:
        assert two[key] == (pytest.approx(one[key], rel=1e-10) if isinstance(one[key], float) else one[key]), key
    for mine, theirs in zip(one["members"], two["members"], strict=True):
        assert theirs == {
            name: pytest.approx(value, rel=1e-10) if isinstance(value, float) else value for name, value in mine.items()
        }
    one, two = (split_predictions.load(tmp_path / f"{name}.npz") for name in ("one", "two"))
    assert (one.about, one.class_names) == (two.about, two.class_names)
    for name in ("names", "index", "labels"):
        np.testing.assert_array_equal(getattr(two, name), getattr(one, name))
    np.testing.assert_allclose(two.log_probabilities, one.log_probabilities, rtol=1e-10)


def test_a_table_of_two_processes(start_command, small_run, tmp_path):
    """An entry that no process can open is a line with an error, and all go on to the next."""
    shared = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2", f"--output={tmp_path / 't.csv'}"]
    other = shutil.copytree(small_run, tmp_path / "other")
    pair = [
        start_command(
            *("evaluate", "--all", str(small_run), "nowhere", str(other), "--split=test[:40]", "--batch_size=16"),
            *(*shared, f"--process_id={index}"),
            environment=environment(2, JAX_ENABLE_X64="0"),
        )
        for index in range(2)
    ]
    ends = [command.communicate(timeout=240) for command in pair]
    assert [command.returncode for command in pair] == [2, 2], ends
    rows = {row.pop("workdir"): row for row in csv.DictReader((tmp_path / "t.csv").read_text().splitlines())}
    assert "nowhere: neither a run" in rows.pop("nowhere")["error"]
    assert rows[str(small_run)] == rows[str(other)] and rows[str(other)]["count"] == "40"


@pytest.mark.slow
def test_a_table_where_one_host_alone_cannot_read(start_command, small_run, tmp_path):
    """A folder that one host does not have is a line, and all go on; an image that it alone cannot decode ends all."""
    images = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    for host in range(2):
        for name in ("lonely", "fine", "damaged")[host:]:  # the second host has no "lonely"
            for label, image in enumerate(images):
                file = tmp_path / f"home{host}" / name / "test" / str(label) / "a.png"
                file.parent.mkdir(parents=True)
                cv2.imwrite(str(file), image)
                shutil.copytree(file.parent, file.parents[2] / "train" / str(label))
    for file in (tmp_path / "home1" / "damaged" / "test").glob("*/a.png"):
        file.write_bytes(bytes(file.stat().st_size))  # no image; name and size are those of the other host
    runs = {}
    for name in ("lonely", "fine", "damaged", "never"):
        run = shutil.copytree(small_run, tmp_path / name)
        config = json.loads((run / "config.json").read_text())
        config["data"] |= {"name": f"folder:~/{'fine' if name == 'never' else name}", "eval_split": "test"}
        (run / "config.json").write_text(json.dumps(config))
        runs[str(run)] = name
    shared = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2", f"--output={tmp_path / 't.csv'}"]
    shared += ["--batch_size=16", "--heartbeat_timeout_seconds=20"]
    pair = [
        start_command(
            *("evaluate", "--all", *runs, *shared, f"--process_id={index}"),
            environment=environment(1, JAX_ENABLE_X64="0", HOME=str(tmp_path / f"home{index}")),
        )
        for index in range(2)
    ]
    (code, first), (other_code, second) = (
        (command.returncode, err)
        for command, (_, err) in [(command, command.communicate(timeout=240)) for command in pair]
    )
    # The other one waits in a collective; its exit code is that of a lost process.
    assert (code, other_code) == (8, 2), (first, second)
    assert f"{tmp_path / 'home1' / 'lonely'}" in second and f"{tmp_path / 'home1' / 'damaged'}/" in second, second
    rows = {runs[row["workdir"]]: row for row in csv.DictReader((tmp_path / "t.csv").read_text().splitlines())}
    assert {*rows} == {"lonely", "fine"} and rows["fine"]["count"] == "10" and not rows["fine"]["error"]
    assert rows["lonely"]["error"] == "process 1 failed; its own message says why"


def flags(**given):
    defaults = {
        "coordinator_address": None,
        "num_processes": None,
        "process_id": None,
        "distributed": "auto",
        "heartbeat_timeout_seconds": 100,
    }
    return argparse.Namespace(**defaults | given)


@pytest.fixture
def second_process(monkeypatch):
    """`second_process(answers)`: this process is the second of two; the first one sends `answers`, None: the same."""

    def set_answers(*answers):
        sent = iter(answers)

        def gather_bytes(content):
            answer = next(sent, None)
            return [content if answer is None else json.dumps(answer).encode(), content]

        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(processes, "gather_bytes", gather_bytes)

    return set_answers


def test_the_entry_that_differs_is_named(second_process):
    second_process({"a": {"b": 1, "c": [2]}}, {"a": 1, "b": 2}, [1])
    for mine, named in [
        ({"a": {"b": 1, "c": [3]}}, r" \(a.c: \[3\], not \[2\]\)"),
        ({"a": 1}, r" \(b: None, not 2\)"),
        ([2], ""),
    ]:
        with pytest.raises(UserError, match=f"^it of process 1 differs from that of process 0: do this{named}$"):
            processes.check_equal("it", mine, "do this")
    second_process(["a.png"])
    assert processes.gather_names({"b.png"}) == {"a.png", "b.png"}


def test_processes_of_other_versions_flags_or_code_do_not_begin(second_process, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1 --xla_force_host_platform_device_count=3 --xla_dump_to=/a")
    mine = environment_of_runs.decides_programs()
    assert mine["XLA_FLAGS"] == "--xla_one=1" and mine["jax_enable_x64"] is False and mine["flax"]
    for name, value in [("XLA_FLAGS", ""), ("optax", "0.0.1"), ("jax_enable_x64", True)]:
        second_process(mine | {name: value})
        with pytest.raises(UserError, match=f"the environment of process 1 differs .*\\({name}: "):
            restore.refuse_unequal_settings()
    second_process(None, "another digest")
    with pytest.raises(UserError, match="the code of inception_jax of process 1 differs"):
        restore.refuse_unequal_settings()
    second_process()
    restore.refuse_unequal_settings()


def test_evaluations_by_other_commands_or_configs_do_not_begin(second_process, tmp_path):
    """They would compute other numbers, or one would come to an exchange that the other does not have."""
    flags = [f"--workdir={tmp_path}", "--devices=1"]
    other = evaluate._arguments().parse_args([*flags, "--batch_size=8", "--json", "--process_id=1"])
    second_process(None, None, command_line.shared_flags(other))
    with pytest.raises(UserError, match=r"the command of process 1 differs .* \(batch_size: None, not 8\)"):
        evaluate.main(flags)
    recipe = configs.default()
    second_process(json.loads(recipe.to_json_best_effort()) | {"seed": 3, "extensions": ["elsewhere.py"]})
    with pytest.raises(UserError, match="the config of process 1 differs"):
        split_evaluation.load_network(recipe, str(tmp_path), None, split_evaluation.Request())


def test_a_full_disk_of_process_0_has_its_exit_code_on_all(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "_gather_ints", lambda number: [6, number])
    with pytest.raises(UserError, match="process 0 failed") as caught:
        orbax_manager.check_disk_space(tmp_path, {}, 1, [], lambda: None)
    assert caught.value.exit_code == 6


def test_launchers():
    slurm = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_NODELIST": "n[1-4]"}
    assert processes.find_launch(flags(), {}) is None
    assert processes.find_launch(flags(), slurm).found_by == "SLURM"
    assert processes.find_launch(flags(distributed="off"), slurm) is None
    assert processes.find_launch(flags(), slurm | {"SLURM_NTASKS": "1"}) is None
    del slurm["SLURM_STEP_NODELIST"]  # the batch script itself, outside srun
    assert processes.find_launch(flags(), slurm) is None
    assert processes.find_launch(flags(distributed="on"), {}).found_by == "jax.distributed"
    mpi = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}
    assert processes.find_launch(flags(), mpi | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}).process_id == 1
    for address in ("host", "host:abc", "host:99999"):
        with pytest.raises(UserError, match=f"JAX_COORDINATOR_ADDRESS={address}: not HOST:PORT"):
            processes.find_launch(flags(), mpi | {"JAX_COORDINATOR_ADDRESS": address})
    assert processes.find_launch(flags(), mpi | {"JAX_COORDINATOR_ADDRESS": "n1:1"}).coordinator_address == "n1:1"
    with pytest.raises(UserError, match="set JAX_COORDINATOR_ADDRESS"):
        processes.find_launch(flags(), mpi)
    given = {"coordinator_address": "n1:1234", "num_processes": 2, "process_id": 1}
    assert processes.find_launch(flags(**given), slurm) == processes.Launch("n1:1234", 2, 1, "flags")
    assert processes.find_launch(flags(heartbeat_timeout_seconds=30), mpi | {"JAX_COORDINATOR_ADDRESS": "n1:1"}) == (
        processes.Launch("n1:1", 2, 1, "Open MPI", heartbeat_timeout_seconds=30)
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "--coordinator_address and --process_id missing"),
        ({"coordinator_address": "n1:1", "num_processes": 2, "process_id": 2}, "--process_id=2: .* 0 to 1"),
        ({"coordinator_address": "n1", "num_processes": 2, "process_id": 0}, "HOST:PORT"),
        ({"coordinator_address": "n1:99999", "num_processes": 2, "process_id": 0}, "n1:99999: .* a port of 1 to 65535"),
        ({"coordinator_address": "n1:1", "num_processes": 2, "process_id": 0, "distributed": "off"}, "distributed=off"),
        ({"heartbeat_timeout_seconds": 5}, "--heartbeat_timeout_seconds=5: at least 10"),
    ],
)
def test_invalid_flags(given, message):
    with pytest.raises(UserError, match=message):
        processes.find_launch(flags(**given), {})


@pytest.mark.parametrize("timeout", [10, 30, 100, 1000])
def test_our_heartbeat_acts_before_that_of_jax(monkeypatch, timeout):
    """JAX's heartbeats are half its timeout apart, so it may end a process after half of it."""
    asked = {}

    def initialize(*_, heartbeat_timeout_seconds):
        asked["heartbeat_timeout"] = heartbeat_timeout_seconds
        raise RuntimeError("nobody there")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(processes, "_redirect_stdout_of_libraries", lambda: None)
    with pytest.raises(UserError, match="did not connect: nobody there"):
        with processes.initialize(processes.Launch("n1:1", 2, 1, "flags", timeout)):
            pass
    assert asked["heartbeat_timeout"] / 2 >= heartbeat.longest_detection_seconds(timeout) + 15 > timeout


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_refused_before_jaxs_server_ends_the_process(host, monkeypatch):
    """By process 0, which would listen there."""
    started = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **_: started.append(arguments) or 1 / 0)
    monkeypatch.setattr(processes, "_redirect_stdout_of_libraries", lambda: None)
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            UserError, match=rf"{address}: port .* cannot be used \(Address already in use\); name a free"
        ):
            with processes.initialize(processes.Launch(address, 2, 0, "flags")):
                pass
        assert not started
        with pytest.raises(ZeroDivisionError), processes.initialize(processes.Launch(address, 2, 1, "flags")):
            pass  # process 1 connects to it
    with pytest.raises(ZeroDivisionError), processes.initialize(processes.Launch(address, 2, 0, "flags")):
        pass  # it is free again


LAUNCHERS = {  # {launcher: its variables for the first of two processes of a job}
    "SLURM": {
        "SLURM_JOB_ID": "{job}", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    },
    "Open MPI": {
        "OMPI_MCA_orte_hnp_uri": "{multiple}.0;tcp://node1:9", "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    },
}  # fmt: skip


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_port_that_the_number_of_the_job_gives(launcher, monkeypatch):
    """JAX takes 61440 plus the last 12 bits of the number: two jobs on one machine may have one port."""
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **_: 1 / 0)
    monkeypatch.setattr(processes, "_redirect_stdout_of_libraries", lambda: None)

    def start():
        with processes.initialize(processes.find_launch(flags())):
            pass

    with socket.socket() as taken:
        for job in range(1, 4096):
            with contextlib.suppress(OSError):
                taken.bind(("", 61440 + job))
                break
        taken.listen()
        for name, value in LAUNCHERS[launcher].items():
            monkeypatch.setenv(name, value.format(job=job + 8192, multiple=(job + 4096) << 12))
        port = 61440 + job
        message = rf"node1:{port}: port {port} .*Address already in use\); set JAX_COORDINATOR_PORT to a free one"
        with pytest.raises(UserError, match=message):
            start()
    with pytest.raises(ZeroDivisionError):
        start()  # it is free again
    monkeypatch.setenv("JAX_COORDINATOR_PORT", "70000")
    with pytest.raises(UserError, match=rf"found by {launcher}\)=node1:70000: not HOST:PORT"):
        start()
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "node1")
    with pytest.raises(UserError, match="JAX_COORDINATOR_ADDRESS=node1: not HOST:PORT"):
        start()


@pytest.mark.slow
def test_processes_that_do_not_share_a_workdir(start_command, arguments, tmp_path):
    address = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    pair = [
        start_command(
            "train",
            *arguments,
            f"--workdir={tmp_path / f'run{index}'}",
            *address,
            f"--process_id={index}",
            environment=environment(1),
        )
        for index in range(2)
    ]
    messages = [command.communicate(timeout=200)[1] for command in pair]
    assert [command.returncode for command in pair] == [2, 2]
    assert "process 1 does not see what process 0 wrote there" in messages[1]
    assert "process 1 failed" in messages[0]

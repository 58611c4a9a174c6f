"""Checkpoints come back bit for bit, or are refused; real corrupted bytes, real kills, a real full disk."""

import asyncio
import gc
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from inception_jax.checkpoints import reading, saving
from inception_jax.checkpoints.reading import CheckpointDamaged, CheckpointError, CheckpointMismatch
from inception_jax.checkpoints.saving import Checkpoints, load_variables
from inception_jax.errors import DiskFull, UserError
from inception_jax.training.state import TrainState

SCENARIOS = Path(__file__).with_name("checkpoint_scenarios.py")
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9), optax.ema(0.9))


def make_state(step=0, ema=True, batch_stats=True, dtype=jnp.float32):
    """A small TrainState with every kind of node and dtype that a real one has."""
    rng = np.random.default_rng(step)
    kernel = rng.normal(size=(3, 3, 4, 8))
    kernel.flat[:5] = [np.nan, np.inf, -np.inf, -0.0, 5e-324]
    params = {
        "conv1": {"kernel": jnp.asarray(kernel, dtype), "bias": jnp.asarray(rng.normal(size=8), jnp.bfloat16)},
        "classifier": {"kernel": jnp.asarray(rng.normal(size=(40, 30)), jnp.float32)},
    }
    stats = {"conv1": {"bn": {"mean": jnp.asarray(rng.normal(size=8), jnp.float32)}}} if batch_stats else {}
    average = {"params": jax.tree.map(lambda x: x * 2, params), "batch_stats": stats} if ema else None
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, OPTIMIZER.init(params), average)


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape), path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def abstract(state):
    return jax.eval_shape(lambda: state)


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the states of steps 10 and 20; copy it before changing it."""
    directory = tmp_path_factory.mktemp("saved") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step in (10, 20):
            checkpoints.save(step, make_state(step), {"step": step})
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "checkpoints"))


@pytest.mark.parametrize(("ema", "batch_stats"), [(True, True), (False, False), (True, False)])
def test_round_trip(tmp_path, ema, batch_stats):
    state = make_state(7, ema, batch_stats)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(abstract(state)) is None
        assert checkpoints.save(7, state, {"seed": 3})
        found = checkpoints.restore_latest(abstract(state))
    assert_same(found.state, state)
    assert (found.host, found.step) == ({"seed": 3}, 7)


def test_round_trip_in_float64(tmp_path, x64):
    state = make_state(dtype=jnp.float64)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state, {})
        assert_same(checkpoints.restore(0, abstract(state)).state, state)


def test_floats_of_the_host_item_come_back_exactly(tmp_path):
    numbers = [0.1 + 0.2, 5e-324, -0.0, 1.7976931348623157e308, float(np.float32(0.1)), math.inf, 2**63]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(2)}, {"numbers": numbers, "nan": math.nan, "é": None})
        host = checkpoints.restore_latest({"w": jnp.zeros(2)}).host
    assert list(map(repr, host["numbers"])) == list(map(repr, numbers))
    assert math.isnan(host["nan"]) and host["é"] is None


def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(TypeError):
            checkpoints.save(1, {"w": jnp.zeros(2)}, {"array": np.zeros(2)})
        assert checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    assert names(tmp_path) == ["1"]


def test_the_state_may_be_donated_and_the_host_item_changed_while_it_is_saved(tmp_path):
    state = {"w": jnp.arange(500_000.0)}
    expected, host = np.asarray(state["w"]).copy(), {"list": [1]}
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        hold = threading.Event()
        checkpoints._worker.submit(hold.wait)  # the checksums are made after everything below
        checkpoints.save(1, state, host)
        host["list"].append(2)
        for _ in range(3):
            state = update(state)
        hold.set()
        found = checkpoints.restore_latest({"w": jax.ShapeDtypeStruct((500_000,), jnp.float32)})
    np.testing.assert_array_equal(found.state["w"], expected)
    assert found.host == {"list": [1]}


def test_an_existing_step_is_left_as_it_is(copied):
    with Checkpoints(copied) as checkpoints:
        assert not checkpoints.save(20, make_state(21), {"step": 21})
        assert checkpoints.save(30, make_state(30), {})
        assert not checkpoints.save(30, make_state(31), {})  # while it is being written
        assert_same(checkpoints.restore(20, abstract(make_state())).state, make_state(20))


def test_which_checkpoints_stay(tmp_path):
    """The 2 latest and the best; NaN is never the best, and the best survives a restart and a NaN."""
    scores = {1: 0.5, 2: 0.9, 3: math.nan, 4: 0.9, 5: math.nan, 6: 0.1, 7: None, 8: 0.2}
    kept = {1: [1], 2: [1, 2], 3: [2, 3], 4: [3, 4], 5: [4, 5], 6: [4, 5, 6], 7: [4, 6, 7], 8: [4, 7, 8]}
    state = {"w": jnp.zeros(2)}
    for steps in ((1, 2, 3, 4, 5), (6, 7, 8)):
        with Checkpoints(tmp_path, best_metric="top1") as checkpoints:
            for step in steps:
                metrics = None if scores[step] is None else {"top1": scores[step], "loss": 0.0}
                checkpoints.save(step, state, {}, metrics)
                checkpoints.wait()
                assert checkpoints.steps() == kept[step]
                assert names(tmp_path) == [*map(str, kept[step]), *(["deleted"] if step > 2 else [])]
                assert step <= 2 or not names(tmp_path / "deleted")
    with Checkpoints(tmp_path, best_metric="top1") as checkpoints:
        assert checkpoints.best_step() == 4
        assert checkpoints.restore_best(state).step == 4
        assert checkpoints.restore_latest(state).step == 8


def test_less_may_be_better_and_several_best_kept(tmp_path):
    with Checkpoints(tmp_path, keep_latest=3, keep_best=2, best_metric="loss", best_mode="min") as checkpoints:
        for step, loss in enumerate([3.0, 1.0, math.nan, 2.0, 5.0, 6.0, 7.0]):
            checkpoints.save(step, {"w": jnp.zeros(2)}, {}, {"loss": loss})
        checkpoints.wait()
        assert checkpoints.steps() == [1, 3, 4, 5, 6]
        assert checkpoints.best_step() == 1


def test_without_a_metric_there_is_no_best(copied):
    with Checkpoints(copied) as checkpoints:
        assert checkpoints.best_step() is None
        with pytest.raises(CheckpointError, match="score"):
            checkpoints.restore_best(abstract(make_state()))


def _damages(content, rng):
    """What may become of a file: missing (None), cut, zeroed, one bit flipped."""
    yield None
    yield b""
    yield content[: len(content) // 2]
    yield bytes(len(content))
    for _ in range(3):
        flipped = bytearray(content)
        flipped[rng.integers(len(content))] ^= 1 << rng.integers(8)
        yield bytes(flipped)


def test_no_damage_goes_unseen(saved, tmp_path):
    """Every file of the newest checkpoint, harmed in seven ways: its state comes back, or that of the step before.

    Payload has no checksum of Orbax's: without ours most flips in it would load.
    """
    rng, states = np.random.default_rng(0), {step: make_state(step) for step in (10, 20)}
    work, outcomes, reasons = tmp_path / "checkpoints", [], []
    for file in sorted(path.relative_to(saved) for path in (saved / "20").rglob("*") if path.is_file()):
        content = (saved / file).read_bytes()
        for harmed in _damages(content, rng) if content else ():
            shutil.copytree(saved, work)
            (work / file).unlink() if harmed is None else (work / file).write_bytes(harmed)
            told = []
            with Checkpoints(work, warn=told.append) as checkpoints:
                found = checkpoints.restore_latest(abstract(states[10]))
            assert_same(found.state, states[found.step])
            assert found.host == {"step": found.step}
            assert names(work / "damaged") == ["20"] if found.step == 10 else not told
            assert len(told) == (found.step == 10) and not any("\n" in line for line in told)
            outcomes.append(found.step)
            reasons += told
            shutil.rmtree(work)
    # The files that are needed are the record, the payload and its index; Orbax's own notes about them are not.
    assert outcomes.count(10) > 20 and outcomes.count(20) > 20
    assert any("values of params/classifier/kernel are not those" in line for line in reasons)


def harm(directory, step):
    """Flips a bit of the payload of params/classifier/kernel."""
    payload = np.asarray(make_state(step).params["classifier"]["kernel"]).tobytes()
    for file in (directory / str(step) / "state").rglob("*"):
        content = bytearray(file.read_bytes() if file.is_file() else b"")
        place = content.find(payload)
        if place >= 0:
            content[place + 1000] ^= 1
            file.write_bytes(content)
            return
    raise AssertionError("payload not found")


def test_training_goes_on_from_the_step_before_a_damaged_one(copied):
    harm(copied, 20)
    with Checkpoints(copied, warn=lambda text: None) as checkpoints:
        assert checkpoints.restore_latest(abstract(make_state())).step == 10
        assert checkpoints.save(20, make_state(20), {"step": 20})
        checkpoints.wait()
        harm(copied, 20)
        assert checkpoints.restore_latest(abstract(make_state())).step == 10
        for step in (20, 30):
            checkpoints.save(step, make_state(step), {"step": step})
        checkpoints.wait()
        assert checkpoints.steps() == [20, 30]
        assert_same(checkpoints.restore_latest(abstract(make_state())).state, make_state(30))
    assert names(copied / "damaged") == ["20", "20+"]


def test_a_state_that_is_damaged_everywhere_is_refused_and_left_in_place(copied):
    for step in (10, 20):
        harm(copied, step)
    for _ in range(2):  # the second start must not begin from nothing either
        with Checkpoints(copied) as checkpoints:
            with pytest.raises(CheckpointError, match=r"all 2 are damaged; .*/20: the values of") as caught:
                checkpoints.restore_latest(abstract(make_state()))
            assert caught.value.exit_code == 5
    assert names(copied) == ["10", "20"]


def test_an_explicit_step_is_refused_and_not_moved(copied):
    harm(copied, 20)
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(CheckpointDamaged):
            checkpoints.restore(20, abstract(make_state()))
        with pytest.raises(UserError, match=r"no checkpoint of step 15 .*\[10, 20\]"):
            checkpoints.restore(15, abstract(make_state()))
    assert names(copied) == ["10", "20"]


def _with_kernel(state, kernel):
    return state.replace(params={**state.params, "classifier": {"kernel": kernel}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: _with_kernel(s, jnp.zeros((40, 30), jnp.bfloat16)),
            r"params/classifier/kernel is float32\[40, 30\] in the checkpoint and bfloat16\[40, 30\] in this run$",
        ),
        (lambda s: _with_kernel(s, jnp.zeros((40, 10))), r"params/classifier/kernel .* float32\[40, 10\] in this run"),
        (lambda s: s.replace(ema=None), r"ema/batch_stats/conv1/bn/mean .* absent in this run \(3 more leaves"),
        (lambda s: s.replace(batch_stats={"new": jnp.zeros(1)}), "batch_stats/conv1/bn/mean .* absent in this run"),
        (lambda s: s.replace(opt_state=optax.adam(0.1).init(s.params)), r"opt_state/0/count is absent in the ch"),
    ],
)
def test_another_state_is_refused_by_the_name_of_its_first_leaf(copied, change, message):
    with Checkpoints(copied) as checkpoints:
        with pytest.raises(CheckpointMismatch, match=message) as caught:
            checkpoints.restore_latest(abstract(change(make_state())))
        assert caught.value.exit_code == 2 and "\n" not in str(caught.value)
    assert names(copied) == ["10", "20"]  # it is not damaged


def test_a_record_of_a_later_version_is_refused_and_not_called_damaged(copied, monkeypatch):
    monkeypatch.setattr(reading, "FORMAT", 0)
    with Checkpoints(copied) as checkpoints, pytest.raises(CheckpointMismatch, match="later version"):
        checkpoints.restore_latest(abstract(make_state()))


def test_lack_of_open_files_is_not_called_damage(copied):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    record = reading.read_record(copied / "20")
    reads = (
        lambda: reading.list_steps(copied),
        lambda: reading.read_record(copied / "20"),
        lambda: reading.read_leaves(copied / "20", record, record["leaves"]),
    )
    lowest_free = os.open(os.devnull, os.O_RDONLY)
    os.close(lowest_free)
    for read in reads:
        read()
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
            with pytest.raises(UserError, match=r"(?i)too many open files") as caught:
                read()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not isinstance(caught.value, CheckpointDamaged)


def test_a_failed_save_is_one_line_and_the_next_one_may_succeed(tmp_path, caplog):
    directory, state = tmp_path / "checkpoints", make_state()
    checkpoints = Checkpoints(directory)
    checkpoints.save(1, state, {})
    checkpoints.wait()
    directory.rename(tmp_path / "elsewhere")
    directory.write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*checkpoints: Not a directory") as caught:
        checkpoints.save(2, state, {})
        checkpoints.wait()
    assert "\n" not in str(caught.value) and not caplog.records
    directory.unlink()
    (tmp_path / "elsewhere").rename(directory)
    assert checkpoints.save(3, state, {})
    checkpoints.close()
    assert checkpoints.steps() == [1, 3]


def test_what_a_killed_process_left_is_cleared_away(copied):
    for name in ("30.orbax-checkpoint-tmp/state", "deleted/5/state"):
        (copied / name).mkdir(parents=True)
        (copied / name / "file").write_text("")
    Checkpoints(copied).close()
    assert names(copied) == ["10", "20", "deleted"] and not names(copied / "deleted")


def test_mistakes(tmp_path):
    with pytest.raises(UserError, match="keep_latest = 1"):
        Checkpoints(tmp_path, keep_latest=1)
    with pytest.raises(UserError, match=r"'maxi'.*did you mean 'max'"):
        Checkpoints(tmp_path, best_mode="maxi")
    with Checkpoints(tmp_path, best_metric="top1") as checkpoints:
        with pytest.raises(UserError, match="'top1': not measured; did you mean 'top_1'"):
            checkpoints.save(1, {"w": jnp.zeros(2)}, {}, {"top_1": 1.0})
        assert checkpoints.save(1, {"w": jnp.zeros(2)}, {}, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints")


@pytest.mark.filterwarnings("ignore:Sharding info not provided")  # of no interest on one device
def test_orbax_reads_it_too(saved):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(saved / "20" / "state")
    params = jax.tree.map(np.asarray, make_state(20).params)
    assert_same(jax.tree.map(np.asarray, restored["params"]), params)
    assert ocp.JsonCheckpointHandler().restore(saved.joinpath("20", "host"))["content"]["step"] == 20


class TestLoadVariables:
    """Weights without the optimizer, for evaluation and prediction."""

    def test_of_a_workdir_a_directory_and_a_step(self, saved):
        for path, step in ((saved.parent, 20), (saved, 20), (saved / "10", 10)):
            variables = load_variables(path)
            state = make_state(step)
            assert_same(variables, {"params": state.params, "batch_stats": state.batch_stats})
            assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(variables))
        assert_same(load_variables(saved, "ema", 10), make_state(10).ema)

    def test_without_batch_norm_and_averages(self, tmp_path):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, make_state(1, ema=False, batch_stats=False), {})
        assert load_variables(tmp_path)["batch_stats"] == {}
        with pytest.raises(UserError, match="no EMA weights"):
            load_variables(tmp_path, "ema")

    def test_the_best(self, tmp_path):
        with Checkpoints(tmp_path, best_metric="top1") as checkpoints:
            for step, top1 in enumerate([0.5, 0.7, 0.6, math.nan]):
                checkpoints.save(step, make_state(step), {}, {"top1": top1})
        assert saving.load_record(tmp_path, "best")["step"] == 1
        assert_same(load_variables(tmp_path, step="best")["params"], make_state(1).params)

    def test_damage_is_passed_over_and_left_in_place(self, copied):
        harm(copied, 20)
        told = []
        assert_same(load_variables(copied, warn=told.append)["params"], make_state(10).params)
        assert len(told) == 1 and names(copied) == ["10", "20"]
        with pytest.raises(CheckpointError):
            load_variables(copied, step=20)

    def test_only_what_is_asked_for_must_be_whole(self, copied):
        harm(copied, 20)
        assert saving.load_record(copied)["step"] == 20
        assert_same(load_variables(copied, "ema"), make_state(20).ema)

    def test_mistakes(self, saved, tmp_path):
        with pytest.raises(UserError, match=r"'em'.*did you mean 'ema'"):
            load_variables(saved, "em")
        with pytest.raises(UserError, match=r"no checkpoint of step 3 .* 10, 20"):
            load_variables(saved, step=3)
        with pytest.raises(UserError, match=r"no checkpoints in .*empty"):
            (tmp_path / "empty").mkdir()
            load_variables(tmp_path / "empty")
        with pytest.raises(UserError, match="there is no such directory"):
            load_variables(tmp_path / "nowhere")
        with pytest.raises(UserError, match="score"):
            load_variables(saved, step="best")


def run_scenario(name, directory, *prefix):
    command = [*prefix, sys.executable, str(SCENARIOS), name, str(directory)]
    root = str(Path(saving.__file__).parents[2])
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stderr[-4000:]
    return done.stderr


def test_sigkill_at_random_moments(tmp_path):
    run_scenario("kill", tmp_path)


def test_full_disk(tmp_path):
    namespace = ["unshare", "--map-root-user", "--mount"]
    probe = [*namespace, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this machine lets us mount no small file system")
    # Orbax's pages of errors stay out of the log. (A thread of TensorStore may print "Event loop is closed".)
    assert "ERROR" not in run_scenario("full", tmp_path, *namespace)


@pytest.mark.parametrize(("module", "shown"), [("orbax/checkpoint/serialization.py", False), ("grain/reader.py", True)])
def test_failed_writes_that_the_garbage_collector_meets(caplog, module, shown):
    saving.orbax_manager.quiet_logs()
    scope = {}
    exec(compile("def fail(): raise ValueError('no space left')", f"/site-packages/{module}", "exec"), scope)

    async def fail():
        scope["fail"]()

    async def gather():
        task = asyncio.ensure_future(fail())
        await asyncio.sleep(0.01)
        del task
        gc.collect()

    asyncio.run(gather())
    assert ("exception was never retrieved" in caplog.text) == shown


def test_other_devices_and_shardings(tmp_path):
    run_scenario("devices", tmp_path)


def test_writes_that_end_after_a_failed_save_print_no_traceback(tmp_path, capsys):
    """TensorStore's threads call a closed event loop; an exception of ours is printed as ever."""
    Checkpoints(tmp_path).close()
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError) as error:
        loop.call_soon_threadsafe(print)
    sys.excepthook(RuntimeError, error.value, error.value.__traceback__.tb_next)
    assert capsys.readouterr().err == ""
    sys.excepthook(RuntimeError, error.value, error.value.__traceback__)
    assert "Event loop is closed" in capsys.readouterr().err


def test_a_file_system_without_inodes(tmp_path, monkeypatch):
    real = os.statvfs
    counts = {"f_files": 1000, "f_favail": 20}

    def statvfs(path):
        found = real(path)
        values = {name: getattr(found, name) for name in dir(found) if name.startswith("f_")}
        return types.SimpleNamespace(**(values | counts))

    monkeypatch.setattr("inception_jax.checkpoints.orbax_manager.os.statvfs", statvfs)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(DiskFull, match=r"up to 33 files in .* no inodes for them"),
    ):
        checkpoints.save(1, {"a": np.zeros(3)}, {})
    counts.update(f_files=0, f_favail=0)  # a file system that does not count them
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(1, {"a": np.zeros(3)}, {})

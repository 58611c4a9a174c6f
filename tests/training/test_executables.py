"""Compiled steps in files: used where all of the key is the same, and never unpickled where it is not."""

import dataclasses
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from inception_jax import extensions, recipe_files, schema
from inception_jax.config import Config
from inception_jax.models.registry import create_model
from inception_jax.training import compiled_steps, executable_files, executables, step_numbers
from inception_jax.training import setup as setups
from inception_jax.training.executable_files import Store
from inception_jax.training.executables import describe_arguments
from inception_jax.training.parallel import Devices
from inception_jax.training.preprocess import get_normalization


@struct.dataclass
class State:
    """A node of a class of its own, as the state of a run is."""

    step: jax.Array


def train_step(state, batch):
    return State(state.step + batch["x"].sum()), {"loss": state.step * 2, "count": state.step}


DEVICES = Devices(count=2)
ARGUMENTS = (
    DEVICES.replicate(State(jnp.ones(()))),
    {"x": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=DEVICES.split)},
)
KEY = {"kind": "train", "config": {"optimizer.name": "sgd"}, "arguments": describe_arguments(ARGUMENTS)}


@pytest.fixture(scope="module")
def compiled():
    return DEVICES.compile_train(train_step, *ARGUMENTS).call


@pytest.fixture(scope="module")
def process():
    return executables.describe_process()


@pytest.fixture
def run_config(small_arguments):
    """Makes the config of the small run, with other values of some fields."""

    def make(**changes):
        config, _ = recipe_files.load_config([*small_arguments, *(f"--config.{k}={v}" for k, v in changes.items())])
        return config

    return make


@pytest.fixture
def store(tmp_path, process):
    return Store(tmp_path / "cache" / "executables", process)


def only_file(store):
    (path,) = store.folder.iterdir()
    return path


def test_a_kept_step_is_the_compiled_one(store, compiled):
    assert store.load(KEY, ARGUMENTS) is None  # there is no folder yet
    assert store.save(KEY, ARGUMENTS, compiled)
    assert (only_file(store).stat().st_mode & 0o777, store.folder.stat().st_mode & 0o777) == (0o600, 0o700)
    loaded = store.load(KEY, ARGUMENTS)
    batch = DEVICES.put({"x": jnp.arange(4.0)})
    results = [call(DEVICES.replicate(State(jnp.ones(()))), batch) for call in (loaded, compiled)]
    assert jax.tree.structure(results[0]) == jax.tree.structure(results[1])
    assert jax.tree.leaves(jax.device_get(results[0])) == jax.tree.leaves(jax.device_get(results[1])) == [2, 1, 2]


def test_a_kept_step_of_mode_pmap(store):
    devices = Devices("pmap", 2)
    batch = devices.put({"x": np.arange(4, dtype=np.float32)})
    state = devices.replicate(State(np.ones((), np.float32)))
    arguments = (state, batch)
    compiled = devices.compile_train(train_step, *arguments).call
    assert store.save(KEY, arguments, compiled)
    loaded = store.load(KEY, arguments)
    assert [float(leaf) for leaf in jax.tree.leaves(loaded(state, batch))] == [2, 1, 2]


def changed(value):
    """Yields copies of nested JSON values, each with one leaf that differs, and its path."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from ((f"{name}.{path}", {**value, name: other}) for path, other in changed(part))
    elif isinstance(value, list):
        for k, part in enumerate(value):
            yield from ((f"{k}.{path}", [*value[:k], other, *value[k + 1 :]]) for path, other in changed(part))
    else:
        yield "", f"{value} "


def test_whatever_part_of_the_key_differs_it_is_not_used(store, compiled, monkeypatch):
    assert store.save(KEY, ARGUMENTS, compiled)
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled before its key held"))
    content = only_file(store).read_bytes()
    keys = [(path, KEY, common) for path, common in changed(store.common)]
    keys += [(path, key, store.common) for path, key in changed(KEY)]
    assert {path.split(".")[0] for path, *_ in keys} == {
        "versions", "libraries", "environment", "settings", "processor", "process", "kind", "config", "arguments",
    }  # fmt: skip
    for path, key, common in keys:
        other = Store(store.folder, common)
        assert other.load(key, ARGUMENTS) is None, path
        place, _ = other._place(key)
        place.write_bytes(content)  # under the other key's name, too: the key stands inside the file
        place.chmod(0o600)
        assert other.load(key, ARGUMENTS) is None, path
        place.unlink()


def test_a_file_that_others_may_have_written_is_never_unpickled(store, compiled, monkeypatch):
    assert store.save(KEY, ARGUMENTS, compiled)
    path = only_file(store)
    content = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))

        def refused():
            return store.load(KEY, ARGUMENTS) is None

        for mode in (0o660, 0o606):
            path.chmod(mode)
            assert refused()
        path.chmod(0o600)
        for mode in (0o770, 0o707):
            store.folder.chmod(mode)
            assert refused() and not store.save(KEY, ARGUMENTS, compiled)
        store.folder.chmod(0o700)
        patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        assert refused()
        patch.undo()
    monkeypatch.setattr(pickle, "loads", lambda *_: pytest.fail("unpickled"))
    for damaged in (b"", content[:-1], content[:-1] + bytes([content[-1] ^ 1]), content + b"x", b"x" + content):
        path.write_bytes(damaged)
        assert store.load(KEY, ARGUMENTS) is None
    (elsewhere := store.folder.parent / "file").write_bytes(content)
    path.unlink()
    path.symlink_to(elsewhere)
    assert store.load(KEY, ARGUMENTS) is None
    path.unlink()
    os.mkfifo(path, 0o600)
    assert store.load(KEY, ARGUMENTS) is None


def test_the_size_of_the_folder_is_limited(store, compiled, monkeypatch):
    for k in range(3):
        assert store.save(KEY | {"kind": str(k)}, ARGUMENTS, compiled)
        os.utime(store._place(KEY | {"kind": str(k)})[0], (k, k))
    assert store.load(KEY | {"kind": "0"}, ARGUMENTS)  # now the newest
    size = max(path.stat().st_size for path in store.folder.iterdir())
    monkeypatch.setattr(executable_files, "MAX_BYTES", int(3.5 * size))
    gone, iterdir = store.folder / "gone", Path.iterdir  # another process removes a file at the same time
    monkeypatch.setattr(Path, "iterdir", lambda path: [*iterdir(path), gone])
    assert store.save(KEY | {"kind": "3"}, ARGUMENTS, compiled)
    kept = {k for k in range(4) if store.load(KEY | {"kind": str(k)}, ARGUMENTS)}
    assert kept == {0, 2, 3}
    monkeypatch.setattr(executable_files, "MAX_BYTES", size)
    assert not store.save(KEY, ARGUMENTS, compiled)  # it would be removed at once


def test_a_full_disk_and_what_cannot_be_serialized_cost_nothing(store, compiled, monkeypatch):
    assert not store.save(KEY, ARGUMENTS, lambda: None) and not store.folder.exists()
    monkeypatch.setattr(executable_files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert not store.save(KEY, ARGUMENTS, compiled)
    assert not list(store.folder.iterdir())


def test_what_decides_a_step_is_in_its_key(run_config):
    """Of the config: all but what changes only shapes, which are in the key themselves, and what no step sees."""

    def key(**changes):
        setup = setups.build(Config(run_config(**changes)))
        return executables.describe_step("train", setup, (*ARGUMENTS, step_numbers.read_numbers(setup)))

    usual = key()
    assert usual["source"] == executables.source_digest()
    for changes in (
        {"schedule.name": "constant"},
        {"num_steps": 15},
        {"faults.max_skipped_steps": 1},
        {"data.normalization": "inception"},
        {"ema.decay": 0.0},
        {"loss.label_smoothing": 0.1},
        {"augmentation.lighting": 0.1},
        {"augmentation.mixup_alpha": 0.2},
        {"optimizer.momentum": 0.0},
        {"optimizer.weight_decay": 0.0},
        {"optimizer.clip_norm": 1.0},
        {"optimizer.bias_learning_rate": 3.0},
        {"optimizer.learning_rate_multipliers": "(('^inception_5', 0.1),)"},
        {"loss.class_weights": "balanced"},
        {"schedule.warmup_epochs": 2.0},
        {"optimizer.name": "optax.lamb", "optimizer.weight_decay": 0.1},
        {"model.dropout_rate": 0.5},
        {"model.bn_initial_fraction": 0.1, "model.name": "inception_v1_bn"},
    ):
        assert key(**changes) != usual, changes
    # What the config does not tell: the data, a normalization that a script has changed.
    setup = setups.build(Config(run_config()))
    length = setup.length
    for changes in (
        {"length": dataclasses.replace(length, steps_per_epoch=7.5)},
        {"length": dataclasses.replace(length, total=15)},
        {"input": dataclasses.replace(setup.input, normalization=get_normalization("zero_one"))},
    ):
        other = dataclasses.replace(setup, **changes)
        one, two = (executables.describe_step("train", each, ARGUMENTS) for each in (setup, other))
        assert one != two, changes
    for changes in (
        {"logging.every_steps": 4},
        {"checkpoint.keep": 3},
        {"data.threads": 1},
        {"stop.patience": 2, "stop.target": 0.9},
    ):
        assert key(**changes) == usual, changes


# Of the config fields that are not in the key of a step: why its program does not depend on their values.
OUTSIDE = {
    "they decide the values of the images": (
        "augmentation.area", "augmentation.aspect", "augmentation.flip", "augmentation.interpolation",
        "augmentation.policy", "augmentation.policy_magnitude", "augmentation.policy_operations",
        "augmentation.resize", "augmentation.rule", "evaluation.crop", "evaluation.crop_fraction",
        "evaluation.interpolation", "evaluation.resize",
    ),
    "the host reads and transfers by them": (
        "data.cache_mb", "data.data_dir", "data.max_pixels", "data.prefetch", "data.threads", "data.workers",
    ),
    "they are shapes of the arguments": (
        "evaluation.batch_size", "evaluation.image_size", "evaluation.protocol", "parallel.steps_per_execution",
    ),
    "they decide the values of the first state": (
        "initialize.checkpoint", "initialize.new", "initialize.step", "initialize.weights",
    ),
    "the loop asks them between steps": (
        "checkpoint.best_metric", "checkpoint.every_epochs", "checkpoint.keep", "evaluation.every_epochs",
        "logging.every_steps", "logging.pictures", "logging.sinks", "logging.tensorboard", "stop.min_improvement",
        "stop.at_target", "stop.patience", "stop.target", "stop.target_metric",
    ),
    "another program, which is not kept": ("evaluation.batch_norm_images",),
}  # fmt: skip
# Arguments of the step: values in the tree of `step_numbers.read_numbers`, whose structure is in the key.
ARGUMENTS_OF_THE_STEP = {
    "ema.decay", "faults.loss_limit", "loss.aux_weights", "loss.class_weights", "optimizer.learning_rate",
    "schedule.end_learning_rate", "seed",
}  # fmt: skip
ARGUMENTS_OF_ITS_OPTIMIZER = {
    "optimizer.b1", "optimizer.b2", "optimizer.clip_norm", "optimizer.decay", "optimizer.epsilon",
    "optimizer.momentum", "optimizer.weight_decay",
}  # fmt: skip


def test_every_field_is_in_the_key_or_outside_for_a_reason(run_config):
    every = {path for path, _ in schema.fields()}
    outside = {path for paths in OUTSIDE.values() for path in paths}
    assert outside | ARGUMENTS_OF_THE_STEP | ARGUMENTS_OF_ITS_OPTIMIZER <= every
    setup = setups.build(Config(run_config()))
    every |= {f"model.options.{name}" for name in setup.config.to_dict()["model"]["options"]}
    optax = setups.build(Config(run_config(**{"optimizer.name": "optax.lamb", "optimizer.weight_decay": 0.1})))
    numbers = (*ARGUMENTS, step_numbers.read_numbers(setup))

    def absent(*arguments):
        return every - set(executables.describe_step(*arguments)["config"])

    assert absent("train", setup, numbers) == outside | ARGUMENTS_OF_THE_STEP | ARGUMENTS_OF_ITS_OPTIMIZER
    assert absent("train", optax, (*ARGUMENTS, step_numbers.read_numbers(optax))) == outside | ARGUMENTS_OF_THE_STEP


@pytest.mark.parametrize(("steps", "every", "limit"), [(1, 10, None), (4, 10, 4), (4, 3, 3), (64, 100, 20), (4, 1, 1)])
def test_a_run_compiles_its_longest_execution(run_config, steps, every, limit):
    changes = {"parallel.steps_per_execution": steps, "logging.every_steps": every, "num_steps": 20}
    changes |= {"evaluation.every_epochs": 100.0, "checkpoint.every_epochs": 100.0}
    compiled = compiled_steps.CompiledSteps(setups.build(Config(run_config(**changes))))
    batches = compiled._arguments(None)[1]
    assert isinstance(batches, dict) if limit is None else len(batches) == limit


def test_calls_of_onednn_are_known_before_a_step_is_read(monkeypatch, run_config):
    """Their build is in the key; where they are not taken, nothing is built."""
    monkeypatch.setattr(executables.onednn, "load", lambda: executables.onednn.Calls("the build", False, lambda *_: 0))

    def builds(convolution, **changes):
        setup = setups.build(Config(run_config(**{"model.convolution": convolution})))
        return executables.describe_step("train", dataclasses.replace(setup, **changes), ARGUMENTS)["onednn"]

    assert builds("onednn") == builds("onednn_winograd") == "the build" and builds("fast") is None
    gpus = SimpleNamespace(first_device=SimpleNamespace(platform="gpu"))
    assert builds("onednn", devices=gpus) is None


def test_code_that_the_package_does_not_have_is_compiled_anew(monkeypatch, store):
    """A recipe's network, optimizer or extension: neither its source nor what that imports is in the key."""
    monkeypatch.setitem(extensions.OPTIMIZERS, "mine", None)
    monkeypatch.setattr(executables, "describe_step", lambda *_: {})

    def load(names=(), optimizer="sgd", network="inception_v1", model=None):
        config = SimpleNamespace(
            extensions=names, optimizer=SimpleNamespace(name=optimizer), model=SimpleNamespace(name=network)
        )
        model = model or create_model("inception_v1")
        setup = SimpleNamespace(config=config, model=model)
        return executables.load_or_compile(store, "train", setup, ARGUMENTS, lambda *_, **options: [*options])

    assert load() == ["compile_program"]
    for options in (
        {"names": ("mine.py",)},
        {"optimizer": "mine"},
        {"network": "mine"},  # of a class of this package, with functions of a script
        {"model": State(0)},
    ):
        assert load(**options) == [], options


def test_an_edited_checkout_of_a_library_is_another_library(process, monkeypatch, tmp_path):
    assert {"nvidia-cudnn-cu12", "jax-cuda13-pjrt", "jaxlib"} <= process["versions"].keys()
    file = tmp_path / "flax" / "core" / "scope.py"
    file.parent.mkdir(parents=True)
    (tmp_path / "flax" / ".#a.py").symlink_to("nobody@nowhere")  # an editor's lock
    monkeypatch.setattr(executables, "flax", SimpleNamespace(__file__=str(tmp_path / "flax" / "__init__.py")))
    digests = [process["libraries"]]
    for content in ("x = 1", "x = 10"):
        file.write_text(content)
        digests.append(executables._libraries_digest.__wrapped__())
    os.utime(file, (1, 1))
    digests.append(executables._libraries_digest.__wrapped__())
    assert len(set(digests)) == 4 and digests[-1] == executables._libraries_digest.__wrapped__()


@pytest.fixture
def start(monkeypatch, tmp_path, process):
    """Starts a run of a step anew; returns which way it was compiled ("cache": JAX's may be used), or "loaded"."""
    setting = jax.config.jax_enable_compilation_cache
    monkeypatch.setattr(executables, "_is_described", lambda *_: True)
    monkeypatch.setattr(executables, "describe_step", lambda *_: {"source": executables.source_digest()})

    def compile_step(*arguments, compile_program):
        lowered, ways = DEVICES._jit_train(train_step).lower(*arguments), []

        def compile_now():
            ways.append("cache" if jax.config.jax_enable_compilation_cache else "kept")
            return lowered.compile()

        compile_program(SimpleNamespace(as_text=lowered.as_text, compile=compile_now))
        return ["traced", *ways]

    def load():
        store = Store(tmp_path / "executables", process)
        result = executables.load_or_compile(store, "train", None, ARGUMENTS, compile_step)
        return result if isinstance(result, list) else ["loaded"]

    jax.config.update("jax_enable_compilation_cache", True)
    yield load
    jax.config.update("jax_enable_compilation_cache", setting)


def test_a_step_that_was_begun_to_load_is_taken_only_where_it_is_the_one(store, compiled, monkeypatch):
    monkeypatch.setattr(executables, "_is_described", lambda *_: True)
    monkeypatch.setattr(executables, "describe_step", lambda kind, *_: {"kind": kind})
    assert executables.begin_loading(None, "train", None, ARGUMENTS) is None
    assert executables.begin_loading(store, "train", None, ARGUMENTS).executable.result() is None  # nothing is kept
    digest = b"1" * 32
    assert store.write({"kind": "train"}, digest) and store.save({"program": digest.hex()}, ARGUMENTS, compiled)
    loading = executables.begin_loading(store, "train", None, ARGUMENTS)

    def load(kind):
        compile_step = lambda *_, **options: [*options]  # noqa: E731
        return executables.load_or_compile(store, kind, None, ARGUMENTS, compile_step, loading)

    assert load("train").call is loading.executable.result() is not None
    assert load("evaluation") == ["compile_program"]


def test_processes_load_together_or_compile_together(store, compiled, monkeypatch):
    """Where another process lacks the step or cannot keep it, this one compiles, too."""
    monkeypatch.setattr(executables, "_is_described", lambda *_: True)
    monkeypatch.setattr(executables, "describe_step", lambda *_: {"kind": "train"})
    others = []  # whether the others say "no" to each question
    monkeypatch.setattr(executables.processes, "max_over_processes", lambda mine: max(mine, others.pop(0)))

    def load(*answers):
        others[:] = answers
        ways = []

        def compile_step(*arguments, compile_program):
            lowered = DEVICES._jit_train(train_step).lower(*arguments)
            compile_now = lambda: ways.append("compiled") or lowered.compile()  # noqa: E731
            compile_program(SimpleNamespace(as_text=lowered.as_text, compile=compile_now))
            return ways

        result = executables.load_or_compile(store, "train", None, ARGUMENTS, compile_step)
        assert not others
        return result if isinstance(result, list) else ["loaded"]

    setting = jax.config.jax_enable_compilation_cache
    try:
        assert load(0, 1, 1) == ["compiled"] and not [*store.folder.iterdir()]  # another one cannot write
        assert load(0, 0, 0) == ["compiled"] and len([*store.folder.iterdir()]) == 2
        assert load(0) == ["loaded"]
        assert load(1, 1, 0) == ["compiled"]  # another one has lost its files: it writes them again
        assert load(1, 0) == []  # … or only those that find the program without tracing
    finally:
        jax.config.update("jax_enable_compilation_cache", setting)


def test_other_source_is_traced_and_the_same_program_is_loaded(start, monkeypatch, tmp_path):
    assert start() == ["traced", "kept"] and start() == ["loaded"]
    (tmp_path / ".#step.py").symlink_to("nobody@nowhere")
    monkeypatch.setattr(executables, "__file__", str(tmp_path / "training" / "executables.py"))  # other source
    executables.source_digest.cache_clear()
    assert start() == ["traced"] and start() == ["loaded"]
    monkeypatch.setattr(Store, "load", lambda *_: None)  # what stands there cannot be loaded any more
    assert start() == start() == ["traced", "cache"]
    executables.source_digest.cache_clear()


def test_what_cannot_be_kept_is_left_to_the_cache_of_jax(start, monkeypatch, tmp_path):
    folder = tmp_path / "executables"
    with monkeypatch.context() as patch:
        patch.setattr(executable_files, "_MIN_FREE_BYTES", 1 << 60)
        assert start() == start() == ["traced", "cache"]
    with monkeypatch.context() as patch:
        patch.setattr(
            executable_files.tempfile, "TemporaryFile", lambda **_: (_ for _ in ()).throw(OSError(30, "Read-only"))
        )
        assert start() == start() == ["traced", "cache"]
    folder.chmod(0o777)  # as another user's
    assert start() == start() == ["traced", "cache"]
    folder.chmod(0o700)
    assert not list(folder.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(executable_files.serialize_executable, "serialize", lambda *_: None)
        assert start() == ["traced", "kept"]  # once
    assert start() == start() == ["traced", "cache"]


def test_where_there_is_no_cache_there_is_no_store(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        for value, folder in ((str(tmp_path), tmp_path / "executables"), ("", None), ("gs://bucket/cache", None)):
            jax.config.update("jax_compilation_cache_dir", value)
            store = executables.open_store()
            assert (store.folder if store else None) == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", before)

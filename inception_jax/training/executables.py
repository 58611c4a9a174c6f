"""Keeps compiled steps as files: a start of the same run on the same machine does not trace, lower or compile them.

JAX's compilation cache saves XLA's compilation, not the tracing and lowering before it. Here a file with the executable
is found by the lowered program, and the program's digest by what decided the program: the package's source, the config
and the shapes. Both hold only with the same versions, settings of JAX, flags of XLA, processor and devices. All of that
is the key of the file (`executable_files.py`). A program whose executable cannot be kept is left to JAX's cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import optax
from jax.experimental.compilation_cache import compilation_cache

from inception_jax import extensions
from inception_jax.models import onednn, registry
from inception_jax.multihost import processes
from inception_jax.runs import environment, manifest
from inception_jax.training import step_numbers
from inception_jax.training.executable_files import Store
from inception_jax.training.parallel import Compiled
from inception_jax.training.setup import Setup

FOLDER = "executables"
"""Below the directory of the compilation cache."""

# Sections and fields that no step reads, except through the shapes of its arguments.
_OUTSIDE_SECTIONS = ("checkpoint", "evaluation", "initialize", "logging", "stop")
_OUTSIDE_FIELDS = (
    "augmentation.area", "augmentation.aspect", "augmentation.flip", "augmentation.interpolation",
    "augmentation.policy", "augmentation.policy_magnitude", "augmentation.policy_operations", "augmentation.resize",
    "augmentation.rule", "data.cache_mb", "data.data_dir", "data.max_pixels", "data.prefetch", "data.threads",
    "data.workers", "parallel.steps_per_execution",
)  # fmt: skip

_NOT_KEPT = b""
"""Content in the place of an executable that could not be written or loaded: JAX's cache keeps this program."""

# JAX's settings that name a place or what is printed, and so change no program.
_PLACES = ("cache", "dump", "log", "traceback", "profiler")
# Beside `manifest.PACKAGES`: distributions whose code compiles for GPUs or runs on them.
_GPU_PACKAGES = (
    "jax-cuda12-pjrt", "jax-cuda13-pjrt", "nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cuda-nvcc",
    "nvidia-cuda-nvcc-cu12", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13",
)  # fmt: skip


def open_store() -> Store | None:
    """The executables below the directory of the compilation cache.

    Returns:
      None: it is not set or not of this machine, on this process or on another one of the run.
    """
    directory = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # jax declares no types for it
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    usable = bool(directory) and enabled and "://" not in directory and hasattr(os, "geteuid")
    return Store(Path(directory) / FOLDER, describe_process()) if _on_all(usable) else None


@dataclasses.dataclass(frozen=True)
class Loading:
    """A step that a thread of its own loads.

    Attributes:
      step: its description.
      executable: the step; None: there is none, or it cannot be used.
    """

    step: dict[str, Any]
    executable: Future[jax.stages.Compiled | None]


def begin_loading(store: Store | None, kind: str, setup: Setup, arguments: Sequence[Any]) -> Loading | None:
    """Begins to load a step, for `load_or_compile`, and does not wait; the arguments are those of that function.

    Returns:
      None: nothing is kept.
    """
    if store is None or not _is_described(setup):
        return None
    step = describe_step(kind, setup, arguments)
    executor = ThreadPoolExecutor(1, "load-step")
    executable = executor.submit(_load, store, step, arguments)
    executor.shutdown(wait=False)
    return Loading(step, executable)


def _load(store: Store, step: dict[str, Any], arguments: Sequence[Any]) -> jax.stages.Compiled | None:
    program = store.read(step)
    return store.load({"program": program.hex()}, arguments) if program else None


def load_or_compile(
    store: Store | None,
    kind: str,
    setup: Setup,
    arguments: Sequence[Any],
    compile_step: Callable[..., Compiled],
    loading: Loading | None = None,
) -> Compiled:
    """Loads a step of a run, or compiles it and keeps it.

    Of several processes all load or all compile: compilers for GPUs divide their work and wait for one another.

    Args:
      store: from `open_store`.
      kind: of the step: each kind has one program in a run.
      setup: of the run.
      arguments: of the step, or their shapes with shardings.
      compile_step: `Devices.compile_train` or `compile_eval` of the step; called with the arguments where there is no
        executable.
      loading: of this step, begun before.
    """
    if store is None or not _is_described(setup):
        return compile_step(*arguments)
    start, step = time.perf_counter(), describe_step(kind, setup, arguments)
    loaded = loading.executable.result() if loading and loading.step == step else _load(store, step, arguments)
    if _on_all(loaded is not None):
        assert loaded is not None
        return Compiled(loaded, time.perf_counter() - start)

    def compile_program(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
        text = "\n".join([lowered.as_text(), *describe_arguments(arguments)])
        digest = hashlib.sha256(text.encode()).digest()
        key = {"program": digest.hex()}
        executable = store.load(key, arguments)
        if not _on_all(executable is not None):
            absent = executable is None and store.read(key) is None
            if executable is None and not absent:  # one that cannot be loaded here, or _NOT_KEPT
                store.write(key, _NOT_KEPT)
            if not _on_all(executable is not None or (absent and store.can_write())):
                return lowered.compile()
            with _without_compilation_cache():
                executable = lowered.compile()
            if not store.save(key, arguments, executable):
                store.write(key, _NOT_KEPT)
                return executable
        assert executable is not None
        store.write(step, digest)
        return executable

    return compile_step(*arguments, compile_program=compile_program)


@contextlib.contextmanager
def _without_compilation_cache() -> Iterator[None]:
    """Within the context JAX compiles what is in its cache, too: what it loads from there cannot be written again."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX reads the setting only once otherwise
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


def describe_step(kind: str, setup: Setup, arguments: Sequence[Any]) -> dict[str, Any]:
    """Describes what decides the program of a step, as a key of the store."""
    config = dict(manifest.flatten(setup.config.to_dict()))
    on_cpu = setup.devices.first_device.platform == "cpu"
    excluded = {*_OUTSIDE_FIELDS, *step_numbers.fields(setup)}  # the numbers are arguments of the step
    return {
        "kind": kind,
        "source": source_digest(),
        "config": {
            path: value
            for path, value in config.items()
            if path.partition(".")[0] not in _OUTSIDE_SECTIONS and path not in excluded
        },
        "model": repr(setup.model),
        "normalization": repr(setup.input.normalization),
        "length": [setup.length.steps_per_epoch, setup.length.total],
        "arguments": describe_arguments(arguments),
        # Its calls must be known to JAX before a program with them is loaded.
        "onednn": onednn.load().digest if on_cpu and setup.model.convolution.startswith("onednn") else None,
    }


def _on_all(value: bool) -> bool:
    """Whether it is so on all processes."""
    return not processes.max_over_processes(not value)


def _is_described(setup: Setup) -> bool:
    """Whether package and config tell all of the code of a step: not where a recipe or a script registered some."""
    return (
        not setup.config.extensions
        and setup.config.model.name in registry.BUILT_IN
        and type(setup.model).__module__.startswith("inception_jax.")
        and setup.config.optimizer.name not in extensions.OPTIMIZERS
    )


def describe_process() -> dict[str, Any]:
    """Describes what decides an executable beside its program: versions, settings, flags, processor and devices."""
    return {
        "versions": manifest.versions() | manifest.versions(_GPU_PACKAGES),
        "libraries": _libraries_digest(),
        "environment": environment.describe(),
        "settings": {
            name: str(value)
            for name, value in sorted(jax.config.values.items())
            if not any(word in name for word in _PLACES)
        },
        "processor": _processor(),
        "process": jax.process_index(),
    }


def describe_arguments(arguments: Sequence[Any]) -> list[str]:
    """Formats tree, shapes, dtypes and shardings of the arguments of a step, for a key."""
    leaves, structure = jax.tree.flatten(arguments)
    return [str(structure), *map(_describe_leaf, leaves)]


def _describe_leaf(leaf: Any) -> str:
    if isinstance(leaf, float):
        return "float"
    return f"{leaf.dtype}{list(leaf.shape)} {getattr(leaf, 'weak_type', False)} {getattr(leaf, 'sharding', '')}"


@functools.cache
def source_digest() -> str:
    """The SHA-256 of all Python files of this package, with their paths."""
    digest, root = hashlib.sha256(), Path(__file__).parents[1]
    for file in sorted(file for file in root.rglob("*.py") if file.is_file()):  # an editor's lock is a dangling link
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@functools.cache
def _libraries_digest() -> str:
    """The SHA-256 of path, size and time of JAX's, Flax's and Optax's files: a checkout changes without its version."""
    digest = hashlib.sha256()
    for library in (jax, jaxlib, flax, optax):
        for folder, _, names in sorted(os.walk(os.path.dirname(str(library.__file__)))):
            for name in sorted(names):
                path = os.path.join(folder, name)
                if name.endswith((".py", ".so")) and os.path.isfile(path):
                    status = os.stat(path)
                    digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _processor() -> str:
    """Model and all features of the first processor: code is generated for both."""
    names = ("vendor_id", "cpu family", "model", "stepping", "flags", "Features", "CPU ")
    return "\n".join(line for line in environment.processor_lines() if line.startswith(names))

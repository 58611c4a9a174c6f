"""Convolutions by oneDNN on CPUs, for `algorithm="onednn"` of `conv2d`: how they are built and called.

oneDNN is the library of PyTorch's convolutions on CPUs. It comes with the extra `onednn`; the calls of it (`onednn.cc`)
are compiled by the machine's C++ compiler when they are first needed, once per user and version. In a program they are
custom calls that know nothing but shapes: a stored program runs in every process that called `load`.

Float32 alone. Sums are taken in another order than XLA's. A kernel's gradient is a sum over parts of the batch, as many
as XLA has threads, 16 at most: with another number of threads its last bits differ.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import os
import shlex
import stat
import subprocess
import tempfile
from enum import IntEnum
from functools import partial
from pathlib import Path

import jax
import jaxlib
import numpy as np

from inception_jax.models.checks import ModelError

Pads = tuple[tuple[int, int], tuple[int, int]]
Strides = tuple[int, int]  # (rows, columns)

TARGET = "inception_jax_convolution"
"""The name of the custom call, and of its handler in `onednn.cc`."""

_SOURCE = Path(__file__).with_suffix(".cc")
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared")
_REMEDY = "or begin a run with model.convolution=fast"


class Kind(IntEnum):
    """Which convolution: the numbers are those of `onednn.cc`."""

    FORWARD = 0
    INPUT_GRADIENT = 1
    KERNEL_GRADIENT = 2


@functools.cache
def load() -> str:
    """Makes the calls known to JAX; builds them before, where this user has not yet.

    Returns:
      What decided their numbers: a digest of the source, the compiler's command and the versions of oneDNN and jaxlib.

    Raises:
      ModelError: oneDNN, or a C++ compiler where one is needed, is missing; names the remedy.
    """
    built = build()
    try:
        library = ctypes.CDLL(str(built))
    except OSError as error:
        raise ModelError(
            f"convolution = 'onednn': {built} cannot be loaded ({error}): remove it, or set XDG_CACHE_HOME to a "
            f"folder of this machine whose programs may run, {_REMEDY}"
        ) from None
    handler = getattr(library, TARGET)
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    return built.stem


def build() -> Path:
    """Builds the library of calls in the user's cache, unless it is there; returns its path. Raises as `load`."""
    library, headers, version = _find_onednn()
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or ["c++"]
    except ValueError as error:
        raise ModelError(f"convolution = 'onednn': CXX = {os.environ['CXX']!r}: {error}") from None
    command = [*compiler, *_FLAGS]
    command += [
        f"-I{headers}",
        f"-I{jax.ffi.include_dir()}",
        str(_SOURCE),
        str(library),
        f"-Wl,-rpath,{library.parent}",
    ]
    parts = [_SOURCE.read_text(), *command, version, jaxlib.__version__]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(cache, "inception_jax", "onednn")
    built = folder / f"{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:32]}.so"
    if not _is_trusted(built):
        _compile(command, built)
    return built


def _find_onednn() -> tuple[Path, Path, str]:
    """The library, the folder of its headers, and its version."""
    found = []
    for distribution, name in (("onednn-cpu-gomp", "libdnnl.so.3"), ("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.h")):
        try:
            files = importlib.metadata.files(distribution) or []
        except importlib.metadata.PackageNotFoundError:
            files = []
        found += [Path(str(file.locate())).resolve() for file in files if file.as_posix().endswith(name)][:1]
    if len(found) != 2:
        raise ModelError(
            "convolution = 'onednn': oneDNN is not installed: pip install 'inception_jax[onednn]' (Linux on x86-64), "
            + _REMEDY
        )
    return found[0], found[1].parents[2], importlib.metadata.version("onednn-cpu-gomp")


def _is_trusted(built: Path) -> bool:
    """Whether it is there, and nobody but this user can have written it."""
    try:
        return _is_private(os.stat(built.parent)) and _is_private(os.lstat(built))
    except OSError:
        return False


def _is_private(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compile(command: list[str], built: Path) -> None:
    """Compiles beside the place of the library, and moves it there when it is complete."""
    try:
        built.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = _is_private(os.stat(built.parent))
        if private:
            with tempfile.TemporaryDirectory(dir=built.parent, prefix=".new") as folder:
                new = Path(folder, built.name)
                _run([*command, "-o", str(new)])
                new.chmod(0o700)  # whatever the umask
                os.replace(new, built)
    except OSError as error:
        raise ModelError(f"convolution = 'onednn': {built.parent}: {error.strerror}; {_REMEDY}") from None
    if not private:
        raise ModelError(
            f"convolution = 'onednn': {built.parent} is another user's, or others can write it: chmod go-w it, or set "
            f"XDG_CACHE_HOME to a folder of your own, {_REMEDY}"
        )


def _run(command: list[str]) -> None:
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}
        )
    except OSError as error:
        raise ModelError(
            f"convolution = 'onednn': the C++ compiler {command[0]!r} does not start ({error.strerror}): install one, "
            f"such as g++, or name it in CXX, {_REMEDY}"
        ) from None
    if result.returncode:
        lines = [line.strip() for line in result.stderr.splitlines() if line.strip()] or ["no message"]
        reasons = [line for line in lines if any(word in line for word in ("error", "cannot find", "undefined"))]
        raise ModelError(
            f"convolution = 'onednn': {command[0]} cannot compile {_SOURCE}: {(reasons or lines)[0]}; take a compiler "
            f"of C++17 (CXX), {_REMEDY}"
        )


def forward(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution of x [B, H, W, C] with kernel [kh, kw, C, N]: [B, H', W', N], all float32."""
    sizes = (
        (size + sum(pad) - window) // stride + 1
        for size, pad, window, stride in zip(x.shape[1:3], pads, kernel.shape[:2], strides, strict=True)
    )
    return _convolve(Kind.FORWARD, (x.shape[0], *sizes, kernel.shape[3]), strides, pads, x, kernel)


def input_gradient(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of x [B, H, W, C], float32, given that of the output [B, H', W', N]."""
    return _convolve(Kind.INPUT_GRADIENT, x.shape, strides, pads, gradient, kernel)


def kernel_gradient(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of kernel [kh, kw, C, N], float32, given that of the output [B, H', W', N]."""
    return _convolve(Kind.KERNEL_GRADIENT, kernel.shape, strides, pads, x, gradient)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _convolve(
    kind: Kind, shape: tuple[int, ...], strides: Strides, pads: Pads, first: jax.Array, second: jax.Array
) -> jax.Array:
    result = jax.typeof(first).update(shape=shape)  # within a `shard_map` it varies over the same axes
    window = np.array([*strides, *pads[0], *pads[1]], np.int64)
    return jax.ffi.ffi_call(TARGET, result, vmap_method="sequential")(first, second, kind=np.int64(kind), window=window)


def _convolve_forward(kind, shape, strides, pads, first, second):
    return _convolve(kind, shape, strides, pads, first, second), (first, second)


def _convolve_backward(kind, shape, strides, pads, operands, cotangent):
    """Each kind is linear in both operands, and its transposes are the other two kinds."""
    first, second = operands
    of_first, of_second = {
        Kind.FORWARD: ((Kind.INPUT_GRADIENT, cotangent, second), (Kind.KERNEL_GRADIENT, first, cotangent)),
        Kind.INPUT_GRADIENT: ((Kind.FORWARD, cotangent, second), (Kind.KERNEL_GRADIENT, cotangent, first)),
        Kind.KERNEL_GRADIENT: ((Kind.INPUT_GRADIENT, second, cotangent), (Kind.FORWARD, first, cotangent)),
    }[kind]
    return (
        _convolve(of_first[0], first.shape, strides, pads, *of_first[1:]),
        _convolve(of_second[0], second.shape, strides, pads, *of_second[1:]),
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)

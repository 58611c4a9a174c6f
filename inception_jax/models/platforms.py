"""The forms of a layer for each platform: the program takes one when it is lowered; a trace may hold one alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax import lax

_SHAPES = "shapes"
TRACED_FOR: Any = jax.make_user_context(None)
"""`with TRACED_FOR("tpu"): ...`: what is traced in it is for that platform alone; None, the default: for every one.

Without it a trace holds the forms of all platforms: GoogLeNet's training step takes 4.7 processor seconds to trace and
lower, with it 3.6 (64 pixels, jax 0.10.2, medians of 4, in turn). JAX's caches know the value: a trace for one platform
is not taken for another.
"""


def platform_dependent(
    *operands: jax.Array, default: Callable[..., jax.Array], **forms: Callable[..., jax.Array]
) -> jax.Array:
    """`jax.lax.platform_dependent`; inside `TRACED_FOR` only the form of its platform.

    Args:
      *operands: of the form.
      default: the form of all other platforms.
      **forms: by platform: "cpu", "cuda", "tpu".
    """
    platform = TRACED_FOR.value
    if platform is None:
        return lax.platform_dependent(*operands, default=default, **forms)
    # For shapes those for TPUs, which are traced quickest.
    return forms.get("tpu" if platform == _SHAPES else platform, default)(*operands)


def traced_for_shapes() -> AbstractContextManager[None]:
    """What is traced inside is for shapes alone: a layer that keeps them may return what it was given.

    A process's first `variable_shapes` takes 0.11 processor seconds of GoogLeNet instead of 0.28, of Inception-v4 0.26
    instead of 0.5 (x86-64, jax 0.10.2, medians of 3, in turn).
    """
    return TRACED_FOR(_SHAPES)


def is_traced_for_shapes() -> bool:
    """Returns whether it runs inside `traced_for_shapes`."""
    return TRACED_FOR.value == _SHAPES


@contextlib.contextmanager
def traced_for_device(device: jax.Device) -> Iterator[None]:
    """What is traced inside is for this device alone; for a GPU, of which there are several kinds, it is for all.

    A mesh that the program has set (`jax.set_mesh`) is not that of what is traced inside, and is left meanwhile.
    """
    with TRACED_FOR(device.platform if device.platform in ("cpu", "tpu") else TRACED_FOR.value), jax.set_mesh(None):
        yield


def count_cpu_threads() -> int:
    """Returns the number of XLA's threads on CPUs, where there are not more JAX devices than these.

    The variables are its own (`DefaultThreadPoolSize` of xla/pjrt/utils.cc).
    """
    for name in ("PJRT_NPROC", "NPROC"):
        if (number := os.environ.get(name, "")).isdecimal():
            return max(1, int(number))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

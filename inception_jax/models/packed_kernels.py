"""Forward passes by oneDNN whose kernels are laid out by an operation of their own, which can run in advance.

oneDNN takes kernels in layouts of its own, and Winograd's filtering takes matrices. A call of `onednn.forward` makes
them in every pass; inside `PACKS_KERNELS(True)` another operation does, which depends on the kernel alone:
`prepared_weights.py` runs it once for many passes. The numbers are the same.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.models import onednn
from inception_jax.models.onednn import Pads, Strides
from inception_jax.models.platforms import count_cpu_threads

PACKS_KERNELS: Any = jax.make_user_context(False)
"""`with PACKS_KERNELS(True): ...`: convolutions that are traced in it pack their kernels. They have no gradients."""


def gains(algorithm: str) -> bool:
    """Whether a network's forward passes are faster with packed kernels, by its algorithm of convolutions on CPUs."""
    return algorithm.startswith("onednn")


def forward(strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, *, winograd: bool = False) -> jax.Array:
    """As `onednn.forward`."""
    shape = onednn.output_shape(strides, pads, x, kernel)
    filters = winograd and x.dtype == jnp.float32 and onednn.takes_winograd(strides, kernel.shape, shape)
    packing = _find_packing(strides, pads, x, kernel, filters=filters)
    if packing is None:
        return onednn.forward(strides, pads, x, kernel, winograd=winograd)
    return packing.convolve(x, packing.pack(kernel), jnp.zeros((2, 0), jnp.float32), shape)


def scaled_forward(
    strides: Strides, pads: Pads, x: jax.Array, kernel: jax.Array, coefficients: jax.Array, *, relu: bool
) -> jax.Array:
    """As `onednn.scaled_forward`."""
    packing = _find_packing(strides, pads, x, kernel, scales=True, relu=relu)
    if packing is None:
        return onednn.scaled_forward(strides, pads, x, kernel, coefficients, relu=relu)
    return packing.convolve(x, packing.pack(kernel), coefficients, onednn.output_shape(strides, pads, x, kernel))


class _Packing(NamedTuple):
    """A convolution whose kernel is packed.

    Attributes:
      maps: (images, rows, columns).
      kernel: the kernel's shape, [kh, kw, C, N].
      window: strides, then pads (above, below, left, right), in pixels.
      threads: among which it is divided; oneDNN's layouts of the kernel depend on the parts.
      bfloat16: whether the maps are bfloat16.
      bfloat16_kernel: whether the kernel is.
      filters: whether it is by Winograd's filtering.
      scales: whether coefficients follow, as in `onednn.scaled_forward`.
      relu: whether a ReLU follows them.
    """

    maps: tuple[int, ...]
    kernel: tuple[int, ...]
    window: tuple[int, ...]
    threads: int
    bfloat16: bool
    bfloat16_kernel: bool
    filters: bool
    scales: bool
    relu: bool

    def pack(self, kernel: jax.Array) -> jax.Array:
        """Lays a kernel out: uint8 [bytes]."""
        result = jax.typeof(kernel).update(shape=(_count_bytes(self),), dtype=jnp.uint8)
        call = jax.ffi.ffi_call(onednn.PACK_TARGET, result, vmap_method="sequential")
        return call(kernel, maps=np.array(self.maps), bfloat16=np.bool_(self.bfloat16), **self._attributes())

    def convolve(self, x: jax.Array, packed: jax.Array, coefficients: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Convolves maps with a packed kernel, to `shape`; coefficients: [2, N], or [2, 0] where none follow."""
        call = jax.ffi.ffi_call(onednn.PACKED_TARGET, jax.typeof(x).update(shape=shape), vmap_method="sequential")
        attributes = self._attributes() | {"bfloat16_kernel": np.bool_(self.bfloat16_kernel)}
        return call(x, packed, coefficients, kernel=np.array(self.kernel), **attributes)

    def _attributes(self) -> dict[str, Any]:
        switches = {name: np.bool_(getattr(self, name)) for name in ("filters", "scales", "relu")}
        return {"window": np.array(self.window), "threads": np.int64(self.threads), **switches}


def _find_packing(
    strides: Strides,
    pads: Pads,
    x: jax.Array,
    kernel: jax.Array,
    *,
    filters: bool = False,
    scales: bool = False,
    relu: bool = False,
) -> _Packing | None:
    """How the kernel is packed; None: it is not: oneDNN takes it as it is, or nobody asks for it."""
    if not PACKS_KERNELS.value:
        return None
    packing = _Packing(
        x.shape[:3],
        kernel.shape,
        (*strides, *pads[0], *pads[1]),
        max(count_cpu_threads(), len(jax.local_devices(backend="cpu"))),  # XLA has a thread for each device
        x.dtype == jnp.bfloat16,
        kernel.dtype == jnp.bfloat16,
        filters,
        scales,
        relu,
    )
    return packing if _count_bytes(packing) > 0 else None


@functools.cache
def _count_bytes(packing: _Packing) -> int:
    """Bytes of the packed kernel; 0: the convolution takes it as it is; -1: oneDNN does not know the convolution."""
    numbers = [*packing.maps, *packing.kernel, *packing.window, packing.threads]
    return onednn.load().count_packed_bytes((ctypes.c_int64 * len(numbers))(*numbers), *packing[4:])

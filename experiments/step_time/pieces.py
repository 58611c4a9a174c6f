"""Times pieces of the networks in several forms, forward and gradients, to choose the form for an accelerator.

    python experiments/step_time/pieces.py [--batch_size=256] [--dtype=bfloat16] [--json=FILE]

Compare forms within one run only. A form that is not the package's own is defined here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inception_jax.models import space_to_depth
from inception_jax.models.layers import add_bias
from inception_jax.models.lrn import local_response_norm
from inception_jax.models.pooling import max_pool
from inception_jax.runs.tables import format_markdown


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece in one form.

    Attributes:
      name: the piece.
      form: how it is computed.
      run: the function, of arrays to an array.
      shapes: shapes of the arrays that have a gradient.
      images: whether uint8 images [B, 224, 224, 3] come first; they have none.
    """

    name: str
    form: str
    run: Callable[..., jax.Array]
    shapes: tuple[tuple[int, ...], ...]
    images: bool = False


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Any = "SAME") -> jax.Array:
    """XLA's convolution of NHWC maps."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def pieces(batch: int, dtype: Any) -> Iterator[Piece]:
    """All pieces in all forms."""

    def normalize(images: jax.Array) -> jax.Array:
        return (images.astype(jnp.float32) * (1 / 127.5) - 1).astype(dtype)

    def stem(channels: int, pads: Any) -> Callable[..., jax.Array]:
        def run(images: jax.Array, kernel: jax.Array) -> jax.Array:
            more = (0, channels - 3)
            x = jnp.pad(normalize(images), ((0, 0), (0, 0), (0, 0), more))
            kernel = jnp.pad(kernel, ((0, 0), (0, 0), more, (0, 0)))
            return jax.nn.relu(conv(x, kernel, 2, pads))

        return run

    def rearranged_stem(pads: Any) -> Callable[..., jax.Array]:
        return lambda images, kernel: jax.nn.relu(
            space_to_depth.forward((2, 2), pads, normalize(images), kernel.astype(dtype))
        )

    for window, outputs, pads in ((7, 64, ((2, 3), (2, 3))), (3, 32, ((0, 0), (0, 0)))):
        name, shape = f"stem {window}x{window}/2 @224, 3 -> {outputs}", (window, window, 3, outputs)
        for channels in (3, 4, 8):
            yield Piece(name, f"{channels} channels", stem(channels, pads), (shape,), images=True)
        yield Piece(name, "space to depth", rearranged_stem(pads), (shape,), images=True)

    for stride, shape in ((2, (batch, 112, 112, 64)), (1, (batch, 28, 28, 256))):
        name = f"max pool 3x3/{stride} of {shape[1]}x{shape[2]}x{shape[3]}"
        yield Piece(name, "ours", lambda x, stride=stride: max_pool(x, 3, stride), (shape,))
        window, strides = (1, 3, 3, 1), (1, stride, stride, 1)
        yield Piece(
            name,
            "reduce_window",
            lambda x, window=window, strides=strides: lax.reduce_window(
                x, np.array(-np.inf, x.dtype), lax.max, window, strides, "SAME"
            ),
            (shape,),
        )

    index = np.arange(192)
    band = (abs(index[:, None] - index) <= 2).astype(np.float32)

    def lrn_band(x: jax.Array) -> jax.Array:
        total = jnp.einsum("bhwc,cd->bhwd", x * x, band.astype(x.dtype), preferred_element_type=jnp.float32)
        return (x.astype(jnp.float32) * (1 + 2e-5 * total) ** -0.75).astype(x.dtype)

    shape = (batch, 56, 56, 192)
    yield Piece("LRN of 56x56x192", "ours", local_response_norm, (shape,))
    yield Piece("LRN of 56x56x192", "band product, automatic gradient", lrn_band, (shape,))

    def apart(x: jax.Array, *kernels: jax.Array) -> jax.Array:
        return jnp.concatenate([jax.nn.relu(conv(x, kernel)) for kernel in kernels], -1)

    def fused(x: jax.Array, *kernels: jax.Array) -> jax.Array:
        return jax.nn.relu(conv(x, jnp.concatenate(kernels, -1)))

    shapes = ((batch, 28, 28, 192), *((1, 1, 192, width) for width in (64, 96, 16)))
    yield Piece("the three 1x1 on the input of 3a, ReLU", "apart", apart, shapes)
    yield Piece("the three 1x1 on the input of 3a, ReLU", "fused", fused, shapes)

    @jax.custom_vjp
    def relu_by_output(x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)

    def forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = lax.optimization_barrier(jax.nn.relu(x))
        return y, y

    relu_by_output.defvjp(forward, lambda y, gradient: (jnp.where(y > 0, gradient, 0),))
    shapes = ((batch, 56, 56, 64), (3, 3, 64, 192), (192,))
    name = "3x3 on 56x56, 64 -> 192, bias, ReLU"
    yield Piece(name, "ours", lambda x, k, b: jax.nn.relu(add_bias(conv(x, k), b)), shapes)
    yield Piece(name, "ReLU by output", lambda x, k, b: relu_by_output(add_bias(conv(x, k), b)), shapes)


def measure(piece: Piece, batch: int, dtype: Any, blocks: int, calls: int) -> dict[str, Any]:
    """Times value and gradients of the sum of squares of a piece's output; milliseconds a call, median of blocks."""
    rng = np.random.default_rng(0)
    operands = [jnp.asarray(rng.standard_normal(shape) * 0.1, dtype) for shape in piece.shapes]
    images = [jnp.asarray(rng.integers(0, 256, (batch, 224, 224, 3), np.uint8))] if piece.images else []

    def loss(operands: list[jax.Array], images: list[jax.Array]) -> jax.Array:
        return jnp.sum(piece.run(*images, *operands).astype(jnp.float32) ** 2)

    compiled = jax.jit(jax.value_and_grad(loss)).lower(operands, images).compile()
    jax.block_until_ready(compiled(operands, images))
    took = []
    for _ in range(blocks):
        start = time.perf_counter()
        for _ in range(calls):
            result = compiled(operands, images)
        jax.block_until_ready(result)
        took.append(1e3 * (time.perf_counter() - start) / calls)
    return {"piece": piece.name, "form": piece.form, "ms": statistics.median(took), "blocks": took}


def main() -> None:
    """Prints a table, and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--blocks", type=int, default=9, help="timed blocks of calls")
    parser.add_argument("--calls", type=int, default=30, help="calls per block")
    parser.add_argument("--json", metavar="FILE")
    flags = parser.parse_args()
    rows = []
    for piece in pieces(flags.batch_size, flags.dtype):
        rows.append(measure(piece, flags.batch_size, flags.dtype, flags.blocks, flags.calls))
        print(f"{piece.name}, {piece.form}: {rows[-1]['ms']:.3f} ms", flush=True)
    cells = [(row["piece"], row["form"], f"{row['ms']:.2f}") for row in rows]
    print("\n".join(["", *format_markdown(("piece, forward and gradients", "form", "ms"), cells, "llr")]))
    if flags.json:
        device, version = jax.devices()[0].device_kind, jax.__version__
        with open(flags.json, "w", encoding="utf-8") as file:
            json.dump({"device": device, "jax": version, **vars(flags), "pieces": rows}, file, indent=1)


if __name__ == "__main__":
    main()

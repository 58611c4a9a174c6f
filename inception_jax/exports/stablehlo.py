"""Exports networks as portable StableHLO programs (`jax.export`), which run in any JAX program without our code."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from inception_jax.errors import UserError, nearest
from inception_jax.exports.image_size import height_and_width
from inception_jax.models.base import BaseNetwork
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.platforms import TRACED_FOR, traced_for_shapes
from inception_jax.weight_files.atomic_write import atomic_write

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export_stablehlo(
    model: BaseNetwork,
    variables: Mapping[str, Any] | None,
    image_size: int | tuple[int, int],
    path: str | os.PathLike,
    *,
    abstract_variables: Any = None,
    endpoints: Sequence[str] = (),
    batch: int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> export.Exported:
    """Writes the inference graph of a network as a StableHLO program.

    Run the file with `jax.export.deserialize(bytes).call(images)`, or `.call(variables, images)` where the
    weights are not inside. It cannot be differentiated.

    Args:
      model: the network.
      variables: the weights, which become constants in the file; None: they are the program's first argument.
      image_size: of the images, in pixels: one number, or (height, width).
      path: the file; an existing one is replaced when the new one is complete.
      abstract_variables: where `variables` is None: the shapes and dtypes of the first argument, as arrays or
        `jax.ShapeDtypeStruct`s; None: those of `model.init`, without the auxiliary heads, which inference does not
        read.
      endpoints: further outputs by name, ours or slim's.
      batch: images per call; None: any number from 1 on, a symbolic dimension.
      platforms: where the program will run, of `PLATFORMS`; each adds its own variant of the convolutions.

    Returns:
      What was written. The program takes normalized images [batch, height, width, in_channels] in the model's dtype,
      and returns {"logits": [batch, num_classes], endpoint: …}.

    Raises:
      UserError: no platform, or an unknown one; an invalid image size; or the file cannot be written.
      ModelError: an unknown endpoint, or images of a size that the network does not accept.
    """
    if not platforms:
        raise UserError(f"platforms: the list is empty; allowed: {', '.join(PLATFORMS)}")
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(
                f"platforms: unknown platform {platform!r}{nearest(platform, PLATFORMS)}; allowed: "
                f"{', '.join(PLATFORMS)}"
            )
    height, width = height_and_width(image_size)
    model = model.clone(convolution="fast")  # the file runs where oneDNN is not, too

    def run(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        output = cast(InceptionOutput, model.apply(variables, images, train=False))
        named = {name: output.endpoint(name) for name in endpoints if name != "logits"}
        return {"logits": output.logits, **named}

    program: Callable[..., dict[str, jax.Array]]
    arguments: tuple[Any, ...]
    rows = export.symbolic_shape("batch")[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((rows, height, width, model.in_channels), jnp.dtype(model.dtype))
    if variables is None:
        if abstract_variables is None:
            one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
            with traced_for_shapes():
                made = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), one)
            abstract_variables = {
                collection: {name: layer for name, layer in layers.items() if not name.startswith("aux")}
                for collection, layers in made.items()
            }
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), dict(abstract_variables))
        program, arguments = run, (shapes, images)
    else:
        constants = jax.tree.map(np.asarray, dict(variables))
        program, arguments = functools.partial(run, constants), (images,)
    with TRACED_FOR(platforms[0] if len(platforms) == 1 else None):
        exported = export.export(jax.jit(program), platforms=platforms)(*arguments)
    content = exported.serialize()
    with atomic_write(path) as part:
        part.write_bytes(content)
    return exported

"""Operands inside a shard_map: what JAX knows to vary over devices, and what it need not be told."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from inception_jax.models.varying_axes import match_varying_axes


@pytest.mark.parametrize("check", [True, False])
def test_only_an_operand_that_varies_over_fewer_axes_changes(check):
    changed, axes = [], []

    def product(replicated, split):
        matched = match_varying_axes(replicated, split)
        changed.extend(new is not old for new, old in zip(matched, (replicated, split), strict=True))
        axes.extend(jax.typeof(operand).manual_axis_type.varying for operand in matched)
        return matched[0] * matched[1]

    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec("data")}
    run = jax.shard_map(product, mesh=mesh, check_vma=check, **specs)
    assert run(jnp.float32(3), jnp.arange(4.0)).tolist() == [0, 3, 6, 9]
    assert changed == [check, False]
    assert axes == [{"data"} if check else set()] * 2


def test_outside_of_a_shard_map_nothing_changes():
    operands = jnp.ones(2), jnp.ones(2)
    assert all(new is old for new, old in zip(match_varying_axes(*operands), operands, strict=True))

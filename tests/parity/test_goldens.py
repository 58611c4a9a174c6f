"""Our networks give the logits of networks written a second time in PyTorch, in float64.

The files make_goldens_*.py have those networks, and hold them in turn beside the publishers' own.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax import create_model
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import variable_shapes

from . import make_goldens_resnet, make_goldens_v1_v4, make_goldens_v2_v3
from .torch_layers import NUM_CLASSES, make_images, seeded

CASES = [
    pytest.param(maker.FILE, name, case, id=f"{group}-{name}", marks=[pytest.mark.slow] if case.get("slow") else [])
    for group, maker in (("v1_v4", make_goldens_v1_v4), ("v2_v3", make_goldens_v2_v3), ("resnet", make_goldens_resnet))
    for name, case in maker.CASES.items()
]


@pytest.mark.parametrize("file, name, case", CASES)
def test_logits_equal_the_golden_ones(file, name, case, x64):
    with np.load(file) as goldens:
        shapes = {key: tuple(shape) for key, shape in json.loads(goldens[f"{name}/shapes"].tobytes()).items()}
        expected = [goldens[f"{name}/{i}"] for i in range(sum(f"{name}/{i}" in goldens for i in range(3)))]
    options = case.get("options", {})
    if case["train"] and "inception_v1" in case["model"]:
        options = options | {"aux_dropout_rate": 0.0}
    if "only" in case:
        options = options | {"modules": {module: MODULES[module] for module in case["only"]}}
    counts = dict(zip(("block35_count", "block17_count", "block8_count"), case.get("counts", ()), strict=False))
    model = create_model(
        case["model"],
        num_classes=NUM_CLASSES,
        width_multiplier=case["width"],
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        dropout_rate=0.0,
        **counts,
        **options,
    )
    images = make_images(case["batch"], case["size"])

    # The reference names every variable that it used: our tree is the same, but for the heads that it did not run.
    tree = flatten_dict(variable_shapes(model, case["size"]), sep="/")
    if not case["train"]:
        tree = {key: leaf for key, leaf in tree.items() if "/aux" not in key}
    assert {key: leaf.shape for key, leaf in tree.items()} == shapes

    variables = unflatten_dict({key: seeded(key, shape) for key, shape in shapes.items()}, sep="/")
    # A batch of full size computes for longer than it compiles: half of the time is saved where LLVM optimizes it.
    quick = {"compiler_options": {"xla_backend_optimization_level": 2}} if case["train"] and case["size"] > 250 else {}
    run = jax.jit(lambda v, x: model.apply(v, x, train=case["train"], mutable=["batch_stats"])[0], **quick)
    output = run(variables, images)
    for ours, theirs in zip([output.logits, *output.aux_logits], expected, strict=True):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())

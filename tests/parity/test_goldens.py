"""Our networks give the logits of networks written a second time in PyTorch (make_goldens_v1_v4.py), in float64."""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax import create_model
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import variable_shapes

MAKER = runpy.run_path(str(pathlib.Path(__file__).with_name("make_goldens_v1_v4.py")))
CASES, FILE, NUM_CLASSES = MAKER["CASES"], MAKER["FILE"], MAKER["NUM_CLASSES"]
make_images, seeded = MAKER["make_images"], MAKER["seeded"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if case.get("slow") else name for name, case in CASES.items()]
)
def test_logits_equal_the_golden_ones(name, x64):
    case = CASES[name]
    with np.load(FILE) as goldens:
        shapes = {key: tuple(shape) for key, shape in json.loads(goldens[f"{name}/shapes"].tobytes()).items()}
        expected = [goldens[f"{name}/{i}"] for i in range(sum(f"{name}/{i}" in goldens for i in range(3)))]
    no_dropout = {"dropout_rate": 0.0}
    if case["train"] and case["model"] != "inception_v4":
        no_dropout["aux_dropout_rate"] = 0.0
    options = case.get("options", {})
    if "only" in case:
        options = options | {"modules": {module: MODULES[module] for module in case["only"]}}
    model = create_model(
        case["model"],
        num_classes=NUM_CLASSES,
        width_multiplier=case["width"],
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        **no_dropout,
        **options,
    )
    images = make_images(case["batch"], case["size"])

    # The reference names every variable that it used: our tree is the same, but for the heads that it did not run.
    tree = flatten_dict(variable_shapes(model, case["size"]), sep="/")
    if not case["train"]:
        tree = {key: leaf for key, leaf in tree.items() if "/aux" not in key}
    assert {key: leaf.shape for key, leaf in tree.items()} == shapes

    variables = unflatten_dict({key: seeded(key, shape) for key, shape in shapes.items()}, sep="/")
    run = jax.jit(lambda v, x: model.apply(v, x, train=case["train"], mutable=["batch_stats"])[0])
    output = run(variables, images)
    for ours, theirs in zip([output.logits, *output.aux_logits], expected, strict=True):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())

"""The Inception-ResNets give the logits of networks written a second time in PyTorch, in float64.

make_goldens_resnet.py has those networks, and holds them in turn beside timm's, pytorchcv's and facenet-pytorch's.
"""

import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from inception_jax import create_model
from inception_jax.models.initialization import variable_shapes

MAKER = runpy.run_path(str(pathlib.Path(__file__).with_name("make_goldens_resnet.py")))
CASES, FILE, NUM_CLASSES = MAKER["CASES"], MAKER["FILE"], MAKER["NUM_CLASSES"]
make_images, seeded = MAKER["make_images"], MAKER["seeded"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if case.get("slow") else name for name, case in CASES.items()]
)
def test_logits_equal_the_golden_ones(name, x64):
    case = CASES[name]
    with np.load(FILE) as goldens:
        shapes = {key: tuple(shape) for key, shape in json.loads(goldens[f"{name}/shapes"].tobytes()).items()}
        expected = [goldens[f"{name}/{i}"] for i in range(sum(f"{name}/{i}" in goldens for i in range(2)))]
    counts = dict(zip(("block35_count", "block17_count", "block8_count"), case.get("counts", (0, 0, 0)), strict=True))
    model = create_model(
        case["model"],
        num_classes=NUM_CLASSES,
        width_multiplier=case["width"],
        dtype=jnp.float64,
        param_dtype=jnp.float64,
        dropout_rate=0.0,
        **counts,
        **case.get("options", {}),
    )
    images = make_images(case["batch"], case["size"])

    # The reference names every variable that it used: our tree is the same.
    tree = flatten_dict(variable_shapes(model, case["size"]), sep="/")
    assert {key: leaf.shape for key, leaf in tree.items()} == shapes

    variables = unflatten_dict({key: seeded(key, shape) for key, shape in shapes.items()}, sep="/")
    run = jax.jit(lambda v, x: model.apply(v, x, train=case["train"], mutable=["batch_stats"])[0])
    output = run(variables, images)
    for ours, theirs in zip([output.logits, *output.aux_logits], expected, strict=True):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11 * np.abs(theirs).max())

"""StableHLO files: run by a process that has JAX and nothing of ours."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from inception_jax.errors import UserError
from inception_jax.exports.stablehlo import export_stablehlo
from inception_jax.models.checks import ModelError
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.registry import get_spec, model_names

CLOSE = 2e-6  # what rounding to float32 leaves, against float64
# `sys.modules[...] = None` makes every import of the package an error.
STRANGER = """
import sys
sys.modules["inception_jax"] = sys.modules["flax"] = None
import jax, numpy as np
given = np.load(sys.argv[2])
call = jax.export.deserialize(open(sys.argv[1], "rb").read()).call
found = [call(images) for images in (given["images"], given["images"][:1])]
np.savez(sys.argv[3], **found[0], one=found[1]["logits"])
"""


@pytest.mark.parametrize("name", ["inception_v1", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_a_program_without_our_code_runs_it(name, network_of, outputs, make_images, difference, tmp_path):
    options = {"modules": {module: MODULES[module] for module in ("3a", "4a", "4d")}} if name == "inception_v1" else {}
    model, variables = network_of(name, min_width=4, **options)
    height, width = get_spec(name).min_image_size + 5, get_spec(name).min_image_size + 2
    images = make_images(3, height, width)
    end = {"inception_v1": "Mixed_4e", "inception_v3": "mixed_6e"}[name]
    exported = export_stablehlo(model, variables, (height, width), tmp_path / "a.stablehlo", endpoints=[end])
    assert exported.platforms == ("cpu", "cuda", "tpu")
    np.savez(tmp_path / "given.npz", images=images)
    paths = [str(tmp_path / file) for file in ("a.stablehlo", "given.npz", "found.npz")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *paths],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    logits, features = outputs.exact(model, variables, images, "logits", end)
    with np.load(tmp_path / "found.npz") as found:
        assert difference(found["logits"], logits) < CLOSE
        assert difference(found["one"], logits[:1]) < CLOSE
        assert difference(found[end], features) < CLOSE


def test_weights_as_arguments(network_of, outputs, make_images, difference, tmp_path):
    model, variables = network_of("inception_v1_bn", min_width=4)
    # Heads that are there, and options of theirs, make no difference.
    headed = model.clone(aux_heads=True, aux_dropout_rate=0.5)
    export_stablehlo(headed, None, 40, tmp_path / "a", batch=2, platforms=["cpu"], endpoints=["logits"])
    again = jax.export.deserialize((tmp_path / "a").read_bytes())
    assert (tmp_path / "a").stat().st_size < 400_000  # no weights inside: they alone would be more
    images = make_images(2, 40, 40)
    found = again.call(variables, images)["logits"]
    assert difference(found, outputs.exact(model, variables, images, "logits")[0]) < CLOSE
    with pytest.raises(ValueError, match="2"):
        again.call(variables, images[:1])


LARGE = ("inception_v4", "inception_resnet_v1", "inception_resnet_v2")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in model_names()]
)
def test_every_network_for_any_number_of_images(name, network_of, tmp_path):
    model, _ = network_of(name)
    size = get_spec(name).min_image_size + 10
    exported = export_stablehlo(model, None, size, tmp_path / "a", platforms=["cpu"])
    (logits,) = exported.out_avals
    assert str(logits.shape) == "(batch, 7)"
    assert str(exported.in_avals[-1].shape) == f"(batch, {size}, {size}, 3)"


def test_what_is_refused(network_of, tmp_path):
    model, variables = network_of("inception_v1")
    with pytest.raises(UserError, match="unknown platform 'cud'; did you mean 'cuda'"):
        export_stablehlo(model, variables, 32, tmp_path / "a", platforms=["cud"])
    with pytest.raises(ModelError, match="no endpoint 'inception_9'"):
        export_stablehlo(model, variables, 32, tmp_path / "a", endpoints=["inception_9"])
    with pytest.raises(UserError, match="cannot write"):
        export_stablehlo(model, variables, 32, tmp_path / "no" / "a", platforms=["cpu"])

"""Prints ours beside fid_end_to_end.json: the tools' metrics of the same images, with the same seeded weights.

    python tests/features/compare_end_to_end.py [float64 float32]

4 CPU-minutes; a line for each tool and dtype comes before the table, which is JSON.
"""

import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

try:
    from . import make_fid_end_to_end as inputs
except ImportError:  # as a script
    import make_fid_end_to_end as inputs

from inception_jax import load_pretrained
from inception_jax.features import fid_network, frechet_estimates, generative_metrics, image_sets
from inception_jax.features.maximum_mean_discrepancy import squared_mmd
from inception_jax.features.prediction_divergence import inception_score
from inception_jax.training import parallel
from inception_jax.training.compilation import Programs

HERE = Path(__file__).parent


def our_numbers(dtype, tool, network, sets, programs):
    """{metric: value} of ours, with a tool's input rule; `programs` are shared by rules with one normalization."""
    metrics = ["fid", "kid"]
    if tool == "torch-fidelity":
        metrics += ["is", "precision", "recall", "density", "coverage", "sfid"]
    rule = fid_network.FeatureNetwork(network, fid_network.INPUT_RULES[tool], "global_pool")
    vars(rule)["_programs"] = programs.setdefault(rule.rule.scale, Programs())
    options = generative_metrics.Options(splits=inputs.SPLITS, batch_size=10, **inputs.KID)
    measured = [
        generative_metrics.measure(image_sets.of_arrays(images), role, metrics, rule, options=options)
        for role, images in sets.items()
    ]
    found = generative_metrics.compute(*measured, metrics, options)
    x, y = (one.rows["pool"] for one in measured)
    assert x.dtype == dtype and x.shape[1] == 2048
    found["fid_of_4"] = frechet_estimates.distance_of_rows(x[:, ::512], y[:, ::512])
    found["kid_whole"] = squared_mmd(x.astype(np.float64), y.astype(np.float64))
    if tool == "torch-fidelity":
        found["is_whole"] = inception_score(measured[1].rows["logits"], splits=1, seed=None).mean
    return found


def compared(theirs, ours):
    """{metric: [theirs, ours, relative difference]}."""
    return {
        name: [value, ours[name], abs(ours[name] - value) / max(abs(value), 1e-12)] for name, value in theirs.items()
    }


def run_ours(dtypes):
    """Prints {dtype: {tool: {metric: [theirs, ours, relative difference]}}}, and "wide" in place of a dtype."""
    parallel.enable_compilation_cache()
    theirs, table = json.loads((HERE / "fid_end_to_end.json").read_text()), {}
    with tempfile.TemporaryDirectory() as folder:
        inputs.made.write_weights(f"{folder}/weights.npz")
        network = load_pretrained(f"{folder}/weights.npz")
    for dtype in dtypes:
        sets, programs, table[dtype] = inputs.image_sets(dtype), {}, {}
        with jax.enable_x64(dtype == "float64"):
            one = dataclasses.replace(
                network,
                model=network.model.clone(dtype=np.dtype(dtype)),
                variables=jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), network.variables),
                input=dataclasses.replace(network.input, dtype=np.dtype(dtype)),
            )
            for tool in inputs.TOOLS:
                ours = our_numbers(dtype, tool, one, sets, programs)
                names = [tool] + ["prdc", "ADM"] * (tool == "torch-fidelity")
                table[dtype] |= {name: compared(theirs[dtype][name], ours) for name in names}
                print(dtype, tool, table[dtype][tool], f"{time.process_time():.0f} CPU-s", file=sys.stderr, flush=True)
    fid = frechet_estimates.distance_of_rows(*inputs.wide_features())
    table["wide"] = {tool: compared(numbers, {"fid": fid}) for tool, numbers in theirs["wide"].items()}
    print(json.dumps(table))


if __name__ == "__main__":
    run_ours(sys.argv[1:] or ["float64", "float32"])

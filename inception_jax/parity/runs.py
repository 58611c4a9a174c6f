"""Runs the same weights and images through our network and through the publisher's own code."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from inception_jax.errors import UserError
from inception_jax.models.base import BaseNetwork
from inception_jax.models.outputs import InceptionOutput
from inception_jax.models.platforms import traced_for_device, traced_for_shapes
from inception_jax.parity import references
from inception_jax.parity.seeded_weights import seeded_arrays, seeded_images, seeded_probe
from inception_jax.pretrained.importing import ImportedWeights, has_classifier, import_variant
from inception_jax.pretrained.variants import Variant

_FRAMEWORKS = {
    "torch": ("torchvision", "timm", "cadene", "pytorchcv", "facenet-pytorch", "pytorch-fid"),
    "tf": ("slim", "keras", "caffe", "onnx", "facenet", "inception5h"),
}
_TIMEOUT = 3600  # seconds


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
      mode: "eval" (running statistics, no auxiliary heads), or "train" (batch statistics, auxiliary heads, no dropout).
      size: height and width of the images, in pixels.
      gradients: whether the gradients of a random combination of all logits are compared too.
      dtype: "float64" or "float32", in which both sides compute.
      batch: number of images.
    """

    mode: str
    size: int
    gradients: bool = False
    dtype: str = "float64"
    batch: int = 2

    @property
    def name(self) -> str:
        """A name such as "train_299_float64"."""
        return f"{self.mode}_{self.size}_{self.dtype}"


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The outputs of a network in one case.

    Attributes:
      logits: [B, classes].
      aux: auxiliary logits, [B, classes] each, the head nearest the input first.
      gradients: {publisher's name: array}, of the trained arrays; empty where the case compares none.
      version: of the implementation.
    """

    logits: np.ndarray
    aux: tuple[np.ndarray, ...]
    gradients: dict[str, np.ndarray]
    version: str


def runs_aux_heads(variant: Variant, case: Case) -> bool:
    """Returns whether a case runs the variant's auxiliary heads."""
    return case.mode == "train" and variant.aux_heads


def case_arrays(variant: Variant, case: Case) -> dict[str, np.ndarray]:
    """Draws the seeded weights of a case under the publisher's names; the auxiliary heads' only where they run."""
    return seeded_arrays(variant, aux_heads=runs_aux_heads(variant, case), dtype=np.dtype(case.dtype))


def _probes(variant: Variant, case: Case, classes: int, heads: int) -> tuple[np.ndarray, list[np.ndarray]]:
    shape, name = (case.batch, classes), f"{variant.source}/{variant.model}"
    return seeded_probe(name, shape), [seeded_probe(f"{name}/aux{i}", shape) for i in range(heads)]


def run_ours(variant: Variant, case: Case, arrays: Mapping[str, np.ndarray], **options: Any) -> Outputs:
    """Runs our network on the seeded images.

    Args:
      variant: the publisher's variant.
      case: the comparison.
      arrays: weights under the publisher's names.
      **options: of `create_model`, where they differ from the published variant.
    """
    with jax.enable_x64(case.dtype == "float64"):
        imported = import_variant(variant, arrays, dtype=np.dtype(case.dtype), **options)
        logits, aux, gradients = _forward(imported, case)
    named = {}
    leaves = variant.leaves(aux_heads=imported.options["aux_heads"], **{**options, "num_classes": imported.num_classes})
    for path, gradient in flatten_dict(gradients, sep="/").items():
        theirs = variant.source_array(f"params/{path}", leaves[f"params/{path}"])
        named[theirs.name] = theirs.layout.to_theirs(np.asarray(gradient))
    return Outputs(np.asarray(logits), tuple(map(np.asarray, aux)), named, f"jax {jax.__version__}")


def _forward(imported: ImportedWeights, case: Case) -> tuple[jax.Array, tuple[jax.Array, ...], Any]:
    options = imported.options | {"dropout_rate": 0.0, "dtype": case.dtype, "param_dtype": case.dtype}
    if imported.options["aux_heads"] and hasattr(imported.variant.create(aux_heads=True), "aux_dropout_rate"):
        options["aux_dropout_rate"] = 0.0
    train = case.mode == "train"
    model = imported.variant.create(**options)
    images = jnp.asarray(seeded_images(case.batch, case.size, case.dtype))
    params, stats = imported.variables["params"], imported.variables.get("batch_stats", {})
    with traced_for_shapes():
        shapes = jax.eval_shape(lambda: _apply(model, params, stats, images, train))
    probe, probe_aux = _probes(imported.variant, case, shapes.logits.shape[1], len(shapes.aux_logits))

    def total(params: Any) -> tuple[jax.Array, Any]:
        out = _apply(model, params, stats, images, train)
        value = (out.logits * probe.astype(case.dtype)).sum()
        for head, weights in zip(out.aux_logits, probe_aux, strict=True):
            value = value + (head * weights.astype(case.dtype)).sum()
        return value, (out.logits, out.aux_logits)

    with traced_for_device(jax.devices()[0]):
        if case.gradients:
            (_, (logits, aux)), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
            return logits, aux, gradients
        _, (logits, aux) = jax.jit(total)(params)
        return logits, aux, {}


def _apply(model: BaseNetwork, params: Any, stats: Any, images: jax.Array, train: bool) -> InceptionOutput:
    variables = {"params": params} | ({"batch_stats": stats} if stats else {})
    return model.apply(variables, images, train=train, mutable=["batch_stats"])[0]


def framework_of(source: str) -> str:
    """Returns "torch" or "tf": the framework of a publisher's code, and the program that runs it.

    Args:
      source: a name of `registry.source_names()`.
    """
    return next(side for side, names in _FRAMEWORKS.items() if source in names)


def run_theirs(variant: Variant, case: Case, arrays: Mapping[str, np.ndarray], python: str) -> Outputs:
    """Runs the publisher's own code on the seeded images, in the environment where it is installed.

    Args:
      variant: the publisher's variant.
      case: the comparison.
      arrays: weights under the publisher's names; for Keras and timm also without a classifier.
      python: the interpreter of that environment.

    Raises:
      UserError: it is not installed there, or it failed; the message ends with its last line of stderr.
    """
    program = Path(references.__file__).with_name(f"{framework_of(variant.source)}_side.py")
    bias = variant.source_array("params/classifier/bias", (variant.num_classes,)).name
    classes = variant.num_classes if has_classifier(variant, arrays) else 0
    classes = arrays[bias].size if bias in arrays else classes
    request: dict[str, Any] = {
        "source": variant.source,
        "model": variant.model,
        "mode": case.mode,
        "dtype": case.dtype,
        "classes": classes,
        "images": seeded_images(case.batch, case.size, case.dtype),
        **{f"w/{name}": array for name, array in arrays.items()},
    }
    if case.gradients:
        probe, probe_aux = _probes(variant, case, classes, 2)
        request |= {"probe": probe, "probe_aux/0": probe_aux[0], "probe_aux/1": probe_aux[1]}
    with tempfile.TemporaryDirectory() as folder:
        request_path, result_path = Path(folder) / "request.npz", Path(folder) / "result.npz"
        np.savez(request_path, **request)
        # The publishers' packages print a lot; the last line of stderr has the reason of a failure.
        done = subprocess.run(
            [python, str(program), str(request_path), str(result_path)],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            env={k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "XLA_", "JAX_"))},
        )
        if done.returncode or not result_path.exists():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{variant.source}'s {variant.model} in {python}: {last}")
        with np.load(result_path, allow_pickle=False) as result:
            found = dict(result)
    return Outputs(
        logits=found["logits"],
        aux=tuple(found[f"aux/{i}"] for i in range(sum(name.startswith("aux/") for name in found))),
        gradients={name[2:]: array for name, array in found.items() if name.startswith("g/")},
        version=str(found["version"]),
    )


def default_python() -> str:
    """Returns this interpreter, for where the publisher's package is installed beside ours."""
    return sys.executable

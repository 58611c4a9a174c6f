"""Real networks trained for some steps on any number of devices: each combination once for all tests."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax.data import datasets, images
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.models import inception_v1, registry
from inception_jax.models.initialization import init_variables
from inception_jax.training import optimizers, parallel, preprocess, state, step
from inception_jax.training.batch_norm import BatchNormGroups

BATCH, SIZE, STEPS, CLASSES = 16, 32, 10, 10
_BYTES = {"f64": 8, "f32": 4, "s32": 4, "pred": 1}


@dataclasses.dataclass(frozen=True)
class Trained:
    """What the steps gave.

    Attributes:
      losses: [steps], of every head, by name.
      start, state: the first and the last TrainState, on the host.
      text: the compiled program.
      aliased: bytes of the arguments that the results are written over, on one device.
      layers: batch-norm layers.
    """

    losses: dict[str, np.ndarray]
    start: state.TrainState
    state: state.TrainState
    text: str
    aliased: int
    layers: int

    def all_reduces(self):
        """[bytes of one device's operands] of every all-reduce of the program, in its order."""
        lines = re.findall(r"= (.*) all-reduce(?:-start)?\(", self.text)
        return [
            sum(
                _BYTES[kind] * int(np.prod([int(size) for size in shape.split(",") if size]))
                for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", line)
            )
            for line in lines
        ]


@pytest.fixture(scope="session")
def batches():
    """Digits, cropped at random: the real pipeline's first batches."""
    pipeline = TrainPipeline(
        datasets.load("digits", "train[:100]", None),
        batch_size=BATCH,
        image_size=SIZE,
        seed=1,
        threads=1,
        augmentation=images.Augmentation(rule="area_aspect", area=(0.5, 1.0), aspect=(0.75, 4 / 3), flip=True),
    )
    return [pipeline.batch(k) for k in range(STEPS)]


@pytest.fixture(scope="session")
def train(batches):
    """`train(network, dtype, devices, mode, batch_norm, accumulation, modules, steps)`: once for the same arguments.

    `modules`: the names of those that the network has; None: all nine.
    """
    made = {}

    def once(
        network,
        dtype="float64",
        devices=1,
        mode="jit",
        batch_norm="local",
        accumulation=1,
        modules=None,
        steps=STEPS,
    ):
        key = network, dtype, devices, mode, batch_norm, accumulation, modules, steps
        if key not in made:
            jax.config.update("jax_disable_most_optimizations", True)  # quicker to compile; the same mathematics
            try:
                with jax.enable_x64(dtype == "float64"):
                    made[key] = _train(batches, *key)
            finally:
                jax.config.update("jax_disable_most_optimizations", False)
        return made[key]

    return once


def _train(batches, network, dtype, devices, mode, batch_norm, accumulation, modules, steps):
    dtype = jnp.dtype(dtype)
    share = BATCH // devices // accumulation
    options = BatchNormGroups.parse(batch_norm).model_options(devices, share) if batch_norm != "local" else {}
    if modules:
        options["modules"] = {name: inception_v1.MODULES[name] for name in modules}
    model = registry.create_model(
        network, num_classes=CLASSES, width_multiplier=0.25, min_width=4, dtype=dtype, param_dtype=dtype, **options
    )
    # Training makes any difference grow, the faster the larger the steps. The LRN network in float64 takes the digits
    # recipe's rate and inputs all the same. In float32 at that rate the losses of 1 and 8 devices came to differ by
    # 9e-3 (with a jump at the fourth step: probably a ReLU or a maximum that turned over); with batch norm in float64
    # by 4e-7 at the tenth, steadily, and at 1e-3 (64 pixels, batch 32) from 2e-16 at the first to 9e-12, twice as much
    # at each step. With small inputs and steps rounding stays rounding, and a wrong number would still be seen.
    violent = model.lrn and dtype == jnp.float64
    rate, normalization = (0.01, "caffe") if violent else (2e-5 if model.batch_norm else 1e-3, "inception")
    optimizer = optimizers.specify("sgd", weight_decay=2e-4).build(rate)
    objective = step.Objective(
        preprocess.get_normalization(normalization),
        dtype,
        registry.get_spec(network).aux_weights,
        seed=3,
        accumulation=accumulation,
        ema_decay=0.9,
    )
    mesh = parallel.Devices(mode, devices)
    create = jax.jit(lambda variables: state.create(variables, optimizer, keep_ema=True))
    start = jax.device_get(create(init_variables(model, jax.random.key(0), SIZE)))
    current = mesh.replicate(start)
    compiled = mesh.compile_train(
        step.make_train_step(model, optimizer, objective, devices=devices), current, mesh.abstract_batch(BATCH, SIZE)
    )
    log = []
    with parallel.no_compilation():
        for batch in batches[:steps]:
            current, metrics = compiled(current, mesh.put(batch))
            log.append(jax.device_get(metrics))
    return Trained(
        losses={name: np.array([row[name] for row in log]) for name in log[0] if name.startswith("loss")},
        start=start,
        state=jax.device_get(current),
        text=compiled.call.as_text(),
        aliased=compiled.call.memory_analysis().alias_size_in_bytes,
        layers=sum(path[-1].key == "mean" for path, _ in jax.tree.leaves_with_path(current.batch_stats)),
    )

"""The compiled steps of a run: the training step, and the evaluation step of each kind of weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from inception_jax.training import executables, precise_batch_norm
from inception_jax.training import setup as setups
from inception_jax.training.parallel import Compiled
from inception_jax.training.state import TrainState
from inception_jax.training.step import Batch, Metrics, make_eval_step
from inception_jax.training.step_loop import TrainCall


@dataclasses.dataclass(frozen=True)
class EvaluationStep:
    """The compiled evaluation step, and the estimator of batch-norm statistics; None: the running ones are used."""

    eval: Compiled
    batch_norm: precise_batch_norm.Estimator | None


class CompiledSteps:
    """The compiled training step, and those of evaluation by kind of weights: "raw" and, where there is one, "ema"."""

    def __init__(self, setup: setups.Setup):
        """Opens the store of kept steps; compiles nothing."""
        self._setup, self.store = setup, executables.open_store()
        self._evaluation: dict[str, EvaluationStep] = {}
        self._loading: executables.Loading | None = None
        self._call = TrainCall(setup, setup.length.longest_execution(setup.steps_per_execution))
        self._train: Compiled | None = None

    def begin_loading(self, state: TrainState) -> None:
        """Begins to load the training step of a state of these shapes, where it was kept, in another thread."""
        self._loading = executables.begin_loading(self.store, "train", self._setup, self._arguments(state))

    def compile_train(self, state: TrainState) -> None:
        """Compiles the training step, or loads it."""
        step = functools.partial(self._setup.devices.compile_train, self._call.function())
        arguments = self._arguments(state)
        self._train = executables.load_or_compile(self.store, "train", self._setup, arguments, step, self._loading)
        self._loading = None

    def train(self, state: TrainState, batches: Sequence[Batch]) -> tuple[TrainState, Metrics]:
        """Dispatches the training steps of up to `parallel.steps_per_execution` batches; see `TrainCall`."""
        assert self._train is not None, "compile_train comes first"
        return self._call(self._train, state, batches)

    def _arguments(self, state: TrainState) -> tuple[Any, ...]:
        devices, config, model_input = self._setup.devices, self._setup.config, self._setup.input
        flag = devices.process_count > 1
        batch = devices.abstract_batch(
            config.batch_size,
            model_input.image_size,
            flag,
            channels=model_input.channels,
            label_columns=self._setup.data.train.dataset.label_columns,
        )
        return self._call.arguments(state, batch)

    @property
    def has_evaluation(self) -> bool:
        """Whether the evaluation steps are compiled."""
        return bool(self._evaluation)

    def evaluation(self, state: TrainState) -> dict[str, EvaluationStep]:
        """The evaluation steps; the first call compiles or loads them."""
        if not self._evaluation:
            raw = state.variables()
            self._evaluation["raw"] = self._compile_evaluation(raw)
            if state.ema is not None:
                averages = state.variables("ema")  # in float32, also where the parameters have 16 bits
                same = _dtypes(raw) == _dtypes(averages)
                self._evaluation["ema"] = self._evaluation["raw"] if same else self._compile_evaluation(averages)
        return self._evaluation

    def _compile_evaluation(self, variables: dict[str, Any]) -> EvaluationStep:
        setup, devices, model_input = self._setup, self._setup.devices, self._setup.input
        step = make_eval_step(setup.model, model_input.normalization, model_input.dtype, devices=devices.count)
        batch = devices.abstract_batch(
            setup.data.eval.batch_size,
            model_input.eval_image_size,
            crops=setup.data.eval.protocol.crops,
            channels=model_input.channels,
            label_columns=setup.data.eval.dataset.label_columns,
        )
        estimator = None
        if setup.batch_norm_images:
            estimator = precise_batch_norm.build(
                setup.model,
                variables,
                devices,
                setup.data.train,
                setup.batch_norm_images,
                model_input.normalization,
                setup.objective.freezing,
                setup.faults,
                setup.objective.augmentation,
                setup.config.seed,
            )
        compiled = executables.load_or_compile(
            self.store, "evaluation", setup, (variables, batch), functools.partial(devices.compile_eval, step)
        )
        return EvaluationStep(compiled, estimator)


def _dtypes(tree: Any) -> list[Any]:
    return [leaf.dtype for leaf in jax.tree.leaves(tree)]

"""Accumulates the metrics of training steps between two log rows, and detects what must end a run.

Here the host reads the results of the steps, so here it detects: a loss that is not finite or has diverged, too many
consecutive skipped steps, too many undecodable images, a request to stop. Every process reads the same sums, equally
late, and so decides the same after the same step. The sums are part of a checkpoint: an interruption loses none.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Collection

import jax
import numpy as np

from inception_jax.errors import NonFiniteLoss, UserError

_MOST_NAMES = 20
_IN_FLIGHT = 2  # steps, or one call of more steps, that may be queued: enough to keep the devices busy, few to wait for
# Counters in `state` beside the sums: they are not reset by a log row. Their names are those in checkpoints.
_IN_A_ROW, _CORRUPT = "skipped_in_a_row", "corrupt_in_all"


class CorruptImages(UserError):
    """More images could not be decoded than `config.faults.max_corrupt`."""


def explain_left_out(names: Collection[str]) -> str:
    """Formats the end of an error about images that cannot be decoded: the distinct ones, and what to do.

    Args:
      names: of the records that were left out since the start; empty where worker processes read them.
    """
    remedy = "replace or remove them, or raise it: each counts again whenever it is drawn, once or more in an epoch"
    if not names:
        return f"; lines on standard error name them, each once: {remedy}"
    listed = ", ".join(sorted(names)[:_MOST_NAMES]) + ", …" * (len(names) > _MOST_NAMES)
    return f"; {listed}: {remedy}"


class TrainMetrics:
    """Sums of the steps' metrics since the last log row, and the counters of a run's faults.

    Reading a metric waits for its step. `add` therefore reads those of two steps ago (of the call before, where a call
    takes several): the devices always have work queued, and the host is never more than that ahead.

    Attributes:
      stop_requested: whether some process requested to stop, in a step that was read (`Devices.flag`).
    """

    def __init__(
        self,
        sums: dict[str, float] | None = None,
        *,
        max_skipped: int = 0,
        loss_limit: float | None = None,
        batch_size: int = 0,
        max_corrupt: int = 0,
        explain_corrupt: Callable[[], str] = str,
    ):
        """Starts with no steps, or with the sums of an interrupted run.

        Args:
          sums: from `state`, in the checkpoint of a resumed run; None for a new run.
          max_skipped: consecutive steps that may be skipped; 0: the first bad one ends the run. Above 0 the step must
            have been made with `Objective.skip_non_finite`.
          loss_limit: with `max_skipped` 0, a mean loss above it ends the run. (Otherwise the step skips itself by
            `Objective.loss_limit`, and this is for the message.)
          batch_size: examples in the global batch; read with `max_corrupt` alone.
          max_corrupt: undecodable images of the whole run that may be masked out of the batches, counted anew each time
            one is drawn; 0: masked rows are not counted.
          explain_corrupt: returns the end of the error about more of them, as `explain_left_out`.
        """
        self._max_skipped, self._loss_limit = max_skipped, loss_limit
        self._batch_size, self._max_corrupt = batch_size, max_corrupt
        self._explain_corrupt = explain_corrupt
        self._sums: collections.Counter[str] = collections.Counter(sums or {})
        self._skipped_in_a_row = int(self._sums.pop(_IN_A_ROW, 0))
        self._corrupt = int(self._sums.pop(_CORRUPT, 0))
        self._in_flight: collections.deque[tuple[int, dict[str, jax.Array], int]] = collections.deque()
        self.stop_requested = False

    def add(self, step: int, metrics: dict[str, jax.Array], count: int = 1) -> None:
        """Adds the metrics of one step, or of several that were dispatched together.

        Args:
          step: the first step that made them, counted from 1; the one after the last step of the call before.
          metrics: sums over the batch, with "count" and "gradient_norm", still on the devices; "skipped" (0 or 1) and
            "stop" where the step gives them. Scalars; or arrays that begin with one number per step.
          count: number of steps.

        Raises:
          NonFiniteLoss: the loss or the gradient of a step was NaN or infinite, or the loss above the limit; or more
            than `max_skipped` consecutive steps were skipped.
          CorruptImages: more than `max_corrupt` images were masked.
        """
        self._in_flight.append((step, metrics, count))
        while len(self._in_flight) > 1 and sum(steps for _, _, steps in self._in_flight) > _IN_FLIGHT:
            self._read_oldest()

    def state(self) -> dict[str, float]:
        """The sums, all steps included, and the run's counters, as numbers that JSON holds exactly.

        Raises:
          NonFiniteLoss, CorruptImages: as `add`.
        """
        self._read_all()
        counters = {_IN_A_ROW: self._skipped_in_a_row, _CORRUPT: self._corrupt}
        return {**self._sums, **{name: count for name, count in counters.items() if count}}

    def pop_row(self) -> dict[str, float]:
        """Returns the metrics since the last log row, and resets the sums.

        Returns:
          Means per counted example ("gradient_norm": per step that was not skipped), absent where nothing was counted;
          with `max_skipped`, "skipped": the number of skipped steps; with `max_corrupt`, "corrupt": the number of
          images masked in the steps that were not skipped.

        Raises:
          NonFiniteLoss, CorruptImages: as `add`.
        """
        self._read_all()
        sums = dict(self._sums)
        self._sums.clear()
        count, steps, skipped = sums.pop("count"), sums.pop("steps"), sums.pop("skipped", 0)
        norm = sums.pop("gradient_norm")
        row = {name: total / count for name, total in sorted(sums.items())} if count else {}
        if steps > skipped:
            row["gradient_norm"] = norm / (steps - skipped)
        if self._max_skipped:
            row["skipped"] = int(skipped)
        if self._max_corrupt:
            row["corrupt"] = round(self._batch_size * (steps - skipped) - count)
        return row

    def _read_all(self) -> None:
        while self._in_flight:
            self._read_oldest()

    def _read_oldest(self) -> None:
        first, metrics, count = self._in_flight.popleft()
        rows = {name: np.ravel(value) for name, value in jax.device_get(metrics).items()}
        for index in range(count):
            self._add_step(first + index, {name: float(row[index]) for name, row in rows.items()})

    def _add_step(self, step: int, values: dict[str, float]) -> None:
        self.stop_requested |= values.pop("stop", 0) > 0
        skipped = values.get("skipped", 0) > 0
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if skipped else 0
        if self._skipped_in_a_row > self._max_skipped:
            raise self._too_many_skipped(step)
        if not skipped:
            self._refuse_bad(step, values)
        self._sums.update(values)
        self._sums["steps"] += 1
        if self._max_corrupt and not skipped:
            self._corrupt += round(self._batch_size - values["count"])
            if self._corrupt > self._max_corrupt:
                raise CorruptImages(
                    f"{self._corrupt} images that were drawn by step {step} could not be decoded; "
                    f"config.faults.max_corrupt = {self._max_corrupt}{self._explain_corrupt()}"
                )

    def _refuse_bad(self, step: int, values: dict[str, float]) -> None:
        """Raises NonFiniteLoss if the loss or gradient norm of a step is not finite, or the loss above its limit."""
        loss, count, norm = values["loss"], values["count"], values["gradient_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            if self._loss_limit is None or loss <= self._loss_limit * count:
                return
            what = f"has diverged: above config.faults.loss_limit = {self._loss_limit:g}"
        else:
            what = "is not finite"
        heads = ", ".join(
            f"{name} {value / max(count, 1):g}" for name, value in sorted(values.items()) if name.startswith("loss")
        )
        raise NonFiniteLoss(
            f"step {step} {what} ({heads}, gradient norm {norm:g}); checkpoints are from before it. A new run with "
            "a lower config.optimizer.learning_rate, a longer warm-up or config.optimizer.clip_norm may help"
        )

    def _too_many_skipped(self, step: int) -> NonFiniteLoss:
        first = step - self._skipped_in_a_row + 1
        steps = f"steps {first} to {step} were" if first < step else f"step {step} was"
        limit = self._loss_limit
        above = "" if limit is None else f", or the loss above config.faults.loss_limit = {limit:g}"
        return NonFiniteLoss(
            f"{steps} skipped: loss or gradient not finite{above}; config.faults.max_skipped_steps = "
            f"{self._max_skipped} (consecutive). A lower config.optimizer.learning_rate, a longer warm-up or "
            "config.optimizer.clip_norm may help"
        )

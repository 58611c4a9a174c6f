"""The study in Optuna's storage: asks for trials, reports evaluations, prunes, finishes. Samplers are Optuna's.

While a sweep runs, only this module and `storage.py` use Optuna. Every change is made under the study's lock
(`lease.StudyLock`) and is one line of the journal, so a driver may be killed between any two:
`Study.resume_trial` continues from what is stored.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.errors import UserError
from inception_jax.sweeps import storage as storages
from inception_jax.sweeps import trials
from inception_jax.sweeps.lease import StudyLock
from inception_jax.sweeps.parameters import Choice, Parameter
from inception_jax.sweeps.study_config import StudyConfig

# User attributes of a trial in Optuna, which its dashboard shows. Stored studies have these names. "entry" is the index
# of a listed config, "judged" the last answer of the pruner.
LISTED_INDEX, OVERRIDES, DECISION, PRUNED_AT = "entry", "overrides", "judged", "pruned_at"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A running trial in Optuna's storage.

    Attributes:
      number: from 0.
      values: {field: value} of the parameters of the space whose condition holds.
      overrides: {field: value} of other fields, from a listed config.
      pruned_at: index of the evaluation at which the pruner decided to prune it; None: it did not.
      handle: the `optuna.trial.Trial`.
    """

    number: int
    values: dict[str, Any]
    overrides: dict[str, Any]
    pruned_at: int | None
    handle: Any

    @property
    def fields(self) -> dict[str, Any]:
        """{field: value} of all fields that the trial sets."""
        return self.values | self.overrides


class Study:
    """A study that this driver works on. Call its methods inside `with study.exclusive():`."""

    def __init__(
        self,
        directory: Path,
        study_config: StudyConfig,
        name: str,
        lock: StudyLock,
        log: Callable[[str], None],
        storage: str | None = None,
    ):
        """Opens the storage, and creates the study in it where it is new.

        Args:
          directory: of the study.
          study_config: of the study.
          name: of the study in the storage.
          lock: of the directory; it is held.
          log: gets a line where the journal was repaired.
          storage: URL of a database, with its password; None: the journal file.

        Raises:
          UserError: Optuna is not installed, the database cannot be opened, or the journal is damaged or missing.
        """
        self.lock = lock
        self._optuna, self._study_config, self._log = storages.import_optuna(), study_config, log
        self._journal = None if storage else directory / storages.JOURNAL
        with storages.wrap_errors(self._journal, study_config.storage):
            storages.repair_journal(self._journal, log)
            opened = storages.open_storage(self._journal, storage, lock)
            known = {study.study_name for study in opened.get_all_studies()}
            if name not in known and any((directory / trials.FOLDER).glob("*")):
                raise UserError(
                    f"{self._journal or study_config.storage} does not contain this study, but "
                    f"{directory / trials.FOLDER} has trials: restore it, or choose another --study"
                )
            self.optuna_study = self._optuna.create_study(
                study_name=name,
                storage=opened,
                direction=study_config.direction,
                load_if_exists=True,
                sampler=self._optuna.samplers.RandomSampler(study_config.seed),
                pruner=self._pruner(),
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
                if self.optuna_study.metric_names is None:  # Optuna's dashboard would show "Objective 0"
                    self.optuna_study.set_metric_names([f"{study_config.objective} {study_config.metric}"])

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the study's lock, repairs the journal, and turns Optuna's errors into one line each.

        Optuna's warnings about experimental features are silenced.

        Yields:
          None.

        Raises:
          UserError: the storage cannot be read or written.
        """
        with self.lock, warnings.catch_warnings(), storages.wrap_errors(self._journal, self._study_config.storage):
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            storages.repair_journal(self._journal, self._log)
            yield

    def num_begun(self) -> int:
        """Number of trials that all drivers have begun, whatever their status."""
        waiting = self._optuna.trial.TrialState.WAITING
        return sum(trial.state != waiting for trial in self._trials())

    def status_counts(self) -> dict[str, int]:
        """{status: number of trials}."""
        return collections.Counter(trial.user_attrs.get("status", trial.state.name.lower()) for trial in self._trials())

    def running_numbers(self) -> list[int]:
        """Numbers of the trials that have begun and not ended."""
        return [trial.number for trial in self._trials() if trial.state == self._optuna.trial.TrialState.RUNNING]

    def ranking(self) -> list[tuple[int, float]]:
        """(number, value) of all finished trials, the best first."""
        finished = [
            (trial.number, trial.value)
            for trial in self._trials()
            if trial.state == self._optuna.trial.TrialState.COMPLETE
        ]
        sign = -1 if self._study_config.direction == "maximize" else 1
        return sorted(finished, key=lambda trial: (sign * trial[1], trial[0]))

    def has_next(self) -> bool:
        """Returns whether there is another trial to begin; False after the last one of a grid or a list."""
        return self._study_config.is_endless or self._waiting() or self._next_listed() is not None

    def begin_trial(self) -> Trial:
        """Begins the next trial and chooses its values; call it where `has_next()`."""
        listed_index = self._next_listed()
        if listed_index is not None:
            self._enqueue(listed_index)
        self.optuna_study.sampler = self._sampler(len(self._trials()))
        return self._choose_values(self.optuna_study.ask())

    def resume_trial(self, number: int) -> Trial:
        """Continues a running trial of a dead driver; chooses the values that it had not chosen yet.

        Args:
          number: of the trial.
        """
        frozen = self._trials()[number]
        self.optuna_study.sampler = self._sampler(number)
        trial = self._choose_values(self._optuna.trial.Trial(self.optuna_study, frozen._trial_id))
        self._apply_decision(trial.handle, frozen.user_attrs.get(DECISION))
        return dataclasses.replace(trial, pruned_at=_pruned_at(frozen.user_attrs.get(DECISION)))

    def set_workdir(self, trial: Trial, workdir: Path) -> None:
        """Stores the workdir and the overrides of a trial in Optuna, for its dashboard."""
        trial.handle.set_user_attr("workdir", str(workdir))
        if trial.overrides:
            trial.handle.set_user_attr(OVERRIDES, {name: repr(value) for name, value in trial.overrides.items()})

    def report(self, trial: Trial, evaluations: Sequence[Mapping[str, Any]], may_prune: bool) -> int | None:
        """Reports new evaluations to Optuna, and asks the pruner about each of them.

        Those of a study whose objective is what trials need to reach their target stay out: they have another metric.

        Args:
          trial: a running trial.
          evaluations: all evaluations of the trial, as `trials.EvaluationReader.read` gives them.
          may_prune: whether to ask the pruner; pruning at the last evaluation of a run would save nothing.

        Returns:
          Index of the evaluation at which the trial is to be pruned, which the storage then has; None: it continues.
        """
        if self._study_config.is_to_target:
            return None
        known = self._trials()[trial.number]
        decision = known.user_attrs.get(DECISION)
        for evaluation in evaluations:
            index, value = evaluation["index"], evaluation["value"]
            if not math.isfinite(value):
                continue  # the run reports by itself that it has diverged
            if index not in known.intermediate_values:
                trial.handle.report(value, index)
            if may_prune and index > (decision["evaluation"] if decision else 0):
                decision = self._ask_pruner(trial, index)
                if decision["prune"]:
                    return index
        return _pruned_at(decision)

    def finish_trial(self, trial: Trial, status: str, value: float | None, message: str) -> None:
        """Ends a trial in Optuna.

        Args:
          trial: a running trial.
          status: finished, pruned, diverged or failed. Optuna stores a diverged trial as pruned: samplers ignore failed
            trials, and would continue to choose values that make the loss infinite.
          value: the objective of a finished trial.
          message: the reason, in one line.
        """
        states = self._optuna.trial.TrialState
        trial.handle.set_user_attr("status", status)
        if message:
            trial.handle.set_user_attr("message", message)
        state = {"finished": states.COMPLETE, "failed": states.FAIL}.get(status, states.PRUNED)
        self.optuna_study.tell(trial.number, value if state == states.COMPLETE else None, state=state)

    def _trials(self) -> list[Any]:
        return self.optuna_study.get_trials(deepcopy=False)

    def _waiting(self) -> bool:
        return any(trial.state == self._optuna.trial.TrialState.WAITING for trial in self._trials())

    def _next_listed(self) -> int | None:
        """Index of the next listed config; None where all have been begun, or one is enqueued already."""
        if self._waiting():
            return None
        given = {trial.user_attrs.get(LISTED_INDEX) for trial in self._trials()}
        return next((index for index in range(len(self._study_config.listed)) if index not in given), None)

    def _enqueue(self, listed_index: int) -> None:
        parameters = self._study_config.space.parameters if self._study_config.space else {}
        values = {
            field: parameters[field].encode(value)
            for field, value in self._study_config.listed[listed_index].items()
            if field in parameters
        }
        self.optuna_study.enqueue_trial(values, user_attrs={LISTED_INDEX: listed_index})

    def _choose_values(self, handle: Any) -> Trial:
        """Asks the sampler for the value of every parameter whose condition holds."""
        values: dict[str, Any] = {}
        space = self._study_config.space
        if space is not None:
            for field, parameter in space.parameters.items():
                if space.is_active(field, values):
                    values[field] = parameter.decode(_suggest(handle, field, parameter))
        listed_index = handle.user_attrs.get(LISTED_INDEX)
        listed = self._study_config.listed[listed_index] if listed_index is not None else {}
        overrides = {field: value for field, value in listed.items() if field not in values}
        return Trial(handle.number, values, overrides, None, handle)

    def _ask_pruner(self, trial: Trial, index: int) -> dict[str, Any]:
        """Asks the pruner about one evaluation, and stores its answer in one line of the journal.

        While it decides, successive halving stores which rungs the trial has reached; asked twice, it would take the
        second question for the next rung. So these attributes are held back until the answer is stored together with
        them: a driver that takes over finds both (`_apply_decision`).
        """
        study, recorder = copy.copy(self.optuna_study), _AttributeRecorder(self.optuna_study._storage)
        study._storage = recorder
        frozen = copy.deepcopy(self._trials()[trial.number])
        frozen.intermediate_values = {i: value for i, value in frozen.intermediate_values.items() if i <= index}
        decision = {"evaluation": index, "prune": bool(study.pruner.prune(study, frozen)), "notes": recorder.attributes}
        trial.handle.set_user_attr(DECISION, decision)
        self._apply_decision(trial.handle, decision)
        return decision

    def _apply_decision(self, handle: Any, decision: Mapping[str, Any] | None) -> None:
        """Writes the attributes that the pruner wanted to write, where they are not in the storage yet."""
        known = handle.storage.get_trial(handle._trial_id)
        for key, value in (decision["notes"] if decision else {}).items():
            if key not in known.system_attrs:
                handle.storage.set_trial_system_attr(handle._trial_id, key, value)
        pruned_at = _pruned_at(decision)
        if pruned_at is not None and PRUNED_AT not in known.user_attrs:
            handle.set_user_attr(PRUNED_AT, pruned_at)

    def _sampler(self, number: int) -> Any:
        """Makes the sampler for one trial, seeded by the study's seed and the trial's number.

        So a restarted driver does not repeat the sampler's random numbers, and its choices do not depend on how many
        trials it has begun before.
        """
        samplers, study_config = self._optuna.samplers, self._study_config
        seed = int(np.random.SeedSequence([study_config.seed, number]).generate_state(1)[0])
        if study_config.sampler == "tpe":
            conditional = bool(
                study_config.space and any(parameter.when for parameter in study_config.space.parameters.values())
            )
            return samplers.TPESampler(seed=seed, multivariate=True, group=conditional, constant_liar=True)
        if study_config.sampler == "quasi":
            # All drivers share one sequence, whose position is in the storage: so they share one seed.
            return samplers.QMCSampler(
                scramble=True,
                seed=study_config.seed,
                independent_sampler=samplers.RandomSampler(seed),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
        return samplers.RandomSampler(seed)  # also for fields that a listed config does not set

    def _pruner(self) -> Any:
        pruners, study_config = self._optuna.pruners, self._study_config
        if study_config.pruner == "halving":
            return pruners.SuccessiveHalvingPruner(study_config.min_evaluations, study_config.reduction_factor)
        if study_config.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=study_config.min_evaluations)
        return pruners.NopPruner()


class _AttributeRecorder:
    """A proxy of Optuna's storage that reads from it, and records the attributes that a pruner writes."""

    def __init__(self, storage: Any):
        self._storage = storage
        self.attributes: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Records the attribute in place of writing it."""
        self.attributes[key] = value


def _suggest(handle: Any, field: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        return handle.suggest_categorical(field, parameter.encoded)
    if parameter.kind == "integer":
        return handle.suggest_int(field, parameter.low, parameter.high, step=parameter.step or 1, log=parameter.log)
    return handle.suggest_float(field, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def _pruned_at(decision: Mapping[str, Any] | None) -> int | None:
    return decision["evaluation"] if decision and decision["prune"] else None

"""The study in Optuna: with `storage.py`, what of the sweep knows it. Samplers and pruners are Optuna's.

Every change is made under the study's lock (`lease.StudyLock`), and each is one line of the journal, so that a driver
may be killed between any two: `resume` finds out how far it came.
"""

from __future__ import annotations

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

# User attributes of a trial in Optuna, which its dashboard shows; an entry is the index of a listed config.
LISTED_INDEX, OVERRIDES, DECISION, PRUNED_AT = "entry", "overrides", "judged", "pruned_at"


@dataclasses.dataclass(frozen=True)
class Trial:
    """A running trial as the storage has it.

    Attributes:
      number: from 0.
      values: {field: value} of the space, those whose condition holds.
      overrides: {field: value} beside it.
      pruned_at: the evaluation at which it was decided to prune it; None.
      handle: Optuna's.
    """

    number: int
    values: dict[str, Any]
    overrides: dict[str, Any]
    pruned_at: int | None
    handle: Any

    @property
    def fields(self) -> dict[str, Any]:
        """{field: value} of all that the trial sets."""
        return self.values | self.overrides


class Study:
    """A study that this driver works on. Its methods are called inside `with study.lock:`."""

    def __init__(
        self,
        directory: Path,
        study_config: StudyConfig,
        name: str,
        lock: StudyLock,
        log: Callable[[str], None],
        storage: str | None = None,
    ):
        """Opens the storage, and makes the study in it where it is new.

        Args:
          directory: of the study.
          study_config: what it is.
          name: of it in the storage.
          lock: of the directory, held.
          log: gets a line when the journal had to be mended.
          storage: URL of a database, with its password; None: the journal file.

        Raises:
          UserError: no Optuna, no such database, or a journal that is damaged or has been lost.
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
                    f"{self._journal or study_config.storage} knows nothing of this study, though "
                    f"{directory / trials.FOLDER} has trials: put it back, or choose another --study"
                )
            self.optuna_study = self._optuna.create_study(
                study_name=name,
                storage=opened,
                direction=study_config.direction,
                load_if_exists=True,
                sampler=self._optuna.samplers.RandomSampler(study_config.seed),
                pruner=self._pruner(),
            )

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """What a driver does with the study: under its lock, the journal whole, Optuna's warnings of new features
        unsaid, and its errors in one line.

        Raises:
          UserError: the storage cannot be read or written.
        """
        with self.lock, warnings.catch_warnings(), storages.wrap_errors(self._journal, self._study_config.storage):
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            storages.repair_journal(self._journal, self._log)
            yield

    def num_begun(self) -> int:
        """How many trials have been begun, by all drivers, whatever has become of them."""
        waiting = self._optuna.trial.TrialState.WAITING
        return sum(trial.state != waiting for trial in self._trials())

    def status_counts(self) -> dict[str, int]:
        """{status: how many trials}."""
        counts: dict[str, int] = {}
        for trial in self._trials():
            name = trial.user_attrs.get("status", trial.state.name.lower())
            counts[name] = counts.get(name, 0) + 1
        return counts

    def running_numbers(self) -> list[int]:
        """The numbers of the trials that have begun and not ended."""
        return [trial.number for trial in self._trials() if trial.state == self._optuna.trial.TrialState.RUNNING]

    def ranking(self) -> list[tuple[int, float]]:
        """(number, value) of every finished trial, the best first."""
        finished = [
            (trial.number, trial.value)
            for trial in self._trials()
            if trial.state == self._optuna.trial.TrialState.COMPLETE
        ]
        sign = -1 if self._study_config.direction == "maximize" else 1
        return sorted(finished, key=lambda trial: (sign * trial[1], trial[0]))

    def has_next(self) -> bool:
        """Whether there is another trial to begin: not after the last of a grid or a list."""
        return self._study_config.is_endless or self._waiting() or self._next_listed() is not None

    def begin_trial(self) -> Trial:
        """The next trial, with all its values, where `has_next()`."""
        listed_index = self._next_listed()
        if listed_index is not None:
            self._enqueue(listed_index)
        self.optuna_study.sampler = self._sampler(len(self._trials()))
        return self._choose_values(self.optuna_study.ask())

    def resume_trial(self, number: int) -> Trial:
        """A running trial of a driver that has gone; values that it had not come to choose are chosen now."""
        frozen = self._trials()[number]
        self.optuna_study.sampler = self._sampler(number)
        trial = self._choose_values(self._optuna.trial.Trial(self.optuna_study, frozen._trial_id))
        self._apply_decision(trial.handle, frozen.user_attrs.get(DECISION))
        return dataclasses.replace(trial, pruned_at=_pruned_at(frozen.user_attrs.get(DECISION)))

    def set_workdir(self, trial: Trial, workdir: Path) -> None:
        """Tells Optuna, and whoever looks at its dashboard, where the trial lives."""
        trial.handle.set_user_attr("workdir", str(workdir))
        if trial.overrides:
            trial.handle.set_user_attr(OVERRIDES, {name: repr(value) for name, value in trial.overrides.items()})

    def report(self, trial: Trial, evaluations: Sequence[Mapping[str, Any]], may_prune: bool) -> int | None:
        """Tells Optuna the evaluations that it does not know yet, and asks whether the trial is worth going on.

        Args:
          trial: a running one.
          evaluations: all of it, as `trials.EvaluationReader.read` gives them.
          may_prune: whether it may be pruned now; the last evaluation of a run that is at its end cannot save anything.

        Returns:
          The index of the evaluation at which it is to be pruned, which the storage knows by then; None: go on.
        """
        known = self._trials()[trial.number]
        decision = known.user_attrs.get(DECISION)
        for evaluation in evaluations:
            index, value = evaluation["index"], evaluation["value"]
            if not math.isfinite(value):
                continue  # the run itself says that it has diverged
            if index not in known.intermediate_values:
                trial.handle.report(value, index)
            if may_prune and index > (decision["evaluation"] if decision else 0):
                decision = self._ask_pruner(trial, index)
                if decision["prune"]:
                    return index
        return _pruned_at(decision)

    def finish_trial(self, trial: Trial, status: str, value: float | None, message: str) -> None:
        """Ends a trial.

        Args:
          trial: a running one.
          status: finished, pruned, diverged or failed. Diverged ones are pruned ones for Optuna: it takes no notice of
            failed ones, and would go on trying values that make the loss infinite.
          value: of a finished one.
          message: why, in a line.
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
        """Which of the listed configs is next; None where all have been given out, or one waits already."""
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
        """The trial with the value of every parameter whose condition holds."""
        values: dict[str, Any] = {}
        space = self._study_config.space
        for field, parameter in space.parameters.items() if space else ():
            if space.is_active(field, values):
                values[field] = parameter.decode(_suggest(handle, field, parameter))
        listed_index = handle.user_attrs.get(LISTED_INDEX)
        listed = self._study_config.listed[listed_index] if listed_index is not None else {}
        beside = {field: value for field, value in listed.items() if field not in values}
        return Trial(handle.number, values, beside, None, handle)

    def _ask_pruner(self, trial: Trial, index: int) -> dict[str, Any]:
        """The pruner's answer at an evaluation, recorded in one line.

        Halving notes which rungs a trial has come to as it decides, and would take a second question for the next
        rung: so its notes are held back until the answer is in the storage, from which both can be found again.
        """
        study, notes = copy.copy(self.optuna_study), _AttributeRecorder(self.optuna_study._storage)
        study._storage = notes
        frozen = copy.deepcopy(self._trials()[trial.number])
        frozen.intermediate_values = {i: value for i, value in frozen.intermediate_values.items() if i <= index}
        decision = {"evaluation": index, "prune": bool(study.pruner.prune(study, frozen)), "notes": notes.attributes}
        trial.handle.set_user_attr(DECISION, decision)
        self._apply_decision(trial.handle, decision)
        return decision

    def _apply_decision(self, handle: Any, decision: Mapping[str, Any] | None) -> None:
        known = handle.storage.get_trial(handle._trial_id)
        for key, value in (decision["notes"] if decision else {}).items():
            if key not in known.system_attrs:
                handle.storage.set_trial_system_attr(handle._trial_id, key, value)
        if _pruned_at(decision) is not None and PRUNED_AT not in known.user_attrs:
            handle.set_user_attr(PRUNED_AT, decision["evaluation"])

    def _sampler(self, number: int) -> Any:
        """The sampler for one trial. Its seed comes from the trial's number: a driver that is started again does not
        begin the sampler's random numbers again, and what it chooses does not depend on what it did before."""
        samplers, study_config = self._optuna.samplers, self._study_config
        seed = int(np.random.SeedSequence([study_config.seed, number]).generate_state(1)[0])
        if study_config.sampler == "tpe":
            conditional = bool(
                study_config.space and any(parameter.when for parameter in study_config.space.parameters.values())
            )
            return samplers.TPESampler(seed=seed, multivariate=True, group=conditional, constant_liar=True)
        if study_config.sampler == "quasi":
            # One sequence for all drivers, whose position is in the storage: so one seed for all.
            return samplers.QMCSampler(
                scramble=True,
                seed=study_config.seed,
                independent_sampler=samplers.RandomSampler(seed),
                warn_independent_sampling=False,
                warn_asynchronous_seeding=False,
            )
        return samplers.RandomSampler(seed)  # also for what a listed config leaves open

    def _pruner(self) -> Any:
        pruners, study_config = self._optuna.pruners, self._study_config
        if study_config.pruner == "halving":
            return pruners.SuccessiveHalvingPruner(study_config.min_evaluations, study_config.reduction_factor)
        if study_config.pruner == "median":
            return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=study_config.min_evaluations)
        return pruners.NopPruner()


class _AttributeRecorder:
    """A storage that reads as the true one, and keeps what a pruner would write to it."""

    def __init__(self, storage: Any):
        self._storage = storage
        self.attributes: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        self.attributes[key] = value


def _suggest(handle: Any, field: str, parameter: Parameter) -> Any:
    if isinstance(parameter, Choice):
        return handle.suggest_categorical(field, parameter.encoded)
    if parameter.kind == "integer":
        return handle.suggest_int(field, parameter.low, parameter.high, step=parameter.step or 1, log=parameter.log)
    return handle.suggest_float(field, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def _pruned_at(decision: Mapping[str, Any] | None) -> int | None:
    return decision["evaluation"] if decision and decision["prune"] else None

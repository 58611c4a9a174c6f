"""Which parameters the result depended on, as Optuna's evaluators estimate it from the finished trials."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inception_jax.sweeps.study_files import StoredParameter, StoredStudy

if TYPE_CHECKING:
    import optuna

MIN_TRIALS = 4
"""Finished trials, below which nothing is estimated."""


@dataclasses.dataclass(frozen=True)
class Importance:
    """The estimate.

    Attributes:
      shares: {field: share of the spread of the values, 0 to 1}, largest first; {} where there is no estimate.
      method: by which it was made.
      trials: finished trials that it is from.
      left_out: fields without an estimate, since not every finished trial had them.
      reason: why there is none; "" where there is one.
    """

    shares: Mapping[str, float]
    method: str = ""
    trials: int = 0
    left_out: Sequence[str] = ()
    reason: str = ""


def estimate(stored: StoredStudy, study: optuna.Study | None = None) -> Importance:
    """Estimates the importance of each parameter.

    By fANOVA where scikit-learn is installed (F. Hutter, H. Hoos, K. Leyton-Brown, "An efficient approach for assessing
    hyperparameter importance", ICML 2014), else by PED-ANOVA (S. Watanabe, A. Bansal, F. Hutter, IJCAI 2023).

    Args:
      stored: the study as it lies on the disk.
      study: Optuna's study, where one is open; default: one made of what lies on the disk.

    Returns:
      The estimate; or, without a traceback, why there is none: the report is worth having without it.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        return Importance({}, reason="Optuna is not installed: pip install '.[sweep]'")
    study = _rebuild_study(stored) if study is None else study
    finished = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(finished) < MIN_TRIALS:
        return Importance({}, reason=f"{len(finished)} finished trials are too few; {MIN_TRIALS} are needed")
    if len({trial.value for trial in finished}) == 1:
        return Importance({}, reason="all finished trials have the same value")
    has_trees = importlib.util.find_spec("sklearn") is not None
    kinds = optuna.importance
    evaluator = kinds.FanovaImportanceEvaluator(seed=0) if has_trees else kinds.PedAnovaImportanceEvaluator()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except Exception as error:  # of numerics inside Optuna or scikit-learn, on data that nobody foresaw
        return Importance({}, reason=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    shares = {field: float(share) for field, share in found.items() if math.isfinite(share)}
    if not shares:
        return Importance({}, reason="no parameter is in all finished trials with more than one value")
    left_out = [one.field for one in stored.space if one.field not in shares]
    return Importance(shares, "fANOVA" if has_trees else "PED-ANOVA", len(finished), left_out)


def _rebuild_study(stored: StoredStudy) -> optuna.Study:
    """A study in memory that holds the finished trials.

    Those of a list that lie outside of the space are left out: without a value for every parameter that is always
    there, one of them would leave the evaluators no parameter in common.
    """
    import optuna

    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize" if stored.maximise else "minimize")
    finally:
        optuna.logging.set_verbosity(quiet)
    space = {parameter.field: parameter for parameter in stored.space}
    always = {field for field, parameter in space.items() if not parameter.when}
    for trial in stored.ranked():
        params, distributions = {}, {}
        for field, value in trial.params.items():
            if field in space and (encoded := _encode(space[field], value)) is not None:
                params[field], distributions[field] = encoded, _distribution(space[field])
        if not always <= params.keys():
            continue
        study.add_trial(optuna.trial.create_trial(value=trial.value, params=params, distributions=distributions))
    return study


def _distribution(parameter: StoredParameter) -> Any:
    """Without its step: for the estimate it means nothing, and a listed config may lie between two."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if parameter.kind == "choice":
        return CategoricalDistribution([repr(choice) for choice in parameter.choices])
    if parameter.kind == "integer":
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=parameter.log)


def _encode(parameter: StoredParameter, value: Any) -> Any:
    """The value as the distribution holds it; None where it lies outside of the space, as one of a list may."""
    if parameter.kind == "choice":
        return repr(value) if repr(value) in map(repr, parameter.choices) else None  # by its text: True is not 1
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if parameter.low <= value <= parameter.high else None

"""Hyperparameter importance: estimates which parameters the objective depends on, with Optuna's evaluators."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from inception_jax.sweeps.parameters import Choice, Parameter
from inception_jax.sweeps.study_files import StoredStudy

if TYPE_CHECKING:
    import optuna

MIN_TRIALS = 4
"""Smallest number of finished trials for an estimate."""


@dataclasses.dataclass(frozen=True)
class Importance:
    """An estimate of the importance of each parameter.

    Attributes:
      shares: {field: share of the variance of the objective, 0 to 1}, largest first; {} where there is no estimate.
      method: "fANOVA" or "PED-ANOVA".
      trials: number of finished trials that were used.
      unreached: number of finished trials that have not reached their target and were not used.
      left_out: fields without an estimate: not every finished trial has them, or they never varied.
      reason: why there is no estimate; "" where there is one.
    """

    shares: Mapping[str, float]
    method: str = ""
    trials: int = 0
    unreached: int = 0
    left_out: Sequence[str] = ()
    reason: str = ""


def estimate(stored: StoredStudy, study: optuna.Study | None = None) -> Importance:
    """Estimates the importance of each parameter.

    The method is fANOVA where scikit-learn is installed (F. Hutter, H. Hoos, K. Leyton-Brown, "An efficient approach
    for assessing hyperparameter importance", ICML 2014), else PED-ANOVA (S. Watanabe, A. Bansal, F. Hutter, IJCAI
    2023).

    Args:
      stored: the study, as its files have it.
      study: the open Optuna study; default: one that is rebuilt from the files.

    Returns:
      The estimate, or the reason why there is none. It raises no error: the report is useful without an estimate.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        return Importance({}, reason="Optuna is not installed: pip install 'inception_jax[sweep]'")
    study = _rebuild_study(stored) if study is None else study
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    # Optuna's evaluators use these alone.
    finished = [trial for trial in complete if trial.value is not None and math.isfinite(trial.value)]
    unreached = len(stored.with_status("finished")) - len(stored.ranked())
    if len(finished) < MIN_TRIALS:
        which = "finished trials that reached their target" if unreached else "finished trials"
        return Importance({}, reason=f"{len(finished)} {which} are too few; {MIN_TRIALS} are needed")
    if len({trial.value for trial in finished}) == 1:
        return Importance({}, reason="all finished trials have the same value")
    has_trees = importlib.util.find_spec("sklearn") is not None
    kinds = optuna.importance
    evaluator = kinds.FanovaImportanceEvaluator(seed=0) if has_trees else kinds.PedAnovaImportanceEvaluator()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except Exception as error:  # numerical errors inside Optuna or scikit-learn on unforeseen data
        return Importance({}, reason=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    shares = {field: float(share) for field, share in found.items() if math.isfinite(share)}
    if not shares:
        return Importance({}, reason="no parameter is in all finished trials with more than one value")
    left_out = [field for field in stored.space if field not in shares]
    return Importance(shares, "fANOVA" if has_trees else "PED-ANOVA", len(finished), unreached, left_out)


def _rebuild_study(stored: StoredStudy) -> optuna.Study:
    """Makes an Optuna study in memory with the finished trials.

    Listed configs outside the space are omitted: a trial without a value for every unconditional parameter would leave
    the evaluators no common parameter.
    """
    import optuna

    quiet = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize" if stored.maximize else "minimize")
    finally:
        optuna.logging.set_verbosity(quiet)
    space = stored.space
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


def _distribution(parameter: Parameter) -> Any:
    """Optuna's distribution of a parameter, without its step: a listed config may lie between two steps."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(parameter, Choice):
        return CategoricalDistribution([repr(choice) for choice in parameter.values])
    low, high = parameter.low, parameter.high
    if parameter.kind == "integer":
        return IntDistribution(int(low), int(high), log=parameter.log)
    return FloatDistribution(low, high, log=parameter.log)


def _encode(parameter: Parameter, value: Any) -> Any:
    """Encodes a value for the distribution; None where it is outside the space, as in a listed config."""
    if isinstance(parameter, Choice):
        return repr(value) if repr(value) in map(repr, parameter.values) else None  # compares by `repr`: True is not 1
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if parameter.low <= value <= parameter.high else None

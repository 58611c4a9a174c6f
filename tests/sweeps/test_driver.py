"""A driver from start to end: the outcome of a trial for each exit of its process, pruning, budgets, signals."""

import csv
import json
import math
import signal

import pytest

from inception_jax import command_line
from inception_jax.errors import DiskFull, UserError
from inception_jax.multihost import processes
from inception_jax.sweeps import report_sections
from inception_jax.sweeps.study_files import read, write_table

LIST = """
def get_trials():
    return [{{"optimizer.learning_rate": rate}} for rate in {rates}]
"""


def test_every_trial_is_what_its_process_came_to(study, sweep):
    study.space(LIST.format(rates=[0.01, 0.011, 0.012, 0.013, 0.014]))
    study.behaviour(trial_1=[["exit", 2, 2]], trial_2=[["exit", 3, 3]], trial_3=[["exit", 2, 5]], trial_4=[["nan", 4]])
    assert sweep("--pruner=none") == 0
    assert study.statuses() == ["finished", "failed", "diverged", "failed", "diverged"]
    assert [trial["message"] for trial in study.trials()[1:4]] == [f"it left with {code}" for code in (2, 3, 5)]
    assert study.trial(4)["message"] == "its evaluation gave top1 = nan"
    assert [trial.state.name for trial in study.stored().trials] == ["COMPLETE", "FAIL", "PRUNED", "FAIL", "PRUNED"]
    assert [trial.user_attrs["status"] for trial in study.stored().trials] == study.statuses()
    assert all(trial.user_attrs["workdir"].endswith(f"{trial.number:04d}") for trial in study.stored().trials)
    assert [len(trial["starts"]) for trial in study.trials()] == [1] * 5, "none of these is worth a second try"
    assert [trial["starts"][0]["exit"] for trial in study.trials()] == [0, 2, 3, 5, 0]


def test_a_trial_is_a_run_of_one_process_where_srun_started_the_drivers(study, sweep):
    study.space(LIST.format(rates=[0.01]))
    assert sweep("--pruner=none") == 0
    arguments = command_line.parser("train", "")
    command_line.add_processes(arguments)
    given = json.loads((study.directory / "trials" / "0000" / "arguments.json").read_text())
    flags, _ = arguments.parse_known_args(given)
    assert processes.find_launch(flags, {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}) is None


@pytest.mark.parametrize("act", [["kill", 3], ["exit", 3, 7], ["exit", 3, 8], ["exit", 3, 143], ["exit", 3, 1]])
def test_a_process_that_died_goes_on_where_it_was(study, sweep, act):
    study.space(LIST.format(rates=[0.01]))
    study.behaviour(trial_0=[act])
    assert sweep() == 0
    trial = study.trial(0)
    assert trial["status"] == "finished" and trial["deaths"] == 1
    assert study.epochs_trained(0) == [1, 2, 3, 3, 4], "the epoch that was lost, and no other, is trained again"
    assert [start["exit"] for start in trial["starts"]] == [-9 if act[0] == "kill" else act[2], 0]
    assert [evaluation["step"] for evaluation in trial["evaluations"]] == [1, 2, 3, 4]
    assert "it is started again" in study.log()


def test_a_process_that_dies_again_and_again_fails(study, sweep):
    study.space(LIST.format(rates=[0.01, 0.02]))
    study.behaviour(trial_0=[["exit", 3, 7]] * 9, trial_1=[["kill", 2], ["kill", 3], ["kill", 4]])
    assert sweep("--retries=2", "--pruner=none") == 0
    failed, finished = study.trials()
    assert failed["status"] == "failed" and len(failed["starts"]) == 3
    assert "died 3 times in a row" in failed["message"] and "exit code 7" in failed["message"]
    assert "it left with 7" in failed["message"], "the last words of the process"
    assert finished["status"] == "finished" and len(finished["starts"]) == 4, "it came further every time"


def test_a_locked_workdir_is_waited_for(study, sweep):
    study.space(LIST.format(rates=[0.01]))
    study.behaviour(trial_0=[["exit", 1, 4]])
    assert sweep("--retries=0") == 0
    assert study.statuses() == ["finished"]
    assert study.trial(0)["deaths"] == 0
    assert "waiting for it to exit" in study.log()


def test_a_full_disk_stops_all_and_the_same_command_continues(study, sweep):
    study.space(LIST.format(rates=[0.01, 0.02, 0.03]))
    study.behaviour(epochs=300, trial_1=[["exit", 2, 6]])
    with pytest.raises(DiskFull, match="free some space"):
        sweep("--workers=2", "--pruner=none")
    assert study.statuses() == ["interrupted", "interrupted"]
    trained = study.epochs_trained(0)
    study.behaviour(epochs=300, seconds=0)
    assert sweep("--workers=2", "--pruner=none") == 0
    assert study.statuses() == ["finished"] * 3
    assert study.epochs_trained(0) == list(range(1, 301)) and len(trained) < 300


def test_values_and_pruning(study, sweep):
    """Halving after one evaluation: whoever is not the best third of those before it is pruned there."""
    study.space(LIST.format(rates=[0.01, 0.001, 0.012, 0.0001, 0.011]))
    study.behaviour(epochs=200, seconds=0.01)
    assert sweep("--min_evaluations=1", "--reduction_factor=3") == 0
    assert study.statuses() == ["finished", "pruned", "pruned", "pruned", "pruned"]
    for trial in study.trials()[1:]:
        assert trial["pruned_at"] == 1 and "at evaluation 1" in trial["message"]
        assert trial["starts"][0]["exit"] == 143 and len(study.epochs_trained(trial["number"])) < 200
    stored = study.stored().trials
    assert [trial.state.name for trial in stored] == ["COMPLETE"] + ["PRUNED"] * 4
    assert stored[0].value == study.trial(0)["value"] == pytest.approx(0.99)
    assert sorted(stored[0].intermediate_values) == list(range(1, 201))


def test_a_trial_is_not_pruned_at_its_end(study, sweep):
    study.space(LIST.format(rates=[0.01, 0.001]))
    study.behaviour(epochs=3, seconds=0.03, linger=0.15)
    assert sweep("--min_evaluations=3", "--reduction_factor=2") == 0
    assert study.statuses() == ["finished", "finished"]


def test_a_trial_that_early_stopping_ends_has_finished(study, sweep):
    """Its last evaluation, the second without a better top-5 than the first, is not one to prune it at."""
    study.space(LIST.format(rates=[0.01, 0.001]))
    study.behaviour(epochs=9, seconds=0.03, linger=0.15, default=[["early", 2]])
    stop = ["--config.checkpoint.best_metric=top5", "--config.stop.patience=1", "--metric=top1"]
    assert sweep("--min_evaluations=2", "--reduction_factor=2", *stop) == 0
    assert study.statuses() == ["finished", "finished"]
    assert [len(trial["evaluations"]) for trial in study.trials()] == [2, 2]
    assert study.trial(0)["value"] == pytest.approx(0.99 * (0.5 + 0.5 * 2 / 9))
    assert study.trial(0)["message"] == "early stopping: 1 evaluation" and "early stopping" in study.log()


def test_steps_to_target_are_an_objective_and_a_trial_that_misses_it_counts_as_infinite(study, sweep):
    """The best learning rate, 0.01, has a top-1 of 0.99 * (0.5 + 0.5 * epoch / 8): 0.74 at epoch 4."""
    study.space(LIST.format(rates=[0.0001, 0.01, 0.005]))
    study.behaviour(epochs=8, seconds=0)
    assert sweep("--metric=steps_to_target", "--config.stop.target=0.69") == 0
    missed, best, second = study.trials()
    assert study.statuses() == ["finished"] * 3
    assert (missed["value"], best["value"], second["value"]) == (None, 4.0, 4.0)
    assert missed["message"] == "target not reached: top-1 accuracy >= 69.00 %" and best["message"] == ""
    assert [trial.value for trial in study.stored().trials] == [math.inf, 4.0, 4.0]
    described = json.loads((study.directory / "study.json").read_text())
    assert (described["direction"], described["pruner"]) == ("minimize", "none")
    found = read(study.directory)
    assert [trial.number for trial in found.ranked()] == [1, 2]
    # Its evaluations are those of the target's metric, and no values of the objective.
    assert [len(trial["evaluations"]) for trial in study.trials()] == [8, 4, 4]
    last = best["evaluations"][-1]
    assert (last["step"], last["value"], last["last"]) == (4, pytest.approx(0.7425), True)
    assert "trial 1: evaluation 4, epoch 4: top1 74.25 %" in study.log()
    assert math.isnan(found.trials[0].shown_value) and found.evaluated.name == "top1"
    assert not any(trial.intermediate_values for trial in study.stored().trials)
    table = list(csv.DictReader(write_table(found).read_text().splitlines()))
    assert [(row["evaluations"], row["epoch"]) for row in table] == [("8", "8.0"), ("4", "4.0"), ("4", "4.0")]
    text = "\n".join(report_sections.facts(found))
    assert "**4** steps to target of the best trial" in text
    assert "**2 of 3** finished trials reached their target; median steps to target of all finished ones: 4" in text
    assert "top1 0.69, at the first evaluation that reached it" in next(report_sections.setup(found))


def test_the_sampler_learns_from_trials_that_missed_the_target(study, sweep):
    study.behaviour(epochs=2, seconds=0)
    sampled = ["--metric=steps_to_target", "--config.stop.target=0.6", "--trials=13", "--workers=2"]
    assert sweep(*sampled) == 0
    assert study.statuses() == ["finished"] * 13  # the last ones were chosen by TPE, among infinite values


def test_a_trial_is_not_pruned_at_its_target(study, sweep):
    study.space(LIST.format(rates=[0.01, 0.005]))
    study.behaviour(epochs=9, seconds=0.03, linger=0.15)
    assert sweep("--min_evaluations=2", "--reduction_factor=2", "--config.stop.target=0.59") == 0
    assert study.statuses() == ["finished", "finished"]
    assert [len(trial["evaluations"]) for trial in study.trials()] == [2, 2]
    assert study.trial(1)["message"] == "target reached: at 2"


def test_the_first_decision_to_prune_stands(study, sweep):
    """A run that takes long to stop writes more evaluations, and might even finish."""
    study.space(LIST.format(rates=[0.01, 0.001]))
    study.behaviour(epochs=9, seconds=0.03, trial_1=[["deaf"]])
    assert sweep("--min_evaluations=2", "--reduction_factor=2") == 0
    record, stored = study.trial(1), study.stored().trials[1]
    assert record["status"] == "pruned" and record["starts"][0]["exit"] == 0 and len(record["evaluations"]) == 9
    assert record["pruned_at"] == stored.user_attrs["pruned_at"] == stored.user_attrs["judged"]["evaluation"] == 2
    assert sorted(stored.intermediate_values) == list(range(1, 10))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], 0.99),
        (["--config.ema.decay=0"], 0.9 * 0.99),
        (["--metric=loss"], 1 - 0.99),
        (["--metric=top5"], 1.0),
    ],
)
def test_the_objective_is_of_the_right_weights_and_metric(study, sweep, flags, expected):
    study.space(LIST.format(rates=[0.01]))
    assert sweep(*flags) == 0
    assert study.trial(0)["value"] == pytest.approx(expected)
    described = json.loads((study.directory / "study.json").read_text())
    assert described["direction"] == ("minimize" if "--metric=loss" in flags else "maximize")


def test_a_trial_may_set_its_own_average_and_length(study, sweep):
    """Without an average, the trained weights are what is evaluated; a shorter run has its last evaluation earlier."""
    study.space(
        "def get_trials():\n    return [{'ema.decay': 0.0}, {'num_epochs': 2.0},\n"
        "            {'num_epochs': 2.0, 'optimizer.learning_rate': 0.001}]"
    )
    study.behaviour(epochs=2, seconds=0.03, linger=0.1)
    study.epochs = 9  # of the recipe
    assert sweep("--min_evaluations=2", "--reduction_factor=9") == 0
    assert [trial["value"] for trial in study.trials()] == pytest.approx([0.9 * 0.99, 0.99, 0.79])
    assert study.statuses() == ["finished"] * 3


def test_the_best_evaluation_or_the_last():
    from inception_jax.sweeps.trials import objective_value

    rows = [{"value": value} for value in (0.2, 0.9, math.nan, 0.4)]
    assert objective_value(rows, "final", "maximize") == 0.4
    assert objective_value(rows, "best", "maximize") == 0.9
    assert objective_value(rows, "best", "minimize") == 0.2
    assert objective_value(rows[:3], "final", "maximize") is None
    assert objective_value([], "best", "maximize") is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_driver_leaves_trials_to_be_continued(study, drivers, number):
    from .conftest import wait_for

    study.behaviour(epochs=150, seconds=0.2)  # half a minute, of which the signal leaves a second
    driver = drivers.start(study, "--trials=2", "--workers=2", "--pruner=none")
    wait_for(lambda: study.statuses() == ["running"] * 2 and study.epochs_trained(1)[2:])
    driver.send(number)
    assert driver.wait() == 128 + number
    assert "the same command continues" in driver.output()
    assert study.statuses() == ["interrupted"] * 2
    assert [trial.state.name for trial in study.stored().trials] == ["RUNNING"] * 2
    study.behaviour(epochs=150, seconds=0)
    assert drivers.start(study, "--trials=2", "--workers=2", "--pruner=none").wait() == 0
    assert study.statuses() == ["finished"] * 2
    for number in range(2):
        assert study.epochs_trained(number) == list(range(1, 151)), "no epoch lost, none trained twice"


def test_a_second_signal_stops_at_once(study, drivers):
    from .conftest import wait_for

    study.behaviour(epochs=9, seconds=2)
    driver = drivers.start(study, "--trials=1", "--workers=1")
    wait_for((study.directory / "trials" / "0000" / "starts.log").exists)  # the process handles SIGTERM by then
    driver.send(signal.SIGINT)
    wait_for(lambda: "SIGINT" in driver.output())
    import time

    time.sleep(0.3)  # signals closer than this are one (`timeout` sends two)
    driver.send(signal.SIGINT)
    assert driver.wait(1.5) == 130


def test_too_many_failed_trials_end_the_sweep(study, sweep):
    study.behaviour(default=[["exit", 1, 2]])
    with pytest.raises(UserError, match="8 trials in a row have failed"):
        sweep("--hours=10")
    assert study.statuses() == ["failed"] * 8


def test_a_budget_in_hours(study, sweep, monkeypatch):
    """By a clock of which each trial takes 0.4 s, on a machine of any load."""

    def time_by_trials(directory):
        return 1e9 + 0.4 * len(list((directory / "trials").glob("*")))

    monkeypatch.setattr("inception_jax.sweeps.budget.file_system_time", time_by_trials)
    assert sweep(f"--hours={1 / 3600}", "--pruner=none") == 0
    assert study.statuses() == ["finished"] * 3, "begun after 0, 0.4 and 0.8 s"
    kept = json.loads((study.directory / "worked.json").read_text())
    assert kept["seconds"] == pytest.approx(1.2)
    assert sweep(f"--hours={1 / 3600}", "--pruner=none") == 0
    assert len(study.trials()) == 3, "the time is spent, also for the next driver"
    (study.directory / "worked.json").write_text(json.dumps({**kept, "last": kept["last"] - 3600}))
    assert sweep(f"--hours={1.7 / 3600}", "--pruner=none") == 0
    assert len(study.trials()) == 5, "an hour in which nobody worked costs nothing"


def test_a_budget_counts_the_trials_of_all_starts(study, sweep):
    assert sweep("--trials=2") == 0
    assert sweep("--trials=5", "--workers=2") == 0
    assert sweep("--trials=5") == 0
    assert len(study.trials()) == 5
    assert len({json.dumps(trial["params"]) for trial in study.trials()}) == 5, "a new driver does not repeat the old"

"""Kills drivers and trials at any moment, also with two drivers: no trial is lost, none runs twice."""

import json
import random
import signal

import pytest

from .conftest import wait_for
from .driver_server import MOMENTS

# The first is the best, and the others are pruned at their first evaluation; the optimizer is the sampler's choice.
LISTED = """
from inception_jax.sweeps.space import choice, real
def get_space():
    return {"optimizer.learning_rate": real(1e-4, 1.0, log=True), "optimizer.name": choice("sgd", "rmsprop")}
def get_trials():
    return [{"optimizer.learning_rate": rate} for rate in (0.01, 0.1, 0.0005, 0.7)]
"""


def assert_complete(study, count, epochs):
    """Checks that all trials are present, that trial.json and storage agree, and that no epoch was trained twice."""
    records, stored = study.trials(), study.stored().trials
    assert [record["number"] for record in records] == list(range(count))
    states = {"finished": "COMPLETE", "pruned": "PRUNED", "diverged": "PRUNED", "failed": "FAIL"}
    assert [trial.state.name for trial in stored] == [states[record["status"]] for record in records]
    for record, trial in zip(records, stored, strict=True):
        assert trial.user_attrs["status"] == record["status"]
        assert record["params"] == trial.params
        trained = study.epochs_trained(record["number"])
        assert trained == list(range(1, len(trained) + 1)), f"trial {record['number']} trained {trained}"
        if record["status"] == "finished":
            assert len(trained) == epochs and trial.value == record["value"]
            assert sorted(trial.intermediate_values) == list(range(1, epochs + 1))
        else:
            assert (record["status"], record["pruned_at"]) == ("pruned", trial.user_attrs["pruned_at"])
    assert len({json.dumps(record["params"]) for record in records}) == count


def kill_and_restart(study, drivers, moment, count):
    """Kills a driver at the given call of a function of `MOMENTS`, then runs the same command again."""
    study.space(LISTED)
    study.behaviour(epochs=8, seconds=0.03)
    flags = ["--trials=4", "--workers=1", "--min_evaluations=1", "--reduction_factor=4"]
    assert drivers.start(study, *flags, die_at=[moment, count]).wait() == -signal.SIGKILL
    finished = drivers.start(study, *flags)
    assert finished.wait() == 0, finished.output()
    assert_complete(study, 4, 8)
    assert study.statuses() == ["finished", "pruned", "pruned", "pruned"]


@pytest.mark.parametrize(("moment", "count"), [("suggest", 2), ("record", 1), ("note", 1), ("write", 2), ("finish", 1)])
def test_a_driver_may_die_at_these_moments(study, drivers, moment, count):
    kill_and_restart(study, drivers, moment, count)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_driver_may_die_at_any_moment(study, drivers, moment, count):
    kill_and_restart(study, drivers, moment, count)


def test_a_decision_to_prune_is_carried_out_by_the_next_driver(study, drivers):
    study.behaviour(epochs=40, seconds=0.02)
    flags = ["--trials=4", "--workers=1", "--min_evaluations=1", "--reduction_factor=4"]
    assert drivers.start(study, *flags, die_at=["prune", 1]).wait() == -signal.SIGKILL
    [decided] = [trial for trial in study.stored().trials if "pruned_at" in trial.user_attrs]
    assert decided.state.name == "RUNNING"
    starts = len(study.trial(decided.number)["starts"])
    assert drivers.start(study, *flags).wait() == 0
    record = study.trial(decided.number)
    assert record["status"] == "pruned" and len(record["starts"]) == starts, "it is not trained any further"
    assert_complete(study, 4, 40)


def test_halving_decides_once_however_often_it_is_asked(study, drivers):
    """Killed between the pruner's answer and its record, and asked again: it is asked of the same rung."""
    study.behaviour(epochs=20, seconds=0.02)
    study.space("def get_trials():\n    return [{'optimizer.learning_rate': r} for r in (0.01, 0.0001)]")
    flags = ["--min_evaluations=3", "--reduction_factor=2"]
    for _ in range(2):
        assert drivers.start(study, *flags, die_at=["answer", 3]).wait() == -signal.SIGKILL
    assert drivers.start(study, *flags).wait() == 0
    assert study.statuses() == ["finished", "pruned"]
    assert study.trial(1)["pruned_at"] == 3


def test_a_failed_trial_is_not_tried_again(study, drivers):
    study.space("def get_trials():\n    return [{'optimizer.learning_rate': r} for r in (0.01, 0.02)]")
    study.behaviour(trial_0=[["exit", 2, 2]])
    assert drivers.start(study, die_at=["finish", 1]).wait() == -signal.SIGKILL
    assert [trial.state.name for trial in study.stored().trials] == ["RUNNING"]
    assert drivers.start(study).wait() == 0
    assert study.statuses() == ["failed", "finished"] and study.stored().trials[0].state.name == "FAIL"
    assert len(study.trial(0)["starts"]) == 1 and study.trial(0)["message"] == "it left with 2"


def test_two_drivers_share_a_study(study, drivers):
    study.behaviour(epochs=5, seconds=0.01)
    flags = ["--trials=20", "--workers=2"]
    both = [drivers.start(study, *flags) for _ in range(2)]
    assert [driver.wait() for driver in both] == [0, 0], [driver.output() for driver in both]
    assert_complete(study, 20, 5)
    hosts = {(start["host"], start["pid"]) for record in study.trials() for start in record["starts"]}
    assert len(hosts) == 20, "one process a trial"
    assert all(driver.output().count(": begun on") > 2 for driver in both), "neither kept all for itself"


def test_random_kills_of_drivers_and_trials(study, drivers):
    """Kills two drivers and their trials at random, many times."""
    study.behaviour(epochs=6, seconds=0.03)
    # A trial that dies before its first checkpoint several times running is not what is tested here.
    flags, chance = ["--trials=40", "--workers=3", "--retries=20"], random.Random(0)
    running = [drivers.start(study, *flags) for _ in range(2)]
    killed = {"driver": 0, "trial": 0}
    for round_ in range(24):
        before = study.log().count("\n") if (study.directory / "sweep.log").exists() else 0
        wait_for(
            lambda before=before: (
                (study.directory / "sweep.log").exists()
                and (
                    study.log().count("\n") >= before + chance.randrange(1, 6)
                    or all(driver.poll() is not None for driver in running)
                )
            )
        )
        if round_ % 2:
            index = chance.randrange(2)
            if running[index].poll() is None:
                killed["driver"] += running[index].kill() == -signal.SIGKILL
            running[index] = drivers.start(study, *flags)
        else:
            tries: list[bool] = []  # on slow cores there may be none at this moment
            wait_for(
                lambda tries=tries: (
                    tries.append(kill_one(study, chance))
                    or tries[-1]
                    or all(driver.poll() is not None for driver in running)
                )
            )
            killed["trial"] += tries[-1]
    assert [driver.wait() for driver in running] == [0, 0], running[0].output() + running[1].output()
    assert killed["driver"] >= 5 and killed["trial"] >= 5, killed
    records = study.trials()
    assert [record["number"] for record in records] == list(range(40))
    assert set(study.statuses()) <= {"finished", "pruned"}
    for record, trial in zip(records, study.stored().trials, strict=True):
        assert trial.state.name == {"finished": "COMPLETE", "pruned": "PRUNED"}[record["status"]]
        lost = sum(start["exit"] == -signal.SIGKILL for start in record["starts"])
        trained = study.epochs_trained(record["number"])
        # A process that was killed loses the epoch that it was in; one whose driver was killed saves, and loses none.
        assert len(trained) - len(set(trained)) <= lost + killed["trial"]
        if record["status"] == "finished":
            assert set(trained) == set(range(1, 7))
            assert [evaluation["index"] for evaluation in record["evaluations"]] == list(range(1, 7))


def kill_one(study, chance):
    """Kills the process of a running trial; returns whether there was one."""
    import os

    running = [
        record
        for record in study.trials()
        if record["status"] == "running" and record["starts"] and record["starts"][-1]["ended"] is None
    ]
    if not running:
        return False
    try:
        os.kill(chance.choice(running)["starts"][-1]["pid"], signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def test_a_suspended_driver_releases_a_trial_that_was_taken_over(study, drivers):
    """Where machines do not share locks, a resumed machine finds that another driver has its trial."""
    study.behaviour(epochs=60, seconds=0.02)
    driver = drivers.start(study, "--trials=1", "--pruner=none", stale=0.5)
    wait_for(lambda: len(study.epochs_trained(0)) > 3)
    other = {"host": "h", "boot_id": "another machine", "pid": 1, "driver": "another"}
    (study.directory / "trials" / "0000" / "lease.json").write_text(json.dumps(other))
    wait_for(lambda: "another driver has taken it over" in study.log())
    assert driver.wait() == 0, "and when that one is silent for too long, it takes it back"
    assert study.statuses() == ["finished"] and study.log().count("taken over;") == 1


def test_a_process_that_died_with_its_driver_is_restarted(study, drivers):
    """A process killed together with its driver: the next driver starts it again from its checkpoint."""
    study.behaviour(epochs=40, seconds=0.02)
    flags = ["--trials=1", "--pruner=none"]
    driver = drivers.start(study, *flags)
    wait_for(lambda: len(study.epochs_trained(0)) > 3)
    import os

    process = study.trial(0)["starts"][0]["pid"]
    os.kill(driver.pid, signal.SIGSTOP)
    os.kill(process, signal.SIGKILL)
    driver.kill()
    assert drivers.start(study, *flags).wait() == 0
    [record] = study.trials()
    assert record["status"] == "finished"
    assert [start["exit"] for start in record["starts"]] == [None, 0], "what became of the first, nobody saw"
    assert record["starts"][0]["ended"] is not None

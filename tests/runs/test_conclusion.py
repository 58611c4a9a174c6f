"""What a person reads when a run or an evaluation has ended."""

import pytest

from inception_jax.metrics import wilson_interval
from inception_jax.runs import conclusion, remote_workdir

WORKDIR = "my runs/digits"
HERE = "'my runs/digits'"


def finished(**more):
    evaluation = {"top1": 0.95, "top5": 1.0, "loss": 0.1, "count": 40}
    metrics = {"train": {"loss": 1.0}, "test": {"raw": evaluation | {"top1": 1.0}, "ema": evaluation}}
    best = {"metric": "top1", "value": 0.975, "step": 200}
    more = {"tables": ["per_class.csv", "mistakes.csv"]} | more
    return {"status": "finished", "steps": 300, "metrics": metrics, "pictures": ["a.png"] * 2, "best": best} | more


def test_accuracy_best_step_files_and_what_to_do_next():
    low, high = (f"{100 * bound:.2f}" for bound in wilson_interval(38, 40))
    assert conclusion.format_conclusion(WORKDIR, finished()).splitlines() == [
        f"test: top-1 95.00 % (95 % interval {low} to {high} %; 38 of 40), EMA weights; best at step 200 of 300: "
        "top-1 97.50 %",
        f"report.md, result.json, per_class.csv, mistakes.csv and 2 plots: {HERE}",
        f"next: python -m inception_jax.predict --workdir={HERE} IMAGE …",
    ]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ({"metric": "loss", "value": 0.05, "step": 100}, "EMA weights; best at step 100 of 300: loss 0.0500"),
        (
            {"metric": "top1", "value": 0.95, "step": 300},
            "EMA weights; no evaluation before had a better top-1 accuracy",
        ),
        (  # the final evaluation has the same value
            {"metric": "loss", "value": 0.1, "step": 100},
            "EMA weights; no evaluation before had a better loss (0.1000)",
        ),
        (  # of a recipe; top-1 may have been better before
            {"metric": "confidence", "title": "mean confidence", "percent": True, "value": 0.5222, "step": 300},
            "EMA weights; no evaluation before had a better mean confidence (52.22 %)",
        ),
        ({"metric": "top1", "value": 0.95, "step": 300, "evaluations": 1}, "EMA weights"),
        ({"metric": "top1", "value": None, "step": None}, "EMA weights"),
        (None, "EMA weights"),  # of an earlier version
    ],
)
def test_the_best_evaluation(best, expected):
    assert conclusion.format_conclusion(WORKDIR, finished(best=best)).splitlines()[0].endswith(expected)


def test_warnings_stand_beside_the_accuracy():
    lines = conclusion.format_conclusion(WORKDIR, finished(warnings=["all is 'bee'", 3])).splitlines()
    assert lines[1] == "warning: all is 'bee'" and len(lines) == 4
    assert len(conclusion.format_conclusion(WORKDIR, finished(warnings="changed by hand")).splitlines()) == 3


def test_the_page_is_named_where_there_is_one(tmp_path):
    (tmp_path / "report.html").write_text("")
    assert conclusion.format_conclusion(tmp_path, finished()).splitlines()[1] == (
        f"report.html, report.md, result.json, per_class.csv, mistakes.csv and 2 plots: {tmp_path}"
    )


def test_the_page_is_named_where_the_workdir_is_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with remote_workdir.opened("memory://page/run") as folder:
        (folder / "report.html").write_text("")
    for address in ("memory://page/run", "memory://page/run/"):
        line = conclusion.format_conclusion(address, finished()).splitlines()[1]
        assert line == f"report.html, report.md, result.json, per_class.csv, mistakes.csv and 2 plots: {address}"


def test_why_a_run_ended_early():
    why = "early stopping: 3 evaluations without a better top-1 accuracy than 97.5 % at step 200"
    assert conclusion.format_conclusion(WORKDIR, finished(ended=why)).splitlines()[1] == why
    assert len(conclusion.format_conclusion(WORKDIR, finished(ended="all steps are done")).splitlines()) == 3


def test_entries_of_another_form_are_left_out():
    """result.json may have been changed by hand, or by a program that writes null for what it does not know."""
    whole = conclusion.format_conclusion(WORKDIR, finished(best={"step": 200}))
    for entry in (None, 5, {}, {"ema": None}, {"raw": {}, "ema": {"top1": None, "count": 40}}):
        content = finished(metrics=finished()["metrics"] | {"other": entry}, best={"step": 200})
        assert conclusion.format_conclusion(WORKDIR, content) == whole
    assert len(whole.splitlines()) == 3 and whole.splitlines()[0].endswith("EMA weights")


def test_a_run_that_did_not_finish_has_said_why():
    assert conclusion.format_conclusion(WORKDIR, {"status": "interrupted", "signal": "SIGTERM", "steps": 3}) == ""


def test_an_evaluation():
    content = {"dataset": "digits", "split": "test", "weights": "raw", "step": 1200, "top1": 0.5, "top5": 1.0}
    content |= {"loss": 0.25, "count": 4}
    assert conclusion.format_evaluation(content, "runs/a/evaluations/b").splitlines() == [
        "digits test, raw weights of step 1,200: top-1 50.00 % (95 % interval 15.00 to 85.00 %; 2 of 4), "
        "top-5 100.00 %, loss 0.2500",
        "result.json and plots: runs/a/evaluations/b",
    ]


def test_members_of_an_ensemble_say_with_what_they_were_evaluated():
    score = {"top1": 0.5, "top5": 1.0, "loss": 0.7}
    about = {"weights": "ema", "step": 300, "protocol": "10-crop", "image_size": 64}
    content = {"dataset": "digits", "split": "test", "model": "inception_v1", "count": 40, **score}
    told = "(ema, step 300, 10-crop, 64 pixels)"
    alone = conclusion.format_ensemble(content | {"members": [{"name": "a.npz", **about, **score}]})
    assert alone.startswith(f"digits test, inception_v1 {told}: top-1 50.00 % (")
    members = [{"name": "a.npz", **about, **score}, {"name": "b.npz", "model": "ensemble of 2", **score}]
    lines = conclusion.format_ensemble(content | {"model": "ensemble of 3", "members": members}).splitlines()
    assert lines[0].startswith(f"a.npz {told}: top-1 50.00 %, ") and lines[1].startswith("b.npz: top-1 50.00 %, ")
    assert lines[2].startswith("digits test, ensemble of 3: top-1 50.00 % (")

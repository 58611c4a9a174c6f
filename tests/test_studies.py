"""experiments/studies.py and its studies: their configs, their numbers, and the tables that their pages show."""

import json
import math
import re
import runpy
import subprocess
import sys

import pytest

import inception_jax

from .conftest import ROOT

FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/study.py"))
NAMES = [folder.name for folder in FOLDERS]


@pytest.fixture
def studies(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    return __import__("studies")


def row(variant, seed, *accuracies, **more):
    evaluations = [{"step": 10 * (k + 1), "weights": "raw", "top1": value} for k, value in enumerate(accuracies)]
    return {"variant": variant, "seed": seed, "ended": "all steps", "evaluations": evaluations} | more


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_a_study(folder, studies):
    """Its configs are valid and do not read the test split; the runs are its own; its page shows its tables."""
    study = runpy.run_path(str(folder / "study.py"))
    for fields in study["VARIANTS"].values():
        config = inception_jax.from_config(study["RECIPE"], study["FIELDS"] | fields).config
        assert "test" not in config.data.train_split + config.data.eval_split
    rows = studies.read_rows(folder / "results.jsonl")
    seeds = {name: sorted(row["seed"] for row in rows if row["variant"] == name) for name in study["VARIANTS"]}
    assert all(found == list(range(len(found))) for found in seeds.values()) and rows
    assert sum(map(len, seeds.values())) == len(rows)
    page = (folder / "README.md").read_text()
    assert [line for line in study["tables"](rows).splitlines() if line and line not in page] == []
    assert (folder / "plot.png").is_file()
    longer = [with_steps_times(row, 30) for row in rows]  # the studies at full size are of other lengths
    assert len(study["tables"](longer)) >= len(study["tables"](rows)) and "nan" not in study["tables"](longer)


def with_steps_times(row, factor):
    kinds = ("evaluations", "train")
    return row | {kind: [point | {"step": factor * point["step"]} for point in row[kind]] for kind in kinds}


def test_numbers(studies):
    rows = [row("a", 0, 0.2, 0.6, 0.8), row("a", 1, 0.1, 0.5, 0.5), row("b", 1, 0.4, 0.6, 0.9), row("b", 2, 1.0)]
    assert studies.values(rows, "a", studies.final) == {0: 0.8, 1: 0.5}
    assert math.isnan(studies.final(row("a", 0, 0.5, ended="loss is NaN")))
    assert studies.steps_to(rows[0], 0.4) == pytest.approx(15) and studies.steps_to(rows[0], 0.1) == pytest.approx(5)
    assert studies.steps_to(rows[1], 0.6) == math.inf
    assert studies.paired(rows, "b", "a", studies.final) == [pytest.approx(0.4)]  # seed 1 alone is common
    # Of 1 to 5: standard error 0.7071, Student's t with 4 degrees of freedom 2.7764.
    assert studies.interval([1, 2, 3, 4, 5]) == (pytest.approx(3), pytest.approx(1.9632, abs=1e-4))
    steps, accuracy = studies.curve(rows[:2], "a")
    assert list(steps) == [10, 20, 30] and accuracy.tolist() == [[0.2, 0.6, 0.8], [0.1, 0.5, 0.5]]


def test_the_first_half_is_of_the_runs_own_length(studies):
    one = row("a", 0, *(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    assert [point["top1"] for point in studies.first_half(one, "evaluations")] == [0.1, 0.2, 0.3]
    assert studies.first_half(with_steps_times(one | {"train": []}, 281), "evaluations")[-1]["step"] == 8430
    train = [{"step": 141, "loss_main": 2.5}, {"step": 281, "loss_main": 1.5}]
    assert studies.first_half({"ended": "all steps", "train": train}, "train") == train[:1]
    assert studies.early_loss({"ended": "all steps", "train": train}) == 2.5
    assert studies.first_half(one | {"ended": "loss is NaN"}, "evaluations") == []
    assert math.isnan(studies.early_loss({"ended": "loss is NaN", "train": train}))


def test_processor_seconds_are_of_runs_that_started_once_and_found_their_programs(studies):
    def timed(seed, cpu, compiling, starts=1, **more):
        return row("a", seed, 0.5, cpu_seconds=cpu, compile_seconds=compiling, starts=starts, **more)

    rows = [timed(0, 20.0, 1.0), timed(1, 30.0, 2.0), timed(2, 40.0, 10.0)]
    assert studies.format_cpu_seconds(rows, "a") == "28"
    wrong = [timed(3, 27.2, 54.5, 2), timed(4, 5.0, 0.5, 2), timed(5, 67.5, 66.4), timed(6, 60.0, 15.1)]
    wrong += [timed(7, 3.0, 0.0, ended="loss is NaN")]
    assert not any(map(studies.is_timed, wrong))
    assert studies.format_cpu_seconds(rows + wrong, "a") == "28" and studies.format_cpu_seconds(wrong, "a") == ""


def test_a_row_says_how_often_its_run_started(studies, tmp_path, monkeypatch):
    class Interrupted:
        def train(self, workdir):
            manifest = {"starts": [{"time": "1"}, {"time": "2"}]}
            (workdir / "manifest.json").write_text(json.dumps(manifest))
            return {"compile_seconds": 1.234, "fingerprint": "f"}

    monkeypatch.setattr(inception_jax, "from_config", lambda recipe, fields: Interrupted())
    found = studies._train("digits", {}, tmp_path)
    assert (found["starts"], found["compile_seconds"], found["ended"]) == (2, 1.23, "all steps")


def test_what_is_missing_is_trained(studies, tmp_path, monkeypatch):
    (tmp_path / "study.py").write_text(
        "RECIPE, FIELDS, VARIANTS = 'digits', {'a': 1, 'b': 1}, {'x 1': {'b': 2}, 'y': {}}"
    )
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps({"variant": "y", "seed": 0}) + "\n")
    trained = []

    def train(recipe, fields, workdir):
        trained.append((fields, workdir.relative_to(tmp_path).as_posix()))
        return {"ended": "all steps"}

    monkeypatch.setattr(studies, "_train", train)
    studies.run_study(tmp_path, results, tmp_path / "runs", (0, 1), {"a": 3})
    fields = {"a": 3, "b": 2}
    expected = [(fields | {"seed": 0}, "runs/x_1/0"), (fields | {"seed": 1}, "runs/x_1/1")]
    assert trained == [*expected, ({"a": 3, "b": 1, "seed": 1}, "runs/y/1")]
    studies.run_study(tmp_path, results, tmp_path / "runs", (0, 1), {})
    assert len(trained) == 3 and len(studies.read_rows(results)) == 4


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_a_part_of_a_study_is_reported(folder, studies, tmp_path, monkeypatch, capsys):
    """Of no run, of all but those of a variant, and of one, with its plot; what is missing is named."""
    rows = studies.read_rows(folder / "results.jsonl")
    study = runpy.run_path(str(folder / "study.py"))
    names = list(study["VARIANTS"])
    for some in ([], [row for row in rows if row["variant"] != names[0]]):
        table = study["tables"](some)
        assert table.startswith("| ") and "nan" not in table
        parts = {part for name in names for part in re.split(", (?:rate )?", name)}  # a rate is a column
        assert [part for part in parts if part not in table] == []
        assert f"{names[0]} (seeds 0, 1)" in studies.describe_missing(some, names, (0, 1))
    whole = [name for name in names if {0, 1} <= {row["seed"] for row in rows if row["variant"] == name}]
    assert studies.describe_missing(rows, whole, (0, 1)) == ""
    (tmp_path / "results.jsonl").write_text(json.dumps(rows[0]) + "\n")
    results = f"--results={tmp_path / 'results.jsonl'}"
    monkeypatch.setattr(sys, "argv", ["studies.py", str(folder), "--report", results])
    studies.main()
    out, err = capsys.readouterr()
    assert out.startswith("| ") and "nan" not in out and (tmp_path / "plot.png").is_file()
    assert err.startswith("not in the results: ") and f"{names[1]} (seed {rows[0]['seed']})" in err


def test_wrong_calls_are_one_line(studies, tmp_path, monkeypatch, capsys):
    """None of them trains anything, and none ends as if it had."""
    folder = str(ROOT / "experiments" / "batch_norm")
    for arguments, message in (
        (["experiments/batch_nrm"], "there is no study.py in it; studies: "),
        ([folder, "--only", "BN x3"], "--only=BN x3: no variant of this study; variants: "),
        ([folder, "--set", "num_epochs=0.1"], "name their own --results and --runs"),
    ):
        monkeypatch.setattr(sys, "argv", ["studies.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            studies.main()
        assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(sys, "argv", ["studies.py", folder, "--only", "BN x1", "--seeds", "0"])
    studies.main()
    assert "nothing to train" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["naive_module", "family"])
def test_counts(name, studies):
    study = runpy.run_path(str(ROOT / "experiments" / name / "study.py"))
    assert {variant: study["count"](variant) for variant in study["COUNTS"]} == study["COUNTS"]


@pytest.mark.slow
def test_a_study_as_its_page_starts_it(tmp_path):
    """Auxiliary heads on a few digits, from the command line: heads of weight 0 leave the network as it is."""
    fields = ["data.name=digits", "data.train_split=train[:64]", "data.eval_split=train[64:100]", "num_steps=3"]
    fields += ["model.width_multiplier=0.1", "batch_size=16", "evaluation.batch_size=36", "logging.every_steps=1"]
    fields += ["parallel.devices=1"]
    losses = []
    for name, more in (("with", []), ("without", ["model.aux_heads=false", "loss.aux_weights=null"])):
        results = tmp_path / f"{name}.jsonl"
        command = [sys.executable, "experiments/studies.py", "experiments/auxiliary_heads", "--seeds", "7"]
        command += ["--only", "v1_bn 0", "--results", str(results), "--runs", str(tmp_path / name)]
        subprocess.run([*command, "--set", *fields, *more], check=True, cwd=ROOT)
        (row,) = [json.loads(line) for line in results.read_text().splitlines()]
        assert (row["variant"], row["seed"], row["ended"]) == ("v1_bn 0", 7, "all steps")
        assert row["evaluations"][-1]["step"] == 3 and row["starts"] == 1
        losses.append([step["loss_main"] for step in row["train"]])
    assert len(losses[0]) == 3 and losses[0] == pytest.approx(losses[1], rel=1e-5)

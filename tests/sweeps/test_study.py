"""A study's directory and storage: grids, lists, samplers, resuming, damaged files, errors of flags."""

import json
import re
import subprocess
import sys

import pytest

from inception_jax import config, recipe_files
from inception_jax import sweep as sweep_verb
from inception_jax.errors import UserError
from inception_jax.sweeps import storage

from . import driver_server
from .driver_server import fake_command

LIST = "def get_trials():\n    return [{'optimizer.learning_rate': rate} for rate in (0.01, 0.02, 0.03)]\n"
CONDITIONAL = """
from inception_jax.sweeps.space import choice, integer, real
def get_space():
    return {
        "optimizer.name": choice("sgd", "rmsprop"),
        "optimizer.learning_rate": real(1e-3, 1e-1, log=True, grid=2),
        "optimizer.nesterov": choice(True, False, when={"optimizer.name": "sgd"}),
        "loss.aux_weights": choice(None, (0.3, 0.3)),
    }
"""


def test_a_grid_runs_each_combination_once(study, sweep):
    study.space(CONDITIONAL)
    study.behaviour(epochs=1, seconds=0)
    assert sweep("--sampler=grid", "--workers=2", "--pruner=none") == 0
    params = [trial["params"] for trial in study.trials()]
    assert len(params) == 2 * 2 * (2 + 1)
    assert len({json.dumps(values, sort_keys=True) for values in params}) == 12
    assert all(("optimizer.nesterov" in values) == (values["optimizer.name"] == "sgd") for values in params)
    assert sweep("--sampler=grid", "--workers=2", "--pruner=none") == 0
    assert len(study.trials()) == 12


def test_a_part_of_a_grid_may_be_run(study, sweep):
    study.space(CONDITIONAL)
    study.behaviour(epochs=1, seconds=0)
    assert sweep("--sampler=grid", "--trials=5") == 0
    assert len(study.trials()) == 5
    assert sweep("--sampler=grid", "--trials=100") == 0
    assert len(study.trials()) == 12


def test_listed_configs_come_first_in_their_order(study, sweep):
    study.space(
        CONDITIONAL
        + """
def get_trials():
    return [{"optimizer.learning_rate": 0.05, "optimizer.name": "rmsprop", "optimizer.nesterov": True, "seed": 7},
            {"loss.aux_weights": [0.3, 0.3]}, {}]
"""
    )
    assert sweep("--trials=5") == 0
    first, second, third, *sampled = study.trials()
    assert first["params"]["optimizer.learning_rate"] == 0.05 and first["params"]["optimizer.name"] == "rmsprop"
    assert first["overrides"] == {"optimizer.nesterov": True, "seed": 7}, "what is not varied there is set all the same"
    assert second["params"]["loss.aux_weights"] == [0.3, 0.3] and third["overrides"] == {}
    assert len(sampled) == 2
    assert all(
        set(trial["params"]) >= {"optimizer.name", "optimizer.learning_rate", "loss.aux_weights"}
        for trial in study.trials()
    ), "what a listed config leaves open is chosen"


def test_the_training_process_gets_the_values(study, monkeypatch):
    from inception_jax import recipe_files, sweep

    from . import driver_server

    given = []
    monkeypatch.setattr("inception_jax.sweeps.report.write", lambda directory, study=None: directory / "report.md")

    def command(arguments, cores):
        given.append((list(arguments), cores))
        return fake_command(arguments, cores)

    study.space(CONDITIONAL)
    flags = study.arguments("--trials=6", "--pruner=none", "--config.optimizer.momentum=0.8", "--sampler=random")
    assert sweep.main(flags, command=command, timing=driver_server.timing()) == 0
    for (arguments, cores), trial in zip(given, study.trials(), strict=True):
        assert arguments[-1] == f"--workdir={study.directory}/trials/{trial['number']:04d}" and cores is None
        recipe, _ = recipe_files.load_config(arguments[:-2])
        fields = dict(config.leaves(recipe))
        assert fields["optimizer.momentum"] == 0.8 and fields["num_epochs"] == 4
        for field, value in trial["params"].items():
            assert fields[field] == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("sampler", "all_"),
    [
        ("tpe", 4),
        ("quasi", 4),
        pytest.param("tpe", 14, marks=pytest.mark.slow),
        pytest.param("random", 6, marks=pytest.mark.slow),
        pytest.param("quasi", 9, marks=pytest.mark.slow),
    ],
)
def test_samplers_do_not_depend_on_the_deaths_of_drivers(study, sweep, tmp_path, sampler, all_):
    """One worker: trials begun by many drivers are those that one driver would have begun. (TPE begins with ten.)"""
    study.behaviour(epochs=1, seconds=0)
    for count in (2, all_ - 1, all_):
        assert sweep(f"--trials={count}", f"--sampler={sampler}", "--pruner=none") == 0
    pieces = [trial["params"] for trial in study.trials()]
    study.directory = tmp_path / "other"
    assert sweep(f"--trials={all_}", f"--sampler={sampler}", "--pruner=none") == 0
    assert [trial["params"] for trial in study.trials()] == pieces
    rates = {values["optimizer.learning_rate"] for values in pieces}
    assert len(rates) == all_
    study.directory = tmp_path / "seeded"
    assert sweep(f"--trials={all_}", f"--sampler={sampler}", "--pruner=none", "--seed=1") == 0
    assert rates.isdisjoint(trial["params"]["optimizer.learning_rate"] for trial in study.trials())


DIFFERENCES = {
    "config": (["--config.optimizer.momentum=0.5"], None, r"config.optimizer.momentum = 0.5, but .* began with 0.9"),
    "sampler": (["--sampler=random"], None, "sampler = 'random', but the study there began with 'tpe'"),
    "seed": (["--seed=3"], None, "seed = 3, but the study there began with 0"),
    "metric": (["--metric=loss"], None, "metric = 'loss'"),
    "objective": (["--objective=best"], None, "objective = 'best'"),
    "pruner": (["--pruner=median"], None, "pruner = 'median'"),
    "factor": (["--reduction_factor=4"], None, "reduction_factor = 4, but the study there began with 3"),
    "space": ([], ("1e-4", "1e-3"), r"space.optimizer.learning_rate.low = 0.001, but .* began with 0.0001"),
    "list": ([], ("def get_space", "def get_trials():\n    return [{'seed': 1}]\ndef get_space"), r"get_trials\(\)"),
    "storage": (["--storage=sqlite:///x"], None, "storage = 'sqlite:///x'"),
}


def test_another_study_in_the_same_directory_is_refused(study, sweep, tmp_path):
    assert sweep("--trials=1") == 0
    before = (tmp_path / "space.py").read_text()
    for flags, edit, message in DIFFERENCES.values():
        if edit:
            study.space(before.replace(*edit))
        with pytest.raises(UserError, match=message):
            sweep("--trials=2", *flags)
        study.space(before)
    assert sweep("--trials=2", "--workers=2", "--retries=9", "--hours=9", "--config.data.threads=1") == 0
    assert len(study.trials()) == 2


def test_a_study_of_an_earlier_version_continues(study, sweep):
    """Its study.json has neither the newer fields of the config nor the properties of the metric."""
    assert sweep("--trials=1") == 0
    path = study.directory / "study.json"
    content = json.loads(path.read_text())
    del content["metric_properties"], content["config"]["stop"], content["config"]["loss"]["class_weights"]
    del content["config"]["model"]["convolution"]
    path.write_text(json.dumps(content))
    given = []

    def command(arguments, cores):
        given.append(recipe_files.load_config([one for one in arguments if not one.startswith("--workdir")])[0])
        return fake_command(arguments, cores)

    for number, flags in ((2, ()), (3, ("--config.model.convolution=exact",))):
        flags = study.arguments(f"--trials={number}", *flags)
        assert sweep_verb.main(flags, command=command, timing=driver_server.timing()) == 0
    assert [recipe.model.convolution for recipe in given] == ["exact", "exact"], "as the trials before them"
    with pytest.raises(UserError, match=r"config.model.convolution = 'fast', but .* began with 'exact'"):
        sweep("--trials=4", "--config.model.convolution=fast")
    with pytest.raises(UserError, match=r"config.stop.patience = 3, but .* began with None"):
        sweep("--trials=2", "--config.stop.patience=3")


def test_directories_that_are_not_studies(study, sweep):
    study.directory.mkdir()
    (study.directory / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"is not empty and is not a study: it has 'thesis.tex'"):
        sweep("--trials=1")
    (study.directory / "thesis.tex").rename(study.directory / "config.json")
    with pytest.raises(UserError, match="is the workdir of a training run"):
        sweep("--trials=1")
    assert sorted(path.name for path in study.directory.iterdir()) == ["config.json"]
    (study.directory / "config.json").unlink()
    assert sweep("--trials=1") == 0
    (study.directory / "study.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"study.json is damaged"):
        sweep("--trials=1")
    (study.directory / "study.json").write_text("{}")
    with pytest.raises(UserError, match=r"study.json is damaged: it has no 'name'"):
        sweep("--trials=1")
    (study.directory / "study.json").unlink()
    with pytest.raises(UserError, match=r"its study.json is missing"):
        sweep("--trials=1")
    study.directory = study.path / "space.py"
    with pytest.raises(UserError, match="is a file, not a directory"):
        sweep("--trials=1")


def test_a_journal_that_was_lost(study, sweep):
    assert sweep("--trials=1") == 0
    (study.directory / "journal.log").rename(study.path / "kept")
    with pytest.raises(UserError, match=r"journal.log does not contain this study, but .* has trials"):
        sweep("--trials=2")
    (study.path / "kept").replace(study.directory / "journal.log")
    assert sweep("--trials=2") == 0


def test_a_torn_last_line_of_the_journal_is_cut_off(study, sweep):
    assert sweep("--trials=2") == 0
    journal = study.directory / "journal.log"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker_id":"x","study_')
    assert sweep("--trials=3") == 0
    assert journal.read_bytes().startswith(whole + b'{"op_code"') and b'"study_{' not in journal.read_bytes()
    assert f"{journal}: its last line was incomplete (36 bytes) and was cut off" in study.log()
    assert study.statuses() == ["finished"] * 3 or "pruned" in study.statuses()
    assert [trial.number for trial in study.stored().trials] == [0, 1, 2]


def test_a_journal_that_is_damaged_in_the_middle(study, sweep):
    assert sweep("--trials=2") == 0
    journal = study.directory / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], b"\0\0\0\0\n", *lines[4:]]))
    with pytest.raises(UserError, match=r"journal.log is damaged .*restore a copy"):
        sweep("--trials=3")


@pytest.mark.attack
def test_lines_of_the_journal_that_were_removed_or_changed(study, sweep):
    """Optuna replays the lines that are there: a trial would silently get other parameters, or another number."""
    study.behaviour(epochs=1, seconds=0)
    assert sweep("--trials=3", "--pruner=none") == 0
    journal = study.directory / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    rate = next(i for i, line in enumerate(lines) if b'"param_name":"optimizer.learning_rate"' in line)
    changes = {
        "removed": [lines[:i] + lines[i + 1 :] for i in range(len(lines) - 1)],
        "swapped": [[*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]] for i in range(0, len(lines) - 2, 5)],
        "doubled": [[*lines[: i + 1], *lines[i:]] for i in range(0, len(lines) - 1, 5)],
        "changed": [
            [*lines[:rate], lines[rate].replace(b'_value_internal":0.', b'_value_internal":0.1'), *lines[rate + 1 :]]
        ],
        "unknown": [[*lines, b'{"op_code":99,"worker_id":"x"}\n'], [*lines, b"[]\n"], [*lines, b'{"op_code":4}\n']],
    }
    for change, journals in changes.items():
        for content in journals:
            assert content != lines, change
            journal.write_bytes(b"".join(content))
            with pytest.raises(UserError, match=r"journal.log is damaged.*; restore a copy, or begin another") as error:
                sweep("--trials=4", "--pruner=none")
            assert "\n" not in str(error.value)
    journal.write_bytes(b"".join(lines))
    assert sweep("--trials=4", "--pruner=none") == 0
    assert len(study.stored().trials) == 4  # Optuna's own reader ignores the additional key


@pytest.mark.attack
def test_lines_without_a_checksum_are_accepted(study, sweep):
    """An earlier version wrote none, and Optuna's dashboard appends lines of its own."""
    study.behaviour(epochs=1, seconds=0)
    assert sweep("--trials=2", "--pruner=none") == 0
    journal = study.directory / "journal.log"
    plain = [json.loads(line) for line in journal.read_text().splitlines()]
    assert all(isinstance(line.pop("previous"), int) for line in plain)
    journal.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in plain))
    assert sweep("--trials=3", "--pruner=none") == 0
    note = {"op_code": 2, "worker_id": "dashboard", "study_id": 0, "user_attr": {"note": "fine"}}
    with open(journal, "a") as file:
        file.write(json.dumps(note) + "\n")
    assert sweep("--trials=4", "--pruner=none") == 0
    assert study.stored().user_attrs["note"] == "fine"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if "dashboard" not in line))
    with pytest.raises(UserError, match="a line was removed, added or changed"):
        sweep("--trials=4", "--pruner=none")


@pytest.mark.attack
def test_a_trial_that_is_continued_has_the_parameters_that_it_began_with(study, sweep, drivers):
    """Lines that are missing at the journal's end, as after a loss of power: the sampler would choose anew."""
    study.behaviour(epochs=5, seconds=0.01)
    assert drivers.start(study, "--trials=1", "--workers=1", die_at=["write", 1]).wait() < 0
    path = study.directory / "trials" / "0000" / "trial.json"
    record = json.loads(path.read_text())
    record["params"]["optimizer.learning_rate"] = 0.123
    path.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"trial.json: trial 0 began with optimizer.learning_rate = 0.123, and the stor"
    ):
        sweep("--trials=1", "--workers=1")


def test_a_damaged_record_is_made_anew(study, sweep, drivers):
    study.behaviour(epochs=5, seconds=0.01)
    assert drivers.start(study, "--trials=1", "--workers=1", die_at=["write", 1]).wait() < 0
    (study.directory / "trials" / "0000" / "trial.json").write_text('{"number"')
    assert sweep("--trials=1", "--workers=1") == 0
    assert study.statuses() == ["finished"] and study.epochs_trained(0) == [1, 2, 3, 4, 5]


def test_a_database_in_place_of_the_journal(study, sweep, tmp_path):
    optuna = storage.import_optuna()
    url = f"sqlite:///{tmp_path / 'studies.db'}"
    study.behaviour(epochs=2, seconds=0)
    assert sweep("--trials=2", f"--storage={url}") == 0
    assert sweep("--trials=4", f"--storage={url}", "--workers=2") == 0
    assert not (study.directory / "journal.log").exists()
    name = json.loads((study.directory / "study.json").read_text())["name"]
    assert re.fullmatch(r"study-[0-9a-f]{6}", name)
    stored = optuna.load_study(study_name=name, storage=storage.open_storage(None, url, None)).trials
    assert [trial.user_attrs["status"] for trial in stored] == study.statuses() and len(stored) == 4


@pytest.mark.slow
def test_two_drivers_share_a_database(study, drivers, tmp_path):
    study.behaviour(epochs=2, seconds=0.01)
    flags = ["--trials=6", f"--storage=sqlite:///{tmp_path / 'studies.db'}", "--workers=2"]
    both = [drivers.start(study, *flags) for _ in range(2)]
    assert [driver.wait() for driver in both] == [0, 0], [driver.output() for driver in both]
    assert [trial["number"] for trial in study.trials()] == list(range(6))
    assert set(study.statuses()) <= {"finished", "pruned"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "the storage nonsense: "),
        ("postgresql://me:secret@localhost:1/x", "postgresql://me@localhost:1/x: "),
        ("sqlite:////proc/none/x.db", "the storage sqlite:////proc/none/x.db: "),
    ],
)
def test_a_database_that_is_none(study, sweep, monkeypatch, url, message):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "inception_jax.sweep", f"--storage={url}"])
    with pytest.raises(UserError, match=re.escape(message)) as error:
        sweep("--trials=1", f"--storage={url}")
    assert "secret" not in str(error.value) and "\n" not in str(error.value)
    assert "secret" not in (study.directory / "study.json").read_text()


TO_TARGET = ["--trials=1", "--metric=steps_to_target", "--config.stop.target=0.9"]
FLAGS = {
    "no budget": ([], "--sampler=tpe never ends; give a budget: --trials=N or --hours=H$"),
    "trials": (["--trials=0"], "--trials=0: it must be at least 1"),
    "hours": (["--hours=0"], "--hours=0: it must be greater than 0"),
    "workers": (["--trials=1", "--workers=0"], "--workers=0: it must be at least 1"),
    "devices": (["--trials=1", "--devices=0,1"], "--devices=0,1: no accelerator was found on this machine"),
    "retries": (["--trials=1", "--retries=-1"], "--retries=-1: it must be at least 0"),
    "seed": (["--trials=1", "--seed=-1"], "--seed=-1: it must be at least 0"),
    "factor": (["--trials=1", "--reduction_factor=1"], "--reduction_factor=1: it must be at least 2"),
    "unread factor": (["--trials=1", "--pruner=median", "--reduction_factor=3"], "only --pruner=halving reads it"),
    "unread evaluations": (["--trials=1", "--pruner=none", "--min_evaluations=3"], "--pruner=none prunes nothing"),
    "endless grid": (["--sampler=grid"], "optimizer.learning_rate .* has infinitely many values"),
    "flag": (["--trails=3"], "unknown argument '--trails'; did you mean '--trials'"),
    "sampler": (["--sampler=bayes"], "--sampler='bayes': it must be one of "),
    "no target": (["--trials=1", "--metric=steps_to_target"], "the recipe has no target; set one"),
    "unread pruner": ([*TO_TARGET, "--pruner=median"], "--pruner=median compares evaluations"),
    "unread objective": ([*TO_TARGET, "--objective=best"], "--objective=best chooses among evaluations"),
    "metric": (
        ["--trials=1", "--metric=step_to_target"],
        "--metric=step_to_target: it must be one of .*; did you mean 'steps_to_target'",
    ),
}


@pytest.mark.parametrize("mistake", FLAGS)
def test_flags_that_cannot_be_used(study, sweep, monkeypatch, mistake):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    flags, message = FLAGS[mistake]
    with pytest.raises(UserError, match=message):
        sweep(*flags)
    assert not study.directory.exists()


@pytest.mark.parametrize("field", ["stop.target_metric", "checkpoint.best_metric"])
def test_trials_without_one_target_are_refused(study, sweep, field):
    study.space(f"def get_trials():\n    return [{{'{field}': 'top5'}}, {{}}]")
    with pytest.raises(UserError, match=rf"varies {field}; all trials need one target"):
        sweep("--metric=steps_to_target", "--config.stop.target=0.9")
    assert not study.directory.exists()


def test_a_list_without_a_space_has_no_grid(study, sweep):
    study.space(LIST)
    with pytest.raises(UserError, match=r"has no get_space\(\) to make a grid of"):
        sweep("--sampler=grid")


def test_a_space_of_few_configs_is_told_that_a_grid_ends(study, sweep):
    study.space(
        "from inception_jax.sweeps.space import choice\ndef get_space():\n    return {'seed': choice(1, 2, 3)}\n"
    )
    with pytest.raises(UserError, match=r"; --sampler=grid takes each of the 3 configs of the space once$"):
        sweep()


def test_without_optuna_it_is_one_line():
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "from inception_jax import command_line, sweep\n"
        "sys.argv = ['sweep', '--config=configs/digits.py', '--study=x', '--space=y']\n"
        "command_line.run(sweep.main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: a sweep needs Optuna, which is not installed: pip install 'inception_jax[sweep]'\n"


def test_only_the_report(study, sweep):
    from inception_jax import sweep as command

    arguments = [f"--study={study.directory}", "--report"]
    with pytest.raises(UserError, match="this directory has no study"):
        command.main(arguments)
    assert sweep("--trials=1") == 0
    assert command.main(arguments) == 0
    assert len(study.trials()) == 1
    assert study.stored().metric_names == ["final top1"]  # Optuna's dashboard shows it
    for flag in ("--config=configs/digits.py", "--config.seed=1", "--trials=2", "--sampler=tpe", "--space=x.py"):
        name = flag.partition("=")[0].removesuffix(".seed")
        with pytest.raises(UserError, match=f"^{name}: has no effect with --report; leave it out$"):
            command.main([*arguments, flag])

"""The report of a study: report.md, the recipe, the table, and the content of the plots."""

import csv
import json
import math
import re

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex

from inception_jax import config as configs
from inception_jax.config import leaves
from inception_jax.errors import UserError
from inception_jax.metrics import wilson_interval
from inception_jax.recipe_files import load_config
from inception_jax.runs import plot_style
from inception_jax.sweeps import importance, parallel_coordinates, plots, recipe, report, report_sections, study_files
from inception_jax.sweeps.parameters import from_json
from inception_jax.sweeps.scales import AxisScale
from inception_jax.sweeps.space import choice, integer, real

from .made_studies import COUNT, SPACE, MadeStudy, config_with

RATE = {"optimizer.learning_rate": SPACE["optimizer.learning_rate"]}


def at(rate, **more):
    return {"optimizer.learning_rate": rate, **more}


def table(text, title):
    """The cells of a section's table, line by line."""
    section = text.split(f"## {title}\n\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in (*rows[:1], *rows[2:])]


@pytest.fixture
def study(tmp_path):
    made = MadeStudy(tmp_path / "study", RATE)
    made.add(values=at(0.001), right=[100, 200, 300, 340])
    made.add(values=at(0.01), right=[150, 250, 350, 355])
    made.add("pruned", values=at(0.0002), right=[40, 50])
    made.add("diverged", values=at(0.25), right=[36], message="step 60 has diverged: loss nan")
    made.add("failed", values=at(0.02), right=[], message="died 3 times in a row | SIGKILL")
    made.add(values=at(0.02), right=[100, 300, 352, 355])
    made.add("running", values=at(0.03), right=[120])
    return made


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(report, "_draw_plots", lambda study, estimate: [])


without_plots = pytest.mark.usefixtures("undrawn")  # a second for each report, of which these tests read the words


# ---- report.md ----


@without_plots
def test_the_report_says_what_was_asked_and_what_came_out(study):
    text = report.write(study.path).read_text()
    question = text.split("\n\n")[1]
    assert question.startswith(
        "Which `optimizer.learning_rate` is best for the recipe `configs/digits.py` (with "
        "`num_epochs` = 4.0)? The objective is top-1 accuracy (the final evaluation, of raw"
    )
    assert "the tree-structured Parzen estimator (TPE), seed 0" in question
    assert "successive halving (not before evaluation 2, one of 3 continues at each rung)" in question
    assert "7 trials have begun" in question
    assert table(text, "Space")[1] == ["`optimizer.learning_rate`", "real", "0.0001 to 0.3, logarithmic", ""]
    counted = {row[0]: row[1] for row in table(text, "Trials")[1:]}
    assert counted == {"finished": "3", "pruned": "1", "diverged": "1", "failed": "1", "running": "1"}
    low, high = wilson_interval(355, COUNT)
    assert f"Trial 1: **98.61 % top-1 accuracy**, 95 % interval {100 * low:.2f}–{100 * high:.2f} %" in text
    assert "Equally good: trial 5;" in text
    assert "**This value is optimistic.** It is the best of 3 finished trials, selected on `test`" in text
    assert [row[1:3] for row in table(text, "Ten best trials")[1:]] == [
        ["1", "98.61 %"],
        ["5", "98.61 %"],
        ["0", "94.44 %"],
    ]
    assert [row[0:2] + row[4:] for row in table(text, "Failed and diverged trials")[1:]] == [
        ["3", "diverged", "step 60 has diverged: loss nan"],
        ["4", "failed", "died 3 times in a row \\| SIGKILL"],
    ]


@without_plots
def test_the_best_trial_is_told_by_what_it_changed(tmp_path):
    made = MadeStudy(tmp_path / "study")
    made.add(
        values=at(
            0.02,
            **{"optimizer.name": "sgd", "optimizer.momentum": 0.9, "loss.aux_weights": (0.0, 0.0), "batch_size": 64},
        ),
        overrides={"seed": 7},
    )
    text = report.write(made.path).read_text()
    assert table(text, "Best trial") == [
        ["field", "recipe", "trial 0"],
        ["`loss.aux_weights`", "unset", "(0.0, 0.0)"],
        ["`optimizer.learning_rate`", "0.01", "0.02"],
        ["`seed`", "0", "7"],
    ]


def test_trials_with_other_data_are_marked(tmp_path):
    study = MadeStudy(tmp_path / "study")
    for digest in ("a", "a", "b"):
        record = {"dataset": "folder:x", "train_split": {"split": "train", "examples": 9, "digest": digest * 64}}
        (study.add() / "data.json").write_text(json.dumps(record))
    found = "\n".join(report_sections.counts(study_files.read(study.path)))
    assert (
        "**Not all trials are comparable: other training examples in a split of the same name (folder:x, train" in found
    )
    assert "trial 0, trial 1; 9 of digest bbbbbbbb: trial 2" in found


@without_plots
def test_deaths_and_time(tmp_path):
    made = MadeStudy(tmp_path / "study", RATE)
    killed = {"time": 0.0, "host": "a", "pid": 1, "slot": "0", "ended": 5.0, "exit": -9}
    starts = [killed, killed | {"exit": 143}, killed | {"exit": 5}, killed | {"ended": None, "exit": None}]
    made.add(values=at(0.01), starts=starts, seconds=100.0)
    made.add(values=at(0.02), seconds=300.0)
    made.add("pruned", values=at(0.03), epochs=1, seconds=40.0)
    text = report.write(made.path).read_text()
    assert "3 processes were started again" in text
    assert table(text, "Restarts")[1:] == [
        ["0", "finished", "4", "SIGKILL, SIGTERM (saved), exit code 5, still running"]
    ]
    assert table(text, "Time")[1:] == [
        ["finished", "2", "6:40", "91 %"],
        ["pruned", "1", "40 s", "9 %"],
        ["all", "3", "7:20", ""],
    ]
    assert (
        "Pruning saved about 2:40 (estimate: each of the 1 pruned trials" in text
    )  # the median finished trial took 200 s


@without_plots
def test_how_to_go_on(study):
    text = report.write(study.path).read_text()
    block = text.split("## Next steps")[1].split("```")[1].strip().splitlines()
    commands = [line for line in block if not line.startswith("#")]
    assert commands == [
        f"python -m inception_jax.train --config={study.path}/best.py --workdir=runs/best",
        f"python -m inception_jax.sweep --study={study.path}",
        "python -m inception_jax.compare "
        + " ".join(f"{study.path}/trials/{n:04d}" for n in (1, 5, 0))
        + f" --output={study.path}/comparison",
        f"optuna-dashboard {study.path}/journal.log",
    ]


def test_a_study_in_which_nothing_has_finished(tmp_path):
    made = MadeStudy(tmp_path / "study", RATE)
    text = report.write(made.path).read_text()
    assert "0 trials have begun" in text and "There is no best.py: no trial has finished." in text
    assert "Not estimated: 0 finished trials are too few; 4 are needed." in text
    assert {path.name for path in made.path.iterdir()} == {
        "study.json", "trials", "report.md", "report.html", "trials.csv"
    }  # fmt: skip
    made.add("running", values=at(0.01), right=[])
    made.add("diverged", values=at(0.3), right=[36])
    report.write(made.path)
    assert {path.name for path in made.path.glob("*.png")} == {"learning_curves.png"}


def test_what_there_is_nothing_for_any_more_goes(study):
    (study.path / "importance.png").write_text("of an earlier report")
    report.write(study.path)
    assert not (study.path / "importance.png").exists()  # three finished trials
    for number in (0, 1, 5):
        (study.path / "trials" / f"{number:04d}" / "trial.json").unlink()
    report.write(study.path)
    assert not (study.path / "best.py").exists() and not (study.path / "slices.png").exists()


def test_damaged_trials_are_noted_and_the_rest_reported(study):
    (study.path / "trials" / "0001" / "trial.json").write_text("{")
    (study.path / "trials" / "0005" / "config.json").write_text("{")
    (study.path / "trials" / "0005" / "metrics.jsonl").unlink()
    (study.path / "trials" / "notes").mkdir()
    text = report.write(study.path).read_text()
    assert re.search(r"^> .*0001/trial\.json is damaged", text, re.MULTILINE)
    assert ["unknown", "1", "its trial.json is damaged or missing"] in table(text, "Trials")
    assert "Trial 5: **98.61 % top-1 accuracy**; its run" in text  # without an interval: nobody knows of how many
    assert table(text, "Best trial")[1:] == [["`optimizer.learning_rate`", "–", "0.02"]]
    for path, content in ((study.path / "study.json", "{"), (study.path / "study.json", None)):
        path.write_text(content) if content else path.unlink()
        with pytest.raises(UserError, match=r"study\.json"):
            report.write(study.path)


def test_values_of_another_kind_are_damage_and_not_a_traceback(study):
    path = study.path / "trials" / "0000" / "trial.json"
    path.write_text(
        json.dumps(
            json.loads(path.read_text())
            | {
                "starts": ["x", {"exit": {}}, {"exit": None}],
                "evaluations": 3,
                "value": 1.5,
                "params": [],
                "seconds": "x",
            }
        )
    )
    text = report.write(study.path).read_text()
    assert table(text, "Ten best trials")[1][1:4] == ["0", "150.00 %", "–"]
    assert table(text, "Restarts")[1:] == [["0", "finished", "2", "still running, still running"]]
    content = json.loads((study.path / "study.json").read_text())
    for change, expected in (
        ({"metric": "f1"}, "none of loss, top1"),
        ({"space": {}}, "'space' .* not a list"),
    ):
        (study.path / "study.json").write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=expected):
            report.write(study.path)


@without_plots
def test_a_loss_is_minimized_and_has_no_interval(tmp_path):
    made = MadeStudy(tmp_path / "study", RATE, metric="loss", direction="minimize")
    for right in ([100, 340], [200, 350], [200, 330]):
        made.add(values=at(0.01), right=right)
    text = report.write(made.path).read_text()
    assert "Trial 1: **0.0278 loss**; its run" in text and "less is better" in text
    assert study_files.read(made.path).ranked()[0].number == 1


@without_plots
def test_the_table_of_all_trials(study):
    report.write(study.path)
    with open(study.path / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == [
        "finished",
        "finished",
        "pruned",
        "diverged",
        "failed",
        "finished",
        "running",
    ]
    assert float(rows[1]["value"]) == 355 / COUNT and float(rows[1]["optimizer.learning_rate"]) == 0.01
    assert rows[2]["value"] == "" and rows[2]["evaluations"] == "2" and rows[4]["message"].endswith("| SIGKILL")


# ---- best.py ----


@without_plots
def test_the_best_config_comes_back_exactly(study):
    report.write(study.path)
    loaded, _ = load_config([f"--config={study.path}/best.py"])
    assert configs.Config(loaded).to_dict() == json.loads((study.path / "trials/0001/config.json").read_text())
    text = (study.path / "best.py").read_text()
    assert text.startswith('"""The best trial of the sweep study: number 1, 98.61 % top-1 accuracy.\n')
    assert "    config.optimizer.learning_rate = 0.01\n" not in text  # the default
    assert "    config.data.image_size = 32\n" in text
    assert max(len(line) for line in text.splitlines() if not line.startswith("    python")) <= 120


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer.learning_rate": 0.1 + 0.2, "optimizer.weight_decay": 1e-05, "ema.decay": 0.9999},
        {"loss.aux_weights": (0.3, 0.3), "augmentation.area": (0.7, 1.0)},
        {"optimizer.freeze": ("^conv", 'it\'s "quoted" \\d+$'), "optimizer.learning_rate_multipliers": (("^a", 0.1),)},
        {"model.options.bn_momentum": 0.97, "model.options.lrn": False, "model.name": "inception_v1_bn"},
        {"data.name": "folder:/a b/\"c'", "num_steps": 7, "batch_size": 1, "augmentation.flip": False},
        {"optimizer.freeze": tuple(f"^inception_{number}{letter}/branch" for number in (3, 4) for letter in "abcde")},
        {},
    ],
)
def test_every_kind_of_value_survives_the_recipe(tmp_path, values):
    config = json.loads(config_with(values))
    path = tmp_path / "recipe.py"
    path.write_text(recipe.format_recipe(config, 'A "quoted" \\ name""".\n\nMore.'))
    loaded, _ = load_config([f"--config={path}"])
    assert configs.Config(loaded).to_dict() == config
    flat = dict(leaves(loaded))
    assert {field: flat[field] for field in values} == values  # tuples, where JSON has lists
    text = path.read_text()
    assert (
        text.count("    config.") == len({*values, "num_epochs", "data.image_size"})
        and max(map(len, text.splitlines())) <= 120
    )


@without_plots
def test_a_lost_config_is_made_of_the_study_and_the_values(study):
    path = study.path / "trials" / "0001" / "config.json"
    before = json.loads(path.read_text())
    path.unlink()
    report.write(study.path)
    loaded, _ = load_config([f"--config={study.path}/best.py"])
    assert configs.Config(loaded).to_dict() == before


@without_plots
def test_a_config_of_another_version_has_no_recipe_but_a_reason(study):
    path = study.path / "trials" / "0001" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": 1}))
    text = report.write(study.path).read_text()
    assert "There is no best.py: config.colour: no such field in this version" in text
    assert not (study.path / "best.py").exists()


# ---- plots ----


def drawn_lines(axes, colour):
    return [line for line in axes.lines if to_hex(line.get_color()).upper() == colour]


@pytest.mark.parametrize("count", [5, 24, 300])
def test_a_study_of_any_size_has_all_plots(tmp_path, count):
    made = MadeStudy(tmp_path / "study")
    made.fill(count, with_run=count < 30)
    text = report.write(made.path).read_text()
    names = re.findall(r"!\[.*\]\((.*)\)", text)
    assert names == [f"{name}.png" for name in report.PLOTS]
    for name in names:
        image = cv2.imread(str(made.path / name))
        assert image is not None and image.std() > 5
        edge = np.concatenate([image[:2].ravel(), image[:, :2].ravel(), image[-2:].ravel()])
        assert (edge == 255).all(), f"{name}: something is cut off"


def test_history_tells_the_trials_apart(study, tmp_path):
    axes = plots.history(study_files.read(study.path), tmp_path / "history.png").axes[0]
    shown = {re.sub(r" \(.*", "", line.get_label()): line for line in axes.lines if line.get_label()[0] != "_"}
    assert list(shown["finished"].get_xdata()) == [0, 1, 5]
    np.testing.assert_allclose(shown["finished"].get_ydata(), [100 * n / COUNT for n in (340, 355, 355)])
    np.testing.assert_allclose(shown["pruned"].get_ydata(), [100 * 50 / COUNT])
    np.testing.assert_allclose(shown["running"].get_ydata(), [100 * 120 / COUNT])
    assert list(shown["best so far"].get_xdata()) == [0, 1, 5, 6]
    np.testing.assert_allclose(shown["best so far"].get_ydata(), [100 * n / COUNT for n in (340, 355, 355, 355)])
    on_ground = [line.get_xdata() for line in axes.lines if line.get_transform() == axes.get_xaxis_transform()]
    assert [list(numbers) for numbers in on_ground if len(numbers)] == [[3], [4]]  # diverged, failed
    low, high = axes.get_ylim()
    assert low < 100 * 50 / COUNT and high == 100
    assert axes.get_yscale() == "function"


def test_plots_of_trials_that_are_all_perfect(tmp_path):
    made = MadeStudy(tmp_path / "study", RATE)
    for place in range(5):
        made.add(values=at(0.01 * 2**place), right=[COUNT, COUNT])
    report.write(made.path)
    axes = plots.history(study_files.read(made.path), tmp_path / "history.png").axes[0]
    assert axes.get_ylim() == (99, 100)
    assert (made.path / "parallel_coordinates.png").exists()


def test_learning_curves_of_a_study_of_steps_to_target_are_of_the_metric_of_the_target(tmp_path):
    made = MadeStudy(tmp_path / "study", RATE, metric="steps_to_target", direction="minimize")
    made.add(values=at(0.01), right=[COUNT // 2, COUNT], value=2.0)
    made.add(values=at(0.02), right=[0, COUNT // 4], value=None)
    axes = plots.learning_curves(study_files.read(made.path), tmp_path / "curves.png").axes[0]
    assert axes.get_ylabel().startswith("top-1 accuracy")
    (best,) = drawn_lines(axes, plot_style.ORANGE)
    np.testing.assert_allclose(best.get_ydata(), [50, 100])
    axes = plots.history(study_files.read(made.path), tmp_path / "history.png").axes[0]
    assert axes.get_ylabel() == "steps to target" and axes.get_ylim()[0] > 1  # not the accuracy of a trial without


def test_learning_curves_end_where_a_trial_was_pruned(study, tmp_path):
    axes = plots.learning_curves(study_files.read(study.path), tmp_path / "curves.png").axes[0]
    (best,) = drawn_lines(axes, plot_style.ORANGE)
    np.testing.assert_allclose(best.get_data(), [[1, 2, 3, 4], [100 * n / COUNT for n in (150, 250, 350, 355)]])
    (pruned,) = drawn_lines(axes, plot_style.GREY)
    assert list(pruned.get_xdata()) == [1, 2] and pruned.get_marker() == "|"
    assert len(axes.lines) == 6  # one has no evaluation


def test_parallel_coordinates_have_gaps_and_the_best_on_top(tmp_path):
    made = MadeStudy(tmp_path / "study")
    sgd = {"optimizer.name": "sgd", "optimizer.momentum": 0.8, "batch_size": 16, "loss.aux_weights": (0.3, 0.3)}
    plain = {"optimizer.name": "rmsprop", "batch_size": 128, "loss.aux_weights": None}
    made.add(values=at(0.3, **plain), right=[100])
    made.add(values=at(0.0001, **sgd), right=[350])
    made.add("pruned", values=at(0.001, **plain), right=[30])
    axes = parallel_coordinates.parallel_coordinates(study_files.read(made.path), tmp_path / "p.png").axes[0]
    lines = [line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 6]
    assert len(lines) == 3
    pruned, worse, best = lines
    places = {text.get_text(): round(text.get_position()[0]) for text in axes.texts if text.get_weight() == "bold"}
    names = ("name", "momentum", "learning_rate (log)", "batch_size (log)", "aux_weights", "top-1 accuracy, %")
    assert [places[name] for name in names] == [0, 1, 2, 3, 4, 5]  # momentum beside what it depends on
    name, momentum, rate, batch, weights = range(5)
    assert np.isnan(worse[momentum]) and np.isnan(worse).sum() == 1 and not np.isnan(best).any()
    assert (worse[rate], best[rate], best[momentum], worse[batch], best[batch]) == (1.0, 0.0, 0.0, 1.0, 0.0)  # the ends
    assert best[name] < 0.5 < worse[name] and best[weights] < 1 / 3 and worse[weights] > 2 / 3  # in their bands
    assert (pruned[5], best[5]) == (0.0, 1.0) and 0 < worse[5] < 1
    by_order = sorted((line for line in axes.lines if len(line.get_xdata()) == 6), key=lambda line: line.get_zorder())
    assert to_hex(by_order[-1].get_color()).upper() == plot_style.ORANGE
    texts = [text.get_text() for text in axes.texts]
    assert {"learning_rate (log)", "sgd", "rmsprop", "(0.3, 0.3)", "unset", "97.22", "8.333"} <= set(texts)


def test_slices_put_each_value_where_its_parameter_is(study, tmp_path):
    drawn = plots.slices(study_files.read(study.path), tmp_path / "slices.png")
    axes = drawn.axes[0]
    pale, coloured = axes.collections
    spots = (np.log10([0.001, 0.01, 0.02]) + 4) / (np.log10(0.3) + 4)
    np.testing.assert_allclose(coloured.get_offsets()[:, 0], spots)
    np.testing.assert_allclose(coloured.get_offsets()[:, 1], [100 * n / COUNT for n in (340, 355, 355)])
    assert list(coloured.get_array()) == [0, 1, 5] and len(pale.get_offsets()) == 3  # pruned, diverged, running
    assert axes.get_xlabel() == "optimizer.learning_rate (log)"


def test_axes_of_parameters():
    def scale(one, values=()):
        return AxisScale(from_json({"field": "x", **one.to_json()}), values)

    log = scale(real(1e-4, 0.3, log=True))
    assert log.position(1e-4) == 0 and log.position(0.3) == pytest.approx(1) and math.isnan(log.position("sgd"))
    assert [label for _, label in log.ticks()] == ["0.0001", "0.001", "0.01", "0.1"]
    assert [label for _, label in scale(integer(16, 128, log=True)).ticks()] == ["20", "50", "100"]
    assert [label for _, label in scale(real(0.8, 0.99)).ticks()] == ["0.8", "0.85", "0.9", "0.95"]
    assert scale(real(0.5, 0.5)).position(0.5) == 0.5
    assert scale(real(0.1, 0.5), [0.9]).position(0.9) == 1.0  # a listed config may lie outside of the space
    kinds = scale(choice(True, 1, None, (1, 2)), ["other"])
    assert [round(10 * kinds.position(value)) for value in (True, 1, None, (1, 2), "other")] == [1, 3, 5, 7, 9]


# ---- importance ----


def test_importance_finds_what_mattered(tmp_path):
    made = MadeStudy(tmp_path / "study")
    made.fill(40)
    found = importance.estimate(study_files.read(made.path))
    assert found.method == "fANOVA" and found.trials == 24 and found.left_out == ["optimizer.momentum"]
    assert next(iter(found.shares)) == "optimizer.learning_rate" and found.shares["optimizer.learning_rate"] > 0.6
    assert sum(found.shares.values()) == pytest.approx(1)


def test_importance_takes_listed_configs_that_are_not_of_the_space(tmp_path):
    made = MadeStudy(tmp_path / "study", RATE | {"loss.label_smoothing": real(0.0, 0.2, step=0.05)})
    for place in range(8):
        made.add(values=at(10 ** (-3 + place / 4), **{"loss.label_smoothing": 0.05 * (place % 3)}))
    made.add(values=at(0.01, **{"loss.label_smoothing": 0.03}))  # between two steps
    made.add(values=at(2.0, **{"loss.label_smoothing": 0.9}))  # outside
    found = importance.estimate(study_files.read(made.path))
    assert found.trials == 9 and set(found.shares) == {"optimizer.learning_rate", "loss.label_smoothing"}


def test_importance_without_trees_or_from_an_open_study(tmp_path, monkeypatch):
    made = MadeStudy(tmp_path / "study")
    made.fill(40)
    found = study_files.read(made.path)
    rebuilt = importance._rebuild_study(found)
    monkeypatch.setattr(importance, "_rebuild_study", lambda *_: pytest.fail("the open study was not used"))
    assert "Estimated by fANOVA" in report.write(made.path, rebuilt).read_text()
    assert importance.estimate(found, rebuilt).method == "fANOVA"
    monkeypatch.setattr(importance.importlib.util, "find_spec", lambda name: None)
    other = importance.estimate(found, rebuilt)
    assert other.method == "PED-ANOVA" and next(iter(other.shares)) == "optimizer.learning_rate"


@pytest.mark.parametrize("is_open", [False, True])
def test_importance_counts_the_trials_that_reached_their_target(tmp_path, is_open):
    made = MadeStudy(tmp_path / "study", RATE, metric="steps_to_target", direction="minimize")
    for place in range(8):
        made.add(values=at(0.01 * 2**place), value=100.0 + place**2 if place < 5 else None)
    found = study_files.read(made.path)
    study = importance._rebuild_study(found) if is_open else None
    if study:  # an open study has them as infinity
        for _ in range(3):
            field = "optimizer.learning_rate"
            trial = study.ask({field: importance._distribution(found.space[field])})
            study.tell(trial, math.inf)
    estimate = importance.estimate(found, study)
    assert (estimate.trials, estimate.unreached) == (5, 3) and set(estimate.shares) == {"optimizer.learning_rate"}
    text = report.write(made.path, study).read_text()
    assert "from 5 finished trials" in text and "not reached their target are left out: 3." in text


@pytest.mark.parametrize(
    ("rights", "why"),
    [
        ([[300]] * 3, "3 finished trials are too few; 4 are needed"),
        ([[300]] * 4, "all finished trials have the same value"),
    ],
)
def test_importance_says_why_there_is_none(tmp_path, rights, why):
    made = MadeStudy(tmp_path / "study", RATE)
    for place, right in enumerate(rights):
        made.add(values=at(0.01 + 0.01 * place), right=right)
    text = report.write(made.path).read_text()
    assert f"## Importance\n\nNot estimated: {why}." in text and not (made.path / "importance.png").exists()

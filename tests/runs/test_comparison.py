"""Comparison of runs: data, text and plot, of runs at every stage and in every condition."""

import json
import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_hex

from inception_jax.errors import UserError
from inception_jax.metrics import wilson_interval
from inception_jax.runs import comparison_plot, comparison_report, plot_style, tables
from inception_jax.runs.comparison import compare, short_labels
from inception_jax.runs.formatting import format_duration
from inception_jax.runs.manifest import ABSENT, flatten

from .made_runs import make_run


@pytest.fixture
def two(tmp_path):
    a = make_run(tmp_path / "a", right=(100, 340, 351, 350), optimizer__learning_rate=0.01)
    b = make_run(tmp_path / "b", right=(90, 200, 300, 355), optimizer__learning_rate=0.02, fingerprint="cd" * 32)
    return [a, b]


def cells(text, title):
    """The cells of a table of the Markdown, line by line."""
    section = text.split(f"## {title}\n\n")[1].split("\n\n")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in (*rows[:1], *rows[2:])]


def test_only_what_differs_is_listed_and_the_rest_counted(two, tmp_path):
    found = compare(two)
    assert [(one.name, one.values) for one in found.config] == [("optimizer.learning_rate", (0.01, 0.02))]
    fields = len(dict(flatten(found.runs[0].config)))
    assert found.same_fields == fields - 1
    assert f"configs: the same otherwise: {fields - 1} fields" in comparison_report.format_text(found)
    assert found.circumstances == () and found.warnings == () and found.equal == ()
    manifest = json.loads((two[1] / "manifest.json").read_text())
    manifest |= {"git": {"revision": "f" * 40, "dirty": True}, "devices": ["8 gpu devices"]}
    manifest["versions"]["jax"] = "0.11.0"
    (two[1] / "manifest.json").write_text(json.dumps(manifest))
    changed = {one.name: one.values[1] for one in compare(two).circumstances}
    assert changed == {"revision": "ffffffffff + changes", "devices": "8 gpu devices", "jax": "0.11.0"}


def test_a_field_that_one_config_does_not_have(two):
    config = json.loads((two[0] / "config.json").read_text())
    del config["optimizer"]["learning_rate"]
    config["loss"]["aux_weights"] = [0.3, 0.3]
    (two[0] / "config.json").write_text(json.dumps(config))
    found = {one.name: one.values for one in compare(two).config}
    assert found == {"optimizer.learning_rate": (ABSENT, 0.02), "loss.aux_weights": ([0.3, 0.3], None)}
    rows = cells(comparison_report.format_markdown(compare(two)), "Config differences")
    assert rows[1:] == [["loss.aux_weights", "(0.3, 0.3)", "unset"], ["optimizer.learning_rate", "–", "0.02"]]


def test_numbers_are_short_unless_that_hides_the_difference():
    assert tables.format_values([0.0012589254117941675, 0.5]) == ["0.00125893", "0.5"]
    assert tables.format_values([0.1, 0.1 + 2**-40]) == ["0.1", repr(0.1 + 2**-40)]
    assert tables.format_values([("x", 1.5), None, True, ()]) == ["(x, 1.5)", "unset", "True", "()"]


def test_the_final_table(two):
    found = compare(two)
    one = found.outcomes[0]
    entry = one.entry
    assert (entry.status, entry.step, entry.total_steps, entry.epoch, one.count) == ("finished", 180, 180, 4.0, 360)
    assert one.top1 == 350 / 360 and one.top1_interval == wilson_interval(350, 360)
    assert one.best == (351 / 360, 3.0)
    assert one.train_losses == {"total": 2.0 / 128, "main": 0.8 * 2.0 / 128, "aux1": 0.7 * 2.0 / 128}
    assert (one.wall_seconds, one.compile_seconds, one.data_wait_seconds) == (81.0, 30.0, 2.0)
    assert (one.images_per_second, one.parameters) == (94.5, 13_378_280)
    low, high = wilson_interval(355, 360)
    text = comparison_report.format_markdown(found)
    assert cells(text, "Result")[2] == [
        "b",
        "finished",
        "180",
        "4",
        "test",
        "raw",
        "98.61 %",
        f"{100 * low:.2f}–{100 * high:.2f} %",
        "100.00 %",
        "0.1139",
        "98.61 %",
        "4",
    ]
    assert cells(text, "Last training loss per head")[1] == ["a", "0.0156", "0.0125", "0.0109"]
    assert cells(text, "Size, time and final state")[2] == ["b", "13,378,280", "1:21", "30 s", "2 s", "94", "cdcdcdcd"]
    assert found.ranked() == [1, 0] and compare(two, metric="loss").ranked() == [1, 0]


def test_seconds_are_rounded_as_in_the_log_and_the_report(tmp_path):
    """Up: 81.2 seconds are 1:22 in each of them."""
    path = make_run(tmp_path / "a", outcome={"wall_seconds": 81.2, "compile_seconds": 30.01})
    row = cells(comparison_report.format_markdown(compare([path, path])), "Size, time and final state")[2]
    assert row[2:4] == [format_duration(81.2), format_duration(30.01)] == ["1:22", "31 s"]


def test_the_metric_that_all_runs_chose_ranks_them(tmp_path):
    paths = [
        make_run(tmp_path / name, checkpoint__best_metric=metric)
        for name, metric in (("a", "loss"), ("b", "loss"), ("c", "top1"), ("d", "top5"))
    ]
    (paths[3] / "config.json").write_text(json.dumps({"checkpoint": {"best_metric": "of_a_recipe"}}))
    assert compare(paths[:2]).metric.name == "loss" and compare(paths[:2], metric="top5").metric.name == "top5"
    assert compare(paths[:3]).metric.name == "top1"  # they differ
    assert compare(paths[3:]).metric.name == "top1"  # its files do not describe it
    several = [
        make_run(tmp_path / metric, checkpoint__best_metric=metric, data__labels="multi")
        for metric in ("micro_f1", "exact_match")
    ]
    assert compare(several).metric.name == "mean_average_precision" and not compare(several).warnings
    assert "some runs have one label per image, some several" in compare([paths[0], several[0]]).warnings[0]


def test_the_kind_of_weights_is_of_each_run_or_one_for_all(tmp_path):
    paths = [make_run(tmp_path / "raw", right=(100, 300)), make_run(tmp_path / "ema", right=(1, 2), ema=(200, 310))]
    found = compare(paths)
    assert [(one.weights, round(360 * one.top1)) for one in found.outcomes] == [("raw", 300), ("ema", 310)]
    assert "of EMA weights, some of raw weights" in found.warnings[0]
    raw = compare(paths, weights="raw")
    assert [round(360 * one.top1) for one in raw.outcomes] == [300, 2] and raw.warnings == ()
    ema = compare(paths, weights="ema")
    assert [one.top1 for one in ema.outcomes] == [None, 310 / 360] and ema.ranked() == [1, 0]


def test_equal_states_are_said_to_be_equal(tmp_path):
    paths = [make_run(tmp_path / name, fingerprint=64 * mark) for name, mark in zip("abc", "112", strict=True)]
    found = compare(paths)
    assert found.equal == (("a", "b"),) and found.config == ()
    text = comparison_report.format_text(found)
    assert "a, b ended in the same state, bit for bit" in text
    assert f"configs: all {found.same_fields} fields are the same" in text
    assert "the configs are equal, but no two" in comparison_report.format_text(compare(paths[1:]))


def test_other_data_is_said_above_the_tables(tmp_path):
    paths = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", data__name="fashion_mnist"),
        make_run(tmp_path / "c", data__eval_split="train", split="train"),
    ]
    found = compare(paths)
    assert found.warnings == (
        "evaluated on different data: their numbers are not comparable (digits, test: a; "
        "fashion_mnist, test: b; digits, train: c)",
    )
    text, document = comparison_report.format_text(found), comparison_report.format_markdown(found)
    assert text.startswith("WARNING: evaluated on different data")
    assert document.index("**Evaluated on different data") < document.index("## Result")
    crops = compare([paths[0], make_run(tmp_path / "d", evaluation__crop_fraction=1.0)]).warnings
    assert crops == ("evaluated with different crops of the images (single, center, 0.875: a; single, center, 1.0: d)",)
    resized = make_run(tmp_path / "e", evaluation__interpolation="pil_bicubic", evaluation__resize=341)
    assert compare([paths[0], resized]).warnings == (
        "evaluated with different crops of the images (single, center, 0.875: a; "
        "single, center, 0.875, 341, pil_bicubic: e)",
    )


def write_data(workdir, digest, split="train"):
    record = {"dataset": "digits", "train_split": {"split": split, "examples": 9, "digest": digest}, "eval_split": None}
    (workdir / "data.json").write_text(json.dumps(record))
    return workdir


def test_other_examples_of_the_same_split_are_said(tmp_path):
    paths = [write_data(make_run(tmp_path / name), digest * 64) for name, digest in zip("abc", "112", strict=True)]
    paths.append(write_data(make_run(tmp_path / "d"), "3" * 64, split="train[:50%]"))
    paths.append(make_run(tmp_path / "e"))  # of a version that did not record its data
    (make_run(tmp_path / "f") / "data.json").write_text("[")
    assert compare([*paths, tmp_path / "f"]).warnings == (
        "other training examples in a split of the same name "
        "(digits, train: 9 of digest 11111111: a, b; 9 of digest 22222222: c)",
    )
    assert compare(paths[:2]).warnings == ()


def test_runs_at_every_stage_are_told_as_what_they_are(tmp_path):
    paths = [
        make_run(tmp_path / "whole"),
        make_run(tmp_path / "killed", right=(100, 200), status=None),
        make_run(
            tmp_path / "nan",
            losses=[2.0, math.nan, math.nan],
            right=(36,),
            status="diverged",
            outcome={"message": "step 45: the loss is nan"},
        ),
        make_run(tmp_path / "unevaluated", right=(), losses=[2.0], status="interrupted", outcome={"signal": "SIGINT"}),
        make_run(tmp_path / "new", right=(), losses=(), status=None),
        make_run(tmp_path / "damaged"),
        make_run(tmp_path / "torn"),
    ]
    for name in ("config.json", "manifest.json", "result.json", "timing.jsonl", "train.log"):
        (paths[5] / name).write_bytes(b"\xff{")
    (paths[5] / "metrics.jsonl").unlink()
    (paths[6] / "config.json").unlink()
    with open(paths[6] / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind":"tr')
    found = compare(paths)
    rows = {row[0]: row for row in cells(comparison_report.format_markdown(found), "Result")}
    assert {name: row[1:3] for name, row in rows.items() if name != "run"} == {
        "whole": ["finished", "180"],
        "killed": ["preempted (killed)", "90/180"],
        "nan": ["diverged", "67/180"],
        "unevaluated": ["preempted (SIGINT)", "22/180"],
        "new": ["new", "–"],
        "damaged": ["new", "–"],
        "torn": ["finished", "180"],
    }
    assert rows["nan"][6] == "10.00 %" and rows["unevaluated"][6] == "–" and rows["torn"][6] == "97.22 %"
    assert found.config == ()  # a config that is missing differs in nothing
    text = comparison_report.format_text(found)
    assert text.count("note: ") == 3 and "damaged/config.json is damaged" in text
    assert comparison_report.write(found, tmp_path / "out") == [
        tmp_path / "out" / "comparison.md",
        tmp_path / "out" / "comparison.html",
        tmp_path / "out" / "comparison.png",
    ]


def test_values_of_another_kind_are_damage_and_not_a_traceback(tmp_path):
    workdir = make_run(tmp_path / "run", right=(100, 200))
    for name, change in {
        "config.json": {"model": "inception_v1", "num_epochs": "four"},
        "result.json": {"steps": [], "metrics": 3},
        "manifest.json": {"git": {"revision": 7}, "starts": [None], "devices": "cpu"},
    }.items():
        content = json.loads((workdir / name).read_text())
        (workdir / name).write_text(json.dumps(content | change))
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rows[-1] |= {"top1": {"a": 1}, "epoch": None, "count": "many"}
    (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, [*rows, [1, 2]])) + "\n")
    found = compare([workdir, make_run(tmp_path / "whole")])
    one = found.outcomes[0]
    assert (one.entry.status, one.entry.step, one.entry.total_steps, one.top1, one.best) == (
        "finished",
        90,
        None,
        None,
        (100 / 360, 1.0),
    )
    text = comparison_report.format_text(found)
    assert "'num_epochs' = 'four' is not a number, and is ignored" in text and text.count("note: ") == 8
    comparison_plot.draw(found, tmp_path / "plot.png")


def test_any_metric_of_the_evaluations_ranks(two, tmp_path):
    """Also one that a recipe registered: the manifest says what it is."""
    for workdir, value in zip(two, (0.2, 0.4), strict=True):
        path = workdir / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows = [row | {"macro_f1": value, "regret": 10 * value} if row["kind"] == "evaluation" else row for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        known = json.loads((workdir / "manifest.json").read_text())
        known["metrics"] = {"regret": {"title": "mean regret", "better": "lower", "percent": False}}
        (workdir / "manifest.json").write_text(json.dumps(known))
    assert compare(two, metric="macro_f1").ranked() == [1, 0] and compare(two, metric="regret").ranked() == [0, 1]
    text = comparison_report.format_text(compare(two, metric="macro_f1"))
    assert "best macro F1" in text and "20.00 %" in text and "40.00 %" in text
    assert "best mean regret" in comparison_report.format_text(compare(two, metric="regret"))
    comparison_plot.draw(compare(two, metric="regret"), tmp_path / "plot.png")
    with pytest.raises(UserError, match=r"--metric=top2: it must be one of 'loss', .*regret.*; did you mean 'top"):
        compare(two, metric="top2")
    with pytest.raises(
        UserError, match=r"--metric=steps_to_target: no evaluation has it.* leave it out: the table 'Time"
    ):
        compare(two, metric="steps_to_target")


def test_a_result_stands_in_for_lost_rows(tmp_path):
    metrics = {"train": {"step": 180}, "test": {"raw": {"top1": 0.75, "top5": 1.0, "loss": 0.5, "count": 360}}}
    workdir = make_run(tmp_path / "run", outcome={"metrics": metrics})
    (workdir / "metrics.jsonl").unlink()
    one = compare([workdir]).outcomes[0]
    assert (one.top1, one.count, one.split, one.weights) == (0.75, 360, "test", "raw")
    assert compare([workdir], weights="ema").outcomes[0].top1 is None


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["/r/a", "/r/b"], ("a", "b")),
        (["/r/low/run", "/r/high/run"], ("low", "high")),  # one name in two folders
        (["/r/x/1/run", "/r/x/2/run", "/r/y/1/run"], ("x/1", "x/2", "y/1")),
        (["/r/sweep/trials/0007", "/r/sweep/trials/0012"], ("0007", "0012")),
        (["/r/a", "/r/a/b"], ("a", "a/b")),
        (["/r/a"], ("a",)),
    ],
)
def test_labels_are_what_tells_the_paths_apart(paths, labels):
    assert short_labels([Path(path) for path in paths]) == labels


def test_wide_tables_are_broken_and_keep_their_first_column(tmp_path):
    paths = [make_run(tmp_path / f"run_{number:02d}", seed=number) for number in range(20)]
    text = comparison_report.format_text(compare(paths), width=80)
    part = text.split("Config differences\n")[1].split("\n\nconfigs:")[0]
    assert part.count("seed") == part.count("field") > 1
    assert max(map(len, part.splitlines())) <= 80
    for number in range(20):
        assert f"run_{number:02d}" in part


# ---- the plot ----


def by_colour(axes):
    """{colour: line} of the curves, without crosses."""
    return {to_hex(line.get_color()).upper(): line for line in axes.lines if line.get_linestyle() != "None"}


def test_a_run_has_one_colour_in_all_panels(two, tmp_path):
    path = tmp_path / "plot.png"
    drawn = comparison_plot.draw(compare(two), path)
    assert [axes.get_title(loc="left") for axes in drawn.axes] == [
        "training loss",
        "evaluation, loss (test, raw)",
        "evaluation, top-1 accuracy (test, raw)",
    ]
    training, loss, accuracy = map(by_colour, drawn.axes)
    assert list(training) == list(loss) == list(accuracy) == [plot_style.BLUE, plot_style.VERMILLION]
    np.testing.assert_allclose(accuracy[plot_style.VERMILLION].get_xdata(), [1, 2, 3, 4])
    np.testing.assert_allclose(accuracy[plot_style.VERMILLION].get_ydata(), np.array([90, 200, 300, 355]) / 3.6)
    np.testing.assert_allclose(training[plot_style.BLUE].get_ydata(), 2.0 * 0.5 ** np.arange(8))
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert legend == ["a (learning_rate 0.01)  97.22 %", "b (learning_rate 0.02)  98.61 %"]
    plot = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    for colour in (plot_style.BLUE, plot_style.VERMILLION):
        assert (plot == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).sum() > 500


def test_the_other_axes(two, tmp_path):
    steps = comparison_plot.draw(compare(two, metric="loss"), tmp_path / "a.png", x="step")
    assert len(steps.axes) == 2
    np.testing.assert_array_equal(steps.axes[1].lines[0].get_xdata(), [45, 90, 135, 180])
    seconds = comparison_plot.draw(compare(two, metric="top5"), tmp_path / "b.png", x="seconds")
    np.testing.assert_allclose(seconds.axes[2].lines[0].get_xdata(), [20, 40, 60, 80])
    lines = (two[0] / "timing.jsonl").read_text().splitlines(keepends=True)
    (two[0] / "timing.jsonl").write_text("".join(lines[2:6]))  # nobody knows when the others were
    part = comparison_plot.draw(compare(two), tmp_path / "c.png", x="seconds").axes[0].lines
    assert [list(line.get_xdata()) for line in part] == [[30, 40, 50, 60], [10, 20, 30, 40, 50, 60, 70, 80]]
    (two[0] / "timing.jsonl").unlink()
    assert len(comparison_plot.draw(compare(two), tmp_path / "c.png", x="seconds").axes[0].lines) == 1
    with pytest.raises(ValueError, match="one of epoch, step, seconds"):
        comparison_plot.draw(compare(two), tmp_path / "d.png", x="hours")


def test_long_names_keep_what_tells_them_apart(tmp_path):
    name = "a_run_whose_name_says_everything_that_there_is_to_say_about_it_and_then_some_"
    paths = [
        make_run(tmp_path / f"{name}{number}", loss__aux_weights=weights)
        for number, weights in enumerate([(0.3, 0.3), (0.0, 0.0)])
    ]
    legend = [
        text.get_text() for text in comparison_plot.draw(compare(paths), tmp_path / "p.png").legends[0].get_texts()
    ]
    assert [re.search(r"(some_\d) \(aux_weights (.*)\)  97", line).groups() for line in legend] == [
        ("some_0", "(0.3, 0.3)"),
        ("some_1", "(0, 0)"),
    ]
    assert max(map(len, legend)) < 100


def test_ten_runs_look_different_each(tmp_path):
    paths = [make_run(tmp_path / f"{number}", right=(100 + number,), seed=number) for number in range(10)]
    for axes in comparison_plot.draw(compare(paths), tmp_path / "ten.png").axes:
        assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in axes.lines}) == 10


def test_of_many_runs_only_the_best_are_in_colour(tmp_path):
    paths = [
        make_run(tmp_path / f"{number:02d}", right=(100, 300 + (7 * number) % 20), seed=number) for number in range(20)
    ]
    found = compare(paths)
    drawn = comparison_plot.draw(found, tmp_path / "many.png")
    for axes in drawn.axes:
        colours = [to_hex(line.get_color()).upper() for line in axes.lines]
        assert len(colours) == 20 and colours.count(comparison_plot._FADED) == 14
    legend = [text.get_text() for text in drawn.legends[0].get_texts()]
    best = sorted(range(20), key=lambda number: -((7 * number) % 20))[:6]
    assert [line[:2] for line in legend[:6]] == [f"{number:02d}" for number in best]
    assert legend[6] == "14 others"


def test_a_diverged_curve_ends_with_a_cross(tmp_path):
    path = make_run(tmp_path / "nan", losses=[2.0, 1.0, math.nan, math.nan], right=(), status="diverged")
    drawn = comparison_plot.draw(compare([path, make_run(tmp_path / "good")]), tmp_path / "plot.png")
    cross, curve, _ = drawn.axes[0].lines
    assert cross.get_marker() == "x" and (cross.get_xdata()[0], cross.get_ydata()[0]) == (1.0, 1.0)
    assert list(curve.get_ydata()) == [2.0, 1.0]
    assert "not finite after" in [text.get_text() for text in drawn.legends[0].get_texts()]


def test_nothing_to_draw_leaves_no_earlier_plot(two, tmp_path):
    comparison_report.write(compare(two), tmp_path / "out")
    assert (tmp_path / "out" / "comparison.png").exists()
    new = make_run(tmp_path / "new", right=(), losses=(), status=None)
    written = comparison_report.write(compare([new]), tmp_path / "out")
    assert [path.name for path in written] == ["comparison.md", "comparison.html"]
    assert not (tmp_path / "out" / "comparison.png").exists()
    assert "Curves" not in (tmp_path / "out" / "comparison.md").read_text()


def test_a_folder_that_cannot_be_made(two, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/out"):
        comparison_report.write(compare(two), tmp_path / "file" / "out")

"""Plots, by their content: the data of the axes, the texts, and the pixels of the file."""

import os
import re
import stat
import subprocess
import sys

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from inception_jax.errors import UserError
from inception_jax.runs import curves, plot_style, plots


def png(path):
    """uint8 [height, width, 3], red first."""
    return cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def train_rows(count, heads=("main", "aux1", "aux2"), epochs=10.0):
    rows = []
    for number in range(1, count + 1):
        part = number / count
        row = {
            "kind": "train",
            "step": number,
            "epoch": epochs * part,
            "learning_rate": 0.1 * (1 - part),
            "loss": 4.0 * 0.01**part,
        }
        for place, head in enumerate(heads):
            row |= {f"loss_{head}": (2.0 + place) * 0.01**part, f"top1_{head}": (0.9 - 0.1 * place) * part}
        rows.append(row)
    return rows


def evaluation_rows(count, weights=("raw", "ema"), epochs=10.0):
    return [
        {
            "kind": "evaluation",
            "step": number,
            "epoch": epochs * number / count,
            "split": "test",
            "weights": kind,
            "loss": 1.0 / number,
            "top1": 0.5 + 0.4 * number / count - 0.1 * place,
            "top5": 1.0,
            "count": 360,
        }
        for number in range(1, count + 1)
        for place, kind in enumerate(weights)
    ]


def lines(axes):
    """{legend entry without its value: (x, y)}"""
    return {re.sub(r"  .*", "", line.get_label()): line.get_data() for line in axes.lines}


def test_learning_curves_have_every_head_and_the_evaluations_of_both_weights(tmp_path):
    train = train_rows(20)
    path = tmp_path / "curves.png"
    loss, top1, rate = curves.learning_curves([*train, *evaluation_rows(4)], path, title="a run").axes
    heads = ["main", "aux1", "aux2"]
    assert list(lines(loss)) == [
        "train, total (heads weighted)",
        *(f"train, {head}" for head in heads),
        "test, raw",
        "test, ema",
    ]
    assert list(lines(top1)) == [*(f"train, {head}" for head in heads), "test, raw", "test, ema"]
    for head in heads:
        np.testing.assert_allclose(
            lines(loss)[f"train, {head}"], [[r["epoch"] for r in train], [r[f"loss_{head}"] for r in train]]
        )
        np.testing.assert_allclose(lines(top1)[f"train, {head}"][1], [100 * r[f"top1_{head}"] for r in train])
    np.testing.assert_allclose(lines(top1)["test, ema"], [[2.5, 5.0, 7.5, 10.0], [50, 60, 70, 80]])
    np.testing.assert_allclose(
        rate.lines[0].get_data(), [[r["epoch"] for r in train], [r["learning_rate"] for r in train]]
    )
    assert "test, ema  80.00 %" in [text.get_text() for text in top1.get_legend().get_texts()]
    assert (loss.get_yscale(), top1.get_yscale(), rate.get_yscale()) == ("log", "linear", "linear")
    assert png(path).shape == (int(curves.HEIGHT * plot_style.DPI), int(curves.WIDTH * plot_style.DPI), 3)
    for colour in (plot_style.BLUE, plot_style.ORANGE, plot_style.GREEN, plot_style.VERMILLION, plot_style.PURPLE):
        assert (png(path) == np.round(255 * np.array(to_rgb(colour)))).all(axis=-1).any()


def test_twenty_thousand_rows_become_few_points_with_their_spread(tmp_path):
    rows = train_rows(20_000)
    random = np.random.default_rng(0)
    for row in rows:
        row["loss_main"] = float(np.exp(random.normal()))
    loss = curves.learning_curves(rows, tmp_path / "curves.png").axes[0]
    x, y = lines(loss)["train, main"]
    assert len(x) == curves._MAX_TRAIN
    np.testing.assert_allclose(y, np.mean(np.reshape([r["loss_main"] for r in rows], (len(x), -1)), axis=1))
    band = loss.collections[1].get_paths()[0].vertices[:, 1]  # of the second curve: the first is the total
    assert band.min() == pytest.approx(np.exp(-1.2816), rel=0.4)  # 10 % and 90 % of a log-normal distribution
    assert band.max() == pytest.approx(np.exp(1.2816), rel=0.4)


def test_curves_of_a_run_that_has_just_begun_or_has_no_heads(tmp_path):
    figure_ = curves.learning_curves(train_rows(1, heads=()), tmp_path / "one.png")
    assert list(lines(figure_.axes[0])) == ["train"] and figure_.axes[0].lines[0].get_marker() == "."
    figure_ = curves.learning_curves(evaluation_rows(3), tmp_path / "evaluations.png")
    assert list(lines(figure_.axes[0])) == ["test, raw", "test, ema"]
    with pytest.raises(ValueError, match="no row"):
        curves.learning_curves([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_diverged_run_is_drawn_up_to_there_and_says_so(tmp_path):
    rows = train_rows(10)
    for row in rows[6:]:
        row["loss"] = row["loss_main"] = float("nan")
    loss = curves.learning_curves(rows, tmp_path / "curves.png").axes[0]
    assert len(lines(loss)["train, main"][0]) == 6
    assert texts(loss) == ["not finite"] and loss.lines[-1].get_xdata()[0] == rows[6]["epoch"]


def test_scales_follow_the_values(tmp_path):
    rows = train_rows(30)
    for number, row in enumerate(rows):
        row |= {"learning_rate": 0.1 * 0.5**number, "top1_main": 1 - 0.5**number, "loss_main": 2.0, "loss": 2.0}
        del row["loss_aux1"], row["loss_aux2"]
    loss, top1, rate = curves.learning_curves(rows, tmp_path / "curves.png").axes
    assert (loss.get_yscale(), top1.get_yscale(), rate.get_yscale()) == ("linear", "function", "log")
    heights = top1.transData.transform([(0, accuracy) for accuracy in (0, 90, 99, 100)])[:, 1]
    assert (np.diff(heights) > 0.1 * (heights[-1] - heights[0])).all()  # 99 is far from 100, and 100 is on the axis


def test_confusion_matrix_of_ten_classes_has_a_number_in_every_cell_that_counts(tmp_path):
    matrix = 30 * np.eye(10, dtype=int)
    matrix[3, 5] = 10
    matrix[7] = 0
    path = tmp_path / "matrix.png"
    fig = plots.confusion_matrix(matrix, [f"${n}^$" for n in range(10)], path, title="test")
    axes = fig.axes[0]
    shares = axes.images[0].get_array()
    assert shares[3, 5] == 0.25 and shares[3, 3] == 0.75 and shares.mask[7].all() and shares[0, 1] == 0
    numbers = {tuple(text.get_position()): text.get_text() for text in axes.texts}
    assert numbers[5, 3] == "10" and numbers[3, 3] == "30" and (3, 5) not in numbers  # x is the predicted class
    per_class = [text for (x, _), text in numbers.items() if x > 9]
    assert per_class == ["100.0 %"] * 3 + ["75.0 %"] + ["100.0 %"] * 3 + ["–"] + ["100.0 %"] * 2
    assert fig.get_suptitle() == "test: 270 of 280 right (96.43 %)"
    assert [label.get_text() for label in axes.get_xticklabels()][3] == "$3^$"  # no mathematics in a class name
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert png(path).shape == (round(5.4 * plot_style.DPI), round(5.8 * plot_style.DPI), 3)


def test_confusion_matrix_of_a_thousand_classes_loses_no_confusion_and_lists_the_worst(tmp_path):
    matrix = 50 * np.eye(1000, dtype=int)
    matrix[123, 877] = 7  # alone among 16 cells that share a pixel
    matrix[5, 6] = 9
    path = tmp_path / "matrix.png"
    axes, side, _ = plots.confusion_matrix(matrix, [f"class {n}" for n in range(1000)], path).axes
    shares = axes.images[0].get_array()
    assert shares.shape == (250, 250)
    assert shares[123 // 4, 877 // 4] == pytest.approx(7 / 57)
    assert (shares > 0).sum() == 250 + 1  # the diagonal and the lonely one; 5 and 6 lie on the diagonal's blocks
    (listed,) = texts(side)
    assert [line.split("  ")[-1] for line in listed.splitlines()] == ["class 5 → class 6", "class 123 → class 877"]
    x, y = axes.transData.transform((877.5, 121.5)).round().astype(int)  # the middle of its cell
    pixels = png(path)
    row = pixels.shape[0] - 1 - y
    assert tuple(pixels[row, x]) != tuple(pixels[row, x + 12]) == tuple(pixels[row, x + 24])


def test_confusion_matrix_of_a_wrong_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 class names"):
        plots.confusion_matrix(np.zeros((2, 2), int), ["a", "b", "c"], tmp_path / "matrix.png")


class Asked:
    """Images of one grey each, 3 times their index, that remembers which were asked for."""

    def __init__(self):
        self.indices = []

    def __getitem__(self, index):
        self.indices.append(index)
        return np.full((8, 8, 3), 3 * index, np.uint8)


def test_prediction_sheet_shows_the_most_probable_first_and_reads_only_what_it_shows(tmp_path):
    labels = np.arange(80) % 4
    predictions = labels.copy()
    probabilities = np.linspace(0.3, 1.0, 80)
    wrong = [2, 40, 71]
    predictions[wrong] = (labels[wrong] + 1) % 4
    images, path = Asked(), tmp_path / "sheet.png"
    fig = plots.prediction_sheet(
        images.__getitem__, labels, predictions, probabilities, ["ape", "bee", "cow", "dog"], path
    )
    (axes,) = fig.axes
    assert len(images.indices) == len(axes.images) == 24 + 3
    right = images.indices[:24]
    assert right[0] == 79 and right[-1] == 0 and right == sorted(right, reverse=True) and not set(wrong) & set(right)
    assert images.indices[24:] == [71, 40, 2]
    assert [text.get_text() for text in fig.texts] == [
        "right: 77 of 80; 24 of them, from the most to the least probable",
        "wrong: 3 of 80, the most probable first",
    ]
    captions = [text.get_text() for text in axes.texts]
    assert captions[0] == "dog (100.0 %)"
    assert captions[24] == f"ape ({100 * probabilities[71]:.1f} %)\ntrue: dog"
    pixels = png(path)
    for image, index in zip(axes.images, images.indices, strict=True):
        box = image.get_window_extent()
        center = pixels[round(pixels.shape[0] - (box.y0 + box.y1) / 2), round((box.x0 + box.x1) / 2)]
        assert tuple(center) == (3 * index,) * 3


@pytest.mark.parametrize(
    ("accuracy", "heads"),
    [
        (1.0, ["right: 2 of 2, the most probable first", "wrong: 0 of 2"]),
        (0.0, ["right: 0 of 2", "wrong: 2 of 2, the most probable first"]),
    ],
)
def test_prediction_sheet_without_right_or_wrong_ones(tmp_path, accuracy, heads):
    predictions = np.zeros(2, int) if accuracy else np.ones(2, int)
    images = np.zeros((2, 5, 9, 1), np.uint8)
    fig = plots.prediction_sheet(
        images.__getitem__, np.zeros(2, int), predictions, np.ones(2), ["a", "b"], tmp_path / "sheet.png"
    )
    assert [text.get_text() for text in fig.texts] == heads and len(fig.axes[0].images) == 2


def test_prediction_sheet_refuses_arrays_that_do_not_fit(tmp_path):
    for lengths in ((0, 0, 0), (2, 2, 1), (2, 3, 2)):
        with pytest.raises(ValueError, match="labels"):
            plots.prediction_sheet([].__getitem__, *(np.zeros(n, int) for n in lengths), ["a"], tmp_path / "sheet.png")


@pytest.mark.parametrize(("shape", "rows"), [((7, 7, 3, 64), 4), ((3, 3, 3, 32), 2), ((7, 7, 1, 5), 1)])
def test_every_filter_is_drawn_from_black_to_white_weight_by_weight(tmp_path, shape, rows):
    kernel = np.random.default_rng(0).normal(size=shape) * np.arange(1, shape[-1] + 1)  # of very different size
    kernel[..., 1] = 0.5  # a dead filter
    path = tmp_path / "filters.png"
    (axes,) = plots.first_layer_filters(kernel, path).axes
    height, width, channels, count = shape
    assert axes.get_title(loc="left").startswith(f"first layer: {count} filters of {height}×{width}×{channels}")
    pixels = png(path)
    box, zoom = axes.get_window_extent(), 42 // height
    for index in (0, 1, count - 1):
        row, column = divmod(index, 16)
        expected = kernel[..., index] - kernel[..., index].min()
        expected = expected / (expected.max() or 1.0)
        for y, x in ((0, 0), (height - 1, width - 1), (1, 2)):
            top = pixels.shape[0] - box.y1 + 2 * (row * (height * zoom + 5) + y * zoom) + zoom
            left = box.x0 + 2 * (column * (width * zoom + 5) + x * zoom) + zoom
            found = pixels[round(top), round(left)].astype(int)
            np.testing.assert_allclose(found, np.broadcast_to(255 * expected[y, x], 3), atol=2)
    assert row == rows - 1


def test_smooth_filters_are_told_from_noise(tmp_path):
    noise = np.random.default_rng(0).normal(size=(7, 7, 3, 64))
    assert abs(plots.neighbour_correlation(noise)) < 0.03
    y, x = np.mgrid[:7, :7]
    wave = np.sin((x + 2 * y) / 4)[..., None, None] * np.ones((1, 1, 3, 4))
    assert plots.neighbour_correlation(wave) > 0.7
    assert plots.neighbour_correlation(np.ones((3, 3, 3, 4))) == 0
    (axes,) = plots.first_layer_filters(wave, tmp_path / "filters.png").axes
    assert "neighbouring weights correlate by 0." in axes.get_title(loc="left")


def test_no_legend_covers_a_curve(tmp_path):
    figure = curves.learning_curves([*train_rows(60), *evaluation_rows(8)], tmp_path / "curves.png")
    for axes in figure.axes[:2]:
        legend, inside = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert legend.y1 < inside.y0 and legend.y0 >= 0 and legend.x1 <= figure.bbox.x1
    loss, top1, _ = figure.axes
    assert loss.get_legend().get_window_extent().x1 <= top1.get_legend().get_window_extent().x0


def test_a_kernel_that_takes_no_image_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 1, 64, 64\)"):
        plots.first_layer_filters(np.zeros((1, 1, 64, 64)), tmp_path / "filters.png")


def test_images_leave_matplotlib_as_it_was_and_do_not_depend_on_its_settings(tmp_path):
    import matplotlib

    plots.first_layer_filters(np.ones((3, 3, 3, 4)), tmp_path / "a.png")
    loud = {"font.size": 30, "savefig.dpi": 20, "figure.facecolor": "red", "savefig.bbox": "tight"}
    with matplotlib.rc_context(loud):
        before = dict(matplotlib.rcParams)
        plots.first_layer_filters(np.ones((3, 3, 3, 4)), tmp_path / "b.png")
        assert dict(matplotlib.rcParams) == before
    np.testing.assert_array_equal(png(tmp_path / "a.png"), png(tmp_path / "b.png"))


def test_a_plot_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "filters.png"
    plots.first_layer_filters(np.ones((3, 3, 3, 4)), path)
    before = path.read_bytes()
    with pytest.raises(RuntimeError), plot_style.saved_figure(path, 2, 2):
        raise RuntimeError
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["filters.png"]
    with pytest.raises(UserError, match=r"cannot write .*absent"):
        plots.first_layer_filters(np.ones((3, 3, 3, 4)), tmp_path / "absent" / "filters.png")


def test_what_is_not_a_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UserError, match="not a regular file"):
            plots.first_layer_filters(np.ones((3, 3, 3, 4)), tmp_path / name)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_matplotlib_is_imported_by_drawing_only_and_pyplot_never(tmp_path):
    script = (
        "import sys, numpy, inception_jax.runs.plots as plots\n"
        "assert 'matplotlib' not in sys.modules\n"
        "plots.first_layer_filters(numpy.ones((3, 3, 3, 4)), sys.argv[1])\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "filters.png")], check=True)

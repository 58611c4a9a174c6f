"""Beginning with another run's weights: each array's fate, and what is refused."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import tree_paths
from inception_jax.checkpoints import reading
from inception_jax.errors import UserError
from inception_jax.training import paths, warm_start


def variables(value, classes=10, *, aux=True, width=4, dtype=np.float32):
    """A network in miniature, every value the same."""
    full = lambda *shape: np.full(shape, value, dtype)  # noqa: E731
    head = lambda: {"kernel": full(width, classes), "bias": full(classes)}  # noqa: E731
    params = {"conv1": {"kernel": full(3, width), "bn": {"bias": full(width)}}, "conv2": {"kernel": full(3, width)}}
    params["conv3"] = {"kernel": full(3, width)}
    if aux:
        params["aux1"] = {"fc": {"kernel": full(2)}, "classifier": head()}
    params["classifier"] = head()
    return {"params": params, "batch_stats": {"conv1": {"bn": {"mean": full(width), "var": full(width)}}}}


def values(tree):
    return {path: float(np.asarray(leaf).ravel()[0]) for path, leaf in tree_paths.flatten(tree).items()}


def test_everything_is_restored_where_everything_fits():
    begun, report = warm_start.restore_matching(variables(1.0), variables(2.0))
    assert set(values(begun).values()) == {2.0}
    assert report.summary() == "restored: conv1 … classifier (11 arrays)"
    assert report.new == {} and report.skipped == ()


def test_another_number_of_classes_begins_its_classifiers_anew_and_nothing_else():
    begun, report = warm_start.restore_matching(variables(1.0, classes=3), variables(2.0))
    ones = {path for path, value in values(begun).items() if value == 1.0}
    heads = ("classifier", "aux1/classifier")
    assert ones == {f"params/{head}/{leaf}" for head in heads for leaf in ("kernel", "bias")}
    assert begun["params"]["classifier"]["kernel"].shape == (4, 3)
    assert report.summary() == (
        "restored: conv1 … conv3, aux1/fc (7 arrays); new: aux1/classifier, classifier (other number of classes)"
    )


def test_patterns_begin_parameters_and_statistics_anew():
    begun, report = warm_start.restore_matching(variables(1.0), variables(2.0), ("^conv1/", "^conv2/"))
    ones = {path for path, value in values(begun).items() if value == 1.0}
    assert ones == {
        "params/conv1/kernel",
        "params/conv1/bn/bias",
        "params/conv2/kernel",
        "batch_stats/conv1/bn/mean",
        "batch_stats/conv1/bn/var",
    }
    assert report.summary() == (
        "restored: conv3 … classifier (6 arrays); new: conv1 (pattern '^conv1/'); new: conv2 (pattern '^conv2/')"
    )


def test_skipped_arrays_of_the_source_are_listed():
    begun, report = warm_start.restore_matching(variables(1.0, aux=False), variables(2.0))
    assert set(values(begun).values()) == {2.0}
    assert report.summary() == "restored: conv1 … classifier (8 arrays); skipped: aux1"
    assert report.skipped == ("aux1/fc/kernel", "aux1/classifier/kernel", "aux1/classifier/bias")


def test_values_are_cast_to_the_new_networks_type():
    begun, _ = warm_start.restore_matching(variables(1.0, dtype=jnp.bfloat16), variables(2.0))
    assert {leaf.dtype.name for leaf in tree_paths.flatten(begun).values()} == {"bfloat16"}


@pytest.mark.parametrize(
    ("wanted", "offered", "patterns", "message"),
    [
        (
            {},
            {"aux": False},
            (),
            r"the checkpoint has no aux1/fc/kernel \(here \[2\]\); config.initialize.new = "
            r'\("\^aux1/",\) initializes it at random',
        ),
        ({"width": 5}, {}, (), r'has conv1/kernel as \[3, 4\] \(here \[3, 5\]\); .* \("\^conv1/",\) initializes'),
        ({}, {"value": np.nan}, (), r"conv1/kernel of the checkpoint has values that are not finite"),
        ({}, {}, ("^conv_1/",), r"config.initialize.new: '\^conv_1/' matches no path; did you mean 'conv1'"),
        ({}, {}, ("",), r"config.initialize.new = \('',\): nothing of the checkpoint would be restored"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_message(wanted, offered, patterns, message):
    offered = {"value": 2.0, **offered}
    with pytest.raises(UserError, match=message):
        warm_start.restore_matching(variables(1.0, **wanted), variables(**offered), patterns)


def test_a_classifier_behind_other_features_is_no_classifier_of_other_classes():
    source = variables(2.0)
    source["params"]["classifier"]["kernel"] = np.ones((7, 3), np.float32)
    with pytest.raises(UserError, match=r"has classifier/kernel as \[7, 3\] \(here \[4, 10\]\)"):
        warm_start.restore_matching(variables(1.0), source)


def test_another_network_is_told_as_such():
    source = {"params": {"mixed_3a": {"kernel": np.ones(2)}, "classifier": variables(2.0)["params"]["classifier"]}}
    with pytest.raises(UserError, match=r"runs/v4 is another network: none of its 3 arrays \(such as 'mixed_3"):
        warm_start.restore_matching(variables(1.0), source, (), "runs/v4")


def test_a_checkpoint_that_is_not_there_is_told_how_to_make_one(tmp_path):
    with pytest.raises(
        UserError, match=r"no such directory; .*checkpoint=RUN\), .*convert --weights=FILE --output=.*v1$"
    ):
        warm_start.WarmStart(str(tmp_path / "v1")).restore_into(variables(1.0))


def test_a_step_is_a_name_or_a_number():
    with pytest.raises(UserError, match=r"config.initialize.step = 'latest'; allowed: 'newest', 'best' or a step"):
        warm_start.WarmStart("runs/a", step="latest")


def test_a_summary_names_ranges_and_no_more_than_a_line_holds():
    universe = [f"conv{module}/{leaf}" for module in range(40) for leaf in ("kernel", "bias")]
    kernels = [path for path in universe if path.endswith("kernel")]
    assert paths.summarize(universe[:6] + universe[8:12], universe) == "conv0 … conv2, conv4, conv5"
    assert paths.summarize(kernels, universe).endswith("conv10/kernel, and 29 more")
    assert paths.summarize([], universe) == ""


@pytest.mark.parametrize("normalization", ["inception", "caffe_bgr", "cadene_bgr"])
def test_a_kernel_that_reads_blue_first_is_reversed_for_other_channels(normalization, small_run, tmp_path):
    """A normalization of four channels begins with red; the sum for one channel is the same in both orders."""
    run = shutil.copytree(small_run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"]["normalization"] = normalization
    (run / "config.json").write_text(json.dumps(config))
    source = reading.load_variables(run, "raw")
    kernel = np.asarray(source["params"]["conv1"]["kernel"])
    red, green, blue = np.moveaxis(kernel if normalization == "inception" else kernel[:, :, ::-1], 2, 0)
    assert np.abs(red - blue).max() > 0.01
    for channels, expected in ((4, [red, green, blue, red]), (2, [red, green]), (1, [red + green + blue])):
        conv1 = source["params"]["conv1"] | {"kernel": np.zeros((*kernel.shape[:2], channels, kernel.shape[3]))}
        start = warm_start.WarmStart(str(run), "raw")
        begun = start.restore_into({**source, "params": source["params"] | {"conv1": conv1}}, lambda: "conv1/kernel")
        scale = 3 / channels if channels > 1 else 1
        np.testing.assert_allclose(begun["params"]["conv1"]["kernel"], scale * np.stack(expected, 2), 1e-5, 1e-6)
        assert ("blue, green, red reversed" in start.summary()) == (normalization != "inception" and channels > 1)


def test_weights_of_another_normalization_are_not_taken_without_a_word(small_run):
    """Between ±128 and ±1 the first layer's inputs differ by a factor of 128, and nothing else would show it."""
    source = reading.load_variables(small_run, "raw")
    before = json.loads((small_run / "config.json").read_text())["data"]["normalization"]
    for now, words in (
        ({"normalization": before}, None),
        (None, None),
        ({"normalization": "inception"}, f"data.normalization={before}, and this run has data.normalization=inception"),
        ({"normalization": "per_channel", "mean": (0.5,), "std": (0.1,)}, "per_channel mean=(0.5,) std=(0.1,): the"),
    ):
        start = warm_start.WarmStart(str(small_run), "raw", normalization=now)
        start.restore_into(source)
        assert start.warning is None if words is None else words in start.warning

"""Features of a run's network, from Python and by the command: against the network applied by hand."""

import dataclasses
import json
import re
import types

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from inception_jax import InceptionOutput, extract
from inception_jax.config import Config
from inception_jax.data import datasets, images
from inception_jax.data.pipeline import EvalPipeline
from inception_jax.errors import UserError
from inception_jax.evaluation import extraction, trained_network
from inception_jax.features import fid_network
from inception_jax.features.statistics import frechet_distance
from inception_jax.training import preprocess


@pytest.fixture(scope="module")
def trained(small_run):
    return trained_network.load(
        trained_network.load_config(small_run), small_run, trained_network.load_class_names(small_run)
    )


@pytest.fixture(scope="module")
def by_hand(trained):
    """The outputs for uint8 images, all at once."""
    model, variables = trained.model, jax.tree.map(np.asarray, trained.variables)

    def run(images):
        inputs = preprocess.preprocess(images, normalization=trained.input.normalization, dtype=trained.input.dtype)
        return model.apply(variables, inputs)

    return jax.jit(run)


def images_of(trained, split="test[:40]"):
    data = EvalPipeline(datasets.load("digits", split), batch_size=40, image_size=32, crop=trained.crop)
    return data.batch(0)


def test_in_full_float32(trained, monkeypatch):
    """By default a GPU rounds the operands of convolutions to TF32, and a TPU to bfloat16; `score` takes the file."""
    steps = []
    monkeypatch.setattr(type(trained.devices), "compile_eval", lambda self, step, *args, **options: steps.append(step))
    extraction.compile_step(trained, ["logits"], batch_size=8)
    images = {"image": jax.ShapeDtypeStruct((8, 32, 32, 3), np.uint8)}
    text = jax.jit(steps[0]).lower(trained.variables, images).as_text()
    products = [line for line in text.splitlines() if re.search(r"stablehlo\.(convolution|dot_general)", line)]
    assert len(products) > 5 and all("HIGHEST" in line for line in products)


def test_the_shapes_are_known_inside_a_trace(trained):
    def step(x):
        name = extraction.last_endpoint(trained)
        return x * extraction.feature_shapes(trained, [name])[name].shape[0]

    assert jax.jit(step)(1.0) == step(1.0)


def test_every_example_in_order_by_the_command(trained, by_hand, small_run, run_command, tmp_path):
    output = tmp_path / "features.npz"
    code, out, err = run_command(
        "extract",
        f"--workdir={small_run}",
        "--endpoints=Mixed_3b,pool5,logits",
        f"--output={output}",
        "--batch_size=16",
        "--json",
    )
    assert code == 0, err
    assert "extract: 40 of 40" in err
    said = json.loads(out)
    assert said["examples"] == 40
    batch = images_of(trained)
    expected = by_hand(batch["image"])
    with np.load(output, allow_pickle=False) as found:
        assert list(found) == ["index", "label", "Mixed_3b", "pool5", "logits", "input", "network"]
        assert [name for name, _ in found["network"]] == ["Mixed_3b", "pool5", "logits"]
        assert found["index"].tolist() == list(range(40))
        np.testing.assert_array_equal(found["label"], batch["label"])
        assert found["Mixed_3b"].shape == (40, 4, 4, expected.endpoints["inception_3a"].shape[-1])
        assert said["features"]["Mixed_3b"] == list(found["Mixed_3b"].shape)
        for name, value in (
            ("Mixed_3b", expected.endpoint("Mixed_3b")),
            ("pool5", expected.endpoints["pool5"]),
            ("logits", expected.logits),
        ):
            np.testing.assert_allclose(found[name], value, 1e-5, 1e-5)


def test_pooled_half_precision_and_padding_from_python(trained, by_hand):
    data = EvalPipeline(datasets.load("digits", "test[:21]"), batch_size=16, image_size=32, crop=trained.crop)
    parts = list(
        extraction.features(
            trained, map(data.batch, range(2)), ["inception_4a"], batch_size=16, pool=True, dtype="float16"
        )
    )
    assert [len(part["index"]) for part in parts] == [16, 5]
    assert parts[1]["index"].tolist() == list(range(16, 21))
    found = np.concatenate([part["inception_4a"] for part in parts])
    assert found.dtype == np.float16
    expected = by_hand(images_of(trained)["image"][:21]).endpoints["inception_4a"].mean((1, 2))
    np.testing.assert_allclose(found, expected, 1e-3, 1e-4)
    assert extraction.feature_shapes(trained, ["inception_4a"], pool=True)["inception_4a"].shape == found.shape[1:]


def test_means_over_maps_are_not_rounded_to_the_networks_precision(small_run, trained):
    recipe = trained_network.load_config(small_run)
    recipe.model.dtype = "bfloat16"
    half = trained_network.load(recipe, small_run, trained_network.load_class_names(small_run))
    data = EvalPipeline(datasets.load("digits", "test[:16]"), batch_size=16, image_size=32, crop=trained.crop)
    maps, means = (
        next(extraction.features(half, [data.batch(0)], ["conv1"], batch_size=16, pool=pool))["conv1"]
        for pool in (False, True)
    )
    np.testing.assert_allclose(means, maps.mean((1, 2)), 1e-2, 1e-2)
    assert np.array_equal(maps, maps.astype(jnp.bfloat16))
    assert np.mean(means != means.astype(jnp.bfloat16)) > 0.5


def test_only_what_is_asked_for_is_computed(trained, monkeypatch):
    compiled, original = [], type(trained.devices).compile_eval

    def spy(self, *arguments, **options):
        compiled.append(original(self, *arguments, **options))
        return compiled[-1]

    monkeypatch.setattr(type(trained.devices), "compile_eval", spy)
    for endpoint in ("conv1", "logits"):
        list(extraction.features(trained, [], [endpoint], batch_size=8))
    early, whole = (step.call.cost_analysis()["flops"] for step in compiled)
    assert early < whole / 3


def test_image_files_folders_patterns_and_lists(trained, by_hand, small_run, tmp_path, capsys):
    random = np.random.RandomState(0)
    files = []
    for name, shape in (("a/0.png", (50, 40, 3)), ("a/1.png", (33, 90, 3)), ("b/2.png", (32, 32, 3)), ("3", (9, 9, 3))):
        files.append(str(tmp_path / name))
        (tmp_path / name).parent.mkdir(exist_ok=True)
        content = cv2.imencode(".png", random.randint(0, 256, shape, np.uint8))[1]
        (tmp_path / name).write_bytes(content.tobytes())
    output, listed = tmp_path / "a.npz", tmp_path / "list"
    listed.write_text(f"{tmp_path}/a/../a/0.png\n{files[3]}\n")
    named = [str(tmp_path / "a"), f"--output={output}", f"{tmp_path}/b/*.png", f"--files={listed}"]  # flags among them
    assert extract.main([f"--workdir={small_run}", "--endpoints=global_pool", *named]) == 0
    views = [images.center_crop(images.decode_image_file(file), 32, trained.crop) for file in files]
    expected = by_hand(np.stack(views)).endpoints["pool5"]
    with np.load(output) as found:
        np.testing.assert_allclose(found["global_pool"], expected, 1e-5, 1e-5)
        assert found["label"].tolist() == [-1] * 4 and found["file"].tolist() == files
    assert "4 of 4" in capsys.readouterr().err
    for flags, message in (
        (["--max_pixels=1999"], r"0\.png: an image of 40 x 50 pixels in .* limit of 1,999 pixels"),
        (["--max_pixels=0"], "--max_pixels=0: it must be at least 1"),
        ([f"{tmp_path}/c"], "c: No such file or directory"),
        (["--data=digits"], "--data: has no effect with image files"),
    ):
        with pytest.raises(UserError, match=message):
            extract.main([f"--workdir={small_run}", f"--output={output}", "--endpoints=conv1", files[0], *flags])


def test_a_data_set_without_labels(trained, by_hand, small_run, tmp_path, capsys):
    random = np.random.RandomState(0)
    pictures = [random.randint(0, 256, (32, 32, 3), np.uint8) for _ in range(5)]
    rows = [cv2.imencode(".png", picture[..., ::-1])[1].tobytes() for picture in pictures]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "test.parquet")
    output = tmp_path / "a.npz"
    named = [f"--workdir={small_run}", f"--output={output}", f"--data=huggingface:{tmp_path}", "--batch_size=8"]
    with pytest.raises(UserError, match=r"no column of labels .*; --no_labels reads the images alone$"):
        extract.main([*named, "--split=test"])
    with pytest.raises(UserError, match=r"unknown split 'other'[^;]*; splits: test \(5\)[^-]*$"):
        extract.main([*named, "--split=other", "--no_labels"])
    with pytest.raises(UserError, match=r"no column of labels [^;]*; name one, --label_key=…: 'image'$"):
        extract.main([*named, "--split=other"])
    assert extract.main([*named, "--no_labels", "--split=test[1:]"]) == 0
    views = [images.center_crop(picture, 32, trained.crop) for picture in pictures[1:]]
    with np.load(output) as found:
        assert found["label"].tolist() == [-1] * 4 and found["index"].tolist() == [0, 1, 2, 3]
        np.testing.assert_allclose(found["pool5"], by_hand(np.stack(views)).endpoints["pool5"], 1e-5, 1e-5)
    assert capsys.readouterr().err.rstrip().endswith("4 of 4 (100%)")
    assert extract.main([*named, "--split=test", "--no_labels", "--statistics"]) == 0
    with pytest.raises(UserError, match=r"--no_labels: has no effect with image files"):
        extract.main([*named[:2], "--no_labels", "a.png"])


def test_from_python_the_runs_limit_of_pixels_holds(small_run, trained, tmp_path):
    limited = trained_network.load_config(small_run)
    limited.data.max_pixels = 99
    network = dataclasses.replace(trained, config=Config(limited))
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.zeros((10, 10, 3), np.uint8))
    for use in (network.predict, network.features):
        with pytest.raises(UserError, match=r"image\.png: an image of 10 x 10 pixels .* limit of 99 pixels"):
            use([path])
    assert next(network.predict_files([path])).error.startswith("an image of 10 x 10 pixels")
    assert next(network.predict_files([path], max_pixels=100)).error == ""


def test_a_network_without_endpoints_has_logits():
    model = types.SimpleNamespace(dtype="float32", apply=lambda variables, x, train: InceptionOutput(x.mean((1, 2))))
    network = types.SimpleNamespace(
        model=model, variables={}, input=types.SimpleNamespace(eval_image_size=8, channels=3)
    )
    with pytest.raises(UserError, match="the network names no endpoint; --endpoints=logits"):
        extraction.last_endpoint(network)


def test_another_image_size(small_run, tmp_path):
    output = tmp_path / "a.npz"
    extract.main(
        [
            f"--workdir={small_run}",
            f"--output={output}",
            "--endpoints=inception_3a",
            "--image_size=48",
            "--split=test[:8]",
            "--batch_size=8",
        ]
    )
    with np.load(output) as found:
        assert found["inception_3a"].shape[:3] == (8, 6, 6)


def test_statistics_and_their_distance(trained, by_hand, small_run, tmp_path, capsys):
    files = []
    for split in ("test[:40]", "train[:40]"):
        files.append(str(tmp_path / f"{len(files)}.npz"))
        extract.main(
            [
                f"--workdir={small_run}",
                f"--output={files[-1]}",
                "--endpoints=pool5",
                "--statistics",
                f"--split={split}",
                "--batch_size=16",
            ]
        )
    rows = [
        np.asarray(by_hand(images_of(trained, split)["image"]).endpoints["pool5"], np.float64)
        for split in ("test[:40]", "train[:40]")
    ]
    for file, values in zip(files, rows, strict=True):
        with np.load(file) as found:
            assert sorted(found) == ["count", "input", "mu", "network", "sigma"]
            assert found["count"] == 40 and found["input"] == "own"  # `score` knows the network again
            assert found["network"] == fid_network.feature_network(trained, "own", "pool5").digest()
            known = {name: found[name] for name in found.files}
            np.testing.assert_allclose(found["mu"], values.mean(0), 1e-5, 1e-6)
            np.testing.assert_allclose(found["sigma"], np.cov(values, rowvar=False), 1e-4, 1e-6)
    capsys.readouterr()
    assert extract.main(["--fid", *files, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["fid"]
    expected = frechet_distance(*(f(values) for values in rows for f in (lambda v: v.mean(0), lambda v: np.cov(v.T))))
    assert said == pytest.approx(expected, rel=1e-3)
    other, unnamed = str(tmp_path / "other.npz"), str(tmp_path / "unnamed.npz")
    np.savez(other, **known | {"network": "0" * 16})
    np.savez(unnamed, mu=known["mu"], sigma=known["sigma"])  # pytorch-fid's, or written before networks were named
    with pytest.raises(UserError, match=rf"{files[0]}: its statistics are of another network .* than those of {other}"):
        extract.main(["--fid", files[0], other])
    assert extract.main(["--fid", unnamed, other]) == 0 and capsys.readouterr().out == "Fréchet distance: 0\n"
    assert said > 0
    assert extract.main(["--fid", *files]) == 0
    assert capsys.readouterr().out == f"Fréchet distance: {said:.6g}\n"


def test_what_is_refused(small_run, trained, tmp_path):
    def refused(*arguments, output="a.npz"):
        with pytest.raises(UserError) as caught:
            extract.main([f"--workdir={small_run}", f"--output={tmp_path / output}", *arguments])
        return str(caught.value)

    assert "endpoint 'inception_4x' is unknown; did you mean 'inception_4" in refused("--endpoints=inception_4x")
    assert "is another name of 'pool5'" in refused("--endpoints=pool5,AvgPool_0a_7x7")
    assert "--statistics takes one endpoint" in refused("--endpoints=pool5,logits", "--statistics")
    for flag in ("--pool", "--dtype=float32"):  # also the default, which is named for nothing
        assert "has no effect with --statistics" in refused("--endpoints=pool5", "--statistics", flag)
    assert "--data: has no effect with image files" in refused("--endpoints=pool5", "--data=digits", "a.png")
    assert "must end in .npz" in refused("--endpoints=pool5", output="a.npy")
    assert "a.png" in refused("--endpoints=pool5", "a.png")
    assert "--batch_size=0: it must be at least 1" in refused("--batch_size=0")
    assert "unknown argument '--endpoint'; did you mean '--endpoints'?" in refused("--endpoint=pool5")
    assert "--output, --workdir: have no effect with --fid" in refused("--fid", "a.npz", "b.npz")
    with pytest.raises(UserError, match="--output is missing"):
        extract.main([f"--workdir={small_run}"])
    with pytest.raises(UserError, match="does not divide over"):
        list(extraction.features(trained, [], ["pool5"], batch_size=7))
    assert list(tmp_path.iterdir()) == []


def test_the_default_is_the_last_endpoint(trained, small_run, run_command, tmp_path):
    assert extraction.last_endpoint(trained) == "pool5"
    output = tmp_path / "features.npz"
    code, out, err = run_command("extract", f"--workdir={small_run}", "--split=test[:3]", f"--output={output}")
    assert code == 0, err
    width = trained.variables["params"]["classifier"]["kernel"].shape[0]
    assert out == f"{output}: 3 examples, features pool5 {width} (ema weights of step 14)\n"

"""The command `score`, on a part of a small run's network, and the sets of images that it takes."""

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import textwrap

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import command_line, extract, score
from inception_jax.data import digits
from inception_jax.errors import UserError
from inception_jax.evaluation import trained_network
from inception_jax.features import fid_network, frechet_estimates, generative_metrics, image_sets, resizing
from inception_jax.features.feature_store import FeatureStore
from inception_jax.features.maximum_mean_discrepancy import kernel_distance
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import variable_shapes
from inception_jax.training.parallel import Devices

from ..conftest import ROOT

LOAD_NETWORK = score._load_network
NAMES = "fid,fid_infinity,kid,is,precision,recall,density,coverage"


@pytest.fixture(scope="module")
def network(small_run):
    """The small run's stem and first module, with a classifier of its own: a third of the program, on one device."""
    run = trained_network.load_run(small_run)
    model = run.model.clone(modules={"3a": MODULES["3a"]}, aux_heads=False)
    shapes = variable_shapes(model, 32)["params"]
    params = {name: jax.device_get(run.variables["params"][name]) for name in shapes if name != "classifier"}
    random = np.random.default_rng(0)
    params["classifier"] = jax.tree.map(
        lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), shapes["classifier"]
    )
    devices = Devices("jit", 1)
    light = dataclasses.replace(run, model=model, variables=devices.replicate({"params": params}), devices=devices)
    return fid_network.feature_network(light)


@pytest.fixture(scope="module")
def loaded(network):
    """`score` with a network that is loaded once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score, "_load_network", lambda flags: network)
        yield


def folder_of(path, count=40):
    """Digits as PNG files."""
    path.mkdir()
    for k, image in enumerate(digits.load("train")[0][:count]):
        cv2.imwrite(str(path / f"{k:03}.png"), image)
    return str(path)


def printed(capsys, *arguments):
    assert score.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_all_metrics_of_a_folder_and_a_data_set(small_run, network, loaded, capsys, tmp_path):
    fake = folder_of(tmp_path / "fake")
    arguments = ["dataset:digits#test[:50]", fake, f"--network={small_run}", f"--metrics={NAMES}", "--splits=2",
                 "--batch_size=16", f"--cache={tmp_path / 'cache'}"]  # fmt: skip
    assert score.main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "\r" not in err and "real images: 50 of 50 (100%)\n" in err and "fake images: 40 of 40 (100%)\n" in err
    found = json.loads(out)
    assert set(NAMES.split(",")) <= set(found) and found["fake"] == {"set": fake, "images": 40}
    rows = []
    for split in ("test[:50]", "train[:40]"):
        images = image_sets.open_set(f"dataset:digits#{split}")
        arrays = [images.read(k) for k in range(images.count)]
        rows.append(network.network.features(arrays, network.endpoint))
    real, fake_rows = (one[network.endpoint] for one in rows)
    assert found["fid"] == pytest.approx(frechet_estimates.distance_of_rows(real, fake_rows), rel=1e-4)
    kid = kernel_distance(real, fake_rows, subset_size=40)
    assert (found["kid"], found["kid_std"]) == pytest.approx((kid.mean, kid.std), rel=1e-4)
    assert (found["kid_subsets"], found["kid_subset_size"]) == (100, 40)
    # What an interrupted call left is continued; that of other images is refused.
    file = tmp_path / "cache" / "fake.pool.float32"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 3 // 5 + 3])
    again = printed(capsys, *arguments)
    assert {name: again[name] for name in NAMES.split(",")} == pytest.approx(
        {name: found[name] for name in NAMES.split(",")}, rel=1e-5, abs=1e-9
    )
    assert file.read_bytes()[: len(whole) // 2] == whole[: len(whole) // 2] and len(file.read_bytes()) == len(whole)
    with pytest.raises(UserError, match="features of other images"):
        score.main(["dataset:digits#test[:49]", fake, f"--network={small_run}", f"--cache={tmp_path / 'cache'}"])


def test_a_cache_knows_its_images_and_a_damaged_record(tmp_path):
    """Images of a data set that are others, as many and below the same names; a record that is no object."""
    for label in "ab":
        folder = tmp_path / "set" / "train" / label
        folder.mkdir(parents=True)
        cv2.imwrite(str(folder / "0.png"), np.full((8, 8, 3), 7, np.uint8))
    name = f"dataset:folder:{tmp_path / 'set'}#train"
    before = image_sets.open_set(name).identity
    assert image_sets.open_set(name).identity == before
    cv2.imwrite(str(folder / "0.png"), np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8))
    assert image_sets.open_set(name).identity != before
    for record in ("[]", "3", "[1]", "{"):
        (tmp_path / "real.json").write_text(record)
        with pytest.raises(UserError, match=r"real\.json: (damaged|these are features of other images)"):
            FeatureStore(tmp_path, "real", {"images": "x", "outputs": {"pool": 2}}, 1)


def test_one_process_at_a_time_writes_to_a_cache(tmp_path):
    identity = {"images": "x", "outputs": {"pool": 2}}
    with FeatureStore(tmp_path, "real", identity, 2) as store:
        store.add({"pool": np.zeros((1, 2), np.float32)})
        with pytest.raises(UserError, match="another process writes the features of the real images there"):
            FeatureStore(tmp_path, "real", identity, 2)
        with FeatureStore(tmp_path, "fake", identity, 2) as other:
            assert other.done == 0
    with FeatureStore(tmp_path, "real", identity, 2) as again:
        assert again.done == 1


def test_statistics_arrays_and_features_give_the_same_distance(loaded, capsys, tmp_path, network):
    train, test = (np.repeat(digits.load(split)[0][:40, ..., None], 3, axis=-1) for split in ("train", "test"))
    real, fake = tmp_path / "real.npz", tmp_path / "fake.npz"
    np.savez(real, arr_0=test)  # ADM's batches
    np.savez_compressed(fake, arr_0=train)
    np.save(tmp_path / "fake.npy", train)
    distance = printed(capsys, str(real), str(fake))["fid"]
    assert printed(capsys, str(real), str(tmp_path / "fake.npy"))["fid"] == pytest.approx(distance, rel=1e-9)
    statistics = tmp_path / "statistics.npz"
    assert score.main([str(real), f"--statistics={statistics}"]) == 0
    out, err = capsys.readouterr()
    assert "statistics of 40 images" in out and "\nimages: 40 of 40 (100%)\n" in f"\n{err}"
    assert printed(capsys, str(statistics), str(fake))["fid"] == pytest.approx(distance, rel=1e-5)
    with np.load(statistics) as file:
        assert int(file["count"]) == 40 and str(file["input"]) == "own"
        np.savez(tmp_path / "clean.npz", mu=file["mu"], sigma=file["sigma"], input="clean-fid")
        known = {name: file[name] for name in file.files}
        assert known["network"] == network.digest()
        np.savez(tmp_path / "adm.npz", mu=file["mu"], sigma=file["sigma"], arr_0=test)  # ADM's reference batches
    for other in (fake, statistics):
        with pytest.raises(UserError, match=r"clean\.npz: its statistics are of --input=clean-fid, and .* --input=own"):
            score.main([str(tmp_path / "clean.npz"), str(other)])
    np.savez(tmp_path / "other.npz", **known | {"network": "0" * 16})  # of a run of the same width and input
    for other, named in ((fake, "the images"), (statistics, r".*statistics\.npz")):
        with pytest.raises(UserError, match=rf"other\.npz: its statistics are of another network .* than {named} \("):
            score.main([str(tmp_path / "other.npz"), str(other)])
    assert "do not say" not in str(printed(capsys, str(statistics), str(fake))["notes"])
    del known["network"]
    np.savez(tmp_path / "older.npz", **known)
    older = printed(capsys, str(tmp_path / "older.npz"), str(fake))
    assert older["fid"] == pytest.approx(distance, rel=1e-5) and older["network"]
    assert "older.npz: its statistics do not say their input and network; they must be of" in older["notes"][-1]
    found = printed(capsys, str(tmp_path / "adm.npz"), str(fake), "--metrics=fid,kid")
    assert found["fid"] == pytest.approx(distance, rel=1e-5)
    rows = {name: network.network.features(list(images), network.endpoint)[network.endpoint]
            for name, images in (("real", test), ("fake", train))}  # fmt: skip
    for name, values in rows.items():
        np.savez(tmp_path / f"{name}_features.npz", feats=values, index=np.arange(40))  # clean-fid's, extract's
    by_features = printed(capsys, *(str(tmp_path / f"{name}_features.npz") for name in rows), "--metrics=fid,kid")
    assert by_features["fid"] == pytest.approx(distance, rel=1e-4) and by_features["input"] is None
    assert by_features["kid"] == pytest.approx(found["kid"], rel=1e-3)
    alone = printed(capsys, str(fake), "--metrics=is", "--splits=1")
    assert 1 < alone["is"] <= 10 and "fid" not in alone
    assert alone["notes"][0].startswith("is of 40 images is biased downward")


def test_pixels_in_a_training_loop(network):
    """What would be features of grey images, or of another output, is an error, or NaN where numbers are not known."""
    with pytest.raises(UserError, match=r"pixels: uint8\[2, 9, 9, 3\]; with --input=own uint8 of 32 x 32 pixels"):
        network.apply(network.network.variables, np.zeros((2, 9, 9, 3), np.uint8))
    network = fid_network.feature_network(network.network, "pytorch-fid")
    apply = jax.jit(network.apply, static_argnums=2)
    variables, samples = network.network.variables, jax.random.uniform(jax.random.key(0), (2, 9, 9, 3), minval=-1)
    pixels = resizing.quantize_on_device(samples, (-1, 1), "down")
    found = apply(variables, pixels, ("pool", "logits"))
    as_bytes = network.apply(variables, pixels.astype(np.uint8), ("pool",))["pool"]
    np.testing.assert_allclose(found["pool"], as_bytes, rtol=1e-5, atol=1e-6)
    for black in (pixels * 0, (pixels > 127).astype(np.float32)):  # whole numbers: a generator that has collapsed
        assert np.isfinite(apply(variables, black, ("pool",))["pool"]).all()
    for wrong in (samples, (samples + 1) / 2, samples.astype(jnp.bfloat16)):
        assert all(np.isnan(rows).all() for rows in apply(variables, wrong, ("pool", "logits")).values())
        with pytest.raises(UserError, match=r"pixels: from .* to .*; 0 … 255 is needed: features.quantize_on_device"):
            network.apply(variables, wrong)
    for images, outputs, message in (
        (pixels.astype(np.int8), ("pool",), "pixels: int8; uint8 is needed"),
        (pixels.transpose(0, 3, 1, 2), ("pool",), r"pixels: shape \(2, 3, 9, 9\); \[batch, height, width, 3\]"),
        (pixels[0], ("pool",), r"pixels: shape \(9, 9, 3\)"),
        (pixels, ("pol",), r"outputs: \('pol',\); a sequence is needed, of pool, spatial, logits"),
        (pixels, "pool", "outputs: 'pool'; a sequence is needed"),
    ):
        with pytest.raises(UserError, match=message):
            apply(variables, images, outputs)


def test_features_are_computed_in_full_float32(network):
    """By default a GPU rounds the operands of convolutions to TF32, and a TPU to bfloat16."""
    pixels = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    text = jax.jit(network.apply, static_argnums=2).lower(network.network.variables, pixels, ("logits",)).as_text()
    products = [
        line for line in text.splitlines() if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]
    assert len(products) > 5 and all("HIGHEST" in line for line in products)


def test_a_cache_takes_further_metrics(loaded, network, capsys, tmp_path, monkeypatch):
    """Outputs that are complete are not computed again; of some the features alone are read."""
    fake, cache = folder_of(tmp_path / "fake", 8), tmp_path / "cache"
    arguments = ["dataset:digits#test[:8]", fake, f"--cache={cache}", "--batch_size=4", "--splits=1"]
    first = printed(capsys, *arguments[:4], "--metrics=fid")
    pool = (cache / "fake.pool.float32").stat()
    asked, rows = [], type(network).rows
    monkeypatch.setattr(type(network), "rows", lambda self, *given: asked.append(given[3]) or rows(self, *given))
    both = printed(capsys, *arguments, "--metrics=fid,is")
    assert both["fid"] == first["fid"] and asked == [["logits"]]
    assert (cache / "fake.pool.float32").stat() == pool and (cache / "fake.logits.float32").stat().st_size == 4 * 80
    assert printed(capsys, *arguments, "--metrics=is")["is"] == both["is"] and len(asked) == 1
    (cache / "fake.logits.float32").write_bytes(b"\0" * 4 * 10 * 3)  # interrupted
    assert printed(capsys, *arguments[:4], "--metrics=fid")["fid"] == first["fid"] and len(asked) == 1
    printed(capsys, *arguments, "--metrics=is")
    assert asked[1:] == [["logits"]]


def test_features_of_another_network_are_refused(loaded, network, small_run, capsys, tmp_path):
    """Files of `extract` name it, as files of statistics do, whose reader in a loop knows it, too."""
    images, output = folder_of(tmp_path / "images", 6), str(tmp_path / "features.npz")
    assert extract.main([f"--workdir={small_run}", "--endpoints=AvgPool_0a_7x7", f"--output={output}", images]) == 0
    capsys.readouterr()
    with np.load(output) as file:
        known = {name: file[name] for name in file.files if name != "file"}
    run = fid_network.feature_network(trained_network.load_run(small_run), endpoint="AvgPool_0a_7x7")
    assert (
        known["network"].tolist() == [["AvgPool_0a_7x7", run.digest()]]
        and known["input"] == "own"
        and run.endpoint == "pool5"
    )
    assert printed(capsys, output, output)["fid"] == 0
    with pytest.raises(UserError, match=r"features\.npz: its features are of another network .* than the images \("):
        score.main([output, images])
    other = str(tmp_path / "other.npz")
    np.savez(other, **known | {"network": [["AvgPool_0a_7x7", "0" * 16]]})
    with pytest.raises(UserError, match=rf"{output}: its features are of another network .* than {other} \("):
        score.main([output, other])

    file = str(tmp_path / "statistics.npz")
    assert score.main([images, f"--statistics={file}"]) == 0
    mu, sigma = network.read_statistics(file)
    assert mu.shape == sigma.shape[:1] == (network.widths(["pool"])["pool"],)
    with np.load(file) as found:
        known = {name: found[name] for name in found.files}
    for change, message in (
        ({"network": "0" * 16}, "are of another network"),
        ({"input": "clean-fid"}, "are of --input=clean-fid, and this network is of own"),
        ({"mu": mu[1:], "sigma": sigma[1:, 1:], "network": known["network"]}, f"{len(mu) - 1} features"),
    ):
        np.savez(file, **known | change)
        with pytest.raises(UserError, match=message):
            network.read_statistics(file)
    np.savez(file, mu=mu, sigma=sigma)  # another tool's
    assert len(network.read_statistics(file)[0]) == len(mu)


def test_what_a_reader_must_know_is_said(loaded, capsys, tmp_path):
    random = np.random.RandomState(0)
    for name, count in (("real", 200), ("fake", 30)):
        np.save(tmp_path / f"{name}.npy", random.standard_normal((count, 40)))
    sets = [str(tmp_path / "real.npy"), str(tmp_path / "fake.npy")]
    assert score.main([*sets, "--bootstrap=3", "--metrics=fid,kid"]) == 0
    out = capsys.readouterr().out
    assert "note: 30 fake images, fewer than the 40 features: their covariance is singular" in out
    assert "note: FID of 30 fake images is biased upward, in proportion to 1 / images" in out
    assert "(95 %: " in out and "they do not include the bias" in out and "note: 200 real images" not in out
    found = printed(capsys, *sets, "--metrics=fid,fid_infinity")
    assert found["fid_infinity"] < found["fid"] and "slope / images" in found["notes"][1]


def test_few_images_are_said_and_one_value_has_no_deviation(capsys, tmp_path):
    random = np.random.RandomState(0)
    for name, count in (("real", 25), ("fake", 20), ("many", 600)):
        np.save(tmp_path / f"{name}.npy", random.standard_normal((count, 4)))
    real, fake, many = (str(tmp_path / f"{name}.npy") for name in ("real", "fake", "many"))
    assert score.main([fake, fake, "--metrics=kid,recall"]) == 0
    out = capsys.readouterr().out
    assert "±" not in out and "note: kid of 20 real images and 20 fake images is one value without a deviation" in out
    assert out.count("kid, recall of 20 real images and 20 fake images: few images, noisy values") == 1
    assert score.main([real, fake, "--metrics=kid"]) == 0
    out = capsys.readouterr().out
    assert " over 100 subsets of 20 images\n" in out
    assert "note: each subset of kid has all 20 fake images: its deviation is that of the choice of real images" in out
    found = printed(capsys, fake, fake, "--metrics=kid", "--bootstrap=2")
    assert found["kid_std"] is None and len(found["notes"]) == 3
    assert score.main([real, fake, "--metrics=kid", "--kid_subset_size=10"]) == 0
    out = capsys.readouterr().out
    assert " over 100 subsets of 10 images\n" in out and "deviation" not in out and "few images" in out
    assert printed(capsys, many, many, "--metrics=kid,density", "--kid_subset_size=30")["notes"] == []


def test_an_interrupt_begins_a_line_and_says_what_continues(loaded, monkeypatch, capsys, tmp_path):
    def interrupted(images, role, *others, progress, **options):
        progress(role, 3, 20)
        raise KeyboardInterrupt

    monkeypatch.setattr(generative_metrics, "measure", interrupted)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    sets = ["dataset:digits#test[:20]", "dataset:digits#test[:20]"]
    for cache, end in (
        ([], ""),
        ([f"--cache={tmp_path}"], f"; the same command continues with the features in {tmp_path}"),
    ):
        monkeypatch.setattr("sys.argv", ["score", *sets, *cache])
        with pytest.raises(SystemExit, match="130"):
            command_line.run(score.main)
        assert capsys.readouterr().err == f"\rreal images: 3 of 20 (15%)\033[K\nerror: interrupted{end}\n"


def test_a_network_that_is_not_there_is_told_by_near_names_before_jax_is_imported(small_run, tmp_path):
    """Of runs beside it and of published files."""
    (tmp_path / "digits").symlink_to(small_run)
    for name, near in (
        (
            tmp_path / "digit",
            f"nor the workdir of a run, nor the name of a published one; did you mean '{tmp_path / 'digits'}'?",
        ),
        ("timm/inception_v4.tf_in", "did you mean 'timm/inception_v4.tf_in1k' or "),
    ):
        with pytest.raises(UserError, match=re.escape(near)):
            score.main(["a", "b", f"--network={name}"])
    script = f"""
        import sys
        from inception_jax import score
        from inception_jax.errors import UserError
        try:
            score.main(["a", "b", "--network={tmp_path / "digit"}"])
        except UserError as error:
            assert "digits" in str(error) and "jax" not in sys.modules
        else:
            sys.exit("no error")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, cwd=ROOT)


def test_wrong_calls_are_one_line(loaded, tmp_path, small_run):
    np.savez(tmp_path / "a.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "b.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(tmp_path / "c.npz", x=np.zeros(3), y=np.zeros(3))
    np.savez(tmp_path / "d.npz", mu=np.zeros(3), sigma=np.eye(4))
    np.savez(tmp_path / "e.npz", images=np.zeros((2, 8, 8, 3), np.float32))
    (tmp_path / "f.npz").write_bytes(b"hello")
    a, b, c, d, e, f = (str(tmp_path / f"{name}.npz") for name in "abcdef")
    for arguments, message in (
        ([], "0 sets of images; REAL and FAKE"),
        ([a, "--metrics=fid"], "--metrics=fid: it needs two sets"),
        ([a, b, "--metrics=fdi"], "metric 'fdi': it must be one of 'fid', .*; did you mean 'fid'"),
        ([a, b, "--metrics=fid,fid"], "named twice"),
        ([a, b], "3 features of the real images and 4 of the fake"),
        ([a, a, "--metrics=kid"], "kid: it needs the real images or their features; a file of statistics"),
        ([a, a, "--metrics=sfid"], r"sfid: the file of the real images has no statistics for it \(mu_s"),
        ([a, c], r"which array is meant. It has x, y; .*c\.npz#ARRAY names one"),
        ([a, f"{c}#z"], r"it has no array z; it has x, y$"),
        ([a, f"{a}#mu"], "it has no array mu; it has mu, sigma"),
        ([a, d], r"mu float64\[3\] and sigma float64\[4, 4\]"),
        ([a, e], "images are uint8"),
        ([a, f], "not a NumPy archive"),
        ([a, "dataset:digits"], "dataset:NAME#SPLIT is needed"),
        ([a, str(tmp_path / "none")], "No such file"),
        ([a, b, "--splits=2"], "--splits: only the metrics is read it; leave it out"),
        ([a, b, "--seed=1"], "--seed: only the metrics fid_infinity, kid, is and --bootstrap read it; leave it out"),
        ([a, a, "--input=own"], "--input: has no effect: no set has images"),
        ([a, b, "--statistics=x.npz"], "it takes one set of images, not 2"),
        (["dataset:digits#test", "--statistics=x.npz", "--metrics=kid"], "--statistics writes what fid and sfid need"),
        (["dataset:digits#test[:9]", "dataset:digits#test[:9]", "--metrics=sfid"], "sfid: its features are those of"),
        (["dataset:digits#test[:9]", "dataset:digits#test[:9]", "--bootstrap=2", "--metrics=recall"], "no interval"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            score.main(arguments)
    found = LOAD_NETWORK(argparse.Namespace(network=str(small_run), input=None, endpoint=None))
    assert (found.endpoint, found.rule, found.network.step) == ("pool5", None, 14)
    network = found.network
    with pytest.raises(
        UserError, match=r"--input=clean: it must be one of 'pytorch-fid', .*; did you mean 'clean-fid'"
    ):
        fid_network.feature_network(network, "clean")
    assert generative_metrics.check_metrics(["fid"]) == ("fid",)

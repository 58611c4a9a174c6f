"""The files of other tools, as these write them, and damaged ones."""

import json
import tarfile

import cv2
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from inception_jax import score
from inception_jax.errors import UserError
from inception_jax.features import frechet_distance, image_sets


def statistics(seed, width):
    rows = np.random.RandomState(seed).standard_normal((50, width)) * (1 + seed)
    return rows.mean(0), np.cov(rows, rowvar=False)


def test_statistics_of_every_tool(tmp_path, capsys):
    """pytorch-fid, TTUR, clean-fid: mu and sigma. ADM's reference batches: mu_s, sigma_s and images, too."""
    images = np.random.RandomState(0).randint(0, 256, (3, 8, 8, 3)).astype(np.uint8)
    files = {}
    for seed, name in enumerate(("pytorch-fid", "clean-fid", "adm", "samples")):
        (mu, sigma), (mu_s, sigma_s) = statistics(seed, 5), statistics(seed, 7)
        files[name] = tmp_path / f"{name}.npz"
        if name in ("pytorch-fid", "clean-fid"):  # fid_score.save_fid_stats, cleanfid.fid.make_custom_stats
            np.savez_compressed(files[name], mu=mu, sigma=sigma)
        else:
            np.savez(files[name], mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s, arr_0=images)
    for metric, width, pair in (
        ("fid", 5, ("pytorch-fid", "clean-fid")), ("fid", 5, ("clean-fid", "adm")), ("sfid", 7, ("adm", "samples")),
    ):  # fmt: skip
        assert score.main([*(str(files[name]) for name in pair), f"--metrics={metric}", "--json"]) == 0
        seeds = [[*files].index(name) for name in pair]
        expected = frechet_distance(*statistics(seeds[0], width), *statistics(seeds[1], width))
        assert json.loads(capsys.readouterr().out)[metric] == pytest.approx(expected, rel=1e-9)
    found = image_sets.open_set(str(files["adm"]))
    assert found.count == 3 and found.statistics.keys() == {"pool", "spatial"}
    np.testing.assert_array_equal(found.read(2), images[2])
    # ADM's samples of classes have labels, and clean-fid's files for KID features alone.
    np.savez(tmp_path / "labeled.npz", images, np.arange(3))
    np.savez_compressed(tmp_path / "kid.npz", feats=np.ones((4, 5), np.float32))
    assert image_sets.open_set(str(tmp_path / "labeled.npz")).count == 3
    assert image_sets.open_set(str(tmp_path / "kid.npz")).features.shape == (4, 5)


def test_a_data_set_need_not_have_labels(tmp_path):
    pictures = np.random.RandomState(0).randint(0, 256, (2, 4, 5, 3)).astype(np.uint8)
    rows = [cv2.imencode(".png", picture)[1].tobytes() for picture in pictures]
    pyarrow.parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "train.parquet")
    found = image_sets.open_set(f"dataset:huggingface:{tmp_path}#train")
    assert found.count == 2 and all((found.read(k) == pictures[k, ..., ::-1]).all() for k in range(2))


def test_another_image_of_the_same_size_is_another_set(tmp_path):
    def identity(name):
        return image_sets.open_set(f"dataset:{name}#train").identity

    pixels = np.zeros((4, 5, 3), np.uint8)
    (tmp_path / "a").mkdir()
    for name in (f"folder:{tmp_path}/a", f"webdataset:{tmp_path}/a.tar"):
        found = []
        for value in (0, 200):
            (tmp_path / "a" / "0.bmp").write_bytes(cv2.imencode(".bmp", pixels + value)[1].tobytes())
            with tarfile.open(tmp_path / "a.tar", "w") as tar:
                tar.add(tmp_path / "a" / "0.bmp", "0.bmp")
            found += [identity(name), identity(name)]
        assert found[0] == found[1] != found[2] == found[3]


def test_the_column_of_the_images(tmp_path, capsys):
    image = cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1].tobytes()
    pyarrow.parquet.write_table(pyarrow.table({"a": [image], "b": [image]}), tmp_path / "train.parquet")
    name = f"dataset:huggingface:{tmp_path}#train"
    with pytest.raises(UserError, match=r"2 columns of images; name one, --image_key=…: 'a', 'b'"):
        image_sets.open_set(name)
    assert image_sets.open_set(name, image_key="b").count == 1
    with pytest.raises(UserError, match=r"--image_key: only with dataset:NAME#SPLIT"):
        score.main([str(tmp_path), str(tmp_path), "--image_key=a"])


def test_the_same_statistics_have_the_distance_zero(tmp_path, capsys):
    mu, sigma = statistics(0, 6)
    np.savez(tmp_path / "a.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "b.npz", mu=mu, sigma=sigma)
    assert score.main([str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["fid", "0"]


def test_other_files_are_one_line(tmp_path):
    for name, content, message in (
        ("a.pkl", b"\x80\x04N.", "a.pkl: pickled files are not read"),
        ("a.pt", b"PK\x03\x04", "a.pt: pickled files"),
        ("a.npz", b"", "not a NumPy archive"),
        ("a.npy", b"\x93NUMPY\x01\x00", "not a readable array"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as raised:
            image_sets.open_set(str(tmp_path / name))
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_one_line_and_never_other_numbers(save, tmp_path):
    path = tmp_path / "a.npz"
    save(path, mu=np.arange(3.0), sigma=np.eye(3), arr_0=np.ones((1, 2, 2, 3), np.uint8))
    whole, refused = path.read_bytes(), 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        try:
            found = image_sets.open_set(str(path))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
        else:  # a date, or the name of an array
            if found.statistics:
                assert [part.tolist() for part in found.statistics["pool"]] == [[0, 1, 2], np.eye(3).tolist()]
            assert found.read is None or found.read(0).tolist() == np.ones((2, 2, 3)).tolist()
    assert refused > len(whole) / 6


def test_one_of_several_arrays(tmp_path):
    path = str(tmp_path / "features.npz")
    network = np.array([["Mixed_3b", "aaaa"], ["logits", "bbbb"]])
    np.savez(path, Mixed_3b=np.ones((3, 4), np.float32), logits=np.zeros((3, 4), np.float32), network=network)
    first, second = (image_sets.open_set(f"{path}#{name}") for name in ("Mixed_3b", "logits"))
    assert (first.features.mean(), first.network, second.features.mean(), second.network) == (1, "aaaa", 0, "bbbb")
    assert first.identity != second.identity  # of equal shapes: files of `--cache` know them apart
    with pytest.raises(UserError, match="it has no array logit; did you mean 'logits'"):
        image_sets.open_set(f"{path}#logit")

"""The sheet of a batch: the pixels that the network sees, with the labels of the batch."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from inception_jax.data import show
from inception_jax.errors import UserError
from inception_jax.runs import batch_sheet
from inception_jax.training import batch_views, parallel, preprocess
from inception_jax.training.device_augmentation import DeviceAugmentation
from inception_jax.training.mixing import Mixing
from inception_jax.training.network_setup import NetworkInput

ARGUMENTS = ["--config=digits", "--config.data.image_size=32", "--config.data.threads=1", "--config.parallel.devices=1"]


def sheet_of(tmp_path, monkeypatch, *arguments):
    """(images and captions that are drawn, title, what was written) of the command."""
    drawn = []
    draw = batch_sheet.draw

    def record(images, captions, path, *, title):
        drawn.extend((images, captions, title))
        draw(images, captions, path, title=title)

    monkeypatch.setattr(batch_sheet, "draw", record)
    path = tmp_path / "sheet.png"
    assert show.main([*ARGUMENTS, f"--output={path}", *arguments]) == 0
    with Image.open(path) as sheet:
        return *drawn, np.asarray(sheet)


def test_the_sheet_has_the_images_of_the_batch(tmp_path, monkeypatch, capsys):
    images, captions, title, sheet = sheet_of(tmp_path, monkeypatch, "--images=5", "--step=3", "--seed=7")
    assert title == "digits, train, batch 3, seed 7, 32 pixels" and len(captions) == len(images) == 5
    assert capsys.readouterr().out.strip() == str(tmp_path / "sheet.png")
    first = sheet[26 : 26 + 96, 8 : 8 + 96]  # enlarged to three times its size
    np.testing.assert_array_equal(first[1::3, 1::3], images[0])
    (other,), _, _, _ = sheet_of(tmp_path, monkeypatch, "--images=1", "--step=3")
    assert (other != images[0]).any()
    held_out, labels, title, _ = sheet_of(tmp_path, monkeypatch, "--split=eval", "--step=11", "--images=100")
    assert title.startswith("digits, test, batch 11") and len(labels) == len(held_out) == 360 - 11 * 32
    assert set(labels) <= set("0123456789")


def test_mixed_images_have_both_labels(tmp_path, monkeypatch):
    fields = ["--config.augmentation.mixup_alpha=1.0", "--config.augmentation.photometric=howard"]
    images, captions, _, _ = sheet_of(tmp_path, monkeypatch, "--images=3", *fields)
    assert len(images) == 3 and all(re.fullmatch(r"\d( 0\.\d\d / \d 0\.\d\d)?", caption) for caption in captions)
    assert " / " in " ".join(captions)


def test_views_are_the_networks_input_with_the_normalization_undone():
    """Of pixels that nothing but a mixture changed, in each normalization, BGR ones among them."""
    random = np.random.default_rng(0)
    batch = {
        "image": random.integers(0, 256, (4, 6, 6, 3), np.uint8),
        "label": np.array([0, 1, 2, 0], np.int32),
        "mask": np.array([True, True, True, False]),
    }
    for name, normalization in preprocess.NORMALIZATIONS.items():
        values = preprocess.preprocess(jax.numpy.asarray(batch["image"]), normalization=normalization, dtype="float32")
        back = batch_views.undo_normalization(np.asarray(values), normalization)
        np.testing.assert_array_equal(back, batch["image"], name)
    size = NetworkInput(6, 6, preprocess.get_normalization("caffe_bgr"), np.float32, None)
    augmentation = DeviceAugmentation(mixing=Mixing(mixup_alpha=1.0))
    images, captions = batch_views.view_training_batch(batch, 2, 0, augmentation, size, ["cat", "dog", "eel"])
    weight = float(captions[0].split()[1])
    expected = weight * batch["image"][0] + (1 - weight) * batch["image"][1].astype(float)
    assert np.abs(images[0] - expected).max() < 2.5  # the caption has two decimals
    assert captions[2:] == ["eel", "(left out)"] and (images[2] == batch["image"][2]).all()
    for pair, weight, expected in (((0, 1), 0.704, "cat 0.70 / dog 0.30"), ((1, 1), 0.3, "dog"), ((0, 1), 0.998, "cat"),
                                   ((0, 1), 0.002, "dog")):  # fmt: skip
        assert batch_sheet.format_label(["cat", "dog"], *pair, weight) == expected


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_the_first_rows_come_back_from_the_devices(mode):
    mesh, batch = parallel.Devices(mode, 2), {"label": np.arange(12, dtype=np.int32)}
    for count, expected in ((4, [0, 1, 2, 3]), (16, [0, 1, 2, 3, 4, 5])):
        assert mesh.first_rows(mesh.put(batch), count)["label"].tolist() == expected


def test_a_sheet_of_long_names_and_other_scripts_is_drawn(tmp_path):
    names = ["a" * 400, "Ελλάδα\n", "\udce9"]
    batch_sheet.draw(np.zeros((3, 300, 300, 3), np.uint8), names, tmp_path / "a.png", title="b" * 1000)
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (8 + 3 * 308, 26 + 300 + 18 + 8)
    with pytest.raises(UserError, match=r"/proc/none/a\.png"):
        batch_sheet.draw(np.zeros((1, 9, 9, 3), np.uint8), ["a"], "/proc/none/a.png", title="b")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--output=FILE.png is needed"),
        (("--output=sheet.jpg",), "name a PNG file"),
        (("--output=none/sheet.png",), "there is no folder none"),
        (("--output=other.png",), "exists and is no sheet of a batch"),
        (("--output=a.png", "--split=eval", "--step=12"), "test has 12 batches, from 0"),
        (
            ("--output=a.png", "--config.batch_size=3", "--config.augmentation.cutmix_alpha=1.0"),
            r"cutmix_alpha = 1.0: images are mixed in pairs, and one device takes 3 at once",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (3, 3)).save("other.png")
    with pytest.raises(UserError, match=message):
        show.main([*ARGUMENTS, *arguments])

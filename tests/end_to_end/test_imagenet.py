"""ImageNet from its two tars to its numbers: prepared, trained on, evaluated by every protocol, with ILSVRC's lists.

The tars have their true form. Their images are windows of two photographs, among them what ILSVRC has seldom: grey and
CMYK JPEGs, a PNG whose name ends with .JPEG, an EXIF orientation, a progressive JPEG.
"""

import io
import json
import tarfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from inception_jax import evaluate, load_run
from inception_jax.data import datasets, decoding, imagenet2012, prepare
from inception_jax.data.eval_protocols import PROTOCOLS
from inception_jax.evaluation import split_predictions
from inception_jax.training.preprocess import preprocess

SYNSETS = ("n02105855", "n01440764", "n03131574")
FORMS = ("plain", "grey", "cmyk", "png", "rotated", "progressive")
COUNT = 6  # validation images
SIZE = 32  # of the network's input


def photograph(number, form):
    """A window of a photograph as an image file, and its pixels before it was encoded, uint8 [height, width, 3]."""
    height, width = 180 + 17 * number % 50, 240 - 23 * number % 70
    top, left = 11 * number, 13 * number
    pixels = load_sample_images().images[number % 2][top : top + height, left : left + width]
    image, options = Image.fromarray(pixels), {"format": "JPEG", "quality": 95, "subsampling": 0}
    if form == "grey":
        image = image.convert("L")
        pixels = np.repeat(np.asarray(image)[..., None], 3, axis=2)
    elif form == "cmyk":
        image = image.convert("CMYK")
    elif form == "png":
        options = {"format": "PNG"}
    elif form == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6  # a viewer turns it to the right
        options["exif"] = exif
    elif form == "progressive":
        options["progressive"] = True
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue(), pixels


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """The folder of the prepared set, {name of a validation image: its pixels}, and the labels of these."""
    folder = tmp_path_factory.mktemp("imagenet")
    originals, inner = {}, []
    for number, synset in enumerate(SYNSETS):
        images = [(f"{synset}_{i}.JPEG", photograph(3 * number + i, FORMS[(number + i) % 6])[0]) for i in range(3)]
        write_tar(folder / "inner", images)
        inner.append((f"{synset}.tar", (folder / "inner").read_bytes()))
    write_tar(folder / "ILSVRC2012_img_train.tar", inner)
    validation = []
    for number, form in enumerate(FORMS, 1):
        name = f"ILSVRC2012_val_{number:08d}.JPEG"
        content, originals[name] = photograph(20 + number, form)
        validation.append((name, content))
    write_tar(folder / "ILSVRC2012_img_val.tar", validation)
    with pytest.MonkeyPatch.context() as patch:
        kind, labels = imagenet2012.Imagenet2012, imagenet2012._read_tfds_file("validation_labels.txt")[:COUNT]
        patch.setattr(kind, "EXPECTED", {"train": 9, "validation": COUNT})
        patch.setattr(kind, "validation_labels", lambda self: labels)
        patch.setattr(kind, "verify", lambda self, progress: None)  # these are not the published files; all else is
        assert prepare.main(["imagenet2012", f"--source={folder}", f"--data_dir={folder}", "--num_shards=2"]) == 0
    return folder, originals, labels


@pytest.fixture(scope="module")
def run(imagenet, run_command, own_recipe):
    """The workdir of three steps of a small network with 1,000 classes."""
    folder, _, _ = imagenet
    fields = {
        "data.name": "imagenet2012", "data.data_dir": folder, "data.eval_split": "validation", "num_steps": 3,
        "batch_size": 4, "data.image_size": SIZE, "augmentation.rule": "area_aspect", "logging.pictures": False,
        "checkpoint.best_metric": "top1",
    }  # fmt: skip
    overrides = [f"--config.{field}={value}" for field, value in fields.items()]
    code, _, err = run_command("train", f"--config={own_recipe}", *overrides, f"--workdir={folder / 'run'}")
    assert code == 0 and "imagenet2012: 9 training and 6 evaluation examples, 1000 classes" in err, err
    return folder / "run"


def test_every_image_is_decoded(imagenet):
    folder, originals, labels = imagenet
    data = datasets.load("imagenet2012", "validation", str(folder))
    for index in range(COUNT):
        content, label = data.record(index)
        name = data.source.file_name(index)
        found = decoding.decode(content).astype(int)
        assert data.class_names[label] == labels[int(name[-13:-5]) - 1]
        assert found.shape == originals[name].shape  # the orientation is not applied
        assert np.abs(found - originals[name]).mean() < 3, name


def evaluated(capsys, *flags):
    capsys.readouterr()
    assert evaluate.main([*flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_protocol_and_the_lists(imagenet, run, tmp_path, capsys, registrations):
    """The probabilities of every protocol are those of its crops, one image after another; then labels and lists."""
    folder, _, _ = imagenet
    network, data = load_run(run), datasets.load("imagenet2012", "validation", str(folder))
    numbers = [int(data.source.file_name(index)[-13:-5]) for index in range(COUNT)]
    assert numbers != sorted(numbers)  # TFDS's order
    for name, protocol in PROTOCOLS.items():
        file = tmp_path / f"{name}.npz"
        flags = [f"--workdir={run}", f"--protocol={name}", f"--save_predictions={file}", "--devices=1"]
        result = evaluated(capsys, *flags)
        assert (result["count"], result["crops"]) == (COUNT, protocol.crops)
        saved = split_predictions.load(file)
        assert saved.names.tolist() == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in numbers]
        for index in range(COUNT):
            content, label = data.record(index)
            crops = np.zeros((protocol.crops, SIZE, SIZE, 3), np.uint8)
            protocol.cut(decoding.decode(content), SIZE, network.crop, crops)
            pixels = preprocess(jnp.asarray(crops), normalization=network.input.normalization, dtype=jnp.float32)
            logits = np.asarray(network.model.apply(network.variables, pixels, train=False).logits, np.float64)
            exponentials = np.exp(logits - logits.max(1, keepdims=True))
            mean = (exponentials / exponentials.sum(1, keepdims=True)).mean(0)
            np.testing.assert_allclose(np.exp(saved.log_probabilities[index]), mean, rtol=1e-4)
            assert saved.labels[index] == label

    # ILSVRC's list of 2014 has numbers; real.json has a list of classes per image in the order of these numbers.
    (tmp_path / "blacklist.txt").write_text("2\n6\n")
    best = {number: int(np.argmax(logs)) for number, logs in zip(numbers, saved.log_probabilities, strict=True)}
    real = [[best[1], 3], [best[2]], [], [best[4]], [(best[5] + 1) % 1000], [best[6]]]
    (tmp_path / "real.json").write_text(json.dumps(real))
    lists = [f"--exclude={tmp_path / 'blacklist.txt'}", f"--labels={tmp_path / 'real.json'}"]
    result = evaluated(capsys, f"--from={file}", lists[0])
    assert (result["count"], result["left_out"]) == (4, 2)
    for source in (flags, [f"--from={file}"]):
        result = evaluated(capsys, *source, *lists)
        assert (result["count"], result["left_out"], result["top1"]) == (3, 3, pytest.approx(2 / 3))

"""What a recipe registers, and the error where that is wrong, missing, or not named in the config."""

import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

import inception_jax
from inception_jax import config as configs
from inception_jax import extension_files
from inception_jax.config import Config, ConfigError
from inception_jax.data import datasets, images
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.errors import UserError
from inception_jax.metric_definitions import METRICS
from inception_jax.models.inception_v1 import InceptionV1

pytestmark = pytest.mark.usefixtures("registrations")
IMAGES, LABELS = np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 1, 0, 1, 0, 1])
NAMES = ["dark", "light"]


def own(splits, class_names=NAMES):
    inception_jax.register_dataset("mine", splits, class_names=class_names)


class Items:
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_a_data_set_from_arrays_a_function_or_an_object():
    own({"train": (IMAGES, LABELS), "test": (IMAGES[:2, ..., 0], LABELS[:2])})
    assert [datasets.load("mine", split).num_examples for split in ("train", "train[:50%]", "test+train")] == [6, 3, 8]
    assert datasets.load("mine", "test").record(1)[0].shape == (8, 8, 3)
    np.testing.assert_array_equal(datasets.load("mine", "train[1:]").class_counts(), [2, 3])
    own(lambda: {"train": Items((IMAGES[0], np.int64(1)), (b"", 0))})
    dataset = datasets.load("mine", "train")
    assert dataset.record(0)[1] == 1 and dataset.record(1)[0] == b""
    np.testing.assert_array_equal(dataset.labels(), [1, 0])


def truncated():
    """An image that Pillow has opened and not yet read."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(stream, "PNG")
    return Image.open(io.BytesIO(stream.getvalue()[:-900]))


def test_a_data_set_of_other_libraries():
    """Items of torchvision are (image of Pillow, label), those of Hugging Face dicts; modes as of files of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4), np.uint8)
    colour = Image.fromarray(pixels[..., :3])
    palette = colour.convert("P", palette=Image.Palette.ADAPTIVE, colors=30)
    pictures = [colour, Image.fromarray(pixels[..., 0]), Image.fromarray(pixels), palette, colour.convert("CMYK")]
    own({"train": Items(*({"image": one, "label": 1, "note": "x"} for one in pictures), (colour, 0), (palette, 0))})
    found = [datasets.load("mine", "train").record(index) for index in range(7)]
    assert [label for _, label in found] == [1] * 5 + [0] * 2
    expected = [pixels[..., :3], pixels[..., :1], pixels, np.asarray(palette.convert("RGB")), None, pixels[..., :3]]
    for (image, _), want in zip(found, expected, strict=False):
        assert image.dtype == np.uint8 and (want is None or np.array_equal(image, want))
    assert found[4][0].shape == (5, 6, 3) and np.array_equal(found[6][0], found[3][0])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((IMAGES.astype(np.float32), LABELS), r"mine \[train\]: images float32\[6, 8, 8, 3\]; uint8"),
        ((IMAGES, LABELS[:3]), r"mine \[train\]: labels int64\[3\]; integers \[6\] are needed"),
        ((IMAGES, LABELS + 1), r"mine \[train\]: labels from 1 to 2; the classes are 0 to 1"),
        ((IMAGES,), r"a tuple of 1; \(images, labels\) is needed"),
        (3, r"int; \(images, labels\), or an object with a length and items"),
        (Items((IMAGES[0] / 2, 0)), r"mine \[train\], item 0: an image float64\[8, 8, 3\]; uint8"),
        (([IMAGES[0], IMAGES[0, 1:]], LABELS[:2]), r"for images of different sizes give an object whose item i is"),
        (Items((IMAGES[0], "a")), r"mine \[train\], item 0: label 'a'; an integer, its place in class_names"),
        (Items((IMAGES[0], np.array([1]))), r"item 0: label array\(\[1\]\); an integer, its place"),
        (Items((IMAGES[0], 2)), r"item 0: label 2; the classes are 0 to 1"),
        (Items({"img": IMAGES[0], "label": 0}), r"item 0: a dict that has 'img', 'label'; it needs 'image' and"),
        (Items((truncated(), 0)), r"item 0: not a readable image: image file is truncated"),
        (Items(([[0], [1, 2]], 0)), r"item 0: ValueError: "),
        (Items((Image.new("F", (4, 4)), 0)), r"item 0: an image of Pillow's mode F, of no fixed range; scale it"),
    ],
)
def test_wrong_data_is_named(data, message):
    own({"train": data})
    with pytest.raises(UserError, match=message):
        datasets.load("mine", "train").record(0)


def test_an_augmentation_gets_the_numbers_of_the_position():
    seen = []

    def note(image, image_size, uniforms):
        seen.append(uniforms[0])
        return image[:image_size, :image_size]

    inception_jax.register_augmentation("note", note)
    own({"train": (IMAGES, LABELS)})
    pipeline = TrainPipeline(
        datasets.load("mine", "train"), batch_size=2, image_size=4, seed=3, augmentation=images.CUSTOM["note"]
    )
    pipeline.batch(1), pipeline.batch(1), pipeline.batch(2)
    assert seen[:2] == seen[2:4] and len({*seen}) == 4
    inception_jax.register_augmentation("note", lambda image, size, uniforms: image)
    wrong = TrainPipeline(pipeline.dataset, batch_size=2, image_size=4, seed=3, augmentation=images.CUSTOM["note"])
    with pytest.raises(UserError, match=r"augmentation 'note' returned uint8\[8, 8, 3\]; uint8\[4, 4, 3\] is needed"):
        wrong.batch(0)


def test_names_that_are_refused(tmp_path):
    for register, name, message in (
        (lambda name: inception_jax.register_metric(name, len), "top1", "metric 'top1': the package has one"),
        (lambda name: inception_jax.register_metric(name, len), "count", "metric 'count': the package has one"),
        (lambda name: inception_jax.register_optimizer(name, len), "sgd", "optimizer 'sgd': the package has one"),
        (lambda name: inception_jax.register_sink(name, len), "mlflow", "sink 'mlflow': the package has one"),
        (lambda name: inception_jax.register_augmentation(name, len), "a-b", "'a-b': a name of letters, digits"),
        (lambda name: inception_jax.register_dataset(name, {}, class_names=["a", "a"]), "x", "different names"),
        (
            lambda name: inception_jax.register_model(name, int, image_size=9),
            "x",
            "int is no subclass of .*BaseNetwork",
        ),
        (lambda name: inception_jax.register_model(name, ord, image_size=9), "x", "constructor .* TypeError"),
    ):
        with pytest.raises(UserError, match=message):
            register(name)
    inception_jax.register_metric("mine", len)
    other = tmp_path / "other.py"
    other.write_text("import inception_jax\ninception_jax.register_metric('mine', len)\n")
    with pytest.raises(UserError, match=r"other\.py: UserError: metric 'mine': registered by .*test_extensions\.py"):
        extension_files.load([str(other)])


def test_a_config_names_the_file_of_what_it_uses(tmp_path):
    inception_jax.register_model("mine", InceptionV1, image_size=32, min_image_size=32)
    with pytest.raises(
        UserError, match=r"model 'mine' is registered in .*test_extensions\.py, which config\.extensions"
    ):
        extension_files.check_named((), [("model", "mine")])
    assert extension_files.check_named((__file__,), [("model", "mine")]) is None
    assert extension_files.check_named((), [("model", "inception_v1")]) is None
    inception_jax.register_metric("doubt", len)  # every evaluation computes it
    with pytest.raises(UserError, match="metric 'doubt' is registered in"):
        extension_files.check_named((), [])
    exec("import inception_jax; inception_jax.register_model('typed', Net, image_size=9)", {"Net": InceptionV1})
    assert "is registered in no file" in extension_files.check_named((__file__,), [("model", "typed")])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("checkpoint.best_metric", "top2", "it must be one of 'loss', .*; did you mean 'top.'.*config.extensions"),
        ("augmentation.rule", "area", "it must be one of 'area_aspect', .*; did you mean 'area_aspect'"),
        ("optimizer.name", "sdg", "it must be one of 'sgd', .*'optax.NAME'; did you mean 'sgd'"),
        (
            "logging.sinks",
            ("wandbb",),
            "= .'wandbb',.: it must be one of 'tensorboard', 'wandb', 'mlflow'; did you mean 'wandb'",
        ),
        ("extensions", (3,), "must be paths of Python files or module names"),
    ],
)
def test_an_unknown_name_is_refused_with_the_ones_there_are(field, value, message):
    recipe = configs.default()
    section, _, name = field.rpartition(".")
    (recipe[section] if section else recipe)[name] = value
    with pytest.raises(ConfigError, match=message):
        Config(recipe)


def test_a_file_is_imported_once_and_its_copy_instead_of_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import inception_jax\ninception_jax.register_metric('size', lambda p: len(p.labels))\n")
    recipe = configs.default(extensions=(str(file),))
    recipe.checkpoint.best_metric = "size"
    first = METRICS["size"]
    stored = json.loads(Config(recipe).to_json())
    assert METRICS["size"] is first and stored["extensions"] == [str(file)]
    assert extension_files.copy_files(recipe.extensions, tmp_path / "run") == []
    copies = tmp_path / "run" / extension_files.DIRECTORY
    assert (copies / "mine.py").read_bytes() == file.read_bytes()

    file.write_text(file.read_text() + "\n")  # another content: the run's copy is what this process has
    configs.from_dict(stored, copies=copies)
    configs.from_dict(stored)
    assert extension_files.copy_files(recipe.extensions, tmp_path / "run") == []
    (copies / "mine.py").write_text("# as if the run had begun with another file\n")
    assert extension_files.copy_files(recipe.extensions, tmp_path / "run") == ["mine.py"]
    with pytest.raises(UserError, match=r"run/extensions/mine\.py is not the mine\.py that this process has imported"):
        configs.from_dict(stored, copies=copies)

    extension_files.FILES.clear(), extension_files.ORIGINS.clear(), METRICS.pop("size")  # as in another process
    file.unlink()
    assert configs.from_dict(stored, copies=copies).checkpoint.best_metric == "size"
    assert extension_files.check_named([str(file)], []) is None  # as if the file itself had registered it
    with pytest.raises(UserError, match=r"config\.extensions: cannot read .*mine\.py: No such file"):
        configs.from_dict({**stored, "extensions": [str(tmp_path / "other" / "mine.py")]})


def test_a_published_folder_imports_nothing(tmp_path):
    from inception_jax.pretrained import hub

    config = {"extensions": [str(tmp_path / "theirs.py")]}
    about = {"library_name": "inception_jax", "config": config, "class_names": NAMES, "weights": "raw", "step": 1}
    (tmp_path / "theirs.py").write_text("raise SystemExit('imported')\n")
    (tmp_path / "config.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match=r"config\.extensions = .*theirs\.py.*a published folder has none"):
        hub.load(tmp_path)


def test_an_extension_that_fails_is_one_line(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("import inception_jax\n\nraise RuntimeError('two\\nlines')\n")
    with pytest.raises(UserError, match=r"broken\.py: RuntimeError: two lines \(line 3\)$"):
        configs.default(extensions=(str(file),))
    with pytest.raises(UserError, match=r"module 'no_such_module': ModuleNotFoundError"):
        configs.default(extensions=("no_such_module",))
    assert not any(name.startswith("inception_jax_extension_broken") for name in sys.modules)


def test_workers_get_classes_and_functions_of_a_file_by_value(tmp_path):
    """A worker process cannot import the file's module by its name."""
    import cloudpickle

    file = tmp_path / "mine.py"
    file.write_text(
        "import inception_jax\nimport numpy as np\n"
        "class Items:\n"
        "    def __len__(self):\n        return 4\n"
        "    def __getitem__(self, index):\n        return np.full((8, 8, 3), index, np.uint8), index % 2\n"
        "inception_jax.register_dataset('mine', {'train': Items()}, class_names=['a', 'b'])\n"
        "inception_jax.register_augmentation('dim', lambda image, size, uniforms: image[:size, :size] // 2)\n"
    )
    extension_files.load([str(file)])
    pipeline = TrainPipeline(
        datasets.load("mine", "train[:3]"), batch_size=2, image_size=4, seed=3, augmentation=images.CUSTOM["dim"]
    )
    sent = cloudpickle.dumps(pipeline.batch)
    for name in [name for name in sys.modules if name.startswith("inception_jax_extension_mine")]:
        del sys.modules[name]
    np.testing.assert_array_equal(cloudpickle.loads(sent)(5)["image"], pipeline.batch(5)["image"])


def test_the_best_config_of_a_sweep_names_the_extensions(tmp_path):
    from inception_jax.sweeps.recipe import format_recipe

    file = tmp_path / "mine.py"
    file.write_text("import inception_jax\ninception_jax.register_metric('size', lambda p: len(p.labels))\n")
    recipe = configs.default(extensions=(str(file),))
    recipe.checkpoint.best_metric = "size"
    recipe.optimizer.name, recipe.optimizer.options = "optax.lamb", {"b1": 0.8}
    text = format_recipe(Config(recipe).to_dict(), "Best.")
    assert "    config = inception_jax.config.default(extensions=(" in text
    space: dict = {}
    exec(text, space)
    assert Config(space["get_config"]()).to_dict() == Config(recipe).to_dict()

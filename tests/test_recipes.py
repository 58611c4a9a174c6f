"""Every recipe in configs/: it builds everything, reads all its fields, and says where its numbers are from."""

import importlib.util
import inspect
from pathlib import Path

import jax
import pytest

from inception_jax import recipe_files
from inception_jax.config import Config
from inception_jax.training import setup

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
RECIPES = [
    ("digits", None, "inception_v1", 539, 0.001),  # a tenth: the warm-up's first step
    ("fashion_mnist", None, "inception_v1_bn", 300_274, 0.0045),
    ("fashion_mnist", "long", "inception_v1_bn", 300_274, 0.02),
    ("fine_tuning", "images", "inception_v1_bn", 800_729, 0.002),
    ("from_scratch", "images", "inception_v1_bn", 1_201_094, 0.005),
    ("inception_v1_imagenet", "caffe", "inception_v1", 10_009_117, 0.01),
    ("inception_v1_imagenet", "quick", "inception_v1", 2_402_188, 0.01),
    ("inception_v1_imagenet", "paper", "inception_v1", 10_009_117, 0.01),
    ("inception_v1_bn_imagenet", None, "inception_v1_bn", 2_682_443, 0.045),
    ("inception_v4_imagenet", None, "inception_v4", 200_182, 0.045),
]


def module(name):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(
    ("argument", "name"),
    [
        ("pets", "folder:pets"),
        ("/data/a:b", "folder:/data/a:b"),
        ("huggingface:org/pets", "huggingface:org/pets"),
        ("tfds:cifar10/1.0.0", "cifar10/1.0.0"),
        ("pets.CSV", "list:pets.CSV"),
    ],
)
@pytest.mark.parametrize("recipe", ["fine_tuning", "from_scratch"])
def test_own_images_are_any_data_set(recipe, argument, name):
    assert module(recipe).get_config(argument).data.name == name


def test_every_recipe_is_tested():
    assert {name for name, *_ in RECIPES} == {path.stem for path in CONFIGS.glob("*.py")}


@pytest.mark.parametrize(("name", "argument", "model", "steps", "rate"), RECIPES)
def test_a_recipe_builds_and_reads_every_field(name, argument, model, steps, rate):
    recipe = module(name).get_config(*([argument] if argument else []))
    recipe.parallel.devices = 1
    if recipe.data.name != "digits":  # as many examples, without the data
        recipe.data.name = (
            "synthetic" if recipe.model.in_channels == 3 else f"synthetic:10:64:{recipe.model.in_channels}"
        )
        recipe.data.eval_split = "validation"
    config = Config(recipe)
    parts = setup.build(config)
    config.refuse_unread()
    assert parts.spec.name == model
    assert parts.length.total == steps
    assert len(parts.objective.aux_weights) == (len(parts.spec.aux_weights) if recipe.model.aux_heads else 0)
    assert float(parts.schedule(0)) == pytest.approx(rate, rel=1e-5)
    variables = jax.eval_shape(
        parts.model.init,
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, *2 * (parts.input.image_size,), recipe.model.in_channels), "float32"),
    )
    jax.eval_shape(parts.optimizer.init, variables["params"])  # every pattern matches a parameter


@pytest.mark.parametrize("name", sorted({name for name, *_ in RECIPES}))
def test_a_recipe_says_how_it_is_run_and_what_came_of_it(name):
    docstring = inspect.getdoc(module(name))
    assert f"--config=configs/{name}.py" in docstring
    assert "Hardware:" in docstring
    assert "Result:" in docstring


def test_an_unknown_variant_lists_those_that_there_are():
    with pytest.raises(ValueError, match="the recipes are caffe, quick and paper"):
        module("inception_v1_imagenet").get_config("cafe")


def test_a_field_that_is_given_twice_is_noted(capsys):
    """A shell makes several arguments of a value with braces that is not quoted; the last one counts."""
    config, _ = recipe_files.load_config(["--config=digits", "--config.num_steps=5", "--config.num_steps=7"])
    assert config.num_steps == 7
    assert "--config.num_steps: given 2 times; the last one counts, '7' (quote a value w" in capsys.readouterr().err
    given = ["--config=digits", "--config.initialize.new=('a',)", "--config.initialize.new=('b',)"]
    config, _ = recipe_files.load_config([*given, "--config.seed=3", "--config.seed=3"])
    assert config.initialize.new == ("a", "b") and capsys.readouterr().err == ""  # the values of a tuple add up

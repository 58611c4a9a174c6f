"""The fields of `config.evaluation` that say how an image is cropped: what they make, and what they refuse."""

import pytest

from inception_jax import config as configs
from inception_jax.config import Config, ConfigError
from inception_jax.data import crops, resampling
from inception_jax.data.crops import EvalCrop
from inception_jax.errors import UserError
from inception_jax.training import network_setup


def make(**fields):
    recipe = configs.default()
    recipe.model.name = "inception_v1"
    for name, value in fields.items():
        recipe.evaluation[name] = value
    return Config(recipe)


@pytest.mark.parametrize(
    ("fields", "crop"),
    [
        ({}, EvalCrop("center", 0.875, "bilinear")),
        ({"crop_fraction": 1.0}, EvalCrop("center", 1.0)),
        (
            {"crop": "torchvision", "resize": 256, "interpolation": "pil_bilinear"},
            EvalCrop("torchvision", interpolation="pil_bilinear", resize=256),
        ),
        ({"crop": "squash", "resize": 224}, EvalCrop("squash", resize=224)),
        (
            {"crop": "central_fraction", "crop_fraction": 0.9, "interpolation": "tf_bilinear"},
            EvalCrop("central_fraction", 0.9, "tf_bilinear"),
        ),
    ],
)
def test_fields_make_the_crop(fields, crop):
    config = make(**fields)
    assert network_setup.read_input(config).eval_crop == crop
    assert {f"evaluation.{name}" for name in fields} <= config._reads  # so that a run does not stop because of them


def test_the_schema_allows_what_the_crops_know():
    for rule in crops.CROP_RULES:
        assert network_setup.read_input(make(crop=rule)).eval_crop.rule == rule
    for interpolation in resampling.RESIZES:
        assert network_setup.read_input(make(interpolation=interpolation)).eval_crop.interpolation == interpolation


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"crop": "middle"}, r"config\.evaluation\.crop = 'middle': it must be one of 'center', 'torchvision'"),
        ({"interpolation": "bicubic"}, r"config\.evaluation\.interpolation = 'bicubic': it must be one of"),
        ({"resize": 0}, r"config\.evaluation\.resize = 0: it must be greater than 0"),
        ({"resize": 200}, r"config\.evaluation\.resize = 200: it must be at least the network's image size, 224"),
        ({"crop": "central_fraction", "resize": 256}, r"config\.evaluation\.resize = 256: it has no meaning with crop"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(ConfigError, match=message):
        network_setup.read_input(make(**fields))


def test_an_image_size_of_the_evaluation():
    found = network_setup.read_input(make(image_size=320, resize=366))
    assert (found.image_size, found.eval_image_size, found.eval_crop.side(320)) == (224, 320, 366)
    assert network_setup.read_input(make()).eval_image_size == 224
    with pytest.raises(UserError, match=r"config\.evaluation\.image_size = 16: inception_v1 needs at least 32"):
        network_setup.read_input(make(image_size=16))
    with pytest.raises(ConfigError, match="resize = 256: it must be at least the network's image size, 320"):
        network_setup.read_input(make(image_size=320, resize=256))


def test_a_fraction_beside_a_size_is_read_by_nobody():
    config = make(resize=256, crop_fraction=0.9)
    assert network_setup.read_input(config).eval_crop == EvalCrop(resize=256)
    with pytest.raises(ConfigError, match=r"config\.evaluation\.crop_fraction = 0\.9.*nothing reads"):
        config.refuse_unread()

"""Names, options and what is refused; and that the folder of the networks stands alone."""

import ast
import dataclasses
import pathlib
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import inception_jax
from inception_jax.models import registry
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import init_variables
from inception_jax.models.registry import ModelError, create_model, get_spec, model_names, model_options

from .traced import shapes

ROOT = pathlib.Path(inception_jax.__file__).parent


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def counts(model, size):
    """(parameters without auxiliary heads, with them)."""
    tree = jax.eval_shape(
        lambda x: model.init(jax.random.key(0), x), jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    )
    trunk = {name: leaves for name, leaves in tree["params"].items() if not name.startswith("aux")}
    return count(trunk), count(tree["params"])


def test_the_names():
    assert model_names()[:8] == (
        "inception_v1",
        "inception_v1_bn",
        "inception_v2",
        "inception_v3",
        "inception_v4",
        "inception_resnet_v1",
        "inception_resnet_v2",
        "xception",
    )
    assert all(get_spec(name).name == name for name in model_names())


@pytest.mark.parametrize("name", model_names())
def test_the_smallest_image(name):
    spec, model = get_spec(name), create_model(name, num_classes=3)
    assert shapes(model, spec.min_image_size)[0].logits.shape == (2, 3)
    with pytest.raises(ModelError, match=f"at least {spec.min_image_size}x{spec.min_image_size}"):
        shapes(model, spec.min_image_size - 1)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inception_v5", {}, r"unknown model 'inception_v5'; did you mean 'inception_v4'\?; models: inception_v1,"),
        ("inception_v1", {"modul": "naive"}, r"unknown option 'modul' of inception_v1; did you mean 'module'\?"),
        ("inception_v4", {"lrn": True}, "unknown option 'lrn' of inception_v4"),
        ("inception_v4", {"weights": "v4.npz"}, r"weights: .*inception_jax\.load_pretrained\(NAME\)"),
        ("inception_v4", {"pretrained": True}, r"pretrained: .*inception_jax\.load_pretrained\(NAME\)"),
        (
            "inception_v1",
            {"module": "naiv"},
            r"module = 'naiv': it must be one of 'reduced', 'naive'; did you mean 'naive'\?",
        ),
        ("inception_v1", {"five_by_five": 4}, "five_by_five = 4: it must be one of 5, 3"),
        ("inception_v1", {"pool4_window": 4}, "pool4_window = 4: it must be one of 3, 2"),
        ("inception_v1", {"conv1_padding": "valid"}, "conv1_padding = 'valid': it must be one of"),
        ("inception_v1", {"pool_rounding": "floor"}, "pool_rounding = 'floor': it must be one of"),
        (
            "inception_v1",
            {"pool_rounding": "pad1", "pool4_window": 2},
            "pool4_window: 2 has no effect: pool_rounding is 'pad1', and its pools are 3x3",
        ),
        ("inception_v4", {"order": "paper"}, r"order = 'paper': it must be one of 'code', 'paper_notes'; did you mean"),
        ("inception_v1", {"lrn": "False"}, "lrn: 'False' is not True or False"),
        ("inception_v1", {"lrn_size": 4}, "lrn_size: 4 is not an odd number"),
        ("inception_v1", {"lrn": False, "lrn_k": 2.0}, "lrn_k: 2.0 has no effect: lrn is False"),
        ("inception_v1", {"bn_momentum": 0.9}, "bn_momentum: 0.9 has no effect: there is no batch norm"),
        ("inception_v1", {"min_width": 8}, "min_width: 8 has no effect: width_multiplier is 1"),
        ("inception_v1", {"aux_heads": False, "aux_dropout_rate": 0.5}, "aux_dropout_rate: 0.5 has no effect"),
        ("inception_v4", {"bn_axis_index_groups": ((0,),)}, "bn_axis_index_groups: .* has no effect"),
        ("inception_v4", {"bn_group_size": 0}, "bn_group_size: 0 is not a whole number of at least 1"),
        ("inception_v4", {"bn_group_size": 4, "bn_axis_name": "data"}, "bn_group_size and bn_axis_name: set only one"),
        ("inception_v1", {"bn_group_size": 4}, "bn_group_size: 4 has no effect: there is no batch norm"),
        ("inception_v1", {"bn_frozen": ("conv1/bn",)}, "bn_frozen: .* has no effect: there is no batch norm"),
        (
            "inception_v1_bn",
            {"bn_frozen": ("conv1/bn", "conv2/batch_norm")},
            r"bn_frozen: 'conv2/batch_norm' is not a batch norm layer of this network; did you mean 'conv2/bn'\?",
        ),
        ("inception_v1_bn", {"bn_frozen": "conv1/bn"}, r"bn_frozen: 'conv1/bn' is a string; give a tuple of paths"),
        ("inception_v4", {"num_classes": -1}, "num_classes: -1 is not 0 or more"),
        ("inception_v4", {"num_classes": 10.0}, "num_classes: 10.0 is not a whole number"),
        ("inception_v4", {"width_multiplier": 0}, "width_multiplier: 0 is not above 0"),
        ("inception_v4", {"dropout_rate": 1.0}, r"dropout_rate: 1.0 is not in \[0, 1\)"),
        ("inception_v1", {"aux_dropout_rate": -0.1}, r"aux_dropout_rate: -0.1 is not in \[0, 1\)"),
        ("inception_v4", {"bn_momentum": 1.5}, r"bn_momentum: 1.5 is not in \[0, 1\]"),
        ("inception_v4", {"bn_epsilon": 0.0}, "bn_epsilon: 0.0 is not above 0"),
        ("inception_v4", {"dtype": jnp.int32}, "dtype: int32 is not a floating-point dtype"),
        ("inception_v4", {"dtype": "float31"}, "dtype: 'float31' is not a dtype"),
        ("inception_v4", {"param_dtype": jnp.float64}, "param_dtype: float64 needs 64-bit JAX"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ModelError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((2, 64, 64), jnp.float32, r"shape \(2, 64, 64\) is not \[batch, height, width, 3\]"),
        ((2, 64, 64, 1), jnp.float32, "is not"),
        ((2, 64, 64, 3), jnp.uint8, "uint8 pixels"),
        ((2, 64, 31, 3), jnp.float32, "images: 64x31 pixels are too few for inception_v1: at least 32x32"),
    ],
)
def test_images_that_are_refused(shape, dtype, message):
    model = create_model("inception_v1")
    with pytest.raises(ModelError, match=message):
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x), jax.ShapeDtypeStruct(shape, dtype))


def test_options_and_their_defaults():
    options = model_options("inception_v1_bn")
    assert options["batch_norm"] is True
    assert options["dropout_rate"] == 0.2
    assert options["aux_dropout_rate"] == 0.7
    assert model_options("inception_v1")["dropout_rate"] == 0.4
    v4 = model_options("inception_v4")
    assert (v4["dropout_rate"], v4["bn_epsilon"], v4["bn_momentum"], v4["bn_scale"]) == (0.2, 1e-3, 0.9997, True)
    assert [get_spec(name).aux_weights for name in model_names()[:8]] == [(0.3, 0.3)] * 3 + [(0.4,)] * 4 + [()]
    assert not {"parent", "name"} & set(options)


def test_networks_as_submodules():
    options = {"modules": {"3a": MODULES["3a"]}, "aux_heads": False, "num_classes": 3, "width_multiplier": 0.1}

    class Pair(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            first = create_model("inception_v1_bn", **options, bn_frozen=("conv1/bn",))
            second = create_model("inception_v1", **options, name="backbone")
            assert create_model("inception_v1", **options, parent=None).scope is None
            return first(images, train=train).logits + second(images).logits

    model, images = Pair(), jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = init_variables(model, jax.random.key(0), 32)
    assert set(variables["params"]) == {"InceptionV1_0", "backbone"}
    rngs = {"dropout": jax.random.key(1)}
    _, updates = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
    before, after = (tree["batch_stats"]["InceptionV1_0"] for tree in (variables, updates))
    changed = {
        name: bool((after[name]["bn"]["mean"] != before[name]["bn"]["mean"]).any()) for name in ("conv1", "conv2")
    }
    assert changed == {"conv1": False, "conv2": True}  # bn_frozen


@pytest.mark.parametrize("name", ["inception_v1", "inception_v2", "inception_resnet_v1", "xception"])
def test_tabulate(name):
    spec, model = get_spec(name), create_model(name, num_classes=3, width_multiplier=0.1)
    images = jnp.zeros((1, spec.min_image_size, spec.min_image_size, 3))
    assert "Total Parameters" in model.tabulate(jax.random.key(0), images, depth=1)


def test_a_model_is_a_flax_module_that_compares_by_its_options():
    assert isinstance(create_model("inception_v4"), nn.Module)
    assert create_model("inception_v4", num_classes=3) == create_model("inception_v4", num_classes=3)
    assert hash(create_model("inception_v1")) != hash(create_model("inception_v1", lrn=False))
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_spec("inception_v1").name = "other"


def test_the_networks_import_nothing_else_of_the_package():
    for file in (ROOT / "models").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                assert not name.startswith("inception_jax") or name.startswith("inception_jax.models"), (
                    file.name,
                    name,
                )


def test_the_package_hands_its_names_on_without_importing_jax():
    code = (
        "import sys, inception_jax, inception_jax.data; assert not {'jax', 'flax'} & set(sys.modules); "
        "assert {'create_model', 'model_names', 'InceptionOutput'} <= set(dir(inception_jax)); "
        "inception_jax.create_model; assert 'jax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)
    assert inception_jax.create_model is registry.create_model
    with pytest.raises(AttributeError, match="no attribute 'create_modle'"):
        inception_jax.create_modle  # noqa: B018


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("inception_v2", {"modules": {}}, "modules: {} has none; give at least one module, or None"),
        ("inception_v2", {"modules": {"3d": (1,) * 6}}, "modules = '3d': it must be one of '3a', "),
        ("inception_v1", {"modules": {"3a": (1, 2)}}, r"'3a' has \(1, 2\); expected 6 numbers of filters"),
        ("inception_v3", {"width_multiplier": float("inf")}, "width_multiplier: inf is not a finite float32"),
        ("inception_v3", {"bn_epsilon": float("nan")}, "bn_epsilon: nan is not a finite float32"),
    ],
)
def test_modules_and_numbers_that_are_none(name, options, message):
    with pytest.raises(ModelError, match=message):
        create_model(name, **options)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("googlenet", "inception_v1"),
        ("GoogLeNet", "inception_v1"),
        ("bvlc_googlenet", "inception_v1"),
        ("googlenet-bn", "inception_v1_bn"),
        ("bn_inception", "inception_v2"),
        ("inception_bn", "inception_v2"),
        ("inceptionv3", "inception_v3"),
        ("Inception3", "inception_v3"),
        ("tf_inception_v3", "inception_v3"),
        ("InceptionV4", "inception_v4"),
        ("inception_resnetv2", "inception_resnet_v2"),
        ("ens_adv_inception_resnet_v2", "inception_resnet_v2"),
        ("legacy_xception", "xception"),
        ("nin", "network_in_network"),
        ("alexnt", "alexnet"),
    ],
)
def test_the_names_that_others_use_lead_to_ours(name, meant):
    with pytest.raises(ModelError, match=rf"unknown model '{name}'; did you mean '{meant}'\?; models: "):
        create_model(name)

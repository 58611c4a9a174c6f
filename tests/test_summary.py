"""`python -m inception_jax.summary`: the JSON's form, and Table 1 laid out beside the paper."""

import json

import pytest

from inception_jax import summary
from inception_jax.errors import UserError
from inception_jax.models.inception_v1 import PAPER_PARAMS_AND_OPS
from inception_jax.models.registry import ModelError


def printed(capsys, *arguments):
    assert summary.main(list(arguments)) == 0
    return capsys.readouterr().out


def test_json(capsys):
    found = json.loads(printed(capsys, "inception_v1", "--json"))
    assert list(found) == [
        "model",
        "image_size",
        "num_classes",
        "parameters",
        "parameters_with_aux",
        "macs",
        "blocks",
    ]
    blocks = found.pop("blocks")
    assert found == {
        "model": "inception_v1",
        "image_size": 224,
        "num_classes": 1000,
        "parameters": 6_998_552,
        "parameters_with_aux": 13_378_280,
        "macs": 1_582_671_872,
    }
    assert all(list(block) == ["name", "output", "parameters", "macs"] for block in blocks)
    assert blocks[0] == {"name": "conv1", "output": [112, 112, 64], "parameters": 9472, "macs": 118_013_952}
    trunk = [block for block in blocks if not block["name"].startswith("aux")]
    assert sum(block["parameters"] for block in trunk) == found["parameters"]
    assert sum(block["macs"] for block in trunk) == found["macs"]
    assert sum(block["parameters"] for block in blocks) == found["parameters_with_aux"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["inception_v1", "--set", "conv2_reduce=False"], {"parameters": 6_994_392}),
        (["inception_v1", "--set", "lrn=false", "--set", "batch_norm=True"], {"parameters": 7_005_832}),
        (["inception_v1_bn", "--num_classes=10", "--image_size=64"], {"num_classes": 10, "image_size": 64}),
        (["inception_v4", "--num_classes=1001"], {"parameters": 42_681_353, "parameters_with_aux": 46_041_586}),
    ],
)
def test_options(arguments, expected, capsys):
    assert expected.items() <= json.loads(printed(capsys, *arguments, "--json")).items()


def test_googlenet_is_laid_out_as_table_1(capsys):
    lines = printed(capsys, "inception_v1").splitlines()
    table = {line.split("  ")[0]: line.split() for line in lines}
    # As the paper prints it: inception (3a) | 28x28x256 | 2 | 64 96 128 16 32 32 | 159K 128M, after our own counts.
    assert table["inception (3a)"] == "inception (3a) 28x28x256 2 64 96 128 16 32 32 163.7K 128.0M 159K 128M".split()
    assert table["inception (5b)"][-4:] == ["1,444.1K", "70.7M", "1388K", "71M"]
    conv2 = next(line for line in lines if "3x3/1" in line).split()
    assert conv2 == "convolution 3x3/1 56x56x192 2 64 192 114.9K 359.7M 112K 360M".split()
    assert any(line.startswith("parameters") and "6,998,552" in line and "13,378,280" in line for line in lines)
    rows = [line for line in lines if line.endswith("M")]
    assert len(rows) == len(PAPER_PARAMS_AND_OPS) + 2  # and the two heads, of which the paper's table says nothing


def test_other_networks_are_one_line_per_block(capsys):
    lines = [line.split() for line in printed(capsys, "inception_v4", "--image_size=75").splitlines()]
    assert ["block", "output", "parameters", "MACs"] in lines
    assert ["mixed_7d", "1x1x1536", "4,553,088", "4,546,560"] in lines
    naive = printed(capsys, "inception_v1", "--set", "module=naive", "--image_size=64")
    assert "inception_3a  8x8x416" in naive


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["inception_v5"], ModelError, "did you mean 'inception_v4'"),
        (["inception_v1", "--set", "modul=naive"], ModelError, "did you mean 'module'"),
        (["inception_v1", "--set", "lrn"], UserError, "'lrn' is not OPTION=VALUE"),
        (["inception_v1", "--image_size=31"], ModelError, "at least 32x32"),
        (["inception_v1", "--jsn"], UserError, "did you mean '--json'"),
        (["inception_v1", "--compare", "alexnt"], ModelError, "did you mean 'alexnet'"),
        (["inception_v1", "--compare", "vgg16", "--set", "lrn=False"], UserError, "--set: not allowed with --compare"),
    ],
)
def test_mistakes(arguments, error, message):
    with pytest.raises(error, match=message):
        summary.main(arguments)


def test_networks_side_by_side(capsys):
    lines = [line.split() for line in printed(capsys, "inception_v1", "--compare", "alexnet", "vgg16").splitlines()]
    # "12 times fewer parameters" than AlexNet (section 1 of the paper) is 8.7 times, counted.
    assert lines[2:] == [
        "network pixels parameters with heads MACs parameters MACs".split(),
        "inception_v1 224 6,998,552 13,378,280 1,582,671,872 x 1.00 x 1.00".split(),
        "alexnet 227 60,965,224 – 724,406,816 x 8.71 x 0.46".split(),
        "vgg16 224 138,357,544 – 15,470,264,320 x 19.77 x 9.77".split(),
    ]


def test_side_by_side_with_all_the_others_as_json(capsys, monkeypatch):
    every = ("inception_v1", "vgg16", "network_in_network")
    monkeypatch.setattr("inception_jax.models.registry.model_names", lambda: every)
    found = json.loads(printed(capsys, "vgg16", "--compare", "--json", "--num_classes=10", "--image_size=96"))
    names = [network["model"] for network in found["networks"]]
    assert found["reference"] == names[0] == "vgg16"
    assert sorted(names) == sorted(every)
    first, other = found["networks"][0], found["networks"][names.index("network_in_network")]
    assert list(other) == [
        "model",
        "image_size",
        "num_classes",
        "parameters",
        "parameters_with_aux",
        "macs",
        "macs_with_aux",
        "parameters_ratio",
        "macs_ratio",
    ]
    assert (first["parameters_ratio"], first["macs_ratio"]) == (1, 1)
    assert (other["image_size"], other["num_classes"]) == (96, 10)
    assert other["parameters_ratio"] == other["parameters"] / first["parameters"]
    assert other["macs_ratio"] == other["macs"] / first["macs"]
    v1 = found["networks"][names.index("inception_v1")]
    assert v1["macs_with_aux"] > v1["macs"]
    assert v1["macs_ratio"] == v1["macs"] / first["macs"]
    assert v1["parameters_ratio"] == v1["parameters"] / first["parameters"]


def test_a_network_that_a_recipe_registers(own_recipe, registrations, capsys):
    """With all its options, and named; the numbers by hand: a 3x3 convolution with stride 2, and a dense layer."""
    found = json.loads(printed(capsys, f"--config={own_recipe}", "--num_classes=2", "--json"))
    assert found == {
        "model": "strider", "image_size": 12, "num_classes": 2, "parameters": 112 + 10, "parameters_with_aux": 122,
        "macs": 36 * 27 * 4 + 8,
        "blocks": [
            {"name": "conv1", "output": [6, 6, 4], "parameters": 27 * 4 + 4, "macs": 36 * 27 * 4},
            {"name": "classifier", "output": [1, 1, 2], "parameters": 10, "macs": 8},
        ],
    }  # fmt: skip
    by_name = printed(capsys, "strider", f"--config={own_recipe}", "--image_size=20", "--set=features=16")
    assert "strider: registered by a recipe" in by_name and "10x10x16" in by_name and "conv1" in by_name
    options = ["--config.model.options.features=2", "--config.data.image_size=24"]
    overridden = json.loads(printed(capsys, f"--config={own_recipe}", *options, "--json"))
    assert overridden["blocks"][0]["output"] == [12, 12, 2]
    table = printed(capsys, f"--config={own_recipe}", "--compare", "inception_v1").splitlines()
    assert [line.split()[0] for line in table[-2:]] == ["strider", "inception_v1"]
    assert "inception_v1_bn" in printed(capsys, "--config=configs/fine_tuning.py:images")


@pytest.mark.parametrize("arguments", [["strideer"], ["inception_v1", "--compare", "strideer"]])
def test_an_unknown_name_says_how_a_registered_network_is_given(arguments):
    with pytest.raises(ModelError, match=r"unknown model 'strideer'.*registers needs the recipe: --config=RECIPE.py"):
        summary.main(arguments)
    with pytest.raises(UserError, match="no network: name one, such as inception_v3, or give a recipe"):
        summary.main([])

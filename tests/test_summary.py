"""`python -m inception_jax.summary`: the JSON's form, and Table 1 laid out beside the paper."""

import json

import pytest

from inception_jax import config as configs
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
    assert (
        table["inception (3a)"]
        == "inception (3a) 28x28x256 2 64 96 128 16 32 32 163.7K 128.0M 159.5K 159K 128M".split()
    )
    assert table["inception (5b)"][-5:] == ["1,444.1K", "70.7M", "1,409.0K", "1388K*", "71M"]
    conv2 = next(line for line in lines if "3x3/1" in line).split()
    assert conv2 == "convolution 3x3/1 56x56x192 2 64 192 114.9K 359.7M 112.0K 112K 360M".split()
    assert any(line.startswith("parameters") and "6,998,552" in line and "13,378,280" in line for line in lines)
    rows = [line for line in lines if line.endswith(("M", "M*")) and not line.startswith(" ")]
    assert len(rows) == len(PAPER_PARAMS_AND_OPS)
    assert table["dropout (40%)"] == ["dropout", "(40%)", "1x1x1024", "0"]
    assert table["softmax"] == ["softmax", "1x1x1000", "0"]
    assert sum(line.startswith("(aux") for line in lines) == 2  # the paper's table has no heads


def test_the_numbers_of_table_1_that_do_not_follow_from_it_are_named(capsys):
    lines = printed(capsys, "inception_v1").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("* does not follow"))
    named = [line.split(":")[0].split() for line in lines[start + 1 :] if line.startswith("  ")]
    params = [name for name, field in named if field == "params"]
    assert params == ["conv1", *(f"inception_{m}" for m in ("3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"))]
    assert [name for name, field in named if field == "ops"] == ["conv1", "inception_5a"]
    assert "  inception_5a ops: 54M, counted 51.1M; 48 filters of 5x5 reduce in place of 32 give 54.2M" in lines
    # Google's released network has these filters: its own counts are those of the reasons.
    other = json.loads(printed(capsys, "inception_v1", "--set", "table=inception5h", "--depth=2", "--json"))
    blocks = {block["name"]: block for block in other["blocks"]}
    weights = {
        name: sum(step["weights"] for step in blocks[name]["steps"]) / 1024 for name in ("inception_4a", "inception_4b")
    }
    assert (round(weights["inception_4a"], 1), round(weights["inception_4b"], 1)) == (363.4, 436.6)
    assert round(blocks["inception_5a"]["macs"] / 1e6, 1) == 54.2
    assert "*" not in printed(capsys, "inception_v1", "--image_size=299")  # the paper's numbers are for 224 pixels


def test_depth_2_shows_branches_and_steps(capsys):
    lines = [line.rstrip() for line in printed(capsys, "inception_v1", "--depth=2").splitlines()]
    rows = [" ".join(line.split()) for line in lines]
    start = rows.index("inception_3a 28x28x256 163,328 163,696 128,049,152")
    assert rows[start + 1 : start + 12] == [
        "branch 1 12,288 12,352 9,633,792",
        "conv_1x1 convolution 1x1/1 28x28x64 12,288 12,352 9,633,792",
        "branch 2 129,024 129,248 101,154,816",
        "conv_3x3_reduce convolution 1x1/1 28x28x96 18,432 18,528 14,450,688",
        "conv_3x3 convolution 3x3/1 28x28x128 110,592 110,720 86,704,128",
        "branch 3 15,872 15,920 12,443,648",
        "conv_5x5_reduce convolution 1x1/1 28x28x16 3,072 3,088 2,408,448",
        "conv_5x5 convolution 5x5/1 28x28x32 12,800 12,832 10,035,200",
        "branch 4 6,144 6,176 4,816,896",
        "max pool 3x3/1 28x28x192",
        "pool_proj convolution 1x1/1 28x28x32 6,144 6,176 4,816,896",
    ]
    heads = [rows.index(next(row for row in rows if row.startswith(head))) for head in ("aux1", "aux2")]
    assert [rows[at + 1] for at in heads] == ["average pool 4x4x512", "average pool 4x4x528"]
    assert rows[heads[0] + 3 : heads[0] + 7] == [
        "fc fully connected 1x1x1024 2,097,152 2,098,176 2,097,152",
        "dropout 70 % 1x1x1024",
        "classifier fully connected 1x1x1000 1,024,000 1,025,000 1,024,000",
        "softmax 1x1x1000",
    ]
    last = rows.index("classifier 1x1x1000 1,024,000 1,025,000 1,024,000")
    assert rows[last + 1] == "dropout 40 % 1x1x1024" and rows[last + 3] == "softmax 1x1x1000"


@pytest.mark.parametrize(
    "name", ["inception_v2", "inception_v4", "inception_resnet_v2", "xception", "alexnet", "network_in_network"]
)
def test_the_steps_of_a_block_have_all_of_its_cost(name, capsys):
    found = json.loads(printed(capsys, name, "--depth=2", "--json"))
    blocks = {block["name"]: block for block in found["blocks"]}
    for block in blocks.values():
        if steps := block.get("steps"):
            assert sum(step["parameters"] for step in steps) == block["parameters"], block["name"]
            assert sum(step["macs"] for step in steps) == block["macs"], block["name"]
        else:
            assert "pool" in block["name"] or "norm" in block["name"] or block["parameters"] or block["macs"] == 0
    dropped = [
        block["name"] for block in blocks.values() for step in block.get("steps", ()) if "dropout" in step["operation"]
    ]
    assert dropped == {"alexnet": ["fc7", "classifier"], "network_in_network": ["mlpconv4"]}.get(name, ["classifier"])
    if name == "inception_v4":
        stem = [(step["branch"], step["operation"], *step["output"]) for step in blocks["mixed_4a"]["steps"]]
        assert stem == [
            (1, "convolution 1x1/1", 73, 73, 64), (1, "convolution 3x3/1", 71, 71, 96),
            (2, "convolution 1x1/1", 73, 73, 64), (2, "convolution 1x7/1", 73, 73, 64),
            (2, "convolution 7x1/1", 73, 73, 64), (2, "convolution 3x3/1", 71, 71, 96),
        ]  # fmt: skip
        assert [step["output"] for step in blocks["mixed_5a"]["steps"]] == [[35, 35, 192], [35, 35, 192]]
        assert blocks["aux"]["steps"][0] == {
            "branch": 0, "name": "", "operation": "average pool", "output": [5, 5, 1024],
            "weights": 0, "parameters": 0, "macs": 0,
        }  # fmt: skip


def test_what_a_reduction_saves(capsys):
    rows = [line.split() for line in printed(capsys, "inception_v1", "--reduction").splitlines()]
    row = "inception_4b conv_5x5 5x5 512 > 24 > 64 819,200 12,288 38,400 50,688 16.16".split()
    assert row in rows
    found = json.loads(printed(capsys, "inception_v4", "--reduction", "--json"))["reductions"]
    assert found[0] == {
        "block": "mixed_4a", "name": "conv_3x3", "kernel": [3, 3], "channels": [160, 64, 96],
        "direct": 9 * 160 * 96, "reduce": 160 * 64, "convolve": 9 * 64 * 96, "reduced": 160 * 64 + 9 * 64 * 96,
    }  # fmt: skip


def test_other_networks_are_one_line_per_block(capsys):
    lines = [line.split() for line in printed(capsys, "inception_v4", "--image_size=75").splitlines()]
    assert ["block", "output", "parameters", "MACs"] in lines
    assert ["mixed_7d", "1x1x1536", "4,553,088", "4,546,560"] in lines
    naive = printed(capsys, "inception_v1", "--set", "module=naive", "--image_size=64")
    assert naive.splitlines()[0].endswith(" (module=naive)")
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
        (["inception_v1", "--compare", "vgg16", "--depth=2"], UserError, "--depth: not allowed with --compare"),
        (["inception_v1", "--depth=3"], UserError, "--depth"),
        (["inception_v1", "--reduction", "--depth=2"], UserError, "--reduction: not allowed with --depth"),
        (["vgg16", "--reduction"], UserError, "vgg16 has no module with a 1x1 convolution before a larger one"),
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


def test_the_config_of_a_run_has_its_classes(tmp_path, capsys):
    """Without them: those of ImageNet, as for a recipe; a flag comes first, then `model.num_classes`."""
    recipe = configs.default()
    recipe.model.name, recipe.data.image_size, recipe.model.width_multiplier = "alexnet", 67, 0.1
    (tmp_path / "config.json").write_text(configs.Config(recipe).to_json())
    flag = f"--config={tmp_path / 'config.json'}"

    def classes(*flags):
        return json.loads(printed(capsys, flag, "--json", *flags))["num_classes"]

    assert classes() == 1000
    (tmp_path / "classes.json").write_text('{"names": ["ant", "cat", "dog"]}')
    assert classes() == 3 and classes("--num_classes=7") == 7 and classes("--config.model.num_classes=5") == 5


@pytest.mark.parametrize("arguments", [["strideer"], ["inception_v1", "--compare", "strideer"]])
def test_an_unknown_name_says_how_a_registered_network_is_given(arguments):
    with pytest.raises(ModelError, match=r"unknown model 'strideer'.*registers needs the recipe: --config=RECIPE.py"):
        summary.main(arguments)
    with pytest.raises(UserError, match="no network: name one, such as inception_v3, or give a recipe"):
        summary.main([])

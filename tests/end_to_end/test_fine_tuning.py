"""A run that begins with another's weights, as a person starts it; and recipes for one that cannot be meant."""

import json
import shutil

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import config as configs
from inception_jax.checkpoints.reading import load_variables
from inception_jax.config import Config
from inception_jax.data import datasets
from inception_jax.errors import UserError
from inception_jax.training import setup

# Most of the network is frozen and there are no auxiliary heads, so that the program is small and compiles quickly.
ARGUMENTS = (
    "--config.num_steps=2",
    "--config.schedule.name=constant",
    "--config.schedule.warmup_epochs=0.0",
    "--config.logging.every_steps=1",
    "--config.logging.tensorboard=False",
    "--config.evaluation.every_epochs=99.0",
    "--config.model.aux_heads=False",
    "--config.optimizer.freeze=('^conv', '^inception_[34]')",
    "--config.optimizer.learning_rate_multipliers=(('^inception_5', 0.1),)",
)


@pytest.fixture(scope="module")
def three_kinds(tmp_path_factory):
    """A folder of images of three classes, whose names are not the digits'."""
    root, digits = tmp_path_factory.mktemp("pictures"), datasets.load("digits", "train[:120]")
    for index in range(120):
        image, label = digits.record(index)
        folder = root / ("train" if index % 4 else "test") / f"kind_{label}"
        if label < 3:
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{index}.png"), np.asarray(image))
    return root


def differing(one, other):
    """The top-level modules whose arrays are not bit for bit the same in both."""
    return {
        name
        for name in one
        if any(
            not np.array_equal(a, b)
            for a, b in zip(*([leaf for _, leaf in sorted(flat(tree[name]))] for tree in (one, other)), strict=True)
        )
    }


def flat(tree, prefix=""):
    for name, node in tree.items():
        yield from flat(node, f"{prefix}{name}/") if isinstance(node, dict) else [(prefix + name, node)]


def test_a_run_begins_with_anothers_weights_and_then_needs_it_no_more(
    small_run, three_kinds, run_command, small_arguments, tmp_path
):
    source, workdir = shutil.copytree(small_run, tmp_path / "source"), tmp_path / "run"
    averaged = load_variables(source, "ema")["params"]
    arguments = [
        *(word for word in small_arguments if "_split=" not in word),
        f"--config.data.name=folder:{three_kinds}",
        *ARGUMENTS,
        f"--config.initialize.checkpoint={source}",
        f"--workdir={workdir}",
    ]
    code, _, err = run_command("train", *arguments)
    assert code == 0, err

    said = json.loads((workdir / "initialization.json").read_text())
    assert (said["network"], said["step"], said["weights"]) == ("inception_v1", 14, "ema")
    assert said["new"] == dict.fromkeys(("classifier/kernel", "classifier/bias"), "other number of classes")
    assert len(said["taken"]) == 114 and len(said["left"]) == 12
    log = (workdir / "train.log").read_text()
    assert (
        "restored: conv1 … inception_5b (114 arrays); new: classifier (other number of classes); skipped: aux1, aux2"
        in log
    )
    assert "parameters train; frozen: conv1 … inception_4e" in log
    assert "learning rate × 0.1 for " in log

    for weights in ("raw", "ema"):  # the averages begin with what was taken, too
        now = load_variables(workdir, weights)["params"]
        same = {name: tree for name, tree in averaged.items() if name not in ("classifier", "aux1", "aux2")}
        assert differing(same, now) == {"inception_5a", "inception_5b"}
        assert now["classifier"]["bias"].shape == (3,)

    shutil.rmtree(source)
    code, _, err = run_command("train", *arguments, "--config.num_steps=3")
    assert code == 0, err
    assert "continued from step 2" in err
    assert differing(load_variables(workdir)["params"], now) == {"inception_5a", "inception_5b", "classifier"}

    # Fewer steps than it has done: result, config and metrics would contradict each other.
    files = {name: (workdir / name).read_bytes() for name in ("config.json", "metrics.jsonl", "result.json")}
    code, out, err = run_command("train", *arguments, "--config.num_steps=2")
    assert (code, out) == (2, "")
    message = f"error: config.num_steps = 2: the run in {workdir} is at step 3 already, and a run can only be made long"
    assert err.splitlines()[-1].startswith(message), err
    assert all((workdir / name).read_bytes() == content for name, content in files.items())


def recipe(**overrides):
    config = configs.default()
    config.update({"num_steps": 2, "batch_size": 8})
    config.data.update({"train_split": "train[:16]", "eval_split": "test[:8]", "image_size": 32})
    config.model.width_multiplier = 0.25
    for path, value in overrides.items():
        section, name = path.split("__")
        config[section][name] = value
    return config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"initialize__weights": "ema"}, r"config.initialize.weights = 'ema': nothing reads it"),
        ({"initialize__new": ("^conv",)}, r"config.initialize.new = .*: nothing reads it"),
        ({"initialize__checkpoint": "a", "initialize__step": "last"}, r"config.initialize.step = 'last'; allowed: "),
        ({"optimizer__freeze": ("^inception3a/",)}, r"config.optimizer.freeze: .*; did you mean 'inception_3a'"),
        ({"optimizer__frozen_batch_norm": "batch"}, r"frozen_batch_norm = 'batch': nothing reads it"),
        ({"optimizer__freeze": ("^conv1/",), "optimizer__frozen_batch_norm": "batch"}, r"'batch': nothing reads it"),
        ({"parallel__batch_norm": "examples:4"}, r"config.parallel.batch_norm: inception_v1 has no batch norm"),
        (
            {"model__name": "inception_v1_bn", "parallel__devices": 1, "parallel__batch_norm": "examples:3"},
            r"1 device with 8 examples each do not divide into groups of 3; sizes that do: 1, 2, 4, 8",
        ),
    ],
)
def test_recipes_that_cannot_be_meant(overrides, message):
    config = Config(recipe(**overrides))
    with pytest.raises(UserError, match=message):
        setup.build(config)
        config.refuse_unread()


def test_a_multiplier_stands_in_for_that_of_the_biases():
    overrides = {
        "optimizer__learning_rate_multipliers": (("^conv1/", 0.5),),
        "optimizer__bias_learning_rate": 2.0,
        "optimizer__learning_rate": 1.0,
    }
    optimizer = setup.build(Config(recipe(**overrides))).optimizer
    ones = {name: {"kernel": jnp.ones(1), "bias": jnp.ones(1)} for name in ("conv1", "conv2")}
    updates, _ = optimizer.update(ones, optimizer.init(ones), ones)
    assert {name: (float(leaf["kernel"][0]), float(leaf["bias"][0])) for name, leaf in updates.items()} == {
        "conv1": (-0.5, -0.5),
        "conv2": (-1.0, -2.0),
    }


def test_frozen_batch_norms_of_a_real_network_do_not_change():
    overrides = {
        "model__name": "inception_v1_bn",
        "optimizer__freeze": ("^conv", "^inception_3a/"),
        "parallel__devices": 2,
        "parallel__batch_norm": "examples:2",
    }
    config = Config(recipe(**overrides))
    parts = setup.build(config)
    config.refuse_unread()
    assert set(parts.model.bn_frozen) == {"conv1/bn", "conv2_reduce/bn", "conv2/bn"} | {
        f"inception_3a/{conv}/bn"
        for conv in ("conv_1x1", "conv_3x3_reduce", "conv_3x3", "conv_5x5_reduce", "conv_5x5", "pool_proj")
    }
    assert parts.model.bn_group_size == 2
    parts = setup.build(Config(recipe(**overrides, optimizer__frozen_batch_norm="batch")))
    assert parts.model.bn_frozen == () and len(parts.objective.freezing.batch_norms) == 9

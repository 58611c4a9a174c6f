"""Whose workdir a run may go on in, and with what state."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

import inception_jax.config
from inception_jax.checkpoints.saving import Checkpoints
from inception_jax.config import Config, ConfigError
from inception_jax.models.inception_v1 import MODULES
from inception_jax.models.initialization import init_variables
from inception_jax.runs import manifest
from inception_jax.training import restore, setup
from inception_jax.training import state as states


def config(**fields):
    recipe = inception_jax.config.default()
    chosen = {
        "num_steps": 4,
        "batch_size": 16,
        "data.image_size": 32,
        "model.name": "inception_v1_bn",
        "model.width_multiplier": 0.25,
        "parallel.devices": 2,
    } | fields
    for path, value in chosen.items():
        section, _, name = path.rpartition(".")
        (recipe[section] if section else recipe)[name] = value
    return Config(recipe)


def test_what_may_change_and_what_may_not(tmp_path):
    manifest.write(tmp_path, config().to_json())
    may = {
        "parallel.devices": 1,
        "parallel.mode": "pmap",
        "data.workers": 1,
        "logging.every_steps": 1,
        "evaluation.every_epochs": 0.5,
        "faults.max_corrupt": 3,
        "checkpoint.keep": 5,
    }
    restore.refuse_changed_config(tmp_path, config(**may))
    restore.refuse_changed_config(tmp_path, config(num_steps=9))  # a constant rate does not know the run's length
    for path, value in {
        "seed": 1,
        "batch_size": 32,
        "parallel.batch_norm": "global",
        "optimizer.momentum": 0.5,
        "optimizer.freeze": ("^conv1",),
        "data.train_split": "train[:9]",
    }.items():
        with pytest.raises(ConfigError, match=rf"config\.{path} = .* began with"):
            restore.refuse_changed_config(tmp_path, config(**{path: value}))
    decaying = {"schedule.name": "cosine"}
    manifest.write(tmp_path, config(**decaying).to_json())
    way_out = f"--config={tmp_path}/config.json --workdir=NEW --config.initialize.checkpoint={tmp_path} with the new"
    with pytest.raises(ConfigError, match=f"its learning rate depends on its length; .*; {way_out}"):
        restore.refuse_changed_config(tmp_path, config(num_steps=9, **decaying))


def test_a_run_of_a_version_with_fewer_fields_goes_on(tmp_path):
    before = config().to_dict()
    del before["faults"], before["initialize"], before["optimizer"]["freeze"]
    manifest.write(tmp_path, json.dumps(before))
    restore.refuse_changed_config(tmp_path, config())
    with pytest.raises(ConfigError, match=r"config\.optimizer\.freeze = .* began with \[\]"):
        restore.refuse_changed_config(tmp_path, config(**{"optimizer.freeze": ("^conv1",)}))


def test_the_identity_of_a_run(tmp_path):
    """The manifest's id, or that of the newest checkpoint, or a new one; the config without what may change."""
    first, again = restore.identify_run(tmp_path, config(seed=3)), restore.identify_run(tmp_path, config())
    assert first.id != again.id  # nothing was written
    assert first.config["seed"] == 3 and first.config["model.width_multiplier"] == 0.25
    assert not {"parallel.devices", "num_steps", "data.name"} & first.config.keys()
    assert {**again.config, "seed": 3} == first.config
    with Checkpoints(tmp_path / "checkpoints", run=first) as checkpoints:
        checkpoints.save(1, {"w": jnp.zeros(2)}, {})
    assert restore.identify_run(tmp_path, config()).id == first.id
    manifest.write(tmp_path, config().to_json(), run_id="1234")
    assert restore.identify_run(tmp_path, config()).id == "1234"


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_state_shapes_are_those_of_the_state(ema):
    """From the declared shapes of the variables: `doctor` and a run that continues use them."""
    built = setup.build(config(**{"ema.decay": ema}))
    built = dataclasses.replace(built, model=built.model.clone(modules={name: MODULES[name] for name in ("4a", "4d")}))
    variables = init_variables(built.model, jax.random.key(0), built.input.image_size)
    state = states.create(variables, built.optimizer, keep_ema=ema > 0)
    shapes = restore.state_shapes(built)
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True)
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in pairs)


def test_a_run_keeps_the_convolutions_that_it_began_with(tmp_path):
    recipe = inception_jax.config.default()

    def choose():
        chosen = Config(restore.choose_convolution(recipe, tmp_path))
        restore.refuse_changed_config(tmp_path, chosen)
        return chosen

    new = choose()
    assert (new.model.convolution, recipe.model.convolution) == ("fast", None)
    values = new.to_dict()
    manifest.write(tmp_path, new.to_json())
    assert choose().model.convolution == "fast"
    del values["model"]["convolution"]  # as an earlier version wrote it
    (tmp_path / manifest.CONFIG).write_text(json.dumps(values))
    old = choose()
    assert old.model.convolution == "exact"
    assert "model.convolution" not in restore.identify_run(tmp_path, old).config  # nor in that version's checkpoints
    assert restore.identify_run(tmp_path, new).config["model.convolution"] == "fast"
    recipe.model.convolution = "fast"
    with pytest.raises(ConfigError, match=r"config.model.convolution = 'fast': .* began with 'exact'"):
        choose()

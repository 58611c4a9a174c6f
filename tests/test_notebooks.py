"""The notebooks: their cells are executed in order, with small settings, and what they leave is looked at."""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import inception_jax
from inception_jax import from_config
from inception_jax.errors import UserError
from inception_jax.models import inception_v1

from .conftest import ROOT

FOLDER = ROOT / "experiments" / "notebooks"
SETTINGS = {
    "num_steps": 2, "num_epochs": None, "batch_size": 16, "model.width_multiplier": 0.1, "model.aux_heads": False,
    "data.image_size": 32, "data.train_split": "train[:32]", "data.eval_split": "test[:24]", "parallel.devices": 1,
}  # fmt: skip


def execute(name, overrides, folder, monkeypatch):
    """Runs the code cells of a notebook in one namespace; `overrides` replace what the cell of parameters sets."""
    monkeypatch.chdir(folder)
    cells = [cell for cell in json.loads((FOLDER / name).read_text())["cells"] if cell["cell_type"] == "code"]
    assert [place for place, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])] == [0]
    namespace = {}
    for place, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{name}, code cell {place}", "exec"), namespace)
        if place == 0:
            assert set(overrides) <= set(namespace)
            namespace |= overrides
    return namespace


def test_a_first_run(tmp_path, monkeypatch, capsys):
    left = execute("first_run.ipynb", {"settings": SETTINGS}, tmp_path, monkeypatch)
    assert left["result"]["status"] == "finished" and left["result"]["steps"] == 2
    network = left["network"]
    assert network.class_names == [str(digit) for digit in range(10)] and network.config.model.name == "inception_v1"
    assert left["found"]["classes"].shape == left["found"]["probabilities"].shape == (8, 2)
    assert left["features"]["inception_4a"].shape[:1] + left["features"]["pool5"].shape[:1] == (8, 8)
    # Predictions and features are of one network: the features give the logits, and the logits the probabilities.
    classifier = jax.tree.map(np.asarray, network.variables["params"]["classifier"])
    logits = left["features"]["pool5"] @ classifier["kernel"] + classifier["bias"]
    probabilities = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_allclose(left["found"]["probabilities"], np.sort(probabilities)[:, :-3:-1], rtol=2e-5)
    compiled = dict(network.programs._made)
    again = network.predict(left["images"][::-1], top_k=2)
    np.testing.assert_array_equal(again["classes"], left["found"]["classes"][::-1])
    assert network.programs._made == compiled  # nothing is compiled twice
    # The same call shows the result of the finished run; an image that is none is refused.
    assert left["run"].train("runs/notebook") == left["result"]
    for images, message in (
        ([], "at least one"),
        ([np.zeros((4, 4, 3))], "image 0: float64"),
        (np.zeros((4, 4), np.uint8), "image 0: uint8 \\(4,\\)"),
        ("none.png", "none.png: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            network.predict(images)
    with pytest.raises(UserError, match="did you mean 'pool5'"):
        network.features(left["images"][0], "pool55")


def test_own_images_and_loop(tmp_path, monkeypatch, capsys):
    # Its own loop is what is tested: the network has three modules of nine, and compiles in a third of the time.
    few = {name: inception_v1.MODULES[name] for name in ("3a", "4a", "5a")}
    monkeypatch.setattr(inception_jax, "create_model", functools.partial(inception_jax.create_model, modules=few))
    left = execute("own_images.ipynb", {"steps": 2, "batch_size": 8, "width": 0.1}, tmp_path, monkeypatch)
    assert left["train_images"].shape == (600, 32, 32, 3) and left["test_labels"].shape == (200,)
    assert left["class_names"] == [f"digit {digit}" for digit in range(10)]
    assert np.isfinite(float(left["loss"])) and "test accuracy" in capsys.readouterr().out
    code = "".join("".join(cell["source"]) for cell in json.loads((FOLDER / "own_images.ipynb").read_text())["cells"])
    assert code.count("inception_jax.") > 2  # its own loop, our network


def test_overrides_of_a_config(tmp_path):
    config = from_config("digits", {"num_steps": 3, "num_epochs": None, "optimizer.learning_rate": 1}).config
    assert (config.num_steps, config.num_epochs, config.optimizer.learning_rate) == (3, None, 1.0)
    copied = from_config(config, {"model.options.five_by_five": 3, "augmentation.area": [0.5, 1.0]}).config
    assert copied.model.options.five_by_five == 3 and copied.augmentation.area == (0.5, 1.0)
    assert config.model.options.five_by_five is None
    for path, value, message in (
        ("optimzer.learning_rate", 1.0, "the config has no field 'optimzer'; did you mean 'optimizer'"),
        ("optimizer.momentun", 1.0, "config.optimizer.momentun: optimizer has no field 'momentun'; did you mean"),
        ("optimizer.momentum.x", 1.0, "optimizer.momentum has no field 'x'"),
        ("batch_size", "many", "config.batch_size = 'many'"),
        ("batch_size", 0, "config.batch_size = 0"),
        ("optimizer", 3, "config.optimizer = 3"),
    ):
        with pytest.raises(UserError, match=message):
            from_config(Path("configs/digits.py"), {path: value})
    with pytest.raises(UserError, match="did you mean 'digits'"):
        from_config("digit")


def test_a_run_that_was_stopped_is_saved_and_says_so(monkeypatch, tmp_path):
    module, codes = sys.modules[from_config.__module__], iter((130, 143))
    monkeypatch.setattr(module, "train", lambda config, workdir: ({"status": "interrupted"}, next(codes)))
    run = from_config("digits")
    with pytest.raises(KeyboardInterrupt, match=r"the run is saved in .*; the same call continues it"):
        run.train(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run.train(tmp_path)
    assert stopped.value.code == 143

"""A run of one channel that begins with the weights of a colour run, and the commands on it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from inception_jax import load_run
from inception_jax.checkpoints.reading import load_variables
from inception_jax.errors import UserError

FIELDS = {
    "batch_size": 16, "num_steps": 2, "data.image_size": 32, "data.train_split": "train[:40]", "data.threads": 1,
    "data.eval_split": "test[:20]", "model.width_multiplier": 0.1, "model.options.min_width": 2,
    "logging.every_steps": 1, "logging.tensorboard": False, "data.normalization": "inception",
}  # fmt: skip
RECIPE = Path(__file__).resolve().parents[1] / "resume" / "two_modules.py"


def test_a_grey_run_from_a_colour_run(run_command, registrations, tmp_path):
    def run(name, *arguments, code=0):
        found, out, err = run_command(name, *map(str, arguments))
        assert found == code, (name, out, err)
        return out + err

    fields = [f"--config={RECIPE}", *(f"--config.{path}={value}" for path, value in FIELDS.items())]
    colour, grey = tmp_path / "colour", tmp_path / "grey"
    run("train", *fields, "--config.logging.pictures=False", f"--workdir={colour}")
    one = [*fields, "--config.model.in_channels=1", f"--config.initialize.checkpoint={colour}"]
    wrong = run("train", *one, "--config.augmentation.lighting=0.1", f"--workdir={grey}", code=2)
    assert "config.augmentation.lighting = 0.1: it is defined for colours; with config.model.in_channels = 1" in wrong
    text = run("train", *one, "--config.num_steps=1", f"--workdir={grey}")
    assert "adapted: conv1/kernel (summed over 3 input channels)" in text
    content = json.loads((grey / "initialization.json").read_text())
    assert content["adapted"] == {"conv1/kernel": "summed over 3 input channels"} and content["new"] == {}
    assert load_variables(grey, "raw")["params"]["conv1"]["kernel"].shape == (7, 7, 1, 6)
    assert {"training_batch.png", "first_layer.png", "predictions.png"} <= {path.name for path in grey.iterdir()}

    image = np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "grey.png"), image)
    cv2.imwrite(str(tmp_path / "colour.png"), np.dstack([image, image[::-1], image]))
    assert "of 20)" in run("evaluate", f"--workdir={grey}", "--protocol=10-crop")
    explained = tmp_path / "explained"
    run(
        "predict", f"--workdir={grey}", f"--explain={explained}", f"--sheet={tmp_path / 's.png'}", tmp_path / "grey.png"
    )
    assert len([*explained.iterdir()]) == 1
    refused = run("predict", f"--workdir={grey}", tmp_path / "colour.png", code=2)
    assert "colour image; config.model.in_channels = 1 takes grey images" in refused
    run("extract", f"--workdir={grey}", tmp_path / "grey.png", f"--output={tmp_path / 'f.npz'}")
    for kind in ("onnx", "stablehlo"):
        run("export", f"--workdir={grey}", f"--to={kind}", f"--output={tmp_path / kind}")

    network = load_run(grey)
    arrays = [image[..., None], np.repeat(image[..., None], 3, axis=2), str(tmp_path / "grey.png")]
    found = network.predict(arrays)["probabilities"]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
    with pytest.raises(UserError, match="image 0: a colour image"):
        network.features(np.dstack([image, image[::-1], image]))
    check_onnx(tmp_path / "onnx", network, image)


def check_onnx(file, network, image):
    """The graph reads one channel, and gives the network's logits."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = onnx.load(file)
    (given,) = model.graph.input
    assert [d.dim_value for d in given.type.tensor_type.shape.dim][1:] == [32, 32, 1]
    crop = cv2.resize(image, (32, 32))[None, ..., None].astype(np.float32) / 127.5 - 1
    (logits,) = ReferenceEvaluator(model).run(["logits"], {"images": crop})
    expected = network.model.apply(network.variables, crop, train=False).logits
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)

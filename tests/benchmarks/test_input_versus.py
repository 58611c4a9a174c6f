"""The input of a recipe beside other libraries': the same files, crops and batches; what is not there is named."""

import json
import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from inception_jax import benchmark, config
from inception_jax.benchmarks import input_sides, input_versus
from inception_jax.data import datasets
from inception_jax.data.pipeline import TrainPipeline
from inception_jax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
FILES, HEIGHT, WIDTH, SIZE = 8, 64, 96, 32
OWN = ("ours", "grain_pillow", "grain_opencv")
# Draws batches of a side in another interpreter: its arguments are ROOT, the side, the task, the file to write.
DRAW = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from inception_jax.benchmarks import input_sides
batches = input_sides.SIDES[sys.argv[2]][0](json.loads(sys.argv[3]), 0)
images, labels = zip(*(next(batches) for _ in range(8)))
np.savez(sys.argv[4], images=np.concatenate(images), labels=np.concatenate(labels))
"""


@pytest.fixture
def folder(tmp_path):
    """A class folder for each image, whose red is 2x, its green 3y, its blue 30 times the label."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for label in range(FILES):
        file = tmp_path / "images" / "train" / str(label) / "image.jpg"
        file.parent.mkdir(parents=True)
        pixels = np.stack([np.full_like(x, 30 * label), 3 * y, 2 * x], axis=-1).astype(np.uint8)  # BGR
        lossless = [
            cv2.IMWRITE_JPEG_QUALITY,
            100,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
        ]
        cv2.imwrite(str(file), pixels, lossless)
    return tmp_path / "images"


def make_task(folder, split="train", **augmentation):
    fields = {"area": (0.3, 0.5), "aspect": (0.9, 1.1)} | augmentation
    recipe = config.default()
    recipe.augmentation.update(fields)
    pipeline = TrainPipeline(
        datasets.load(f"folder:{folder}", split),
        batch_size=FILES,
        image_size=SIZE,
        seed=0,
        augmentation=fields,
        threads=1,
    )
    task = input_versus.make_workload(recipe, pipeline, 0.1, str(folder.parent))
    file = input_versus.our_side(pipeline, str(folder.parent)).command[-1].partition("=")[2]
    return json.loads(json.dumps(task)) | {"pipeline": file}


def draw(name, task, python=None):
    """Images and labels of eight batches."""
    if python:
        file = Path(task["files"]).with_suffix(".npz")
        subprocess.run(
            [python, "-c", DRAW, str(ROOT), name, json.dumps(task), str(file)], check=True, capture_output=True
        )
        content = np.load(file)
        images = content["images"]
        return np.moveaxis(images, 1, -1) if images.shape[1] == 3 else images, content["labels"]
    batches = input_sides.SIDES[name][0](task, 0)
    drawn = [next(batches) for _ in range(8)]
    batches.close()
    pairs = [(batch["image"], batch["label"]) if name == "ours" else batch for batch in drawn]
    return tuple(map(np.concatenate, zip(*pairs, strict=True)))


def check(images, labels, flip=True):
    """Checks images of `folder`, by what their colours say of file and window."""
    assert images.shape == (8 * FILES, SIZE, SIZE, 3) and images.dtype == np.uint8
    for batch in labels.reshape(8, FILES):  # each file once per epoch
        assert sorted(batch) == list(range(FILES))
    images = images.astype(float)
    assert np.abs(images[..., 2].mean((1, 2)) - 30 * labels).max() < 4
    red, green = images[..., 0].mean(1), images[..., 1].mean(2)  # by column, by row
    right, down = red[:, -1] - red[:, 0], green[:, -1] - green[:, 0]
    assert down.min() > 0 and 0.2 * flip <= (right < 0).mean() <= 0.8 * flip
    width, height = np.abs(right) / 2 * SIZE / (SIZE - 1), down / 3 * SIZE / (SIZE - 1)
    area, aspect = width * height / (WIDTH * HEIGHT), width / height
    assert 0.28 < area.min() < 0.36 and 0.44 < area.max() < 0.52
    assert 0.86 < aspect.min() < 0.95 and 1.05 < aspect.max() < 1.14
    assert np.ptp(red.min(1)) > 60 and np.ptp(green.min(1)) > 20  # windows everywhere


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("flip", [True, False])
def test_our_side_and_grains_make_the_same_batches(name, flip, folder):
    check(*draw(name, make_task(folder, flip=flip)), flip)


@pytest.mark.slow
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("name", input_versus.PEERS["torch"])
def test_pytorchs_sides_make_the_same_batches(name, flip, folder, torch_python):
    try:
        check(*draw(name, make_task(folder, flip=flip), torch_python), flip)
    except subprocess.CalledProcessError as error:
        assert name == "torch_io" and b"Unavailable: " in error.stderr, error.stderr
        pytest.skip("torchvision.io does not work there")


@pytest.mark.slow
@pytest.mark.parametrize("flip", [True, False])
def test_tensorflows_side_makes_the_same_batches(flip, folder):
    python = os.environ.get("INCEPTION_JAX_TF_PYTHON") or pytest.skip("INCEPTION_JAX_TF_PYTHON names no interpreter")
    check(*draw("tf_data", make_task(folder, flip=flip), python), flip)


def test_a_part_of_a_split_is_its_files(folder):
    task = make_task(folder, "train[2:5]+train[:1]")
    content = json.loads(Path(task["files"]).read_text())
    dataset = datasets.load(f"folder:{folder}", "train")
    assert content["paths"] == [dataset.source.path(index) for index in (2, 3, 4, 0)]
    assert content["labels"] == [int(Path(path).parent.name) for path in content["paths"]]


def test_a_comparison_of_inputs(folder, tmp_path, capsys):
    output = tmp_path / "input.json"
    flags = ["--config=configs/digits.py", f"--config.data.name=folder:{folder}", "--config.data.eval_split=train"]
    flags += ["--config.data.workers=0", "--config.data.threads=1", "--batch_size=8", "--devices=1", "--seconds=0.1"]
    flags += ["--config.augmentation.mixup_alpha=0.2", "--rounds=2", f"--json={output}", "--tf_python=/no/python"]
    with pytest.raises(UserError, match=r"^the comparison is not valid: --vs=tf_data: none of its sides is available$"):
        benchmark.main([*flags, "--data", "--vs=grain,tf_data"])
    printed = capsys.readouterr().out
    result = json.loads(output.read_text())
    assert result["order"] == [["ours", *OWN[1:]], [*OWN[1:], "ours"]]
    for name in OWN:
        found = result["sides"][name]["input"]
        assert found["images_per_second"] > 0 and len(found["cpu_ratio"]["rounds"]) == 2
        line = next(line.split() for line in printed.splitlines() if line.startswith(f"{name} "))
        assert line[3] == f"{found['ratio']['median']:.3f}" and line[6] == f"{found['cpu_ratio']['median']:.3f}"
        assert float(line[2].replace(",", "")) == pytest.approx(8 / found["cpu_seconds"], rel=0.1)
    assert "not available: tf_data: cannot start /no/python: No such file or directory" in printed
    assert "mixup_alpha 0.2; our step does this on the device" in printed
    assert "files" not in result["task"]  # of a folder that is gone


def test_other_batches_are_a_problem():
    sides = {
        "ours": {"prepared": {"batch": "uint8 [8, 32, 32, 3]"}},
        "tf_data": {"prepared": {"batch": "float32 [8, 32, 32, 3]"}},
        "torch_pillow": {"error": "torch_pillow: died", "kind": "failed"},
        "torch_io": {"error": "torch_io: no wheel", "kind": "unavailable"},
    }
    result = {"task": {"batch_size": 8, "image_size": 32}, "sides": sides}
    assert input_versus.find_problems(result, ["tf_data", "torch"]) == [
        "tf_data: its batches are float32 [8, 32, 32, 3], not uint8 [8, 32, 32, 3]",
        "excluded: torch_pillow: died",
    ]
    sides["torch_pillow"] = {"error": "torch_pillow: no PyTorch", "kind": "unavailable"}
    del sides["tf_data"]
    assert input_versus.find_problems(result, ["torch"]) == ["--vs=torch: none of its sides is available"]
    sides["torch_pillow"] = {"prepared": {"batch": "uint8 [8, 3, 32, 32]"}}
    assert input_versus.find_problems(result, ["torch"]) == []  # one of PyTorch's sides is available

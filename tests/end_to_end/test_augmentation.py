"""Augmentations of host and device, and an own rule: a run resumes to the same bits, also with worker processes."""

import json
import shutil
from pathlib import Path

# The rule is a recipe's own; policy and device follow it.
RECIPE = """
import runpy
from pathlib import Path

import inception_jax


def turn(image, image_size, uniforms):
    import cv2

    return cv2.resize(image.swapaxes(0, 1) if uniforms[0] < 0.5 else image, (image_size, image_size))


inception_jax.register_augmentation("turn", turn)


def get_config():
    config = runpy.run_path(Path({two_modules!r}).with_name("two_modules.py"))["get_config"]()
    config.extensions = (*config.extensions, {own!r})
    config.augmentation.rule = "turn"
    config.augmentation.area, config.augmentation.aspect, config.augmentation.flip = (0.08, 1.0), (3 / 4, 4 / 3), True
    return config
"""
FIELDS = {
    "batch_size": 16, "num_steps": 6, "data.image_size": 32, "data.train_split": "train[:40]", "data.threads": 1,
    "data.eval_split": "test[:20]", "model.width_multiplier": 0.1, "model.options.min_width": 2,
    "evaluation.every_epochs": 0.8, "checkpoint.every_epochs": 0.8, "logging.every_steps": 1,
    "logging.tensorboard": False, "logging.pictures": False, "optimizer.accumulation": 2,
    "loss.label_smoothing": 0.1, "augmentation.policy": "randaugment", "augmentation.policy_operations": 3,
    "augmentation.photometric": "howard", "augmentation.lighting": 0.1, "augmentation.erasing_probability": 0.5,
    "augmentation.cutmix_alpha": 1.0, "augmentation.mix_probability": 0.8,
}  # fmt: skip


def test_augmentations_resume_to_the_same_bits(run_command, tmp_path):
    recipe = tmp_path / "own.py"
    here = Path(__file__).resolve().parent.parent / "resume" / "two_modules.py"
    recipe.write_text(RECIPE.format(two_modules=str(here), own=str(recipe)))
    arguments = [f"--config={recipe}", *(f"--config.{path}={value}" for path, value in FIELDS.items())]
    workdir = tmp_path / "run"
    code, _, err = run_command("train", *arguments, f"--workdir={workdir}")
    assert code == 0, err
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["kind"] == "train"]
    assert len(train) == 6 and any(row["top1_main"] * 16 % 1 for row in train)  # fractions of mixed labels
    again = shutil.copytree(workdir, tmp_path / "again")
    (again / "result.json").unlink()
    shutil.rmtree(again / "checkpoints" / "6")
    code, _, err = run_command("train", *arguments, "--config.data.workers=1", f"--workdir={again}")
    assert code == 0 and "continued from step 4" in err, err
    assert (again / "metrics.jsonl").read_bytes() == (workdir / "metrics.jsonl").read_bytes()
    code, out, err = run_command("train", *arguments, "--config.augmentation.cutmix_alpha=0.5", f"--workdir={again}")
    assert code == 2 and "config.augmentation.cutmix_alpha = 0.5: the run in" in err, (out, err)


def test_fields_without_effect_are_refused(run_command, tmp_path):
    for field, value in (("policy_magnitude", 5), ("erasing_fill", "zero"), ("mix_probability", 0.5)):
        arguments = ["--config=digits", f"--config.augmentation.{field}={value}", f"--workdir={tmp_path / 'run'}"]
        code, _, err = run_command("train", *arguments)
        assert code == 2 and f"config.augmentation.{field} = " in err and "nothing reads it" in err, err

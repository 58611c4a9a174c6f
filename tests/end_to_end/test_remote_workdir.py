"""A run in a workdir at an address: trained, interrupted, continued elsewhere, evaluated, used."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest


@pytest.fixture
def run_remote(start_command, tmp_path):
    """Runs a command with a cache of its own: another name of the cache is another machine."""

    def run(name, *arguments, machine="one"):
        process = start_command(name, *arguments, environment={"XDG_CACHE_HOME": str(tmp_path / machine)})
        out, err = process.communicate(timeout=400)
        return process.returncode, out, err

    return run


def outcome(workdir):
    return json.loads((workdir / "result.json").read_text())["fingerprint"], (workdir / "metrics.jsonl").read_bytes()


def test_a_run_at_an_address(run_remote, run_command, own_recipe, tmp_path):
    fields = ["evaluation.every_epochs=0.5", "checkpoint.every_epochs=0.5", "logging.every_steps=2", "data.threads=1"]
    fields += ["logging.pictures=False"]
    arguments = [f"--config={own_recipe}", *(f"--config.{field}" for field in fields)]
    bucket, address = tmp_path / "bucket" / "run", f"file://{tmp_path}/bucket/run"
    code, _, err = run_command("train", *arguments, f"--workdir={tmp_path / 'local'}")
    assert code == 0, err
    code, out, err = run_remote("train", *arguments, f"--workdir={address}")
    assert code == 0 and "no lock keeps a run on another machine out" in err, err
    assert re.search(rf"report.html, report.md, result.json, [\w., ]*: {re.escape(address)}", out), out
    assert f"--workdir={address} IMAGE" in out
    assert outcome(bucket) == outcome(tmp_path / "local")
    names = {path.relative_to(tmp_path / "local") for path in (tmp_path / "local").rglob("*") if path.is_file()}
    assert {path.relative_to(bucket).parts[0] for path in bucket.rglob("*")} == {path.parts[0] for path in names} - {
        "lock"
    }
    assert f"python -m inception_jax.evaluate --workdir={address}" in (bucket / "report.md").read_text()

    shutil.rmtree(bucket / "checkpoints" / "12")  # as if the machine had gone before the last upload
    (bucket / "result.json").unlink()
    code, _, err = run_remote("train", *arguments, f"--workdir={address}", machine="two")
    assert code == 0 and "continued from step 8" in err, err
    assert outcome(bucket) == outcome(tmp_path / "local")
    code, out, err = run_remote("train", *arguments, f"--workdir={address}", "--json")
    assert code == 0 and json.loads(out)["fingerprint"] == outcome(bucket)[0], err  # machine one gets what two wrote

    code, out, err = run_remote("evaluate", f"--workdir={address}", "--json")
    result = json.loads((bucket / "result.json").read_text())
    assert code == 0 and json.loads(out)["top1"] == result["metrics"]["test"]["raw"]["top1"], err
    assert len([*(bucket / "evaluations").glob("*/result.json")]) == 1
    image = tmp_path / "image.png"
    cv2.imwrite(str(image), np.full((20, 20, 3), 90, np.uint8))
    code, out, err = run_remote("predict", f"--workdir={address}", "--json", image)
    assert code == 0 and {one["name"] for one in json.loads(out)["classes"]} == {"across", "down"}, err
    output = f"--output={tmp_path / 'compared'}"
    code, out, err = run_remote("compare", output, address, tmp_path / "local")
    assert code == 0 and (tmp_path / "compared" / "comparison.md").exists(), err

    code, _, err = run_remote("train", *arguments, "--workdir=s3://bucket/run")
    assert code == 2 and err.splitlines()[-1] == "error: s3://bucket/run: Install s3fs to access S3", err

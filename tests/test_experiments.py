"""The programs of experiments/, as their pages start them, with small numbers: they end, and write their results."""

import json
import subprocess
import sys

import pytest

from .conftest import ROOT

# {program: (its flags, where {tmp} is an empty folder, {out} the JSON file, {run} the workdir of a small run, {images}
# what corpus.py made; a key that the file has)}
PROGRAMS = {
    "soak/soak.py": (
        ["--workdir={tmp}", "--kills=1", "--terms=1", "--output={out}", "--config.model.width_multiplier=0.1"],
        "SIGKILL",
    ),
    "score_rate/memory.py": (["--network={run}", "--counts", "40", "80", "--output={out}"], "megabytes"),
    "step_time/levers.py": (
        [
            *("--model=inception_v1_bn", "--batch_size=2", "--field=model.aux_heads", "--values=True,False"),
            *("--image_size=64", "--set=model.width_multiplier=0.1", "--rounds=1", "--json={out}"),
        ],
        "losses",
    ),
    "step_time/pieces.py": (
        ["--batch_size=1", "--dtype=float32", "--blocks=2", "--calls=1", "--json={out}"],
        "pieces",
    ),
    "input_rate/augmentation_cost.py": (["--rounds=1", "--output={out}"], "cpu_milliseconds_per_image"),
    "input_rate/input_rate.py": (
        ["--images={images}", "--output={out}", "--rounds=1", "--seconds=0.2"],
        "versions",
    ),
    "input_rate/scaling.py": (["--images={images}", "--output={out}", "--rounds=1"], "model"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    pytest.importorskip("skimage", reason="its photographs, of which corpus.py makes JPEGs")
    folder = tmp_path_factory.mktemp("corpus") / "images"
    command = [sys.executable, "experiments/input_rate/corpus.py", f"--output={folder}", "--images=64"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_as_its_page_starts_it(program, tmp_path, request):
    flags, key = PROGRAMS[program]
    places = {"tmp": tmp_path / "work", "out": tmp_path / "results.json"}
    for name, fixture in (("run", "small_run"), ("images", "images")):
        if any(f"{{{name}}}" in flag for flag in flags):
            places[name] = request.getfixturevalue(fixture)
    command = [sys.executable, f"experiments/{program}", *(flag.format(**places) for flag in flags)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert key in json.loads(places["out"].read_text())

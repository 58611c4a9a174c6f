"""`doctor` on recipes, data and workdirs: what `train` would refuse, in its words; and nothing is written."""

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image

from inception_jax import doctor, file_locks, recipe_files
from inception_jax.checkpoints import reading
from inception_jax.data import pipeline_base
from inception_jax.diagnostics import environment, image_files, memory_estimate, recipe, workdir
from inception_jax.diagnostics.findings import Finding, Status, ok, run_check
from inception_jax.errors import UserError
from inception_jax.runs import lock
from inception_jax.training import restore
from inception_jax.training.loop import train

from ..conftest import ROOT

QUIET = ("versions", "devices", "host", "processes", "extras")


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("XLA_PYTHON_CLIENT_PREALLOCATE", raising=False)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # as `doctor` sets it; restored after the test


def examined(capsys, *arguments, code=0):
    """{check: finding} of `doctor --json`."""
    assert doctor.main([*arguments, "--json"]) == code
    content = json.loads(capsys.readouterr().out)
    return {one["check"]: Finding(**one | {"status": Status(one["status"])}) for one in content["checks"]}


@pytest.fixture
def arguments(small_arguments):
    return small_arguments


@pytest.fixture(scope="module")
def setup(small_arguments):
    with contextlib.chdir(ROOT):
        return recipe.build(recipe_files.load_config(small_arguments)[0], None)


@pytest.fixture(scope="module")
def state(setup):
    return restore.state_shapes(setup)


def listing(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_a_recipe_that_can_be_trained(arguments, tmp_path, capsys):
    new = tmp_path / "made" / "by" / "train"
    assert doctor.main([*arguments, f"--workdir={new}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    checks = ("workdir", "recipe", "data", "decoding", "statistics", "memory", "run", "disk")
    assert [line.split()[1] for line in lines] == [*QUIET, *checks]
    assert all(line.startswith(("ok ", "warn")) for line in lines)
    assert all("What to do:" in line for line in lines if line.startswith("warn"))
    by_check = {line.split()[1]: line for line in lines}
    assert (
        "inception_v1 at 32 pixels, computes in float32; 14 steps (2.24 epochs) of 16, 2 per device"
        in by_check["recipe"]
    )
    assert "digits: 100 examples in train[:100], 40 in test[:40], 10 classes" in by_check["data"]
    assert "a new run" in by_check["run"] and "images/s by one thread" in by_check["decoding"]
    assert not new.parent.parent.exists()


def test_a_finished_run_alone_names_its_recipe_and_is_not_touched(small_run, tmp_path, capsys):
    copied = shutil.copytree(small_run, tmp_path / "run")
    before = listing(copied)
    found = examined(capsys, f"--workdir={copied}")
    assert "finished" in found["run"].text and "newest checkpoint of step 14 of 14" in found["run"].text
    assert found["run"].status == Status.OK and "trains nothing" in found["run"].text
    assert listing(copied) == before


@pytest.mark.parametrize(
    ("check", "overrides"),
    [
        ("data", ["--config.data.name=folder:/nowhere"]),
        ("data", ["--config.data.train_split=trian"]),
        ("recipe", ["--config.batch_size=12"]),
        ("recipe", ["--config.model.num_classes=11"]),
        ("recipe", ["--config.optimizer.nesterov=True", "--config.optimizer.name=adamw"]),
        ("recipe", ["--config.optimizer.freeze=('nothing',)"]),
        ("recipe", ["--config.data.image_size=8"]),
        ("run", ["--config.optimizer.learning_rate=0.5"]),
        ("run", ["--config.data.train_split=train[:96]"]),
        ("run", ["--config.num_steps=6", "--config.schedule.name=constant", "--config.schedule.warmup_epochs=0.0"]),
    ],
)
def test_it_refuses_what_train_refuses_in_the_same_words(check, overrides, arguments, small_run, tmp_path, capsys):
    copied = shutil.copytree(small_run, tmp_path / "run") if check == "run" else tmp_path / "run"
    found = examined(capsys, *arguments, *overrides, f"--workdir={copied}", code=2)
    assert [one.check for one in found.values() if one.status == Status.FAIL] == [check]
    assert found[check].remedy
    with pytest.raises(UserError) as error:
        train(recipe_files.load_config([*arguments, *overrides])[0], copied)
    assert str(error.value) == found[check].text
    if check == "recipe":
        assert found["data"].status == Status.OK


def test_a_run_with_another_generator_is_refused_in_the_words_of_train(arguments, small_run, tmp_path, capsys):
    copied = shutil.copytree(small_run, tmp_path / "run")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["environment"]["settings"]["jax_default_prng_impl"] = "rbg"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    found = examined(capsys, *arguments, f"--workdir={copied}", code=2)
    with pytest.raises(UserError) as error:
        train(recipe_files.load_config(arguments)[0], copied)
    assert "JAX_DEFAULT_PRNG_IMPL" in found["run"].text and str(error.value) == found["run"].text


def test_a_recipe_that_cannot_be_loaded(capsys, tmp_path):
    found = examined(capsys, "--config=nowhere.py", code=2)
    assert "nowhere.py" in found["recipe"].text and set(found) == {*QUIET, "recipe"}
    (tmp_path / "r.py").write_text("def get_config():\n    return 1 / 0\n")
    found = examined(capsys, f"--config={tmp_path / 'r.py'}", code=2)
    assert "division by zero" in found["recipe"].text


def test_an_address_is_not_looked_at(capsys):
    found = examined(capsys, "--workdir=memory://bucket/run")
    assert found["workdir"].status == Status.WARN and "an address" in found["workdir"].text
    assert not Path("memory:").exists()


def test_a_check_that_crashes_is_a_line(monkeypatch, capsys):
    monkeypatch.setattr(environment, "check_host", lambda: 1 / 0)
    assert doctor.main([]) == 2
    out, err = capsys.readouterr()
    assert "fail  host        could not be checked: ZeroDivisionError: division by zero. What to do: " in out
    assert "Traceback" not in out + err and len(out.splitlines()) == len(QUIET)


def test_a_package_that_cannot_be_imported_is_a_line(arguments, monkeypatch, capsys):
    monkeypatch.delattr("inception_jax.diagnostics.recipe")
    monkeypatch.setitem(sys.modules, "inception_jax.diagnostics.recipe", None)
    found = examined(capsys, *arguments, code=2)
    assert "could not be checked: " in found["recipe"].text and set(found) == {*QUIET, "recipe"}


def test_images_that_are_dark_or_cannot_be_decoded(tmp_path, arguments, capsys):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(8):
                cv2.imwrite(str(tmp_path / split / name / f"{index}.png"), np.full((40, 40, 3), index, np.uint8))
    (tmp_path / "train" / "cat" / "0.psd").write_bytes(b"")
    data = [f"--config.data.name=folder:{tmp_path}", "--config.data.train_split=train", "--config.data.eval_split=test"]
    found = examined(capsys, *arguments, *data)["decoding"]
    assert found.status == Status.WARN and re.fullmatch(
        r"the largest value of \d+ training crops is 7 of 255", found.text
    )
    for file in (tmp_path / "test").glob("*/*.png"):
        file.write_bytes(b"no image")
    built = recipe.build(recipe_files.load_config([*arguments, *data])[0], None)
    found = run_check("decoding", lambda: recipe.check_decoding(built), remedy="correct that")
    assert found.status == Status.FAIL and ".png" in found.text
    built = recipe.build(recipe_files.load_config([*arguments, *data, "--config.faults.max_corrupt=3"])[0], None)
    found = recipe.check_decoding(built)
    assert found.status == Status.WARN and ".png" in found.text and "up to 3" in found.remedy
    found = recipe.check_data(built.data.train.dataset, built.data.eval.dataset)
    assert "16 examples in train, 16 in test, 2 classes; left out: 1 .psd" in found.text


def test_the_headers_of_image_files(tmp_path, arguments, capsys, monkeypatch):
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / name).mkdir(parents=True)
        for index in range(8):
            cv2.imwrite(str(tmp_path / name / f"{index}.png"), np.full((40, 40, 3), index, np.uint8))
    data = [f"--config.data.name=folder:{tmp_path}", "--config.data.train_split=train[:75%]+train[75%:]"]
    data += ["--config.num_steps=3", "--config.data.eval_split=test"]
    found = examined(capsys, *arguments, *data)["files"]
    assert found.status == Status.OK and found.text == "the headers of 32 of 32 image files: none is broken"
    whole = (tmp_path / "train/cat/3.png").read_bytes()
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6  # a phone that was held upright
    Image.open(tmp_path / "train/cat/2.png").save(tmp_path / "train/cat/2.png", exif=sideways)
    found = examined(capsys, *arguments, *data)["files"]
    assert found.status == Status.WARN and "none is broken; 1 with an EXIF orientation" in found.text
    (tmp_path / "train/cat/3.png").write_bytes(whole[:17])
    (tmp_path / "train/dog/7.png").write_bytes(b"<html>")
    (tmp_path / "test/dog/5.png").write_bytes(b"")
    found = examined(capsys, *arguments, *data, code=2)["files"]
    assert found.status == Status.FAIL and found.remedy.endswith("max_corrupt = 6, for all epochs")
    reason = "a truncated header, or an unknown format"
    assert found.text.endswith("; 1 with an EXIF orientation (rotated or mirrored), which is not applied")
    for text in ("3 broken: ", "test/dog/5.png (0 bytes), ", f"train/cat/3.png ({reason}), ", f"dog/7.png ({reason})"):
        assert text in found.text
    assert examined(capsys, *arguments, *data, "--config.faults.max_corrupt=6")["files"].status == Status.WARN
    monkeypatch.setattr(image_files, "_SECONDS", 0.0)
    sampled = examined(capsys, *arguments, *data, code=2)["files"]
    assert "1 of 32 image files, a random sample" in sampled.text
    more = ["--config.faults.max_corrupt=6"]  # of what a sample shows, there are more in all
    monkeypatch.setattr(image_files, "find_problem", lambda path: "0 bytes")
    sampled = examined(capsys, *arguments, *data, *more, code=2)["files"]
    assert sampled.status == Status.FAIL and re.search(r"max_corrupt = about \d\d, for all epochs", sampled.remedy)
    monkeypatch.undo()
    assert image_files.find_problem(str(tmp_path / "nowhere.png")) == "No such file or directory"
    cut = cv2.imencode(".jpg", np.zeros((40, 40, 3), np.uint8))[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(cut[: cut.index(b"\xff\xda")])  # its size can be read
    assert image_files.find_problem(str(tmp_path / "cut.jpg")) == reason
    (tmp_path / "dark.pgm").write_bytes(b"P5 2 2 1023\n" + bytes(8))  # OpenCV would cut it to 0 … 3
    assert image_files.find_problem(str(tmp_path / "dark.pgm")).startswith("white is 1023 ")
    (tmp_path / "long.jpg").write_bytes(long_jpeg())
    assert image_files.find_problem(str(tmp_path / "long.jpg")) is None


def test_the_orientation_of_damaged_files(tmp_path, monkeypatch):
    """Pillow warns of EXIF data that is cut, as of a file of ImageNet, and its plugin for AVIF raises RuntimeError."""
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    sideways[ExifTags.Base.Make] = "a maker whose name is not stored in place"
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", exif=sideways)
    assert image_files.find_orientation(str(tmp_path / "a.jpg")) == 6
    whole = (tmp_path / "a.jpg").read_bytes()
    for number in range(len(whole)):
        (tmp_path / "a.jpg").write_bytes(whole[:number] + bytes([whole[number] ^ 1]) + whole[number + 1 :])
        assert image_files.find_orientation(str(tmp_path / "a.jpg")) in range(1, 9)

    def fail(path):
        raise RuntimeError("Failed to decode image: Missing or empty image item")

    monkeypatch.setattr(image_files.Image, "open", fail)
    assert image_files.find_orientation(str(tmp_path / "a.jpg")) == 1


def long_jpeg():
    """A JPEG whose size stands behind 130 kB of other segments."""
    encoded = cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    segment = b"\xff\xee\xff\xff" + bytes(65533)
    return encoded[:2] + 2 * segment + encoded[2:]


def test_shared_memory_for_workers(arguments, monkeypatch):
    built = recipe.build(recipe_files.load_config([*arguments, "--config.data.workers=2"])[0], None)
    monkeypatch.setattr(pipeline_base, "needed_shared_memory", lambda workers, prefetch, nbytes: 1 << 60)
    found = run_check("decoding", lambda: recipe.check_decoding(built), remedy="correct that")
    assert found.status == Status.FAIL and "/dev/shm" in found.text and "--shm-size" in found.text


def test_statistics_that_will_not_catch_up(arguments):
    overrides = ["--config.model.name=inception_v1_bn", "--config.ema.decay=0.9999", "--config.ema.num_updates=False"]
    built = recipe.build(recipe_files.load_config([*arguments, *overrides])[0], None)
    found = recipe.check_statistics(built, restore.state_shapes(built))
    assert found.status == Status.WARN and "of the initial running statistics remain" in found.text
    assert "bn_initial_fraction" in found.text and "config.ema.num_updates" in found.text


def test_memory(setup, state, monkeypatch):
    found = memory_estimate.estimate(setup, state)
    # Two more examples per device, as many more activations; the state stays. Gradients are of trained parameters.
    assert found.gradients == memory_estimate.count_bytes(state.params)
    assert found.state == memory_estimate.count_bytes(state) and found.activations > 100_000
    monkeypatch.setattr(environment, "available_memory", lambda: 8 * (found.total + 1))
    tight = recipe.check_memory(setup, state)
    assert tight.status == Status.WARN and "--config.optimizer.accumulation=2" in tight.remedy
    monkeypatch.setattr(environment, "available_memory", lambda: found.state)
    assert recipe.check_memory(setup, state).status == Status.FAIL
    monkeypatch.setattr(environment, "available_memory", lambda: 100 * found.total)
    assert recipe.check_memory(setup, state).status == Status.OK


def test_a_batch_that_processes_cannot_share(setup):
    assert recipe.check_recipe(setup, 2).status == Status.OK  # 16 over 2 times 8 devices
    found = recipe.check_recipe(setup, 3)
    assert found.status == Status.FAIL and found.remedy == "--config.batch_size=24 would do"


def test_weights_to_start_from(arguments, small_run, tmp_path, capsys):
    other = f"--config.initialize.checkpoint={small_run}"
    found = examined(capsys, *arguments, other)
    assert "restored: " in found["weights"].text and found["weights"].status == Status.OK
    scaled = examined(capsys, *arguments, other, "--config.data.normalization=inception")["weights"]
    assert scaled.status == Status.WARN and "this run has data.normalization=inception" in scaled.text
    for overrides, text in (
        ([other, "--config.model.width_multiplier=0.5"], "a network of other options; give it those of the source"),
        ([f"--config.initialize.checkpoint={tmp_path}"], "no checkpoints in"),
    ):
        built = recipe.build(recipe_files.load_config([*arguments, *overrides])[0], None)
        failed = run_check("weights", functools.partial(recipe.check_initialization, built), remedy="correct that")
        assert failed.status == Status.FAIL and text in failed.text


def test_a_workdir_that_cannot_be_used(tmp_path, monkeypatch):
    def check(path):
        return run_check("workdir", lambda: workdir.check_workdir(path), remedy="give another --workdir")

    with lock.lock_workdir(tmp_path / "locked"):
        found = check(tmp_path / "locked")
        assert found.status == Status.FAIL and f"in use by process {os.getpid()}" in found.text
        with pytest.raises(lock.WorkdirLocked) as error, lock.lock_workdir(tmp_path / "locked"):
            pass
        assert str(error.value) == found.text
    assert check(tmp_path / "locked").status != Status.FAIL
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        found = check(Path(path))
        with pytest.raises(UserError) as error, lock.lock_workdir(path):
            pass
        assert found.status == Status.FAIL and str(error.value) == found.text
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot write workdir" in check(tmp_path / "new").text
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("ext4", Status.OK, "ext4"), ("overlay", Status.WARN, "container"), ("tmpfs", Status.WARN, "in memory"),
        ("nfs4", Status.OK, "network"), ("fuse.sshfs", Status.OK, "network"), ("", Status.OK, "unknown"),
    ],
)  # fmt: skip
def test_file_systems(kind, status, text, tmp_path, monkeypatch):
    monkeypatch.setattr(workdir, "file_system", lambda path: kind)
    found = workdir.check_workdir(tmp_path)
    assert found.status == status and text in found.text


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def no_locks(file, *, shared=False):
        raise file_locks.LocksUnsupported(errno.ENOLCK, "No locks available")

    assert workdir.file_system(Path("/proc/self")) == "proc"
    monkeypatch.setattr(file_locks, "try_lock", no_locks)
    found = workdir.check_workdir(tmp_path)
    assert found.status == Status.WARN and "has no locks" in found.text and "one at a time" in found.remedy


def test_the_disk(setup, state, tmp_path, monkeypatch):
    each, kept = memory_estimate.count_bytes(state), setup.checkpoints.keep + 2
    Usage, Stat = namedtuple("Usage", "free"), namedtuple("Stat", "f_files f_favail")
    needed = kept * each + (64 << 20)
    for free, status in ((needed - 1, Status.FAIL), (needed + 1, Status.WARN), (2 * needed, Status.OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: Usage(free))
        found = workdir.check_disk(tmp_path / "new", setup, state)
        assert found.status == status and f"{kept} checkpoints" in found.text
    monkeypatch.setattr(os, "statvfs", lambda path: Stat(10_000, 12))
    found = workdir.check_disk(tmp_path, setup, state)
    assert found.status == Status.FAIL and "12 inodes" in found.text
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "checkpoints" / "3" / "data").write_bytes(bytes(1 << 20))
    monkeypatch.undo()
    assert "more" in workdir.check_disk(tmp_path, setup, state).text


def test_checkpoints_of_another_state_and_damaged_ones(setup, state, small_run, tmp_path):
    copied = shutil.copytree(small_run, tmp_path / "run")
    steps = reading.list_steps(copied / "checkpoints")
    assert workdir.check_checkpoints(copied, setup, state) == steps[-1] == 14
    (copied / "checkpoints" / "14" / "host" / "metadata").write_text("{")
    assert workdir.check_checkpoints(copied, setup, state) == steps[-2]
    with pytest.raises(reading.CheckpointMismatch, match="another state"):
        workdir.check_checkpoints(copied, setup, state.replace(ema=None))
    for step in steps:
        (copied / "checkpoints" / str(step) / "host" / "metadata").write_text("{")
    with pytest.raises(reading.CheckpointError, match="no usable checkpoint"):
        workdir.check_checkpoints(copied, setup, state)


def test_a_folder_with_other_files(setup, state, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    found = workdir.check_run(tmp_path, setup, state)
    assert found.status == Status.WARN and "1 other files: thesis.tex" in found.text


def test_a_finding_that_is_not_ok_needs_a_remedy():
    with pytest.raises(ValueError, match="needs a remedy"):
        Finding("host", Status.WARN, "something")
    assert ok("host", "all is well").remedy == ""

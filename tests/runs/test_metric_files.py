"""Metric files: read back line by line, torn, resumed, on a full disk; TensorBoard events parsed from their bytes."""

import json
import math
import os
import re
import signal
import struct
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.crc32c import crc32c
from tensorboardX.proto import event_pb2

from inception_jax.errors import UserError
from inception_jax.runs import metric_files, metric_rows
from inception_jax.runs.tensorboard import EventFile


def train_row(step, **values):
    return {"kind": "train", "step": step, "epoch": step / 10, "loss": 1.0 / (step + 1), **values}


def events_of(path):
    """The events of one file, by the TFRecord format; every checksum is checked."""

    def masked(data):
        value = crc32c(data) & 0xFFFFFFFF
        return ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF

    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12]) == (masked(data[:8]),)
        content, data = data[12 : 12 + length], data[12 + length :]
        assert struct.unpack("<I", data[:4]) == (masked(content),)
        events.append(event_pb2.Event.FromString(content))
        data = data[4:]
    return events


def event_files(workdir):
    return sorted((workdir / metric_files.EVENTS).iterdir())


def test_a_row_is_one_line_of_plain_json_and_is_there_before_close(tmp_path):
    writer = metric_files.MetricWriter(tmp_path, tensorboard=False)
    row = train_row(1, loss=np.float32(0.1), top1=jnp.float32(0.5), n=np.int64(3), half=jnp.bfloat16(1.5), none=None)
    writer.write(row)
    writer.write(train_row(2, note="zwei\nZeilen ü"))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    writer.close()
    assert len(lines) == 2
    row = json.loads(lines[0])
    assert row == {
        "kind": "train",
        "step": 1,
        "epoch": 0.1,
        "loss": float(np.float32(0.1)),
        "top1": 0.5,
        "n": 3,
        "half": 1.5,
        "none": None,
    }
    assert list(row)[:3] == ["kind", "step", "epoch"]  # in the order given: a person reads it too
    assert type(row["n"]) is int and type(row["top1"]) is float
    assert json.loads(lines[1])["note"] == "zwei\nZeilen ü"
    assert (tmp_path / "timing.jsonl").read_bytes() == b""


def test_timing_has_its_own_file(tmp_path):
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write_timing({"step": 10, "images_per_second": 123.5})
    assert metric_files.read_rows(tmp_path / "timing.jsonl") == [{"step": 10, "images_per_second": 123.5}]
    assert metric_files.read_rows(tmp_path / "metrics.jsonl") == []


def test_nan_and_infinities_are_valid_json_and_come_back(tmp_path):
    with metric_files.MetricWriter(tmp_path, tensorboard=True) as writer:
        writer.write(train_row(1, loss=math.nan, a=np.float32(np.inf), b=-math.inf))

    def refuse(token):
        raise AssertionError(f"{token} is not JSON")

    raw = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (raw["loss"], raw["a"], raw["b"]) == ("NaN", "Infinity", "-Infinity")
    assert [float(raw[key]) for key in ("a", "b")] == [math.inf, -math.inf]
    row = metric_files.read_rows(tmp_path / "metrics.jsonl")[0]
    assert math.isnan(row["loss"]) and row["a"] == math.inf and row["b"] == -math.inf
    event = events_of(event_files(tmp_path)[0])[-1]
    values = {value.tag: value.simple_value for value in event.summary.value}
    assert math.isnan(values["train/loss"]) and values["train/b"] == -math.inf


@pytest.mark.parametrize(
    "row",
    [
        {"loss": 1.0},
        {"step": 1.0},
        {"step": True},
        {"step": 1, "loss": np.zeros(2)},
        {"step": 1, "loss": [1.0]},
        {"step": 1, "loss": 1j},
    ],
)
def test_a_row_that_is_not_one_is_refused_and_nothing_is_written(tmp_path, row):
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        with pytest.raises(ValueError, match=r"step|scalar"):
            writer.write(row)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_truncate_drops_later_rows_and_a_torn_line_from_both_files(tmp_path):
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in (10, 20, 30):
            writer.write(train_row(step))
            writer.write_timing({"step": step, "step_seconds": 0.5})
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b'{"kind":"train","step":40,"lo')
    assert metric_files.truncate(tmp_path, 20) == 3  # step 30 twice, and the torn line
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(before.splitlines(keepends=True)[:2])
    assert [row["step"] for row in metric_files.read_rows(tmp_path / "timing.jsonl")] == [10, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "timing.jsonl"]


def test_truncate_leaves_a_file_with_nothing_to_lose_untouched_and_minus_one_empties(tmp_path):
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(train_row(0))
        writer.write(train_row(5))
    inode = os.stat(tmp_path / "metrics.jsonl").st_ino
    assert metric_files.truncate(tmp_path, 5) == 0
    assert os.stat(tmp_path / "metrics.jsonl").st_ino == inode
    assert metric_files.truncate(tmp_path, -1) == 2
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
    assert metric_files.truncate(tmp_path / "nothing_here", 5) == 0


def test_truncate_is_atomic(tmp_path, monkeypatch):
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(train_row(1))
        writer.write(train_row(2))
    before = (tmp_path / "metrics.jsonl").read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            metric_files.truncate(tmp_path, 1)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert metric_files.truncate(tmp_path, 1) == 1  # what the killed one left behind is in nobody's way


@pytest.mark.parametrize("tail", [b'{"kind":"train","st', b"\0\0\0\0", b'{"kind":"train"}', b"\xff\xfe", b"[1]\n"])
def test_a_torn_tail_is_neither_read_nor_written_onto(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(metric_rows.encode_row(train_row(1)) + tail)
    assert [row["step"] for row in metric_files.read_rows(path)] == [1]
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(train_row(2))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_whole_row_that_lost_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(metric_rows.encode_row(train_row(1)) + metric_rows.encode_row(train_row(2))[:-1])
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write(train_row(3))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_damage_in_the_middle_is_an_error_with_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(metric_rows.encode_row(train_row(1)) + b"rubbish\n" + metric_rows.encode_row(train_row(2)))
    for call in (
        lambda: metric_files.read_rows(path),
        lambda: metric_files.truncate(tmp_path, 1),
        lambda: metric_files.MetricWriter(tmp_path, tensorboard=False),
    ):
        with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: .*rubbish"):
            call()


def test_unreadable_and_unwritable_places_are_user_errors(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl: No such file"):
        metric_files.read_rows(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match=r"cannot write .*absent.*: No such file"):
        metric_files.MetricWriter(tmp_path / "absent", tensorboard=False)
    (tmp_path / "tensorboard").write_text("a file in the way")
    with pytest.raises(UserError, match=r"cannot write .*tensorboard.*: File exists"):
        metric_files.MetricWriter(tmp_path, tensorboard=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_a_user_error(tmp_path):
    writer = metric_files.MetricWriter(tmp_path, tensorboard=False)
    full = metric_files.AppendedFile("/dev/full")
    normal, writer._files["metrics.jsonl"] = writer._files["metrics.jsonl"], full
    with pytest.raises(UserError, match=r"cannot write /dev/full: No space left"):
        writer.write(train_row(1))
    writer._files["metrics.jsonl"] = normal
    writer.close()
    full._file.close()


def test_a_killed_process_loses_nothing_that_it_had_written(tmp_path):
    script = textwrap.dedent("""
        import sys
        from inception_jax.runs import metric_files
        writer = metric_files.MetricWriter(sys.argv[1], tensorboard=True)
        for step in range(1, 1001):
            writer.write({"kind": "train", "step": step, "loss": 1.0 / step})
            if step == 500:
                print("half", flush=True)
        print("all", flush=True)
        sys.stdin.read()
    """)
    command = [sys.executable, "-c", script, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    with process:
        assert process.stdout.readline() == b"half\n"
        assert process.stdout.readline() == b"all\n"
        process.send_signal(signal.SIGKILL)
    assert [row["step"] for row in metric_files.read_rows(tmp_path / "metrics.jsonl")] == list(range(1, 1001))
    assert [event.step for event in events_of(event_files(tmp_path)[0])[1:]] == list(range(1, 1001))


def test_rows_are_scalars_in_tensorboard_grouped_by_kind(tmp_path):
    with metric_files.MetricWriter(tmp_path) as writer:
        writer.write(train_row(7, loss=0.25, split_name="x", flag=True))
        writer.write({"kind": "evaluation", "step": 8, "split": "test", "weights": "ema", "top1": 0.75, "count": 360})
        writer.write_timing({"step": 8, "images_per_second": 1000.0})
    (path,) = event_files(tmp_path)
    first, *events = events_of(path)
    assert first.file_version == "brain.Event:2"
    assert [event.step for event in events] == [7, 8, 8]
    values = [{value.tag: value.simple_value for value in event.summary.value} for event in events]
    assert values[0] == {"train/epoch": pytest.approx(0.7), "train/loss": 0.25}
    assert values[1] == {"test_ema/top1": 0.75, "test_ema/count": 360}
    assert values[2] == {"timing/images_per_second": 1000.0}


def test_a_resumed_run_tells_tensorboard_where_to_purge(tmp_path):
    with metric_files.MetricWriter(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write(train_row(step))
    metric_files.truncate(tmp_path, 20)
    with metric_files.MetricWriter(tmp_path, purge_step=21) as writer:
        writer.write(train_row(30, loss=5.0))
    assert [row["step"] for row in metric_files.read_rows(tmp_path / "metrics.jsonl")] == [10, 20, 30]
    before, after = (events_of(path) for path in event_files(tmp_path))  # the second sorts after the first
    assert not any(event.HasField("session_log") for event in before)
    start = after[1]
    assert start.session_log.status == event_pb2.SessionLog.START and start.step == 21
    assert after[2].summary.value[1].simple_value == 5.0


def test_images_go_into_the_events_byte_for_byte(tmp_path):
    cv2 = pytest.importorskip("cv2")
    png = tmp_path / "curves.png"
    cv2.imwrite(str(png), np.zeros((20, 30, 3), np.uint8))
    (tmp_path / "not.png").write_text("text")
    with metric_files.MetricWriter(tmp_path) as writer:
        writer.write_images(40, {"learning_curves": png})
        with pytest.raises(ValueError, match="not a PNG"):
            writer.write_images(41, {"other": tmp_path / "not.png"})
        with pytest.raises(UserError, match=r"cannot read .*gone\.png"):
            writer.write_images(41, {"other": tmp_path / "gone.png"})
    event = events_of(event_files(tmp_path)[0])[-1]
    (value,) = event.summary.value
    assert (event.step, value.tag) == (40, "pictures/learning_curves")
    assert (value.image.height, value.image.width) == (20, 30)
    assert value.image.encoded_image_string == png.read_bytes()
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        writer.write_images(40, {"learning_curves": png})  # no events: nothing to do


@pytest.mark.attack
def test_a_later_start_has_the_later_event_file_though_the_clock_was_set_back(tmp_path, monkeypatch):
    """TensorBoard reads the files of a folder in the order of their names, which begin with the time."""
    names = []
    for now in (1_700_000_000.0, 1_600_000_000.0, 1_700_000_000.0, 1_800_000_000.0):
        monkeypatch.setattr("inception_jax.runs.tensorboard.time.time", lambda now=now: now)
        before = set(tmp_path.glob("*"))
        EventFile(tmp_path).close()
        names += [path.name for path in set(tmp_path.glob("*")) - before]
    assert names == sorted(names) and len(names) == 4


@pytest.mark.attack
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), r"has 0 rows up to the checkpoint, which was saved with 3"),
        (lambda path: path.write_bytes(path.read_bytes().split(b"\n", 1)[1]), r"has 2 rows up to .* saved with 3"),
        (lambda path: path.write_text(path.read_text().replace("1.0", "0.5", 1)), r"other rows than those with which"),
    ],
)
def test_rows_that_were_removed_or_changed_between_two_starts_are_noticed(tmp_path, change, message):
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        for step in (0, 1, 2):
            writer.write(train_row(step))
        recorded = json.loads(json.dumps(writer.written))
        writer.write(train_row(3))
    with metric_files.MetricWriter(tmp_path, tensorboard=False) as writer:
        assert writer.written["rows"] == 4  # a later start counts on
    metric_files.truncate(tmp_path, 2)
    assert metric_files.note_missing_rows(tmp_path, recorded) == []
    assert metric_files.note_missing_rows(tmp_path, None) == []  # a checkpoint of an earlier version
    change(tmp_path / "metrics.jsonl")
    (note,) = metric_files.note_missing_rows(tmp_path, recorded)
    assert re.search(message, note) and "metrics.jsonl" in note

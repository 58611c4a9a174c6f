"""Two processes train from TFRecord, tars or Parquet, are killed and continue: the bits of ArrayRecord, unkilled."""

import json
import shutil
import socket
import tarfile
import time
from io import BytesIO
from pathlib import Path

import pyarrow.parquet
import pytest

from inception_jax.data import conversion
from inception_jax.data.datasets import load

from ..xla_flags import QUICK_COMPILATION

GOLDEN = Path(__file__).parents[1] / "data" / "prepared_by_tfds" / "tfrecord"  # 8 examples for training, 2 for testing
NAME = "shapes/plain:1.2.0"
STEPS = 200


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """{format: the fields of its data}: a set that TensorFlow wrote, as it is and in three other formats."""
    root = tmp_path_factory.mktemp("sets")
    shutil.copytree(GOLDEN, root / "tfrecord")
    conversion.convert(NAME, root / "tfrecord", root / "array_record")
    for split in ("train", "test"):
        data = load(NAME, split, str(root / "tfrecord"))
        records = [data.record(index) for index in range(data.num_examples)]
        columns = {"image": [image for image, _ in records], "label": [label for _, label in records]}
        pyarrow.parquet.write_table(pyarrow.table(columns), root / f"{split}.parquet", row_group_size=3)
        for part in range(2):
            with tarfile.open(root / f"shapes-{split}-{part}.tar", "w") as tar:
                for index in range(part * data.num_examples // 2, (part + 1) * data.num_examples // 2):
                    image, label = records[index]
                    suffix = "png" if image[1:4] == b"PNG" else "jpg"
                    for name, content in ((f"{index}.{suffix}", image), (f"{index}.cls", b"%d" % label)):
                        about = tarfile.TarInfo(name)
                        about.size = len(content)
                        tar.addfile(about, BytesIO(content))
    prepared = {name: {"data.name": NAME, "data.data_dir": str(root / name)} for name in ("tfrecord", "array_record")}
    (root / "names").write_text("\n".join(data.class_names))
    return prepared | {
        "tars": {"data.name": f"webdataset:{root}/shapes-{{split}}-*.tar"},
        "parquet": {"data.name": f"huggingface:{root}/{{split}}.parquet", "data.class_names": str(root / "names")},
    }


@pytest.fixture(scope="module")
def start(start_command, own_recipe):
    """Starts `train` in some processes, which have two devices together."""

    def run(workdir, fields, workers, processes=2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        fields = fields | {
            "data.workers": workers, "data.threads": 1, "batch_size": 4, "num_steps": STEPS, "logging.every_steps": 2,
            "augmentation.rule": "area_aspect", "augmentation.mixup_alpha": 0.2, "evaluation.every_epochs": 20.0,
            "checkpoint.every_epochs": 9.0, "checkpoint.best_metric": "top1", "logging.pictures": False,
        }  # fmt: skip
        overrides = [f"--config.{field}={value}" for field, value in fields.items()]
        shared = [f"--coordinator_address={address}", f"--num_processes={processes}", "--heartbeat_timeout_seconds=30"]
        flags = f"{QUICK_COMPILATION} --xla_force_host_platform_device_count={2 // processes}"
        return [
            start_command(
                *("train", f"--config={own_recipe}", *overrides, f"--workdir={workdir}"),
                *([*shared, f"--process_id={index}"] if processes > 1 else ()),
                environment={"XLA_FLAGS": flags},
            )
            for index in range(processes)
        ]

    return run


def finish(commands):
    ends = [command.communicate(timeout=300) for command in commands]
    assert [command.returncode for command in commands] == [0] * len(commands), [err for _, err in ends]
    return ends[0][1]


def outcome(workdir):
    result = json.loads((workdir / "result.json").read_text())
    assert result["status"] == "finished"
    return result["fingerprint"], (workdir / "metrics.jsonl").read_bytes(), result["metrics"]


@pytest.fixture(scope="module")
def expected(sets, start, tmp_path_factory):
    """What an uninterrupted run of one process on ArrayRecord gives."""
    workdir = tmp_path_factory.mktemp("array_record") / "run"
    finish(start(workdir, sets["array_record"], workers=0, processes=1))
    return outcome(workdir)


@pytest.mark.parametrize(
    ("file_format", "workers"),
    [
        ("tfrecord", 1),
        *(pytest.param("tfrecord", workers, marks=pytest.mark.slow) for workers in (0, 2, 4)),
        *(pytest.param("tars", workers, marks=pytest.mark.slow) for workers in (0, 1, 2, 4)),
        *(pytest.param("parquet", workers, marks=pytest.mark.slow) for workers in (0, 2)),
    ],
)
def test_killed_and_continued(sets, start, expected, file_format, workers, tmp_path):
    workdir = tmp_path / "run"
    pair = start(workdir, sets[file_format], workers)
    checkpoints, deadline = workdir / "checkpoints", time.monotonic() + 300
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        running = time.monotonic() < deadline and all(command.poll() is None for command in pair)
        assert running, [command.written() for command in pair]
        time.sleep(0.005)
    for command in pair:
        command.kill()
    assert [command.wait(60) for command in pair] == [-9, -9]
    assert "continued from step" in finish(start(workdir, sets[file_format], workers))
    assert outcome(workdir) == expected

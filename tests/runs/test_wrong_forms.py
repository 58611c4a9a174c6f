"""JSON files of a workdir with another content than ours: an error of one line, or the rest is used; no traceback."""

import collections
import json
import random
import shutil
import traceback

import pytest

from inception_jax import config as configs
from inception_jax.errors import UserError
from inception_jax.evaluation import trained_network
from inception_jax.metric_definitions import METRICS
from inception_jax.runs import comparison, comparison_report, conclusion, data_record, listing, manifest, report
from inception_jax.training import restore, results
from inception_jax.training.target import Target

WHOLE = (b"", b"\0" * 40, b"\xff\xfe\x00", b"[]", b"5", b"null", b'"text"', b"{}", b"[" * 100_000, b'{"a.b": 1}', b"{")
VALUES = (None, 5, -1.5, "text", [], [5], [[]], {}, {"a": 5}, {"a": {"b": []}}, True, 10**400)
FILES = ("config.json", "manifest.json", "data.json", "classes.json", "result.json")


def forms(content):
    """The contents of a file: whole ones, and the file with one field of another form, or without it."""
    yield from WHOLE
    for name, value in content.items():
        yield json.dumps({key: other for key, other in content.items() if key != name}).encode()
        for wrong in VALUES:
            yield json.dumps(content | {name: wrong}).encode()
        for inner in value if isinstance(value, dict) else ():
            for wrong in VALUES[::3]:
                yield json.dumps(content | {name: value | {inner: wrong}}).encode()


@pytest.fixture
def run(small_run, tmp_path):
    """The files of a finished run, without its checkpoints and plots."""
    (tmp_path / "run").mkdir()
    for name in (*FILES, "metrics.jsonl", "timing.jsonl", "train.log", "lock"):
        shutil.copy(small_run / name, tmp_path / "run")
    return tmp_path / "run"


def readers(run):
    """{what a command does with the JSON files of a workdir: a function that does it}."""
    config = configs.Config(configs.from_dict(manifest.read_config(run)))
    identity = manifest.read_json_object(run / "data.json")

    def start():
        restore.refuse_changed_config(run, config)
        data_record.refuse_changed(run, identity)
        if result := results.read_finished(run, 14):
            conclusion.format_conclusion(run, result)
        manifest.write(run, config.to_json())

    def compare():
        found = comparison.compare([run, run])
        comparison_report.format_text(found)
        comparison_report.format_markdown(found)

    return {
        "start": start,
        "config": lambda: trained_network.load_config(run),
        "classes": lambda: trained_network.load_class_names(run),
        "report": lambda: report.write(run),
        "compare": compare,
        "list": lambda: listing.format_text([listing.read_entry(run)], run.parent),
    }


@pytest.mark.parametrize("count", [30, pytest.param(None, marks=[pytest.mark.slow, pytest.mark.attack])])
@pytest.mark.parametrize("name", FILES)
def test_wrong_forms(run, name, count):
    """Every form with every reader, or a sample of them."""
    kept = {file: (run / file).read_bytes() for file in FILES}
    readers_of_run = readers(run)
    tries = [(reader, content) for reader in readers_of_run for content in forms(json.loads(kept[name]))]
    problems, refused = collections.Counter(), 0
    for reader, content in random.Random(0).sample(tries, count or len(tries)):
        for file, text in kept.items():
            (run / file).write_bytes(text)
        (run / name).write_bytes(content)
        try:
            readers_of_run[reader]()
        except UserError as error:
            assert "\n" not in str(error), (reader, content)
            refused += 1
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            problems[reader, f"{at.filename}:{at.lineno}", repr(error)[:200], content[-80:]] += 1
    print(f"{name}: {count or len(tries)} tries, {refused} refused")
    assert not problems, (len(tries), problems.most_common(20))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "manifest.json",
            b"[]",
            r"manifest.json is damaged: not a JSON object; restore a copy, or remove it: the next",
        ),
        ("manifest.json", b'{"starts": [5]}', r"manifest.json is damaged: 'starts' = '\[5\]' is not a list of objects"),
        ("data.json", b"{}", r"data.json is damaged: 'train_split' = 'None' is not the number and the digest of its "),
        ("data.json", b'{"train_split": {"digest": 5}}', r"data.json is damaged: 'train_split' = "),
        ("classes.json", b'{"names": {"a": 1}}', r"classes.json is damaged: 'names' = .* is not a list of names"),
        ("config.json", b'{"batch_size": "many"}', r"config.batch_size = 'many': .*the config of the run is damaged; "),
        ("result.json", b"\0", r"result.json is damaged: .*; remove it: the command of the run writes it again"),
    ],
)
def test_what_a_start_refuses(run, name, content, message):
    start = readers(run)["start"]
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        start()


def test_a_target_of_another_form_is_that_of_no_finished_run(run):
    content, target = json.loads((run / "result.json").read_text()), Target(METRICS["top1"], 0.5, True)
    right = {"metric": "top1", "value": 0.5}
    for recorded in (*VALUES, right | {"value": "0.5"}, right | {"metric": ["top1"]}, right):
        (run / "result.json").write_text(json.dumps(content | {"target": recorded}))
        assert bool(results.read_finished(run, 14, target)) == (recorded is right), recorded

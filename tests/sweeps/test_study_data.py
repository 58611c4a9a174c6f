"""The data of a study: recorded when it starts, and the same when it is continued."""

import json
import types

import pytest

from inception_jax.errors import UserError
from inception_jax.sweeps import study_data

from ..data.test_folders import PNG


@pytest.fixture
def images(tmp_path):
    """Class folders of two classes, with two images each."""
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    return tmp_path / "images"


def config(images, **more):
    data = {"name": f"folder:{images}", "train_split": "train[:3]", "eval_split": "train[3:]"}
    fields = {"config": {"data": data | {"data_dir": None, "class_names": None}}, "listed": (), "space": None}
    return types.SimpleNamespace(**fields | more)


def test_data_is_recorded_once_and_other_data_refused(images, tmp_path):
    lines = []
    study_data.record(tmp_path, config(images), lines.append)
    assert lines == [f"data folder:{images}: 2 classes, 3 training and 1 evaluation examples; recorded in data.json"]
    recorded = json.loads((tmp_path / "data.json").read_text())
    assert recorded["classes"] == ["a", "b"] and len(recorded["train_split"]["digest"]) == 64
    study_data.record(tmp_path, config(images), lines.append)
    assert len(lines) == 1
    (images / "a" / "1.png").rename(images / "a" / "3.png")
    with pytest.raises(UserError, match=r"has changed since this study began: training split 'train\[:3\]': .*another"):
        study_data.record(tmp_path, config(images), lines.append)
    (images / "b").rename(images / "c")
    with pytest.raises(UserError, match=r"has changed since this study began: .*'?c'?.*; put it back"):
        study_data.record(tmp_path, config(images), lines.append)


def test_a_damaged_record_is_an_error_and_trials_may_choose_their_data(images, tmp_path):
    (tmp_path / "data.json").write_text("[")
    with pytest.raises(UserError, match=r"data\.json"):
        study_data.record(tmp_path, config(images), print)
    chosen = types.SimpleNamespace(parameters={"data.train_split": None})
    study_data.record(tmp_path, config(images, space=chosen), print)
    study_data.record(tmp_path, config(images, listed=({"data.name": "digits"},)), print)
    with pytest.raises(UserError, match=r"data\.json"):
        study_data.record(
            tmp_path,
            config(images, listed=({"data.image_size": 32, "data.decode": "scaled", "data.threads": 1},)),
            print,
        )

"""Search spaces: space files, their errors, values on a command line, and grids."""

import json
import time

import pytest

from inception_jax import config, recipe_files
from inception_jax.errors import UserError
from inception_jax.sweeps import overrides, space_file
from inception_jax.sweeps.parameters import from_json
from inception_jax.sweeps.space import Space, choice, integer, real

BASE = ["--config=configs/digits.py"]


@pytest.fixture
def load(tmp_path):
    """Loads a space file with the given text."""

    def loaded(text, base=BASE):
        (tmp_path / "space.py").write_text("from inception_jax.sweeps.space import choice, integer, real\n" + text)
        recipe, _ = recipe_files.load_config(list(base))
        return space_file.load(str(tmp_path / "space.py"), recipe, base)

    return loaded


def space_of(**parameters):
    fields = ", ".join(f'"{name.replace("__", ".")}": {text}' for name, text in parameters.items())
    return f"def get_space():\n    return {{{fields}}}\n"


MISTAKES = {
    "unknown field": (space_of(optimizer__learning_rat="real(0.1, 1)"), "optimizer.learning_rat: .*did you mean 'opt"),
    "prefix": (space_of(config__batch_size="integer(1, 8)"), "did you mean 'batch_size'"),
    "section": (space_of(optimizer="choice('sgd')"), "optimizer: the config has no such field"),
    "reversed": (
        space_of(batch_size="integer(8, 1)"),
        r"line 3: integer\(8, 1\): the first number must be the smallest",
    ),
    "log of 0": (space_of(optimizer__learning_rate="real(0, 1, log=True)"), "needs low > 0"),
    "log and step": (space_of(batch_size="integer(1, 8, log=True, step=2)"), "exclude each other"),
    "not a number": (space_of(batch_size="integer(1, 'x')"), "high = 'x'; it must be an int"),
    "infinite": (space_of(ema__decay="real(0, float('inf'))"), "it must be a finite number"),
    "real for int": (space_of(batch_size="real(1.5, 8.5)"), r"config.batch_size"),
    "end out of range": (space_of(optimizer__momentum="real(0.5, 1.0)"), "momentum = 1.0: it must be at least 0"),
    "choice out of range": (
        space_of(optimizer__name="choice('sgd', 'sdg')"),
        "optimizer.name = 'sdg': it must be one of 'sgd', .*; did you mean 'sgd'",
    ),
    "choice of a wrong type": (space_of(loss__aux_weights="choice((0.3, 0.3), 'no')"), "aux_weights"),
    "choice twice": (space_of(batch_size="choice(8, 8)"), "8 is given twice"),
    "nothing to choose": (space_of(batch_size="choice()"), "has no values"),
    "None that cannot be set": (space_of(batch_size="choice(None, 32)"), "config.batch_size=None: it needs a value"),
    "condition elsewhere": (
        space_of(batch_size="integer(1, 8, when={'optimizer.nam': 'sgd'})", optimizer__name="choice('sgd', 'adamw')"),
        "did you mean 'optimizer.name'",
    ),
    "condition that never holds": (
        space_of(
            batch_size="integer(1, 8, when={'optimizer.name': 'rmsprop'})", optimizer__name="choice('sgd', 'adamw')"
        ),
        "never holds",
    ),
    "condition on a range": (
        space_of(batch_size="integer(1, 8, when={'seed': 3})", seed="integer(0, 9)"),
        "seed, which is not a choice",
    ),
    "circle": (
        space_of(
            augmentation__flip="choice(True, False, when={'optimizer.nesterov': True})",
            optimizer__nesterov="choice(True, False, when={'augmentation.flip': True})",
        ),
        "in a circle",
    ),
    "not a parameter": (space_of(batch_size="[8, 16]"), r"batch_size = \[8, 16\]: it must be real"),
    "empty": ("def get_space():\n    return {}", r"get_space\(\) returned {}"),
    "neither function": ("def get_spac():\n    return {}", "did you mean 'get_spac'"),
    "syntax": ("def get_space(:\n", "line 2"),
    "an exception": ("def get_space():\n    return {}['x']\n", "line 3: KeyError: 'x'"),
    "exit": ("import sys\nsys.exit(3)", "line 3: SystemExit"),
    "no list": ("def get_trials():\n    return 7", r"get_trials\(\) returned 7"),
    "no trials": ("def get_trials():\n    return []", "returned no trial"),
    "no dict": ("def get_trials():\n    return [{}, 3]", r"get_trials\(\)\[1\] is 3"),
    "a value": ("def get_trials():\n    return [{'optimizer.name': 'x'}]", r"\[0\]: config.optimizer.name = 'x'"),
    "outside": (
        space_of(batch_size="integer(8, 16)") + "def get_trials():\n    return [{'batch_size': 17}]",
        r"get_trials\(\)\[0\]: batch_size = 17 is outside the space: 8 to 16",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_the_file(load, mistake):
    text, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as error:
        load(text)
    assert str(error.value).startswith("--space=") and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "space.py").write_text("")
    recipe, _ = recipe_files.load_config(BASE)
    with pytest.raises(UserError, match=r"the file does not exist; did you mean 'space.py'"):
        space_file.load(str(tmp_path / "spce.py"), recipe, BASE)


VALUES = {
    "optimizer.learning_rate": [1e-5, 0.1 + 0.2, 3, 1 / 3, 5e-324, 1.7976931348623157e308],
    "batch_size": [1, 48],
    "optimizer.nesterov": [True, False],
    "optimizer.name": ["sgd", "rmsprop"],
    "data.name": ["folder:a b/c=d,'e'", "digits", "None", "3"],
    "optimizer.clip_norm": [None, 0.25],
    "initialize.checkpoint": [None, "runs/a=b"],
    "loss.aux_weights": [None, (0.3, 0.3), (), (0.1,)],
    "augmentation.area": [(0.08, 1.0), (0.1 + 0.2, 1)],
    "optimizer.freeze": [("^conv1/", "it's"), ()],
    "optimizer.learning_rate_multipliers": [(("^a", 0.5), ("b", 2))],
    "model.options.bn_epsilon": [None, 1e-3],
    "model.options.five_by_five": [None, 3],
}


@pytest.mark.parametrize("field", VALUES)
def test_every_value_reaches_the_training_process_exactly(field):
    for value in VALUES[field]:
        recipe, _ = recipe_files.load_config([*BASE, *overrides.override_arguments({field: value})])
        found = dict(config.leaves(recipe))[field]
        assert found == value and isinstance(found, str) == isinstance(value, str)
        assert isinstance(found, bool) == isinstance(value, bool)


def test_a_value_that_would_come_back_as_another_is_refused():
    with pytest.raises(UserError, match=r"config.data.eval_split = 3: the training process would read it as '3'"):
        overrides.check(BASE, {"data.eval_split": 3})


def test_categories_of_any_kind_are_told_apart():
    assert choice("a", "b").encoded == ["a", "b"] and choice(1, 2).encoded == [1, 2]
    mixed = choice(1, True, 1.5, "1", None, (0.3, 0.3), (), "(0.3, 0.3)")
    assert len(set(mixed.encoded)) == 8 and all(isinstance(text, str) for text in mixed.encoded)
    for value in mixed.values:
        back = mixed.decode(mixed.encode(value))
        assert back == value and type(back) is type(value)
    assert mixed.encode(False) is None and mixed.encode([0.3, 0.3]) == "(0.3, 0.3)"


def test_a_grid_has_each_active_combination_once():
    space = Space(
        {
            "c": integer(1, 3, when={"b": [True]}),
            "a": choice("x", "y"),
            "b": choice(True, False, when={"a": "x"}),
        }
    )
    assert list(space.grid()) == [
        {"a": "x", "b": True, "c": 1},
        {"a": "x", "b": True, "c": 2},
        {"a": "x", "b": True, "c": 3},
        {"a": "x", "b": False},
        {"a": "y"},
    ]


@pytest.mark.parametrize(
    ("parameter", "points"),
    [
        (real(0, 1, grid=5), [0, 0.25, 0.5, 0.75, 1]),
        (real(1e-3, 1e-1, log=True, grid=3), pytest.approx([1e-3, 1e-2, 1e-1])),
        (real(0, 1, step=0.4), [0, 0.4, 0.8]),
        (integer(16, 128, log=True, grid=4), [16, 32, 64, 128]),
        (integer(1, 3, grid=9), [1, 2, 3]),
        (integer(8, 33, step=8), [8, 16, 24, 32]),
        (integer(2, 5), [2, 3, 4, 5]),
        (integer(2, 500), None),
        (real(0.5, 0.5), [0.5]),
        (real(0, 1), None),
    ],
)
def test_the_points_of_a_grid(parameter, points):
    assert parameter.points() == points
    assert all(parameter.encode(point) is not None for point in parameter.points() or [])


def test_spaces_of_too_many_values_are_refused_at_once():
    started = time.process_time()
    for make, message in (
        (lambda: choice(*range(100_000)), r"choice\(\) of 100,000 values; at most 1,000"),
        (lambda: real(0.0, 1.0, grid=10**9), "grid = 1000000000; at most 100,000 points"),
        (lambda: real(0.0, 1.0, step=1e-300), "more steps than an int64 counts"),
        (lambda: integer(0, 10**400), "high is not an int64"),
        (lambda: choice("a" * 10_000, "a" * 10_000), r"\(10,0.. characters\) is given twice"),
        (lambda: next(Space({"a": real(0.0, 1.0, step=1e-9)}).grid()), "a has more than 100,000 values"),
    ):
        with pytest.raises(UserError, match=message) as error:
            make()
        assert len(str(error.value)) < 1000
    assert time.process_time() - started < 1


def test_a_grid_that_has_no_end_is_refused():
    with pytest.raises(UserError, match=r"a \(0.0 to 1.0\) has infinitely many values; give the number of points"):
        list(Space({"a": real(0, 1)}).grid())
    with pytest.raises(UserError, match="more than 100,000 combinations"):
        list(Space({name: integer(0, 9) for name in "abcdef"}).grid())


def test_a_space_is_described_in_json_and_read_from_it():
    space = Space({"a": choice("x", (1, 2)), "b": real(0.1, 1, log=True, when={"a": "x"})})
    described = json.loads(json.dumps(space.to_json()))
    assert described[0]["field"] == "a" and described[0]["choices"] == ["x", [1, 2]]
    assert described[1] == {
        "field": "b",
        "kind": "real",
        "low": 0.1,
        "high": 1.0,
        "log": True,
        "step": None,
        "grid": None,
        "choices": None,
        "when": {"a": "x"},
    }
    assert {one["field"]: from_json(one) for one in described} == space.parameters
    for damage, needed in (
        ({"high": None}, "numbers 'low' and 'high'"),
        ({"low": "a"}, "numbers 'low' and 'high'"),
        ({"choices": 5}, "a list 'choices'"),
        ({"when": 3}, "an object 'when'"),
    ):
        with pytest.raises(UserError, match=f"study.json: the parameter b needs {needed}; restore a copy"):
            from_json({**described[1], **damage})

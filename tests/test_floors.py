"""The order of the packages: imports run downward, without a circle; `floors.py` has the floors."""

import collections
import re
from pathlib import Path

import inception_jax

from . import floors


def test_every_package_has_a_floor():
    assert {floors.package(module) for module in floors.module_imports()} == set(floors.FLOOR)


def test_imports_run_downward():
    assert floors.upward(floors.module_imports()) == []


def test_no_file_imports_itself_through_others():
    assert floors.circle(floors.module_imports()) == []


def test_an_upward_import_and_a_circle_are_seen():
    imports = {"data.loader": {"training.step"}, "training.step": {"data.loader"}}
    assert floors.upward(imports) == ["data.loader (floor 2) imports training.step (floor 7)"]
    assert set(floors.circle(imports)) == {"data.loader", "training.step"}


def test_models_can_be_lifted_out():
    imports = floors.module_imports()
    assert all(
        floors.package(name) == "models"
        for module in imports
        if floors.package(module) == "models"
        for name in imports[module]
    )


def test_a_class_name_means_one_thing():
    files = Path(inception_jax.__file__).parent.rglob("*.py")
    names = [name for file in files for name in re.findall(r"^class (\w+)", file.read_text(), re.MULTILINE)]
    assert {name for name, count in collections.Counter(names).items() if count > 1} == set()

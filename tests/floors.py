"""The packages of inception_jax in floors, and what imports what: `python tests/floors.py` prints them.

Imports run downward only. A package or module stands on the floor of its name below; lazy imports count as well. A
module of a package that is named there stands on a floor of its own: a command.
"""

from __future__ import annotations

import ast
import collections
import functools
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # the lowest first
    (
        "crc32c",
        "errors",
        "file_locks",
        "metric_definitions",
        "models",
        "progress_line",
        "ranges",
        "standard_streams",
        "tree_paths",
        "user_cache",
    ),
    ("command_line", "data", "extension_files", "metrics", "multihost", "patterns", "weight_files"),
    ("allowed_values", "checkpoints", "extensions"),
    ("schema",),
    ("config", "fault_injection", "runs"),
    ("network_tables", "recipe_files"),
    ("compare", "summary", "training"),
    ("benchmarks", "evaluation", "sweeps", "train"),
    ("benchmark", "data.show", "diagnostics", "features", "pretrained", "sweep"),
    ("__init__", "doctor", "evaluate", "extract", "parity", "predict", "score"),
    ("__main__", "convert", "exports"),
    ("export",),
)
FLOOR = {name: number for number, names in enumerate(FLOORS, 1) for name in names}


@functools.cache
def module_imports() -> dict[str, set[str]]:
    """{module: modules of inception_jax that it imports}, dotted, without "inception_jax."; the root is "__init__"."""
    files = {}
    for path in sorted((ROOT / "inception_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[: -1 if parts[-1] == "__init__" else None])] = path
    imports: dict[str, set[str]] = {}
    for module, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}:{node.lineno}: a relative import"
                found |= {
                    name if (name := f"{node.module}.{alias.name}") in files else str(node.module)
                    for alias in node.names
                }
        imports[_short(module)] = {_short(name) for name in found if name in files} - {_short(module)}
    return imports


def package(module: str) -> str:
    """The package or top-level module that a module belongs to; a command in a package is by itself."""
    return module if module in FLOOR else module.partition(".")[0]


def upward(imports: dict[str, set[str]]) -> list[str]:
    """Imports of a floor that is not below; a line each."""
    return [
        f"{module} (floor {FLOOR[package(module)]}) imports {name} (floor {FLOOR[package(name)]})"
        for module, names in imports.items()
        for name in sorted(names)
        if package(name) != package(module) and FLOOR[package(name)] >= FLOOR[package(module)]
    ]


def circle(imports: dict[str, set[str]]) -> list[str]:
    """The modules of one import circle, in order; [] where there is none."""
    try:
        graphlib.TopologicalSorter(imports).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def _short(module: str) -> str:
    return module.removeprefix("inception_jax").lstrip(".") or "__init__"


def main() -> None:
    """Prints the floors, the highest first, with each package's imports and their number."""
    imports = module_imports()
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for module, names in imports.items():
        counts[package(module)].update(package(name) for name in names if package(name) != package(module))
    for number, names in reversed(list(enumerate(FLOORS, 1))):
        for name in names:
            below = ", ".join(f"{other} {count}" for other, count in sorted(counts[name].items()))
            print(f"{number}  {name:13}  {below}")
    for line in [*upward(imports), *circle(imports)]:
        print("wrong:", line)


if __name__ == "__main__":
    main()

"""`python -m inception_jax.doctor`: says what of a run will fail, before it does; writes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from inception_jax import command_line, recipe_files

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def main(argv: list[str]) -> int:
    """Prints a line for each check: ok, warn or fail, with what to do. Returns 0, or 2 after a failed check."""
    arguments = command_line.parser("doctor", "Check installation, machine, recipe, data and workdir before a run.")
    recipe_files.add_config(arguments)
    command_line.add_processes(arguments)
    arguments.add_argument("--workdir", help="directory of the run; without --config, its config.json is the recipe")
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    flags, of_config = recipe_files.parse(arguments, argv)

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # another program may be using the GPU
    from inception_jax.diagnostics import examination, findings

    def load() -> ConfigDict:
        of_recipe = recipe_files.of_run(of_config, flags.workdir) if flags.workdir else of_config
        return recipe_files.load_config(of_recipe)[0]

    has_config = bool(of_config) or bool(flags.workdir and (Path(flags.workdir) / "config.json").is_file())
    found = []
    for one in examination.examine(flags, load if has_config else None):
        found.append(one)
        if not flags.json:
            print(findings.format_text([one]), flush=True)
    if flags.json:
        print(json.dumps(findings.to_json(found), indent=2))
    return findings.exit_code(found)


if __name__ == "__main__":
    command_line.run(main)

"""`python -m inception_jax.train`: trains a network from a recipe, or resumes a run."""

from __future__ import annotations

import json

from inception_jax import command_line


def main(argv: list[str]) -> int:
    """Trains, prints the result and returns the exit code."""
    arguments = command_line.parser("train", "Train a network, or resume a run.")
    command_line.add_config(arguments)
    command_line.add_processes(arguments)
    arguments.add_argument("--workdir", required=True, help="directory of the run; the same command resumes it")
    flags, config, _ = command_line.parse_with_config(arguments, argv)

    from inception_jax.multihost import processes
    from inception_jax.training import parallel
    from inception_jax.training.loop import train

    parallel.enable_compilation_cache()
    with processes.initialize(processes.find_launch(flags)):
        result, exit_code = train(config, flags.workdir)
        if processes.is_first():
            print(json.dumps(result, indent=2))
    return exit_code


if __name__ == "__main__":
    command_line.run(main)

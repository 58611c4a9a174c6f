"""`python -m inception_jax.train`: trains a network from a recipe, or resumes a run."""

from __future__ import annotations

import json

from inception_jax import command_line, recipe_files


def main(argv: list[str]) -> int:
    """Trains, prints the end of the run in three lines (`--json`: its result), and returns the exit code."""
    arguments = command_line.parser("train", "Train a network, or resume a run.")
    recipe_files.add_config(arguments)
    command_line.add_processes(arguments)
    arguments.add_argument(
        "--workdir",
        required=True,
        help="directory of the run, or an address such as gs://bucket/run; the same command resumes it, without "
        "--config, too: then the run's config.json is the recipe",
    )
    arguments.add_argument("--json", action="store_true", help="print the content of result.json, not the summary")
    flags, of_config = recipe_files.parse(arguments, argv)
    if recipe_files.recipe_of(of_config) is None:
        from inception_jax.runs import remote_workdir

        of_config = recipe_files.of_run(of_config, remote_workdir.local_copy(flags.workdir, checkpoints=False))
    config, _ = recipe_files.load_config(of_config)

    from inception_jax.multihost import processes
    from inception_jax.runs import conclusion
    from inception_jax.runs.result import to_json_values
    from inception_jax.training import parallel
    from inception_jax.training.loop import train

    parallel.enable_compilation_cache()
    with processes.initialize(processes.find_launch(flags)):
        result, exit_code = train(config, flags.workdir)
        if processes.is_first() and flags.json:
            print(json.dumps(to_json_values(result), indent=2))
        elif processes.is_first() and (text := conclusion.format_conclusion(flags.workdir, result)):
            print(text)
    return exit_code


if __name__ == "__main__":
    command_line.run(main)

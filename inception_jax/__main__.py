"""The console command: `inception-jax VERB …` is `python -m inception_jax.VERB …`; without a verb it lists them."""

from __future__ import annotations

import os
import sys

from inception_jax import standard_streams
from inception_jax.errors import ExitCode, nearest

VERBS = {
    "train": ("inception_jax.train", "train a network, or continue a run"),
    "doctor": ("inception_jax.doctor", "check installation, machine, recipe, data and workdir before a run"),
    "evaluate": ("inception_jax.evaluate", "evaluate a run's network on a split"),
    "predict": ("inception_jax.predict", "classify image files with a run's network"),
    "summary": ("inception_jax.summary", "show a network's layers, parameters and multiply-adds"),
    "benchmark": ("inception_jax.benchmark", "measure the speed and memory of a training step or of inference"),
    "sweep": ("inception_jax.sweep", "search hyperparameters with many runs"),
    "compare": ("inception_jax.compare", "compare runs, or list the runs below a folder"),
    "convert": ("inception_jax.convert", "import published weights into a workdir"),
    "export": ("inception_jax.export", "export a run's network: ONNX, StableHLO, a publisher's file, a hub"),
    "extract": ("inception_jax.extract", "write features, their statistics or the Fréchet distance"),
    "score": ("inception_jax.score", "FID, KID, Inception Score and other metrics of a generator"),
    "prepare": ("inception_jax.data.prepare", "prepare a data set"),
    "show": ("inception_jax.data.show", "draw a batch as the network sees it"),
}
"""{verb: (module that `python -m` runs, description)}."""


def main() -> int:
    """Replaces this process by `python -m` of the verb's module, so that both ways to start it are the same.

    The process keeps its id; `sys.argv`, the command in manifest.json, exit codes and worker processes are those of
    `python -m`.

    Returns:
      The exit code, where there is nothing to run: 0 after the list of verbs, 2 for an unknown verb.
    """
    standard_streams.prepare()
    verb, arguments = (sys.argv[1] if len(sys.argv) > 1 else "--help"), sys.argv[2:]
    if verb in VERBS:
        os.execv(sys.executable, [sys.executable, "-m", VERBS[verb][0], *arguments])
    if verb in ("-h", "--help", "help"):
        print(_format_help())
        return ExitCode.DONE
    print(f"error: unknown verb {verb!r}{nearest(verb, VERBS)}; verbs: {', '.join(VERBS)}", file=sys.stderr)
    return ExitCode.USER_ERROR


def _format_help() -> str:
    lines = [f"  {verb:11}{description}" for verb, (_, description) in VERBS.items()]
    return "\n".join(
        [
            "usage: inception-jax VERB [--OPTION=VALUE …]",
            "",
            *lines,
            "",
            "`inception-jax VERB --help` lists the options of a verb. `inception-jax VERB …` is",
            "`python -m inception_jax.VERB …` (prepare, show: `python -m inception_jax.data.prepare …`).",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())

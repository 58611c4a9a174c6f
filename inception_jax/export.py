"""`python -m inception_jax.export`: writes the network of a run for another program, or as a publisher's file."""

from __future__ import annotations

import argparse
import json

from inception_jax import command_line
from inception_jax.errors import UserError

_TARGETS = """\
    onnx          a graph with its weights, for onnxruntime and others (needs the extra onnx)
    stablehlo     a program for JAX without this package: jax.export.deserialize
    safetensors   our variables under their paths
    hub           a folder with config.json, model.safetensors and a card: inception_jax.load_pretrained loads it
    PUBLISHER     timm, torchvision, keras, …: the arrays under the publisher's names, for the publisher's own code
"""


def main(argv: list[str]) -> int:
    """Exports the network of a run, and prints where it is and what its input is."""
    arguments = command_line.parser("export", "Export the network of a run to another program.")
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.epilog = f"targets:\n{_TARGETS}"
    arguments.add_argument("--workdir", help="the run, or the output of convert")
    arguments.add_argument("--to", metavar="TARGET", help="see below")
    arguments.add_argument(
        "--output", metavar="PATH", help="the file (hub: the folder); default: in exports/ of the workdir"
    )
    arguments.add_argument("--weights", choices=("raw", "ema"), help="default: ema where the run keeps it")
    arguments.add_argument("--step", help="'best' or a step; default: the newest checkpoint")
    arguments.add_argument(
        "--endpoints", metavar="NAME,NAME", default="", help="of onnx and stablehlo: further outputs beside logits"
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    flags = arguments.parse_args(argv)
    if not flags.workdir:
        raise UserError("--workdir is missing")
    if not flags.to:
        raise UserError(f"--to is missing; targets: {', '.join(line.split()[0] for line in _TARGETS.splitlines())}")

    from inception_jax.exports import from_run

    result = from_run.export(
        flags.workdir,
        flags.to,
        flags.output,
        weights=flags.weights,
        step=command_line.step(flags.step),
        endpoints=[name for name in flags.endpoints.split(",") if name],
    )
    if flags.json:
        print(json.dumps(result))
    else:
        print(f"{result['output']}: {result['model']}, step {result['step']} ({result['weights']}), for {result['to']}")
        if "input" in result:
            print(f"images: {result['input']}")
        if "activation" in result:
            print(f"outputs: logits; the probabilities are their {result['activation']}")
    return 0


if __name__ == "__main__":
    command_line.run(main)

"""`python -m inception_jax.convert`: imports published weights as a workdir, exports a run's to a publisher's file."""

from __future__ import annotations

import argparse
import json
import os
from typing import TYPE_CHECKING, Any

from inception_jax import command_line
from inception_jax.errors import ArgumentParser, UserError

if TYPE_CHECKING:
    from inception_jax.pretrained.loading import LoadedWeights

_EXAMPLES = """\
    --list --model=inception_v3                               list the published files
    --download=timm/inception_v4.tf_in1k --output=FILE        download a file (needs a network; nothing else does)
    --weights=FILE --output=DIR                               import a file as a workdir for evaluate, predict,
                                                              compare, and train --config.initialize.checkpoint=DIR
    --workdir=RUN --to=torchvision --output=FILE.safetensors  export a run as a file that the publisher's code loads
                                                              (inception_jax.export: other targets, too)
    --verify                                                  compare our networks with the publishers' own code
                                                              (with --weights=FILE: the file's own weights)
"""

# The flags that each mode of the command reads.
_READS = {
    "list": {"model", "source", "json"},
    "download": {"output"},
    "to": {"workdir", "output", "run_weights", "step", "json"},
    "verify": {"model", "source", "weights", "set", "ignore", "torch_python", "tf_python", "write_ledger"},
    "import": {"model", "source", "record", "weights", "output", "background", "set", "ignore", "image_size", "data",
               "classes", "json"},
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the mode that the flags select, and prints the result and what was inferred."""
    arguments = _arguments()
    flags = arguments.parse_args(argv)
    mode = next((name for name in ("list", "download", "to", "verify") if getattr(flags, name)), "import")
    arguments.refuse_unread(
        _READS[mode] | {mode}, f"has no effect with --{mode}" if mode != "import" else "an import does not read it"
    )
    return {"list": _list, "download": _download, "to": _export, "verify": _verify, "import": _import}[mode](flags)


def _arguments() -> ArgumentParser:
    arguments = command_line.parser("convert", "Imports published weights, exports a run's weights, and verifies both.")
    arguments.formatter_class = argparse.RawDescriptionHelpFormatter
    arguments.epilog = f"modes:\n{_EXAMPLES}"
    arguments.add_argument("--weights", metavar="FILE", help="a publisher's file of weights, in any of their formats")
    arguments.add_argument("--output", metavar="PATH", help="the workdir to write; with --to and --download: the file")
    arguments.add_argument(
        "--model", metavar="NAME", help="the network; default: inferred from the names and shapes of the arrays"
    )
    arguments.add_argument("--source", metavar="NAME", help="the publisher; default: inferred in the same way")
    arguments.add_argument(
        "--record", metavar="NAME", help="the record of the published file (--list); its hash is checked"
    )
    arguments.add_argument(
        "--background",
        choices=("drop", "keep"),
        help="class 0 of 1001, 'background': drop it, so that classes and labels are ImageNet's 1000 (default where "
        "the publisher has it), or keep it",
    )
    command_line.add_options(
        arguments,
        "an option of create_model, for weights that differ from the published variant, such as "
        "width_multiplier=0.5; needs --model and --source, but for num_classes=0: no classifier; may be repeated",
    )
    arguments.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="a regular expression, searched for in the names of the file's arrays: a match is left out, such as a "
        "layer that was added for fine-tuning; may be repeated",
    )
    command_line.add_image_size(arguments, "height and width of the images; default: the publisher's")
    arguments.add_argument("--data", metavar="NAME", help="the data set of the classes; default for 1000: imagenet2012")
    arguments.add_argument(
        "--classes", metavar="FILE", help="file of class names, one a line; default for 1000: ImageNet's synsets"
    )
    arguments.add_argument("--to", metavar="SOURCE", help="export the run's weights under this publisher's names")
    arguments.add_argument("--workdir", metavar="RUN", help="with --to: the run's workdir")
    arguments.add_argument(
        "--run_weights", choices=("raw", "ema"), help="with --to; default: ema where the run has one"
    )
    arguments.add_argument("--step", help="with --to: 'best' or a step; default: the newest checkpoint")
    arguments.add_argument("--list", action="store_true", help="list the records of published files")
    arguments.add_argument("--download", metavar="RECORD", help="download a published file (needs a network)")
    arguments.add_argument("--verify", action="store_true", help="compare with the publishers' own code")
    arguments.add_argument(
        "--torch_python",
        metavar="PATH",
        help="--verify: the interpreter that has the PyTorch publishers' packages; default: "
        "INCEPTION_JAX_TORCH_PYTHON, then this one",
    )
    arguments.add_argument("--tf_python", metavar="PATH", help="--verify: the same for TensorFlow, Keras, slim, ONNX")
    arguments.add_argument(
        "--write_ledger",
        metavar="PAGE",
        help="--verify: save live results and goldens in the package, and update the table between the markers of "
        "this page, inception_jax/parity/README.md",
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return arguments


def _list(flags: argparse.Namespace) -> int:
    from inception_jax.models.registry import get_spec
    from inception_jax.pretrained import catalog, records
    from inception_jax.pretrained.publishers import registry

    if flags.model:
        get_spec(flags.model)
    if flags.source and not catalog.select_records(source=flags.source):
        registry.variants_of(flags.source)  # raises for an unknown name, with the nearest one
    found = catalog.select_records(flags.model, flags.source)
    if flags.json:
        print(json.dumps([record.to_json() for record in found], indent=2))
    else:
        print(records.format_records(found))
    return 0


def _download(flags: argparse.Namespace) -> int:
    from inception_jax.pretrained import catalog, downloading

    record = catalog.get_record(flags.download)
    if not flags.output:
        raise UserError("--output is missing: the file to write")
    checked = downloading.download(record, flags.output)
    print(f"{flags.output}: {record.name}, {checked}")
    return 0


def _export(flags: argparse.Namespace) -> int:
    for name in ("workdir", "output"):
        if not getattr(flags, name):
            raise UserError(f"--{name} is missing: --to needs a run (--workdir) and a file to write (--output)")
    from inception_jax.pretrained import exporting
    from inception_jax.runs import remote_workdir

    remote_workdir.refuse_address("--output", flags.output, "name a local file")
    step, workdir = command_line.step(flags.step), remote_workdir.local_copy(flags.workdir)
    result = exporting.export_run(workdir, flags.to, flags.output, weights=flags.run_weights, step=step)
    print(
        json.dumps(result)
        if flags.json
        else f"{result['file']}: {result['arrays']} arrays of {result['model']}, step {result['step']} "
        f"({result['weights']}), under {result['source']}'s names"
    )
    return 0


def _verify(flags: argparse.Namespace) -> int:
    # Many networks are compiled and each runs once: compile fast, run slowly.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    from inception_jax.parity import ledger, runs

    if not flags.weights:
        if flags.set:
            raise UserError(
                "--set: with --verify it needs --weights; without a file the published variants are compared"
            )
        return ledger.verify_variants(flags)
    if flags.write_ledger:
        raise UserError("--write_ledger: the ledger is of seeded weights; omit --weights")
    loaded = _load(flags)
    for finding in loaded.findings:
        print(finding)
    variant = loaded.imported.variant
    framework = runs.framework_of(variant.source)
    python = ledger.find_python(framework, getattr(flags, f"{framework}_python"))
    arrays = {name: array for name, array in loaded.weights.arrays.items() if name not in loaded.ignored}
    return 0 if ledger.verify_file(variant, arrays, python, _options(flags)) else 1


def _load(flags: argparse.Namespace) -> LoadedWeights:
    from inception_jax.pretrained import loading

    return loading.load_weights(
        flags.weights,
        model=flags.model,
        source=flags.source,
        record=flags.record,
        background=flags.background,
        options=_options(flags),
        ignore=flags.ignore,
        report=command_line.report,
    )


def _options(flags: argparse.Namespace) -> dict[str, Any]:
    """The options of `create_model` that --set gives."""
    differing = [name for name, value in flags.set if (name, value) != ("num_classes", 0)]
    if differing and not (flags.record or (flags.model and flags.source)):
        raise UserError(
            "--set: needs --model and --source; weights that differ from the published variant are not identified"
        )
    return dict(flags.set)


def _import(flags: argparse.Namespace) -> int:
    from inception_jax.pretrained import loading, workdir

    if flags.record:
        loading.get_usable_record(flags.record)  # before a file is asked for that would not help
    for name in ("weights", "output"):
        if not getattr(flags, name):
            raise UserError(
                f"--{name} is missing: --weights=FILE --output=DIR imports a file; see --help for the other modes"
            )
    from inception_jax.runs import remote_workdir

    remote_workdir.refuse_address("--output", flags.output, "name a local directory, and copy it to the address")
    loaded = _load(flags)
    config = workdir.config_of(loaded, image_size=flags.image_size, data=flags.data)
    count = loaded.imported.num_classes
    names = workdir.read_class_names(flags.classes, count) if flags.classes else workdir.class_names_of(loaded)
    new = workdir.write(flags.output, loaded, config, names)
    if flags.json:
        print(
            json.dumps(
                {**workdir.provenance(loaded), "workdir": flags.output, "new": new, "findings": list(loaded.findings)}
            )
        )
        return 0
    for finding in loaded.findings:
        print(finding)
    dropped = ", background dropped" if loaded.imported.background_dropped else ""
    print(f"images: {loaded.preprocessing.summary()}")
    classes = f"{count} classes{dropped}" if count else "no classifier"
    print(f"{flags.output}: {config.model.name}, {classes}{'' if new else '; it was there already'}")
    return 0


if __name__ == "__main__":
    command_line.run(main)

"""`python -m inception_jax.score`: FID, KID, Inception Score and other metrics of a generator's images."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from inception_jax import command_line
from inception_jax.errors import ArgumentParser, UserError, counted, nearest
from inception_jax.progress_line import ProgressLine
from inception_jax.ranges import MAX_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inception_jax.features.fid_network import FeatureNetwork
    from inception_jax.features.generative_metrics import MeasuredSet
    from inception_jax.features.image_sets import ImageSet

FID_WEIGHTS = "pytorch-fid/inception-2015-12-05"
_ONE_SET = ("is",)
# {flag: the metrics that read it}.
_READ_BY = {
    "kid_subsets": ("kid",),
    "kid_subset_size": ("kid",),
    "splits": ("is",),
    "seed": ("fid_infinity", "kid", "is"),
    "neighbors": ("precision", "recall", "density", "coverage"),
}
_OF_NETWORK = {"network", "input", "endpoint", "batch_size", "cache", "max_pixels"}


def main(argv: list[str]) -> int:
    """Prints metrics of fake images beside real ones, or writes the statistics of one set."""
    arguments = _arguments()
    flags = arguments.parse_args(argv)
    if len(flags.sets) not in (1, 2):
        raise UserError(f"{len(flags.sets)} sets of images; REAL and FAKE are needed, or REAL with --statistics")
    _check_network(flags.network)

    from inception_jax.features import generative_metrics

    given = flags.metrics or ("is" if len(flags.sets) == 1 and not flags.statistics else "fid")
    metrics = generative_metrics.check_metrics(given.split(","))
    if flags.statistics:
        if len(flags.sets) != 1:
            raise UserError(f"--statistics={flags.statistics}: it takes one set of images, not {len(flags.sets)}")
        if wrong := [name for name in metrics if name not in ("fid", "sfid")]:
            raise UserError(f"--metrics={wrong[0]}: --statistics writes what fid and sfid need")
        arguments.refuse({"bootstrap", "seed"}, "has no effect with --statistics")
    elif len(flags.sets) == 1 and (wrong := [name for name in metrics if name not in _ONE_SET]):
        raise UserError(f"--metrics={wrong[0]}: it needs two sets, REAL and FAKE; one is given")
    for flag, readers in _READ_BY.items():
        if not {*readers} & {*metrics} and not (flag == "seed" and flags.bootstrap):
            others = " and --bootstrap" if flag == "seed" else ""
            arguments.refuse({flag}, f"only the metrics {', '.join(readers)}{others} read it")
    return _run(arguments, flags, metrics)


def _arguments() -> ArgumentParser:
    arguments = command_line.parser("score", "Metrics of a generator: FID, KID, Inception Score, precision and recall.")
    arguments.add_argument(
        "sets",
        nargs="*",
        metavar="REAL FAKE",
        help="folder, pattern in quotes, dataset:NAME#SPLIT, or file: .npz or .npy of images or features "
        "(FILE.npz#ARRAY names one), or .npz of statistics (pytorch-fid's, ADM's, clean-fid's). One set alone: "
        "--metrics=is, or --statistics",
    )
    arguments.add_argument(
        "--metrics",
        metavar="NAME,NAME",
        help="of fid, fid_infinity, sfid, kid, is, precision, recall, density, coverage; default: fid",
    )
    arguments.add_argument(
        "--network",
        metavar="WEIGHTS",
        default=FID_WEIGHTS,
        help=f"a published file's name, a file of weights, or the workdir of a run; default: {FID_WEIGHTS}",
    )
    arguments.add_argument(
        "--input",
        help="the tool whose resize and normalization the network gets: pytorch-fid, torch-fidelity (also ADM), "
        "clean-fid, torchmetrics; or own, the crop of the network's run. Default: pytorch-fid for the network of the "
        "FID, own for others",
    )
    arguments.add_argument(
        "--endpoint", help="whose features are compared; default: the last one before the classifier"
    )
    arguments.add_argument("--batch_size", type=command_line.whole(1, MAX_BATCH), default=32, help="default: 32")
    arguments.add_argument(
        "--cache", metavar="FOLDER", help="keeps features here; the same command continues with them"
    )
    arguments.add_argument("--statistics", metavar="FILE.npz", help="write mean and covariance of one set, for later")
    arguments.add_argument(
        "--seed", type=command_line.whole(0), default=2020, help="of subsets, shuffles and resamples (2020)"
    )
    arguments.add_argument("--kid_subsets", type=command_line.whole(), default=100, help="default: 100")
    arguments.add_argument(
        "--kid_subset_size",
        type=command_line.whole(2),
        help="images of each set; default: 1000, or as many as the smaller set has",
    )
    arguments.add_argument("--splits", type=command_line.whole(), default=10, help="of the Inception Score (10)")
    arguments.add_argument("--neighbors", type=command_line.whole(), help="3 of precision and recall, 5 of density")
    arguments.add_argument(
        "--bootstrap", type=command_line.whole(2), metavar="N", help="95 %% intervals from N resamples; FID takes long"
    )
    arguments.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    command_line.add_max_pixels(arguments, "178,956,970")
    arguments.add_argument(
        "--image_key", metavar="NAME", help="of dataset:NAME#SPLIT: its column or feature of the images"
    )
    return arguments


def _run(arguments: ArgumentParser, flags: argparse.Namespace, metrics: tuple[str, ...]) -> int:
    from inception_jax.data import images
    from inception_jax.features import generative_metrics, image_sets, metric_notes

    options = generative_metrics.Options(
        seed=flags.seed,
        kid_subsets=flags.kid_subsets,
        kid_subset_size=flags.kid_subset_size,
        splits=flags.splits,
        neighbors=flags.neighbors or 3,
        density_neighbors=flags.neighbors or 5,
        bootstrap=flags.bootstrap or 0,
        batch_size=flags.batch_size,
    )
    if not any(name.startswith(image_sets.DATASET) for name in flags.sets):
        arguments.refuse({"image_key"}, f"only with {image_sets.DATASET}NAME#SPLIT")
    limit = flags.max_pixels or images.MAX_PIXELS
    sets = [image_sets.open_set(name, limit, flags.image_key) for name in flags.sets]
    roles = ("fake",) if len(sets) == 1 else ("real", "fake")
    network = None
    if any(generative_metrics.missing_outputs(*pair, metrics, options)[0] for pair in zip(sets, roles, strict=True)):
        from inception_jax.training import host_devices, parallel

        host_devices.use_two(flags.batch_size)
        parallel.enable_compilation_cache()
        network = _load_network(flags)
    else:
        arguments.refuse(_OF_NETWORK, "has no effect: no set has images whose features are needed")
    _check_inputs(sets, network)
    try:
        with ProgressLine() as progress:
            measured = [
                generative_metrics.measure(
                    one,
                    role,
                    metrics,
                    network,
                    options=options,
                    cache=flags.cache,
                    progress=lambda role, done, total: progress(
                        f"{role} images" if len(sets) > 1 else "images", done, total
                    ),
                )
                for one, role in zip(sets, roles, strict=True)
            ]
    except KeyboardInterrupt:
        if not flags.cache:
            raise
        raise KeyboardInterrupt(f"the same command continues with the features in {flags.cache}") from None
    if flags.statistics:
        return _write_statistics(flags, measured[0], metrics, network)
    real, fake = measured[0], measured[-1]
    found = generative_metrics.compute(real, fake, metrics, options)
    notes = [*metric_notes.notes(real, fake, metrics, found), *_notes_of_origin(sets, metrics, network)]
    _print(flags, network, sets, metrics, found, notes)
    return 0


def _check_network(name: str) -> None:
    """Refuses a network that is not there, before anything large is imported or read.

    Raises:
      UserError: with the nearest names of runs and of published files.
    """
    from pathlib import Path

    from inception_jax.data import storage
    from inception_jax.pretrained import catalog
    from inception_jax.runs import listing

    published = [record.name for record in catalog.all_records()]
    if name in published or storage.is_remote(name) or Path(name).exists():
        return
    runs = [str(run) for run in listing.runs_beside(Path(name))]
    raise UserError(
        f"--network={name}: neither a file, nor the workdir of a run, nor the name of a published one"
        f"{nearest(name, [*runs, *published], most=3)}; python -m inception_jax.convert --list shows all "
        f"{len(published)}, python -m inception_jax.compare --list FOLDER the runs"
    )


def _load_network(flags: argparse.Namespace) -> FeatureNetwork:
    from pathlib import Path

    from inception_jax.data import storage
    from inception_jax.evaluation import trained_network
    from inception_jax.features import fid_network
    from inception_jax.pretrained import hub, networks

    if storage.is_remote(flags.network) or (Path(flags.network).is_dir() and not hub.is_hub_folder(flags.network)):
        network = trained_network.load_workdir(flags.network, "--network")
    else:
        network = networks.load_pretrained(flags.network)
    return fid_network.feature_network(network, flags.input, flags.endpoint)


def _check_inputs(sets: list[ImageSet], network: FeatureNetwork | None) -> None:
    """Checks that statistics, features and images of the same call are of one input rule and one network."""
    rules = [(one, one.name, one.input) for one in sets if one.input]
    networks = [(one, one.name, one.network) for one in sets if one.network]
    if network is not None and rules:
        rules.append((rules[0][0], "the images", network.rule_name))
    if network is not None and networks:
        networks.append((networks[0][0], "the images", network.digest()))
    for _, name, rule in rules[1:]:
        first, _, known = rules[0]
        if rule != known:
            raise UserError(
                f"{first.name}: its {_content(first)} are of --input={known}, and {name} of --input={rule}; both sets "
                "must be of the same"
            )
    for _, name, digest in networks[1:]:
        first, _, known = networks[0]
        if digest != known:
            raise UserError(
                f"{first.name}: its {_content(first)} are of another network (weights, endpoint, dtype and image size: "
                f"{known}) than {name} ({digest}); make them anew with this --network and --endpoint"
            )


def _notes_of_origin(sets: list[ImageSet], metrics: tuple[str, ...], network: FeatureNetwork | None) -> Iterator[str]:
    """Yields what is not known of statistics and features that another tool wrote, and images are compared with."""
    by_statistics = {"fid", "sfid", "fid_infinity"} & {*metrics}
    for one in sets:
        used = one.features is not None or (one.statistics and by_statistics)
        if network is not None and used and not (one.input and one.network):
            yield (
                f"{one.name}: its {_content(one)} do not say their input and network; they must be of "
                f"--input={network.rule_name} and this network"
            )


def _content(one: ImageSet) -> str:
    return "statistics" if one.features is None else "features"


def _write_statistics(
    flags: argparse.Namespace, measured: MeasuredSet, metrics: tuple[str, ...], network: FeatureNetwork | None
) -> int:
    from inception_jax.features.archive import RowArchive
    from inception_jax.features.generative_metrics import METRICS

    arrays: dict[str, Any] = {} if measured.count is None else {"count": measured.count}
    if network is not None:
        arrays |= {"input": network.rule_name, "network": network.digest()}
    for name in metrics:
        suffix = {"pool": "", "spatial": "_s"}[METRICS[name]]
        arrays[f"mu{suffix}"], arrays[f"sigma{suffix}"] = measured.statistics(METRICS[name], name)
    with RowArchive(flags.statistics) as archive:
        archive.close(**arrays)
    shown = {"output": flags.statistics, "images": measured.count}
    print(json.dumps(shown) if flags.json else f"{flags.statistics}: statistics of {measured.count:,} images")
    return 0


def _print(
    flags: argparse.Namespace,
    network: FeatureNetwork | None,
    sets: list[Any],
    metrics: tuple[str, ...],
    found: dict[str, Any],
    notes: list[str],
) -> None:
    rule = None if network is None else network.rule_name
    if flags.json:
        roles = ("fake",) if len(sets) == 1 else ("real", "fake")
        shown: dict[str, Any] = {
            role: {"set": one.name, "images": one.count} for role, one in zip(roles, sets, strict=True)
        }
        shown |= {"input": rule, "network": flags.network if network else None, "notes": notes}
        print(json.dumps(found | shown))
        return
    for name in metrics:
        deviation = found.get(f"{name}_std")
        extra = "" if deviation is None else f" ± {deviation:.3g} over {_parts_of(name, found)}"
        if f"{name}_interval" in found:
            low, high = found[f"{name}_interval"]
            extra += f" (95 %: {low:.6g} to {high:.6g})"
        print(f"{name:12} {found[name]:.6g}{extra}")
    if rule:
        print(f"network: {flags.network}, input as {rule}")
    for line in notes:
        print(f"note: {line}")


def _parts_of(metric: str, found: dict[str, Any]) -> str:
    if metric == "is":
        return "splits"
    return f"{found['kid_subsets']} subsets of {counted(found['kid_subset_size'], 'image')}"


if __name__ == "__main__":
    command_line.run(main)

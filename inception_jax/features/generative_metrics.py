"""Metrics of a generator by their names: FID, KID, Inception Score and others of two sets of images."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from inception_jax.errors import UserError, must_be_one_of
from inception_jax.features import feature_rows, frechet_estimates, manifolds
from inception_jax.features.feature_store import FeatureStore
from inception_jax.features.image_sets import ImageSet
from inception_jax.features.maximum_mean_discrepancy import KernelDistance, kernel_distance, squared_mmd
from inception_jax.features.prediction_divergence import inception_score
from inception_jax.features.statistics import Moments, frechet_distance

if TYPE_CHECKING:  # features and statistics need no JAX
    from inception_jax.features.fid_network import FeatureNetwork

METRICS = {
    "fid": "pool",
    "fid_infinity": "pool",
    "sfid": "spatial",
    "kid": "pool",
    "is": "logits",
    "precision": "pool",
    "recall": "pool",
    "density": "pool",
    "coverage": "pool",
}
"""{metric: the output of `FeatureNetwork` that it is computed of}."""

ROWS = frozenset(METRICS) - {"fid", "sfid"}
"""The metrics that need the features of every image; the others need mean and covariance alone."""


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the metrics; the defaults are those of the papers and of torch-fidelity.

    Attributes:
      seed: of subsets, shuffles and resamples.
      kid_subsets: subsets of KID.
      kid_subset_size: images of each set in a subset; None: 1000, or as many as the smaller set has.
      splits: of the Inception Score.
      neighbors: k of precision and recall.
      density_neighbors: k of density and coverage.
      points: of FID-infinity.
      bootstrap: resamples for the standard error of each metric; 0: none.
      batch_size: images per step of the network.
    """

    seed: int = 2020
    kid_subsets: int = 100
    kid_subset_size: int | None = None
    splits: int = 10
    neighbors: int = 3
    density_neighbors: int = 5
    points: int = 15
    bootstrap: int = 0
    batch_size: int = 32


@dataclasses.dataclass
class MeasuredSet:
    """What is known of one set: features, or their mean and covariance, of each output.

    Attributes:
      name: "real" or "fake".
      count: images; None: not known.
      rows: {output: [count, C]}.
      moments: {output: (mean, covariance)}, in float64.
    """

    name: str
    count: int | None
    rows: dict[str, np.ndarray]
    moments: dict[str, tuple[np.ndarray, np.ndarray]]

    def features(self, output: str, metric: str) -> np.ndarray:
        """The features of an output.

        Raises:
          UserError: only statistics are there, or features of another output.
        """
        if output not in self.rows:
            if self.rows:
                raise UserError(
                    f"{metric}: it needs the {self.name} images; a file of features is given, without {output}"
                )
            raise UserError(
                f"{metric}: it needs the {self.name} images or their features; a file of statistics is given"
            )
        return self.rows[output]

    def statistics(self, output: str, metric: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of an output; those of features are computed once.

        Raises:
          UserError: the file of statistics has not this output's, or there are fewer than two images.
        """
        if output not in self.moments:
            if output not in self.rows:
                raise UserError(
                    f"{metric}: the file of the {self.name} images has no statistics for it (mu_s, sigma_s)"
                )
            moments = frechet_estimates.moments_of(self.rows[output])
            self.moments[output] = moments.mean, moments.covariance()
        return self.moments[output]


def check_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of metrics.

    Raises:
      UserError: an unknown one, one that is named twice, or none.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"metric {name!r}: {must_be_one_of(name, METRICS)}")
        if names.count(name) > 1:
            raise UserError(f"metric {name!r} is named twice")
    if not names:
        raise UserError(f"no metric is named; metrics: {', '.join(METRICS)}")
    return tuple(names)


def missing_outputs(
    images: ImageSet, role: str, metrics: Collection[str], options: Options = Options()
) -> tuple[list[str], bool]:
    """The outputs of a network that `measure` computes of a set's images: what its file has is not computed again.

    Args:
      images: from `image_sets.open_set`.
      role: "real" or "fake".
      metrics: names of `METRICS`.
      options: see `Options`.

    Returns:
      Their names, and whether the features of each image are needed, or mean and covariance alone.
    """
    if role == "real":
        metrics = [name for name in metrics if name != "is"]
    needs_rows = bool(ROWS & {*metrics}) or options.bootstrap > 0
    # FID-infinity reads the statistics of the real images alone.
    if role == "real" and not options.bootstrap and {*metrics} <= {"fid", "sfid", "fid_infinity"}:
        needs_rows = False
    if images.read is None:
        return [], needs_rows
    there = set() if needs_rows else {*images.statistics}
    if images.features is not None:
        there.add("pool")
    return sorted({METRICS[name] for name in metrics} - there), needs_rows


def measure(
    images: ImageSet,
    role: str,
    metrics: Collection[str],
    network: FeatureNetwork | None,
    *,
    options: Options = Options(),
    cache: str | os.PathLike | None = None,
    progress: Callable[[str, int, int], None] = lambda role, done, total: None,
) -> MeasuredSet:
    """Computes what metrics need of a set of images, and takes what its file has.

    Args:
      images: from `image_sets.open_set`.
      role: "real" or "fake".
      metrics: names of `METRICS`.
      network: None: the set must have what is needed.
      options: see `Options`.
      cache: a folder in which features are kept, and from which an interrupted call continues.
      progress: is called with (role, images done, images in all).

    Raises:
      UserError: what is needed is not there and cannot be computed.
    """
    found = MeasuredSet(role, images.count, {}, {key: value for key, value in images.statistics.items()})
    if images.features is not None:
        for _ in feature_rows.blocks(images.features, name=images.name):
            pass  # a value that is not finite is an error
        found.rows["pool"] = images.features
    missing, needs_rows = missing_outputs(images, role, metrics, options)
    if not missing:
        return found
    if network is None:
        raise UserError(f"{images.name}: a network is needed to compute the features of images")
    assert images.count is not None and images.read is not None
    widths = network.widths(missing)
    identity = {
        "images": f"{images.identity} ({images.count})",
        "network": network.digest() if cache else "",
        "outputs": widths,
    }
    # Of fewer images than features, the features take less memory than two matrices [C, C], and FID less time.
    few = images.count <= min(widths.values())
    with FeatureStore(cache, role, identity, images.count, only_moments=not (needs_rows or few)) as store:
        if store.done < images.count:
            for batch in network.rows(images.read, store.done, images.count, store.incomplete, options.batch_size):
                for rows in batch.values():
                    feature_rows.finite(rows, store.done, images.name)
                store.add(batch)
                progress(role, store.done, images.count)
    for output in missing:
        rows, moments = store.rows(output), store.moments(output)
        if rows is not None:
            found.rows[output] = rows
        elif moments is not None:
            found.moments[output] = moments.mean, moments.covariance()
    return found


def compute(
    real: MeasuredSet, fake: MeasuredSet, metrics: Sequence[str], options: Options = Options()
) -> dict[str, Any]:
    """Computes metrics of two sets.

    Args:
      real: from `measure`.
      fake: from `measure`.
      metrics: names of `METRICS`.
      options: see `Options`.

    Returns:
      {metric: its value, float; "kid_std", "is_std" (None: of one value there is none), "kid_subsets",
      "kid_subset_size", "fid_slope"; with `bootstrap`, "METRIC_error" and "METRIC_interval" [low, high]}.

    Raises:
      UserError: a set lacks what a metric needs, has too few images, or values that are not finite or too large.
    """
    found: dict[str, Any] = {}
    pairs: dict[str, Any] = {}
    for name in check_metrics(metrics):
        output = METRICS[name]
        if name in ("fid", "sfid"):
            found[name] = _frechet(real, fake, output, name)
        elif name == "fid_infinity":
            moments = _as_moments(*real.statistics(output, name))
            line = frechet_estimates.fid_infinity(
                moments, fake.features(output, name), points=options.points, seed=options.seed
            )
            found |= {name: line.value, "fid_slope": line.slope}
        elif name == "is":
            score = inception_score(fake.features(output, name), splits=options.splits, seed=options.seed)
            found |= {name: score.mean, "is_std": score.std if options.splits > 1 else None}
        elif name == "kid":
            kid = _kid(real.features(output, name), fake.features(output, name), options)
            found |= {name: kid.mean, "kid_std": kid.std}
            found |= {"kid_subsets": len(kid.values), "kid_subset_size": kid.subset_size}
        else:
            key = "precision_recall" if name in ("precision", "recall") else "density_coverage"
            if key not in pairs:
                pairs[key] = _neighbors(key, real.features(output, name), fake.features(output, name), options)
            found[name] = getattr(pairs[key], name)
        if not math.isfinite(found[name]):
            raise UserError(f"{name}: {found[name]}: the features are too large for float64")
    if options.bootstrap:
        found |= _intervals(real, fake, metrics, found, options)
    return found


def _as_moments(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments with this mean and covariance; two rows stand for all."""
    moments = Moments(len(mean))
    moments.merge(2, mean, covariance)
    return moments


def _frechet(real: MeasuredSet, fake: MeasuredSet, output: str, metric: str) -> float:
    if output in real.rows and output in fake.rows and not {output} & (real.moments.keys() | fake.moments.keys()):
        return frechet_estimates.distance_of_rows(real.rows[output], fake.rows[output])
    sizes = [
        one.rows[output].shape[1] if output in one.rows else len(one.statistics(output, metric)[0])
        for one in (real, fake)
    ]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{metric}: {sizes[0]:,} features of the real images and {sizes[1]:,} of the fake ones; both sets must be "
            "features of the same endpoint"
        )
    for one, other in ((fake, real), (real, fake)):
        if output in one.rows and output not in one.moments and 2 <= len(one.rows[output]) <= sizes[0]:
            return frechet_estimates.distance_to_statistics(one.rows[output], *other.statistics(output, metric))
    return frechet_distance(*real.statistics(output, metric), *fake.statistics(output, metric))


def _kid(real: np.ndarray, fake: np.ndarray, options: Options) -> KernelDistance:
    size = options.kid_subset_size or min(1000, len(real), len(fake))
    return kernel_distance(real, fake, subsets=options.kid_subsets, subset_size=size, seed=options.seed)


def _neighbors(key: str, real: np.ndarray, fake: np.ndarray, options: Options) -> Any:
    if key == "precision_recall":
        return manifolds.precision_recall(real, fake, neighbors=options.neighbors)
    return manifolds.density_coverage(real, fake, neighbors=options.density_neighbors)


def _intervals(
    real: MeasuredSet, fake: MeasuredSet, metrics: Sequence[str], found: dict[str, Any], options: Options
) -> dict[str, Any]:
    """Bootstrap standard errors and intervals.

    Raises:
      UserError: a metric has none.
    """
    metric_of: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "fid": frechet_estimates.distance_of_rows,
        "sfid": frechet_estimates.distance_of_rows,
        "kid": lambda x, y: squared_mmd(feature_rows.finite(x), feature_rows.finite(y)),
        "is": lambda _, y: inception_score(y, splits=options.splits, seed=options.seed).mean,
    }
    intervals: dict[str, Any] = {}
    for name in metrics:
        if name not in metric_of:
            raise UserError(
                f"--bootstrap: no interval of {name}: of {', '.join(metric_of)} alone. Images that are drawn twice are "
                "neighbors at distance 0, and FID-infinity has its line"
            )
        first, second = (one.features(METRICS[name], name) for one in (fake if name == "is" else real, fake))
        interval = frechet_estimates.bootstrap(
            metric_of[name], first, second, found[name], resamples=options.bootstrap, seed=options.seed
        )
        intervals |= {f"{name}_error": interval.error, f"{name}_interval": [interval.low, interval.high]}
    return intervals

"""Notes beside the metrics of a generator: what a reader must know of the numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from inception_jax.errors import counted
from inception_jax.features.generative_metrics import METRICS, MeasuredSet

FEW_IMAGES = 500
"""Of fewer images than these, a note says that the metrics of `_NOISY` are noisy."""

PUBLISHED_IMAGES = 50_000
"""Images of published Inception Scores."""

_NOISY = ("kid", "precision", "recall", "density", "coverage")


def notes(real: MeasuredSet, fake: MeasuredSet, metrics: Collection[str], found: dict[str, Any]) -> list[str]:
    """What a reader must know of the numbers, a line each: few images, bias, resamples."""
    lines = []
    for one in (real, fake):
        for output in sorted({METRICS[name] for name in metrics} & {"pool", "spatial"}):
            metric = {"pool": "FID", "spatial": "sFID"}[output]
            if metric.lower() not in metrics:
                continue
            width = len(one.statistics(output, metric)[0]) if output in one.moments else one.rows[output].shape[1]
            if one.count is not None and one.count < width:
                lines.append(
                    f"{counted(one.count, f'{one.name} image')}, fewer than the {width:,} features: their covariance "
                    f"is singular, and {metric} is far above that of many images"
                )
            elif one.count is None and one.name == "fake":
                lines.append(f"the file of the fake images does not say how many they are: {metric}'s bias is unknown")
    lines += _notes_of_bias(fake, metrics, found)
    lines += _notes_of_rows(real, fake, metrics, found)
    if any(key.endswith("_error") for key in found):
        lines.append("intervals: 95 %, value ± 1.96 bootstrap standard errors; they do not include the bias")
    return lines


def _notes_of_bias(fake: MeasuredSet, metrics: Collection[str], found: dict[str, Any]) -> Iterator[str]:
    """Yields the notes of metrics whose expectation changes with the number of images."""
    if fake.count is None:
        return
    if "fid" in metrics and "fid_slope" in found:
        bias = found["fid_slope"] / fake.count
        yield f"FID of {fake.count:,} fake images is above its limit by about {bias:.4g} (slope / images)"
    elif "fid" in metrics:
        yield (
            f"FID of {fake.count:,} fake images is biased upward, in proportion to 1 / images: compare only equal "
            "numbers, or --metrics=fid_infinity"
        )
    if "sfid" in metrics:
        yield (
            f"sFID of {fake.count:,} fake images is biased upward, in proportion to 1 / images: compare only equal "
            "numbers"
        )
    if "is" in metrics and fake.count < PUBLISHED_IMAGES:
        yield (
            f"is of {fake.count:,} images is biased downward, the more the fewer images a split has; published scores "
            f"are of {PUBLISHED_IMAGES:,} images in 10 splits"
        )


def _notes_of_rows(
    real: MeasuredSet, fake: MeasuredSet, metrics: Collection[str], found: dict[str, Any]
) -> Iterator[str]:
    """Yields the notes of metrics that compare images one by one."""
    if not (noisy := [name for name in _NOISY if name in metrics]):
        return
    counts = {one.name: len(one.rows["pool"]) for one in (real, fake)}
    named = " and ".join(counted(count, f"{name} image") for name, count in counts.items())
    if "kid" in metrics and found["kid_std"] is None:
        yield (
            f"kid of {named} is one value without a deviation over subsets; --kid_subsets above 1 of a "
            f"--kid_subset_size below {min(counts.values()):,} gives one"
        )
    elif "kid" in metrics and found["kid_subset_size"] == min(counts.values()):
        smaller, larger = sorted(counts, key=lambda name: counts[name])
        yield (
            f"each subset of kid has all {counted(counts[smaller], f'{smaller} image')}: its deviation is that of the "
            f"choice of {larger} images alone"
        )
    if min(counts.values()) < FEW_IMAGES:
        yield (
            f"{', '.join(noisy)} of {named}: few images, noisy values; other images of the same sources give others. "
            f"Give {FEW_IMAGES:,} or more of each"
        )

"""Measures what each augmentation costs: milliseconds of the processor per image of 224 pixels.

    python experiments/input_rate/augmentation_cost.py [--rounds=9] [--output=FILE.json]

Host: one call per image. Device: the compiled program for a batch of 32 on the CPU, less that of the conversion to
float32 alone. Beside those of the device, the same on the host with OpenCV, Pillow and NumPy. In each round every one
is measured once, in turn; the result is the median over the rounds, of processor time (all threads).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageEnhance

from inception_jax.data import images, sampling
from inception_jax.data.policies import Policy
from inception_jax.training import device_augmentation, photometric
from inception_jax.training.device_augmentation import DeviceAugmentation, Erasing
from inception_jax.training.mixing import Mixing
from inception_jax.training.step import example_keys

SIDE, BATCH = 224, 32


def photograph(height: int, width: int) -> np.ndarray:
    """An image with edges and smooth places, as photographs have: uint8 [height, width, 3]."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (12, 16, 3), np.uint8)
    noise = random.integers(-20, 21, (height, width, 3))
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC) + noise, 0, 255).astype(np.uint8)


def host_augmentations() -> dict[str, Callable[[], object]]:
    """{name: works on a whole batch}."""
    image, numbers = photograph(375, 500), sampling.uniforms(0, 0, BATCH)
    cropped = images.augment(image, SIDE, numbers[0], images.Augmentation())
    out = np.empty_like(cropped)

    def crops(**options: object) -> Callable[[], object]:
        rule = images.Augmentation(**options)
        return lambda: [images.augment(image, SIDE, row, rule, out) for row in numbers]

    def policy(*options: object) -> Callable[[], object]:
        rule = Policy(*options)
        return lambda: [rule(cropped, row) for row in numbers]

    return {
        "crop and flip": crops(),
        "crop and flip, interpolation=random": crops(interpolation="random"),
        "policy=randaugment (2 operations)": policy("randaugment", 2, 9),
        "policy=trivialaugment_wide": policy("trivialaugment_wide"),
    }


def device_augmentations() -> dict[str, Callable[[], object]]:
    """{name: works on a whole batch}; the first is the conversion alone."""
    rows = jnp.arange(BATCH, dtype=jnp.int32)
    pixels = jnp.asarray(np.stack([photograph(SIDE, SIDE)] * BATCH))
    mask, keys = jnp.ones(BATCH, bool), example_keys(0, jnp.int32(0), rows)
    found: dict[str, Callable[[], object]] = {}
    for name, augmentation in {
        "": DeviceAugmentation(),
        **{f"photometric={method}": DeviceAugmentation(method) for method in photometric.METHODS},
        "lighting": DeviceAugmentation(lighting=0.1),
        "random erasing": DeviceAugmentation(erasing=Erasing(0.5)),
        "random erasing, fill zero": DeviceAugmentation(erasing=Erasing(0.5, fill="zero")),
        "mixup": DeviceAugmentation(mixing=Mixing(mixup_alpha=0.2)),
        "CutMix": DeviceAugmentation(mixing=Mixing(cutmix_alpha=1.0)),
    }.items():

        def run(pixels: jax.Array, keys: jax.Array, augmentation: DeviceAugmentation = augmentation) -> object:
            result, labels = device_augmentation.augment(
                pixels, rows, mask, keys, augmentation, mean=(127.5,) * 3, dtype=jnp.float32
            )
            return result / 127.5 - 1.0, labels

        compiled = jax.jit(run).lower(pixels, keys).compile()
        found[name] = lambda compiled=compiled: jax.block_until_ready(compiled(pixels, keys))
    return found


def on_the_host() -> dict[str, Callable[[], object]]:
    """What the device does, on the host, with the fastest library at hand; for a whole batch."""
    random = np.random.default_rng(0)
    one, other = photograph(SIDE, SIDE), photograph(SIDE, SIDE)[::-1].copy()
    components = np.asarray(photometric.EIGENVECTORS) * photometric.EIGENVALUES

    def howard() -> None:
        image = Image.fromarray(one)
        for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = kind(image).enhance(0.8)
        np.asarray(image)

    def slim() -> None:
        pixels = one.astype(np.float32) / 255 + 0.05
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = np.minimum(hsv[..., 1] * 1.2, 1)
        hsv[..., 0] = (hsv[..., 0] + 20) % 360
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        np.clip((pixels - pixels.mean((0, 1))) * 0.9 + pixels.mean((0, 1)), 0, 1)

    def lighting() -> None:
        one.astype(np.float32) + (components @ random.normal(0, 25.5, 3)).astype(np.float32)

    def erase() -> None:
        image = one.copy()
        image[30:120, 40:150] = random.integers(0, 256, (90, 110, 3), np.uint8)

    def mixup() -> None:
        cv2.addWeighted(one, 0.3, other, 0.7, 0)

    def cutmix() -> None:
        image = one.copy()
        image[30:120, 40:150] = other[30:120, 40:150]

    named = {
        "photometric=howard": howard, "photometric=slim": slim, "lighting": lighting, "random erasing": erase,
        "mixup": mixup, "CutMix": cutmix,
    }  # fmt: skip
    return {name: lambda run=run: [run() for _ in range(BATCH)] for name, run in named.items()}


def main() -> None:
    """Measures, and prints a table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--output", type=Path)
    options = arguments.parse_args()
    places = {"host": host_augmentations(), "device": device_augmentations(), "host instead": on_the_host()}
    runs = {(place, name): run for place, named in places.items() for name, run in named.items()}
    times: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
    for _ in range(options.rounds):
        for key, run in runs.items():
            run()
            start = time.process_time()
            run()
            times[key].append(1000 * (time.process_time() - start) / BATCH)
    found: dict[str, dict[str, float]] = {place: {} for place in places}
    for (place, name), measured in times.items():
        if place == "device":
            measured = [a - b for a, b in zip(measured, times["device", ""], strict=True)]
        if name:
            found[place][name] = statistics.median(measured)
    for place, named in found.items():
        for name, value in named.items():
            print(f"{place:13} {name:38} {value:7.3f} ms per image")
    if options.output:
        content = {"pixels": SIDE, "batch": BATCH, "rounds": options.rounds, "jax": jax.__version__}
        options.output.write_text(json.dumps(content | {"cpu_milliseconds_per_image": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Makes class folders of JPEGs of 500 x 375 pixels and 110 kB, crops of photographs in scikit-image and scikit-learn.

    pip install scikit-image scikit-learn
    python experiments/input_rate/corpus.py --output=runs/jpegs

See README.md beside this file. Needs no other package of this repository.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

WIDTH, HEIGHT, QUALITY = 500, 375, 97
NOISE = 4.0  # standard deviation, of 255: enlarged crops alone are smoother than photographs, and so their files small


def photographs() -> list[np.ndarray]:
    """uint8 [height, width, 3], of 451x300 to 741x500 pixels."""
    motorcycle = skimage.data.stereo_motorcycle()[0]
    local = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), skimage.data.rocket(), motorcycle]
    return local + [sklearn.datasets.load_sample_image(name) for name in ("china.jpg", "flower.jpg")]


def crop(image: np.ndarray, random: np.random.RandomState) -> Image.Image:
    """A random crop of the aspect ratio, resized, with noise."""
    scale = random.uniform(0.6, 1.0) * min(image.shape[0] / HEIGHT, image.shape[1] / WIDTH)
    height, width = int(scale * HEIGHT), int(scale * WIDTH)
    top, left = random.randint(image.shape[0] - height + 1), random.randint(image.shape[1] - width + 1)
    part = Image.fromarray(image[top : top + height, left : left + width])
    resized = np.asarray(part.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray((resized + random.normal(0, NOISE, resized.shape)).clip(0, 255).astype(np.uint8))


def main() -> None:
    """Writes OUTPUT/train/CLASS/*.jpg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--images", type=int, default=700)
    flags = parser.parse_args()
    random, sources, total = np.random.RandomState(0), photographs(), 0
    for number in range(flags.images):
        label = number % len(sources)
        path = flags.output / "train" / f"{label}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        crop(sources[label], random).save(path, quality=QUALITY, subsampling="4:2:0")
        total += path.stat().st_size
    print(f"{flags.output}: {flags.images} images, {total / flags.images / 1000:.0f} kB each")


if __name__ == "__main__":
    main()

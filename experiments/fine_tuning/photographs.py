"""Makes class folders of crops of four photographs inside scikit-image and scikit-learn, with held-out regions.

    pip install scikit-image scikit-learn
    python experiments/fine_tuning/photographs.py --output=runs/photographs

See README.md beside this file. Needs no other package of this repository.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import skimage.data
import skimage.io
import sklearn.datasets

BLOCK, CROP = 80, 72  # pixels, by default; a crop lies inside one block
CROPS = {"train": 40, "test": 20}  # per class


def photographs() -> dict[str, np.ndarray]:
    """The photographs by class: uint8 [height, width, 3], of 451x300 to 640x427 pixels."""
    return {
        "cat": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "flower": sklearn.datasets.load_sample_image("flower.jpg"),
        "temple": sklearn.datasets.load_sample_image("china.jpg"),
    }


def crops(
    image: np.ndarray, split: str, random: np.random.RandomState, block: int = BLOCK, crop: int = CROP
) -> list[np.ndarray]:
    """Crops at random positions inside the blocks of one split, the blocks in turn.

    The image is divided into blocks; every fourth one, shifted from row to row, is held out for "test". So crops of the
    two splits share no pixel.
    """
    rows, columns = (size // block for size in image.shape[:2])
    held_out = [(row + 2 * column) % 4 == 0 for row in range(rows) for column in range(columns)]
    blocks = [divmod(number, columns) for number, is_test in enumerate(held_out) if is_test == (split == "test")]
    found = []
    for row, column in itertools.islice(itertools.cycle(blocks), CROPS[split]):
        top, left = (block * index + random.randint(block - crop + 1) for index in (row, column))
        found.append(image[top : top + crop, left : left + crop])
    return found


def main() -> None:
    """Writes OUTPUT/train/CLASS/*.png and OUTPUT/test/CLASS/*.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument("--block", type=int, default=BLOCK, help="pixels of a block's side")
    parser.add_argument("--crop", type=int, default=CROP, help="pixels of a crop's side, at most those of a block")
    flags = parser.parse_args()
    random = np.random.RandomState(0)
    for name, image in photographs().items():
        for split in CROPS:
            folder = flags.output / split / name
            folder.mkdir(parents=True)
            for number, crop in enumerate(crops(image, split, random, flags.block, flags.crop)):
                skimage.io.imsave(folder / f"{number:02d}.png", crop, check_contrast=False)
    print(
        f"{flags.output}: {len(photographs())} classes, {CROPS['train']} training and {CROPS['test']} test crops each"
    )


if __name__ == "__main__":
    main()

"""Makes policies.npz: torchvision's magnitudes, and a small image after each of its operations.

python tests/data/make_policies.py     (needs torchvision)
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "policies.npz"
SIDES = (15, 12)  # height and width
BINS = (9, 30)


def sample_image() -> np.ndarray:
    """Noise over a gradient, with no full range of values in red: uint8 [15, 12, 3]."""
    rows, columns = np.mgrid[0 : SIDES[0], 0 : SIDES[1]]
    base = np.stack([rows * 9 + 40, columns * 20, (rows + columns) * 9], axis=-1)
    return np.clip(base + np.random.RandomState(0).randint(-30, 31, base.shape), 0, 255).astype(np.uint8)


def main() -> None:
    import torchvision
    from PIL import Image
    from torchvision.transforms import InterpolationMode, RandAugment, TrivialAugmentWide, autoaugment

    found = {"version": np.array(f"torchvision {torchvision.__version__}")}
    image = Image.fromarray(sample_image())
    spaces = {
        "randaugment": RandAugment()._augmentation_space(31, SIDES),
        "trivialaugment_wide": TrivialAugmentWide()._augmentation_space(31),
    }
    for method, space in spaces.items():
        for name, (magnitudes, signed) in space.items():
            found[f"{method}/magnitudes/{name}"] = magnitudes.numpy()
            found[f"{method}/signed/{name}"] = np.array(signed)
            for place in BINS if magnitudes.ndim else ("",):
                magnitude = float(magnitudes[place]) if magnitudes.ndim else 0.0
                for sign in (1, -1) if signed else (1,):
                    result = autoaugment._apply_op(image, name, sign * magnitude, InterpolationMode.NEAREST, None)
                    found[f"{method}/image/{name}/{place}/{sign}"] = np.asarray(result)
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()

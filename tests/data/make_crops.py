"""Makes crops.npz: small images as the publishers' own code crops them.

    python tests/data/make_crops.py --only=torch     (needs torchvision and timm)
    python tests/data/make_crops.py --only=tf        (needs tensorflow)

Each call replaces its own part of the file and keeps the other.
"""

import argparse
from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "crops.npz"
# Wide, tall, a difference of odd and of even halves, smaller than the crop, and the crop's own short side.
SIZES = ((37, 53), (61, 40), (100, 83), (19, 33), (50, 27))
CROP = 24


def sample_image(height: int, width: int) -> np.ndarray:
    """Noise over a gradient: steep and flat places."""
    random = np.random.RandomState(height)
    rows, columns = np.mgrid[0:height, 0:width]
    base = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
    noise = random.randint(-60, 60, (height, width, 3))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def torch_crops() -> dict[str, np.ndarray]:
    import timm.data
    import torchvision
    from PIL import Image
    from torchvision.transforms._presets import ImageClassification

    found = {"versions/torch": np.array(f"torchvision {torchvision.__version__}, timm {timm.__version__}")}
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for height, width in SIZES:
        image = Image.fromarray(sample_image(height, width))
        for resize in (27, 28):
            pixels = ImageClassification(crop_size=CROP, resize_size=resize)(image).numpy().transpose(1, 2, 0)
            found[f"torchvision/{resize}/{height}x{width}"] = np.rint((pixels * std + mean) * 255).astype(np.uint8)
        for fraction in (0.875, 0.8975):
            transform = timm.data.create_transform(
                (3, CROP, CROP), interpolation="bicubic", crop_pct=fraction, mean=(0.0,) * 3, std=(1.0,) * 3
            )
            pixels = transform(image).numpy().transpose(1, 2, 0)
            found[f"timm/{fraction}/{height}x{width}"] = np.rint(pixels * 255).astype(np.uint8)
    return found


def tensorflow_crops() -> dict[str, np.ndarray]:
    import tensorflow as tf

    found = {"versions/tf": np.array(f"tensorflow {tf.__version__}")}
    for height, width in SIZES:
        image = tf.image.convert_image_dtype(sample_image(height, width), tf.float32)
        middle = tf.image.central_crop(image, 0.875)
        pixels = tf.compat.v1.image.resize_bilinear(middle[None], [CROP, CROP], align_corners=False)[0]
        found[f"slim/0.875/{height}x{width}"] = (pixels.numpy() * 255).astype(np.float32)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--only", choices=("torch", "tf"), required=True)
    made = {"torch": torch_crops, "tf": tensorflow_crops}[arguments.parse_args().only]()
    kept = dict(np.load(FILE)) if FILE.exists() else {}
    np.savez_compressed(FILE, **{**kept, **made})


if __name__ == "__main__":
    main()

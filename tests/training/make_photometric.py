"""Makes photometric.npz: small images as TensorFlow's operations distort them in the orders of TF-Slim.

python tests/training/make_photometric.py     (needs tensorflow)
"""

from pathlib import Path

import numpy as np

FILE = Path(__file__).parent / "photometric.npz"
# inception_preprocessing.distort_color; preprocess_for_train asks for one order in fast mode.
ORDERS = {"slim": ("bshc", "sbch", "chbs", "hscb"), "slim_fast": ("bs",)}
SIZE = 6


def sample_images(count: int) -> np.ndarray:
    """Colours of every kind, grey, black, white and saturated ones among them: uint8 [count, SIZE, SIZE, 3]."""
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
    images[:, 0] = images[:, 0, :, :1]
    images[:, 1, :3] = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    images[:, 2, 0], images[:, 2, 1] = 0, 255
    return images


def sample_numbers(count: int) -> np.ndarray:
    """Uniform numbers: of brightness, saturation, hue and contrast; float64 [count, 4]."""
    numbers = np.random.RandomState(1).uniform(size=(count, 4))
    numbers[:2] = [[0.0] * 4, [0.999] * 4]  # the strongest of each
    return numbers


def main() -> None:
    import tensorflow as tf

    images, numbers = sample_images(6), sample_numbers(6)
    found = {"version": np.array(f"tensorflow {tf.__version__}")}
    for method, orders in ORDERS.items():
        for place, order in enumerate(orders):
            rows = []
            for image, (brightness, saturation, hue, contrast) in zip(images, numbers, strict=True):
                x = tf.image.convert_image_dtype(image, tf.float32)
                steps = {
                    "b": lambda x, u=brightness: tf.image.adjust_brightness(x, (2 * u - 1) * 32 / 255),
                    "s": lambda x, u=saturation: tf.image.adjust_saturation(x, 0.5 + u),
                    "h": lambda x, u=hue: tf.image.adjust_hue(x, (2 * u - 1) * 0.2),
                    "c": lambda x, u=contrast: tf.image.adjust_contrast(x, 0.5 + u),
                }
                for step in order:
                    x = steps[step](x)
                rows.append(tf.clip_by_value(x, 0.0, 1.0).numpy() * 255)
            found[f"{method}/{place}"] = np.stack(rows).astype(np.float32)
    np.savez_compressed(FILE, **found)


if __name__ == "__main__":
    main()

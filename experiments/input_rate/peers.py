"""Measures the input of PyTorch's DataLoader or of plain Grain: images per second, and per CPU-second. Prints JSON.

    python experiments/input_rate/peers.py --side=torch_pillow --images=runs/jpegs/train --seconds=8

Imports nothing of this repository. The same work as ours: random resized crop (8 to 100 % of the area) to 224 pixels,
random flip, batches of 64, uint8. PyTorch has two worker processes, its way to use two cores, and torchvision's
transforms with their defaults, which smooth where they shrink (antialias), as Pillow does; Grain has two threads.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SIDE, BATCH, PARALLEL = 224, 64, 2
WARMUP_BATCHES = 8


def torch_loader(paths: list[str], load: Callable[[str], Any], transforms: list[Any]) -> Iterator[Any]:
    """Batches of `torch.utils.data.DataLoader`, epoch after epoch."""
    import torch
    from torchvision.transforms import v2

    transform = v2.Compose([v2.RandomResizedCrop(SIDE), v2.RandomHorizontalFlip(), *transforms])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(paths)

        def __getitem__(self, index: int) -> Any:
            return transform(load(paths[index]))

    loader = torch.utils.data.DataLoader(
        Images(), BATCH, shuffle=True, drop_last=True, num_workers=PARALLEL, persistent_workers=True
    )
    while True:
        yield from loader


def torch_pillow(paths: list[str]) -> Iterator[Any]:
    """PyTorch with Pillow, as torchvision's datasets read images."""
    from PIL import Image
    from torchvision.transforms import v2

    return torch_loader(paths, lambda path: Image.open(path).convert("RGB"), [v2.PILToTensor()])


def torch_io(paths: list[str]) -> Iterator[Any]:
    """PyTorch with torchvision.io."""
    from torchvision.io import ImageReadMode, decode_image, read_file

    try:
        decode_image(read_file(paths[0]))
    except RuntimeError as error:  # a wheel whose extension does not fit the installed PyTorch
        print(json.dumps({"unavailable": str(error).partition(". ")[0]}), flush=True)
        sys.exit(0)
    return torch_loader(paths, lambda path: decode_image(read_file(path), ImageReadMode.RGB), [])


def window(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random resized crop."""
    for _ in range(10):
        area = rng.uniform(0.08, 1.0) * height * width
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    return 0, 0, height, width


def grain_loader(paths: list[str], load: Callable[[str, np.random.Generator], np.ndarray]) -> Iterator[Any]:
    """Batches of Grain's own threads."""
    import grain

    dataset = (
        grain.MapDataset.source(paths).seed(0).shuffle().repeat().random_map(load).batch(BATCH, drop_remainder=True)
    )
    return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=PARALLEL, prefetch_buffer_size=2 * PARALLEL)))


def grain_pillow(paths: list[str]) -> Iterator[Any]:
    """Grain with Pillow."""
    from PIL import Image

    def load(path: str, rng: np.random.Generator) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        top, left, height, width = window(image.height, image.width, rng)
        box = left, top, left + width, top + height
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    return grain_loader(paths, load)


def grain_opencv(paths: list[str]) -> Iterator[Any]:
    """Grain with OpenCV."""
    import cv2

    cv2.setNumThreads(0)

    def load(path: str, rng: np.random.Generator) -> np.ndarray:
        image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        top, left, height, width = window(*image.shape[:2], rng)
        pixels = cv2.resize(image[top : top + height, left : left + width], (SIDE, SIDE))
        return pixels[:, ::-1] if rng.random() < 0.5 else pixels

    return grain_loader(paths, load)


SIDES = {side.__name__: side for side in (torch_pillow, torch_io, grain_pillow, grain_opencv)}


def cpu_seconds() -> float:
    """User and system time of this process and of its live children (fields 14 and 15 of proc_pid_stat(5))."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    """Measures one side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--side", choices=[*SIDES], required=True)
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--seconds", type=float, default=8.0)
    flags = parser.parse_args()
    batches = SIDES[flags.side](sorted(map(str, flags.images.glob("*/*.jpg"))))
    for _ in range(WARMUP_BATCHES):
        next(batches)
    start, cpu, count = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - start < flags.seconds:
        assert np.asarray(next(batches)).dtype == np.uint8
        count += BATCH
    passed, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    result = {"images_per_second": count / passed, "images_per_cpu_second": count / cpu}
    print(json.dumps(result | {"versions": _versions(flags.side)}), flush=True)
    if flags.side.startswith("grain"):
        os._exit(0)  # threads that make batches ahead would be waited for


def _versions(side: str) -> dict[str, str]:
    from importlib import metadata

    packages = {
        "torch_pillow": ("torch", "torchvision", "pillow"), "torch_io": ("torch", "torchvision"),
        "grain_pillow": ("grain", "pillow"), "grain_opencv": ("grain", "opencv-python-headless"),
    }  # fmt: skip
    return {package: metadata.version(package) for package in packages[side]}


if __name__ == "__main__":
    main()

"""The input pipeline of a library as a worker process: `--side=ours`, or one of `SIDES`; counts its batches.

`input_versus.py` gives the commands that start them, and says in what the libraries' work differs. A side imports its
library when it is asked to prepare: of this package the interpreter of PyTorch or TensorFlow needs `worker.py` alone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

from inception_jax.benchmarks import worker

_WARMUP_SECONDS = 1.0
Batches = Generator[Any, None, None]


def count_batches(
    batches: Iterator[Any], ahead: int, seconds: float, least: int = 2, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Any]:
    """Counts the batches that an input pipeline makes; those that it made while it started are drawn before.

    Args:
      batches: without end.
      ahead: batches that it makes ahead of its consumer, at most.
      seconds: duration of the count.
      least: batches that are counted, at least.
      clock: returns seconds.

    Returns:
      "steps": the number of batches; "seconds", and "cpu_seconds" (of this process and its worker processes, user and
      system time), of all of them.
    """
    end, drawn = clock() + min(_WARMUP_SECONDS, seconds), 0
    while drawn < ahead or clock() < end:
        next(batches)
        drawn += 1
    start, count, cpu = clock(), 0, time.process_time() + worker_seconds()
    while clock() - start < seconds or count < least:
        next(batches)
        count += 1
    seconds, cpu = clock() - start, time.process_time() + worker_seconds() - cpu
    return {"steps": count, "seconds": seconds, "cpu_seconds": max(cpu, 1e-3)}


def worker_seconds() -> float:
    """Processor seconds of this process's worker processes until now (fields 14 and 15 of proc_pid_stat(5))."""
    stats = [Path(f"/proc/{child.pid}/stat").read_text() for child in multiprocessing.active_children()]
    fields = [stat.rpartition(")")[2].split() for stat in stats]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


def ours(task: dict[str, Any], block: int) -> Any:
    """The pipeline of the recipe; each block begins at another position of its order."""
    return pickle.loads(Path(task["pipeline"]).read_bytes()).batches(block << 20)


def _torch(task: dict[str, Any], load: Callable[[str], Any], transforms: list[Any]) -> Batches:
    """`torch.utils.data.DataLoader`, whose worker processes are its way to use several cores."""
    import torch
    from torchvision.transforms import v2

    files = list(zip(*_files(task), strict=True))
    crop = v2.RandomResizedCrop(task["image_size"], scale=task["area"], ratio=task["aspect"])
    transform = v2.Compose([crop, *[v2.RandomHorizontalFlip()] * task["flip"], *transforms])

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return transform(load(files[index][0])), files[index][1]

    yield from torch.utils.data.DataLoader(
        Images(),
        task["batch_size"],
        sampler=torch.utils.data.RandomSampler(files, num_samples=1 << 48),  # epochs without a gap or a short batch
        num_workers=_parallel(task),
        multiprocessing_context="fork",
    )


def torch_pillow(task: dict[str, Any], block: int) -> Batches:
    """PyTorch with Pillow, as torchvision's data sets read images."""
    from PIL import Image
    from torchvision.transforms import v2

    yield from _torch(task, lambda path: Image.open(path).convert("RGB"), [v2.PILToTensor()])


def torch_io(task: dict[str, Any], block: int) -> Batches:
    """PyTorch with torchvision.io."""
    import torch
    from torchvision.io import ImageReadMode, decode_image, encode_jpeg, read_file

    try:
        encode_jpeg(torch.zeros(3, 8, 8, dtype=torch.uint8))
    except RuntimeError as error:  # a wheel whose image library does not load beside the installed PyTorch
        reason = str(error).partition(". ")[0]
        raise worker.Unavailable(f"{reason}; torchvision must be a build for the installed PyTorch") from error
    yield from _torch(task, lambda path: decode_image(read_file(path), ImageReadMode.RGB), [])


def _grain(task: dict[str, Any], block: int, load: Callable[[str], Any], crop: Callable[..., Any]) -> Batches:
    """Grain with as many threads, in as many worker processes, as ours; `random_window` chooses the crops."""
    import grain

    from inception_jax.data.images import Augmentation, random_window
    from inception_jax.data.workers import mark_flags_parsed

    augmentation, size = Augmentation(area=task["area"], aspect=task["aspect"]), task["image_size"]

    def view(file: tuple[str, int], rng: Any) -> tuple[Any, int]:
        image = load(file[0])
        height, width = image.shape[:2] if hasattr(image, "shape") else image.size[::-1]
        pixels = crop(image, random_window(height, width, rng.random(64), augmentation), size)
        return (pixels[:, ::-1] if task["flip"] and rng.random() < 0.5 else pixels), file[1]

    source = grain.MapDataset.source(list(zip(*_files(task), strict=True))).seed(block).shuffle().repeat()
    threads = task["threads"]
    batches = source.random_map(view).batch(task["batch_size"]).to_iter_dataset(grain.ReadOptions(threads, 2 * threads))
    if task["workers"]:
        mark_flags_parsed()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(task["workers"]))
    with contextlib.closing(iter(batches)) as iterator:
        yield from iterator


def grain_pillow(task: dict[str, Any], block: int) -> Batches:
    """Grain with Pillow."""
    import numpy as np
    from PIL import Image

    def crop(image: Any, window: tuple[int, int, int, int], size: int) -> Any:
        top, left, height, width = window
        box = left, top, left + width, top + height
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))

    return _grain(task, block, lambda path: Image.open(path).convert("RGB"), crop)


def grain_opencv(task: dict[str, Any], block: int) -> Batches:
    """Grain with OpenCV."""
    import cv2

    from inception_jax.data.decoding import FLAGS

    def crop(image: Any, window: tuple[int, int, int, int], size: int) -> Any:
        top, left, height, width = window
        return cv2.resize(image[top : top + height, left : left + width], (size, size))

    return _grain(task, block, lambda path: cv2.imread(path, FLAGS), crop)


def tf_data(task: dict[str, Any], block: int) -> Batches:
    """tf.data with TensorFlow's fused decode-and-crop."""
    import tensorflow as tf

    size, threads = task["image_size"], _parallel(task)

    def view(path: Any, label: Any) -> tuple[Any, Any]:
        encoded = tf.io.read_file(path)
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(encoded),
            tf.zeros([1, 0, 4]),
            min_object_covered=0.0,
            aspect_ratio_range=task["aspect"],
            area_range=task["area"],
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        window = tf.stack([begin[0], begin[1], extent[0], extent[1]])
        image = tf.image.resize(tf.image.decode_and_crop_jpeg(encoded, window, channels=3), (size, size))
        image = tf.image.random_flip_left_right(image) if task["flip"] else image
        return tf.cast(tf.round(image), tf.uint8), label

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    paths, labels = _files(task)
    dataset = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
    dataset = dataset.map(view, num_parallel_calls=threads).batch(task["batch_size"]).prefetch(2)
    yield from dataset.with_options(options).as_numpy_iterator()


def _files(task: dict[str, Any]) -> tuple[list[str], list[int]]:
    """The paths and the labels."""
    content = json.loads(Path(task["files"]).read_text())
    return content["paths"], content["labels"]


def _parallel(task: dict[str, Any]) -> int:
    """The threads of ours, in all of its processes."""
    return task["threads"] * max(1, task["workers"])


SIDES: dict[str, tuple[Callable[..., Any], dict[str, str]]] = {
    "ours": (ours, {"cv2": "opencv-python-headless", "numpy": "numpy"}),
    "torch_pillow": (torch_pillow, {"torch": "torch", "torchvision": "torchvision", "PIL": "pillow"}),
    "torch_io": (torch_io, {"torch": "torch", "torchvision": "torchvision"}),
    "grain_pillow": (grain_pillow, {"grain": "grain", "PIL": "pillow"}),
    "grain_opencv": (grain_opencv, {"grain": "grain", "cv2": "opencv-python-headless"}),
    "tf_data": (tf_data, {"tensorflow": "tensorflow"}),
}
"""{name: (what makes its batches, {module: package that has it})}."""


class InputSide:
    """Counts batches of one input pipeline; a `worker.SideProtocol`."""

    def __init__(self, name: str, pipeline: str | None):
        """Imports nothing yet.

        Args:
          name: one of `SIDES`.
          pipeline: file of the pickled pipeline, of "ours".
        """
        (self._make, self._packages), self._pipeline, self._blocks = SIDES[name], pipeline, 0

    def prepare(self, workload: dict[str, Any]) -> dict[str, Any]:
        """Imports the library and makes a batch.

        Args:
          workload: from `input_versus.make_workload`.

        Returns:
          "versions", "batch" (dtype and shape of its images) and "prepare_seconds".

        Raises:
          Unavailable: a package is missing or broken.
        """
        began = time.perf_counter()
        self._task = workload | {"pipeline": self._pipeline}
        flag = (
            "--tf_python" if "tensorflow" in self._packages else "--torch_python" if "torch" in self._packages else ""
        )
        needed = " ".join(self._packages.values())
        versions = {package: worker.import_version(module, needed, flag) for module, package in self._packages.items()}
        with contextlib.closing(self._make(self._task, 0)) as batches:
            first = next(batches)
        images = first["image"] if isinstance(first, dict) else first[0]
        batch = f"{str(images.dtype).rpartition('.')[2]} {list(images.shape)}"
        return {"versions": versions, "batch": batch, "prepare_seconds": time.perf_counter() - began}

    def block(self, kind: str, steps: int) -> dict[str, Any]:
        """Makes batches for the workload's "seconds", `steps` at least; see `count_batches`."""
        del kind
        self._blocks += 1
        with contextlib.closing(self._make(self._task, self._blocks)) as batches:
            return count_batches(batches, self._task["ahead"], self._task["seconds"], steps)


def main() -> None:
    """Serves the side that the command line names, until the parent closes the pipe."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--side", choices=SIDES, required=True)
    parser.add_argument("--pipeline", help="of --side=ours")
    flags = parser.parse_args()
    worker.serve(InputSide(flags.side, flags.pipeline))


if __name__ == "__main__":
    main()

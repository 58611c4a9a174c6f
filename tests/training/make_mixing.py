"""Makes mixing.npz: mixup, CutMix and random erasing by timm and torchvision, from given weights, boxes and partners.

  python tests/training/make_mixing.py NUMBERS.npz OUTPUT.npz    (needs torch, torchvision and timm)

NUMBERS.npz is what `test_published_mixing.given` returns: the numbers that our augmentations draw for these images.
Both libraries take them here in the place of their own random numbers. The statistics are of their own.
"""

import random
import sys
from unittest import mock

import numpy as np

CLASSES, SMOOTHING = 8, 0.1
AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)
DRAWS, SIDE, CUTMIX_SIDE = 4000, 64, 224  # of the statistics: how many, and the side of the images
ALPHA = 0.2  # of mixup's


def pairs(images, labels):
    """Batches of an image and its partner, as torch has them."""
    import torch

    pixels = torch.from_numpy(images.astype(np.float32)).permute(0, 3, 1, 2)
    for row in range(0, len(images), 2):
        yield row, pixels[row : row + 2].clone(), torch.from_numpy(labels[row : row + 2].astype(np.int64))


def mix_timm(images, labels, weights, centers=None):
    """timm's `Mixup` of each element with its own weight; in a batch of two the partner is the other one."""
    from timm.data import mixup

    transform = mixup.Mixup(mode="elem", label_smoothing=SMOOTHING, num_classes=CLASSES)
    found, targets = [], []
    for row, pixels, target in pairs(images, labels):
        given = weights[row : row + 2].astype(np.float32).copy(), np.full(2, centers is not None)
        transform._params_per_elem = lambda count, given=given: given
        places = iter([] if centers is None else centers[row : row + 2].ravel().tolist())
        with mock.patch.object(np.random, "randint", lambda low, high, size, at=places: next(at)):
            mixed, soft = transform(pixels, target)
        found.append(mixed.permute(0, 2, 3, 1).numpy())
        targets.append(soft.numpy())
    return np.concatenate(found), np.concatenate(targets)


def mix_torchvision(images, labels, weights, centers=None):
    """torchvision's `MixUp` and `CutMix`, which have one weight per batch: each image's own, in a batch of its pair."""
    import torch
    from torchvision.transforms import v2

    transform = (v2.MixUp if centers is None else v2.CutMix)(num_classes=CLASSES)
    found, targets = [], []
    for row, pixels, target in pairs(images, labels):
        for place in range(2):
            # It draws the column first, and takes the weight from its distribution.
            rows = iter([] if centers is None else [torch.tensor([value]) for value in centers[row + place][::-1]])
            transform._dist = mock.Mock(sample=lambda shape, weight=weights[row + place]: weight)
            with mock.patch.object(torch, "randint", lambda limit, size, at=rows: next(at)):
                mixed, soft = transform(pixels, target)
            found.append(mixed[place].permute(1, 2, 0).numpy())
            targets.append(soft[place].numpy())
    return np.stack(found), np.stack(targets)


class Given:
    """In the place of a random number: `torch.empty(1).uniform_(low, high)`."""

    def __init__(self, numbers):
        self.numbers = numbers

    def uniform_(self, low, high):
        import torch

        return torch.tensor([next(self.numbers)], dtype=torch.float64)


def erase(images, numbers):
    """Both libraries' random erasing with zeros: {name: images}; they draw the logarithm of the aspect ratio."""
    import torch
    from timm.data import random_erasing
    from torchvision.transforms import v2

    found = {"timm": [], "torchvision": []}
    for image, row in zip(images, numbers, strict=True):
        areas = AREA[0] + (AREA[1] - AREA[0]) * row[2::2]
        logs = np.log(ASPECT[0] + (ASPECT[1] - ASPECT[0]) * row[3::2])
        pixels = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)
        positions = iter(row[:2].tolist())
        drawn = iter(np.stack([areas, logs], 1).ravel().tolist())
        transform = random_erasing.RandomErasing(1.0, *AREA, *ASPECT, device="cpu")
        with (
            mock.patch.object(random, "uniform", lambda low, high, drawn=drawn: next(drawn)),
            mock.patch.object(random, "randint", lambda low, high, at=positions: int(next(at) * (high + 1))),
            mock.patch.object(random, "random", lambda: 0.0),
        ):
            found["timm"].append(transform(pixels.clone()).permute(1, 2, 0).numpy())
        positions, drawn = iter(row[:2].tolist()), iter(np.stack([areas, logs], 1).ravel().tolist())
        transform = v2.RandomErasing(p=1.0, scale=AREA, ratio=ASPECT)
        with (
            mock.patch.object(torch, "empty", lambda count, drawn=drawn: Given(drawn)),
            mock.patch.object(
                torch, "randint", lambda low, high, size, at=positions: torch.tensor([int(next(at) * high)])
            ),
        ):
            params = transform.make_params([pixels])
        found["torchvision"].append(transform.transform(pixels.clone(), params).permute(1, 2, 0).numpy())
    return {name: np.stack(rows).astype(np.uint8) for name, rows in found.items()}


def statistics():
    """What the libraries draw themselves: weights, and fractions of the area, sorted; and how often they erase."""
    import torch
    from timm.data import mixup, random_erasing
    from torchvision.transforms import v2

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    found = {"timm/mixup": mixup.Mixup(ALPHA, mode="elem")._params_per_elem(DRAWS)[0]}
    image, large = torch.zeros(2, 1, SIDE, SIDE), torch.zeros(2, 1, CUTMIX_SIDE, CUTMIX_SIDE)
    mixing, cutting = v2.MixUp(alpha=ALPHA, num_classes=2), v2.CutMix(alpha=1.0, num_classes=2)
    found["torchvision/mixup"] = [mixing.make_params([image])["lam"] for _ in range(DRAWS)]
    found["torchvision/cutmix"] = [cutting.make_params([large])["lam_adjusted"] for _ in range(DRAWS)]
    weights = mixup.Mixup(0.0, 1.0, mode="elem")._params_per_elem(DRAWS)[0]
    found["timm/cutmix"] = [mixup.cutmix_bbox_and_lam(large.shape, weight)[1] for weight in weights]
    erasing = v2.RandomErasing(p=1.0, scale=AREA, ratio=ASPECT)
    params = [erasing.make_params([image]) for _ in range(DRAWS)]
    found["torchvision/erasing"] = [one["h"] * one["w"] / SIDE**2 for one in params]
    ones = random_erasing.RandomErasing(0.25, *AREA, *ASPECT, device="cpu")(torch.ones(DRAWS, 1, SIDE, SIDE))
    areas = 1 - ones.mean((1, 2, 3)).numpy()
    found["timm/erasing"] = areas[areas > 0]
    found["timm/erased"] = [len(found["timm/erasing"]) / DRAWS]
    return {f"statistics/{name}": np.sort(values).astype(np.float32) for name, values in found.items()}


def make(given):
    """All arrays of the file."""
    import timm
    import torchvision

    found = {"version": np.array(f"timm {timm.__version__}, torchvision {torchvision.__version__}")}
    for library, mix in (("timm", mix_timm), ("torchvision", mix_torchvision)):
        for name, centers in (("mixup", None), ("cutmix", given["centers"])):
            images, targets = mix(given["images"], given["labels"], given[f"{name}_weights"], centers)
            found |= {f"{library}/{name}/images": images, f"{library}/{name}/targets": targets}
    found |= {f"{name}/erasing/images": images for name, images in erase(given["images"], given["erasing"]).items()}
    return found | statistics()


if __name__ == "__main__":
    with np.load(sys.argv[1]) as file:
        numbers = dict(file)
    np.savez_compressed(sys.argv[2], **numbers, **make(numbers))

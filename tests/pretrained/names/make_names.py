"""Writes the PyTorch publishers' array names and shapes, from their own instantiated networks, to torch.txt.gz.

    python tests/pretrained/names/make_names.py

Runs where torch and the publishers' packages are installed; needs nothing of inception_jax. The file has a line
"[source model classes]" per network, then "name shape" per array of its state dict, in its order.
"""

from __future__ import annotations

import gzip
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TARGET = Path(__file__).with_name("torch.txt.gz")


def torchvision_networks() -> Iterator[tuple[str, int, Any]]:
    from torchvision import models

    yield "inception_v1_bn", 1000, models.googlenet(weights=None, init_weights=False, aux_logits=True)
    yield "inception_v3", 1000, models.inception_v3(weights=None, init_weights=False, aux_logits=True)


def timm_networks() -> Iterator[tuple[str, int, Any]]:
    import timm

    yield "inception_v3", 1000, timm.create_model("inception_v3", aux_logits=True)
    for name in ("inception_v4", "inception_resnet_v2"):
        yield name, 1000, timm.create_model(name)
    yield "xception", 1000, timm.create_model("legacy_xception")


def cadene_networks() -> Iterator[tuple[str, int, Any]]:
    # The package's own names `bninception` and so on are functions that hide their modules.
    for model, module, builder, classes in (
        ("inception_v2", "bninception", "bninception", 1000),
        ("inception_v4", "inceptionv4", "inceptionv4", 1001),
        ("inception_resnet_v2", "inceptionresnetv2", "inceptionresnetv2", 1001),
        ("xception", "xception", "xception", 1000),
    ):
        build = getattr(importlib.import_module(f"pretrainedmodels.models.{module}"), builder)
        yield model, classes, build(num_classes=classes, pretrained=None)


def pytorchcv_networks() -> Iterator[tuple[str, int, Any]]:
    from pytorchcv.model_provider import get_model

    for name in ("inception_v3", "inception_v4", "inception_resnet_v1", "inception_resnet_v2", "xception"):
        yield name, 1000, get_model(name.replace("_", ""), pretrained=False)
    yield "inception_v2", 1000, get_model("bninception", pretrained=False)


def facenet_networks() -> Iterator[tuple[str, int, Any]]:
    from facenet_pytorch import InceptionResnetV1

    yield "inception_resnet_v1", 8631, InceptionResnetV1(classify=True, num_classes=8631)


def fid_networks() -> Iterator[tuple[str, int, Any]]:
    from pytorch_fid import inception
    from torchvision.models import inception_v3

    # The network is only to be had with weights. Its three other classes add no array to torchvision's, or
    # load_state_dict would refuse these.
    state = inception_v3(weights=None, init_weights=False, aux_logits=False, num_classes=1008).state_dict()
    inception.load_state_dict_from_url = lambda *_, **__: state
    yield "inception_v3", 1008, inception.fid_inception_v3()


NETWORKS: dict[str, Callable[[], Iterator[tuple[str, int, Any]]]] = {
    "torchvision": torchvision_networks,
    "timm": timm_networks,
    "cadene": cadene_networks,
    "pytorchcv": pytorchcv_networks,
    "facenet-pytorch": facenet_networks,
    "pytorch-fid": fid_networks,
}


def main() -> None:
    lines = []
    for source, networks in NETWORKS.items():
        for model, classes, network in networks():
            lines.append(f"[{source} {model} {classes}]")
            lines += [f"{name} {'x'.join(map(str, array.shape))}" for name, array in network.state_dict().items()]
    # Without a time in it, the file is the same whenever it is made.
    TARGET.write_bytes(gzip.compress("\n".join(lines).encode(), 9, mtime=0))
    print(f"{TARGET.name}: {len(lines)} lines, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main()

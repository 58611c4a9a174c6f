"""Runs the PyTorch publishers' networks with given weights; the package's docstring has the format of the files.

    python torch_side.py REQUEST.npz RESULT.npz

Needs torch and the publisher's package (torchvision, timm, pretrainedmodels, pytorchcv, facenet-pytorch, pytorch-fid),
and nothing of inception_jax. The names of the request's arrays must be those of the publisher's state dict, except for
its counters of batches.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# source -> the distribution whose version is reported.
DISTRIBUTIONS = {
    "torchvision": "torchvision",
    "timm": "timm",
    "cadene": "pretrainedmodels",
    "pytorchcv": "pytorchcv",
    "facenet-pytorch": "facenet-pytorch",
    "pytorch-fid": "pytorch-fid",
}


def torchvision_network(model: str, classes: int, state: Mapping[str, Any]) -> Any:
    """torchvision.models.googlenet and inception_v3, with the heads that the state dict has."""
    from torchvision.models import googlenet, inception_v3

    build = {"inception_v1_bn": googlenet, "inception_v3": inception_v3}[model]
    aux = any(name.startswith(("aux", "AuxLogits")) for name in state)
    return build(weights=None, num_classes=classes, aux_logits=aux, init_weights=False, transform_input=False)


def timm_network(model: str, classes: int, state: Mapping[str, Any]) -> Any:
    """timm's inception_v3 (with the head where the state dict has it), v4, inception_resnet_v2, legacy_xception."""
    import timm

    name = {"xception": "legacy_xception"}.get(model, model)
    aux = {"aux_logits": any(key.startswith("AuxLogits") for key in state)} if model == "inception_v3" else {}
    return timm.create_model(name, pretrained=False, num_classes=classes, **aux)


def cadene_network(model: str, classes: int, _: Mapping[str, Any]) -> Any:
    """pretrained-models.pytorch, without its pretrained wrapper (which downloads)."""
    # The package's own names `bninception` and so on are functions that hide their modules.
    name = {"inception_v2": "bninception"}.get(model, model.replace("_", ""))
    build = getattr(importlib.import_module(f"pretrainedmodels.models.{name}"), name)
    return build(num_classes=classes, pretrained=None)


def pytorchcv_network(model: str, classes: int, _: Mapping[str, Any]) -> Any:
    """pytorchcv's networks, by pytorchcv's names."""
    from pytorchcv.model_provider import get_model

    name = {"inception_v2": "bninception"}.get(model, model.replace("_", ""))
    return get_model(name, pretrained=False, num_classes=classes)


def facenet_network(model: str, classes: int, _: Mapping[str, Any]) -> Any:
    """facenet-pytorch's InceptionResnetV1 with its classifier."""
    from facenet_pytorch import InceptionResnetV1

    assert model == "inception_resnet_v1", model
    return InceptionResnetV1(pretrained=None, classify=True, num_classes=classes, device="cpu")


def fid_network(model: str, classes: int, state: Mapping[str, Any]) -> Any:
    """pytorch-fid's Inception-v3; its download of the weights is replaced by the given ones."""
    from pytorch_fid import inception

    assert (model, classes) == ("inception_v3", 1008), (model, classes)
    inception.load_state_dict_from_url = lambda *_, **__: dict(state)
    return inception.fid_inception_v3()


BUILDERS: dict[str, Callable[[str, int, Mapping[str, Any]], Any]] = {
    "torchvision": torchvision_network,
    "timm": timm_network,
    "cadene": cadene_network,
    "pytorchcv": pytorchcv_network,
    "facenet-pytorch": facenet_network,
    "pytorch-fid": fid_network,
}


def prepare(network: Any, mode: str) -> None:
    """Sets a network to evaluation, or to batch statistics without dropout.

    Args:
      network: the PyTorch module.
      mode: "eval" or "train".
    """
    import torch

    network.train(mode == "train")
    # Cadene's Inception-ResNet-v2 calls the function instead of a module.
    torch.nn.functional.dropout = lambda x, *_, **__: x
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for name in ("drop_rate", "dropout_rate"):
        if hasattr(network, name):
            setattr(network, name, 0.0)


def split_outputs(source: str, output: Any) -> tuple[Any, list[Any]]:
    """Splits a network's output into logits and auxiliary logits, the head nearest the input first."""
    if not isinstance(output, tuple):
        return output, []
    logits, *heads = output
    # torchvision's GoogLeNet returns (logits, aux2, aux1).
    return logits, [head for head in reversed(heads) if head is not None]


def run_request(request: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs the network of a request; returns the arrays of the result."""
    import torch

    source, model, mode = (str(request[name]) for name in ("source", "model", "mode"))
    dtype = {"float32": torch.float32, "float64": torch.float64}[str(request["dtype"])]
    state = {name[2:]: torch.from_numpy(np.array(request[name])).to(dtype) for name in request if name[:2] == "w/"}
    # Constructors need the number of classes; every publisher's classifier is the last array.
    classes = next(reversed(state.values())).shape[0] if "classes" not in request else int(request["classes"])
    torch.set_default_dtype(dtype)
    network = BUILDERS[source](model, classes, state)
    loaded = network.load_state_dict(state, strict=False)
    missing = [name for name in loaded.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or loaded.unexpected_keys:
        raise SystemExit(f"{source} {model}: missing {missing[:5]}, unexpected {loaded.unexpected_keys[:5]}")
    prepare(network, mode)
    images = torch.from_numpy(np.array(request["images"])).to(dtype).permute(0, 3, 1, 2).contiguous()
    wants_gradient = "probe" in request
    with torch.set_grad_enabled(wants_gradient):
        logits, heads = split_outputs(source, network(images))
        result = {"logits": logits.detach().numpy(), "version": np.array(_version(source))}
        result |= {f"aux/{i}": head.detach().numpy() for i, head in enumerate(heads)}
        if wants_gradient:
            total = (torch.from_numpy(np.array(request["probe"])).to(dtype) * logits).sum()
            for i, head in enumerate(heads):
                total = total + (torch.from_numpy(np.array(request[f"probe_aux/{i}"])).to(dtype) * head).sum()
            total.backward()
            # An auxiliary head that evaluation does not run has no gradient.
            result |= {f"g/{n}": p.grad.numpy() for n, p in network.named_parameters() if p.grad is not None}
    return result


def _version(source: str) -> str:
    name = DISTRIBUTIONS[source]
    return f"{name} {importlib.metadata.version(name)}, torch {importlib.metadata.version('torch')}"


def main(request: str, result: str) -> None:
    """Reads a request and writes its result."""
    with np.load(request, allow_pickle=False) as arrays:
        outputs = run_request(dict(arrays))
    np.savez(result, **outputs)  # type: ignore[arg-type]  # no output is called `allow_pickle`


if __name__ == "__main__":
    main(*sys.argv[1:])

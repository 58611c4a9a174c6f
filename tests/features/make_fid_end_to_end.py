"""Writes fid_end_to_end.json: the tools' metrics of two seeded sets of images, with seeded weights, end to end.

    python tests/features/make_fid_goldens.py weights weights.npz  # a Python with inception_jax
    python tests/features/make_fid_end_to_end.py weights.npz FOLDER  # a Python with the tools, 2 CPU-minutes
    python tests/features/compare_end_to_end.py  # a Python with inception_jax: ours beside them

Each tool reads, resizes and normalizes the images itself, and computes its metrics of its own features: 16 images a
set in float32, and 8 with the network in float64, of the pixels that the tool makes in float32. FID is that of
all 2,048 features, whose covariance is singular, and of each 512th, whose covariance has full rank (`fid_of_4`); and,
of features that are drawn at random, of 2,048 with full rank ("wide"). clean-fid's and ADM's networks are files that
are not at hand: pytorch-fid's classes with the same weights stand for clean-fid's, and torch-fidelity's for ADM's,
whose sFID and Inception Score are computed by their definitions in NumPy and SciPy. Versions as in make_fid_goldens.py.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

try:
    from . import make_fid_goldens as made
except ImportError:  # as a script
    import make_fid_goldens as made

HERE = Path(__file__).parent
IMAGES = {"float64": (32, 8), "float32": (16, 16)}  # of a set: drawn, and compared
HEIGHT, WIDTH = 340, 260  # one side shrinks to 299 pixels, the other grows
KID = {"kid_subsets": 10, "kid_subset_size": 6}
SPLITS = 2
TOOLS = ("pytorch-fid", "torch-fidelity", "clean-fid", "torchmetrics")


def image_sets(dtype):
    """{"real" and "fake": uint8 [n, HEIGHT, WIDTH, 3]}; the fake ones have less contrast and are brighter."""
    drawn, count = IMAGES[dtype]
    real, fake = (made.images(drawn, HEIGHT, WIDTH, seed)[:count] for seed in (1, 2))
    return {"real": real, "fake": (fake * 0.8 + 30).astype(np.uint8)}


class Tools:
    """The tools' networks with the seeded weights."""

    def __init__(self, weights):
        import torch
        from pytorch_fid import inception
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        from torchmetrics.image.fid import NoTrainInceptionV3

        with np.load(weights) as file:
            state = {name: torch.from_numpy(file[name]) for name in file.files}
        for name in list(state):
            if name.endswith("running_mean"):
                state[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
        inception.load_state_dict_from_url = lambda *_, **__: dict(state)
        names = ["2048", "logits_unbiased"]
        with tempfile.NamedTemporaryFile(suffix=".pth") as file:
            torch.save(state, file.name)
            self.networks = {
                "pytorch-fid": inception.InceptionV3([3]).eval(),
                "clean-fid": inception.InceptionV3([3], resize_input=False, normalize_input=False).eval(),
                "torch-fidelity": FeatureExtractorInceptionV3("inception-v3-compat", names, file.name),
                "torchmetrics": NoTrainInceptionV3("inception-v3-compat", names, file.name),
            }

    def to(self, dtype):
        """Computes in another dtype; pixels are made in float32 before."""
        import torch
        from torch_fidelity import feature_extractor_inceptionv3 as fidelity
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tf1

        for network in self.networks.values():
            network.to(dtype)
        self.networks["torch-fidelity"].feature_extractor_internal_dtype = dtype
        self.networks["torchmetrics"]._dtype = dtype
        fidelity.interpolate_bilinear_2d_like_tensorflow1x = lambda x, **options: tf1(x.float(), **options).to(x.dtype)
        plain = getattr(self, "plain", torch.nn.functional.interpolate)
        self.plain = plain
        torch.nn.functional.interpolate = lambda x, **options: plain(x.float(), **options).to(x.dtype)
        self.dtype = dtype

    def features(self, tool, folder, images):
        """{output: [n, …]} of the images, which are in the folder, too."""
        import torch
        from cleanfid import fid as clean
        from pytorch_fid import fid_score

        network, spatial = self.networks[tool], []
        if tool in ("torch-fidelity", "torchmetrics"):
            hook = network.Mixed_6d.branch1x1.register_forward_hook(
                lambda module, inputs, output: spatial.append(output[:, :7].permute(0, 2, 3, 1).flatten(1).numpy())
            )
            parts = []
            with torch.no_grad():
                for start in range(0, len(images), 10):
                    pixels = torch.from_numpy(images[start : start + 10].transpose(0, 3, 1, 2).copy())
                    run = network if tool == "torch-fidelity" else network._torch_fidelity_forward
                    parts.append([part.numpy() for part in run(pixels)])
            hook.remove()
            pool, logits = (np.concatenate(rows) for rows in zip(*parts, strict=True))
            return {"2048": pool, "logits": logits, "spatial": np.concatenate(spatial)}

        def double(batch):
            batch = batch.to(self.dtype)
            with torch.no_grad():
                return network(batch) if tool == "pytorch-fid" else network((batch - 128) / 128)[0].flatten(1)

        if tool == "pytorch-fid":
            double.eval = lambda: None
            files = sorted(map(str, Path(folder).glob("*.png")))
            return {"2048": fid_score.get_activations(files, double, batch_size=10, num_workers=0)}
        options = {"num_workers": 0, "batch_size": 10, "device": torch.device("cpu"), "verbose": False}
        return {"2048": clean.get_folder_features(str(folder), double, **options)}


def metric_numbers(tool, real, fake, full):
    """{metric: value} by the tool's functions; `full`: with FID of 2,048 features, whose matrix root takes half a
    minute."""
    import torch
    import torchmetrics.image.fid
    import torchmetrics.image.kid
    from cleanfid import fid as clean
    from pytorch_fid import fid_score
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    def moments(rows):
        return np.mean(rows, axis=0), np.cov(rows, rowvar=False)

    def torchmetrics_fid(x, y):
        class Features(torch.nn.Module):
            num_features = x.shape[1]

            def forward(self, rows):
                return rows

        metric = torchmetrics.image.fid.FrechetInceptionDistance(Features())
        metric.update(torch.from_numpy(x).double(), real=True)
        metric.update(torch.from_numpy(y).double(), real=False)
        return float(metric.compute())

    def fidelity_fid(*rows):
        statistics = [metric_fid.fid_features_to_statistics(torch.from_numpy(one)) for one in rows]
        return metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]

    fid = {
        "pytorch-fid": lambda x, y: fid_score.calculate_frechet_distance(*moments(x), *moments(y)),
        "clean-fid": clean.fid_from_feats,
        "torchmetrics": torchmetrics_fid,
        "torch-fidelity": fidelity_fid,
    }[tool]
    x, y = real["2048"], fake["2048"]
    found = {"fid_of_4": fid(x[:, ::512], y[:, ::512])}
    if full and tool in ("pytorch-fid", "torchmetrics"):  # the others call SciPy's root as pytorch-fid does
        found["fid"] = fid(x, y)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    if tool == "clean-fid":
        found["kid_whole"] = clean.kernel_distance(x, y, num_subsets=1, max_subset_size=len(x))
    elif tool == "torchmetrics":
        found["kid_whole"] = float(torchmetrics.image.kid.poly_mmd(*tensors))
    elif tool == "torch-fidelity":
        kid = metric_kid.kid_features_to_metric(tensors[1], tensors[0], rng_seed=2020, verbose=False, **KID)
        score = metric_isc.isc_features_to_metric(torch.from_numpy(fake["logits"]), splits=SPLITS, rng_seed=2020)
        balls = metric_prc.prc_features_to_metric(tensors[1], tensors[0], prc_neighborhood=3, verbose=False)
        found |= {
            "kid": kid["kernel_inception_distance_mean"],
            "kid_std": kid["kernel_inception_distance_std"],
            "is": score["inception_score_mean"],
            "is_std": score["inception_score_std"],
            "precision": balls["precision"],
            "recall": balls["recall"],
        }
    return {name: float(value) for name, value in found.items()}


def other_numbers(real, fake):
    """Of torch-fidelity's features: density and coverage by prdc, sFID and Inception Score by ADM's definitions."""
    import prdc
    import scipy.linalg

    near = prdc.compute_prdc(real_features=real["2048"], fake_features=fake["2048"], nearest_k=5)
    found = {"prdc": {name: float(near[name]) for name in ("density", "coverage")}}
    p = scipy.special.softmax(fake["logits"].astype(np.float64), axis=1)
    found["ADM"] = {"is_whole": float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))}
    (m1, s1), (m2, s2) = ((rows.mean(0), np.cov(rows, rowvar=False)) for rows in (real["spatial"], fake["spatial"]))
    root = scipy.linalg.sqrtm(s1 @ s2)
    found["ADM"]["sfid"] = float((m1 - m2) @ (m1 - m2) + np.trace(s1) + np.trace(s2) - 2 * np.trace(root.real))
    return found


def wide_features():
    """(real, fake), float64 [2500, 2048]: more images than features, whose variances span four decades."""
    random = np.random.RandomState(0)
    scale = np.exp(-np.arange(2048) / 400)
    real, fake = (np.abs(random.standard_normal((2500, 2048))) for _ in range(2))
    return real * scale, fake * scale * 1.1 + 0.05 * scale


def wide_numbers():
    """FID of `wide_features` by the two ways to the matrix root: SciPy's, and the eigenvalues of torchmetrics."""
    import torch
    import torchmetrics.image.fid
    from pytorch_fid import fid_score

    moments = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in wide_features()]
    tensors = [torch.from_numpy(array) for pair in moments for array in pair]
    return {
        "pytorch-fid": {"fid": float(fid_score.calculate_frechet_distance(*moments[0], *moments[1]))},
        "torchmetrics": {"fid": float(torchmetrics.image.fid._compute_fid(*tensors))},
    }


def run_tools(weights, folder):
    """Writes the goldens, and features and numbers of every tool to the folder, with which a second call continues."""
    import torch
    from PIL import Image

    folder, tools, numbers = Path(folder), Tools(weights), {}
    for dtype in IMAGES:
        sets = image_sets(dtype)
        tools.to(getattr(torch, dtype))
        numbers[dtype], rows = {}, {}
        for tool in TOOLS:
            begin = time.process_time()
            for name, images in sets.items():
                kept = folder / f"{dtype} {tool} {name}.npz"
                if not kept.exists():
                    with tempfile.TemporaryDirectory() as files:
                        for k, image in enumerate(images):
                            Image.fromarray(image).save(f"{files}/{k:03}.png", compress_level=1)
                        np.savez(kept, **tools.features(tool, files, images))
                with np.load(kept) as file:
                    rows[tool, name] = dict(file)
            print(dtype, tool, f"features: {time.process_time() - begin:.0f} CPU-s", flush=True)
            record = folder / f"{dtype} {tool}.json"
            if not record.exists():
                pair = [rows[tool, name] for name in sets]
                found = {tool: metric_numbers(tool, *pair, full=dtype == "float32")}
                if tool == "torch-fidelity":
                    found |= other_numbers(*pair)
                record.write_text(json.dumps(found))
            numbers[dtype] |= json.loads(record.read_text())
            print(record.read_text(), f"{time.process_time() - begin:.0f} CPU-s", flush=True)
    record = folder / "wide.json"
    if not record.exists():
        record.write_text(json.dumps(wide_numbers()))
    numbers["wide"] = json.loads(record.read_text())
    (HERE / "fid_end_to_end.json").write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    run_tools(*sys.argv[1:])

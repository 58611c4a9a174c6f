"""Writes fid_goldens.json and fid_goldens.npz: the numbers of other tools on seeded features, images and weights.

    python tests/features/make_fid_goldens.py weights weights.npz  # a Python with inception_jax
    python tests/features/make_fid_goldens.py goldens weights.npz  # a Python with the tools

The published weights are not needed: `parity.seeded_weights` draws others of the same shapes. Versions: torch 2.13.0,
torchvision 0.28.0, pytorch-fid 0.3.0, torch-fidelity 0.4.0, clean-fid 0.1.35, torchmetrics 1.9.0, prdc 0.2, SciPy
1.17.1, Pillow 13.0.0.
"""

import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SIZES = ((5, 7, 12), (21, 17, 6), (9, 9, 9))  # height and width of an image, side of the result


def features(n, m, width, seed=0):
    """Two sets of features, and logits."""
    random = np.random.RandomState(seed)
    mix = random.standard_normal((width, width)) / width**0.5
    real, fake = random.standard_normal((n, width)), random.standard_normal((m, width))
    return real @ mix, fake @ mix * 1.2 + 0.2, random.standard_normal((m, 10)) * 2


def images(count=6, height=37, width=45, seed=0):
    """Smooth images with noise, uint8 [count, height, width, 3]."""
    random = np.random.RandomState(seed)
    y, x = np.mgrid[:height, :width] / 40
    found = []
    for _ in range(count):
        fx, fy, phase = random.uniform(1, 6, (3, 3))
        found.append(128 + 90 * np.sin(fx * x[..., None] + fy * y[..., None] + phase))
    noise = random.standard_normal((count, height, width, 3)) * 12
    return np.clip(found + noise, 0, 255).astype(np.uint8)


def small_image(height, width):
    """Noise, with black and white, at which a bicubic filter overshoots."""
    image = np.random.RandomState(height).randint(0, 256, (height, width, 3)).astype(np.uint8)
    image[:2], image[2:4] = 0, 255
    return image


def write_weights(path):
    """The seeded weights under pytorch-fid's names."""
    from inception_jax.parity.seeded_weights import seeded_arrays
    from inception_jax.pretrained.publishers import registry

    np.savez(
        path, **seeded_arrays(registry.get_variant("inception_v3", "pytorch-fid"), aux_heads=False, dtype=np.float32)
    )


def metric_numbers():
    """{tool: {metric: value}} of features in float64."""
    import prdc
    import torch
    import torchmetrics.image.fid
    import torchmetrics.image.kid
    from cleanfid import fid as clean
    from pytorch_fid import fid_score
    from sklearn.linear_model import LinearRegression
    from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

    real, fake, logits = features(80, 60, 16)
    tensors = [torch.from_numpy(rows) for rows in (real, fake, logits)]
    moments = [(rows.mean(0), np.cov(rows, rowvar=False)) for rows in (real, fake)]
    kid = metric_kid.kid_features_to_metric(
        tensors[1], tensors[0], kid_subsets=10, kid_subset_size=40, rng_seed=2020, verbose=False
    )
    score = metric_isc.isc_features_to_metric(tensors[2], splits=4, rng_seed=2020)
    balls = metric_prc.prc_features_to_metric(tensors[1], tensors[0], prc_neighborhood=3, verbose=False)
    statistics = [{"mu": mu, "sigma": sigma} for mu, sigma in moments]
    near = prdc.compute_prdc(real_features=real, fake_features=fake, nearest_k=5)
    # FID-infinity by its authors' rule: FIDs of the first images after a shuffle, and a line through them.
    shuffle, counts, distances = np.random.RandomState(2020), np.linspace(30, 60, 15).astype(int), []
    for count in counts:
        rows = fake[shuffle.permutation(60)[:count]]
        distances.append(fid_score.calculate_frechet_distance(rows.mean(0), np.cov(rows, rowvar=False), *moments[0]))
    line = LinearRegression().fit(1 / counts.reshape(-1, 1), distances)
    covariances = [torch.from_numpy(sigma) for _, sigma in moments]
    return {
        "pytorch-fid": {"fid": fid_score.calculate_frechet_distance(*moments[0], *moments[1])},
        "torch-fidelity": {
            "fid": metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"],
            "kid": kid["kernel_inception_distance_mean"],
            "kid_std": kid["kernel_inception_distance_std"],
            "is": score["inception_score_mean"],
            "is_std": score["inception_score_std"],
            "precision": balls["precision"],
            "recall": balls["recall"],
        },
        "clean-fid": {
            "fid": clean.fid_from_feats(real, fake),
            "kid_of_60": clean.kernel_distance(real[:60], fake, num_subsets=1, max_subset_size=60),
        },
        "torchmetrics": {
            "fid": float(
                torchmetrics.image.fid._compute_fid(
                    tensors[0].mean(0), covariances[0], tensors[1].mean(0), covariances[1]
                )
            ),
            "kid_of_60": float(torchmetrics.image.kid.poly_mmd(tensors[0][:60], tensors[1])),
        },
        "prdc": {name: float(near[name]) for name in ("density", "coverage")},
        "scikit-learn": {"fid_infinity": float(line.intercept_)},
    }


def resized(name, image, side):
    """An image [h, w, 3] by a tool, float32 [side, side, 3] in 0 … 255."""
    import torch
    from cleanfid.resize import make_resizer
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as tf1

    if name == "pillow_bicubic":
        return make_resizer("PIL", False, "bicubic", (side, side))(image)
    batch = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
    if name == "tf1_bilinear":
        found = tf1(batch, size=(side, side), align_corners=False)
    else:
        options = {"mode": "bilinear", "align_corners": False, "antialias": name.endswith("antialias")}
        found = torch.nn.functional.interpolate(batch, size=(side, side), **options)
    return found[0].numpy().transpose(1, 2, 0)


def network_features(weights, batch):
    """{tool: (64 features, 2048 features, logits without bias or None)} of images uint8 [n, h, w, 3]."""
    import tempfile

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
    pixels = torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())
    found = {}
    with torch.no_grad(), tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save(state, file.name)
        network = inception.InceptionV3([0, 3]).eval()
        found["pytorch-fid"] = [x.mean((2, 3)).numpy() for x in network(pixels.float() / 255)]
        network = inception.InceptionV3([0, 3], resize_input=False, normalize_input=False).eval()
        clean = np.stack([resized("pillow_bicubic", image, 299) for image in batch]).transpose(0, 3, 1, 2)
        found["clean-fid"] = [x.mean((2, 3)).numpy() for x in network((torch.from_numpy(clean) - 128) / 128)]
        names = ["64", "2048", "logits_unbiased"]
        network = FeatureExtractorInceptionV3("inception-v3-compat", names, file.name)
        found["torch-fidelity"] = [x.numpy() for x in network(pixels)]
        network = NoTrainInceptionV3("inception-v3-compat", names, file.name)
        found["torchmetrics"] = [x.numpy() for x in network._torch_fidelity_forward(pixels)]
    return found


def write_goldens(weights):
    """Both files."""
    (HERE / "fid_goldens.json").write_text(json.dumps(metric_numbers(), indent=2) + "\n")
    arrays = {}
    for name in ("tf1_bilinear", "torch_bilinear", "torch_bilinear_antialias", "pillow_bicubic"):
        for height, width, side in SIZES:
            arrays[f"{name} {height} {width} {side}"] = resized(name, small_image(height, width), side)
    for tool, found in network_features(weights, images()).items():
        arrays[f"{tool} 64"] = found[0].astype(np.float32)
        arrays[f"{tool} 2048"] = found[1][:2, ::32].astype(np.float32)
        if len(found) > 2:
            arrays[f"{tool} logits"] = found[2][:2, ::32].astype(np.float32)
    np.savez_compressed(HERE / "fid_goldens.npz", **arrays)


if __name__ == "__main__":
    {"weights": write_weights, "goldens": write_goldens}[sys.argv[1]](sys.argv[2])

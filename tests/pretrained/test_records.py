"""The records of published files: held against the variants, and against the numbers that the publishers print."""

import dataclasses
import re

import pytest

from inception_jax.errors import UserError
from inception_jax.models.registry import get_spec
from inception_jax.pretrained import catalog, preprocessing, records
from inception_jax.pretrained.publishers import registry
from inception_jax.training.preprocess import NORMALIZATIONS

ALL = catalog.all_records()
USABLE = [record for record in ALL if not record.unusable]

# Top-1 and top-5 accuracy, pixels, side before the crop (or the fraction), interpolation, normalization: typed once
# more from the publishers' tables and code.
PUBLISHED = {
    "slim/inception_v1_2016_08_28": (69.8, 89.6, 224, 0.875, "tf_bilinear", "inception"),
    "slim/inception_v2_2016_08_28": (73.9, 91.8, 224, 0.875, "tf_bilinear", "inception"),
    "slim/inception_v3_2016_08_28": (78.0, 93.9, 299, 0.875, "tf_bilinear", "inception"),
    "slim/inception_v4_2016_09_09": (80.2, 95.2, 299, 0.875, "tf_bilinear", "inception"),
    "slim/inception_resnet_v2_2016_08_30": (80.4, 95.3, 299, 0.875, "tf_bilinear", "inception"),
    "slim/adv_inception_v3_2017_08_18": (None, None, 299, 0.875, "tf_bilinear", "inception"),
    "slim/ens_adv_inception_resnet_v2_2017_08_18": (None, None, 299, 0.875, "tf_bilinear", "inception"),
    "torchvision/googlenet": (69.778, 89.530, 224, 256, "pil_bilinear", "inception"),
    "torchvision/inception_v3_google": (77.294, 93.450, 299, 342, "pil_bilinear", "inception"),
    "torchvision/googlenet_fbgemm": (69.826, 89.404, 224, 256, "pil_bilinear", "inception"),
    "torchvision/inception_v3_google_fbgemm": (77.176, 93.354, 299, 342, "pil_bilinear", "inception"),
    "timm/inception_v3.tv_in1k": (77.472, 93.468, 299, 341, "pil_bicubic", "inception"),
    "timm/inception_v3.tf_in1k": (77.866, 93.644, 299, 341, "pil_bicubic", "inception"),
    "timm/inception_v3.tf_adv_in1k": (77.598, 93.726, 299, 341, "pil_bicubic", "inception"),
    "timm/inception_v3.gluon_in1k": (78.806, 94.372, 299, 341, "pil_bicubic", "imagenet"),
    "timm/inception_v4.tf_in1k": (80.144, 94.982, 299, 341, "pil_bicubic", "inception"),
    "timm/inception_resnet_v2.tf_in1k": (80.434, 95.312, 299, 333, "pil_bicubic", "inception"),
    "timm/inception_resnet_v2.tf_ens_adv_in1k": (79.998, 94.940, 299, 333, "pil_bicubic", "inception"),
    "timm/legacy_xception.tf_in1k": (79.058, 94.396, 299, 333, "pil_bicubic", "inception"),
    "keras/InceptionV3": (77.9, 93.7, 299, 0.875, "tf_bilinear", "inception"),
    "keras/InceptionV3-notop": (None, None, 299, 0.875, "tf_bilinear", "inception"),
    "keras/InceptionResNetV2": (80.3, 95.3, 299, 0.875, "tf_bilinear", "inception"),
    "keras/InceptionResNetV2-notop": (None, None, 299, 0.875, "tf_bilinear", "inception"),
    "keras/Xception": (79.0, 94.5, 299, 0.875, "tf_bilinear", "inception"),
    "keras/Xception-notop": (None, None, 299, 0.875, "tf_bilinear", "inception"),
    "cadene/inceptionv4": (80.062, 94.926, 299, 341, "pil_bilinear", "inception"),
    "cadene/inceptionresnetv2": (80.170, 95.234, 299, 341, "pil_bilinear", "inception"),
    "cadene/xception": (78.888, 94.292, 299, 333, "pil_bilinear", "inception"),
    "cadene/bn_inception": (73.524, 91.562, 224, 256, "pil_bilinear", "cadene_bgr"),
    "pytorchcv/bninception": (None, 92.26, 224, 256, "pil_bilinear", "imagenet"),
    "pytorchcv/inceptionv3": (None, 94.67, 299, 342, "pil_bilinear", "imagenet"),
    "pytorchcv/inceptionv4": (None, 95.12, 299, 342, "pil_bilinear", "imagenet"),
    "pytorchcv/inceptionresnetv1": (None, 95.20, 299, 342, "pil_bilinear", "imagenet"),
    "pytorchcv/inceptionresnetv2": (None, 95.26, 299, 342, "pil_bilinear", "imagenet"),
    "pytorchcv/xception": (None, 94.84, 299, 342, "pil_bilinear", "imagenet"),
    "caffe/bvlc_googlenet": (68.7, 88.9, 224, 256, "bilinear", "caffe_bgr"),
    "onnx/googlenet": (67.78, 88.34, 224, 256, "bilinear", "caffe_bgr"),
    "caffe/googlenet_bn": (72.05, 90.87, 224, 256, "bilinear", "caffe_bgr"),
    "onnx/inception_v2": (None, None, 224, 256, "bilinear", "caffe_bgr"),
    "inception5h/inception5h": (None, None, 224, 1.0, "bilinear", "inception5h"),
    "facenet/20180402-114759": (None, None, 160, 160, "bilinear", "facenet"),
    "facenet/20180408-102900": (None, None, 160, 160, "bilinear", "facenet"),
    "facenet-pytorch/20180402-114759-vggface2": (None, None, 160, 160, "bilinear", "facenet"),
    "facenet-pytorch/20180408-102900-casia-webface": (None, None, 160, 160, "bilinear", "facenet"),
    "pytorch-fid/inception-2015-12-05": (None, None, 299, 299, "bilinear", "inception"),
    "torch-fidelity/inception-2015-12-05": (None, None, 299, 299, "tf_bilinear", "inception"),
}
DIGESTS = {
    "torchvision/googlenet": "sha256 1378be20…",
    "torchvision/inception_v3_google": "sha256 0cc3c7bd…",
    "torchvision/googlenet_fbgemm": "sha256 c81f6644…",
    "torchvision/inception_v3_google_fbgemm": "sha256 a2837893…",
    "keras/InceptionV3": "md5 9a0d58056eeedaa3f26cb7ebd46da564",
    "keras/InceptionV3-notop": "md5 bcbd6486424b2319ff4ef7d526e38f63",
    "keras/InceptionResNetV2": "md5 e693bd0210a403b3192acc6073ad2e96",
    "keras/InceptionResNetV2-notop": "md5 d19885ff4a710c122648d3b5c3b684e4",
    "keras/Xception": "md5 0a58e3b7378bc2990ea3b43d5981f1f6",
    "keras/Xception-notop": "md5 b0042744bf5b25fce3cb969f33bebb97",
    "cadene/inceptionv4": "sha256 8e4777a0…",
    "cadene/inceptionresnetv2": "sha256 520b38e4…",
    "cadene/xception": "sha256 43020ad28…",
    "cadene/bn_inception": "sha256 52deb4733…",
    "pytorchcv/bninception": "sha1 d79ba5f573ba2da5fea5e4c9a7f67ddd526e234b",
    "pytorchcv/inceptionv3": "sha1 025fb71c673f8e325f4c24f25cbd4185540cca72",
    "pytorchcv/inceptionv4": "sha1 4ae4f331a5ff649e39626fc49cd5c24b8159cd8c",
    "pytorchcv/inceptionresnetv1": "sha1 f8b3e9e369ff38e28b4ae4def273ef78741e2e28",
    "pytorchcv/inceptionresnetv2": "sha1 19f51781f8a454803207e319289f404d50e252cb",
    "pytorchcv/xception": "sha1 a75b50eceb5fdfb1e1bfaada6820a448ce40e593",
    "caffe/bvlc_googlenet": "sha1 405fc5acd08a3bb12de8ee5e23a96bec22f08204",
    "onnx/inception_v2": "sha256 37ed4aa93f817fd0d1cc19bda045ebd70f18d0887a5f51e66ecd0ed8fd5a65c2",
    "pytorch-fid/inception-2015-12-05": "sha256 6726825d…",
    "torch-fidelity/inception-2015-12-05": "sha256 6726825d…",
}
LFW = {"20180402-114759": "0.9965", "20180408-102900": "0.9905"}


def test_every_record_once():
    assert len({record.name for record in ALL}) == len(ALL) == len(PUBLISHED)


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.name)
def test_numbers_and_pixels_are_the_publishers(record):
    rule = record.preprocessing
    kept = rule.crop.resize or rule.crop.fraction
    found = (record.top1, record.top5, rule.image_size, kept, rule.crop.interpolation, rule.normalization)
    assert found == PUBLISHED[record.name]
    assert record.claimed_by or record.top5 is None
    assert str(record.digest) == DIGESTS.get(record.name, "None")
    assert rule.normalization in NORMALIZATIONS
    assert (rule.crop.resize or rule.image_size) >= rule.image_size
    for name, accuracy in LFW.items():
        if name in record.name:
            assert any(accuracy in note for note in record.notes)


@pytest.mark.parametrize("record", USABLE, ids=lambda record: record.name)
def test_records_agree_with_the_forms_whose_switches_apply(record):
    variant = registry.get_variant(record.model, record.source)
    assert variant.image_size == record.preprocessing.image_size and variant.background == record.background
    if record.source not in ("facenet", "facenet-pytorch"):  # whose two files tell other faces apart
        assert record.classes in (variant.num_classes, 0)  # Keras has each file without the top, too
    assert record.aux_heads <= variant.aux_heads


@pytest.mark.parametrize("record", ALL, ids=lambda record: record.name)
def test_what_a_record_says_is_well_formed(record):
    get_spec(record.model)
    assert record.source in registry.source_names()
    assert record.background == (record.classes == 1001)
    if record.url and record.file:
        assert record.url.startswith(("https://", "http://")) and (record.file in record.url or "drive" in record.url)
    if record.digest:
        whole = {"sha256": 64, "sha1": 40, "md5": 32}[record.digest.algorithm]
        assert re.fullmatch(r"[0-9a-f]+", record.digest.hex) and 8 <= len(record.digest.hex) <= whole
        assert record.digest.of in record.file
    assert all(value for _, value in record.details())


def test_what_is_not_known_says_so():
    details = dict(catalog.get_record("onnx/googlenet").details())
    assert details["address"] == details["hash"] == "not known"
    assert details["top-1 / top-5"] == "67.78 / 88.34 (the ONNX model zoo)"
    assert details["licence"] == "Apache-2.0 (not checked)"
    details = dict(catalog.get_record("pytorchcv/inceptionresnetv1").details())
    assert details["top-1 / top-5"] == "not known / 95.2 (pytorchcv's model_metainfos.csv)"
    assert "the publisher gives no crop" in dict(catalog.get_record("keras/Xception").details())["images"]
    assert records.format_records([]) == "no published file is known"


def test_an_unknown_record_has_a_nearest():
    with pytest.raises(UserError, match=r"did you mean 'timm/inception_v4.tf_in1k'.*shows all 46"):
        catalog.get_record("timm/inception_v4.tf_in1")


def test_a_file_is_recognized_by_hash_and_by_name():
    full = "1378be20" + "0" * 56
    found, how = catalog.find_record("renamed.pth", full, "inception_v1_bn", "torchvision")
    assert found.name == "torchvision/googlenet" and how == "by its hash"
    found, why = catalog.find_record("googlenet-1378be20.pth", "f" * 64, "inception_v1_bn", "torchvision")
    assert found is None and "named like torchvision/googlenet, but has another hash" in why
    for name in ("inception_v4_2016_09_09.tar.gz", "inception_v4_2016_09_09.ckpt"):
        found, how = catalog.find_record(name, "f" * 64, "inception_v4", "slim")
        assert found.name == "slim/inception_v4_2016_09_09" and how == "by its name"
    # All of timm's files are called model.safetensors.
    found, why = catalog.find_record("model.safetensors", "f" * 64, "inception_v3", "timm")
    assert found is None and "timm/inception_v3.gluon_in1k" in why


def test_every_digit_of_a_hash_counts():
    whole = records.Digest("sha256", "ab" * 32, "a.pth")
    assert whole.matches("sha256", "AB" * 32)
    assert not whole.matches("sha256", "ab" * 31 + "ac") and not whole.matches("md5", "ab" * 32)
    assert records.Digest("sha256", "abab", "a.pth").matches("sha256", "ab" * 32)


def test_a_hash_of_two_records_decides_nothing(monkeypatch):
    (record, *_) = [r for r in catalog.select_records("inception_v1_bn", "torchvision") if not r.unusable]
    twin = dataclasses.replace(record, name="torchvision/twin", file="twin.pth")
    monkeypatch.setattr(catalog, "all_records", lambda: (record, twin))
    digest = record.digest.hex.ljust(64, "0")
    found, why = catalog.find_record("mine.pth", digest, record.model, record.source)
    assert found is None and "torchvision/twin" in why


def test_common_preprocessing_only_where_there_is_one():
    assert catalog.common_preprocessing("inception_resnet_v2", "timm") == preprocessing.timm(333)
    # torch-fidelity's file has the same names, and another preprocessing.
    own = catalog.get_record("pytorch-fid/inception-2015-12-05").preprocessing
    assert catalog.common_preprocessing("inception_v3", "pytorch-fid") == own
    assert own != catalog.get_record("torch-fidelity/inception-2015-12-05").preprocessing
    with pytest.raises(UserError, match=r"depends on the file; name it: --record=\{timm/inception_v3.tv_in1k, "):
        catalog.common_preprocessing("inception_v3", "timm")  # gluon's tag has another normalization
    with pytest.raises(UserError, match="no record has the preprocessing of slim's xception; name one with --record"):
        catalog.common_preprocessing("xception", "slim")

"""Table of the published files of weights: what the publishers state about each, and nothing else.

Sources: the READMEs and the code of the publishers (TF-slim's README, torchvision's and timm's weight entries and
timm's results csvs, Keras's applications, Cadene's pretrained_settings, pytorchcv's model_metainfos.csv, the readme of
bvlc_googlenet). A hash, an address or a number that none of them states is None.
"""

from __future__ import annotations

from inception_jax.pretrained import preprocessing as rules
from inception_jax.pretrained.records import Digest, WeightRecord

_APACHE_CODE = "Apache-2.0 (the code's)"
_TF = "http://download.tensorflow.org/models"
_FACES = "LFW accuracy {}; no classifier of ImageNet's classes"
_SLIM_AUX = "the auxiliary head was trained with the network"


def _slim(
    name: str, model: str, top1: float | None, top5: float | None, *notes: str, aux_heads: bool = True
) -> WeightRecord:
    size = 224 if model in ("inception_v1_bn", "inception_v2") else 299
    return WeightRecord(
        name=f"slim/{name}",
        model=model,
        source="slim",
        file=f"{name}.tar.gz",
        url=f"{_TF}/{name}.tar.gz",
        preprocessing=rules.slim(size),
        top1=top1,
        top5=top5,
        claimed_by=None if top1 is None else "TF-slim's README",
        classes=1001,
        background=True,
        aux_heads=aux_heads,
        licence="Apache-2.0",
        licence_checked=True,
        notes=notes,
    )


SLIM = (
    _slim("inception_v1_2016_08_28", "inception_v1_bn", 69.8, 89.6,
          "3x3 convolutions where the paper has 5x5", aux_heads=False),
    _slim("inception_v2_2016_08_28", "inception_v2", 73.9, 91.8,
          "whether the stem of this checkpoint has batch norm was not checked; the code's has not", aux_heads=False),
    _slim("inception_v3_2016_08_28", "inception_v3", 78.0, 93.9, _SLIM_AUX),
    _slim("inception_v4_2016_09_09", "inception_v4", 80.2, 95.2, _SLIM_AUX),
    _slim("inception_resnet_v2_2016_08_30", "inception_resnet_v2", 80.4, 95.3, _SLIM_AUX),
    _slim("adv_inception_v3_2017_08_18", "inception_v3", None, None, "adversarially trained (arXiv:1611.01236)",
          "timm measured the same weights: 77.598 / 93.726 (timm/inception_v3.tf_adv_in1k)"),
    _slim("ens_adv_inception_resnet_v2_2017_08_18", "inception_resnet_v2", None, None,
          "trained against an ensemble of adversaries (arXiv:1705.07204)",
          "timm measured the same weights: 79.998 / 94.940 (timm/inception_resnet_v2.tf_ens_adv_in1k)"),
)  # fmt: skip

_PT = "https://download.pytorch.org/models"
_QUANTIZED = "quantized to 8 bits (PyTorch's fbgemm): other arithmetic, not weights of this network"


def _torchvision(
    file: str, model: str, top1: float, top5: float, *notes: str, unusable: str | None = None
) -> WeightRecord:
    return WeightRecord(
        name=f"torchvision/{file.partition('.')[0].rpartition('-')[0]}",
        model=model,
        source="torchvision",
        file=file,
        url=f"{_PT}/quantized/{file}" if unusable else f"{_PT}/{file}",
        preprocessing=rules.torchvision(224, 256) if "googlenet" in file else rules.torchvision(299, 342),
        digest=Digest("sha256", file.partition(".")[0].rpartition("-")[2], file),
        top1=top1,
        top5=top5,
        claimed_by="torchvision's weight entry",
        aux_heads=True,
        licence="BSD-3-Clause (the code's)",
        notes=notes,
        unusable=unusable,
    )


TORCHVISION = (
    _torchvision("googlenet-1378be20.pth", "inception_v1_bn", 69.778, 89.530,
                 "trained by slim; conv1 runs with padding 3 on both sides, one pixel off from its training",
                 "the auxiliary heads are untrained", "3x3 convolutions where the paper has 5x5"),
    _torchvision("inception_v3_google-0cc3c7bd.pth", "inception_v3", 77.294, 93.450,
                 "trained by Google; its average pools count the padding, which those of its training did not"),
    _torchvision("googlenet_fbgemm-c81f6644.pth", "inception_v1_bn", 69.826, 89.404, unusable=_QUANTIZED),
    _torchvision("inception_v3_google_fbgemm-a2837893.pth", "inception_v3", 77.176, 93.354, unusable=_QUANTIZED),
)  # fmt: skip


def _timm(
    tag: str,
    top1: float,
    top5: float,
    resize: int,
    *notes: str,
    model: str | None = None,
    normalization: str = "inception",
    aux_heads: bool = False,
) -> WeightRecord:
    return WeightRecord(
        name=f"timm/{tag}",
        model=model or tag.partition(".")[0],
        source="timm",
        file="model.safetensors",
        url=f"https://huggingface.co/timm/{tag}/resolve/main/model.safetensors",
        preprocessing=rules.timm(resize, normalization),
        top1=top1,
        top5=top5,
        claimed_by="timm's results csv",
        aux_heads=aux_heads,
        licence="Apache-2.0 (timm's tag)",
        licence_checked=True,
        notes=notes,
    )


_COUNTED = "its average pools count the padding, which those of its training did not"
TIMM = (
    _timm("inception_v3.tv_in1k", 77.472, 93.468, 341, "torchvision's weights", _COUNTED, aux_heads=True),
    _timm("inception_v3.tf_in1k", 77.866, 93.644, 341, "slim's weights, without its auxiliary head", _COUNTED),
    _timm("inception_v3.tf_adv_in1k", 77.598, 93.726, 341, "slim's, adversarially trained (arXiv:1611.01236)",
          _COUNTED),
    _timm("inception_v3.gluon_in1k", 78.806, 94.372, 341, "trained by GluonCV", normalization="imagenet"),
    _timm("inception_v4.tf_in1k", 80.144, 94.982, 341, "slim's weights"),
    _timm("inception_resnet_v2.tf_in1k", 80.434, 95.312, 333, "slim's weights"),
    _timm("inception_resnet_v2.tf_ens_adv_in1k", 79.998, 94.940, 333,
          "slim's, trained against an ensemble of adversaries (arXiv:1705.07204)"),
    _timm("legacy_xception.tf_in1k", 79.058, 94.396, 333, "Keras's weights",
          "batch norm's epsilon is 1e-5 and one pool is padded otherwise: not exactly Keras's network",
          model="xception"),
)  # fmt: skip

_STORE = "https://storage.googleapis.com/tensorflow/keras-applications"


def _keras(folder: str, model: str, file: str, md5: str, top1: float | None, top5: float | None) -> WeightRecord:
    without = file.endswith("_notop.h5")
    name = {"inception_v3": "InceptionV3", "inception_resnet_v2": "InceptionResNetV2", "xception": "Xception"}[model]
    return WeightRecord(
        name=f"keras/{name}" + ("-notop" if without else ""),
        model=model,
        source="keras",
        file=file,
        url=f"{_STORE}/{folder}/{file}",
        preprocessing=rules.KERAS,
        digest=Digest("md5", md5, file),
        top1=None if without else top1,
        top5=None if without else top5,
        claimed_by=None if without else "Keras's table of applications",
        classes=0 if without else 1000,
        licence=_APACHE_CODE,
        notes=("the order of the layers in the file was not checked, only that of today's builder",),
    )


_TAIL = "_weights_tf_dim_ordering_tf_kernels"
KERAS = (
    _keras("inception_v3", "inception_v3", f"inception_v3{_TAIL}.h5", "9a0d58056eeedaa3f26cb7ebd46da564", 77.9, 93.7),
    _keras("inception_v3", "inception_v3", f"inception_v3{_TAIL}_notop.h5", "bcbd6486424b2319ff4ef7d526e38f63",
           None, None),
    _keras("inception_resnet_v2", "inception_resnet_v2", f"inception_resnet_v2{_TAIL}.h5",
           "e693bd0210a403b3192acc6073ad2e96", 80.3, 95.3),
    _keras("inception_resnet_v2", "inception_resnet_v2", f"inception_resnet_v2{_TAIL}_notop.h5",
           "d19885ff4a710c122648d3b5c3b684e4", None, None),
    _keras("xception", "xception", f"xception{_TAIL}.h5", "0a58e3b7378bc2990ea3b43d5981f1f6", 79.0, 94.5),
    _keras("xception", "xception", f"xception{_TAIL}_notop.h5", "b0042744bf5b25fce3cb969f33bebb97", None, None),
)  # fmt: skip


def _cadene(
    file: str, model: str, top1: float, top5: float, rule: rules.Preprocessing, *notes: str, classes: int = 1000
) -> WeightRecord:
    stem, _, prefix = file.partition(".")[0].rpartition("-")
    return WeightRecord(
        name=f"cadene/{stem}",
        model=model,
        source="cadene",
        file=file,
        url=f"http://data.lip6.fr/cadene/pretrainedmodels/{file}",
        preprocessing=rule,
        digest=Digest("sha256", prefix, file),
        top1=top1,
        top5=top5,
        claimed_by="Cadene's README",
        classes=classes,
        background=classes == 1001,
        licence="BSD-3-Clause",
        notes=notes,
    )


_ROWS = "the file has 1001 rows; Cadene's own 'imagenet' leaves out the first"
CADENE = (
    _cadene("inceptionv4-8e4777a0.pth", "inception_v4", 80.062, 94.926, rules.cadene(299, 341), _ROWS, classes=1001),
    _cadene("inceptionresnetv2-520b38e4.pth", "inception_resnet_v2", 80.170, 95.234, rules.cadene(299, 341), _ROWS,
            classes=1001),
    _cadene("xception-43020ad28.pth", "xception", 78.888, 94.292, rules.cadene(299, 333),
            "batch norm's epsilon is 1e-5 and one pool is padded otherwise: not exactly Keras's network"),
    _cadene("bn_inception-52deb4733.pth", "inception_v2", 73.524, 91.562, rules.cadene(224, 256, "cadene_bgr"),
            "608 channels in 4c and 4d, as the paper's table says and its own sums do not",
            "its mean of the reds is 128 where Caffe's is 123"),
)  # fmt: skip

_OSMR = "https://github.com/osmr/imgclsmob/releases/download"


def _pytorchcv(
    name: str, model: str, error: str, sha1: str, release: str, *notes: str, size: int = 299
) -> WeightRecord:
    # pytorchcv's model_store.py: the name, the top-5 error in hundredths of a percent, the start of the file's SHA-1.
    inner = f"{name}-{error}-{sha1[:8]}.pth"
    return WeightRecord(
        name=f"pytorchcv/{name}",
        model=model,
        source="pytorchcv",
        file=f"{inner}.zip",
        url=f"{_OSMR}/{release}/{inner}.zip",
        preprocessing=rules.pytorchcv(size, {224: 256, 299: 342}[size]),
        digest=Digest("sha1", sha1, inner),
        top5=round(100 - int(error) / 100, 2),
        claimed_by="pytorchcv's model_metainfos.csv",
        licence="MIT (the code's)",
        notes=notes,
    )


PYTORCHCV = (
    _pytorchcv("bninception", "inception_v2", "0774", "d79ba5f573ba2da5fea5e4c9a7f67ddd526e234b", "v0.0.405",
               "608 channels in 4c and 4d", size=224),
    _pytorchcv("inceptionv3", "inception_v3", "0533", "025fb71c673f8e325f4c24f25cbd4185540cca72", "v0.0.552"),
    _pytorchcv("inceptionv4", "inception_v4", "0488", "4ae4f331a5ff649e39626fc49cd5c24b8159cd8c", "v0.0.543"),
    _pytorchcv("inceptionresnetv1", "inception_resnet_v1", "0480", "f8b3e9e369ff38e28b4ae4def273ef78741e2e28",
               "v0.0.552", "facenet's trunk and bottleneck before ImageNet's classes"),
    _pytorchcv("inceptionresnetv2", "inception_resnet_v2", "0474", "19f51781f8a454803207e319289f404d50e252cb",
               "v0.0.547"),
    _pytorchcv("xception", "xception", "0516", "a75b50eceb5fdfb1e1bfaada6820a448ce40e593", "v0.0.544"),
)  # fmt: skip

CAFFE = (
    WeightRecord(
        name="caffe/bvlc_googlenet",
        model="inception_v1",
        source="caffe",
        file="bvlc_googlenet.caffemodel",
        url="http://dl.caffe.berkeleyvision.org/bvlc_googlenet.caffemodel",
        preprocessing=rules.CAFFE,
        digest=Digest("sha1", "405fc5acd08a3bb12de8ee5e23a96bec22f08204", "bvlc_googlenet.caffemodel"),
        top1=68.7,
        top5=88.9,
        claimed_by="BVLC's readme",
        aux_heads=True,
        licence="unrestricted",
        licence_checked=True,
        notes=("OpenVINO measured 68.928 / 89.144",),
    ),
    WeightRecord(
        name="onnx/googlenet",
        model="inception_v1",
        source="onnx",
        file="googlenet-12.onnx",
        preprocessing=rules.CAFFE,
        top1=67.78,
        top5=88.34,
        claimed_by="the ONNX model zoo",
        licence="Apache-2.0",
        notes=("Caffe's bvlc_googlenet as ONNX, without its auxiliary heads",),
    ),
    WeightRecord(
        name="caffe/googlenet_bn",
        model="inception_v2",
        source="caffe",
        file=None,
        preprocessing=rules.CAFFE,
        top1=72.05,
        top5=90.87,
        claimed_by="lim0606/caffe-googlenet-bn",
        licence="unrestricted",
        licence_checked=True,
        notes=(
            "subtracts a mean image, not a mean colour",
            "labels in ILSVRC 2015's order",
        ),
        unusable="its BN layer is of a modified Caffe, and its mean image and class order are not published with it",
    ),
)

ONNX_V2 = WeightRecord(
    name="onnx/inception_v2",
    model="inception_v2",
    source="onnx",
    file="inception-v2-9.onnx",
    preprocessing=rules.CAFFE,
    digest=Digest("sha256", "37ed4aa93f817fd0d1cc19bda045ebd70f18d0887a5f51e66ecd0ed8fd5a65c2", "inception-v2-9.onnx"),
    licence="MIT",
    licence_checked=True,
    notes=(
        "the table with 576 channels, a dense stem, and batch norm whose own scale is 1, before a scale and a bias",
    ),
    unusable="neither the order of its classes nor its preprocessing is published (inception_jax/pretrained/README.md "
    "says where we looked)",
)

INCEPTION5H = (
    WeightRecord(
        name="inception5h/inception5h",
        model="inception_v1",
        source="inception5h",
        file="inception5h.zip",
        url="https://storage.googleapis.com/download.tensorflow.org/models/inception5h.zip",
        preprocessing=rules.INCEPTION5H,
        classes=1008,
        aux_heads=True,
        notes=(
            "1008 outputs in an order of its own, not ImageNet's",
            "the constants of its response normalization stand in the graph itself; ports disagree about them",
        ),
    ),
)


def _facenet(name: str, faces: str, accuracy: str, drive: str) -> WeightRecord:
    return WeightRecord(
        name=f"facenet/{name}",
        model="inception_resnet_v1",
        source="facenet",
        file=f"{name}.zip",
        url=f"https://drive.google.com/open?id={drive}",
        preprocessing=rules.FACENET,
        classes=None,
        claimed_by="facenet's README",
        licence="MIT",
        notes=(f"trained on {faces}", _FACES.format(accuracy)),
    )


def _facenet_pytorch(name: str, faces: str, classes: int, accuracy: str) -> WeightRecord:
    return WeightRecord(
        name=f"facenet-pytorch/{name}",
        model="inception_resnet_v1",
        source="facenet-pytorch",
        file=f"{name}.pt",
        url=f"https://github.com/timesler/facenet-pytorch/releases/download/v2.2.9/{name}.pt",
        preprocessing=rules.FACENET,
        classes=classes,
        claimed_by="facenet-pytorch's README",
        licence="MIT",
        notes=(f"facenet's weights, trained on {faces}", _FACES.format(accuracy)),
    )


FACENET = (
    _facenet("20180402-114759", "VGGFace2", "0.9965", "1EXPBSXwTaqrSC0OhUdXNmKSh9qJUQ55-"),
    _facenet("20180408-102900", "CASIA-WebFace", "0.9905", "1R77HmFADxe87GmoLwzfgMu_HY0IhcyBz"),
    _facenet_pytorch("20180402-114759-vggface2", "VGGFace2", 8631, "0.9965"),
    _facenet_pytorch("20180408-102900-casia-webface", "CASIA-WebFace", 10575, "0.9905"),
)


def _fid(publisher: str, file: str, url: str, rule: rules.Preprocessing, note: str) -> WeightRecord:
    return WeightRecord(
        name=f"{publisher}/inception-2015-12-05",
        model="inception_v3",
        source="pytorch-fid",
        file=file,
        url=url,
        preprocessing=rule,
        digest=Digest("sha256", "6726825d", file),
        classes=1008,
        licence="Apache-2.0",
        licence_checked=True,
        notes=("for the Fréchet inception distance; 1008 outputs in an order of their own", note),
    )


FID = (
    _fid("pytorch-fid", "pt_inception-2015-12-05-6726825d.pth",
         "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
         rules.PYTORCH_FID, "resizes with half-pixel centers, unlike the original graph"),
    _fid("torch-fidelity", "weights-inception-2015-12-05-6726825d.pth",
         "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
         rules.TENSORFLOW_FID, "resizes as the original graph: TensorFlow 1's bilinear"),
)  # fmt: skip

PUBLISHED: tuple[WeightRecord, ...] = (
    *SLIM, *TORCHVISION, *TIMM, *KERAS, *CADENE, *PYTORCHCV, *CAFFE, ONNX_V2, *INCEPTION5H, *FACENET, *FID,
)  # fmt: skip

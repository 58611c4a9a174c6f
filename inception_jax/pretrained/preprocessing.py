"""Preprocessing of an image in each publisher's own evaluation: size, crop, interpolation, normalization."""

from __future__ import annotations

import dataclasses
from typing import Any

from inception_jax.data.crops import EvalCrop


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of images in a publisher's own evaluation.

    Attributes:
      normalization: a name of `training.preprocess.NORMALIZATIONS`; the channel order is part of it.
      image_size: height and width of the network's input, in pixels.
      crop: the part of the image that the network gets, and the interpolation.
      source: the publisher's file or function that defines it.
      published: whether the publisher gives the crop at all; otherwise `source` names where it is taken from.
    """

    normalization: str
    image_size: int
    crop: EvalCrop
    source: str
    published: bool = True

    def config_fields(self) -> dict[str, Any]:
        """Returns {config field: value} with which a run of this package preprocesses images in the same way."""
        sides = {"crop_fraction": self.crop.fraction} if self.crop.resize is None else {"resize": self.crop.resize}
        evaluation = {"crop": self.crop.rule, "interpolation": self.crop.interpolation, **sides}
        return {
            "data.normalization": self.normalization,
            "data.image_size": self.image_size,
            **{f"evaluation.{name}": value for name, value in evaluation.items()},
        }

    def summary(self) -> str:
        """One line: size, crop and interpolation in words, the normalization by its name."""
        doubt = "" if self.published else "; the publisher gives no crop"
        return (
            f"{self.image_size} pixels: {self.crop.summary(self.image_size)}; {self.normalization} normalization{doubt}"
        )


def slim(image_size: int) -> Preprocessing:
    """Preprocessing of TF-slim's evaluation.

    Args:
      image_size: height and width, in pixels.
    """
    return Preprocessing(
        "inception",
        image_size,
        EvalCrop("central_fraction", 0.875, "tf_bilinear"),
        "tensorflow/models research/slim/preprocessing/inception_preprocessing.py: preprocess_for_eval",
    )


def torchvision(image_size: int, resize: int) -> Preprocessing:
    """Preprocessing of torchvision's presets; ImageNet's normalization, then `transform_input`, equals "inception".

    Args:
      image_size: height and width, in pixels.
      resize: of the shorter side before the crop, in pixels.
    """
    return Preprocessing(
        "inception",
        image_size,
        EvalCrop("torchvision", interpolation="pil_bilinear", resize=resize),
        "torchvision/transforms/_presets.py: ImageClassification; transform_input of the models",
    )


def timm(resize: int, normalization: str = "inception") -> Preprocessing:
    """Preprocessing of timm's evaluation at 299 pixels.

    Args:
      resize: floor(299 / crop_pct): 341 for 0.875, 333 for 0.8975.
      normalization: as the tag's mean and std say.
    """
    return Preprocessing(
        normalization,
        299,
        EvalCrop("torchvision", interpolation="pil_bicubic", resize=resize),
        "timm/data/transforms_factory.py: transforms_imagenet_eval; the default_cfgs of the model",
    )


def cadene(image_size: int, resize: int, normalization: str = "inception") -> Preprocessing:
    """Preprocessing by Cadene's TransformImage.

    Args:
      image_size: height and width, in pixels.
      resize: floor(image_size / scale), in pixels.
      normalization: as the model's pretrained_settings say.
    """
    return Preprocessing(
        normalization,
        image_size,
        EvalCrop("torchvision", interpolation="pil_bilinear", resize=resize),
        "pretrainedmodels/utils.py: TransformImage; pretrained_settings of the model",
    )


def pytorchcv(image_size: int, resize: int) -> Preprocessing:
    """Preprocessing of pytorchcv's evaluation script.

    Args:
      image_size: height and width, in pixels.
      resize: ceil(image_size / 0.875), in pixels.
    """
    return Preprocessing(
        "imagenet",
        image_size,
        EvalCrop("torchvision", interpolation="pil_bilinear", resize=resize),
        "osmr/imgclsmob pytorch/datasets/imagenet1k_cls_dataset.py: imagenet_val_transform",
    )


KERAS = Preprocessing(
    "inception",
    299,
    EvalCrop("central_fraction", 0.875, "tf_bilinear"),
    "keras.applications' preprocess_input (mode 'tf') gives the normalization; no crop: TF-slim's is used, whose "
    "Inception-v3 and Inception-ResNet-v2 compute the same",
    published=False,
)

CAFFE = Preprocessing(
    "caffe_bgr",
    224,
    EvalCrop("squash", interpolation="bilinear", resize=256),
    "BVLC/caffe models/bvlc_googlenet/train_val.prototxt (crop_size 224, mean_value 104 117 123), "
    "examples/imagenet/create_imagenet.sh (256x256)",
)

INCEPTION5H = Preprocessing(
    "inception5h",
    224,
    EvalCrop("center", 1.0, "bilinear"),
    "tensorflow/tensorflow's LabelImage.java gives size, mean and scale; no crop: the largest central square is used",
    published=False,
)

FACENET = Preprocessing(
    "facenet",
    160,
    EvalCrop("squash", interpolation="bilinear", resize=160),
    "davidsandberg/facenet src/facenet.py: fixed_image_standardization; faces are detected and cropped first "
    "(MTCNN, margin), which this package does not do: give it the cropped face",
    published=False,
)

PYTORCH_FID = Preprocessing(
    "inception",
    299,
    EvalCrop("squash", interpolation="bilinear", resize=299),
    "pytorch_fid/inception.py: InceptionV3.forward (interpolate, then 2 x - 1); floating point there, bytes here",
)

# torch-fidelity resizes as the original FID graph does.
TENSORFLOW_FID = Preprocessing(
    "inception",
    299,
    EvalCrop("squash", interpolation="tf_bilinear", resize=299),
    "torch_fidelity/feature_extractor_inceptionv3.py: FeatureExtractorInceptionV3.forward; floating point there, "
    "bytes here",
)

"""Fine-tunes GoogLeNet with batch norm, trained on ImageNet, on your own images.

    python -m inception_jax.train --config=configs/fine_tuning.py:IMAGES --workdir=runs/mine \
        --config.initialize.checkpoint=runs/v1_bn

IMAGES is a folder that holds train/CLASS/*.jpg and test/CLASS/*.jpg, a list (photos.csv), or another data set with its
kind before it: webdataset:PATTERN, huggingface:PATH, or tfds:NAME of a prepared one. A classifier of another number of
classes is initialized at random; if the number is the same, `--config.initialize.new="('(^|/)classifier/',)"` does it.
The stem and the modules up to 4e are frozen, batch norm included; 5a and 5b train with a tenth of the new classifier's
learning rate. The log and initialization.json list what was restored.

Hardware: two x86-64 cores, for the result; 224 pixels need an accelerator.
Result: 77.5 % of 80 held-out crops (training 83.8 %) on 160 crops of four photographs at 64 pixels, 60 steps from a
short digits run; from the same weights in torchvision's file format, the same bits (experiments/fine_tuning). With
momentum 0.99, which keeps 55 % of the source's batch-norm statistics over 60 steps, 71.3 %; the run that led here had
ended at 96 % of the training and 25 % of the test images. With nothing frozen (`--config.optimizer.freeze="()"`) it is
92.5 %, and 68.8 % with momentum 0.99: weights of digits need to change. Not yet run from weights of ImageNet: the
learning rates are choices to start from.
"""

from ml_collections import ConfigDict

import inception_jax.config


def get_config(images: str = "images") -> ConfigDict:
    """Returns the config, ready for overrides.

    Args:
      images: holds train/ and test/, each with one folder per class; a list; or KIND:NAME of another data set.
    """
    config = inception_jax.config.default()
    config.seed = 0
    config.batch_size = 32
    config.num_epochs = 20.0

    config.model.name = "inception_v1_bn"  # as in the run of the checkpoint
    # TF-Slim's 0.9997 would keep ImageNet's statistics for thousands of steps. In a run of less than 460 steps the
    # momentum is lower, so that 1 % of them remains at the end.
    config.model.options.bn_momentum = 0.99
    config.model.bn_initial_fraction = 0.01
    config.model.aux_heads = False  # they help to train modules that are frozen here

    config.data.name = inception_jax.config.data_name(images)
    config.data.image_size = 224
    config.data.normalization = "inception"  # as in the run of the checkpoint

    config.initialize.checkpoint = "runs/v1_bn"
    config.optimizer.freeze = ("^conv", "^inception_[34]")
    config.optimizer.frozen_batch_norm = "running"
    config.optimizer.learning_rate_multipliers = (("^inception_5", 0.1),)

    config.augmentation.rule = "area_aspect"
    config.augmentation.area = (0.3, 1.0)
    config.augmentation.aspect = (3 / 4, 4 / 3)  # arXiv:1409.4842, section 6
    config.augmentation.flip = True

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.02
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 4e-5  # as configs/inception_v1_bn_imagenet.py

    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0

    config.ema.decay = 0.999
    config.evaluation.crop_fraction = 0.875
    return config

"""GoogLeNet with batch norm, trained on ImageNet, on pictures of one's own: a folder with one subfolder per class.

    python -m inception_jax.train --config=configs/fine_tuning.py:PICTURES --workdir=runs/mine \
        --config.initialize.checkpoint=runs/v1_bn

PICTURES holds train/CLASS/*.jpg and test/CLASS/*.jpg. The classifiers of another number of classes begin anew by
themselves; where there happen to be as many classes, `--config.initialize.new="('(^|/)classifier/',)"` makes them. The
stem and the modules up to 4e stay as they are, batch norm included; 5a and 5b train at a tenth of the rate that the new
classifier trains at. What was taken is in the log and in initialization.json.

Hardware: one accelerator, or some patience. Result: not yet run.
The numbers are unmeasured choices, to start from.
"""

import inception_jax.config


def get_config(folder: str = "pictures"):
    """The recipe, ready for overrides.

    Args:
      folder: holds train/ and test/, each with one folder per class.
    """
    config = inception_jax.config.default()
    config.seed = 0
    config.batch_size = 32
    config.num_epochs = 20.0

    config.model.name = "inception_v1_bn"  # as the run that it begins with
    config.model.options.bn_momentum = 0.99  # slim's 0.9997 would keep ImageNet's statistics for thousands of steps
    config.model.aux_heads = False  # they are there for the modules that are frozen here

    config.data.name = f"folder:{folder}"
    config.data.image_size = 224
    config.data.normalization = "inception"  # as the run that it begins with

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

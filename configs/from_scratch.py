"""Trains GoogLeNet with batch norm on your own images, from random weights.

    python -m inception_jax.train --config=configs/from_scratch.py:IMAGES --workdir=runs/mine \
        --config.data.train_split='train[:80%]' --config.data.eval_split='train[80%:]'

IMAGES is a folder with a folder of images per class, a list (photos.csv), or another data set with its kind before it:
webdataset:PATTERN, huggingface:PATH, or tfds:NAME of a prepared one. The two fields hold out a fifth of the images;
leave them out where there is a split `test`. On a CPU add --config.data.image_size=64 and
--config.model.width_multiplier=0.25. Where weights of similar images are at hand, configs/fine_tuning.py needs fewer
images.

Hardware: one accelerator; two x86-64 cores for the small form above.
Result: on 2,000 images of Fashion-MNIST (`:tfds:fashion_mnist`, train[:2000]), 64 pixels and a quarter of the width,
86.8, 87.6 and 88.4 % of 1,000 held-out ones (train[59000:]; seeds 0 to 2, EMA weights; 160 to 220 s of two busy cores).
Not run at full size. The rate and the crops were chosen by single runs of 20 epochs on 920 pictures of eight classes,
which are not kept: with crops from 30 % of the area the rate of 0.05 was ahead of 0.025 and 0.1 by 2 and 7 points (230
held-out pictures; their standard error is 3 points), and crops from 60 % were ahead of 30 and 8 % by 2 and 9; 50 % lies
between. All other numbers without a source are choices.
"""

from ml_collections import ConfigDict

import inception_jax.config


def get_config(images: str = "images") -> ConfigDict:
    """Returns the config, ready for overrides.

    Args:
      images: a folder of class folders, a list, or KIND:NAME of another data set.
    """
    config = inception_jax.config.default()
    config.seed = 0
    config.batch_size = 32
    config.num_epochs = 30.0

    config.model.name = "inception_v1_bn"
    # In a run of less than 460 steps the momentum is lower, so that 1 % of the initial statistics remains at the end.
    config.model.options.bn_momentum = 0.99
    config.model.bn_initial_fraction = 0.01
    config.model.dropout_rate = 0.2

    config.data.name = inception_jax.config.data_name(images)
    config.data.image_size = 224
    config.data.normalization = "inception"

    config.augmentation.rule = "area_aspect"
    config.augmentation.area = (0.5, 1.0)
    config.augmentation.aspect = (3 / 4, 4 / 3)  # arXiv:1409.4842, section 6
    config.augmentation.flip = True

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.05
    config.optimizer.momentum = 0.9
    config.optimizer.nesterov = True
    config.optimizer.weight_decay = 5e-4

    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 2.0

    config.loss.label_smoothing = 0.1  # arXiv:1512.00567, section 7
    config.ema.decay = 0.99
    config.evaluation.crop_fraction = 0.875
    config.logging.every_steps = 20
    return config

"""Inception-v4 on ImageNet, with the numbers of arXiv:1602.07261 and Google's code.

    python -m inception_jax.data.prepare imagenet2012 --source=DIRECTORY_OF_THE_TWO_TARS
    python -m inception_jax.train --config=configs/inception_v4_imagenet.py --workdir=runs/v4

Published, not reproduced here: 20.0 % top-1 and 5.0 % top-5 error, one crop; TF-Slim's checkpoint 80.2 % top-1.
The paper gives neither batch size nor length: 20 replicas (section 5) are taken to have 32 examples each, as
arXiv:1512.00567 had, and the length is that paper's 100 epochs. Colours are distorted and images resized as by slim's
inception_preprocessing with fast_mode=False; its default is the fast mode
(photometric = "slim_fast", bilinear). Left out: ImageNet's bounding boxes, of which that code has a crop cover 10 %
(without them no crop has less than 10 % of the area), and the whole image where 100 attempts find no crop.
Hardware: several accelerators, or one with config.optimizer.accumulation. Result: not yet run.
"""

from ml_collections import ConfigDict

import inception_jax.config


def get_config() -> ConfigDict:
    """Returns the config, ready for overrides."""
    config = inception_jax.config.default()
    config.seed = 0
    config.batch_size = 640  # see above
    config.num_epochs = 100.0  # arXiv:1512.00567, section 8

    config.model.name = "inception_v4"
    config.model.dropout_rate = 0.2  # arXiv:1602.07261, figure 9: keep 0.8
    config.model.options.bn_momentum = 0.9997  # slim's inception_arg_scope
    config.loss.aux_weights = (0.4,)  # slim's train_image_classifier.py
    config.loss.label_smoothing = 0.1  # arXiv:1512.00567, section 7; TF's inception_train.py

    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 299
    config.data.normalization = "inception"

    config.augmentation.rule = "area_aspect"
    config.augmentation.area = (0.05, 1.0)  # slim's inception_preprocessing
    config.augmentation.aspect = (3 / 4, 4 / 3)
    config.augmentation.flip = True
    config.augmentation.interpolation = "random"  # the same: four methods
    config.augmentation.photometric = "slim"  # the same

    config.optimizer.name = "rmsprop"
    config.optimizer.learning_rate = 0.045  # arXiv:1602.07261, section 5
    config.optimizer.decay = 0.9  # the same
    config.optimizer.epsilon = 1.0  # the same
    config.optimizer.momentum = 0.9  # TF's inception_train.py
    config.optimizer.weight_decay = 4e-5  # slim's inception_arg_scope
    config.optimizer.clip_norm = 2.0  # arXiv:1512.00567, section 8

    config.schedule.name = "exponential"
    config.schedule.decay_rate = 0.94  # arXiv:1602.07261, section 5: every two epochs
    config.schedule.decay_epochs = 2.0
    config.schedule.staircase = True

    config.ema.decay = 0.9999  # TF's inception_train.py; "a running average of the parameters", section 5
    config.evaluation.crop = "central_fraction"  # slim's inception_preprocessing
    config.evaluation.crop_fraction = 0.875
    config.logging.every_steps = 100
    return config

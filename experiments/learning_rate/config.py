"""The base recipe of the sweep: a narrow GoogLeNet with batch norm on the digits, one minute on one x86-64 core.

    python -m inception_jax.sweep --config=experiments/learning_rate/config.py \
        --space=experiments/learning_rate/space.py --study=runs/learning_rate --trials=24 --workers=2 \
        --min_evaluations=5 --reduction_factor=2

A variant of configs/digits.py with a quarter of the width, 32 pixels and batch norm, so that 24 trials take minutes.
"""

from ml_collections import ConfigDict

import inception_jax.config


def get_config() -> ConfigDict:
    """Returns the config, ready for overrides."""
    config = inception_jax.config.default()
    config.seed = 0
    config.batch_size = 32
    config.num_epochs = 20.0

    config.model.name = "inception_v1_bn"
    config.model.width_multiplier = 0.25
    config.model.options.bn_momentum = (
        0.95  # 900 steps: with the papers' 0.9997 the running statistics would stay near their initial values
    )

    config.data.name = "digits"
    config.data.train_split = "train[:80%]"
    config.data.eval_split = "train[80%:]"  # held out of the training images; the sweep does not read the test split
    config.data.image_size = 32

    # As in configs/digits.py.
    config.augmentation.rule = "area_aspect"
    config.augmentation.area = (0.7, 1.0)
    config.augmentation.aspect = (0.8, 1.25)
    config.augmentation.flip = False

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01  # replaced by the sweep
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 2e-4

    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 1.0

    config.ema.decay = 0.99
    config.evaluation.crop_fraction = 1.0
    config.logging.every_steps = 15
    config.logging.pictures = False
    return config

"""The base recipe: a narrow GoogLeNet with batch norm and both heads, one epoch of Fashion-MNIST, a minute of a core.

    python -m inception_jax.sweep --config=experiments/time_to_target/config.py \
        --space=experiments/time_to_target/factors.py --study=runs/factors --trials=64 --sampler=quasi --pruner=none
"""

from ml_collections import ConfigDict

import inception_jax.config

TARGET = 0.82


def get_config() -> ConfigDict:
    """Returns the config, ready for overrides."""
    config = inception_jax.config.default()
    config.batch_size = 64
    config.num_epochs = 1.0

    config.model.name = "inception_v1_bn"
    config.model.width_multiplier = 0.25
    config.model.in_channels = 1
    config.model.convolution = "onednn_winograd"
    config.model.options.bn_momentum = 0.9

    config.data.name = "fashion_mnist"
    config.data.train_split = "train[:55000]"
    config.data.eval_split = "train[58000:]"  # held out of the training images; the test split is not read
    config.data.image_size = 32

    config.augmentation.rule = "area_aspect"
    config.augmentation.area = (0.8, 1.0)
    config.augmentation.aspect = (0.8, 1.25)

    config.optimizer.learning_rate = 0.02
    config.optimizer.weight_decay = 5e-4
    config.schedule.name = "cosine"
    config.schedule.warmup_epochs = 0.1

    config.parallel.steps_per_execution = 4

    config.stop.target = TARGET
    config.stop.at_target = False  # goes on to the end, so that the final accuracy is there, too
    config.evaluation.every_epochs = 1 / 16
    config.evaluation.batch_size = 250
    config.evaluation.crop_fraction = 1.0
    config.checkpoint.every_epochs = 1.0
    config.logging.every_steps = 50
    config.logging.pictures = False
    config.logging.tensorboard = False
    return config

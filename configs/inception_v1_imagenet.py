"""GoogLeNet on ImageNet, as in Caffe's solvers and as in the paper.

    python -m inception_jax.data.prepare imagenet2012 --source=DIRECTORY_OF_THE_TWO_TARS
    python -m inception_jax.train --config=configs/inception_v1_imagenet.py --workdir=runs/v1
    python -m inception_jax.train --config=configs/inception_v1_imagenet.py:quick --workdir=runs/v1_quick
    python -m inception_jax.train --config=configs/inception_v1_imagenet.py:paper --workdir=runs/v1_paper

caffe  bvlc_googlenet's solver.prototxt: x0.96 every 320,000 iterations, which are 8.0 epochs of batch 32.
quick  quick_solver.prototxt, which gave the released model: polynomial decay, 2.4 million iterations (60 epochs);
       published accuracy 68.7 % top-1, 88.9 % top-5 (one center crop; not reproduced here).
paper  arXiv:1409.4842, section 6, where it differs: crops of 8 to 100 % of the area, random interpolation, the
       photometric distortions of A. Howard, averaged weights (EMA) at evaluation. The paper gives neither learning
       rate, weight decay, batch size nor length: these are Caffe's.
Left out of caffe and quick: Caffe stores each image at 256x256 pixels, aspect ratio not kept, and crops that; here the
shorter side becomes 256 pixels. Left out of paper: asynchronous updates by several replicas; interpolation is random
from the first step, not "relatively late"; Howard's crops from larger images, because the paper has its own.
Hardware: one accelerator. Result: not yet run.
"""

from ml_collections import ConfigDict

import inception_jax.config


def get_config(recipe: str = "caffe") -> ConfigDict:
    """Returns the config, ready for overrides."""
    if recipe not in ("caffe", "quick", "paper"):
        raise ValueError(f"inception_v1_imagenet.py:{recipe}: the recipes are caffe, quick and paper")
    config = inception_jax.config.default()
    config.seed = 0
    config.batch_size = 32  # train_val.prototxt
    config.num_epochs = 60.0 if recipe == "quick" else 250.0  # max_iter 2,400,000 and 10,000,000

    config.model.name = "inception_v1"
    config.loss.aux_weights = (0.3, 0.3)  # arXiv:1409.4842, section 5

    config.data.name = "imagenet2012"
    config.data.eval_split = "validation"
    config.data.image_size = 224
    config.data.normalization = "caffe"  # train_val.prototxt: mean 104, 117, 123 (B, G, R), no scaling

    config.augmentation.flip = True
    if recipe == "paper":
        config.augmentation.rule = "area_aspect"
        config.augmentation.area = (0.08, 1.0)  # arXiv:1409.4842, section 6
        config.augmentation.aspect = (3 / 4, 4 / 3)  # the same
        config.augmentation.interpolation = "random"  # the same
        config.augmentation.photometric = "howard"  # the same; arXiv:1312.5402, section 2
        config.augmentation.lighting = 0.1  # Howard adds AlexNet's lighting noise, whose deviation this is
        config.ema.decay = 0.9999  # "Polyak averaging"; the paper gives no decay, TF's v3 trainer has this one
    else:
        config.augmentation.rule = "random_crop"
        config.augmentation.resize = 256  # 224 of 256: crop_size in train_val.prototxt

    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 0.01  # solver.prototxt, quick_solver.prototxt: base_lr
    config.optimizer.momentum = 0.9
    config.optimizer.weight_decay = 2e-4
    config.optimizer.bias_learning_rate = 2.0  # train_val.prototxt: lr_mult of every bias

    if recipe == "quick":
        config.schedule.name = "polynomial"
        config.schedule.power = 0.5
    else:
        config.schedule.name = "exponential"
        config.schedule.decay_rate = 0.96  # arXiv:1409.4842, section 6: 4 % every 8 epochs
        config.schedule.decay_epochs = 8.0
        config.schedule.staircase = True

    config.evaluation.crop = "center"
    config.evaluation.crop_fraction = 0.875  # 224 of 256
    config.logging.every_steps = 100
    return config

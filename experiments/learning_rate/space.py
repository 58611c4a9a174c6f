"""Which learning rate, for which batch? Three decades of the one, three sizes of the other."""

from inception_jax.sweeps.space import choice, real


def get_space():
    """What is varied; everything else stays as the recipe has it."""
    return {
        "optimizer.learning_rate": real(1e-3, 1.0, log=True),
        "batch_size": choice(16, 32, 64),
    }

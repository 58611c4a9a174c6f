"""The search space: three decades of learning rates, three batch sizes."""

from inception_jax.sweeps.parameters import Parameter
from inception_jax.sweeps.space import choice, real


def get_space() -> dict[str, Parameter]:
    """Returns the parameters; every other field keeps the recipe's value."""
    return {
        "optimizer.learning_rate": real(1e-3, 1.0, log=True),
        "batch_size": choice(16, 32, 64),
    }

"""The factors of the recipe that the sweep varies, all at once."""

from inception_jax.sweeps.parameters import Parameter
from inception_jax.sweeps.space import choice, real


def get_space() -> dict[str, Parameter]:
    """Returns the parameters; every other field keeps the recipe's value."""
    return {
        "optimizer.name": choice("sgd", "rmsprop"),
        "optimizer.learning_rate": real(3e-3, 0.3, log=True),
        "batch_size": choice(32, 64, 128, 256),
        "loss.label_smoothing": choice(0.0, 0.1),
        "model.dropout_rate": choice(0.0, 0.4),
        "model.aux_dropout_rate": choice(0.0, 0.7),
        "ema.decay": choice(0.0, 0.99),
    }

"""Four configs with five seeds each: the base recipe and the fastest trial of the sweep, with and without an EMA."""

from typing import Any

FASTEST = {
    "optimizer.name": "rmsprop",
    "optimizer.learning_rate": 0.12,
    "batch_size": 128,
    "loss.label_smoothing": 0.1,
    "model.dropout_rate": 0.4,
    "model.aux_dropout_rate": 0.0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "recipe": {},
    "recipe, EMA": {"ema.decay": 0.99},
    "fastest": FASTEST,
    "fastest, EMA": FASTEST | {"ema.decay": 0.99},
}


def get_trials() -> list[dict[str, Any]]:
    """Returns the fields of every trial over the recipe, all configs of a seed before the next seed."""
    return [config | {"seed": seed} for seed in range(5) for config in CONFIGS.values()]

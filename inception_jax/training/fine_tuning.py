"""From a config to what a run takes over from another run, and to what it leaves as it is."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from inception_jax.config import Config, ConfigError
from inception_jax.training import freezing
from inception_jax.training.parallel import batch_norm_groups
from inception_jax.training.transfer import Origin


def origin(config: Config) -> Origin | None:
    """Where the weights of a new run come from; None: random ones.

    Raises:
      UserError: a step that is no step.
    """
    fields = config.initialize
    if fields.checkpoint is None:
        return None  # whatever else the section says is then never read, and refused
    return Origin(**fields.read("checkpoint", "weights", "step", "new"))


def freeze(config: Config, model: nn.Module, image_size: int) -> tuple[nn.Module, freezing.Freezing]:
    """The network, told which of its batch norms rest, and what the run leaves as it is.

    Args:
      config: `optimizer.freeze` and, where that freezes something, `optimizer.frozen_batch_norm` are read.
      model: the config's network.
      image_size: height and width in pixels.

    Raises:
      UserError: a pattern that is found in no path, or nothing is left to train.
    """
    patterns = config.optimizer.freeze
    if not patterns:
        return model, freezing.Freezing()
    images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    rule = config.optimizer.frozen_batch_norm if model.batch_norm else "running"
    frozen = freezing.freeze(patterns, variables, rule)
    return (model.clone(bn_frozen=frozen.resting) if frozen.resting else model), frozen


def share_batch_norm(config: Config, model: nn.Module, devices: int, share: int) -> nn.Module:
    """The network, told which examples its batch norms take together.

    Args:
      config: `parallel.batch_norm` is read.
      model: the config's network.
      devices: how many share the batch.
      share: examples that one device takes at once.

    Raises:
      UserError: the network has no batch norm, or the batch does not divide so.
    """
    mode = config.parallel.batch_norm
    if mode != "local" and not model.batch_norm:
        raise ConfigError(f"config.parallel.batch_norm: {config.model.name} has no batch norm; leave it 'local'")
    kind, _, size = mode.partition(":")
    parts = config.optimizer.accumulation
    if kind == "examples" and int(size) > share and parts > 1:
        raise ConfigError(
            f"config.parallel.batch_norm = {mode!r}: with config.optimizer.accumulation = {parts} a "
            f"device takes {share} neighbouring examples at once, and no more"
        )
    options = batch_norm_groups(mode, devices, share)
    return model.clone(**options) if options else model

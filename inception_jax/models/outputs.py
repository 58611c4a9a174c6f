"""The return value of every network: logits, auxiliary logits, endpoints."""

from __future__ import annotations

from collections.abc import Mapping

import flax.core
import flax.struct
import jax

from inception_jax.models.checks import ModelError, nearest


@flax.struct.dataclass
class InceptionOutput:
    """The result of a network's call; a pytree.

    Attributes:
      logits: [B, num_classes], before the softmax; float32, or float64 if the network computes in float64. With
        `num_classes=0` the [B, features] before the classifier.
      aux_logits: one array like `logits` per auxiliary head, the head nearest the input first; `()` when `train=False`.
      endpoints: the output of every block of the trunk by the block's name: [B, H, W, C], and [B, C] after the global
        average pool. In the order of the network outside of compiled functions; what `jax.jit` returns has the names
        sorted, as JAX sorts every dict. An endpoint that is not used costs nothing under `jax.jit`.
      aliases: slim's names of endpoints: {"Mixed_6e": "mixed_6e"}; static, not part of the pytree.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from inception_jax import InceptionOutput
      >>> output = InceptionOutput(jnp.zeros((2, 10)), endpoints={"mixed_6e": jnp.zeros((2, 17, 17, 768))})
      >>> output.aux_logits
      ()
      >>> jax.nn.softmax(output.logits).shape
      (2, 10)
      >>> output.endpoint("mixed_6e").shape
      (2, 17, 17, 768)
    """

    logits: jax.Array
    aux_logits: tuple[jax.Array, ...] = ()
    endpoints: dict[str, jax.Array] = flax.struct.field(default_factory=dict)
    aliases: Mapping[str, str] = flax.struct.field(pytree_node=False, default=flax.core.FrozenDict())

    def endpoint(self, name: str) -> jax.Array:
        """Returns an endpoint by its name or by slim's name, such as "Mixed_6e" or "PreLogits".

        Raises:
          ModelError: there is no such endpoint.
        """
        own = self.aliases.get(name, name)
        if own not in self.endpoints:
            known = [*self.endpoints, *(alias for alias, own in self.aliases.items() if own in self.endpoints)]
            raise ModelError(f"no endpoint {name!r}{nearest(name, known)}; endpoints: {', '.join(known)}")
        return self.endpoints[own]

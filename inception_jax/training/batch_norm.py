"""Groups of examples that share batch-norm statistics: `config.parallel.batch_norm`, parsed once."""

from __future__ import annotations

import dataclasses
from typing import Any

from inception_jax import allowed_values
from inception_jax.errors import UserError, counted
from inception_jax.training.step import AXIS

FIELD = "config.parallel.batch_norm"


@dataclasses.dataclass(frozen=True)
class BatchNormGroups:
    """The groups of examples that batch norm normalizes with common statistics in training.

    Attributes:
      kind: "local" (those of one device), "global" (all), "groups" (those of `size` neighbouring devices) or "examples"
        (`size` neighbouring examples).
      size: devices ("groups") or examples ("examples") per group; not used by the other kinds.
    """

    kind: str
    size: int = 1

    @classmethod
    def parse(cls, value: str) -> BatchNormGroups:
        """Parses "local", "global", "groups:N" or "examples:N".

        Raises:
          ValueError: the value is none of these.
        """
        kind, size = allowed_values.parse_batch_norm(value)
        return cls(kind, size or 1)

    def __str__(self) -> str:
        """The config's value."""
        return self.kind if self.kind in ("local", "global") else f"{self.kind}:{self.size}"

    @property
    def depends_on_devices(self) -> bool:
        """Whether the same batch has other statistics on another number of devices."""
        return self.kind in ("local", "groups")

    def shared_examples(self, devices: int, micro_batch: int) -> int:
        """Returns the number of examples that are normalized together.

        Args:
          devices: over which the batch is split.
          micro_batch: examples that one device takes at once.
        """
        sizes = {"local": micro_batch, "global": micro_batch * devices, "groups": micro_batch * self.size}
        return sizes.get(self.kind, self.size)

    def model_options(self, devices: int, per_device_examples: int) -> dict[str, Any]:
        """The batch-norm options of the model.

        Args:
          devices: over which the batch is split.
          per_device_examples: that one device normalizes at once: its per-device batch, or one micro-batch of it. Read
            by "examples" only.

        Returns:
          Those of `bn_axis_name`, `bn_axis_index_groups` and `bn_group_size` that are not the model's defaults.

        Raises:
          UserError: the devices or their examples do not divide into groups of this size; names the sizes that do.
        """
        if self.kind == "examples":
            return self._example_groups(devices, per_device_examples)
        if self.kind == "local":
            return {}
        if self.kind == "global":
            return {"bn_axis_name": AXIS}
        return self._device_groups(devices, self.size)

    def _device_groups(self, devices: int, size: int) -> dict[str, Any]:
        """Options for groups of `size` neighbouring devices."""
        if devices % size:
            raise UserError(f"{FIELD} = {str(self)!r}: {devices} devices do not divide into groups of {size}")
        groups = tuple(tuple(range(start, start + size)) for start in range(0, devices, size))
        return {"bn_axis_name": AXIS, "bn_axis_index_groups": groups}

    def _example_groups(self, devices: int, per_device: int) -> dict[str, Any]:
        """Options for groups of neighbouring examples: within a device, a whole device, or several whole devices."""
        size = self.size
        if size <= per_device and per_device % size == 0:
            return {} if size == per_device else {"bn_group_size": size}
        if size % per_device or devices % (size // per_device):
            within = [n for n in range(1, per_device + 1) if per_device % n == 0]
            across = [per_device * n for n in range(2, devices + 1) if devices % n == 0]
            raise UserError(
                f"{FIELD} = {str(self)!r}: {counted(devices, 'device')} with {counted(per_device, 'example')} each do "
                f"not divide into groups of {size}; sizes that do: {', '.join(map(str, within + across))}"
            )
        return self._device_groups(devices, size // per_device)

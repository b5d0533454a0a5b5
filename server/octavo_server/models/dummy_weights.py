"""Random weights of the shapes that a configuration needs, for `--load-format dummy`: to size and to time, not to answer.

On one kind of device the same configuration always gives the same weights, whatever reads them in which order. A GPU makes
them itself: on the host those of 8 billion parameters take a minute.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection
from math import prod
from typing import TYPE_CHECKING

import torch

from octavo_server.models.expected_shapes import expected_shapes
from octavo_server.models.shard import WHOLE

if TYPE_CHECKING:
    from octavo_kernels.quantized_weight import QuantizedWeight
    from octavo_server.models.config import ModelConfig
    from octavo_server.models.shard import Cut

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SCALE = 0.02
"""Standard deviation that models are initialised with, so that activations stay finite."""


class DummyWeights:
    """A `WeightSource` without files."""

    def __init__(self, config: ModelConfig, device: torch.device | str = "cpu") -> None:
        self._device = device
        self._shapes = expected_shapes(config)
        self._dtype = _DTYPES[config.dtype]

    @property
    def description(self) -> str:
        return "random weights"

    @property
    def names(self) -> Collection[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def num_bytes(self, name: str) -> int:
        return prod(self._shapes[name]) * self._dtype.itemsize

    def read(self, name: str, cut: Cut = WHOLE) -> torch.Tensor:
        shape = self._shapes[name]
        if name.endswith("norm.weight"):
            return torch.ones(shape, dtype=self._dtype, device=self._device)
        generator = torch.Generator(self._device).manual_seed(zlib.crc32(name.encode()))
        made = torch.randn(shape, generator=generator, device=self._device)
        return made.mul_(_SCALE)[cut.index].to(self._dtype)

    def read_codes(self, _name: str, _cut: Cut = WHOLE) -> QuantizedWeight | None:
        return None

    def rope_divisors(self) -> tuple[float, ...] | None:
        return None

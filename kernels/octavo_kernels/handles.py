"""What a backend gives out: handles that only the backend that made them can read, and the spec of a KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class KVCacheSpec:
    """What a KV cache must hold. Its layout is the backend's own."""

    num_layers: int
    num_blocks: int
    """Blocks in the pool, the null block included."""
    block_size: int
    """Token slots a block; any positive integer."""
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of K and V of all layers and blocks."""
        per_slot = 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize
        return self.num_layers * self.num_blocks * self.block_size * per_slot


@dataclass(frozen=True, slots=True, kw_only=True)
class KVScales:
    """What the numbers of a cache in float8_e4m3fn must be multiplied by, K and V of each head by their own."""

    keys: torch.Tensor
    """[..., num_kv_heads] float32, above 0; of all layers, or of one."""
    values: torch.Tensor
    """Like keys."""


class KVCache(Protocol):
    """Opaque: made by `allocate_kv_cache`, read by the same backend only."""

    @property
    def spec(self) -> KVCacheSpec: ...


class LinearHandle(Protocol):
    """Opaque: made by `prepare_linear`, read by the same backend only."""

    @property
    def in_features(self) -> int: ...

    @property
    def out_features(self) -> int: ...


class QuantizedHandle(LinearHandle, Protocol):
    """Opaque: made by `prepare_quantized_linear`, read by the same backend only."""

    @property
    def weight_bytes(self) -> int:
        """Of codes, scales and minima, what fills them up included."""


class ExpertsHandle(Protocol):
    """Opaque: made by `prepare_experts`, read by the same backend only."""

    @property
    def num_experts(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def inner_size(self) -> int:
        """Width of one expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QKNorm:
    """RMS norm of each head of q and of k before they are rotated."""

    q: torch.Tensor
    """[head_dim], any floating dtype."""
    k: torch.Tensor
    """Like q."""
    eps: float


class AttentionPlan(Protocol):
    """Opaque: made once a step by `plan_attention` for each window, reused by all layers that have it."""

"""A decoder described plainly, for backends that run all its layers in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from octavo_kernels.batches import AttentionBatch
    from octavo_kernels.handles import KVCache, LinearHandle


class DecoderLayer(Protocol):
    """What a layer of a decoder computes with; q_norm and k_norm are both None or both not, gate_up and down too.

    Without them the layer's MLP is another than the one of `DecoderSpec`.
    """

    @property
    def input_norm(self) -> torch.Tensor: ...
    @property
    def qkv(self) -> LinearHandle: ...
    @property
    def q_norm(self) -> torch.Tensor | None: ...
    @property
    def k_norm(self) -> torch.Tensor | None: ...
    @property
    def output(self) -> LinearHandle: ...
    @property
    def post_attention_norm(self) -> torch.Tensor: ...
    @property
    def gate_up(self) -> LinearHandle | None: ...
    @property
    def down(self) -> LinearHandle | None: ...
    @property
    def has_experts(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """A pre-norm decoder of rotary attention and a gated SiLU MLP, in this backend's own handles."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    cos_sin: torch.Tensor
    """[max_positions, rotary_dim] float32, see `rotary`."""
    layers: Sequence[DecoderLayer]
    windows: Sequence[int | None]
    """A layer's window each, see `plan_attention`."""
    final_norm: torch.Tensor
    head: LinearHandle


class DecoderStep(Protocol):
    """All layers of one step in one call; the same result as operation by operation, up to rounding."""

    def __call__(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionBatch,
        cache: KVCache,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """hidden: [num_tokens, hidden] float32, the embedded tokens, overwritten; K/V are written into `cache`.

        -> new [num_rows, hidden]: after the final norm, the rows in `rows` [num_rows] int64, or all where it is None.
        """

    def likeliest(
        self,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionBatch,
        cache: KVCache,
        rows: torch.Tensor | None,
    ) -> torch.Tensor:
        """As the call, and on to the token: no logits are kept.

        -> new [num_rows] int64: the lowest id of each row's largest logit, -1 where one is not finite.
        """

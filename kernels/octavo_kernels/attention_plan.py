"""What all layers of a step share on a GPU: which programs attend over what. Made on the device, without a sync."""

from __future__ import annotations

from dataclasses import dataclass

from octavo_kernels.backend import AttentionBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedAttentionPlan:
    """One step's work."""

    batch: AttentionBatch
    num_tokens: int
    num_heads: int

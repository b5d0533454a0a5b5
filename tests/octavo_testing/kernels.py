"""Builders for kernel tests: paged batches with contexts of chosen lengths, and sampling parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from octavo_kernels.batches import AttentionBatch, SamplingBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Heads and blocks of a model's attention."""

    num_heads: int = 6
    num_kv_heads: int = 3
    head_dim: int = 24
    block_size: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedCase:
    """A batch over caches in which everything that no sequence owns is NaN, the null block excepted."""

    q: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    batch: AttentionBatch
    contexts: list[tuple[torch.Tensor, torch.Tensor]]
    """Each sequence's K and V, contiguous: [seq_len, num_kv_heads, head_dim]."""

    @property
    def scale(self) -> float:
        return float(self.q.shape[-1] ** -0.5)


def a_paged_case(
    query_lens: Sequence[int],
    seq_lens: Sequence[int],
    *,
    shape: Shape | None = None,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
) -> PagedCase:
    """Sequences whose blocks lie scattered over the cache, as after much traffic."""
    shape = shape or Shape()
    generator = torch.Generator().manual_seed(seed)
    block_size = shape.block_size
    block_counts = [-(-seq_len // block_size) for seq_len in seq_lens]
    # a block that nobody owns stays NaN, and so does what is behind a sequence's end in its last block
    num_blocks = sum(block_counts) + 3
    caches = torch.full((2, num_blocks, shape.num_kv_heads, block_size, shape.head_dim), torch.nan)
    caches[:, 0] = 0
    free = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    tables = torch.zeros(len(seq_lens), max(block_counts), dtype=torch.int32)
    contexts = []
    slots: list[int] = []
    for i, (query_len, seq_len) in enumerate(zip(query_lens, seq_lens, strict=True)):
        table = [free.pop() for _ in range(block_counts[i])]
        tables[i, : len(table)] = torch.tensor(table)
        context = torch.randn(2, seq_len, shape.num_kv_heads, shape.head_dim, generator=generator).to(dtype)
        for position in range(seq_len):
            caches[:, table[position // block_size], :, position % block_size] = context[:, position].float()
        slots += [table[p // block_size] * block_size + p % block_size for p in range(seq_len - query_len, seq_len)]
        contexts.append((context[0], context[1]))
    q = torch.randn(sum(query_lens), shape.num_heads, shape.head_dim, generator=generator).to(dtype)
    key_cache, value_cache = caches.to(dtype).to(device).unbind(0)
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    return PagedCase(
        q=q.to(device),
        key_cache=key_cache,
        value_cache=value_cache,
        batch=AttentionBatch(
            query_start_loc=starts.to(device),
            seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=device),
            block_tables=tables.to(device),
            slot_mapping=torch.tensor(slots, dtype=torch.int64, device=device),
            max_query_len=max(query_lens),
            min_query_len=min(query_lens),
            max_seq_len=max(seq_lens),
        ),
        contexts=contexts,
    )


def a_sampling_batch(
    num_rows: int,
    *,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p: float | Sequence[float] = 0.0,
    seed: int | Sequence[int] = 0,
    position: int | Sequence[int] | None = None,
    device: str = "cpu",
) -> SamplingBatch:
    """One value for all rows, or one a row; positions count up from 0 unless given."""

    def column(value: float | Sequence[float], dtype: torch.dtype) -> torch.Tensor:
        values = [value] * num_rows if isinstance(value, int | float) else list(value)
        return torch.tensor(values, dtype=dtype, device=device)

    temperatures = column(temperature, torch.float32)
    return SamplingBatch(
        temperature=temperatures,
        top_k=column(top_k, torch.int32),
        top_p=column(top_p, torch.float32),
        min_p=column(min_p, torch.float32),
        seed=column(seed, torch.int64),
        position=column(range(num_rows) if position is None else position, torch.int64),
        all_greedy=bool((temperatures == 0).all()),
    )


TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 1.6e-2}
"""Relative and absolute. Both sides compute in float32 and round once, where Triton's interpreter truncates bfloat16."""


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float | None = None) -> None:
    """Same shape and dtype, and values within the dtype's tolerance unless another is given."""
    limit = TOLERANCE[expected.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(actual.cpu(), expected.cpu(), rtol=limit, atol=limit)

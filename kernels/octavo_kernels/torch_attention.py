"""Paged attention on a CPU from stock torch operators: what serves there today.

`extend_attention_ref.py` is the meaning; this file is the same in few operators a layer. Everything that depends on
the batch alone (which slots to gather, which to mask) is made once a step in the plan; a layer then costs one gather
and one call of scaled_dot_product_attention for each group of decodes, and the same for each longer sequence.

Query heads that share a key/value head are packed into the query dimension of a decode, and stand as a broadcast of
stride 0 over the keys of a longer sequence: neither repeats K and V in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention

from octavo_kernels.attention_variant import PLAIN, AttentionVariant
from octavo_kernels.batches import AttentionBatch
from octavo_kernels.handles import KVCacheSpec
from octavo_kernels.torch_attention_variant import attend_rows, attend_sequence

_SHORT_CONTEXT = 256
"""Tokens up to which padding a decode costs less than a call of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeGroup:
    """Decodes of like length, padded to the longest."""

    rows: torch.Tensor | slice
    """Their rows of q: [num_rows] int64, or a slice when they stand side by side."""
    num_rows: int
    slots: torch.Tensor | slice
    """[num_rows * max_len] int64, padded with slot 0: the null block is finite, a freed block may hold NaN."""
    mask: torch.Tensor | None
    """[num_rows, 1, 1, max_len], 0 where there is a key and -inf where there is none; None if all are full."""
    lens: tuple[int, ...]
    """Keys of each row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendSequence:
    """A sequence that computes two tokens or more."""

    rows: slice
    slots: torch.Tensor | slice
    """[num_keys] int64, of all positions that one of its rows sees; a slice when they happen to be consecutive (then
    nothing is copied)."""
    mask: torch.Tensor | None
    """[query_len, num_keys], 0 or -inf; None without a prefix or a window: then plain causal attention is meant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchAttentionPlan:
    """What all layers of a step share that slide the same window."""

    num_tokens: int
    num_heads: int
    decodes: tuple[DecodeGroup, ...]
    extends: tuple[ExtendSequence, ...]


def plan_attention(
    batch: AttentionBatch, spec: KVCacheSpec, num_heads: int, window: int | None = None, *, is_alone: bool = False
) -> TorchAttentionPlan:
    """Reads the batch on the host, which on a CPU waits for nothing.

    is_alone: each decode is a group of its own, for another's length not to change how it adds up.
    """
    starts = batch.query_start_loc.tolist()
    seq_lens = batch.seq_lens.tolist()
    query_lens = [end - start for start, end in pairwise(starts)]
    # the first position that any row of a sequence sees, and how many there are from it to the end
    firsts = [0] * len(seq_lens)
    if window is not None:
        firsts = [max(0, n - queries + 1 - window) for n, queries in zip(seq_lens, query_lens, strict=True)]
    seen = [seq_len - first for seq_len, first in zip(seq_lens, firsts, strict=True)]
    slots = _slots(batch, spec.block_size, firsts, max(seen))
    decoding = [sequence for sequence, query_len in enumerate(query_lens) if query_len == 1]
    extending = [sequence for sequence, query_len in enumerate(query_lens) if query_len > 1]
    return TorchAttentionPlan(
        num_tokens=starts[-1],
        num_heads=num_heads,
        decodes=tuple(
            _plan_decodes([starts[i] for i in group], [seen[i] for i in group], slots[group], spec.dtype)
            for group in ([[i] for i in decoding] if is_alone else _groups_of_like_length(decoding, seen))
        ),
        extends=tuple(
            _plan_extend(slice(starts[i], starts[i + 1]), slots[i, : seen[i]], spec.dtype, window) for i in extending
        ),
    )


def attention(
    q: torch.Tensor, slots: torch.Tensor, plan: TorchAttentionPlan, scale: float, variant: AttentionVariant = PLAIN
) -> torch.Tensor:
    """q: [num_tokens, num_heads, head_dim]; slots: [num_slots, 2, num_kv_heads, head_dim], K beside V -> like q."""
    out = torch.empty(q.shape, dtype=q.dtype)
    for group in plan.decodes:
        out[group.rows] = _attend_decodes(q[group.rows], _take(slots, group.slots), group, scale, variant)
    for sequence in plan.extends:
        out[sequence.rows] = _attend_extend(q[sequence.rows], _take(slots, sequence.slots), sequence, scale, variant)
    return out


def _slots(batch: AttentionBatch, block_size: int, firsts: list[int], width: int) -> torch.Tensor:
    """[num_seqs, width] int64: the slots of each sequence's positions from its first seen on."""
    offsets = torch.arange(width)
    if not any(firsts):
        return batch.block_tables[:, offsets // block_size].long() * block_size + offsets % block_size
    # past a shorter sequence's end stands whatever its table's last block holds; nobody takes it
    positions = (torch.tensor(firsts)[:, None] + offsets).clamp(max=batch.max_seq_len - 1)
    return batch.block_tables.gather(1, positions // block_size).long() * block_size + positions % block_size


def _groups_of_like_length(sequences: list[int], seq_lens: list[int]) -> Iterator[list[int]]:
    """Groups in which padding at most doubles the work, unless the contexts are short anyway."""
    group: list[int] = []
    for sequence in sorted(sequences, key=lambda i: -seq_lens[i]):
        longest = seq_lens[group[0]] if group else 0
        if group and longest > max(_SHORT_CONTEXT, 2 * seq_lens[sequence]):
            yield sorted(group)
            group = []
        group.append(sequence)
    if group:
        yield sorted(group)


def _plan_decodes(rows: list[int], seq_lens: list[int], slots: torch.Tensor, dtype: torch.dtype) -> DecodeGroup:
    longest = max(seq_lens)
    mask = None
    slots = slots[:, :longest]
    if min(seq_lens) < longest:
        is_padding = torch.arange(longest) >= torch.tensor(seq_lens)[:, None]
        slots = slots.masked_fill(is_padding, 0)
        mask = torch.zeros(is_padding.shape, dtype=dtype).masked_fill_(is_padding, -torch.inf)[:, None, None]
    are_adjacent = rows[-1] - rows[0] == len(rows) - 1
    return DecodeGroup(
        rows=slice(rows[0], rows[-1] + 1) if are_adjacent else torch.tensor(rows),
        num_rows=len(rows),
        slots=_as_slice(slots.flatten()),
        mask=mask,
        lens=tuple(seq_lens),
    )


def _plan_extend(rows: slice, slots: torch.Tensor, dtype: torch.dtype, window: int | None) -> ExtendSequence:
    query_len, num_keys = rows.stop - rows.start, slots.shape[0]
    mask = None
    is_cut = window is not None and window < query_len
    if query_len < num_keys or is_cut:
        hidden = torch.full((query_len, num_keys), -torch.inf, dtype=dtype)
        # diagonal: row j sees what comes before the step's tokens and j + 1 of those
        diagonal = num_keys - query_len
        mask = hidden.triu(diagonal + 1)
        if window is not None:
            mask += hidden.tril(diagonal - window)
    return ExtendSequence(rows=rows, slots=_as_slice(slots), mask=mask)


def _as_slice(slots: torch.Tensor) -> torch.Tensor | slice:
    first = int(slots[0])
    if torch.equal(slots, torch.arange(first, first + slots.shape[0])):
        return slice(first, first + slots.shape[0])
    return slots


def _take(slots: torch.Tensor, wanted: torch.Tensor | slice) -> torch.Tensor:
    """-> [num_wanted, 2, num_kv_heads, head_dim]."""
    return slots[wanted] if isinstance(wanted, slice) else slots.index_select(0, wanted)


def _attend_decodes(
    q: torch.Tensor, kv: torch.Tensor, group: DecodeGroup, scale: float, variant: AttentionVariant
) -> torch.Tensor:
    """q: [num_rows, num_heads, head_dim]; kv: [num_rows * max_len, 2, num_kv_heads, head_dim] -> like q."""
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = kv.shape[2]
    # keys, values: [num_rows, num_kv_heads, max_len, head_dim], views
    keys, values = kv.view(num_rows, -1, 2, num_kv_heads, head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    packed = q.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    if not variant.is_plain:
        return attend_rows(packed, keys, values, group.mask, group.lens, scale, variant).reshape(q.shape)
    out = scaled_dot_product_attention(packed, keys, values, attn_mask=group.mask, scale=scale)
    return out.reshape(q.shape)


def _attend_extend(
    q: torch.Tensor, kv: torch.Tensor, sequence: ExtendSequence, scale: float, variant: AttentionVariant
) -> torch.Tensor:
    """q: [query_len, num_heads, head_dim]; kv: [num_keys, 2, num_kv_heads, head_dim] -> like q."""
    query_len, num_heads, head_dim = q.shape
    num_keys, _, num_kv_heads, _ = kv.shape
    group_size = num_heads // num_kv_heads
    # keys, values: [num_kv_heads, group_size, num_keys, head_dim], stride 0 over the group
    keys, values = kv.permute(1, 2, 0, 3).unsqueeze(2).expand(2, num_kv_heads, group_size, num_keys, head_dim).unbind(0)
    grouped = q.reshape(query_len, num_kv_heads, group_size, head_dim).permute(1, 2, 0, 3)
    if not variant.is_plain:
        varied = attend_sequence(grouped, keys, values, sequence.mask, scale, variant)
        return varied.permute(2, 0, 1, 3).reshape(q.shape)
    is_causal = sequence.mask is None
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=sequence.mask, is_causal=is_causal, scale=scale)
    return out.permute(2, 0, 1, 3).reshape(q.shape)

"""What all layers of a step share on a GPU: two work lists, made on the device from lengths that the host never reads.

A batch mixes sequences that compute one token (decode) with those that compute more (extend); each kind has its kernel,
and its list names the other kind's sequences nowhere. Sizes of the lists depend on shapes alone, so a plan can be part
of a captured graph.

| list | an item | how many |
|---|---|---|
| decode | a run of context tiles of one sequence | about `target_items` in all, dealt by context length |
| extend | a tile of query tokens of one sequence | one per `query_tile` tokens, longest context first |

Where a window is set, a decode has only the tiles that hold a position of it, and an extend's tile starts there.
Entries past the end of a list carry the sequence `num_seqs`, which kernels take as "nothing to do".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from octavo_kernels.batches import AttentionBatch
from octavo_kernels.launch import ceil_div

CONTEXT_TILE = 64
"""Tokens in which a context is dealt to decode programs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWork:
    """A long context is cut into several items, so that few sequences still fill the device."""

    item_sequence: torch.Tensor
    """[max_items] int32, rising."""
    first_item: torch.Tensor
    """[num_seqs + 1] int32: sequence i has the items first_item[i] .. first_item[i + 1], none if it extends."""
    partial_out: torch.Tensor
    """[max_items, num_heads, head_dim] float32: what items of a sequence with several leave to the combine pass."""
    partial_lse: torch.Tensor
    """[max_items, num_heads] float32: their log-sum-exp to the base 2."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendWork:
    """Query tokens in tiles. The heaviest tiles stand first, so that no long one starts when all others end."""

    tile_sequence: torch.Tensor
    """[max_tiles] int32."""
    tile_start: torch.Tensor
    """[max_tiles] int32: its first query token, counted from the sequence's first of this step."""
    query_tile: int
    """Query tokens a tile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedAttentionPlan:
    """One step's work."""

    batch: AttentionBatch
    num_tokens: int
    num_heads: int
    window: int | None
    """Positions that a row sees, its own included; None: all up to its own."""
    decode: DecodeWork | None
    """None when the host knows that no sequence decodes."""
    extend: ExtendWork | None
    """None when the host knows that all sequences decode."""


def plan_paged_attention(
    batch: AttentionBatch,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    query_tile: int,
    target_items: int,
    window: int | None = None,
    tiles_per_item: int | None = None,
) -> PagedAttentionPlan:
    """target_items: decode items times key/value heads that fill the device a few times over.

    tiles_per_item: context tiles of each decode item, whatever else is in the batch, so that the order in which a row
    adds up is its own; None: as `target_items` says.
    """
    num_tokens = batch.slot_mapping.shape[0]
    query_lens = batch.query_start_loc.diff()
    decode = None
    if batch.min_query_len == 1:
        decode = _plan_decode(
            batch,
            query_lens,
            num_heads=num_heads,
            head_dim=head_dim,
            target=ceil_div(target_items, num_kv_heads),
            window=window,
            tiles_per_item=tiles_per_item,
        )
    return PagedAttentionPlan(
        batch=batch,
        num_tokens=num_tokens,
        num_heads=num_heads,
        window=window,
        decode=decode,
        extend=_plan_extend(batch, query_lens, query_tile, window) if batch.max_query_len > 1 else None,
    )


def _plan_decode(
    batch: AttentionBatch,
    query_lens: torch.Tensor,
    *,
    num_heads: int,
    head_dim: int,
    target: int,
    window: int | None,
    tiles_per_item: int | None,
) -> DecodeWork:
    num_seqs = batch.seq_lens.shape[0]
    device = batch.seq_lens.device
    tiles = (batch.seq_lens + (CONTEXT_TILE - 1)).div(CONTEXT_TILE, rounding_mode="floor")
    max_tiles = ceil_div(batch.max_seq_len, CONTEXT_TILE)
    if window is not None:
        tiles -= (batch.seq_lens - window).clamp(min=0).div(CONTEXT_TILE, rounding_mode="floor")
        # a window that starts within a tile ends within one more
        max_tiles = min(max_tiles, ceil_div(window, CONTEXT_TILE) + 1)
    tiles = torch.where(query_lens == 1, tiles, 0)
    if tiles_per_item is None:
        # equal shares of all context tiles, so that one long sequence among short ones is cut finer than they are
        share: torch.Tensor | int = tiles.sum().add(target - 1).div(target, rounding_mode="floor").clamp(min=1)
        # sum of ceil(tiles / share) <= sum of tiles / share + num_seqs <= target + num_seqs
        max_items = min(target + num_seqs, num_seqs * max_tiles)
    else:
        share, max_items = tiles_per_item, num_seqs * ceil_div(max_tiles, tiles_per_item)
    items = (tiles + (share - 1)).div(share, rounding_mode="floor")
    first_item = torch.zeros(num_seqs + 1, dtype=torch.int32, device=device)
    torch.cumsum(items, dim=0, dtype=torch.int32, out=first_item[1:])
    numbers = torch.arange(max_items, dtype=torch.int32, device=device)
    return DecodeWork(
        item_sequence=torch.searchsorted(first_item[1:], numbers, right=True, out_int32=True),
        first_item=first_item,
        partial_out=torch.empty((max_items, num_heads, head_dim), dtype=torch.float32, device=device),
        partial_lse=torch.empty((max_items, num_heads), dtype=torch.float32, device=device),
    )


def _plan_extend(batch: AttentionBatch, query_lens: torch.Tensor, query_tile: int, window: int | None) -> ExtendWork:
    num_tokens = batch.slot_mapping.shape[0]
    num_seqs = batch.seq_lens.shape[0]
    device = batch.seq_lens.device
    tiles = (query_lens + (query_tile - 1)).div(query_tile, rounding_mode="floor")
    ends = torch.where(query_lens > 1, tiles, 0).cumsum(dim=0, dtype=torch.int32)
    # sum of ceil(query_len / tile) <= num_tokens / tile + num_seqs
    numbers = torch.arange(num_tokens // query_tile + num_seqs, dtype=torch.int32, device=device)
    sequence = torch.searchsorted(ends, numbers, right=True, out_int32=True)
    known = sequence.clamp(max=num_seqs - 1).long()
    start = (numbers - (ends - tiles)[known]) * query_tile
    context = batch.seq_lens[known] - query_lens[known] + start
    if window is not None:
        context = context.clamp(max=window)
    order = torch.where(sequence < num_seqs, context, -1).argsort(descending=True)
    return ExtendWork(tile_sequence=sequence[order], tile_start=start[order], query_tile=query_tile)

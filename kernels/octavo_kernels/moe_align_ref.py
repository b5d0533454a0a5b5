"""Reference of `moe_align.py`: lists, expert by expert."""

from __future__ import annotations

import torch

from octavo_kernels.moe_tiles import ExpertTiles, max_tiles


def align(expert_ids: torch.Tensor, num_experts: int, tile: int) -> ExpertTiles:
    """expert_ids: [num_tokens, num_chosen] int64 -> the pairs of each expert in tiles of its own."""
    ids = expert_ids.flatten().tolist()
    order: list[int] = []
    experts: list[int] = []
    for expert in range(num_experts):
        own = [pair for pair, chosen in enumerate(ids) if chosen == expert]
        own += [len(ids)] * (-len(own) % tile)
        order += own
        experts += [expert] * (len(own) // tile)
    most = max_tiles(len(ids), num_experts, tile)
    order += [len(ids)] * (most * tile - len(order))
    experts += [-1] * (most - len(experts))
    device = expert_ids.device
    return ExpertTiles(
        tile=tile,
        order=torch.tensor(order, dtype=torch.int32, device=device),
        experts=torch.tensor(experts, dtype=torch.int32, device=device),
    )

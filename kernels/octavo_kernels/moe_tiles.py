"""How the rows that experts compute are dealt to programs: each expert's in whole tiles, so that a program has one expert.

A *pair* is a token and one of its slots, numbered token * num_chosen + slot. How many tiles there are follows from the
router's choice and stays on the device; memory and grid are made for the most that can be, and programs past the end
return. So shapes depend on the number of tokens alone, as a CUDA graph wants it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTiles:
    """All pairs, ordered by expert."""

    tile: int
    """Rows of a tile."""
    order: torch.Tensor
    """[max_tiles * tile] int32: the pair of each row, those of an expert in rising order; num_pairs where a row is none.
    What is behind the last tile in use may be anything."""
    experts: torch.Tensor
    """[max_tiles] int32: the expert of each tile, -1 past the last in use."""


def max_tiles(num_pairs: int, num_experts: int, tile: int) -> int:
    """The most tiles that `num_pairs` pairs can fill: all but one row of the last tile of each expert may be empty."""
    return (num_pairs + min(num_pairs, num_experts) * (tile - 1)) // tile

"""What one step hands to a backend: whose tokens they are, where their K/V live, and how to sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

NULL_BLOCK = 0
"""Block 0 is never given to a sequence; padding entries of block tables point to it."""

PAD_SLOT = -1
"""A slot mapping entry that is written nowhere."""

NOT_FINITE = -1
"""Instead of a token: a logit of the row is NaN or plus infinity."""

NOTHING_LEFT = -2
"""Instead of a token: all logits of the row are minus infinity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBatch:
    """Which tokens of a step belong to which sequence and where their K/V live.

    Sequence i computes the tokens at positions [seq_lens[i] - query_len_i, seq_lens[i]); a decode, a chunk of a
    prefill and a verification of drafts differ in query_len alone, and may stand in one batch in any order.
    """

    query_start_loc: torch.Tensor
    """[num_seqs + 1] int32: sequence i owns rows query_start_loc[i] .. query_start_loc[i + 1] of q; strictly rising."""
    seq_lens: torch.Tensor
    """[num_seqs] int32: tokens of each sequence whose K/V exist once this step's are stored (>= its query length)."""
    block_tables: torch.Tensor
    """[num_seqs, max_blocks] int32: block ids in order, padded with NULL_BLOCK; holds max_seq_len tokens at least."""
    slot_mapping: torch.Tensor
    """[num_tokens] int64: block_id * block_size + offset for each row, PAD_SLOT where nothing is to be written."""
    max_query_len: int
    max_seq_len: int
    min_query_len: int = 1
    """All three on the host, so that planning needs no synchronisation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingBatch:
    """Parameters of `sample`, one entry a row."""

    temperature: torch.Tensor
    """[num_rows] float32; 0 is greedy (argmax, ties to the lowest id), and then the other fields do not matter."""
    top_k: torch.Tensor
    """[num_rows] int32; 0 or >= vocab is off. Ties at the k-th value: the lower ids are kept."""
    top_p: torch.Tensor
    """[num_rows] float32 in (0, 1]; 1 is off. The smallest set of most likely tokens (after top-k) whose mass reaches p."""
    min_p: torch.Tensor
    """[num_rows] float32 in [0, 1]; 0 is off. Tokens below min_p times the largest probability are dropped."""
    seed: torch.Tensor
    """[num_rows] int64: key of the counter-based generator (Philox 4x32-10)."""
    position: torch.Tensor
    """[num_rows] int64: counter: index of the token being sampled in its sequence. Same (seed, position): same noise."""
    all_greedy: bool
    """On the host: lets a backend take argmax without looking at the tensors."""

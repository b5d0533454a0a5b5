"""Log-probabilities of chosen and of the likeliest tokens: gathered on the device, read once they are on the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from octavo_server.engine.outputs import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

Entry = tuple[TokenLogprob, tuple[TokenLogprob, ...]]
"""Of the named token, and the most likely ones, sorted."""

CPU_ROWS = 8
"""Of float32 logits, 1.5 MB with a vocabulary of 50,000."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatheredLogprobs:
    """Of some rows, on the device."""

    counts: list[int]
    """Most likely tokens that each row wants."""
    tensors: tuple[torch.Tensor, ...]
    """Token ids [num_rows] int64, log-probabilities [num_rows] float32, ranks [num_rows] int32, and of the most likely
    ones log-probabilities [num_rows, width] float32 and ids [num_rows, width] int64."""

    def read(self, tensors: Sequence[torch.Tensor]) -> list[Entry]:
        """tensors: the same on the host."""
        token_ids, logprobs, ranks, top_values, top_ids = (tensor.tolist() for tensor in tensors)
        rows = zip(token_ids, logprobs, ranks, self.counts, top_values, top_ids, strict=True)
        return [
            (
                TokenLogprob(token_id=token_id, logprob=logprob, rank=rank),
                tuple(
                    TokenLogprob(token_id=top_id, logprob=value, rank=place)
                    for place, (value, top_id) in enumerate(zip(values[:count], names[:count], strict=True), start=1)
                ),
            )
            for token_id, logprob, rank, count, values, names in rows
        ]


def gather_logprobs(logits: torch.Tensor, token_ids: torch.Tensor, counts: list[int]) -> GatheredLogprobs:
    """For each row the named token's log-probability and rank, and the `counts[row]` most likely tokens.

    logits: [num_rows, vocab] float32; token_ids: [num_rows] int64, of which those below 0 stand for none and get
    whatever token 0 has.
    """
    ids = token_ids.clamp(min=0).unsqueeze(1)
    chosen = logits.gather(1, ids)
    # On a CPU a few rows at a time, which stay in its caches from one pass over them to the next.
    at_once = CPU_ROWS if logits.device.type == "cpu" else len(counts)
    parts = list(zip(torch.split(logits, at_once), torch.split(chosen, at_once), strict=True))
    # normaliser: [num_rows, 1] float32; subtracting it late spares a second [num_rows, vocab]
    normaliser = torch.cat([_normaliser(rows) for rows, _ in parts])
    ranks = torch.cat([(rows > own).sum(dim=-1, dtype=torch.int32) for rows, own in parts]).add_(1)
    width = min(max(counts), logits.shape[1])
    top_values, top_ids = logits.topk(width, dim=-1) if width else (logits[:, :0], ids[:, :0])
    return GatheredLogprobs(
        counts=counts,
        tensors=(token_ids, (chosen - normaliser).squeeze(1), ranks, top_values - normaliser, top_ids),
    )


def _normaliser(rows: torch.Tensor) -> torch.Tensor:
    """Log of the sum of the exponentials of each row: [num_rows, 1] float32, the same bits whatever rows stand beside it."""
    if rows.device.type == "cpu":
        return rows.logsumexp(dim=-1, keepdim=True)
    # A GPU's sums are cut by how many there are; its softmax has a block of threads to each row.
    return rows.amax(dim=-1, keepdim=True) - rows.log_softmax(dim=-1).amax(dim=-1, keepdim=True)

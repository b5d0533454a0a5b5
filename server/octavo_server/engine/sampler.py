"""From logits to tokens: what a request asks to change about the logits, the draw, and the log-probabilities.

Order, as in vLLM: log-probabilities are of the raw logits; then logit_bias, min_tokens, penalties; then temperature,
top-k, top-p and min-p, which are the backend's. Everything about a row comes from its own sequence, so a result does
not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo_kernels.backend import SamplingBatch
from octavo_server.engine.outputs import SampledToken, TokenLogprob

if TYPE_CHECKING:
    from octavo_kernels.backend import KernelBackend
    from octavo_server.engine.outputs import ScheduledSequence
    from octavo_server.engine.request import SamplingParams
    from octavo_server.engine.sequence import Sequence


class Sampler:
    """Chooses one token a row."""

    def __init__(self, backend: KernelBackend, eos_token_ids: tuple[int, ...]) -> None:
        self._backend = backend
        self._eos_token_ids = eos_token_ids

    def sample(self, logits: torch.Tensor, items: Items[ScheduledSequence]) -> list[SampledToken]:
        """logits: [len(items), vocab] float32, changed in place where a request edits them."""
        # The raw logits of rows that want log-probabilities are kept apart before edits change them.
        wanted = [row for row, item in enumerate(items) if item.sequence.request.params.logprobs is not None]
        raw = logits[wanted] if wanted else logits[:0]
        for row, item in enumerate(items):
            self._edit(logits[row], item.sequence)
        token_ids = self._backend.sample(logits, _sampling_batch(items, logits.device)).tolist()
        if not wanted:
            return [SampledToken(token_id=token_id) for token_id in token_ids]
        counts = [items[row].sequence.request.params.logprobs or 0 for row in wanted]
        reported = dict(zip(wanted, gather_logprobs(raw, [token_ids[row] for row in wanted], counts), strict=True))
        nothing: tuple[TokenLogprob | None, tuple[TokenLogprob, ...]] = (None, ())
        return [
            SampledToken(token_id=token_id, logprob=chosen, top_logprobs=top)
            for token_id, (chosen, top) in (
                (token_id, reported.get(row, nothing)) for row, token_id in enumerate(token_ids)
            )
        ]

    def _edit(self, logits: torch.Tensor, sequence: Sequence) -> None:
        """logits: [vocab] float32, changed in place."""
        params = sequence.request.params
        if params.logit_bias:
            ids = torch.tensor(list(params.logit_bias), dtype=torch.int64, device=logits.device)
            bias = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=logits.device)
            logits.index_add_(0, ids, bias)
        if sequence.num_output_tokens < params.min_tokens:
            ends = [token for token in (*self._eos_token_ids, *params.stop_token_ids) if token < logits.shape[0]]
            logits[ends] = -torch.inf
        if params.repetition_penalty != 1.0:
            seen, _ = _token_counts(sequence.token_ids, logits.device)
            values = logits[seen]
            penalty = params.repetition_penalty
            logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
        if params.presence_penalty or params.frequency_penalty:
            seen, counts = _token_counts(sequence.output_token_ids, logits.device)
            logits[seen] -= params.presence_penalty + params.frequency_penalty * counts


def gather_logprobs(
    logits: torch.Tensor, token_ids: list[int], counts: list[int]
) -> list[tuple[TokenLogprob, tuple[TokenLogprob, ...]]]:
    """For each row the named token's log-probability and rank, and the `counts[row]` most likely tokens, sorted.

    logits: [num_rows, vocab] float32.
    """
    # normaliser: [num_rows, 1] float32; subtracting it late spares a second [num_rows, vocab]
    normaliser = logits.logsumexp(dim=-1, keepdim=True)
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device).unsqueeze(1)
    chosen = logits.gather(1, ids)
    ranks = ((logits > chosen).sum(dim=-1) + 1).tolist()
    logprobs = (chosen - normaliser).squeeze(1).tolist()
    width = min(max(counts), logits.shape[1])
    top_values, top_ids = logits.topk(width, dim=-1) if width else (logits[:, :0], ids[:, :0])
    tops = zip((top_values - normaliser).tolist(), top_ids.tolist(), strict=True)
    return [
        (
            TokenLogprob(token_id=token_id, logprob=logprob, rank=rank),
            tuple(
                TokenLogprob(token_id=top_id, logprob=value, rank=place)
                for place, (value, top_id) in enumerate(zip(values[:count], names[:count], strict=True), start=1)
            ),
        )
        for token_id, logprob, rank, count, (values, names) in zip(
            token_ids, logprobs, ranks, counts, tops, strict=True
        )
    ]


def unservable(params: SamplingParams, vocab_size: int) -> str | None:
    """Why the sampler cannot apply `params` to this vocabulary, None where it can."""
    for token_id in params.logit_bias:
        if not 0 <= token_id < vocab_size:
            return f"logit_bias names token {token_id}, the vocabulary has {vocab_size} tokens"
    return None


def _token_counts(token_ids: list[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct ids and how often each occurs, both int64; counted on the host, where the list is."""
    ids, counts = np.unique(np.array(token_ids, dtype=np.int64), return_counts=True)
    return torch.from_numpy(ids).to(device), torch.from_numpy(counts).to(device)


def _sampling_batch(items: Items[ScheduledSequence], device: torch.device) -> SamplingBatch:
    params = [item.sequence.request.params for item in items]

    def tensor(values: list[float] | list[int], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    return SamplingBatch(
        temperature=tensor([p.temperature for p in params], torch.float32),
        top_k=tensor([max(p.top_k, 0) for p in params], torch.int32),
        top_p=tensor([p.top_p for p in params], torch.float32),
        min_p=tensor([p.min_p for p in params], torch.float32),
        seed=tensor([_signed(item.sequence.seed) for item in items], torch.int64),
        position=tensor([item.start + item.num_tokens for item in items], torch.int64),
        all_greedy=all(p.temperature == 0.0 for p in params),
    )


def _signed(seed: int) -> int:
    """The low 64 bits of any integer, as int64 has them."""
    return int(np.uint64(seed & 0xFFFF_FFFF_FFFF_FFFF).astype(np.int64))

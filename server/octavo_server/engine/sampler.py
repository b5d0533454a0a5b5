"""From edited logits to tokens: the draw, and the log-probabilities.

Temperature, top-k, top-p and min-p are the backend's. Log-probabilities are of the raw logits, or, in the mode
`processed`, of the distribution that the token was drawn from. Everything about a row comes from its own sequence, so a
result does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo_kernels.batches import SamplingBatch
from octavo_kernels.sample_ref import kept_tokens
from octavo_server.engine.logit_edits import LogitEdits
from octavo_server.engine.outputs import SampledToken, TokenLogprob

if TYPE_CHECKING:
    from octavo_kernels.backend import KernelBackend
    from octavo_server.config import LogprobsMode
    from octavo_server.engine.outputs import ScheduledSequence
    from octavo_server.engine.request import SamplingParams


CPU_ROWS = 8
"""Of float32 logits, 1.5 MB with a vocabulary of 50,000."""


class Sampler:
    """Chooses one token a row."""

    def __init__(
        self, backend: KernelBackend, eos_token_ids: tuple[int, ...], logprobs_mode: LogprobsMode = "raw"
    ) -> None:
        self._backend = backend
        self._edits = LogitEdits(eos_token_ids)
        self._mode = logprobs_mode

    def takes_likeliest(self, items: Items[ScheduledSequence]) -> bool:
        """Whether `sample` would give each row the likeliest token of its logits and nothing else."""
        return all(
            params.temperature == 0.0 and params.logprobs is None and not self._edits.touches(item.sequence)
            for item in items
            for params in (item.sequence.request.params,)
        )

    def sample(self, logits: torch.Tensor, items: Items[ScheduledSequence]) -> list[SampledToken | str]:
        """A token a row, or why there is none.

        logits: [len(items), vocab] float32, changed in place where a request edits them.
        """
        params = [item.sequence.request.params for item in items]
        wanted = [row for row, row_params in enumerate(params) if row_params.logprobs is not None]
        # Kept apart before edits change them.
        raw = logits[wanted] if wanted and self._mode == "raw" else logits[:0]
        failed = self._edits.apply(logits, items)
        if failed:
            logits[list(failed)] = 0.0
        token_ids = self._backend.sample(logits, _sampling_batch(items, logits.device)).tolist()
        if self._mode == "processed" and wanted:
            raw = torch.stack([processed(logits[row], params[row]) for row in wanted])
        counts = [params[row].logprobs or 0 for row in wanted]
        found = gather_logprobs(raw, [token_ids[row] for row in wanted], counts) if wanted else []
        reported = dict(zip(wanted, found, strict=True))
        nothing: tuple[TokenLogprob | None, tuple[TokenLogprob, ...]] = (None, ())
        tokens: list[SampledToken | str] = []
        for row, token_id in enumerate(token_ids):
            chosen, top = reported.get(row, nothing)
            token = SampledToken(token_id=token_id, logprob=chosen, top_logprobs=top)
            tokens.append(failed.get(row, token))
        return tokens

    def prompt_logits(self, logits: torch.Tensor, params: Items[SamplingParams]) -> torch.Tensor:
        """What the log-probabilities of prompt tokens are of; the edits that are about outputs do not hold for them.

        logits: [len(params), vocab] float32, perhaps changed in place.
        """
        if self._mode == "processed":
            for row, row_params in enumerate(params):
                self._edits.apply_to_prompt(logits[row], row_params)
                logits[row] = processed(logits[row], row_params)
        return logits


def processed(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution that a token is drawn from; a greedy choice is told of as at temperature 1.

    logits: [vocab] float32 after edits -> new [vocab] float32, minus infinity where nothing may be drawn.
    """
    if params.temperature == 0:
        return logits.clone()
    scaled = logits / params.temperature
    kept = kept_tokens(scaled, max(params.top_k, 0), params.top_p, params.min_p)
    return scaled.masked_fill_(~kept, -torch.inf)


def gather_logprobs(
    logits: torch.Tensor, token_ids: list[int], counts: list[int]
) -> list[tuple[TokenLogprob, tuple[TokenLogprob, ...]]]:
    """For each row the named token's log-probability and rank, and the `counts[row]` most likely tokens, sorted.

    logits: [num_rows, vocab] float32.
    """
    ids = torch.tensor(token_ids, dtype=torch.int64, device=logits.device).unsqueeze(1)
    chosen = logits.gather(1, ids)
    # On a CPU a few rows at a time, which stay in its caches from one pass over them to the next.
    at_once = CPU_ROWS if logits.device.type == "cpu" else len(token_ids)
    parts = list(zip(torch.split(logits, at_once), torch.split(chosen, at_once), strict=True))
    # normaliser: [num_rows, 1] float32; subtracting it late spares a second [num_rows, vocab]
    normaliser = torch.cat([rows.logsumexp(dim=-1, keepdim=True) for rows, _ in parts])
    ranks = torch.cat([(rows > own).sum(dim=-1, dtype=torch.int32) for rows, own in parts]).add_(1).tolist()
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

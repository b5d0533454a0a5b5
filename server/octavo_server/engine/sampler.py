"""From edited logits to tokens: the draw, and the log-probabilities.

Temperature, top-k, top-p and min-p are the backend's. Log-probabilities are of the raw logits, or, in the mode
`processed`, of the distribution that the token was drawn from. Everything about a row comes from its own sequence, so a
result does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo_kernels.batches import NOT_FINITE, NOTHING_LEFT, SamplingBatch
from octavo_kernels.sample_ref import kept_tokens
from octavo_server.engine import outputs
from octavo_server.engine.gathered_logprobs import Entry, GatheredLogprobs, gather_logprobs
from octavo_server.engine.logit_edits import LogitEdits
from octavo_server.engine.outputs import SampledToken
from octavo_server.engine.request_slots import signed
from octavo_server.engine.transfers import upload

if TYPE_CHECKING:
    from octavo_kernels.backend import KernelBackend
    from octavo_server.config import LogprobsMode
    from octavo_server.engine.outputs import ScheduledSequence
    from octavo_server.engine.request import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A token a row, still on the device, and what is told of it."""

    tokens: torch.Tensor
    """[num_rows] int64: ids, or what stands there instead of one (NOT_FINITE, NOTHING_LEFT)."""
    told_rows: tuple[int, ...] = ()
    """Rows whose log-probabilities are asked for."""
    logprobs: GatheredLogprobs | None = None
    """Of those; None where there are none."""
    refused: Mapping[int, str] = field(default_factory=dict)
    """Rows in which nothing can be chosen, whatever stands in `tokens`, and why."""
    edited: frozenset[int] = frozenset()
    """Rows whose logits a request has changed."""

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What `read` needs on the host."""
        return (self.tokens, *(self.logprobs.tensors if self.logprobs is not None else ()))

    def read(self, tensors: Items[torch.Tensor]) -> list[SampledToken | str | None]:
        """A token a row, or why the request leaves none, or None where a logit is not finite. tensors: on the host."""
        found = self.logprobs.read(tensors[1:]) if self.logprobs is not None else []
        told = dict(zip(self.told_rows, found, strict=True))
        token_ids: list[int] = tensors[0].tolist()
        if not (told or self.refused) and min(token_ids, default=0) >= 0:
            return [SampledToken(token_id) for token_id in token_ids]
        return [self._read_row(row, token_id, told) for row, token_id in enumerate(token_ids)]

    def _read_row(self, row: int, token_id: int, told: dict[int, Entry]) -> SampledToken | str | None:
        if token_id == NOT_FINITE:
            return None
        if row in self.refused:
            return self.refused[row]
        if token_id == NOTHING_LEFT:
            return outputs.NOTHING_LEFT if row in self.edited else None
        if row not in told:
            return SampledToken(token_id=token_id)
        chosen, top = told[row]
        return SampledToken(token_id=token_id, logprob=chosen, top_logprobs=top)


class Sampler:
    """Chooses one token a row."""

    def __init__(
        self, backend: KernelBackend, eos_token_ids: tuple[int, ...], logprobs_mode: LogprobsMode = "raw"
    ) -> None:
        self._backend = backend
        self._edits = LogitEdits(eos_token_ids)
        self._mode = logprobs_mode

    def is_plain(self, items: Items[ScheduledSequence]) -> bool:
        """Whether the rows' tokens are drawn from their logits as they are, and nothing else is asked for."""
        return all(
            item.sequence.request.params.logprobs is None and not self._edits.touches(item.sequence) for item in items
        )

    def takes_likeliest(self, items: Items[ScheduledSequence]) -> bool:
        """Whether `sample` would give each row the likeliest token of its logits and nothing else."""
        return all(item.sequence.request.params.temperature == 0.0 for item in items) and self.is_plain(items)

    def sample(
        self,
        logits: torch.Tensor,
        items: Items[ScheduledSequence],
        unservable: Collection[int] = (),
        sampling: SamplingBatch | None = None,
    ) -> Choice:
        """Chooses a token a row; waits for nothing.

        logits: [len(items), vocab] float32, changed in place where a request edits them. Rows in `unservable` are drawn
        from as they are; nobody will look at what they give. sampling: the parameters of the rows, where the device has
        them.
        """
        params = [item.sequence.request.params for item in items]
        wanted = [row for row, row_params in enumerate(params) if row_params.logprobs is not None]
        # Kept apart before edits change them.
        raw = self._rows(logits, wanted) if wanted and self._mode == "raw" else logits[:0]
        edited = frozenset(
            row for row, item in enumerate(items) if row not in unservable and self._edits.touches(item.sequence)
        )
        refused = self._edits.apply(logits, items, edited)
        tokens = self._backend.sample(logits, sampling or sampling_batch(items, logits.device))
        if not wanted:
            return Choice(tokens=tokens, refused=refused, edited=edited)
        if self._mode == "processed":
            raw = torch.stack([processed(logits[row], params[row]) for row in wanted])
        return Choice(
            tokens=tokens,
            told_rows=tuple(wanted),
            logprobs=gather_logprobs(raw, self._rows(tokens, wanted), [params[row].logprobs or 0 for row in wanted]),
            refused=refused,
            edited=edited,
        )

    def _rows(self, values: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """-> new tensor of those rows of `values`."""
        return values.index_select(0, upload(rows, np.int64, values.device))

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


def unservable(params: SamplingParams, vocab_size: int) -> str | None:
    """Why the sampler cannot apply `params` to this vocabulary, None where it can."""
    for token_id in params.logit_bias:
        if not 0 <= token_id < vocab_size:
            return f"logit_bias names token {token_id}, the vocabulary has {vocab_size} tokens"
    return None


def sampling_batch(items: Items[ScheduledSequence], device: torch.device) -> SamplingBatch:
    """Parameters of the rows of `items`."""
    params = [item.sequence.request.params for item in items]
    return SamplingBatch(
        temperature=upload([p.temperature for p in params], np.float32, device),
        top_k=upload([max(p.top_k, 0) for p in params], np.int32, device),
        top_p=upload([p.top_p for p in params], np.float32, device),
        min_p=upload([p.min_p for p in params], np.float32, device),
        seed=upload([signed(item.sequence.seed) for item in items], np.int64, device),
        position=upload([item.start + item.num_tokens for item in items], np.int64, device),
        all_greedy=all(p.temperature == 0.0 for p in params),
    )

"""Runs a step: tensors from the scheduler's decision, one forward pass, logits of the rows that need them, tokens.

Owner of the KV cache's tensors. Keeps nothing of a sequence between steps: what it needs it reads from the sequence, so
an aborted or preempted sequence leaves nothing behind here. A row that fails fails alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from octavo_kernels.batches import PAD_SLOT, AttentionBatch, SamplingBatch
from octavo_server.engine.batch import BatchBuilder, ForwardBatch
from octavo_server.engine.outputs import PromptLogprob, RunnerOutput, SampledToken, SequenceId
from octavo_server.engine.sampler import Sampler, gather_logprobs, unservable

if TYPE_CHECKING:
    from octavo_kernels.handles import KVCacheSpec
    from octavo_server.config import LogprobsMode
    from octavo_server.engine.outputs import ScheduledSequence, SchedulerOutput
    from octavo_server.models.decoder import Decoder

_LOGITS_CHUNK_ELEMENTS = 2**24
"""Prompt rows times vocabulary of one chunk of logits: 64 MiB of float32."""

_NON_FINITE = "the model computed a logit that is not a number or infinite; the request cannot go on"
_NON_FINITE_STATE = "the model computed a hidden state that is not a number or infinite; the request cannot go on"


class DecoderRunner:
    """Implements `ModelRunner` for one decoder on one device."""

    def __init__(self, decoder: Decoder, kv_spec: KVCacheSpec, logprobs_mode: LogprobsMode = "raw") -> None:
        self.decoder = decoder
        self.kv_cache = decoder.backend.allocate_kv_cache(kv_spec)
        self._vocab_size = decoder.config.vocab_size
        self._device = decoder.backend.device
        self._builder = BatchBuilder(kv_spec.block_size, self._vocab_size, self._device)
        self._sampler = Sampler(decoder.backend, decoder.config.eos_token_ids, logprobs_mode)

    @torch.inference_mode()
    def execute(self, output: SchedulerOutput) -> RunnerOutput:
        """Runs one step. Raises only when the whole step failed."""
        if not output.scheduled:
            return RunnerOutput(sampled={})
        batch = self._builder.build(output)
        if (likeliest := self._likeliest(batch)) is not None:
            return likeliest
        hidden = self.decoder.forward(
            batch.token_ids, batch.positions, batch.attention, self.kv_cache, batch.logit_rows
        )
        failed = dict(batch.invalid)
        num_samples, num_pooled = len(batch.samples), len(batch.pooled)
        refused: dict[SequenceId, str] = {}
        sampled = self._sample(hidden, batch.samples, failed, refused) if num_samples else {}
        pooled = hidden[num_samples : num_samples + num_pooled]
        hidden_states = _hidden_states(pooled, batch.pooled, failed) if num_pooled else {}
        prompt_logprobs = self._prompt_logprobs(hidden, batch, failed) if batch.prompt_targets else {}
        # A sequence in `failed` ends, whatever else the step gave it.
        return RunnerOutput(
            refused=refused,
            sampled=sampled,
            prompt_logprobs=prompt_logprobs,
            hidden_states=hidden_states,
            failed=failed,
        )

    def _likeliest(self, batch: ForwardBatch) -> RunnerOutput | None:
        """The step where all that is asked for are likeliest tokens, and the decoder finds them itself; else None."""
        if (
            batch.pooled
            or batch.prompt_targets
            or not batch.samples
            or not self._sampler.takes_likeliest(batch.samples)
        ):
            return None
        tokens = self.decoder.likeliest(
            batch.token_ids, batch.positions, batch.attention, self.kv_cache, batch.logit_rows
        )
        if tokens is None:
            return None
        failed, sampled = dict(batch.invalid), {}
        for item, token_id in zip(batch.samples, tokens.tolist(), strict=True):
            if token_id < 0:
                failed.setdefault(item.sequence.sequence_id, _NON_FINITE)
            elif item.sequence.sequence_id not in failed:
                sampled[item.sequence.sequence_id] = SampledToken(token_id=token_id)
        return RunnerOutput(sampled=sampled, failed=failed)

    @torch.inference_mode()
    def warm_up(self, max_num_tokens: int, max_num_seqs: int) -> None:
        """Runs a prefill and decodes of the sizes to come, so that no request waits for a first call.

        Reads the null block and writes nowhere.
        """
        block_size = self.kv_cache.spec.block_size
        capacity = self.kv_cache.spec.num_blocks * block_size
        self._warm_up_shape(num_seqs=1, query_len=min(max_num_tokens, self.decoder.config.max_positions, capacity))
        num_seqs = 1
        while num_seqs <= min(max_num_seqs, max_num_tokens):
            self._warm_up_shape(num_seqs=num_seqs, query_len=1)
            num_seqs *= 4

    def _warm_up_shape(self, num_seqs: int, query_len: int) -> None:
        num_tokens = num_seqs * query_len
        num_blocks = -(-query_len // self.kv_cache.spec.block_size)
        # int64 zeros serve as token ids and, repeated, as positions from 0
        positions = torch.arange(query_len, device=self._device).repeat(num_seqs)
        starts = torch.arange(0, num_tokens + 1, query_len, dtype=torch.int32, device=self._device)
        attention = AttentionBatch(
            query_start_loc=starts,
            seq_lens=torch.full((num_seqs,), query_len, dtype=torch.int32, device=self._device),
            block_tables=torch.zeros((num_seqs, num_blocks), dtype=torch.int32, device=self._device),
            slot_mapping=torch.full((num_tokens,), PAD_SLOT, dtype=torch.int64, device=self._device),
            max_query_len=query_len,
            max_seq_len=query_len,
        )
        last_rows = starts[1:].long() - 1
        token_ids = torch.zeros_like(positions)
        hidden = self.decoder.forward(token_ids, positions, attention, self.kv_cache, last_rows)
        logits = self.decoder.logits(hidden)
        for temperature in (0.0, 1.0):
            tokens = self.decoder.backend.sample(logits, self._warm_up_sampling(num_seqs, temperature))
        # .sum() waits for the device, so that warm-up ends when the work has.
        int(tokens.sum())

    def _warm_up_sampling(self, num_rows: int, temperature: float) -> SamplingBatch:
        def column(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((num_rows,), value, dtype=dtype, device=self._device)

        return SamplingBatch(
            temperature=column(temperature, torch.float32),
            top_k=column(0, torch.int32),
            top_p=column(1.0, torch.float32),
            min_p=column(0.0, torch.float32),
            seed=column(0, torch.int64),
            position=column(0, torch.int64),
            all_greedy=temperature == 0.0,
        )

    def _sample(
        self,
        hidden: torch.Tensor,
        samples: tuple[ScheduledSequence, ...],
        failed: dict[SequenceId, str],
        refused: dict[SequenceId, str],
    ) -> dict[SequenceId, SampledToken]:
        for item in samples:
            reason = unservable(item.sequence.request.params, self._vocab_size)
            if reason is not None:
                failed[item.sequence.sequence_id] = reason
        # logits: [num_samples, vocab] float32
        logits = self.decoder.logits(hidden, slice(0, len(samples)))
        for row in _non_finite_rows(logits):
            failed.setdefault(samples[row].sequence.sequence_id, _NON_FINITE)
        good = [row for row, item in enumerate(samples) if item.sequence.sequence_id not in failed]
        if len(good) < len(samples):
            logits = logits[good]
        if not good:
            return {}
        items = [samples[row] for row in good]
        sampled: dict[SequenceId, SampledToken] = {}
        for item, token in zip(items, self._sampler.sample(logits, items), strict=True):
            if isinstance(token, str):
                refused[item.sequence.sequence_id] = token
            else:
                sampled[item.sequence.sequence_id] = token
        return sampled

    def _prompt_logprobs(
        self, hidden: torch.Tensor, batch: ForwardBatch, failed: dict[SequenceId, str]
    ) -> dict[SequenceId, tuple[PromptLogprob, ...]]:
        found: dict[SequenceId, list[PromptLogprob]] = {}
        first = len(batch.samples) + len(batch.pooled)
        step = max(1, _LOGITS_CHUNK_ELEMENTS // self._vocab_size)
        for start in range(0, len(batch.prompt_targets), step):
            targets = batch.prompt_targets[start : start + step]
            logits = self.decoder.logits(hidden, slice(first + start, first + start + len(targets)))
            for row in _non_finite_rows(logits):
                failed.setdefault(targets[row].sequence.sequence_id, _NON_FINITE)
            logits = self._sampler.prompt_logits(logits, [target.sequence.request.params for target in targets])
            token_ids = [target.sequence.token_ids[target.position] for target in targets]
            counts = [target.sequence.request.params.prompt_logprobs or 0 for target in targets]
            in_range = [token_id if 0 <= token_id < self._vocab_size else 0 for token_id in token_ids]
            for target, (logprob, top) in zip(targets, gather_logprobs(logits, in_range, counts), strict=True):
                entry = PromptLogprob(position=target.position, logprob=logprob, top_logprobs=top)
                found.setdefault(target.sequence.sequence_id, []).append(entry)
        return {sequence_id: tuple(entries) for sequence_id, entries in found.items()}


def _hidden_states(
    hidden: torch.Tensor, pooled: tuple[ScheduledSequence, ...], failed: dict[SequenceId, str]
) -> dict[SequenceId, bytes]:
    """hidden: [len(pooled), hidden] model dtype -> float32 bytes of each row that is finite."""
    rows = hidden.float().cpu()
    for row in _non_finite_rows(rows):
        failed.setdefault(pooled[row].sequence.sequence_id, _NON_FINITE_STATE)
    values = rows.numpy().astype("<f4", copy=False)
    return {item.sequence.sequence_id: values[row].tobytes() for row, item in enumerate(pooled)}


def _non_finite_rows(logits: torch.Tensor) -> list[int]:
    """Rows of [num_rows, any] float32 that hold a NaN or an infinity: either makes the row's sum non-finite."""
    sums = logits.sum(dim=-1)
    return [] if bool(sums.isfinite().all()) else (~sums.isfinite()).nonzero().flatten().tolist()

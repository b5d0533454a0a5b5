"""Runs a step: tensors from the scheduler's decision, one forward pass, logits of the rows that need them, tokens.

Owner of the KV cache's tensors. Keeps nothing of a sequence between steps: what it needs it reads from the sequence, so
an aborted or preempted sequence leaves nothing behind here. Nothing waits for the device before a step's end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo_kernels.batches import PAD_SLOT, AttentionBatch, SamplingBatch
from octavo_server.engine.batch import BatchBuilder, ForwardBatch, StepBuilder
from octavo_server.engine.decode_graphs import DecodeGraphs
from octavo_server.engine.gathered_logprobs import gather_logprobs
from octavo_server.engine.launched_step import LaunchedStep, PromptScores
from octavo_server.engine.outputs import RunnerOutput
from octavo_server.engine.request_slots import RequestSlots
from octavo_server.engine.resident_batch import PlacedStep, ResidentBatchBuilder, table_width
from octavo_server.engine.sampler import Choice, Sampler, unservable
from octavo_server.engine.transfers import Download, upload

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from octavo_kernels.handles import KVCacheSpec
    from octavo_server.config import LogprobsMode
    from octavo_server.engine.decode_graphs import Recorder
    from octavo_server.engine.outputs import ScheduledSequence, SchedulerOutput, SequenceId
    from octavo_server.models.decoder import Decoder

MAX_SEQS = 1024
"""Sequences of a step on a GPU, unless `keep_resident` says otherwise."""

_LOGITS_CHUNK_ELEMENTS = 2**24
"""Prompt rows times vocabulary of one chunk of logits: 64 MiB of float32."""


class DecoderRunner:
    """Implements `ModelRunner` for one decoder on one device."""

    def __init__(self, decoder: Decoder, kv_spec: KVCacheSpec, logprobs_mode: LogprobsMode = "raw") -> None:
        self.decoder = decoder
        self.kv_cache = decoder.allocate_kv_cache(kv_spec)
        self._vocab_size = decoder.config.vocab_size
        self._device = decoder.backend.device
        self._slots: RequestSlots | None = None
        self._resident: ResidentBatchBuilder | None = None
        self._graphs: DecodeGraphs | None = None
        self._builder: StepBuilder = BatchBuilder(kv_spec.block_size, self._vocab_size, self._device)
        if self._device.type != "cpu":
            self.keep_resident(MAX_SEQS)
        self._sampler = Sampler(decoder.backend, decoder.config.eos_token_ids, logprobs_mode)

    def keep_resident(self, max_num_seqs: int, max_model_len: int | None = None) -> None:
        """Has the device keep what it can of up to so many sequences; before the first step.

        A GPU does so by itself, for MAX_SEQS. On a CPU it is slower, and is what overlapped steps and graphs need.
        `max_model_len`: tokens of a sequence; None: as many as the model and the cache allow.
        """
        spec = self.kv_cache.spec
        longest = min(self.decoder.config.max_positions, spec.num_blocks * spec.block_size)
        self._slots = RequestSlots(
            num_slots=max_num_seqs,
            max_blocks=-(-min(longest, max_model_len or longest) // spec.block_size),
            block_size=spec.block_size,
            device=self._device,
        )
        self._resident = ResidentBatchBuilder(self._slots, self._vocab_size, self._device)
        self._builder, self._graphs = self._resident, None

    @torch.inference_mode()
    def record_graphs(self, recorder: Recorder, max_num_seqs: int) -> None:
        """Records decode steps of up to so many sequences; after `keep_resident`, before the first step."""
        assert self._slots is not None, "keep_resident comes first"
        graphs = DecodeGraphs(
            self.decoder,
            self.kv_cache,
            self._slots,
            max_num_seqs=max_num_seqs,
            max_model_len=self._slots.block_tables.shape[1] * self._slots.block_size,
        )
        graphs.record(recorder)
        self._graphs = graphs

    def execute(self, output: SchedulerOutput) -> RunnerOutput:
        """Runs one step. Raises only when the whole step failed."""
        return self.launch(output).result() if output.scheduled else RunnerOutput(sampled={})

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput) -> LaunchedStep:
        """Starts a step of at least one token, and waits for nothing."""
        try:
            if self._graphs is None or self._resident is None:
                return self._launch(self._builder.build(output))
            step = self._resident.place(output)
            if step.is_plain and self._graphs.takes(len(step.slots)):
                return self._replay(step, self._graphs)
            return self._launch(self._resident.batch(step))
        except BaseException:
            if self._slots is not None:
                self._slots.forget()
            raise

    def _replay(self, step: PlacedStep, graphs: DecodeGraphs) -> LaunchedStep:
        items, slots = step.rows.samples, self._slots
        tokens, logits = graphs.run(step.slots, step.starts, step.token_ids)
        if self._sampler.is_plain(items):
            return LaunchedStep(items, failed=step.invalid, choice=Choice(tokens=tokens))
        assert slots is not None
        failed = {**self._unservable(items), **step.invalid}
        indices, positions = upload([step.slots, step.starts], np.int64, self._device)
        sampling = slots.sampling(indices, positions + 1, all_greedy=step.all_greedy)
        choice = self._sampler.sample(logits, items, _places(items, failed), sampling)
        slots.keep_tokens(indices, choice.tokens)
        return LaunchedStep(items, failed=failed, choice=choice)

    def _launch(self, batch: ForwardBatch) -> LaunchedStep:
        if (tokens := self._likeliest(batch)) is not None:
            return LaunchedStep(batch.samples, failed=batch.invalid, choice=self._kept(batch, Choice(tokens=tokens)))
        hidden = self.decoder.forward(
            batch.token_ids, batch.positions, batch.attention, self.kv_cache, batch.logit_rows
        )
        failed = {**self._unservable(batch.samples), **batch.invalid}
        num_samples, num_pooled = len(batch.samples), len(batch.pooled)
        return LaunchedStep(
            batch.samples,
            failed=failed,
            choice=self._kept(batch, self._choose(hidden, batch, failed)) if num_samples else None,
            scores=self._score_prompts(hidden, batch),
            pooled=batch.pooled,
            states=hidden[num_samples : num_samples + num_pooled].float() if num_pooled else None,
        )

    def _kept(self, batch: ForwardBatch, choice: Choice) -> Choice:
        """The choice, once its tokens stand where the next step may take them from."""
        if self._slots is not None and batch.sampled_slots is not None:
            self._slots.keep_tokens(batch.sampled_slots, choice.tokens)
        return choice

    def _likeliest(self, batch: ForwardBatch) -> torch.Tensor | None:
        """The step where all that is asked for are likeliest tokens, and the decoder finds them itself; else None."""
        if (
            batch.pooled
            or batch.prompt_targets
            or not batch.samples
            or not self._sampler.takes_likeliest(batch.samples)
        ):
            return None
        return self.decoder.likeliest(
            batch.token_ids, batch.positions, batch.attention, self.kv_cache, batch.logit_rows
        )

    def _unservable(self, items: Sequence[ScheduledSequence]) -> dict[SequenceId, str]:
        found = {
            item.sequence.sequence_id: unservable(item.sequence.request.params, self._vocab_size) for item in items
        }
        return {sequence_id: reason for sequence_id, reason in found.items() if reason is not None}

    def _choose(self, hidden: torch.Tensor, batch: ForwardBatch, failed: Collection[SequenceId]) -> Choice:
        items = batch.samples
        # logits: [num_samples, vocab] float32
        logits = self.decoder.logits(hidden, slice(0, len(items)))
        return self._sampler.sample(logits, items, _places(items, failed), batch.sampling)

    def _score_prompts(self, hidden: torch.Tensor, batch: ForwardBatch) -> list[PromptScores]:
        found: list[PromptScores] = []
        first = len(batch.samples) + len(batch.pooled)
        step = max(1, _LOGITS_CHUNK_ELEMENTS // self._vocab_size)
        for start in range(0, len(batch.prompt_targets), step):
            targets = batch.prompt_targets[start : start + step]
            logits = self.decoder.logits(hidden, slice(first + start, first + start + len(targets)))
            sums = logits.sum(dim=-1)
            params = [target.sequence.request.params for target in targets]
            logits = self._sampler.prompt_logits(logits, params)
            token_ids = [target.sequence.token_ids[target.position] for target in targets]
            in_range = [token_id if 0 <= token_id < self._vocab_size else 0 for token_id in token_ids]
            counts = [row_params.prompt_logprobs or 0 for row_params in params]
            gathered = gather_logprobs(logits, upload(in_range, np.int64, self._device), counts)
            found.append(PromptScores(targets=targets, logprobs=gathered, sums=sums))
        return found

    @torch.inference_mode()
    def warm_up(self, max_num_tokens: int, max_num_seqs: int) -> None:
        """Runs steps of every kind to come, so that no request waits for a first call.

        Reads the null block and writes nowhere.
        """
        capacity = self.kv_cache.spec.num_blocks * self.kv_cache.spec.block_size
        longest = min(max_num_tokens, self.decoder.config.max_positions, capacity)
        for query_lens in warm_up_steps(longest, max_num_tokens, max_num_seqs):
            self._warm_up_step(query_lens)

    def _warm_up_step(self, query_lens: list[int]) -> None:
        device, longest, count = self._device, max(query_lens), len(query_lens)
        starts = np.cumsum([0, *query_lens])
        positions = upload([position for length in query_lens for position in range(length)], np.int64, device)
        width = table_width(longest, self.kv_cache.spec.block_size)
        attention = AttentionBatch(
            query_start_loc=upload(starts, np.int32, device),
            seq_lens=upload(query_lens, np.int32, device),
            block_tables=torch.zeros((count, width), dtype=torch.int32, device=device),
            slot_mapping=torch.full(positions.shape, PAD_SLOT, dtype=torch.int64, device=device),
            max_query_len=longest,
            max_seq_len=longest,
            min_query_len=min(query_lens),
        )
        # zeros serve as token ids
        token_ids, last_rows = torch.zeros_like(positions), upload(starts[1:] - 1, np.int64, device)
        hidden = self.decoder.forward(token_ids, positions, attention, self.kv_cache, last_rows)
        logits = self.decoder.logits(hidden)
        for temperature in (0.0, 1.0):
            tokens = self.decoder.backend.sample(logits, self._warm_up_sampling(count, temperature))
        # So that warm-up ends when the work has.
        Download([tokens]).wait()

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


def _places(items: Sequence[ScheduledSequence], chosen: Collection[SequenceId]) -> set[int]:
    return {place for place, item in enumerate(items) if item.sequence.sequence_id in chosen} if chosen else set()


def warm_up_steps(longest: int, max_num_tokens: int, max_num_seqs: int) -> list[list[int]]:
    """Query lengths of steps after which every kernel has been called in every way that it is compiled for.

    Triton compiles a number anew that is 1, or a multiple of 16, or neither; so one sequence, two, three and sixteen, that
    extend, decode or do both; decodes of sizes between, and rows as linear layers of few bits have tiles for; and of long
    prefills an even and an odd one.
    """
    steps = [[longest], [max(1, longest - 1)], [33]]
    for count in (1, 2, 3, 16):
        steps += [[1] * count, [2] * count, [2] + [1] * (count - 1), [17] + [1] * (count - 1)]
    count = 4
    while count <= max_num_seqs:
        steps.append([1] * count)
        count *= 4
    steps += [[1] * min(count, max_num_seqs) for count in (32, 64, 129)]
    fitting = [
        step for step in steps if len(step) <= max_num_seqs and sum(step) <= max_num_tokens and max(step) <= longest
    ]
    return [list(step) for step in dict.fromkeys(map(tuple, fitting))]

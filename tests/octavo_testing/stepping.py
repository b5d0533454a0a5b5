"""Drives a runner through the real scheduler, so that tests say what is asked and look at what comes out."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.engine.outputs import PromptLogprob, SampledToken, SequenceId
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.sequence import Sequence
from octavo_server.models.loader import LoadedModel


@dataclass
class Generated:
    """All that one sequence gave."""

    sequence: Sequence
    tokens: list[SampledToken] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


class Stepper:
    """One engine without its loop: scheduler, cache manager and runner."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_blocks: int = 200,
        block_size: int = 16,
        max_num_batched_tokens: int = 2048,
        enable_prefix_caching: bool = False,
    ) -> None:
        self.loaded = loaded
        self.runner = DecoderRunner(loaded.decoder, loaded.kv_cache_spec(num_blocks, block_size))
        self.kv = KVCacheManager(
            num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=enable_prefix_caching
        )
        config = SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=64,
            max_model_len=loaded.config.max_positions,
            long_prefill_token_threshold=max_num_batched_tokens,
            eos_token_ids=frozenset(loaded.config.eos_token_ids),
        )
        self.scheduler = Scheduler(config, self.kv)
        self._num_sequences = 0

    def add(self, prompt: Items[int], *, seed: int = 0, cache_salt: str = "", **params: Any) -> Sequence:
        """Queues one sequence; `params` are fields of SamplingParams, greedy without end unless said otherwise."""
        self._num_sequences += 1
        values = {"temperature": 0.0, "ignore_eos": True, **params}
        request = Request(
            request_id=f"request-{self._num_sequences}",
            prompt_token_ids=tuple(prompt),
            params=SamplingParams(**values),
            arrival_s=0.0,
            cache_salt=cache_salt,
        )
        sequence = Sequence(sequence_id=SequenceId(self._num_sequences), request=request, seed=seed)
        self.scheduler.add(sequence)
        return sequence

    def run(self, sequences: Items[Sequence]) -> list[Generated]:
        """Steps until nothing is left to do."""
        found = {sequence.sequence_id: Generated(sequence) for sequence in sequences}
        while self.scheduler.has_work:
            output = self.scheduler.schedule(0.0)
            for item in self.scheduler.update(output, self.runner.execute(output), 0.0):
                entry = found[item.sequence.sequence_id]
                entry.tokens += item.tokens
                entry.prompt_logprobs += item.prompt_logprobs
            self.scheduler.check_integrity()
        return list(found.values())

    def generate(self, prompts: Items[Items[int]], **params: Any) -> list[Generated]:
        """All prompts at once, each with the same parameters."""
        return self.run([self.add(prompt, **params) for prompt in prompts])

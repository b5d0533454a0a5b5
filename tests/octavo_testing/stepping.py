"""Drives a runner through the real scheduler, so that tests say what is asked and look at what comes out."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.engine.outputs import PromptLogprob, SampledToken, ScheduledSequence, SequenceId
from octavo_server.engine.request import POOLING, Request, SamplingParams
from octavo_server.engine.sampler import Sampler
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.engine.sequence import Sequence
from octavo_server.engine.transfers import Download
from octavo_server.models.loader import LoadedModel
from octavo_testing.checkpoints import oracle_logprobs


@dataclass
class Generated:
    """All that one sequence gave."""

    sequence: Sequence
    tokens: list[SampledToken] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)
    hidden_states: list[bytes] = field(default_factory=list)

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]

    @property
    def prompt_ids(self) -> list[int]:
        return list(self.sequence.request.prompt_token_ids)


def chosen(sampler: Sampler, logits: torch.Tensor, items: Items[ScheduledSequence]) -> list[SampledToken | str | None]:
    """What each row becomes."""
    choice = sampler.sample(logits, items)
    return choice.read(Download(choice.tensors).wait())


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
        max_num_seqs: int = 64,
        is_resident: bool = False,
    ) -> None:
        self.loaded = loaded
        self.runner = DecoderRunner(loaded.decoder, loaded.kv_cache_spec(num_blocks, block_size))
        if is_resident:
            self.runner.keep_resident(max_num_seqs)
        self.kv = KVCacheManager(
            num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=enable_prefix_caching
        )
        config = SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=loaded.config.max_positions,
            long_prefill_token_threshold=max_num_batched_tokens,
            eos_token_ids=frozenset(loaded.config.eos_token_ids),
        )
        self.scheduler = Scheduler(config, self.kv)
        self._found: dict[SequenceId, Generated] = {}

    def add(
        self, prompt: Items[int], *, seed: int = 0, cache_salt: str = "", pools: bool = False, **params: Any
    ) -> Sequence:
        """Queues one sequence; `params` are fields of SamplingParams, greedy without end unless said otherwise."""
        number = len(self._found) + 1
        values = {"temperature": 0.0, "ignore_eos": True, **params}
        request = Request(
            request_id=f"request-{number}",
            prompt_token_ids=tuple(prompt),
            params=POOLING if pools else SamplingParams(**values),
            arrival_s=0.0,
            pools=pools,
            cache_salt=cache_salt,
        )
        sequence = Sequence(sequence_id=SequenceId(number), request=request, seed=seed)
        self._found[sequence.sequence_id] = Generated(sequence)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        """One step; what it gave is kept for `run`."""
        output = self.scheduler.schedule(0.0)
        for item in self.scheduler.update(output, self.runner.execute(output)):
            entry = self._found[item.sequence.sequence_id]
            entry.tokens += item.tokens
            entry.prompt_logprobs += item.prompt_logprobs
            entry.hidden_states += [item.hidden_state] if item.hidden_state is not None else []
        self.scheduler.check_integrity()

    def run(self, sequences: Items[Sequence]) -> list[Generated]:
        """Steps until nothing is left to do; all that `sequences` gave since they were added."""
        while self.scheduler.has_work:
            self.step()
        return [self._found[sequence.sequence_id] for sequence in sequences]

    def generate(self, prompts: Items[Items[int]], **params: Any) -> list[Generated]:
        """All prompts at once, each with the same parameters."""
        return self.run([self.add(prompt, **params) for prompt in prompts])


LOGPROB_TOLERANCE = 5e-4
"""Nats, float32. Noise of another order of summation is at most 1e-4, the smallest real bug measured 1.3e-3."""


class Answered(Protocol):
    """What an oracle can be asked about."""

    @property
    def prompt_ids(self) -> list[int]: ...
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def tokens(self) -> list[SampledToken]: ...
    @property
    def prompt_logprobs(self) -> list[PromptLogprob]: ...


def worst_logprob_error(generated: Answered, oracle: Any) -> float:
    """Largest difference to the oracle's log-probabilities, over prompt positions, sampled tokens and all top tokens.

    The oracle is teacher-forced: it reads the prompt and what was generated, and must give each token the same.
    """
    prompt = generated.prompt_ids
    logprobs = oracle_logprobs(oracle, prompt + generated.token_ids)
    found = [(item.position, item.logprob, item.top_logprobs) for item in generated.prompt_logprobs]
    for index, token in enumerate(generated.tokens):
        if token.logprob is not None:
            found.append((len(prompt) + index, token.logprob, token.top_logprobs))
    assert found, "nothing to compare: ask for logprobs or prompt_logprobs"
    rows = [position - 1 for position, logprob, top in found for _ in (logprob, *top)]
    ids = [item.token_id for _, logprob, top in found for item in (logprob, *top)]
    values = torch.tensor([item.logprob for _, logprob, top in found for item in (logprob, *top)])
    return float((logprobs[rows, ids] - values).abs().max())


def greedy_mismatches(generated: Answered, oracle: Any, margin: float = 1e-3) -> list[int]:
    """Indices of output tokens that are not the oracle's choice, where its two best are more than `margin` apart."""
    prompt = generated.prompt_ids
    rows = oracle_logprobs(oracle, prompt + generated.token_ids)[len(prompt) - 1 : -1]
    best = rows.topk(2, dim=-1)
    return [
        index
        for index, token_id in enumerate(generated.token_ids)
        if token_id != int(best.indices[index, 0]) and float(best.values[index, 0] - rows[index, token_id]) > margin
    ]

"""Runs prompts through a real `Engine` (scheduler, cache, runner, detokenizer) and keeps all that it gave."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from octavo_server.engine.engine import Engine, Vocabulary
from octavo_server.engine.kv_cache_manager import KVCacheManager
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.engine.outputs import PromptLogprob, SampledToken
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.engine.scheduler import Scheduler, SchedulerConfig
from octavo_server.models.loader import LoadedModel
from octavo_server.structured_output.compiler import GrammarCompiler

if TYPE_CHECKING:
    from octavo_server.engine.decode_graphs import Recorder
    from octavo_server.tokenizer.tokenizer import Tokenizer


@dataclass
class Answer:
    """What one request got."""

    prompt_ids: list[int]
    tokens: list[SampledToken] = field(default_factory=list)
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None

    @property
    def token_ids(self) -> list[int]:
        return [token.token_id for token in self.tokens]


class _Bytes:
    """A token is one character: exactness is about ids."""

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([97 + token_id % 26])

    def is_special(self, _token_id: int) -> bool:
        return False


class EngineRuns:
    """One engine, for as many calls of `generate` as a test likes."""

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        num_blocks: int = 300,
        block_size: int = 16,
        max_num_batched_tokens: int = 4096,
        enable_prefix_caching: bool = True,
        max_num_seqs: int = 64,
        overlaps: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        """`overlaps`: steps are decided before the last has come back; `recorder`: decodes are recorded by it."""
        kv = KVCacheManager(num_blocks=num_blocks, block_size=block_size, enable_prefix_caching=enable_prefix_caching)
        config = SchedulerConfig(
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            max_model_len=loaded.config.max_positions,
            long_prefill_token_threshold=max_num_batched_tokens,
            eos_token_ids=frozenset(loaded.config.eos_token_ids),
            overlaps=overlaps,
        )
        self.scheduler = Scheduler(config, kv)
        tokens, size = _Bytes(), loaded.config.vocab_size
        # No request here has a grammar, so nothing else of a tokenizer is asked for.
        grammars = GrammarCompiler(cast("Tokenizer", tokens), vocab_size=size, eos_token_ids=())
        runner = DecoderRunner(loaded.decoder, loaded.kv_cache_spec(num_blocks, block_size))
        if overlaps or recorder is not None:
            runner.keep_resident(max_num_seqs)
        if recorder is not None:
            runner.record_graphs(recorder, max_num_seqs)
        self.engine = Engine(
            scheduler=self.scheduler,
            runner=runner,
            vocabulary=Vocabulary(tokens=tokens, size=size, grammars=grammars),
        )
        self._num_requests = 0

    def generate(self, prompts: Items[list[int]], **params: Any) -> list[Answer]:
        """All prompts at once, each with the same parameters: greedy without end unless said otherwise."""
        return self.generate_each([(prompt, params) for prompt in prompts])

    def generate_each(self, asked: Items[tuple[list[int], dict[str, Any]]]) -> list[Answer]:
        """All prompts at once, each with its own parameters."""
        answers: dict[str, Answer] = {}
        for prompt, params in asked:
            sampling = SamplingParams(**{"temperature": 0.0, "ignore_eos": True, **params})
            self._num_requests += 1
            name = f"request-{self._num_requests}"
            answers[name] = Answer(prompt_ids=prompt)
            self.engine.add_request(
                Request(request_id=name, prompt_token_ids=tuple(prompt), params=sampling, arrival_s=0.0)
            )
        while self.engine.has_work:
            for delta in self.engine.step():
                answer = answers[delta.request_id]
                answer.tokens += delta.tokens
                answer.prompt_logprobs += delta.prompt_logprobs
                answer.num_cached_tokens = delta.num_cached_tokens
                answer.finish_reason = delta.finish_reason
            self.scheduler.check_integrity()
        return list(answers.values())

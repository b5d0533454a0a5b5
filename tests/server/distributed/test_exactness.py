"""Several ranks against transformers' float32 log-probabilities, and against one rank's greedy tokens.

A variant's ranks are started once and serve all ways of computing: many at once, in chunks, after a prefix hit, preempted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from octavo_server.models.loader import LoadedModel, load_model
from octavo_testing.checkpoints import EVEN, ODD, a_checkpoint, prompt_tokens
from octavo_testing.engine_runs import Answer, EngineRuns
from octavo_testing.families import QWEN3_EXPERTS, WINDOW
from octavo_testing.ranks import on_ranks
from octavo_testing.stepping import LOGPROB_TOLERANCE, worst_logprob_error

# 517 tokens and 101 inner elements can be dealt out to nobody evenly.
UNEVEN = {**ODD, "intermediate_size": 101}
ONE_KV_HEAD, TWO_KV_HEADS = {**UNEVEN, "num_key_value_heads": 1}, {**UNEVEN, "num_key_value_heads": 2}

VARIANTS: dict[str, tuple[int, str, dict[str, Any], dict[str, Any]]] = {
    "llama-biased": (2, "LlamaForCausalLM", TWO_KV_HEADS, {"attention_bias": True, "mlp_bias": True}),
    "llama-on-four": (
        4,
        "LlamaForCausalLM",
        {**EVEN, "vocab_size": 517, "intermediate_size": 101},
        {"attention_bias": True, "mlp_bias": True},
    ),
    "qwen2-tied-one-kv-head": (2, "Qwen2ForCausalLM", ONE_KV_HEAD, {"tie_word_embeddings": True}),
    "qwen3": (2, "Qwen3ForCausalLM", TWO_KV_HEADS, {}),
    "mixtral": (2, "MixtralForCausalLM", TWO_KV_HEADS, {"num_local_experts": 5}),
    "qwen3-moe": (
        2,
        "Qwen3MoeForCausalLM",
        TWO_KV_HEADS,
        {**QWEN3_EXPERTS, "moe_intermediate_size": 41, "norm_topk_prob": True, "decoder_sparse_step": 2},
    ),
    "mistral-window-one-kv-head": (2, "MistralForCausalLM", ONE_KV_HEAD, {"sliding_window": WINDOW}),
}
LENGTHS = (1, 16, 17, 40, 150)


@dataclass(frozen=True)
class Trio:
    """One model on several ranks, on one, and in transformers."""

    parallel: LoadedModel
    alone: LoadedModel
    oracle: Any

    def prompts(self, *lengths: int, seed: int = 0) -> list[list[int]]:
        return [prompt_tokens(length, self.alone.config.vocab_size, seed) for length in lengths]


@pytest.fixture(scope="module", params=VARIANTS)
def trio(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    size, architecture, sizes, overrides = VARIANTS[request.param]
    checkpoint = a_checkpoint(tmp_path_factory.mktemp(request.param), architecture, sizes, **overrides)
    with on_ranks(checkpoint.path, size) as parallel:
        yield Trio(parallel, load_model(checkpoint.path), checkpoint.model)


def check(answers: list[Answer], others: list[Answer], oracle: Any) -> None:
    assert max(worst_logprob_error(answer, oracle) for answer in answers) < LOGPROB_TOLERANCE
    assert [answer.token_ids for answer in others] == [answer.token_ids for answer in answers]


def test_many_at_once(trio: Trio) -> None:
    asked = {"max_tokens": 12, "prompt_logprobs": 3, "logprobs": 3}
    answers, others = (
        EngineRuns(loaded).generate(trio.prompts(*LENGTHS), **asked) for loaded in (trio.parallel, trio.alone)
    )

    assert [len(answer.prompt_logprobs) for answer in answers] == [n - 1 for n in LENGTHS]
    check(answers, others, trio.oracle)


def test_in_chunks(trio: Trio) -> None:
    answers, others = (
        EngineRuns(loaded, block_size=32, max_num_batched_tokens=16).generate(
            trio.prompts(*LENGTHS), max_tokens=4, prompt_logprobs=3, logprobs=3
        )
        for loaded in (trio.parallel, trio.alone)
    )

    check(answers, others, trio.oracle)


def test_after_a_prefix_hit(trio: Trio) -> None:
    found = []
    for loaded in (trio.parallel, trio.alone):
        runs = EngineRuns(loaded)
        (shared,), (other,) = trio.prompts(100), trio.prompts(31, seed=2)
        runs.generate([shared], max_tokens=1)
        found.append(runs.generate([shared, shared[:70] + other], max_tokens=8, logprobs=5))

    answers, others = found
    assert [answer.num_cached_tokens for answer in answers] == [96, 64]
    check(answers, others, trio.oracle)


def test_preempted(trio: Trio) -> None:
    """The blocks hold the prompts, not what four sequences generate."""
    found = []
    for loaded in (trio.parallel, trio.alone):
        runs = EngineRuns(loaded, num_blocks=12, enable_prefix_caching=False)
        found.append(runs.generate(trio.prompts(40, 33, 20, 47, seed=3), max_tokens=20, logprobs=2))
        assert runs.engine.snapshot().preemptions > 0

    check(*found, trio.oracle)


def test_steps_that_overlap(trio: Trio) -> None:
    """Preempted, and in chunks, so that prefills stand beside decodes whose tokens are still on their way."""
    asked: dict[str, Any] = {"max_tokens": 20, "logprobs": 2}
    few = {"num_blocks": 12, "enable_prefix_caching": False, "max_num_batched_tokens": 32}
    runs = EngineRuns(trio.parallel, overlaps=True, **few)

    answers = runs.generate(trio.prompts(40, 33, 20, 47, seed=3), **asked)

    assert runs.engine.snapshot().preemptions > 0
    check(answers, EngineRuns(trio.alone).generate(trio.prompts(40, 33, 20, 47, seed=3), **asked), trio.oracle)


@pytest.mark.parametrize("overlaps", [False, True], ids=["in turn", "overlapping"])
def test_sampled_tokens_are_those_of_one_rank(trio: Trio, overlaps: bool) -> None:
    """All logits are at rank 0, which alone draws; of steps that overlap the others get a token that no host has seen yet."""
    asked = {"max_tokens": 20, "temperature": 0.8, "top_p": 0.9, "seed": 5}
    answers, others = (
        EngineRuns(loaded, overlaps=loaded is trio.parallel and overlaps).generate(trio.prompts(7, 21), **asked)
        for loaded in (trio.parallel, trio.alone)
    )

    assert [answer.token_ids for answer in others] == [answer.token_ids for answer in answers]

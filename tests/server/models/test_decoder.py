"""The decoder against transformers: teacher-forced log-probabilities of tiny random checkpoints of each family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_server.models.loader import LoadedModel, load_model
from octavo_testing.checkpoints import EVEN, LLAMA3_ROPE, ODD, a_checkpoint, prompt_tokens
from octavo_testing.stepping import LOGPROB_TOLERANCE, Stepper, greedy_mismatches, worst_logprob_error

# They cross block edges and, with LLAMA3_ROPE, the 64 tokens of the original context.
LENGTHS = (1, 7, 16, 17, 40, 100, 150, 300)

LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 128}
VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", EVEN, {}),
    "llama-odd-biased": ("LlamaForCausalLM", ODD, {"attention_bias": True, "mlp_bias": True}),
    "llama3-tied": ("LlamaForCausalLM", ODD, {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama-linear-eps": ("LlamaForCausalLM", EVEN, {"rope_parameters": LINEAR_ROPE, "rms_norm_eps": 0.05}),
    "llama-multi-head": ("LlamaForCausalLM", EVEN, {"num_key_value_heads": 4}),
    "mistral": ("MistralForCausalLM", ODD, {"sliding_window": None}),
    "mistral-window": ("MistralForCausalLM", ODD, {"sliding_window": 33}),
    "qwen2": ("Qwen2ForCausalLM", EVEN, {}),
    "qwen2-odd-tied": ("Qwen2ForCausalLM", {**ODD, "head_dim": 24}, {"tie_word_embeddings": True}),
    "qwen2-window": (
        "Qwen2ForCausalLM",
        EVEN,
        {"use_sliding_window": True, "sliding_window": 33, "max_window_layers": 1, "layer_types": None},
    ),
    "qwen2-yarn": ("Qwen2ForCausalLM", EVEN, {"rope_parameters": YARN_ROPE, "max_position_embeddings": 128}),
    "qwen3": ("Qwen3ForCausalLM", ODD, {}),
    "qwen3-biased": ("Qwen3ForCausalLM", EVEN, {"head_dim": 32, "attention_bias": True}),
}


@dataclass(frozen=True)
class Pair:
    folder: Path
    loaded: LoadedModel
    oracle: Any

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        return prompt_tokens(length, self.loaded.config.vocab_size, seed)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    architecture, sizes, overrides = VARIANTS[request.param]
    checkpoint = a_checkpoint(tmp_path_factory.mktemp("checkpoint"), architecture, sizes, **overrides)
    return Pair(checkpoint.path, load_model(checkpoint.path), checkpoint.model)


@pytest.mark.parametrize("length", LENGTHS)
def test_each_prompt_position_has_the_oracles_logprobs(pair: Pair, length: int) -> None:
    (generated,) = Stepper(pair.loaded).generate([pair.prompt(length)], max_tokens=2, prompt_logprobs=9, logprobs=9)

    assert len(generated.prompt_logprobs) == length - 1
    assert worst_logprob_error(generated, pair.oracle) < LOGPROB_TOLERANCE


@pytest.mark.parametrize("block_size", [16, 32, 5])
def test_eight_at_once_have_the_oracles_logprobs(pair: Pair, block_size: int) -> None:
    stepper = Stepper(pair.loaded, block_size=block_size, num_blocks=300)

    results = stepper.generate([pair.prompt(n) for n in LENGTHS], max_tokens=4, prompt_logprobs=3, logprobs=3)

    assert max(worst_logprob_error(item, pair.oracle) for item in results) < LOGPROB_TOLERANCE


def test_chunked_prefill_has_the_oracles_logprobs(pair: Pair) -> None:
    stepper = Stepper(pair.loaded, max_num_batched_tokens=16)

    results = stepper.generate([pair.prompt(n) for n in LENGTHS], max_tokens=4, prompt_logprobs=3, logprobs=3)

    assert [len(item.prompt_logprobs) for item in results] == [n - 1 for n in LENGTHS]
    assert max(worst_logprob_error(item, pair.oracle) for item in results) < LOGPROB_TOLERANCE


def test_a_prefix_hit_changes_nothing(pair: Pair) -> None:
    stepper = Stepper(pair.loaded, enable_prefix_caching=True)
    shared = pair.prompt(100)
    stepper.generate([shared], max_tokens=1)

    results = stepper.generate([shared, shared[:70] + pair.prompt(31, seed=2)], max_tokens=12, logprobs=5)

    assert [item.sequence.num_cached_tokens for item in results] == [96, 64]
    assert max(worst_logprob_error(item, pair.oracle) for item in results) < LOGPROB_TOLERANCE


def test_preemption_changes_nothing(pair: Pair) -> None:
    # 17 usable blocks of 16 hold the prompts, not what six sequences generate.
    stepper = Stepper(pair.loaded, num_blocks=18)

    results = stepper.generate(
        [pair.prompt(length, seed=3) for length in (40, 33, 20, 47, 16, 31)],
        max_tokens=30,
        logprobs=2,
        prompt_logprobs=0,
    )

    assert stepper.scheduler.stats().preemptions > 0
    assert [len(item.tokens) for item in results] == [30] * 6
    assert [len(item.prompt_logprobs) for item in results] == [39, 32, 19, 46, 15, 30]
    assert max(worst_logprob_error(item, pair.oracle) for item in results) < LOGPROB_TOLERANCE
    assert [greedy_mismatches(item, pair.oracle) for item in results] == [[]] * 6


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_agrees_on_the_likeliest_tokens(pair: Pair, dtype: str) -> None:
    """Random weights are no test of equality in half precision: most of float32's five best must be found again."""
    prompt = pair.prompt(60)
    half = load_model(pair.folder, dtype=dtype)

    exact, rounded = (
        Stepper(loaded).generate([prompt], max_tokens=1, prompt_logprobs=5)[0] for loaded in (pair.loaded, half)
    )

    assert half.num_weight_bytes * 2 == pair.loaded.num_weight_bytes
    found = [
        len({item.token_id for item in a.top_logprobs} & {item.token_id for item in b.top_logprobs})
        for a, b in zip(exact.prompt_logprobs, rounded.prompt_logprobs, strict=True)
    ]
    assert sum(found) / (5 * len(found)) > 0.8


def test_weights_are_counted_in_the_dtype_they_are_computed_in(pair: Pair) -> None:
    parameters = {id(item): item for item in pair.oracle.parameters()}

    assert pair.loaded.num_weight_bytes == sum(item.numel() for item in parameters.values()) * 4
    assert pair.loaded.dtype == torch.float32

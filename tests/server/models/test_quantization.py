"""`--quantization`: the compiled decoder against operation by operation, transformers and, on the real model, float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from octavo_kernels import numba_linear, numba_step
from octavo_kernels.numba_linear import PackedLinear
from octavo_kernels.numba_phases import FEW_ROWS
from octavo_kernels.numba_threads import THREAD, ThreadPool
from octavo_kernels.torch_backend import TorchLinear
from octavo_server.errors import StartupError
from octavo_server.models.loader import LoadedModel, load_model
from octavo_server.quantization.gguf_types import read_codes
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.checkpoints import EVEN, ODD, a_checkpoint, a_model, prompt_tokens
from octavo_testing.gguf_files import write_gguf
from octavo_testing.stepping import Generated, Stepper

# Heads, hidden and inner sizes in whole groups of 32, as every real model has them.
SIZES = {**EVEN, "num_hidden_layers": 2}


def logprobs(loaded: LoadedModel, prompts: list[list[int]], **params: Any) -> list[Generated]:
    return Stepper(loaded).generate(prompts, max_tokens=3, prompt_logprobs=3, logprobs=3, **params)


def prompt_logprobs(results: list[Generated]) -> torch.Tensor:
    return torch.tensor([item.logprob.logprob for result in results for item in result.prompt_logprobs])


def mean_error(results: list[Generated], others: list[Generated]) -> float:
    return float((prompt_logprobs(results) - prompt_logprobs(others)).abs().mean())


def op_by_op(loaded: LoadedModel) -> LoadedModel:
    assert loaded.decoder._step is not None
    loaded.decoder._step = None
    return loaded


@pytest.mark.parametrize(("kind", "code"), [(Kind.Q4_0, 2), (Kind.Q4_1, 3), (Kind.Q8_0, 8)])
def test_codes_are_the_blocks_numbers(kind: Kind, code: int) -> None:
    blocks = quantize(np.random.default_rng(0).standard_normal((5, 96), np.float32), kind)

    codes = read_codes(blocks, code)

    assert codes is not None
    assert codes.bits == (8 if code == 8 else 4)
    np.testing.assert_allclose(codes.dequantize().numpy(), dequantize(blocks, kind), rtol=1e-6, atol=1e-7)


def test_other_types_have_no_codes() -> None:
    assert read_codes(np.zeros((2, 128), np.uint8), 0) is None


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"])
def test_the_compiled_decoder_is_its_operations(tmp_path: Path, architecture: str) -> None:
    """Prefill and decode, biases and head norms. Both round activations alike; noise of float32 now and then turns a
    code by one, which random weights make the most of: 0.01 was measured, where rounding itself costs 0.04 to 0.09."""
    checkpoint = a_checkpoint(tmp_path, architecture, SIZES)
    prompts = [prompt_tokens(count, 512) for count in (1, 5, 70, 23)]

    compiled = logprobs(load_model(checkpoint.path, quantization="int8"), prompts)

    single = logprobs(op_by_op(load_model(checkpoint.path, quantization="int8")), prompts)
    assert mean_error(compiled, single) < 0.02
    assert [item.token_ids for item in compiled] == [item.token_ids for item in single]
    # Compiled once, whatever the batch and the model: nothing compiles while requests wait.
    assert (len(numba_step._run.signatures), len(numba_linear._linear.signatures)) == (1, 1)


def test_windows_slide_by_layer_in_the_compiled_decoder(tmp_path: Path) -> None:
    """One layer of two slides 40 tokens, prompts are longer."""
    sliding = {**SIZES, "use_sliding_window": True, "sliding_window": 40, "max_window_layers": 1}
    checkpoint = a_checkpoint(tmp_path, "Qwen2ForCausalLM", sliding)
    prompts = [prompt_tokens(count, 512) for count in (90, 23)]

    compiled = logprobs(load_model(checkpoint.path, quantization="int8"), prompts)

    loaded = load_model(checkpoint.path, quantization="int8")
    assert loaded.config.windows == (None, 40)
    assert mean_error(compiled, logprobs(op_by_op(loaded), prompts)) < 0.02
    assert mean_error(compiled, logprobs(load_model(checkpoint.path), prompts)) < 0.1


@pytest.mark.parametrize(
    ("quantization", "bound"),
    # Random weights are the hardest case: each value is as important as any other.
    [("int8", 0.1), ("int4", 1.0)],
)
def test_quantised_is_near_exact(tmp_path: Path, quantization: str, bound: float) -> None:
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES)
    prompts = [prompt_tokens(count, 512) for count in (9, 70)]

    results = logprobs(load_model(checkpoint.path, quantization=quantization), prompts)

    error = mean_error(results, logprobs(load_model(checkpoint.path), prompts))
    assert 0 < error < bound


EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "mlp_only_layers": [1]}


@pytest.mark.parametrize(("quantization", "bound"), [("int8", 0.15), ("int4", 1.0)])
def test_experts_are_quantised_too(tmp_path: Path, quantization: str, bound: float) -> None:
    """Layer 0 has experts, layer 1 one MLP; the router stays exact, or tokens would go to other experts."""
    checkpoint = a_checkpoint(tmp_path, "Qwen3MoeForCausalLM", SIZES, **EXPERTS)
    prompts = [prompt_tokens(count, 512) for count in (1, 9, 70)]
    loaded = load_model(checkpoint.path, quantization=quantization)

    results = logprobs(loaded, prompts)

    assert 0 < mean_error(results, logprobs(load_model(checkpoint.path), prompts)) < bound
    assert loaded.decoder.weights.layers[0].experts is not None
    assert isinstance(loaded.decoder.weights.layers[0].experts.router, TorchLinear)
    assert isinstance(loaded.decoder.weights.layers[0].experts.experts.gate_up[5], PackedLinear)
    alone = [logprobs(loaded, [prompt])[0] for prompt in prompts]
    assert torch.equal(prompt_logprobs(results), prompt_logprobs(alone))


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
def test_stored_blocks_are_not_rounded_again(tmp_path: Path, kind: Kind) -> None:
    """Only activations are: the distance to float32 on the same blocks is that of 8 bits, whatever is asked for."""
    write_gguf(tmp_path / "model.gguf", a_model("LlamaForCausalLM", SIZES), "llama", kind=kind)
    prompts = [prompt_tokens(70, 512)]

    results = logprobs(load_model(tmp_path / "model.gguf", quantization="int4"), prompts)

    assert mean_error(results, logprobs(load_model(tmp_path / "model.gguf"), prompts)) < 0.1


def test_widths_of_broken_groups_run_unquantised(tmp_path: Path) -> None:
    """What is left is the cache's float16: 0.002 was measured."""
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", ODD)
    loaded = load_model(checkpoint.path, quantization="int8")

    results = logprobs(loaded, [prompt_tokens(20, 517)])

    assert loaded.decoder._step is None
    assert mean_error(results, logprobs(load_model(checkpoint.path), [prompt_tokens(20, 517)])) < 0.005


def test_a_sequence_is_the_same_alone_and_in_a_batch(tmp_path: Path) -> None:
    loaded = load_model(a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path, quantization="int4")
    prompts = [prompt_tokens(count, 512) for count in (1, 33, 70)]

    together = logprobs(loaded, prompts)

    alone = [logprobs(loaded, [prompt])[0] for prompt in prompts]
    assert torch.equal(prompt_logprobs(together), prompt_logprobs(alone))
    assert [item.tokens for item in together] == [item.tokens for item in alone]


@pytest.mark.parametrize("vocab_size", [512, 509])
def test_likeliest_tokens_found_without_logits_are_those_of_the_logits(tmp_path: Path, vocab_size: int) -> None:
    """Prompts and decodes in one step, more rows than are computed at once; asking for log-probabilities keeps logits."""
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", {**SIZES, "vocab_size": vocab_size})
    loaded = load_model(checkpoint.path, quantization="int8")
    prompts = [prompt_tokens(1 + count % 50, 500, seed=count) for count in range(40)]

    found, told = (
        Stepper(loaded, max_num_batched_tokens=200).generate(prompts, max_tokens=6, logprobs=logprobs)
        for logprobs in (None, 0)
    )

    assert [item.token_ids for item in found] == [item.token_ids for item in told]
    assert all(token.logprob is None for item in found for token in item.tokens)
    # One compilation serves both: nothing compiles while requests wait.
    assert len(numba_step._run.signatures) == 1


def test_edits_hold_where_the_likeliest_token_would_do(tmp_path: Path) -> None:
    loaded = load_model(a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path, quantization="int8")
    prompt = prompt_tokens(9, 512)
    plain = Stepper(loaded).generate([prompt], max_tokens=1)[0].token_ids

    biased = Stepper(loaded).generate([prompt], max_tokens=1, logit_bias={plain[0]: -100.0})[0].token_ids
    allowed = Stepper(loaded).generate([prompt], max_tokens=1, allowed_token_ids=(7,))[0].token_ids

    assert biased != plain
    assert allowed == [7]


def test_a_sequence_of_no_numbers_fails_alone_without_logits(tmp_path: Path) -> None:
    loaded = load_model(a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path, quantization="int8")
    loaded.decoder.weights.embedding[7] = torch.nan
    stepper = Stepper(loaded)

    good, bad = stepper.run([stepper.add([5, 6], max_tokens=2), stepper.add([5, 7], max_tokens=2)])

    assert len(good.tokens) == 2
    assert "not a number" in str(bad.sequence.error)
    assert bad.tokens == []


class LateThreads(ThreadPool):
    """Whose other thread comes later at each call, by some thousand additions."""

    calls = 0

    def run(self, kernel: Callable[..., None], num_phases: int, *arguments: Any, most_pieces: int = 0) -> None:
        self.calls += 1

        def late(threads: tuple[Any, ...], *shared: Any) -> None:
            if threads[THREAD]:
                sum(range(1000 * (self.calls % 30)))
            kernel(threads, *shared)

        super().run(late, num_phases, *arguments, most_pieces=most_pieces)


def test_a_thread_that_comes_late_changes_nothing(tmp_path: Path) -> None:
    """It must not take a piece with what it read from rows that have changed since."""
    # The other tests' one thread is never late.
    torch.set_num_threads(2)
    loaded = load_model(a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path, quantization="int8")
    torch.set_num_threads(1)
    prompts = [prompt_tokens(count, 512) for count in (3, 40)]
    expected = Stepper(loaded).generate(prompts, max_tokens=60, logprobs=2)
    assert loaded.decoder._step is not None

    loaded.decoder._step._pool = LateThreads(2)

    late = Stepper(loaded).generate(prompts, max_tokens=60, logprobs=2)
    assert [item.tokens for item in late] == [item.tokens for item in expected]


class MissedCalls(ThreadPool):
    """Whose other thread does nothing; what it should have called is kept."""

    def run(self, kernel: Callable[..., None], num_phases: int, *arguments: Any, most_pieces: int = 0) -> None:
        self.missed: SimpleQueue[tuple[Callable[..., None], Any, Any]] = SimpleQueue()

        def alone(threads: tuple[Any, ...], *shared: Any) -> None:
            if threads[THREAD]:
                self.missed.put((kernel, threads, shared))
            else:
                kernel(threads, *shared)

        super().run(alone, num_phases, *arguments, most_pieces=most_pieces)


def test_a_thread_that_comes_after_the_step_writes_to_rows_of_its_own(tmp_path: Path) -> None:
    """For the next step may be under way, with another number of rows."""
    loaded = load_model(a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES).path, quantization="int8")
    step = loaded.decoder._step
    assert isinstance(step, numba_step.CompiledDecoder)
    step._pool = pool = MissedCalls(2)
    Stepper(loaded).generate([prompt_tokens(count, 512) for count in (3, 5)], max_tokens=3)
    codes = step._scratch[0]
    before = codes.copy()

    kernel, threads, shared = pool.missed.get(timeout=10)
    kernel(threads, *shared)

    written = np.flatnonzero((codes != before).any(axis=1)).tolist()
    assert written == [FEW_ROWS, FEW_ROWS + 1]


def test_weights_take_the_memory_that_is_reported(tmp_path: Path) -> None:
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES)

    exact, eight, four = (
        load_model(checkpoint.path, quantization=quantization).num_weight_bytes
        for quantization in ("none", "int8", "int4")
    )

    linears = 2 * (64 * (64 + 2 * 32) + 64 * 64 + 3 * 64 * 128)
    # 4 bytes become 1 or 1/2, and 32 share 2 bytes of scale, at 4 bits 2 of minimum; the head becomes 8 bits in both
    assert exact - eight == (linears + 512 * 64) * (4 - 1 - 2 / 32)
    assert eight - four == linears * (1 / 2 - 2 / 32)


def test_other_dtypes_are_refused_with_the_remedy(tmp_path: Path) -> None:
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", SIZES)

    with pytest.raises(
        StartupError, match="computes in float32 on a CPU, not in bfloat16; leave --dtype out"
    ) as caught:
        load_model(checkpoint.path, dtype="bfloat16", quantization="int8")

    assert caught.value.reason == "SpecInvalid"


TEXT = (
    "The harbour of the old town lies behind two long walls of grey stone. In winter the fishing boats stay inside for "
    "weeks, because the wind comes from the north and the waves break over the light at the end of the pier. When the "
    "weather is good, the first crews leave at four in the morning and come back before noon. Their catch is sold at "
    "once, in the hall beside the customs house, where an auctioneer reads out the weight of each box. Most of it goes "
    "to restaurants in the city; what is left over is smoked, salted or given to the cats that live under the sheds. "
    "My grandfather worked here for thirty years. He knew every rock outside the entrance, and he used to say that a "
    "captain who is not afraid of the sea has not been looking at it. He taught me how to read a chart, how to splice "
    "a rope and how to tell from the colour of the clouds whether it would rain by the evening. He never learned to "
    "swim, as most of the men of his age, and he never went further out than he could see the tower of the church."
)


@pytest.mark.model
def test_the_real_model_loses_next_to_nothing(smollm2_path: Path) -> None:
    """SmolLM2-135M Q4_1 against float32 on the same blocks, on text that it has not seen; measured 0.4 %, 0.056, 0.95."""
    prompt = load_tokenizer(smollm2_path).encode(TEXT)

    exact, quantised = (
        Stepper(load_model(smollm2_path, quantization=quantization)).generate([prompt], max_tokens=1, prompt_logprobs=1)
        for quantization in ("none", "int8")
    )

    given, found = prompt_logprobs(exact), prompt_logprobs(quantised)
    best = [[item.top_logprobs[0].token_id for item in results[0].prompt_logprobs] for results in (exact, quantised)]
    agreement = sum(a == b for a, b in zip(*best, strict=True)) / len(best[0])
    perplexity_ratio = math.exp(float(given.mean() - found.mean()))
    assert len(given) > 200
    assert abs(perplexity_ratio - 1) < 0.01
    assert float((given - found).abs().mean()) < 0.1
    assert agreement > 0.93

"""--batch-invariant: a request's tokens and log-probabilities have the same bits alone and among others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_report.models import TINY, Model, prompts
from octavo_kernels.torch_backend import TorchBackend
from octavo_server.config import EngineConfig
from octavo_server.engine.build import build_engine
from octavo_server.engine.engine import Engine
from octavo_server.engine.outputs import SampledToken
from octavo_server.engine.request import Request, SamplingParams
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import ConfigError

CPU = torch.device("cpu")


def answers(
    model: Model, asked: list[list[int]], num_tokens: int, budget: int = 64, **scheduling: bool
) -> list[list[SampledToken]]:
    """Ids and log-probabilities of each prompt, all of them added at once."""
    model.start(num_blocks=16 * len(asked) + 4, max_num_seqs=len(asked), max_num_batched_tokens=budget, **scheduling)
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, logprobs=3, ignore_eos=True, detokenize=False)
    ids = [model.add(prompt, params).sequence_id for prompt in asked]
    model.run()
    return [model.sampled[sequence_id] for sequence_id in ids]


def of_many_lengths(count: int, vocab_size: int) -> list[list[int]]:
    """Some shorter than a piece of a prompt, some several pieces long."""
    return [prompts(1, 3 + 7 * index % 90, vocab_size, seed=index)[0] for index in range(count)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama-8b", "qwen3-moe"])
def test_with_torch_no_bit_depends_on_63_batch_mates(name: str, dtype: torch.dtype) -> None:
    model = Model.of(TINY[name], "host", TorchBackend(CPU, is_batch_invariant=True), dtype)
    asked = of_many_lengths(64, model.config.vocab_size)

    among = answers(model, asked, 5, has_fixed_pieces=True)

    for index in (0, 17, 40, 63):
        assert answers(model, [asked[index]], 5, has_fixed_pieces=True) == [among[index]]


def test_with_torch_bits_do_depend_on_batch_mates_otherwise() -> None:
    """Or the test above would show nothing."""
    model = Model.of(TINY["llama-8b"], "host", TorchBackend(CPU), torch.float32)
    asked = of_many_lengths(64, model.config.vocab_size)

    among = answers(model, asked, 5)

    assert any(answers(model, [asked[index]], 5) != [among[index]] for index in (0, 17, 40, 63))


@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_with_tritons_kernels_no_bit_depends_on_batch_mates(
    kv_cache_dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Enough rows in a step for another tiling of the experts, which the interpreter's bits would not show."""
    from octavo_kernels import fused_moe
    from octavo_kernels.triton_backend import TritonBackend

    tilings: set[fused_moe.ExpertTiling] = set()
    choose = fused_moe.expert_tiling
    monkeypatch.setattr(fused_moe, "expert_tiling", lambda *given: tilings.add(made := choose(*given)) or made)
    model = Model.of(TINY["qwen3-moe"], "host", TritonBackend(CPU, is_batch_invariant=True), torch.float32)
    model.loaded = replace(model.loaded, kv_cache_dtype=kv_cache_dtype)
    asked = prompts(3, 31, model.config.vocab_size)

    among = answers(model, asked, 2, budget=128, has_fixed_pieces=True)

    assert answers(model, asked[2:], 2, budget=128, has_fixed_pieces=True) == among[2:]
    assert choose(31 * 3 * 2, 4, torch.float32) not in tilings
    assert len(tilings) == 1


def test_prompts_are_cut_at_the_same_tokens_whatever_else_runs() -> None:
    model = Model.of(TINY["llama-8b"], "host", TorchBackend(CPU), torch.float32)
    asked = of_many_lengths(20, model.config.vocab_size)
    for count in (1, 20):
        model.start(num_blocks=400, max_num_seqs=20, max_num_batched_tokens=64, has_fixed_pieces=True)
        sequences = [model.add(prompt, SamplingParams(max_tokens=3, ignore_eos=True)) for prompt in asked[:count]]
        cuts = {sequence.sequence_id: set[int]() for sequence in sequences}
        while model.scheduler.has_work:
            decision = model.scheduler.schedule(0.0)
            for item in decision.scheduled:
                cuts[item.sequence.sequence_id].add(item.sequence.num_computed_tokens)
            model.scheduler.check_integrity()
            model.scheduler.update(decision, model.runner.execute(decision))

        for prompt, found in zip(asked, cuts.values(), strict=False):
            pieces = set(range(0, len(prompt), 16))
            assert {cut for cut in found if cut < len(prompt)} == pieces


def test_the_flag_reaches_the_scheduler_and_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY["llama-8b"]))
    config = EngineConfig(
        model=str(tmp_path),
        load_format="dummy",
        device="cpu",
        batch_invariant=True,
        enable_prefix_caching=False,
        max_num_batched_tokens=64,
        long_prefill_token_threshold=16,
    )
    loaded = build_engine(config, StartupProgress())
    asked = of_many_lengths(24, 64)

    among = engine_answers(loaded.engine, asked)

    for index in (0, 11, 23):
        assert engine_answers(loaded.engine, [asked[index]]) == [among[index]]


def engine_answers(engine: Engine, asked: list[list[int]]) -> list[list[SampledToken]]:
    params = SamplingParams(temperature=0.0, max_tokens=5, logprobs=3, ignore_eos=True)
    for index, prompt in enumerate(asked):
        request = Request(request_id=str(index), prompt_token_ids=tuple(prompt), params=params, arrival_s=0.0)
        engine.add_request(request)
    found: list[list[SampledToken]] = [[] for _ in asked]
    while engine.has_work:
        for delta in engine.step():
            found[int(delta.request_id)] += delta.tokens
    return found


@pytest.mark.parametrize(
    ("others", "remedy"),
    [
        ({}, "--no-enable-prefix-caching"),
        ({"enable_prefix_caching": False, "quantization": "int4"}, "--quantization none"),
        ({"enable_prefix_caching": False, "tensor_parallel_size": 2}, "use 1"),
    ],
)
def test_what_it_does_not_go_with_is_refused(others: dict[str, object], remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy):
        EngineConfig(model="m", batch_invariant=True, **others)  # type: ignore[arg-type]  # as flags come

"""What is told where something does not fit is true: each remedy is taken, and it fits; one less does not."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from octavo_server.config import EngineConfig
from octavo_server.plan.advice import Answer, Question, answer
from octavo_server.plan.gpus import GIB, GPUS, Device, find_gpu
from octavo_server.plan.source import parse_shape
from octavo_testing.model_shapes import DEEPSEEK_V3, LLAMA_8B, MIXTRAL_8X7B, QWEN3_06B


def a_question(values: dict[str, Any], device: Device, ways: int = 1, **settings: Any) -> Question:
    return Question(
        model=parse_shape(values, source="x"), device=device, config=EngineConfig(model="x", **settings), ways=ways
    )


def cpu(gib: float) -> Device:
    return Device(name="CPU", kind="cpu", memory_bytes=int(gib * GIB))


def changed(question: Question, remedy: str) -> Question:
    """The question with the flag of `remedy`."""
    flag, value = re.match(r"(--\S+) ([\w-]+)", remedy).groups()  # type: ignore[union-attr]
    if flag == "--gpu":
        return replace(question, device=find_gpu(value))
    if flag == "--tensor-parallel-size":
        return replace(question, ways=int(value))
    name = flag.removeprefix("--").replace("-", "_")
    return replace(question, config=replace(question.config, **{name: int(value) if value.isdigit() else value}))


def remedy_of(found: Answer, flag: str) -> str:
    return next(remedy for remedy in found.remedies if remedy.startswith(flag + " "))


QUESTIONS = {
    "context": a_question(LLAMA_8B, GPUS["L4"], max_model_len=100_000),
    "context in 16 bits": a_question(LLAMA_8B, GPUS["L4"], max_model_len=50_000),
    "weights on a gpu": a_question(MIXTRAL_8X7B, GPUS["H100"]),
    "weights on many": a_question(DEEPSEEK_V3, GPUS["H200"], ways=8),
    "weights on a cpu": a_question(LLAMA_8B, cpu(20)),
    "context on a cpu": a_question(QWEN3_06B, cpu(6), max_model_len=40_960),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_every_remedy_makes_it_fit(name: str) -> None:
    question = QUESTIONS[name]

    found = answer(question)

    assert not found.fits
    assert found.remedies
    for remedy in found.remedies:
        assert answer(changed(question, remedy)).fits, remedy


@pytest.mark.parametrize("name", ["context", "context on a cpu"])
def test_the_largest_context_is_the_largest(name: str) -> None:
    question = QUESTIONS[name]
    best = int(remedy_of(answer(question), "--max-model-len").split()[1].strip(","))

    assert not answer(replace(question, config=replace(question.config, max_model_len=best + 1))).fits


def test_a_cache_of_8_bits_is_told_where_it_is_enough_and_not_yet_taken() -> None:
    question, on_a_cpu = QUESTIONS["context in 16 bits"], QUESTIONS["context on a cpu"]
    taken = replace(question, config=replace(question.config, kv_cache_dtype="fp8", max_model_len=131_072))

    assert remedy_of(answer(question), "--kv-cache-dtype").startswith("--kv-cache-dtype fp8")
    for other in (QUESTIONS["context"], QUESTIONS["weights on a gpu"], taken, on_a_cpu):
        assert not any(remedy.startswith("--kv-cache-dtype") for remedy in answer(other).remedies)


def test_the_fewest_gpus_are_the_fewest_that_heads_can_be_dealt_to() -> None:
    question = QUESTIONS["weights on many"]
    fewest = int(remedy_of(answer(question), "--tensor-parallel-size").split()[1].strip(","))

    fewer = [n for n in range(1, fewest) if question.model.can_split(n)]
    assert fewest == 16
    assert not any(answer(replace(question, ways=n)).fits for n in fewer)


def test_the_smallest_gpu_is_the_smallest() -> None:
    question = QUESTIONS["weights on a gpu"]
    name = remedy_of(answer(question), "--gpu").split()[1].strip(",")

    smaller = [gpu for gpu in GPUS.values() if gpu.memory_bytes < GPUS[name].memory_bytes]
    assert not any(answer(replace(question, device=gpu)).fits for gpu in smaller)


def test_the_problem_has_both_numbers() -> None:
    found = answer(QUESTIONS["weights on a gpu"])

    assert re.search(r"take 90\.52 GiB without any KV cache, H100 has 79\.18 GiB, 71\.26 GiB of it by", found.problem)


def test_a_cache_that_was_asked_for_may_be_more_than_there_is() -> None:
    found = answer(a_question(LLAMA_8B, GPUS["L4"], kv_cache_memory_bytes=20 * GIB))

    assert not found.fits
    assert "lower --kv-cache-memory-bytes" in found.problem


def test_what_fits_needs_no_remedy() -> None:
    found = answer(a_question(LLAMA_8B, GPUS["H200"]))

    assert (found.fits, found.problem, found.remedies, found.notes) == (True, "", (), ())


def test_what_this_version_does_not_serve_is_noted() -> None:
    found = answer(a_question(DEEPSEEK_V3, GPUS["B200"], ways=8, quantization="int4"))

    assert any("DeepseekV3ForCausalLM is planned, and not served" in note for note in found.notes)


def test_float8_takes_half_of_bfloat16_but_for_the_head_and_says_which_gpus_have_it() -> None:
    found = answer(a_question(LLAMA_8B, GPUS["H100"], quantization="fp8"))

    exact = answer(a_question(LLAMA_8B, GPUS["H100"])).memory.weight_bytes
    # head, embedding and norms stay; a scale of 4 bytes for each of some thousand inputs
    whole = 2 * 2 * 128_256 * 4096
    assert found.memory.weight_bytes == pytest.approx((exact - whole) / 2 + whole, rel=0.001)
    assert any("compute capability 8.9 or newer" in note for note in found.notes)


def test_processes_on_one_cpu_share_its_memory() -> None:
    alone, shared = (answer(a_question(LLAMA_8B, cpu(64), ways=ways)).memory for ways in (1, 2))

    assert shared.device.memory_bytes == alone.device.memory_bytes // 2
    assert alone.weight_bytes / 2 < shared.weight_bytes < alone.weight_bytes / 2 * 1.01


def test_a_cpu_that_holds_a_model_does_not_hold_it_twice_by_dealing_it_out() -> None:
    """Tables of angles, norms and activations are each process's own."""
    assert answer(a_question(LLAMA_8B, cpu(31), quantization="none")).fits
    assert not answer(a_question(LLAMA_8B, cpu(31), ways=8, kv_cache_memory_bytes=GIB)).fits

"""Types beyond float32 on several ranks, where sums are rounded in other places than on one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo_server import LLM, SamplingParams

PROMPTS = [[5, 6, 7] * 9, list(range(40, 90)), list(range(300, 420, 2))]


def prompt_logprobs(model: Path, size: int, **settings: Any) -> list[float]:
    llm = LLM(str(model), tensor_parallel_size=size, num_gpu_blocks_override=200, **settings)
    asked = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    outputs = llm.generate(PROMPTS, asked, use_tqdm=False)
    llm.close()
    return [
        entry[token].logprob
        for output, prompt in zip(outputs, PROMPTS, strict=True)
        for token, entry in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)
    ]


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [({"quantization": "int8"}, 1e-3), ({"quantization": "int4"}, 0.02), ({"dtype": "bfloat16"}, 0.1)],
    ids=str,
)
def test_log_probabilities_are_nearly_those_of_one_rank(
    tiny_model: Path, settings: dict[str, Any], tolerance: float
) -> None:
    """Groups of 32 inputs are cut between each other, so quantised weights are the same numbers."""
    one, two = (prompt_logprobs(tiny_model, size, **settings) for size in (1, 2))

    assert len(one) == sum(len(prompt) - 1 for prompt in PROMPTS)
    differences = [abs(first - second) for first, second in zip(one, two, strict=True)]
    assert sum(differences) / len(differences) < tolerance

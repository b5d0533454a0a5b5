"""The decoder in half precision and its size; tests/server/engine/test_exactness.py holds it to transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_server.models.loader import LoadedModel, load_model
from octavo_testing.checkpoints import prompt_tokens
from octavo_testing.families import a_variant
from octavo_testing.stepping import Stepper

VARIANTS = ("llama-odd-biased", "llama3-tied", "mistral-window", "qwen2-odd-tied", "qwen3-yarn")


@dataclass(frozen=True)
class Pair:
    folder: Path
    loaded: LoadedModel
    oracle: Any

    def prompt(self, length: int, seed: int = 0) -> list[int]:
        return prompt_tokens(length, self.loaded.config.vocab_size, seed)


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    checkpoint = a_variant(tmp_path_factory.mktemp("checkpoint"), request.param)
    return Pair(checkpoint.path, load_model(checkpoint.path), checkpoint.model)


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

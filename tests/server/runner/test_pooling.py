"""The hidden state of a prompt's last token, however the scheduler gets there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from octavo_server.engine.request import FinishReason
from octavo_server.models.loader import LoadedModel, load_model
from octavo_testing.checkpoints import EVEN, ODD, Checkpoint, a_checkpoint, prompt_tokens
from octavo_testing.stepping import LOGPROB_TOLERANCE, Generated, Stepper, worst_logprob_error

TOLERANCE = 1e-4
"""float32, absolute, of values around 1."""
LENGTHS = [1, 15, 16, 17, 40, 63, 90, 33]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return a_checkpoint(tmp_path_factory.mktemp("checkpoint"), "LlamaForCausalLM", ODD)


@pytest.fixture
def loaded(checkpoint: Checkpoint) -> LoadedModel:
    return load_model(checkpoint.path)


def prompts() -> list[list[int]]:
    return [prompt_tokens(length, ODD["vocab_size"], seed=length) for length in LENGTHS]


def vector(generated: Generated) -> NDArray[np.float32]:
    assert len(generated.hidden_states) == 1, "a sequence that pools ends with its state, once"
    assert (generated.sequence.finish_reason, generated.tokens) == (FinishReason.STOP, [])
    return np.frombuffer(generated.hidden_states[0], dtype="<f4")


def oracle(checkpoint: Checkpoint, token_ids: list[int]) -> NDArray[np.float32]:
    """transformers' last hidden state, after the final norm."""
    with torch.inference_mode():
        state: NDArray[np.float32] = checkpoint.model.model(torch.tensor([token_ids])).last_hidden_state[0, -1].numpy()
        return state


def worst_error(checkpoint: Checkpoint, results: list[Generated]) -> float:
    return max(float(np.abs(vector(item) - oracle(checkpoint, item.sequence.token_ids)).max()) for item in results)


@pytest.mark.parametrize(
    "engine",
    [
        {},
        {"max_num_batched_tokens": 16},
        {"block_size": 32},
        {"num_blocks": 9},
    ],
    ids=["together", "chunked", "large blocks", "one after another"],
)
def test_it_is_transformers_last_hidden_state(
    loaded: LoadedModel, checkpoint: Checkpoint, engine: dict[str, Any]
) -> None:
    stepper = Stepper(loaded, **engine)

    results = stepper.generate(prompts(), pools=True)

    assert worst_error(checkpoint, results) < TOLERANCE
    assert stepper.kv.num_used_blocks == 0


def test_a_prefix_hit_gives_the_same_and_leaves_the_last_token_to_compute(
    loaded: LoadedModel, checkpoint: Checkpoint
) -> None:
    stepper = Stepper(loaded, enable_prefix_caching=True)
    prompt = prompt_tokens(64, ODD["vocab_size"])

    results = [stepper.generate([prompt], pools=True)[0] for _ in range(2)]

    assert [item.sequence.num_cached_tokens for item in results] == [0, 48]
    assert worst_error(checkpoint, results) < TOLERANCE


def test_a_preempted_one_is_computed_anew(loaded: LoadedModel, checkpoint: Checkpoint) -> None:
    """The older stream grows into the blocks that the newer, chunked prompt holds."""
    stepper = Stepper(loaded, num_blocks=7, max_num_batched_tokens=8)
    stream = stepper.add(prompt_tokens(12, ODD["vocab_size"]), max_tokens=80, logprobs=1)
    stepper.step()
    stepper.step()
    pooled = stepper.add(prompt_tokens(80, ODD["vocab_size"]), pools=True)

    results = stepper.run([stream, pooled])

    assert pooled.num_preemptions > 0

    assert worst_error(checkpoint, results[1:]) < TOLERANCE
    assert worst_logprob_error(results[0], checkpoint.model) < LOGPROB_TOLERANCE


def test_streams_beside_it_are_not_mixed_up(loaded: LoadedModel, checkpoint: Checkpoint) -> None:
    """One-token prompts, so that every row of a step is wanted: rows must still belong to whom they are given."""
    stepper = Stepper(loaded)
    sequences = [
        stepper.add([7 + number], pools=number % 2 == 0, max_tokens=3, logprobs=1, prompt_logprobs=None)
        for number in range(6)
    ]

    results = stepper.run(sequences)

    assert worst_error(checkpoint, results[::2]) < TOLERANCE
    assert max(worst_logprob_error(item, checkpoint.model) for item in results[1::2]) < LOGPROB_TOLERANCE


def test_a_state_that_is_not_finite_fails_alone(loaded: LoadedModel, checkpoint: Checkpoint) -> None:
    loaded.decoder.weights.embedding[400] = torch.nan
    stepper = Stepper(loaded)
    good = [[token for token in prompt if token != 400] for prompt in prompts()[:3]]
    sequences = [stepper.add(prompt, pools=True) for prompt in good]
    bad = stepper.add([3, 400, 5], pools=True)

    results = stepper.run([*sequences, bad])

    assert (bad.finish_reason, results[3].hidden_states) == (FinishReason.ERROR, [])
    assert "not a number" in str(bad.error)
    assert worst_error(checkpoint, results[:3]) < TOLERANCE


def test_logits_are_not_computed(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded.decoder, "logits", lambda _: pytest.fail("the head was run"))

    Stepper(loaded).generate(prompts()[:2], pools=True)


@pytest.mark.parametrize(
    ("dtype", "quantization", "cosine"),
    [("bfloat16", "none", 0.999), ("float32", "int8", 0.999), ("float32", "int4", 0.95)],
)
def test_other_arithmetic_points_the_same_way(tmp_path: Path, dtype: str, quantization: str, cosine: float) -> None:
    checkpoint = a_checkpoint(tmp_path, "LlamaForCausalLM", EVEN, initializer_range=0.1)
    stepper = Stepper(load_model(checkpoint.path, dtype=dtype, quantization=quantization))

    results = stepper.generate([prompt_tokens(40, EVEN["vocab_size"])], pools=True)

    found, expected = vector(results[0]), oracle(checkpoint, results[0].sequence.token_ids)
    assert found @ expected / np.linalg.norm(found) / np.linalg.norm(expected) > cosine

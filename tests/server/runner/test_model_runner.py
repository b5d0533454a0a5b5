"""A step as the engine sees it: batch mates, seeds, failures of one row, memory of the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from octavo_kernels.batches import SamplingBatch
from octavo_server.engine import model_runner
from octavo_server.engine.model_runner import DecoderRunner
from octavo_server.engine.outputs import SchedulerOutput
from octavo_server.engine.request import FinishReason
from octavo_server.models.loader import LoadedModel, load_model
from octavo_testing.checkpoints import ODD, a_checkpoint, prompt_tokens
from octavo_testing.stepping import LOGPROB_TOLERANCE, Stepper, worst_logprob_error


@pytest.fixture(scope="module")
def oracle_and_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, LoadedModel]:
    checkpoint = a_checkpoint(tmp_path_factory.mktemp("checkpoint"), "LlamaForCausalLM", ODD)
    return checkpoint.model, load_model(checkpoint.path)


@pytest.fixture
def oracle(oracle_and_model: tuple[Any, LoadedModel]) -> Any:
    return oracle_and_model[0]


@pytest.fixture
def loaded(oracle_and_model: tuple[Any, LoadedModel]) -> Iterator[LoadedModel]:
    """Weights that a test spoils are put back."""
    model = oracle_and_model[1]
    embedding = model.decoder.weights.embedding.clone()
    yield model
    model.decoder.weights.embedding.copy_(embedding)


def prompts(count: int) -> list[list[int]]:
    return [prompt_tokens(5 + 7 * n, ODD["vocab_size"], seed=n) for n in range(count)]


def test_a_seeded_stream_is_the_same_alone_and_in_a_batch(loaded: LoadedModel) -> None:
    sampling = {"temperature": 1.2, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "max_tokens": 20}
    alone = Stepper(loaded)
    (expected,) = alone.run([alone.add(prompts(3)[2], seed=11, **sampling)])

    together = Stepper(loaded, max_num_batched_tokens=24)
    sequences = [together.add(prompt, seed=seed, **sampling) for seed, prompt in enumerate(prompts(9), start=9)]
    results = together.run(sequences)

    assert results[2].token_ids == expected.token_ids
    assert len({tuple(item.token_ids) for item in results}) == 9


def test_seeds_and_positions_give_other_draws(loaded: LoadedModel) -> None:
    stepper = Stepper(loaded)
    flat = {"temperature": 100.0, "max_tokens": 30}

    first, second, again = stepper.run([stepper.add([5], seed=seed, **flat) for seed in (1, 2, 1)])

    assert first.token_ids == again.token_ids
    assert first.token_ids != second.token_ids
    assert len(set(first.token_ids)) > 20


def test_penalties_work_over_a_whole_stream(loaded: LoadedModel) -> None:
    stepper = Stepper(loaded)

    plain, forced = stepper.run(
        [
            stepper.add([9, 10], max_tokens=30),
            stepper.add([9, 10], max_tokens=30, presence_penalty=1000.0),
        ]
    )

    assert len(set(forced.token_ids)) == 30
    assert plain.token_ids != forced.token_ids


def test_a_row_with_a_nan_fails_alone(loaded: LoadedModel, oracle: Any) -> None:
    loaded.decoder.weights.embedding[400] = torch.nan
    stepper = Stepper(loaded)
    good = [[token for token in prompt if token != 400] for prompt in prompts(3)]
    sequences = [stepper.add(prompt, max_tokens=3, logprobs=2) for prompt in good]
    bad = stepper.add([3, 400, 5], max_tokens=3)

    results = stepper.run([*sequences, bad])

    assert (bad.finish_reason, results[3].tokens) == (FinishReason.ERROR, [])
    assert "not a number" in str(bad.error)
    assert max(worst_logprob_error(item, oracle) for item in results[:3]) < LOGPROB_TOLERANCE


def test_blocks_that_a_failed_row_left_behind_harm_nobody(loaded: LoadedModel, oracle: Any) -> None:
    """Freed blocks keep their NaN; whoever gets them next has written only a part of the last one."""
    stepper = Stepper(loaded, num_blocks=6)
    loaded.decoder.weights.embedding[400] = torch.nan
    bad = stepper.add([400] * 70, max_tokens=3)
    stepper.run([bad])
    assert bad.finish_reason is FinishReason.ERROR

    results = stepper.generate([[token for token in prompt if token != 400] for prompt in prompts(2)], logprobs=2)

    assert max(worst_logprob_error(item, oracle) for item in results) < LOGPROB_TOLERANCE


def test_a_nan_in_a_prompts_own_logprobs_fails_it(loaded: LoadedModel) -> None:
    loaded.decoder.weights.embedding[400] = torch.nan
    stepper = Stepper(loaded, max_num_batched_tokens=8)
    bad = stepper.add([3] * 5 + [400] + [3] * 14, max_tokens=3, prompt_logprobs=1)

    (result,) = stepper.run([bad])

    assert bad.finish_reason is FinishReason.ERROR
    assert result.prompt_logprobs == []


@pytest.mark.parametrize(
    ("prompt", "params", "named"),
    [([3, 517], {}, "517"), ([3, 4], {"logit_bias": {517: 1.0}}, "logit_bias")],
)
def test_a_token_outside_the_vocabulary_fails_its_row_alone(
    loaded: LoadedModel, oracle: Any, prompt: list[int], params: dict[str, Any], named: str
) -> None:
    stepper = Stepper(loaded)
    good = stepper.add(prompts(1)[0], max_tokens=3, logprobs=1)
    bad = stepper.add(prompt, max_tokens=3, **params)

    result, _ = stepper.run([good, bad])

    assert bad.finish_reason is FinishReason.ERROR
    assert named in str(bad.error)
    assert worst_logprob_error(result, oracle) < LOGPROB_TOLERANCE


def test_a_sequence_aborted_between_steps_leaves_no_trace(loaded: LoadedModel, oracle: Any) -> None:
    stepper = Stepper(loaded, num_blocks=30)
    kept, dropped = (stepper.add(prompt, max_tokens=12, logprobs=1) for prompt in prompts(2))
    for _ in range(3):
        stepper.step()
    stepper.scheduler.abort(dropped.sequence_id)
    later = stepper.add(prompts(5)[4], max_tokens=12, logprobs=1)

    results = stepper.run([kept, later])

    assert stepper.kv.num_used_blocks == 0
    assert max(worst_logprob_error(item, oracle) for item in results) < LOGPROB_TOLERANCE


def test_prompt_logits_are_computed_in_bounded_chunks(
    loaded: LoadedModel, oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "_LOGITS_CHUNK_ELEMENTS", 7 * ODD["vocab_size"] + 1)
    sizes: list[int] = []
    original = loaded.decoder.logits

    def counted(hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        sizes.append(hidden[rows].shape[0])
        return original(hidden, rows)

    monkeypatch.setattr(loaded.decoder, "logits", counted)

    (result,) = Stepper(loaded).generate([prompt_tokens(31, 517)], max_tokens=1, prompt_logprobs=2)

    assert sizes == [1, 7, 7, 7, 7, 2]
    assert worst_logprob_error(result, oracle) < LOGPROB_TOLERANCE


def test_logits_are_computed_for_sampled_rows_alone(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = loaded.decoder.logits

    def counted(hidden: torch.Tensor, rows: slice) -> torch.Tensor:
        sizes.append(hidden[rows].shape[0])
        return original(hidden, rows)

    monkeypatch.setattr(loaded.decoder, "logits", counted)

    Stepper(loaded, max_num_batched_tokens=32).generate([prompt_tokens(90, 517)], max_tokens=2)

    assert sizes == [1, 1]


def test_warm_up_draws_too_so_that_no_request_waits_for_a_first_draw(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels compile, or are read from the disk, when they are called first."""
    seen: list[tuple[int, bool]] = []
    sample = loaded.backend.sample

    def recorded(logits: torch.Tensor, params: SamplingBatch) -> torch.Tensor:
        seen.append((logits.shape[0], params.all_greedy))
        return sample(logits, params)

    monkeypatch.setattr(loaded.backend, "sample", recorded)

    Stepper(loaded).runner.warm_up(max_num_tokens=64, max_num_seqs=4)

    assert {(1, True), (1, False), (4, True), (4, False)} <= set(seen)


def test_warm_up_writes_nothing(loaded: LoadedModel, oracle: Any) -> None:
    stepper = Stepper(loaded, enable_prefix_caching=True)
    stepper.generate([prompts(4)[3]], max_tokens=1)

    stepper.runner.warm_up(max_num_tokens=512, max_num_seqs=32)
    (result,) = stepper.generate([prompts(4)[3]], max_tokens=4, logprobs=3)

    assert result.sequence.num_cached_tokens == 16
    assert worst_logprob_error(result, oracle) < LOGPROB_TOLERANCE


MIXTURE: list[dict[str, Any]] = [
    {"logprobs": 3},
    {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"temperature": 1.5, "top_k": 20, "logprobs": 1, "seed": 4},
    {"presence_penalty": 2.0, "prompt_logprobs": 2},
    {"min_tokens": 5, "logit_bias": {7: 3.0}},
]


@pytest.mark.parametrize("num_blocks", [200, 14], ids=["room", "preempted"])
def test_what_the_device_keeps_gives_what_lists_give(loaded: LoadedModel, num_blocks: int) -> None:
    """To the last bit, in chunks, with prefix hits and, of few blocks, through preemption."""
    found = []
    for is_resident in (False, True):
        stepper = Stepper(
            loaded,
            is_resident=is_resident,
            num_blocks=num_blocks,
            max_num_batched_tokens=40,
            enable_prefix_caching=True,
        )
        sequences = [
            stepper.add(prompt, max_tokens=20 + 3 * n, **params)
            for n, (prompt, params) in enumerate(zip(prompts(5), MIXTURE, strict=True))
        ]
        results = stepper.run([*sequences, stepper.add(prompts(5)[4] + [3], max_tokens=9)])
        found.append([(result.tokens, result.prompt_logprobs) for result in results])
        assert (stepper.scheduler.stats().preemptions > 0) == (num_blocks == 14)

    assert found[0] == found[1]


def test_a_step_that_raises_leaves_nothing_in_the_slots(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Stepper(loaded).generate(prompts(3), max_tokens=6)
    stepper = Stepper(loaded, is_resident=True)
    sequences = [stepper.add(prompt, max_tokens=6) for prompt in prompts(3)]
    stepper.step()
    with monkeypatch.context() as broken:
        broken.setattr(loaded.decoder, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stepper.step()

    results = stepper.run(sequences)

    assert [result.token_ids for result in results] == [result.token_ids for result in expected]


def test_an_empty_step_gives_nothing(loaded: LoadedModel) -> None:
    runner = DecoderRunner(loaded.decoder, loaded.kv_cache_spec(4, 16))

    assert runner.execute(SchedulerOutput(scheduled=())).sampled == {}

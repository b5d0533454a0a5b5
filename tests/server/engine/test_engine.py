"""The engine's rules: fan-out, stops, exact counts, and a failing step that hurts nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo_server.engine.engine import MAX_FAILED_STEPS, Engine, OutputDelta
from octavo_server.engine.request import FinishReason, Request, SamplingParams
from octavo_server.errors import EngineDeadError, InvalidRequestError
from octavo_server.metrics import EngineSnapshot, ServerMetrics
from octavo_server.tokenizer.tokenizer import load_tokenizer
from octavo_testing.fake_engine import CONTEXT, NOT_FINITE, POISON, VOCABULARY, FakeParts, fake_engine
from octavo_testing.server import samples


@pytest.fixture
def parts(tokenizer_folder: Path) -> FakeParts:
    return fake_engine(load_tokenizer(tokenizer_folder))


def a_request(name: str = "a", prompt: tuple[int, ...] = (5, 6, 7), **params: Any) -> Request:
    """Seeded, since the fake model's next token is a function of the seed too."""
    sampling = SamplingParams(**{"ignore_eos": True, "seed": 7, **params})
    return Request(request_id=name, prompt_token_ids=prompt, params=sampling, arrival_s=0.0)


def run(engine: Engine) -> list[OutputDelta]:
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    return deltas


def text_of(deltas: list[OutputDelta], name: str = "a", index: int = 0) -> str:
    return "".join(delta.text for delta in deltas if (delta.request_id, delta.index) == (name, index))


def ids_of(deltas: list[OutputDelta], name: str = "a", index: int = 0) -> list[int]:
    mine = [delta for delta in deltas if (delta.request_id, delta.index) == (name, index)]
    return [token.token_id for delta in mine for token in delta.tokens]


def ends_of(deltas: list[OutputDelta]) -> list[tuple[str, int, FinishReason]]:
    return [(d.request_id, d.index, d.finish_reason) for d in deltas if d.finish_reason is not None]


def counted(engine: Engine) -> ServerMetrics:
    """What a server would show after all that the engine did."""
    metrics = ServerMetrics("m", EngineSnapshot)
    metrics.record(engine.take_records())
    return metrics


def value(metrics: ServerMetrics, name: str, **labels: str) -> float:
    return sum(v for found, v in samples(metrics.render().decode(), name) if labels.items() <= found.items())


def test_n_outputs_each_end_once_and_count_their_prompt_once(parts: FakeParts) -> None:
    parts.loaded.engine.add_request(a_request(n=3, max_tokens=4))

    deltas = run(parts.loaded.engine)

    assert [("a", index, FinishReason.LENGTH) for index in range(3)] == sorted(ends_of(deltas))
    metrics = counted(parts.loaded.engine)
    assert value(metrics, "vllm:prompt_tokens_total") == 3
    assert value(metrics, "vllm:generation_tokens_total") == 12
    assert value(metrics, "vllm:request_success_total", finished_reason="length") == 3
    assert value(metrics, "vllm:e2e_request_latency_seconds_count") == 1


def test_the_same_seed_gives_the_same_output_alone_and_among_others(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    engine.add_request(a_request("alone", seed=42, temperature=1.0, max_tokens=10))
    alone = ids_of(run(engine), "alone")

    for number in range(5):
        engine.add_request(a_request(f"other{number}", prompt=(8, number + 9), max_tokens=10))
    engine.add_request(a_request("among", seed=42, temperature=1.0, max_tokens=10))

    assert alone == ids_of(run(engine), "among")


def test_outputs_of_one_seeded_request_differ_and_the_largest_seed_wraps(parts: FakeParts) -> None:
    parts.loaded.engine.add_request(a_request(n=2, seed=2**63 - 1, max_tokens=10))

    deltas = run(parts.loaded.engine)

    assert ids_of(deltas, index=0) != ids_of(deltas, index=1)


def test_a_stop_string_ends_the_sequence_at_the_token_that_completes_it(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    engine.add_request(a_request("free", max_tokens=40))
    free = run(engine)
    text = text_of(free, "free")
    stop = text[10:13]
    before = text[: text.index(stop)]

    engine.add_request(a_request("cut", max_tokens=40, stop=(stop,)))
    deltas = run(engine)

    assert before == text_of(deltas, "cut")
    assert (FinishReason.STOP, stop) == (deltas[-1].finish_reason, deltas[-1].stop_reason)
    assert len(ids_of(deltas, "cut")) < 40
    assert ids_of(deltas, "cut") == ids_of(free, "free")[: len(ids_of(deltas, "cut"))]
    parts.scheduler.check_integrity()
    assert parts.scheduler.stats().running == 0


def test_a_stop_string_on_the_last_allowed_token_is_still_a_stop(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    engine.add_request(a_request("free", seed=11, max_tokens=6))
    free = run(engine)
    last = free[-1].text
    assert last not in "".join(delta.text for delta in free[:-1])

    engine.add_request(a_request("cut", seed=11, max_tokens=6, stop=(last,)))
    deltas = run(engine)

    assert FinishReason.STOP is deltas[-1].finish_reason
    assert not engine.has_work


@pytest.mark.parametrize("include", [False, True])
def test_a_stop_token_is_counted_and_shown_only_where_asked(parts: FakeParts, include: bool) -> None:
    engine, tokenizer = parts.loaded.engine, parts.loaded.tokenizer
    engine.add_request(a_request("free", max_tokens=60))
    free = ids_of(run(engine), "free")
    # One that is not there before and is a whole character, so that the text shows whether it is there.
    place = next(
        n for n, item in enumerate(free) if n > 3 and item not in free[:n] and tokenizer.token_bytes(item).isascii()
    )

    engine.add_request(
        a_request("cut", max_tokens=60, stop_token_ids=(free[place],), include_stop_str_in_output=include)
    )
    deltas = run(engine)

    shown = free[: place + 1] if include else free[:place]
    assert ids_of(deltas, "cut") == free[: place + 1]
    assert deltas[-1].stop_reason == free[place]
    raw = b"".join(tokenizer.token_bytes(item) for item in shown)
    assert text_of(deltas, "cut").rstrip("\ufffd") == raw.decode("utf-8", "replace").rstrip("\ufffd")


def test_what_might_have_become_a_stop_string_is_released_at_the_end(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    engine.add_request(a_request("free", max_tokens=20))
    text = text_of(run(engine), "free")

    engine.add_request(a_request("held", max_tokens=20, stop=(text[-3:] + "never",)))

    assert text_of(run(engine), "held") == text


def test_abort_frees_blocks_at_once_at_every_stage(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    engine.add_request(a_request("running", n=2, max_tokens=100))
    engine.step()
    engine.add_request(a_request("waiting", max_tokens=100))
    assert engine.snapshot().kv_usage > 0

    assert engine.abort("running")
    assert engine.abort("waiting")

    assert not engine.abort("running")
    assert not engine.has_work
    assert 0 == engine.snapshot().kv_usage == engine.snapshot().pressure
    metrics = counted(engine)
    assert value(metrics, "vllm:request_success_total", finished_reason="abort") == 3


def test_a_request_whose_step_raises_fails_alone(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    for number in range(5):
        prompt = (POISON,) if number == 3 else (20 + number,)
        engine.add_request(a_request(str(number), prompt=prompt, max_tokens=4))

    deltas = run(engine)

    ends = {name: reason for name, _, reason in ends_of(deltas)}
    assert FinishReason.ERROR is ends.pop("3")
    assert {str(n): FinishReason.LENGTH for n in (0, 1, 2, 4)} == ends
    assert all(len(ids_of(deltas, name)) == 4 for name in ends)
    error = next(delta.error for delta in deltas if delta.error)
    assert "log" in error
    assert "poison" not in error
    metrics = counted(engine)
    assert value(metrics, "octavo_engine_step_errors_total") > 0


def test_a_kernel_that_compiles_while_requests_wait_is_counted_and_told_once(
    parts: FakeParts, caplog: pytest.LogCaptureFixture
) -> None:
    engine = parts.loaded.engine
    compiled = [["decode_kernel", "decode_kernel"]]
    engine._compiled = lambda: compiled.pop() if compiled else []
    engine.add_request(a_request("a", prompt=(9,), max_tokens=3))

    run(engine)

    lines = [record.getMessage() for record in caplog.records if "compiled" in record.getMessage()]
    assert lines == ["kernels were compiled while requests waited: decode_kernel, decode_kernel"]
    assert value(counted(engine), "octavo_kernel_compilations_total") == 2


def test_the_others_get_what_they_would_have_got_without_the_offender(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    engine.add_request(a_request("before", prompt=(9, 10), max_tokens=6, seed=1))
    alone = ids_of(run(engine), "before")

    engine.add_request(a_request("with", prompt=(9, 10), max_tokens=6, seed=1))
    engine.add_request(a_request("bad", prompt=(POISON,), max_tokens=6))

    assert alone == ids_of(run(engine), "with")


def test_a_row_that_fails_ends_its_request_alone(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    engine.add_request(a_request("bad", prompt=(NOT_FINITE,), n=2))
    engine.add_request(a_request("good", max_tokens=4))

    deltas = run(engine)

    assert sorted(ends_of(deltas)) == [
        ("bad", 0, FinishReason.ERROR),
        ("bad", 1, FinishReason.ERROR),
        ("good", 0, FinishReason.LENGTH),
    ]
    parts.scheduler.check_integrity()


def test_text_that_cannot_be_made_ends_its_request_alone(parts: FakeParts) -> None:
    """On the last allowed token too, where the scheduler has already ended the sequence."""
    engine = parts.loaded.engine
    for name in ("bad", "good"):
        engine.add_request(a_request(name, prompt=(9, len(name)), max_tokens=6))
    free = run(engine)
    only_bad = [item for item in ids_of(free, "bad") if item not in ids_of(free, "good")]

    for broken in (only_bad[0], ids_of(free, "bad")[-1]):
        parts.break_tokens(broken)
        for name in ("bad", "good"):
            engine.add_request(a_request(name, prompt=(9, len(name)), max_tokens=6))
        deltas = run(engine)

        assert sorted(ends_of(deltas)) == [("bad", 0, FinishReason.ERROR), ("good", 0, FinishReason.LENGTH)]
        assert text_of(deltas, "good") == text_of(free, "good")
        assert "log" in next(delta.error for delta in deltas if delta.error)
        assert engine.snapshot().kv_usage == 0
    assert value(counted(engine), "vllm:request_success_total", finished_reason="error") == 2


def test_a_request_that_can_be_added_only_in_part_leaves_nothing(
    parts: FakeParts, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, add = parts.loaded.engine, parts.scheduler.add
    with monkeypatch.context() as patch:
        patch.setattr(parts.scheduler, "add", lambda sequence: 1 / 0 if sequence.index == 2 else add(sequence))
        with pytest.raises(ZeroDivisionError):
            engine.add_request(a_request("bad", n=3))
    engine.add_request(a_request("good", max_tokens=2))

    assert ends_of(run(engine)) == [("good", 0, FinishReason.LENGTH)]
    parts.scheduler.check_integrity()
    assert value(counted(engine), "vllm:prompt_tokens_total") == 3


def test_an_engine_in_which_nothing_succeeds_dies(parts: FakeParts) -> None:
    engine, parts.runner.breaks = parts.loaded.engine, True

    for number in range(MAX_FAILED_STEPS - 1):
        engine.add_request(a_request(str(number)))
        assert ends_of(run(engine)) == [(str(number), 0, FinishReason.ERROR)]
    engine.add_request(a_request("last"))
    with pytest.raises(EngineDeadError):
        engine.step()


def test_one_success_forgives_earlier_failures(parts: FakeParts) -> None:
    engine = parts.loaded.engine
    for number in range(3 * MAX_FAILED_STEPS):
        bad = number % 2
        engine.add_request(a_request(str(number), prompt=(POISON,) if bad else (8,), max_tokens=1))
        run(engine)


@pytest.mark.parametrize(
    ("prompt", "params", "param", "message"),
    [
        ((), {}, "prompt", "0 tokens"),
        ((5,) * CONTEXT, {"max_tokens": None}, "prompt", "512 tokens"),
        ((5,) * 500, {"max_tokens": 13}, "max_tokens", "together 513; the context holds 512: lower max_tokens to 12"),
        ((VOCABULARY,), {}, "prompt", "token id 512, the vocabulary has 512"),
        ((5,), {"stop_token_ids": (-1,)}, "stop_token_ids", "token id -1"),
        ((5,), {"logit_bias": {9999: 1.0}}, "logit_bias", "token id 9999"),
        ((5,), {"min_tokens": 17}, "min_tokens", "17, more than the 16"),
        ((5,), {"temperature": 2.5}, "temperature", "2.5"),
        ((5,), {"temperature": float("nan")}, "temperature", "nan"),
        ((5,), {"top_p": 0.0}, "top_p", "above 0"),
        ((5,), {"n": 0}, "n", "at least 1"),
        ((5,), {"stop": ("",)}, "stop", "1 to 256 characters"),
        ((5,), {"stop": ("x",) * 17}, "stop", "at most 16"),
    ],
)
def test_a_request_that_can_never_run_is_refused(
    parts: FakeParts, prompt: tuple[int, ...], params: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parts.loaded.engine.add_request(a_request(prompt=prompt, **params))

    assert param == caught.value.param
    assert message in str(caught.value)
    assert not parts.loaded.engine.has_work


def test_times_are_counted_from_one_clock(tokenizer_folder: Path) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.5
        return now[0]

    engine = fake_engine(load_tokenizer(tokenizer_folder), clock=clock).loaded.engine
    engine.add_request(a_request(max_tokens=3))
    run(engine)

    metrics = counted(engine)
    assert value(metrics, "octavo_engine_step_seconds_count") == 3
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 2
    ttft = value(metrics, "vllm:time_to_first_token_seconds_sum")
    itl = value(metrics, "vllm:inter_token_latency_seconds_sum")
    assert ttft + itl == value(metrics, "vllm:request_decode_time_seconds_sum") + ttft
    assert itl / 2 == value(metrics, "vllm:request_time_per_output_token_seconds_sum")

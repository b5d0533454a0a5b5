"""The soak: books that must balance, and a short run of the real thing."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.ledger import UNSURE_PROMPT_TOKENS, Counts, Ledger, audit, read_counts

LEDGER = Ledger(
    requests=5,
    prompt_tokens=100,
    output_tokens=60,
    outcomes=Counter(stop=4, length=3),
    rejected=2,
    certain_requests=2,
    certain_prompt_tokens=30,
    certain_outputs=3,
    unsure_requests=2,
    received_tokens=7,
    asked_tokens=50,
)
MOVED = Counts(
    requests=8,
    prompt_tokens=130 + UNSURE_PROMPT_TOKENS,
    generation_tokens=72,
    outcomes=Counter(stop=4, length=3, abort=4),
    rejected=2,
    request_prompt_sum=130 + UNSURE_PROMPT_TOKENS,
    request_generation_sum=72,
    e2e=8,
    preemptions=9,
    step_errors=0,
)


def test_books_balance_when_one_of_two_unsure_requests_was_taken() -> None:
    assert audit(LEDGER, MOVED) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt_tokens": 131 + UNSURE_PROMPT_TOKENS}, "prompt tokens: clients know 153, /metrics says 154"),
        ({"generation_tokens": 66, "request_generation_sum": 66}, "6 is not within 7 to 50"),
        ({"generation_tokens": 111, "request_generation_sum": 111}, "51 is not within 7 to 50"),
        ({"outcomes": Counter(stop=5, length=3, abort=4)}, "outputs that stopped"),
        ({"outcomes": Counter(stop=4, length=3, abort=3)}, "aborted outputs: clients know 4, /metrics says 3"),
        ({"outcomes": Counter(stop=4, length=3, abort=4, error=1)}, "outputs that failed"),
        ({"outcomes": Counter(stop=4, length=4, abort=3)}, "aborts that came too late: 1"),
        ({"requests": 10}, "requests of clients that left early: 3"),
        ({"rejected": 3}, "rejected"),
        ({"e2e": 7}, "latency histogram"),
        ({"request_prompt_sum": 1}, "prompt tokens in the histogram"),
        ({"request_generation_sum": 71}, "output tokens in the histogram"),
        ({"step_errors": 1}, "steps that raised"),
    ],
)
def test_each_wrong_count_is_told(change: dict[str, object], words: str) -> None:
    problems = audit(LEDGER, dataclasses.replace(MOVED, **change))

    assert any(words in problem for problem in problems), problems


def test_counts_are_read_from_prometheus_text_and_subtracted() -> None:
    text = """# TYPE vllm:request_success counter
vllm:request_success_total{model_name="m",finished_reason="stop"} 3.0
vllm:request_success_total{model_name="m",finished_reason="abort"} 1.0
# TYPE vllm:prompt_tokens counter
vllm:prompt_tokens_total{model_name="m"} 50.0
# TYPE octavo_rejected_requests counter
octavo_rejected_requests_total{model_name="m",reason="invalid_value"} 2.0
octavo_rejected_requests_total{model_name="m",reason="queue_full"} 1.0
"""
    counts = read_counts(text, requests_total=4)

    moved = read_counts(text, requests_total=6).since(counts)
    assert (counts.requests, counts.prompt_tokens, counts.rejected) == (4, 50, 3)
    assert counts.outcomes == Counter(stop=3, abort=1)
    assert (moved.requests, moved.prompt_tokens, moved.outcomes.total()) == (2, 0, 0)


def test_memorys_slope_is_of_the_time_after_the_warm_up() -> None:
    samples = [(float(second), 9_000.0 - second if second < 300 else 500 + second / 120) for second in range(900)]

    assert soak.slope_mb_per_minute(samples) == pytest.approx(0.5)


def test_seconds_of_everything_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "soak.json"

    status = soak.main(["--minutes", "0.15", "--think-ms", "10", "--round-s", "5", "--json", str(path)])

    printed, report = capsys.readouterr().out, json.loads(path.read_text())
    assert (status, report["problems"]) == (0, []), printed
    assert "0 problems" in printed
    assert report["requests"] > 50
    assert min(report["outputs"][reason] for reason in ("stop", "length", "abort")) > 0
    assert {"chat streamed", "completion", "bad", "left a stream", "left before the answer"} <= report["sent"].keys()
    assert report["slope_mb_per_minute"] is None


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_half_an_hour_of_everything_keeps_memory_blocks_and_books(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    path = tmp_path / "soak.json"

    status = soak.main(["--json", str(path)])

    report = json.loads(path.read_text())
    for name in ("requests", "outputs", "sent", "not_served", "preemptions", "slope_mb_per_minute"):
        record_property(name, report[name])
    assert (status, report["problems"]) == (0, [])
    assert report["slope_mb_per_minute"] < 1

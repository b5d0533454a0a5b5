"""Comparison of two result files: every setting that differs is named, and quality stands beside speed."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo_server.bench.compare import comparison, differences, interval
from octavo_server.bench.stats import Measure, Rounds, of_rounds
from octavo_server.cli import main

SAMPLE = {"error": None, "finish_reason": "stop", "request": {"name": "easy", "temperature": 0.0}, "text": "Paris."}


def a_record(**parts: Any) -> dict[str, Any]:
    """A run of two levels, one rate and one time each."""
    record: dict[str, Any] = {
        "format": 1,
        "command": "bench serve",
        "circumstances": {"date": "today", "load_average": [0.5, 0.5, 0.5]},
        "environment": {"versions": {"torch": "2.15.0"}, "cpus": 2},
        "model": {"name": "m", "revision": "", "files": {"m.gguf": "aa"}},
        "workload": {"rounds": 3, "max_concurrency": [1, 8], "max_tokens": 64},
        "engine": {"quantization": "none"},
        "resolved": {"kernels": "torch"},
        "server": {"url": "http://one"},
        "notes": {},
        "prompts": {"sha256": "cc"},
        "results": [a_result("1 clients"), a_result("8 clients")],
        "quality": {
            "samples": {"easy": dict(SAMPLE)},
            "probe": {"perplexity": 20.0, "tokens": ["a", "b"], "logprobs": [-3.0, -3.0]},
        },
    }
    return record | parts


def a_result(name: str, *, rate: float = 100.0, ttft_ms: float = 10.0) -> dict[str, Any]:
    rate_of = of_rounds([rate, 1.01 * rate, 0.99 * rate], "tok/s", "higher")
    times = Measure(unit="ms", better="lower", rounds=[[[ttft_ms + step] for step in range(5)]] * 3)
    return {"name": name, "measures": {"output_tokens_per_s": rate_of.as_json(), "ttft_ms": times.as_json()}}


def changed(**parts: Any) -> dict[str, Any]:
    """The record with entries of its parts replaced."""
    record = deepcopy(a_record())
    for part, entries in parts.items():
        record[part] |= entries
    return record


def test_equal_settings_differ_in_nothing() -> None:
    assert differences(a_record(), changed(server={"url": "http://two"}, circumstances={"date": "later"})) == ([], [])
    assert "none, so the ratios are the noise of the machine" in comparison(a_record(), a_record())


def test_one_change_is_named_with_what_follows_from_it_and_no_warning() -> None:
    after = changed(engine={"quantization": "int4"}, resolved={"kernels": "numba"})

    assert differences(a_record(), after) == (
        [("engine.quantization", "none", "int4")],
        [("resolved.kernels", "torch", "numba")],
    )
    assert "settings that differ: 1\n  engine.quantization: none -> int4" in comparison(a_record(), after)
    assert "warning" not in comparison(a_record(), after)


def test_more_than_one_change_is_warned_of() -> None:
    text = comparison(a_record(), changed(engine={"quantization": "int4"}, environment={"cpus": 4}))

    assert "warning: 2 settings differ, so no ratio tells what any one of them does" in text
    assert "environment.cpus: 2 -> 4" in text


@pytest.mark.parametrize(
    ("part", "entries", "name"),
    [
        ("resolved", {"kernels": "numba"}, "resolved.kernels"),
        ("prompts", {"sha256": "dd"}, "prompts.sha256"),
        ("model", {"files": {"m.gguf": "bb"}}, "model.files"),
        ("environment", {"versions": {"torch": "2.16.0"}}, "environment.versions.torch"),
        ("notes", {"machine": "quiet"}, "notes.machine"),
        ("server", {"version": "2"}, "server.version"),
    ],
)
def test_what_nothing_explains_counts_by_itself(part: str, entries: dict[str, Any], name: str) -> None:
    counted, following = differences(a_record(), changed(**{part: entries}))

    assert ([item[0] for item in counted], following) == ([name], [])


def test_other_levels_and_rounds_are_no_other_setting() -> None:
    after = changed(workload={"rounds": 5, "max_concurrency": [8]}, prompts={"sha256": "dd"})
    after["results"] = [a_result("8 clients", rate=200.0)]

    text = comparison(a_record(), after)

    assert "settings that differ: none" in text
    assert [line.split()[0] for line in text.splitlines() if "output_tokens_per_s" in line] == ["8"]
    assert "2.000" in text


def test_without_a_common_level_there_is_no_ratio() -> None:
    assert "no level is in both files" in comparison(a_record(), a_record(results=[a_result("32 clients")]))


def a_sample(seed: int, scale: float) -> list[float]:
    return list(np.random.default_rng(seed).gamma(4.0, scale, size=60))


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """The medians' true ratio is that of the scales; 95 % of many intervals hold it, and most are narrow."""
    found = [
        interval(
            [[[value] for value in a_sample(2 * seed, 10.0)]],
            [[[value] for value in a_sample(2 * seed + 1, 15.0)]],
            (50,),
        )[0]
        for seed in range(40)
    ]

    bounds = [(ratio.low, ratio.high) for ratio in found if ratio and ratio.low and ratio.high]
    assert len(bounds) == 40
    assert sum(low <= 1.5 <= high for low, high in bounds) in range(35, 41)
    assert sum(low > 1.0 for low, _ in bounds) >= 30


def test_rounds_that_differ_widen_the_interval_of_requests() -> None:
    """Requests of a round suffer together what the machine does: many of them are not many observations."""
    steady: Rounds = [[[10.0 + step / 10] for step in range(20)]] * 3
    moody: Rounds = [[[scale * value for value in request] for request in steady[0]] for scale in (0.5, 1.0, 1.5)]

    calm, wide = (interval(steady, side, (50,))[0] for side in (steady, moody))

    assert calm is not None
    assert wide is not None
    assert calm.low is not None
    assert calm.low > 0.9
    assert wide.low is not None
    assert wide.low < 0.7


def test_gaps_are_drawn_with_their_request() -> None:
    """A slow request brings all its gaps: ten requests are ten observations, however many gaps they have."""
    alike: Rounds = [[[10.0, 10.1, 10.2, 10.3] * 20] * 10]
    uneven: Rounds = [
        [[scale * value for value in request] for scale, request in zip([1, 3] * 5, alike[0], strict=True)]
    ]

    (narrow, wide) = (interval(alike, side, (50,))[0] for side in (alike, uneven))

    assert narrow is not None
    assert (narrow.low, narrow.high) == (pytest.approx(1.0, abs=0.03), pytest.approx(1.0, abs=0.03))
    assert wide is not None
    assert (wide.low, wide.high) == (pytest.approx(1.0, abs=0.03), pytest.approx(3.0, abs=0.1))


def test_one_round_says_nothing_of_a_rates_spread() -> None:
    (found,) = interval([[[100.0]]], [[[200.0]]], (50,))

    assert found is not None
    assert (found.value, found.low, found.verdict("higher")) == (2.0, None, "one run each says little")


@pytest.mark.parametrize(
    ("rounds", "better", "verdict"),
    [
        ([2.0, 2.1, 1.9], "higher", "better"),
        ([2.0, 2.1, 1.9], "lower", "worse"),
        ([1.0, 1.1, 0.9], "higher", "no difference seen"),
        ([0.5, 0.4, 0.6], "lower", "better"),
    ],
)
def test_a_verdict_needs_an_interval_without_one(rounds: list[float], better: str, verdict: str) -> None:
    one = [[[value]] for value in (1.0, 1.05, 0.95)]

    (found,) = interval(one, [[[value]] for value in rounds], (50,))

    assert found is not None
    assert found.verdict(better) == verdict


def test_what_was_not_there_before_has_no_ratio() -> None:
    assert interval([[[0.0]]] * 3, [[[1.0]]] * 3, (50,)) == [None]
    assert interval([[[]]], [[[1.0]]], (50,)) == [None]


def with_sample(**fields: Any) -> dict[str, Any]:
    record = deepcopy(a_record())
    record["quality"]["samples"]["easy"] |= fields
    return record


@pytest.mark.parametrize(
    ("before", "after", "words", "worse"),
    [
        ({}, {}, "easy: the same", False),
        ({}, {"text": "Pau"}, "easy: the same for 2 of 6 characters", False),
        ({"valid": True}, {"valid": False}, "valid before, no longer", True),
        ({"valid": False}, {"valid": True}, "easy: the same", False),
        ({}, {"error": "HTTP 500"}, "answered before, now HTTP 500", True),
        ({"error": "HTTP 400"}, {"error": "HTTP 422"}, "refused by both", False),
        ({"error": "HTTP 500"}, {}, "HTTP 500 before, now answered", False),
        ({}, {"request": {"name": "easy", "temperature": 1.0}}, "asked otherwise, not compared", False),
    ],
)
def test_samples_tell_a_configuration_that_answers_worse(
    before: dict[str, Any], after: dict[str, Any], words: str, worse: bool
) -> None:
    text = comparison(with_sample(**before), with_sample(**after))

    assert words in text
    assert ("warning: the later run answers worse" in text) is worse


def test_a_malformed_request_that_is_answered_is_the_worse_end() -> None:
    request = {"name": "malformed", "temperature": -1.0}
    was, now = with_sample(request=request, error="HTTP 400"), with_sample(request=request)

    assert "answers worse" in comparison(was, now)
    assert "answers worse" not in comparison(now, was)


@pytest.mark.parametrize(("perplexity", "worse"), [(20.3, False), (20.5, True), (15.0, False)])
def test_the_probe_tells_what_samples_do_not(perplexity: float, worse: bool) -> None:
    after = a_record(quality=deepcopy(a_record()["quality"]))
    after["quality"]["probe"] |= {"perplexity": perplexity, "logprobs": [-3.1, -2.8]}

    text = comparison(a_record(), after)

    assert f"perplexity 20.00 -> {perplexity:.2f}" in text
    assert "mean distance 0.1500 over 2 tokens" in text
    assert ("warning: the later run answers worse" in text) is worse


def test_a_probe_that_is_not_known_is_said() -> None:
    after = a_record(quality=deepcopy(a_record()["quality"]) | {"probe": {"error": "HTTP 422"}})

    assert "not known (HTTP 422)" in comparison(a_record(), after)
    assert "speed stands alone" in comparison(a_record(quality=None), a_record())


def test_two_files_are_compared_by_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("before.json", "after.json")]
    for path, rate in zip(paths, (100.0, 150.0), strict=True):
        path.write_text(json.dumps(a_record(results=[a_result("1 clients", rate=rate)])))

    assert main(["bench", "compare", *map(str, paths)]) == 0

    printed = capsys.readouterr().out
    assert "1.500" in printed
    assert "better" in printed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot read the result file"),
        ('{"command": "bench serve", "results": []}', "has format None, this version reads 1"),
        (json.dumps(a_record(command="bench latency")), "cannot be compared"),
    ],
)
def test_a_file_that_cannot_be_compared_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str
) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(content)
    after.write_text(json.dumps(a_record()))

    assert main(["bench", "compare", str(before), str(after)]) == 2
    assert words in capsys.readouterr().err

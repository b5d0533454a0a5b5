"""Lines of an input file: what is asked, what is said of what cannot be, and that a file is read line by line."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_server.batch.lines import BadLine, Line, LineRules, read_line, read_lines, summarize

URL = "/v1/completions"
RULES = LineRules(urls=frozenset({URL}), max_bytes=200, max_lines=3)


def a_line(custom_id: Any = "a", **more: Any) -> bytes:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": {"model": "m"}, **more}).encode()


def test_a_good_line_is_a_request() -> None:
    line = read_line(a_line(body={"model": "m", "prompt": "é\ud800"}), 7, RULES.urls)

    assert isinstance(line, Line)
    assert (line.number, line.custom_id, line.url, line.model) == (7, "a", URL, "m")
    # A lone surrogate is for the endpoint to refuse, like any other value.
    assert json.loads(line.payload) == {"model": "m", "prompt": "é\ud800"}


@pytest.mark.parametrize("model", ["\ud800", "x" * 1025, 5, None])
def test_a_model_that_no_record_can_hold_is_left_to_the_endpoint(model: Any) -> None:
    line = read_line(a_line(body={"model": model}), 1, RULES.urls)

    assert isinstance(line, Line)
    assert line.model is None
    assert json.loads(line.payload) == {"model": model}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "JSON"),
        (b"\xff", "JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "JSON"),
        (b"null", "object"),
        (b'"text"', "object"),
        (a_line(custom_id=None), "custom_id"),
        (a_line(custom_id=""), "custom_id"),
        (a_line(custom_id="x" * 513), "custom_id"),
        (a_line(custom_id="\ud800"), "surrogate"),
        (a_line(method="post"), "POST"),
        (a_line(url="/v1/chat/completions"), "url must be /v1/completions"),
        (a_line(url=["/v1/completions"]), "url"),
        (a_line(body="{}"), "body"),
        (a_line(body=None), "body"),
        (a_line(body={"stream": True}), "body.stream"),
        (a_line(body={"background": True}), "body.background"),
    ],
)
def test_a_bad_line_says_what_is_wrong(raw: bytes, words: str) -> None:
    line = read_line(raw, 3, RULES.urls)

    assert isinstance(line, BadLine)
    assert line.number == 3
    assert words in line.message


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(raw: bytes) -> None:
    lines = list(read_lines(io.BytesIO(raw), RULES))

    numbered = [number for number, line in enumerate(raw.split(b"\n"), start=1) if line.strip()]
    assert [line.number for line in lines] == numbered


def test_a_line_that_is_too_long_is_passed_over_and_the_next_is_read() -> None:
    content = a_line("a") + b"\n" + a_line("b", body={"prompt": "x" * 500}) + b"\n\r\n" + a_line("c")

    first, second, third = read_lines(io.BytesIO(content), RULES)

    assert (first.custom_id, third.custom_id, third.number) == ("a", "c", 4)
    assert isinstance(second, BadLine)
    assert "--max-request-bytes" in second.message


def test_a_summary_counts_and_names_the_first_model() -> None:
    summary = summarize(io.BytesIO(b"x\n" + a_line("a") + b"\n" + a_line("b", body={"model": "n"})), RULES)

    assert (summary.num_lines, [line.number for line in summary.bad], summary.model) == (3, [1], "m")
    assert summary.errors == []


def test_each_id_that_is_there_again_is_named_with_both_lines() -> None:
    summary = summarize(io.BytesIO(b"\n".join([a_line("a"), a_line("a", method="x"), a_line("a")])), RULES)

    assert [(error.code, error.line) for error in summary.errors] == [
        ("duplicate_custom_id", 2),
        ("duplicate_custom_id", 3),
    ]
    assert "line 1" in summary.errors[1].message

"""What is read of an answer that passes, and what is taken out of it again."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo_gateway import usage
from octavo_gateway.usage import BodyUsage, StreamUsage, Usage, UsageReader, parse_usage

USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def chunk(text: str | None, **fields: Any) -> dict[str, Any]:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}}]
    return {"id": "chatcmpl-1", "choices": choices, **fields}


def events(*chunks: dict[str, Any], separators: tuple[str, str] = (",", ":")) -> bytes:
    return b"".join(b"data: " + json.dumps(each, separators=separators).encode() + b"\n\n" for each in chunks)


DONE = b"data: [DONE]\n\n"
ASKED = events(chunk("Hi", usage=None), chunk("!", usage=None), chunk(None, usage=USAGE)) + DONE
UNASKED = events(chunk("Hi"), chunk("!")) + DONE


def passed(reader: UsageReader, *pieces: bytes) -> bytes:
    return b"".join(map(reader.feed, pieces)) + reader.end()


@given(st.lists(st.integers(0, len(ASKED)), max_size=12))
def test_a_stream_that_the_client_did_not_ask_for_usage_is_as_if_nobody_had(cuts: list[int]) -> None:
    """However the network cuts it."""
    borders = [0, *sorted(cuts), len(ASKED)]
    reader = StreamUsage(hide=True)

    shown = passed(reader, *(ASKED[a:b] for a, b in itertools.pairwise(borders)))

    assert shown == UNASKED
    assert reader.usage == Usage(prompt_tokens=5, output_tokens=7)


@given(st.lists(st.integers(0, len(ASKED)), max_size=12))
def test_a_stream_that_the_client_asked_for_usage_passes_byte_by_byte_at_once(cuts: list[int]) -> None:
    borders = [0, *sorted(cuts), len(ASKED)]
    reader = StreamUsage(hide=False)
    for a, b in itertools.pairwise(borders):
        assert reader.feed(ASKED[a:b]) == ASKED[a:b]

    assert reader.end() == b""
    assert reader.usage == Usage(prompt_tokens=5, output_tokens=7)


def test_an_event_passes_as_soon_as_it_is_whole() -> None:
    reader = StreamUsage(hide=True)
    one, two = events(chunk("a")), events(chunk("b"))

    assert reader.feed(one + two[:10]) == one
    assert reader.feed(two[10:]) == two


def test_spaces_and_windows_line_ends_are_no_hindrance() -> None:
    spaced = events(chunk("a", usage=None), chunk(None, usage=USAGE), separators=(", ", ": "))
    reader = StreamUsage(hide=True)

    shown = passed(reader, spaced.replace(b"\n", b"\r\n"))

    assert json.loads(shown.removeprefix(b"data: ")) == chunk("a")
    assert reader.usage == Usage(prompt_tokens=5, output_tokens=7)


@pytest.mark.parametrize("text", [',"usage":null', '{"usage":{"prompt_tokens":999}}', '"usage":'])
def test_a_text_that_speaks_of_usage_stays_as_it_is(text: str) -> None:
    answer = events(chunk(text), chunk(None, usage=USAGE))
    reader = StreamUsage(hide=True)

    assert passed(reader, answer) == events(chunk(text))
    assert reader.usage == Usage(prompt_tokens=5, output_tokens=7)


def test_the_last_event_of_responses_tells_usage_and_stays() -> None:
    response = {"id": "resp_1", "output": [], "usage": {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}}
    last = b"event: response.completed\n" + events({"type": "response.completed", "response": response})
    reader = StreamUsage(hide=False)

    assert passed(reader, last) == last
    assert reader.usage == Usage(prompt_tokens=3, output_tokens=4)


def test_an_event_without_end_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "MAX_EVENT_BYTES", 1000)
    reader = StreamUsage(hide=True)

    assert sum(len(reader.feed(b"x" * 100)) for _ in range(50)) >= 4000
    assert len(reader._rest) <= 1000


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"choices": [{"text": "hi"}], "usage": USAGE}, Usage(prompt_tokens=5, output_tokens=7)),
        (
            {"data": [0.5] * 50_000, "usage": {"prompt_tokens": 9, "total_tokens": 9}},
            Usage(prompt_tokens=9, output_tokens=0),
        ),
        ({"results": [], "usage": {"total_tokens": 8}}, Usage(prompt_tokens=8, output_tokens=0)),
        ({"choices": [{"text": '"usage": {"prompt_tokens": 1}'}]}, None),
        ({"usage": None}, None),
        ({}, None),
    ],
)
def test_an_answer_that_is_no_stream_tells_it_at_its_end(answer: dict[str, Any], expected: Usage | None) -> None:
    raw = json.dumps(answer).encode()
    reader = BodyUsage()

    assert passed(reader, raw[:10], raw[10:]) == raw
    assert reader.usage == expected


@given(st.binary(max_size=300))
def test_any_bytes_pass_unharmed(raw: bytes) -> None:
    for reader in (BodyUsage(), StreamUsage(hide=False)):
        assert passed(reader, raw) == raw


@pytest.mark.parametrize("raw", [None, 5, {}, {"prompt_tokens": "5"}, {"prompt_tokens": -1}, {"prompt_tokens": True}])
def test_what_is_no_usage_is_none(raw: Any) -> None:
    assert parse_usage(raw) is None

"""However an answer comes in pieces, its events are well formed and join to the same response."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from octavo_server.api.responses_writer import ResponseWriter
from octavo_server.chat_output.parser import ChatEvent, ContentText, ReasoningText, ToolCallArguments, ToolCallBegin
from octavo_testing.response_events import check_events

USAGE = {
    "input_tokens": 3,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 8,
}


def a_writer() -> ResponseWriter:
    count = itertools.count()
    response = {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "error": None,
        "incomplete_details": None,
        "model": "tiny",
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }
    return ResponseWriter(response, new_id=lambda: str(next(count)), call_id=lambda: f"call_{next(count)}")


texts = st.text(max_size=3)
pieces = st.one_of(st.builds(ReasoningText, texts), st.builds(ContentText, texts))
calls = st.lists(texts, max_size=3).map(
    lambda parts: [ToolCallBegin(0, "f"), *(ToolCallArguments(0, part) for part in parts)]
)
answers = st.lists(st.one_of(pieces.map(lambda piece: [piece]), calls), max_size=6).map(
    lambda groups: [event for group in groups for event in group]
)


def without_ids(response: dict[str, Any]) -> list[dict[str, Any]]:
    hidden = ("id", "call_id")
    return [{name: value for name, value in item.items() if name not in hidden} for item in response["output"]]


@given(answers, st.data())
def test_events_are_well_formed_and_the_same_however_they_come(answer: list[ChatEvent], data: st.DataObject) -> None:
    writer, whole = a_writer(), a_writer()
    events = writer.begin()
    rest = list(answer)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        events += writer.say(rest[:size])
        rest = rest[size:]
    events += writer.end(USAGE, is_whole=True)
    whole.begin()
    whole.say(answer)
    whole.end(USAGE, is_whole=True)

    assert check_events(events) == writer.response
    assert without_ids(writer.response) == without_ids(whole.response)
    joined = "".join(event.text for event in answer if isinstance(event, ContentText))
    said = "".join(item["content"][0]["text"] for item in writer.response["output"] if item["type"] == "message")
    assert said == joined


@given(answers)
def test_whatever_has_been_opened_closes_when_the_answer_fails(answer: list[ChatEvent]) -> None:
    writer = a_writer()
    events = [*writer.begin(), *writer.say(answer), *writer.fail("the engine died")]

    response = check_events(events)

    assert response["status"] == "failed"
    assert response["error"] == {"code": "server_error", "message": "the engine died"}


def test_an_answer_that_was_cut_off_says_so() -> None:
    writer = a_writer()
    events = [*writer.begin(), *writer.say([ContentText("a"), ContentText("b")]), *writer.end(USAGE, is_whole=False)]

    response = check_events(events)

    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


def test_events_do_not_change_with_what_comes_after_them() -> None:
    writer = a_writer()
    created = writer.begin()[0]
    added = writer.say([ContentText("a")])[0]
    writer.say([ContentText("b")])
    writer.end(USAGE, is_whole=True)

    assert created["response"]["output"] == []
    assert created["response"]["status"] == "in_progress"
    assert added["item"]["content"] == []


def test_an_empty_answer_is_an_empty_message() -> None:
    writer = a_writer()
    events = [*writer.begin(), *writer.end(USAGE, is_whole=True)]

    [item] = check_events(events)["output"]

    assert (item["type"], item["content"][0]["text"]) == ("message", "")

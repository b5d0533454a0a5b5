"""A reader of the Responses API's events that believes nothing: what may follow what, and what it joins to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
_ENDS = {"response.completed", "response.incomplete", "response.failed"}


def parse_named(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each of which must bear its type as its name."""
    events = []
    for block in body.decode().split("\n\n"):
        if not block:
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def check_events(events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Checks order, numbers, types and that deltas join to what is said at the end; gives the last response object."""
    for event in events:
        _EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1]["type"] in _ENDS
    items: list[dict[str, Any]] = []
    rest = list(events[2:-1])
    while rest:
        items.append(_read_item(rest, len(items)))
    last: dict[str, Any] = dict(events[-1]["response"])
    assert last["output"] == items
    assert events[-1]["type"] == f"response.{last['status']}"
    Response.model_validate(last)
    return last


def _read_item(rest: list[Mapping[str, Any]], index: int) -> dict[str, Any]:
    added = _take(rest, "response.output_item.added", index)
    item = dict(added["item"])
    has_part = item["type"] != "function_call"
    if has_part:
        part = _take(rest, "response.content_part.added", index)
        assert part["item_id"] == item["id"]
    stem = {
        "message": "response.output_text",
        "reasoning": "response.reasoning_text",
        "function_call": "response.function_call_arguments",
    }[item["type"]]
    text, logprobs = "", []
    while rest[0]["type"] == f"{stem}.delta":
        delta = _take(rest, f"{stem}.delta", index)
        assert delta["item_id"] == item["id"]
        text += delta["delta"]
        logprobs += delta.get("logprobs", [])
    done = _take(rest, f"{stem}.done", index)
    assert done["arguments" if item["type"] == "function_call" else "text"] == text
    if has_part:
        assert _take(rest, "response.content_part.done", index)["part"]["text"] == text
    ended: dict[str, Any] = dict(_take(rest, "response.output_item.done", index)["item"])
    assert ended["id"] == item["id"]
    assert ended["status"] in ("completed", "incomplete")
    said = ended["arguments"] if item["type"] == "function_call" else ended["content"][0]["text"]
    assert said == text
    if logprobs:
        assert ended["content"][0]["logprobs"] == logprobs
    return ended


def _take(rest: list[Mapping[str, Any]], kind: str, index: int) -> Mapping[str, Any]:
    event = rest.pop(0)
    assert (event["type"], event["output_index"]) == (kind, index)
    return event

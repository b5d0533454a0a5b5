"""From what an answer says to OpenAI's response object and the events that tell how it grows.

Every event changes the object in the same call, so a client that joins the events has the object that one who did not
stream gets. Pure: ids come in. The grammar of the events, which `end` and `fail` complete whatever has been opened:

    created in_progress (item_added (part_added delta* text_done part_done)? (delta* arguments_done)? item_done)* end
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from octavo_server.chat_output.parser import ChatEvent, ContentText, ReasoningText, ToolCallBegin

Event = dict[str, Any]
"""One event of the stream; `type` and `sequence_number` are always there."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the text of one kind of item is told."""

    part: str | None
    """Type of its one content part; None: it has no parts."""
    delta: str
    done: str
    prefix: str
    """Of the item's id."""


_KINDS = {
    "message": _Kind("output_text", "response.output_text.delta", "response.output_text.done", "msg"),
    "reasoning": _Kind("reasoning_text", "response.reasoning_text.delta", "response.reasoning_text.done", "rs"),
    "function_call": _Kind(
        None, "response.function_call_arguments.delta", "response.function_call_arguments.done", "fc"
    ),
}


@dataclass(slots=True)
class _Open:
    """The item that grows now."""

    item: dict[str, Any]
    index: int
    kind: _Kind
    text: str = ""
    logprobs: list[Any] = field(default_factory=list)

    @property
    def place(self) -> dict[str, Any]:
        """Where its events say that they belong."""
        parts = {} if self.kind.part is None else {"content_index": 0}
        return {"item_id": self.item["id"], "output_index": self.index, **parts}


class ResponseWriter:
    """Owns one response object. `begin` first, then `say` any number of times, then `end` or `fail` once."""

    def __init__(
        self,
        response: dict[str, Any],
        *,
        new_id: Callable[[], str],
        call_id: Callable[[], str],
        has_logprobs: bool = False,
    ) -> None:
        """Takes over `response`, which has everything but its output; `has_logprobs`: its texts list them, be it none."""
        self.response = {**response, "status": "in_progress", "output": [], "usage": None}
        self._new_id = new_id
        self._call_id = call_id
        self._has_logprobs = has_logprobs
        self._sequence = 0
        self._open: _Open | None = None

    @property
    def is_in_message(self) -> bool:
        """Whether content would go on with the message that grows, or begin the first one."""
        return self._open.item["type"] == "message" if self._open is not None else not self.response["output"]

    def begin(self) -> list[Event]:
        """The first two events."""
        return [self._whole("response.created"), self._whole("response.in_progress")]

    def say(self, events: Iterable[ChatEvent], logprobs: Iterable[list[dict[str, Any]]] = ()) -> list[Event]:
        """Takes in what the answer says next; `logprobs` are of each content among it."""
        told: list[Event] = []
        of_content = iter(logprobs)
        for event in events:
            if isinstance(event, ToolCallBegin):
                told += self._enter("function_call", name=event.name)
            elif isinstance(event, ContentText):
                told += self._grow("message", event.text, next(of_content, []))
            elif isinstance(event, ReasoningText):
                told += self._grow("reasoning", event.text, [])
            else:
                told += self._grow("function_call", event.text, [])
        return told

    def end(self, usage: Mapping[str, Any], *, is_whole: bool) -> list[Event]:
        """The answer has ended; `is_whole` is False where --max-model-len or max_output_tokens cut it off."""
        told = self._close("completed" if is_whole else "incomplete")
        if not self.response["output"]:
            # OpenAI's answers hold a message, be it empty.
            told += self._enter("message") + self._close("completed" if is_whole else "incomplete")
        status = "completed" if is_whole else "incomplete"
        details = None if is_whole else {"reason": "max_output_tokens"}
        self.response |= {"status": status, "incomplete_details": details, "usage": dict(usage)}
        return [*told, self._whole(f"response.{status}")]

    def fail(
        self,
        message: str,
        *,
        code: str = "server_error",
        usage: Mapping[str, Any] | None = None,
        is_cancelled: bool = False,
    ) -> list[Event]:
        """The answer will not be finished: the server failed, or its client took it back."""
        told = self._close("incomplete")
        self.response["usage"] = None if usage is None else dict(usage)
        if is_cancelled:
            self.response["status"] = "cancelled"
            return told
        self.response |= {"status": "failed", "error": {"code": code, "message": message}}
        return [*told, self._whole("response.failed")]

    def _grow(self, kind: str, text: str, logprobs: list[Any]) -> list[Event]:
        told = [] if self._open is not None and self._open.item["type"] == kind else self._enter(kind)
        now = self._open
        assert now is not None
        now.text += text
        now.logprobs += logprobs
        self._write_text(now)
        delta = {**now.place, "delta": text}
        if kind == "message":
            delta["logprobs"] = logprobs
        return [*told, self._event(now.kind.delta, **delta)] if text or logprobs else told

    def _enter(self, kind: str, **fields: Any) -> list[Event]:
        told = self._close("completed")
        form = _KINDS[kind]
        item: dict[str, Any] = {"id": f"{form.prefix}_{self._new_id()}", "type": kind, "status": "in_progress"}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        else:
            item |= {"call_id": self._call_id(), **fields, "arguments": ""}
        now = self._open = _Open(item, len(self.response["output"]), form)
        told.append(self._event("response.output_item.added", output_index=now.index, item=_copy(item)))
        self.response["output"].append(item)
        if form.part is not None:
            part = self._part(form.part)
            item["content"].append(part)
            told.append(self._event("response.content_part.added", **now.place, part=dict(part)))
        return told

    def _close(self, status: str) -> list[Event]:
        now, self._open = self._open, None
        if now is None:
            return []
        now.item["status"] = status
        is_message = now.item["type"] == "message"
        text_name = "arguments" if now.kind.part is None else "text"
        done = {**now.place, text_name: now.text, **({"logprobs": now.logprobs} if is_message else {})}
        told = [self._event(now.kind.done, **done)]
        if now.kind.part is not None:
            told.append(self._event("response.content_part.done", **now.place, part=_copy(now.item["content"][0])))
        return [*told, self._event("response.output_item.done", output_index=now.index, item=_copy(now.item))]

    def _write_text(self, now: _Open) -> None:
        if now.kind.part is None:
            now.item["arguments"] = now.text
            return
        part = now.item["content"][0]
        part["text"] = now.text
        if "logprobs" in part:
            part["logprobs"] = list(now.logprobs)

    def _part(self, kind: str) -> dict[str, Any]:
        if kind != "output_text":
            return {"type": kind, "text": ""}
        return {"type": kind, "text": "", "annotations": [], **({"logprobs": []} if self._has_logprobs else {})}

    def _whole(self, kind: str) -> Event:
        response = {**self.response, "output": [_copy(item) for item in self.response["output"]]}
        return self._event(kind, response=response)

    def _event(self, kind: str, **fields: Any) -> Event:
        event = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return event


def _copy(item: Mapping[str, Any]) -> dict[str, Any]:
    """Of an item or a part as it is now: events must not change with what comes after them."""
    content = item.get("content")
    return {**item, "content": [dict(part) for part in content]} if isinstance(content, list) else dict(item)

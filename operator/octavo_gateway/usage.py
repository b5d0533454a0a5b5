"""Reads from an answer on its way to the client how many tokens it took; nothing else of it is looked at or kept.

Pure. An event of a stream passes at once. Where usage was asked for by the gateway and not by the client, it is taken
out of the stream again: the last chunk with it alone, and ``"usage":null`` of those before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

TAIL_BYTES = 64 * 1024
"""Of an answer that is no stream; usage stands at its end."""
MAX_EVENT_BYTES = 1024 * 1024
"""A longer event passes unread."""

# A text in the answer that says the same has a backslash before each quotation mark.
_USAGE = re.compile(rb'"usage"\s*:\s*(?=\{)')
_NULL = re.compile(rb',\s*"usage"\s*:\s*null')


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    prompt_tokens: int
    output_tokens: int


class UsageReader(Protocol):
    usage: Usage | None

    def feed(self, piece: bytes) -> bytes:
        """What of the answer so far may go on to the client."""
        ...

    def end(self) -> bytes:
        """What is left."""
        ...


class BodyUsage:
    """Of one JSON object."""

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self._tail = b""

    def feed(self, piece: bytes) -> bytes:
        self._tail = (self._tail + piece)[-TAIL_BYTES:]
        return piece

    def end(self) -> bytes:
        matches = list(_USAGE.finditer(self._tail))
        if matches:
            text = self._tail[matches[-1].end() :].decode(errors="replace")
            try:
                self.usage = parse_usage(json.JSONDecoder().raw_decode(text)[0])
            except (ValueError, RecursionError):
                self.usage = None
        self._tail = b""
        return b""


class StreamUsage:
    """Of server-sent events; ``hide`` takes usage out of them."""

    def __init__(self, *, hide: bool) -> None:
        self.usage: Usage | None = None
        self._hide = hide
        self._rest = b""

    def feed(self, piece: bytes) -> bytes:
        text = self._rest + piece if self._rest else piece
        # Nearly every piece of a stream is whole events.
        end = len(text) if text.endswith(b"\n\n") else _end_of_events(text)
        if len(text) - end > MAX_EVENT_BYTES:
            end = len(text)
        whole, self._rest = text[:end], text[end:]
        shown = self._read(whole) if b'"usage"' in whole else whole
        return shown if self._hide else piece

    def end(self) -> bytes:
        rest, self._rest = self._rest, b""
        return rest if self._hide else b""

    def _read(self, events: bytes) -> bytes:
        if not _USAGE.search(events):
            # Nearly every piece of a stream: only a null to take out.
            return _NULL.sub(b"", events) if self._hide else events
        shown = bytearray()
        start = 0
        while start < len(events):
            end = start + _end_of_first(events[start:])
            event = events[start:end]
            start = end
            shown += self._read_one(event) if b'"usage"' in event else event
        return bytes(shown)

    def _read_one(self, event: bytes) -> bytes:
        if not _USAGE.search(event):
            return _NULL.sub(b"", event) if self._hide else event
        data = b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
        try:
            chunk = json.loads(data)
        except (ValueError, RecursionError):
            return event
        if not isinstance(chunk, Mapping):
            return event
        inner = chunk.get("response")
        found = parse_usage(chunk.get("usage")) or parse_usage(
            inner.get("usage") if isinstance(inner, Mapping) else None
        )
        self.usage = found or self.usage
        return b"" if self._hide and found is not None and chunk.get("choices") == [] else event


def parse_usage(raw: Any) -> Usage | None:
    """OpenAI's two shapes: of completions and embeddings, and of responses."""
    if not isinstance(raw, Mapping):
        return None
    prompt = raw.get("prompt_tokens", raw.get("input_tokens"))
    output = raw.get("completion_tokens", raw.get("output_tokens", 0))
    if not _is_count(prompt) and _is_count(raw.get("total_tokens")):
        # Rankings tell the sum alone.
        prompt = raw["total_tokens"]
    if not _is_count(prompt) or not _is_count(output):
        return None
    return Usage(prompt_tokens=prompt, output_tokens=output)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _end_of_events(text: bytes) -> int:
    """Where the last whole event ends: after a blank line."""
    return max(
        text.rfind(b"\n\n") + 2 if b"\n\n" in text else 0, text.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in text else 0
    )


def _end_of_first(text: bytes) -> int:
    ends = [at + len(mark) for mark in (b"\n\n", b"\r\n\r\n") if (at := text.find(mark)) >= 0]
    return min(ends, default=len(text))

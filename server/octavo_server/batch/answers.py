"""What a line of a batch comes to, in the shape of OpenAI's output and error files. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo_server.batch.lines import BadLine, Line
from octavo_server.batch.records import Tokens

EXPIRED_MESSAGE = "This request could not be executed before the completion window expired."


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the server answered."""

    status: int
    request_id: str
    body: Any
    """The JSON value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A line that is done with."""

    number: int
    is_ok: bool
    tokens: Tokens
    entry: bytes
    """The line of the output or error file, without its end."""


def answered(line: Line, reply: Reply, new_id: str) -> Answer:
    """The server's answer; anything but 200 is an error."""
    response = {"status_code": reply.status, "request_id": reply.request_id, "body": reply.body}
    is_ok = reply.status == 200
    usage = reply.body.get("usage") if is_ok and isinstance(reply.body, dict) else None
    return Answer(
        number=line.number,
        is_ok=is_ok,
        tokens=_tokens(usage),
        entry=_entry(line.custom_id, new_id, response=response),
    )


def refused(line: BadLine, new_id: str) -> Answer:
    """A line that could not be asked."""
    error = {"code": "invalid_line", "message": f"line {line.number}: {line.message}", "line": line.number}
    return Answer(number=line.number, is_ok=False, tokens=Tokens(), entry=_entry(line.custom_id, new_id, error=error))


def expired(line: Line | BadLine, new_id: str) -> Answer:
    """A line whose turn did not come in time."""
    error = {"code": "batch_expired", "message": EXPIRED_MESSAGE}
    return Answer(number=line.number, is_ok=False, tokens=Tokens(), entry=_entry(line.custom_id, new_id, error=error))


def _entry(
    custom_id: str | None,
    new_id: str,
    *,
    response: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> bytes:
    entry = {"id": f"batch_req_{new_id}", "custom_id": custom_id, "response": response, "error": error}
    # In ASCII: readers split at line ends, of which Unicode has more than JSON escapes.
    return json.dumps(entry).encode()


def _tokens(usage: object) -> Tokens:
    """From any of OpenAI's spellings."""
    if not isinstance(usage, dict):
        return Tokens()
    into = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    out_of = usage.get("completion_tokens_details") or usage.get("output_tokens_details") or {}
    return Tokens(
        prompt=int(usage.get("prompt_tokens", usage.get("input_tokens", 0)) or 0),
        cached=int(into.get("cached_tokens") or 0),
        completion=int(usage.get("completion_tokens", usage.get("output_tokens", 0)) or 0),
        reasoning=int(out_of.get("reasoning_tokens") or 0),
    )

"""The lines of a batch's input file: read, checked, and turned into requests or into what is wrong with them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from octavo_server.batch.records import BatchError

MAX_CUSTOM_ID_CHARS = 512
MAX_MODEL_CHARS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRules:
    """What a line must keep to."""

    urls: Set[str]
    """Paths that it may ask."""
    max_bytes: int
    max_lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One request of a batch."""

    number: int
    """In the file, from 1."""
    custom_id: str
    url: str
    payload: bytes
    """The JSON body."""
    model: str | None
    """As the body names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that cannot be asked; the others are."""

    number: int
    custom_id: str | None
    message: str


@dataclass(slots=True, kw_only=True)
class Summary:
    """What validation found in a file."""

    num_lines: int = 0
    bad: list[BadLine] = field(default_factory=list)
    model: str | None = None
    errors: list[BatchError] = field(default_factory=list)
    """Why nothing of it may run."""


def read_lines(file: BinaryIO, rules: LineRules) -> Iterator[Line | BadLine]:
    """Every line that is not blank, in order; reads no more than one at a time."""
    number = 0
    while raw := file.readline(rules.max_bytes + 1):
        number += 1
        if len(raw) > rules.max_bytes and not raw.endswith(b"\n"):
            while (rest := file.readline(2**20)) and not rest.endswith(b"\n"):
                pass
            message = f"it has more than the {rules.max_bytes:,} bytes that --max-request-bytes allows"
            yield BadLine(number=number, custom_id=None, message=message)
        elif raw.strip():
            yield read_line(raw, number, rules.urls)


def read_line(raw: bytes, number: int, urls: Set[str]) -> Line | BadLine:
    """One line."""
    custom_id: str | None = None
    try:
        value = json.loads(raw)
        if not isinstance(value, dict):
            raise _Refused("it must be a JSON object")
        custom_id = _custom_id(value)
        url, body = _url(value, urls), _body(value)
    except _Refused as error:
        return BadLine(number=number, custom_id=custom_id, message=str(error))
    except RecursionError:
        return BadLine(number=number, custom_id=None, message="it is nested too deeply")
    except ValueError as error:
        return BadLine(number=number, custom_id=None, message=f"it is not valid JSON: {str(error)[:200]}")
    return Line(
        number=number,
        custom_id=custom_id,
        url=url,
        payload=json.dumps(body).encode(),
        model=_model(body),
    )


def summarize(file: BinaryIO, rules: LineRules) -> Summary:
    """Reads the whole file once. Ids that are there twice, too many lines, or none that can run, let none run."""
    summary, seen = Summary(), {}  # type: Summary, dict[str, int]
    for line in read_lines(file, rules):
        summary.num_lines += 1
        if summary.num_lines > rules.max_lines:
            message = f"the file has more than {rules.max_lines:,} lines; split it, or raise --max-batch-lines"
            summary.errors.append(BatchError(code="too_many_lines", message=message, line=line.number))
            return summary
        if line.custom_id is not None and (first := seen.setdefault(line.custom_id, line.number)) != line.number:
            message = f"custom_id {line.custom_id!r} is already that of line {first}; each must be there once"
            error = BatchError(code="duplicate_custom_id", message=message, line=line.number, param="custom_id")
            summary.errors.append(error)
        if isinstance(line, BadLine):
            summary.bad.append(line)
        else:
            summary.model = summary.model or line.model
    if not summary.num_lines:
        summary.errors.append(BatchError(code="empty_file", message="the file has no lines; each is one request"))
    elif len(summary.bad) == summary.num_lines:
        summary.errors += [
            BatchError(code="invalid_line", message=f"line {line.number}: {line.message}", line=line.number)
            for line in summary.bad
        ]
    return summary


class _Refused(Exception):
    """Ends the reading of one line."""


def _custom_id(value: dict[str, Any]) -> str:
    found = value.get("custom_id")
    if not isinstance(found, str) or not 0 < len(found) <= MAX_CUSTOM_ID_CHARS:
        raise _Refused(f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters")
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise _Refused("custom_id holds a lone surrogate, which is no text") from error
    return found


def _url(value: dict[str, Any], urls: Set[str]) -> str:
    if value.get("method") != "POST":
        raise _Refused('method must be "POST"')
    found = value.get("url")
    if not isinstance(found, str) or found not in urls:
        raise _Refused(f"url must be {' or '.join(sorted(urls))}, got {ascii(found)[:100]}")
    return found


def _model(body: dict[str, Any]) -> str | None:
    """For show in the batch's record; what cannot be a name is left to the endpoint, which refuses it."""
    found = body.get("model")
    # Half a character is not printable, and no record can hold it.
    is_name = isinstance(found, str) and len(found) <= MAX_MODEL_CHARS and found.isprintable()
    return found if is_name else None


def _body(value: dict[str, Any]) -> dict[str, Any]:
    body = value.get("body")
    if not isinstance(body, dict):
        raise _Refused("body must be a JSON object")
    for name in ("stream", "background"):
        if body.get(name):
            raise _Refused(f"body.{name} is not available in a batch; leave it out")
    return body

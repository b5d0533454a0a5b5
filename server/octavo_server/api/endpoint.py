"""What an endpoint is: a path, a handler, and what `/openapi.json` says of them.

Each module of the API declares its endpoints beside their handlers; `routes.py` joins them into the one table from which
the router, the key check, the counts and the description are made. So nothing is served that is not described.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Schema = Mapping[str, Any]
"""A JSON Schema (2020-12), as OpenAPI 3.1 has it."""

JSON = "application/json"
EVENTS = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One status that is no error, and what comes with it."""

    description: str
    content: Mapping[str, Schema]
    """Media type → schema; empty: no body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One method of one path."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """As aiohttp reads it: `{name}` is a segment, `{name:.+}` the rest of the path."""
    handler: Handler
    tag: str
    """The group that it is listed under."""
    summary: str
    """One line for readers of the description."""
    answers: Mapping[int, Answer]
    body: Schema | None = None
    """Of the JSON object to send; None: nothing is sent."""
    examples: tuple[Mapping[str, Any], ...] = ()
    """Bodies that work, one for each way to ask; `model`, where it is there, is replaced by the served name."""
    body_content: Mapping[str, Schema] | None = None
    """Media type → schema, where the body is not JSON."""
    parameters: tuple[Schema, ...] = ()
    """Query and header parameters, and path parameters that are more than text, as OpenAPI writes them."""
    errors: tuple[int, ...] = ()
    """Statuses beside those that follow from the other fields."""
    is_open: bool = False
    """Answers without a key."""
    needs_engine: bool = True
    """503 while the model loads and while the server drains."""
    generates: bool = False
    """Runs the model: its refusals are counted, and a drain waits for it."""


TABLE = web.AppKey("endpoints", Sequence[Endpoint])
"""All endpoints of the application."""


def json_answer(description: str, schema: Schema) -> Mapping[int, Answer]:
    """The usual: 200 with a JSON object."""
    return {200: Answer(description=description, content={JSON: schema})}

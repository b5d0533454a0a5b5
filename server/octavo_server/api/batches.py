"""`/v1/batches`: many requests in a file, answered in the background, with OpenAI's objects."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from aiohttp import web

from octavo_server.api.body import read_json
from octavo_server.api.endpoint import TABLE, Endpoint, json_answer
from octavo_server.api.fields import Fields, checked_text
from octavo_server.api.files import MAX_EXPIRY_S, MIN_EXPIRY_S, service_of
from octavo_server.api.generation import ignored_headers
from octavo_server.api.json_schema import array, integer, obj, one_of, optional, record, text
from octavo_server.api.listing import page, page_parameters, page_schema
from octavo_server.api.state import STATE
from octavo_server.batch.records import BatchRecord, BatchStatus, cancel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo_server.api.endpoint import Schema

BATCHED = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
"""What OpenAI takes in batches, where it is served."""
MAX_PAGE, PAGE = 100, 20
MAX_PAIRS, MAX_KEY_CHARS, MAX_VALUE_CHARS = 16, 64, 512
MIN_WINDOW_S, MAX_WINDOW_S = 60, 30 * 86400
_WINDOW = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


async def create_batch(http: web.Request) -> web.Response:
    """Takes a batch; its lines are looked at in the background."""
    service, state = service_of(http, accepts=True), http.app[STATE]
    fields = Fields(await read_json(http))
    batch = _parse(fields, batched(http.app[TABLE]), service.store.now(), f"batch_{state.new_id()}")
    purpose = service.store.file(batch.input_file_id).purpose
    if purpose != "batch":
        raise fields.refuse("input_file_id", f"the purpose of the input file is {purpose}; it must be batch")
    await asyncio.to_thread(service.store.add_batch, batch)
    service.wake()
    return web.json_response(batch.as_json(), headers=ignored_headers(fields.unread()))


def batched(endpoints: Sequence[Endpoint], also: Sequence[str] = ()) -> tuple[str, ...]:
    """The paths that a batch may ask, and of `also` those that are served."""
    served = {endpoint.path for endpoint in endpoints if endpoint.method == "POST"}
    return tuple(path for path in (*BATCHED, *also) if path in served)


def _parse(fields: Fields, paths: Sequence[str], now: int, batch_id: str) -> BatchRecord:
    endpoint, input_file_id = fields.text("endpoint"), fields.text("input_file_id", max_chars=200)
    if endpoint is None or endpoint not in paths:
        raise fields.fail("endpoint", f"one of {', '.join(paths)}")
    if not input_file_id:
        raise fields.fail("input_file_id", "the id of an uploaded file")
    window = fields.text("completion_window")
    return BatchRecord(
        batch_id=batch_id,
        endpoint=endpoint,
        input_file_id=input_file_id,
        completion_window=window or "",
        created_at=now,
        expires_at=now + _window_s(fields, window),
        output_max_age=_output_max_age(fields),
        metadata=_metadata(fields),
    )


def _window_s(fields: Fields, window: str | None) -> int:
    match = _WINDOW.fullmatch(window or "")
    seconds = int(match[1]) * _UNITS_S[match[2]] if match else 0
    if not MIN_WINDOW_S <= seconds <= MAX_WINDOW_S:
        raise fields.fail("completion_window", "a time from 60s to 30d, such as 24h")
    return seconds


def _output_max_age(fields: Fields) -> int:
    expiry = fields.obj("output_expires_after")
    if expiry is None:
        return MAX_EXPIRY_S
    if expiry.get("anchor") != "created_at":
        raise expiry.fail("anchor", '"created_at"')
    seconds = expiry.integer("seconds", MIN_EXPIRY_S, MAX_EXPIRY_S)
    if seconds is None:
        raise expiry.fail("seconds", f"a whole number from {MIN_EXPIRY_S} to {MAX_EXPIRY_S}")
    fields.ignore(expiry.unread())
    return seconds


def _metadata(fields: Fields) -> dict[str, str] | None:
    given = fields.obj("metadata")
    if given is None:
        return None
    pairs: dict[str, str] = {}
    for name in given.unread():
        key = name.removeprefix("metadata.")
        value = given.text(key, max_chars=MAX_VALUE_CHARS)
        if value is None or len(key) > MAX_KEY_CHARS or len(pairs) == MAX_PAIRS:
            raise fields.refuse(
                "metadata",
                f"metadata must be at most {MAX_PAIRS} strings of {MAX_VALUE_CHARS} characters with names of {MAX_KEY_CHARS}",
            )
        pairs[checked_text(key, "metadata")] = value
    return pairs


async def list_batches(http: web.Request) -> web.Response:
    """Newest first unless asked otherwise."""
    batches = service_of(http).store.batches()
    return web.json_response(page(http, [batch.as_json() for batch in batches], max_limit=MAX_PAGE, limit=PAGE))


async def get_batch(http: web.Request) -> web.Response:
    """How far one has come."""
    return web.json_response(service_of(http).store.batch(http.match_info["id"]).as_json())


async def cancel_batch(http: web.Request) -> web.Response:
    """Lets nothing more of it run; what is answered is kept."""
    service = service_of(http)
    store = service.store
    batch = await asyncio.to_thread(
        store.update_batch, http.match_info["id"], lambda current: cancel(current, store.now())
    )
    service.wake()
    return web.json_response(batch.as_json())


_TIMES = [f"{status}_at" for status in BatchStatus if status is not BatchStatus.VALIDATING]
_BATCH = record(
    {
        "id": text(),
        "object": one_of("batch"),
        "endpoint": text(),
        "model": optional(text()),
        "errors": optional(
            record(
                {
                    "object": one_of("list"),
                    "data": array(
                        record(
                            {
                                "code": text(),
                                "message": text(),
                                "line": optional(integer(1)),
                                "param": optional(text()),
                            }
                        )
                    ),
                }
            )
        ),
        "input_file_id": text(),
        "completion_window": text(),
        "status": one_of(*(status.value for status in BatchStatus)),
        "output_file_id": optional(text()),
        "error_file_id": optional(text()),
        "created_at": integer(0),
        "expires_at": integer(0),
        **dict.fromkeys(_TIMES, optional(integer(0))),
        "request_counts": record({"total": integer(0), "completed": integer(0), "failed": integer(0)}),
        "usage": obj({"input_tokens": integer(0), "output_tokens": integer(0), "total_tokens": integer(0)}),
        "metadata": optional(obj({}, additionalProperties=text())),
    }
)
_CREATE = obj(
    {
        "input_file_id": text(minLength=1, maxLength=200),
        "endpoint": one_of(*BATCHED),
        "completion_window": text(pattern=r"^[1-9][0-9]{0,6}[smhd]$"),
        "metadata": optional(obj({}, additionalProperties=text(maxLength=MAX_VALUE_CHARS), maxProperties=MAX_PAIRS)),
        "output_expires_after": optional(
            obj(
                {"anchor": one_of("created_at"), "seconds": integer(MIN_EXPIRY_S, MAX_EXPIRY_S)},
                required=("anchor", "seconds"),
            )
        ),
    },
    required=("input_file_id", "endpoint", "completion_window"),
)

_ID: Schema = {"name": "id", "in": "path", "required": True, "schema": text(pattern="^batch_[0-9a-z]{1,100}$")}

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/batches",
        handler=create_batch,
        tag="batch",
        summary="Answers the requests of a file in the background",
        body=_CREATE,
        answers=json_answer("The batch.", _BATCH),
        errors=(404, 503, 507),
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/v1/batches",
        handler=list_batches,
        tag="batch",
        summary="The batches that are known",
        answers=json_answer("A page of them.", page_schema(_BATCH)),
        parameters=page_parameters(MAX_PAGE),
        errors=(404,),
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path="/v1/batches/{id}",
        handler=get_batch,
        tag="batch",
        parameters=(_ID,),
        summary="How far a batch has come",
        answers=json_answer("The batch.", _BATCH),
        errors=(404,),
        needs_engine=False,
    ),
    Endpoint(
        method="POST",
        path="/v1/batches/{id}/cancel",
        handler=cancel_batch,
        tag="batch",
        parameters=(_ID,),
        summary="Lets nothing more of a batch run",
        answers=json_answer("The batch.", _BATCH),
        errors=(404, 409, 507),
        needs_engine=False,
    ),
)

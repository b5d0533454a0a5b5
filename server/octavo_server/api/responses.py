"""`/v1/responses`: OpenAI's newer way to ask, with answers that can be asked for again and gone on from."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from octavo_server.api.body import read_json
from octavo_server.api.conversation import PreparedChat, prepare, threads_for
from octavo_server.api.endpoint import Endpoint, json_answer
from octavo_server.api.error_response import ApiError
from octavo_server.api.generation import ignored_headers, make_requests
from octavo_server.api.responses_input import messages_of
from octavo_server.api.responses_request import ResponsesRequest, parse_responses
from octavo_server.api.responses_run import ResponseRun
from octavo_server.api.responses_schemas import (
    DELETED,
    INPUT_ITEMS,
    ITEM_PARAMETERS,
    RESPONSE,
    RESPONSE_ANSWERS,
    RESPONSE_BODY,
    RESPONSE_EXAMPLES,
)
from octavo_server.api.responses_store import StoredResponse
from octavo_server.api.responses_writer import ResponseWriter
from octavo_server.api.sse import EventStream
from octavo_server.api.state import STATE, ServerState
from octavo_server.engine.engine import FAILED_MESSAGE
from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo_server.api.conversation import Conversation
    from octavo_server.api.messages import Message
    from octavo_server.engine.request import Request
    from octavo_server.engine.request_stream import RequestStream
    from octavo_server.engine.served_model import ServedModel

logger = logging.getLogger(__name__)

MAX_PAGE = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request that has been read, rendered and checked."""

    asked: ResponsesRequest
    messages: tuple[Message, ...]
    """The whole conversation, without instructions."""
    prepared: PreparedChat
    request: Request
    headers: dict[str, str]


async def create_response(http: web.Request) -> web.StreamResponse:
    """Answers, streams, or begins to work in the background."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    body = await read_json(http)
    asked = await _ask(state, loaded, parse_responses(body, loaded.defaults, state.responses.find_item))
    short = asked.prepared.form.has_short_ids
    writer = ResponseWriter(
        _new_response(state, asked.asked),
        new_id=state.new_stored_id,
        call_id=lambda: state.new_id()[:9] if short else f"call_{state.new_id()}",
        has_logprobs=asked.request.params.logprobs is not None,
    )
    run = ResponseRun(state, asked.prepared, asked.request, loaded.tokenizer, writer)
    stream = state.engine.submit([asked.request])
    if asked.asked.background:
        return web.json_response(_begin_background(state, asked, run, stream), headers=asked.headers)
    try:
        if asked.asked.options.stream:
            return await _stream(http, asked, run, stream)
        run.writer.begin()
        async for _ in run.events(stream):
            pass
        _keep(state, asked, run)
        return web.json_response(writer.response, headers=asked.headers)
    finally:
        state.engine.abort(stream)


async def _ask(state: ServerState, loaded: ServedModel, asked: ResponsesRequest) -> _Asked:
    state.check_model(asked.options.model)
    messages = asked.conversation.messages
    if asked.previous_response_id is not None:
        messages = _stored(state, asked.previous_response_id, param="previous_response_id").messages + messages
    instructions = asked.instructions
    first: tuple[Message, ...] = () if instructions is None else ({"role": "system", "content": instructions},)
    conversation = replace(asked.conversation, messages=first + messages)
    prepared = await asyncio.get_running_loop().run_in_executor(
        threads_for(loaded, conversation), _prepare, state, loaded, asked, conversation, len(first)
    )
    ignored = (*asked.options.ignored, *prepared.ignored)
    options = replace(asked.options, params=prepared.params, ignored=ignored)
    [request] = await make_requests(
        state, options, [prepared.prompt_token_ids], options.params, shown_special_ids=prepared.shown_special_ids
    )
    return _Asked(
        asked=asked,
        messages=messages,
        prepared=prepared,
        request=request,
        headers=ignored_headers(options.ignored),
    )


def _prepare(
    state: ServerState, loaded: ServedModel, asked: ResponsesRequest, conversation: Conversation, num_fixed: int
) -> PreparedChat:
    """With `truncation: auto`, without as many of the oldest messages as it takes to fit; the last always stays."""
    if not asked.truncates:
        return prepare(loaded, state.formats, conversation, asked.options.params)
    limit = loaded.limits.max_sequence_tokens - (asked.options.params.max_tokens or 1)
    fixed, others = conversation.messages[:num_fixed], conversation.messages[num_fixed:]

    def without(num_dropped: int) -> PreparedChat:
        shortened = replace(conversation, messages=fixed + others[num_dropped:])
        return prepare(loaded, state.formats, shortened, asked.options.params)

    def fits(num_dropped: int) -> bool:
        try:
            return len(without(num_dropped).prompt_token_ids) <= limit
        except InvalidRequestError:
            # Too long even to encode, or an order of messages that the template does not take.
            return False

    low, high = 0, len(others) - 1
    if fits(0):
        high = 0
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    # Where not even the last alone fits, it is this that says so.
    return without(low)


def _new_response(state: ServerState, asked: ResponsesRequest) -> dict[str, Any]:
    return {
        "id": f"resp_{state.new_stored_id()}",
        "object": "response",
        "created_at": int(time.time()),
        "error": None,
        "incomplete_details": None,
        "model": asked.options.model,
        **asked.echoed,
    }


async def _stream(http: web.Request, asked: _Asked, run: ResponseRun, stream: RequestStream) -> web.StreamResponse:
    events = EventStream(http, asked.headers)
    await events.open()
    await events.send_named(run.writer.begin())
    try:
        async for told in run.events(stream):
            await events.send_named(told)
        _keep(http.app[STATE], asked, run)
    except ConnectionResetError:
        raise
    except ApiError as error:
        await events.send_named(run.fail(error))
    except Exception:
        # The status is sent; what is left to say it with is an event.
        logger.exception("a stream failed", extra={"request_id": run.writer.response["id"]})
        await events.send_named(run.fail(ApiError(500, FAILED_MESSAGE)))
    return await events.finish()


def _keep(state: ServerState, asked: _Asked, run: ResponseRun) -> None:
    if asked.asked.store:
        state.responses.put(_to_store(state, asked, run))


def _to_store(state: ServerState, asked: _Asked, run: ResponseRun) -> StoredResponse:
    response = run.writer.response
    return StoredResponse(
        response=response,
        input_items=[_with_id(item, state) for item in asked.asked.input_items],
        messages=asked.messages + messages_of(response["output"], "output"),
    )


def _with_id(item: Any, state: ServerState) -> dict[str, Any]:
    """As `/input_items` lists it: content in parts, and a name to refer to."""
    content = item.get("content")
    if item["type"] == "message" and isinstance(content, str):
        kind = "output_text" if item.get("role") == "assistant" else "input_text"
        item = {**item, "content": [{"type": kind, "text": content}]}
    return {"id": f"msg_{state.new_stored_id()}", "status": "completed", **item}


def _begin_background(state: ServerState, asked: _Asked, run: ResponseRun, stream: RequestStream) -> dict[str, Any]:
    """Stores the response, lets a task work on it, and says it as it is now."""
    response = run.writer.response
    run.writer.begin()
    response["status"] = "queued"
    stored = _to_store(state, asked, run)
    # A drain waits for it as for an answer that is being written.
    state.num_active += 1
    stored.task = asyncio.create_task(_work(state, asked, run, stream, stored))
    state.responses.put(stored)
    return {**response}


async def _work(
    state: ServerState, asked: _Asked, run: ResponseRun, stream: RequestStream, stored: StoredResponse
) -> None:
    try:
        async for _ in run.events(stream):
            if stored.response["status"] == "queued":
                stored.response["status"] = "in_progress"
    except asyncio.CancelledError:
        run.cancel()
    except ApiError as error:
        run.fail(error)
    except Exception:
        logger.exception("a response failed in the background", extra={"request_id": stored.response["id"]})
        run.fail(ApiError(500, FAILED_MESSAGE))
    finally:
        state.engine.abort(stream)
        state.num_active -= 1
    stored.messages = asked.messages + messages_of(stored.response["output"], "output")
    stored.task = None
    if state.responses.get(stored.response["id"]) is stored:
        state.responses.put(stored)


async def get_response(http: web.Request) -> web.Response:
    """A stored response as it is now."""
    if http.query.get("stream", "false") == "true":
        raise ApiError(
            400, "a stored response cannot be streamed; leave out stream", code="invalid_value", param="stream"
        )
    return web.json_response(_stored(http.app[STATE], http.match_info["id"]).response)


async def cancel_response(http: web.Request) -> web.Response:
    """Ends what is being worked on in the background; one that has ended is said as it is."""
    stored = _stored(http.app[STATE], http.match_info["id"])
    if not stored.response["background"]:
        raise ApiError(
            400,
            "only a response with background: true can be cancelled; to end another, close its connection",
            code="invalid_value",
            param="id",
        )
    await _end_background(stored)
    return web.json_response(stored.response)


async def delete_response(http: web.Request) -> web.Response:
    """Forgets a response."""
    state, name = http.app[STATE], http.match_info["id"]
    stored = _stored(state, name)
    await _end_background(stored)
    state.responses.remove(name)
    return web.json_response({"id": name, "object": "response", "deleted": True})


async def list_input_items(http: web.Request) -> web.Response:
    """What a stored response was asked with, a page of it."""
    items = list(_stored(http.app[STATE], http.match_info["id"]).input_items)
    limit, order, after = _page(http)
    if order == "desc":
        items.reverse()
    if after is not None:
        names = [item["id"] for item in items]
        if after not in names:
            raise ApiError(
                400, f"after names {after[:100]!r}, which is no item of it", code="invalid_value", param="after"
            )
        items = items[names.index(after) + 1 :]
    page = items[:limit]
    return web.json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > limit,
        }
    )


async def end_background_responses(app: web.Application) -> None:
    """Cleanup: nothing works on after the server."""
    for stored in app[STATE].responses.running():
        await _end_background(stored)


def _page(http: web.Request) -> tuple[int, str, str | None]:
    limit, order = http.query.get("limit", "20"), http.query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MAX_PAGE):
        raise ApiError(400, f"limit is {limit[:20]!r}, it must be 1 to {MAX_PAGE}", code="invalid_value", param="limit")
    if order not in ("asc", "desc"):
        raise ApiError(400, f"order is {order[:20]!r}, it must be asc or desc", code="invalid_value", param="order")
    return int(limit), order, http.query.get("after")


async def _end_background(stored: StoredResponse) -> None:
    task = stored.task
    if task is not None and not task.done():
        task.cancel()
        await asyncio.wait([task])


def _stored(state: ServerState, name: str, *, param: str = "id") -> StoredResponse:
    found = state.responses.get(name)
    if found is None:
        raise ApiError(
            404,
            f"there is no response {name[:100]!r} here: it was never stored, was dropped for newer ones or for its age, "
            f"or was asked for from another replica or before a restart",
            code="response_not_found",
            param=param,
        )
    return found


_ONE = "/v1/responses/{id}"
ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/responses",
        handler=create_response,
        tag="generation",
        summary="Answers a conversation, with an answer that can be asked for again",
        body=RESPONSE_BODY,
        examples=RESPONSE_EXAMPLES,
        answers=RESPONSE_ANSWERS,
        errors=(404,),
        generates=True,
    ),
    Endpoint(
        method="GET",
        path=_ONE,
        handler=get_response,
        tag="generation",
        summary="A stored response",
        answers=json_answer("As it is now", RESPONSE),
        errors=(400, 404),
        needs_engine=False,
    ),
    Endpoint(
        method="DELETE",
        path=_ONE,
        handler=delete_response,
        tag="generation",
        summary="Forgets a stored response",
        answers=json_answer("It is forgotten", DELETED),
        errors=(404,),
        needs_engine=False,
    ),
    Endpoint(
        method="POST",
        path=f"{_ONE}/cancel",
        handler=cancel_response,
        tag="generation",
        summary="Ends a response that is being worked on in the background",
        answers=json_answer("As it is now", RESPONSE),
        errors=(400, 404),
        needs_engine=False,
    ),
    Endpoint(
        method="GET",
        path=f"{_ONE}/input_items",
        handler=list_input_items,
        tag="generation",
        summary="What a stored response was asked with",
        parameters=ITEM_PARAMETERS,
        answers=json_answer("A page of items", INPUT_ITEMS),
        errors=(400, 404),
        needs_engine=False,
    ),
)

"""`POST /v1/chat/completions`."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from octavo_server.api.body import read_parsed
from octavo_server.api.chat_request import parse_chat
from octavo_server.api.chat_shape import ChatShape
from octavo_server.api.conversation import prepare, threads_for
from octavo_server.api.endpoint import Endpoint
from octavo_server.api.generation import answer, generation_of, make_requests, num_kept_tokens
from octavo_server.api.generation_schemas import CHAT_ANSWERS, CHAT_BODY, CHAT_EXAMPLE
from octavo_server.api.state import STATE

if TYPE_CHECKING:
    from aiohttp import web


async def chat_completions(http: web.Request) -> web.StreamResponse:
    """Renders the messages with the model's template and generates."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    chat = await read_parsed(http, lambda body: parse_chat(body, loaded.defaults))
    state.check_model(chat.options.model)
    keep = num_kept_tokens(chat.options, loaded)
    prepared = await asyncio.get_running_loop().run_in_executor(
        threads_for(loaded, chat.conversation),
        partial(prepare, loaded, state.formats, chat.conversation, chat.options.params, keep=keep),
    )
    options = replace(chat.options, params=prepared.params, ignored=(*chat.options.ignored, *prepared.ignored))
    requests = await make_requests(
        state, options, [prepared.prompt_token_ids], options.params, shown_special_ids=prepared.shown_special_ids
    )
    return await answer(
        http,
        generation_of(
            http,
            options=options,
            requests=requests,
            shape=ChatShape(chat, prepared, loaded.tokenizer, new_id=state.new_id),
            response_id=f"chatcmpl-{state.new_id()}",
        ),
    )


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/chat/completions",
        handler=chat_completions,
        tag="generation",
        summary="Answers a conversation",
        body=CHAT_BODY,
        examples=(CHAT_EXAMPLE,),
        answers=CHAT_ANSWERS,
        generates=True,
    ),
)

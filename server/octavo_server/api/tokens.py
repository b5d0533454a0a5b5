"""`POST /tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

import asyncio

from aiohttp import web

from octavo_server.api.body import read_json
from octavo_server.api.chat_request import parse_chat
from octavo_server.api.conversation import prepare
from octavo_server.api.endpoint import Endpoint, json_answer
from octavo_server.api.fields import Fields, wholes
from octavo_server.api.generation import ignored_headers
from octavo_server.api.generation_schemas import CHAT_BODY, CHAT_EXAMPLE
from octavo_server.api.json_schema import MODEL, TOKEN_ID, any_of, array, boolean, integer, obj, optional, record, text
from octavo_server.api.state import STATE

_MAX_TOKENS = 2**20


async def tokenize(http: web.Request) -> web.Response:
    """Token ids of a prompt, or of chat messages as the template renders them."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    body = await read_json(http)
    fields = Fields(body)
    if fields.get("messages") is not None:
        chat = parse_chat(
            {**body, "model": state.model_names[0] if body.get("model") is None else body["model"]}, loaded.defaults
        )
        state.check_model(chat.options.model)
        prepared = await asyncio.to_thread(prepare, loaded, state.formats, chat.conversation, chat.options.params)
        ids, ignored = prepared.prompt_token_ids, (*chat.options.ignored, *prepared.ignored)
    else:
        state.model_name(fields.text("model"))
        prompt = fields.text("prompt")
        if prompt is None:
            raise fields.fail("prompt", "a string (or send messages)")
        add_special_tokens = fields.boolean("add_special_tokens", default=True)
        ignored = fields.unread()
        ids = await asyncio.to_thread(loaded.tokenizer.encode, prompt, add_special_tokens=add_special_tokens)
    answer = {"tokens": ids, "count": len(ids), "max_model_len": loaded.limits.max_sequence_tokens}
    return web.json_response(answer, headers=ignored_headers(ignored))


async def detokenize(http: web.Request) -> web.Response:
    """The text of token ids."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    fields = Fields(await read_json(http))
    state.model_name(fields.text("model"))
    given = fields.array("tokens", max_items=_MAX_TOKENS)
    ids = None if given is None else wholes(given)
    size = loaded.limits.vocab_size
    if ids is None or not all(0 <= item < size for item in ids):
        raise fields.fail("tokens", f"an array of token ids from 0 to {size - 1}")
    text = await asyncio.to_thread(loaded.tokenizer.decode, ids, skip_special_tokens=False)
    return web.json_response({"prompt": text}, headers=ignored_headers(fields.unread()))


_PROMPT_BODY = obj(
    {
        "model": optional(MODEL),
        "prompt": text(),
        "add_special_tokens": optional(boolean()),
        "messages": {"type": "null"},
    },
    required=("prompt",),
)
_CHAT_BODY = {
    **CHAT_BODY,
    "properties": {**CHAT_BODY["properties"], "model": optional(MODEL)},
    "required": ["messages"],
}

ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/tokenize",
        handler=tokenize,
        tag="tokens",
        summary="Token ids of a prompt, or of messages as the chat template renders them",
        body=any_of(_PROMPT_BODY, _CHAT_BODY),
        examples=({"prompt": "What is a pod?"}, {"messages": CHAT_EXAMPLE["messages"]}),
        answers=json_answer(
            "The token ids.",
            record({"tokens": array(TOKEN_ID), "count": integer(0), "max_model_len": integer(1)}),
        ),
        errors=(404,),
    ),
    Endpoint(
        method="POST",
        path="/detokenize",
        handler=detokenize,
        tag="tokens",
        summary="The text of token ids",
        body=obj(
            {"model": optional(MODEL), "tokens": array(TOKEN_ID, high=_MAX_TOKENS)},
            required=("tokens",),
        ),
        examples=({"tokens": [40, 41, 42]},),
        answers=json_answer("The text.", record({"prompt": text()})),
        errors=(404,),
    ),
)

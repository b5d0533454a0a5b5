"""`POST /tokenize` and `/detokenize`, in vLLM's shapes."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from octavo_server.api.body import read_parsed
from octavo_server.api.chat_request import ChatRequest, parse_chat
from octavo_server.api.conversation import prepare
from octavo_server.api.endpoint import JSON, Endpoint, json_answer
from octavo_server.api.fields import Fields, wholes
from octavo_server.api.generation import ignored_headers
from octavo_server.api.generation_schemas import CHAT_BODY, CHAT_EXAMPLE
from octavo_server.api.json_schema import MODEL, TOKEN_ID, any_of, array, boolean, integer, obj, optional, record, text
from octavo_server.api.prompts import encode_bounded
from octavo_server.api.state import STATE
from octavo_server.engine.admission import check_token_ids

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from octavo_server.models.config import GenerationDefaults

_MAX_TOKENS = 2**20
"""Of one request: far beyond any context, and some 300 MB while they are made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """Body of `/tokenize` with a prompt."""

    model: str
    prompt: str
    add_special_tokens: bool
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeRequest:
    """Body of `/detokenize`."""

    model: str
    tokens: tuple[int, ...]
    ignored: tuple[str, ...]


async def tokenize(http: web.Request) -> web.Response:
    """Token ids of a prompt, or of chat messages as the template renders them."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    asked = await read_parsed(http, lambda body: parse_tokenize(body, loaded.defaults, state.model_names[0]))
    if isinstance(asked, ChatRequest):
        state.check_model(asked.options.model)
        check_token_ids(asked.options.params, loaded.limits)
        prepared = await asyncio.to_thread(prepare, loaded, state.formats, asked.conversation, asked.options.params)
        ids, ignored = prepared.prompt_token_ids, (*asked.options.ignored, *prepared.ignored)
    else:
        state.check_model(asked.model)
        ids = await asyncio.to_thread(
            encode_bounded,
            loaded.tokenizer,
            asked.prompt,
            _MAX_TOKENS,
            add_special_tokens=asked.add_special_tokens,
            name="prompt",
            remedy=f"at most {_MAX_TOKENS:,} are made at once; send less",
        )
        ignored = asked.ignored
    answer = {"tokens": ids, "count": len(ids), "max_model_len": loaded.limits.max_sequence_tokens}
    return _json(answer, ignored)


async def detokenize(http: web.Request) -> web.Response:
    """The text of token ids."""
    state = http.app[STATE]
    loaded = state.ready_engine()
    asked = await read_parsed(http, lambda body: parse_detokenize(body, loaded.limits.vocab_size, state.model_names[0]))
    state.check_model(asked.model)
    text = await asyncio.to_thread(loaded.tokenizer.decode, asked.tokens, skip_special_tokens=False)
    return _json({"prompt": text}, asked.ignored)


def parse_tokenize(
    body: Mapping[str, Any], defaults: GenerationDefaults, default_model: str
) -> ChatRequest | TokenizeRequest:
    """Checks and types a body with messages or a prompt.

    Raises:
        InvalidRequestError: naming the field.
    """
    fields = Fields(body)
    if fields.get("messages") is not None:
        return parse_chat({**body, "model": default_model if body.get("model") is None else body["model"]}, defaults)
    model, prompt = fields.text("model"), fields.text("prompt")
    if prompt is None:
        raise fields.fail("prompt", "a string (or send messages)")
    return TokenizeRequest(
        model=default_model if model is None else model,
        prompt=prompt,
        add_special_tokens=fields.boolean("add_special_tokens", default=True),
        ignored=fields.unread(),
    )


def parse_detokenize(body: Mapping[str, Any], vocab_size: int, default_model: str) -> DetokenizeRequest:
    """Checks and types a body with token ids.

    Raises:
        InvalidRequestError: naming the field.
    """
    fields = Fields(body)
    model, given = fields.text("model"), fields.array("tokens", max_items=_MAX_TOKENS)
    ids = None if given is None else wholes(given)
    if ids is None or not all(0 <= item < vocab_size for item in ids):
        raise fields.fail("tokens", f"an array of token ids from 0 to {vocab_size - 1}")
    return DetokenizeRequest(model=default_model if model is None else model, tokens=ids, ignored=fields.unread())


def _json(answer: Mapping[str, Any], ignored: Iterable[str]) -> web.Response:
    body = msgspec.json.encode(answer)
    return web.Response(body=body, content_type=JSON, charset="utf-8", headers=ignored_headers(ignored))


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

"""`POST /v1/embeddings`: the hidden state of a text's last token, of any decoder, in OpenAI's shape with vLLM's fields."""

from __future__ import annotations

import asyncio
import base64
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from octavo_server.api.body import read_parsed
from octavo_server.api.chat_request import parse_rendering
from octavo_server.api.conversation import Conversation, render
from octavo_server.api.endpoint import JSON, Endpoint
from octavo_server.api.fields import Fields
from octavo_server.api.generation import ignored_headers
from octavo_server.api.pooling import MAX_INPUTS, PoolingOptions, encode, make_requests, parse_options, pool
from octavo_server.api.pooling_schemas import (
    EMBEDDING_ANSWERS,
    EMBEDDING_BODY,
    EMBEDDING_EXAMPLES,
    EMBEDDING_NOT_SERVED,
)
from octavo_server.api.prompts import encode_prompt
from octavo_server.api.schemas import read_prompts, refuse_not_served
from octavo_server.api.state import STATE
from octavo_server.engine.vectors import PoolingParams, check_dimensions, make_vector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo_server.engine.served_model import ServedModel
    from octavo_server.engine.vectors import Vector

ENCODED_AT_ONCE = 32
"""Vectors that become text before other clients have their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """Body of `/v1/embeddings`: either inputs or a chat."""

    options: PoolingOptions
    params: PoolingParams
    inputs: tuple[str | tuple[int, ...], ...]
    conversation: Conversation | None
    as_base64: bool
    ignored: tuple[str, ...]


async def embeddings(http: web.Request) -> web.StreamResponse:
    """Embeds each input."""
    state = http.app[STATE]
    model = state.ready_engine()
    asked = await read_parsed(http, parse_embedding)
    state.check_model(asked.options.model)
    check_dimensions(asked.params, model.vectors)
    prompts = await asyncio.to_thread(_encode, model, asked)
    pooled = await pool(state, make_requests(state, asked.options, prompts, lambda n: _name(asked, n)))
    head = {"id": f"embd-{state.new_id()}", "object": "list", "created": int(time.time()), "model": asked.options.model}
    body = await _body(head, pooled.states, pooled.usage, asked)
    return web.Response(body=body, content_type=JSON, headers=ignored_headers(asked.ignored))


def parse_embedding(body: Mapping[str, Any]) -> EmbeddingRequest:
    """Checks and types an embeddings body.

    Raises:
        InvalidRequestError: naming the field.
    """
    fields = Fields(body)
    refuse_not_served(fields, EMBEDDING_NOT_SERVED)
    model = fields.text("model", max_chars=1024)
    if not model:
        raise fields.refuse("model", "model is missing; GET /v1/models lists the names")
    has_messages = fields.get("messages") is not None
    if has_messages == (fields.get("input") is not None):
        raise fields.refuse("input", "send either input or messages")
    conversation = None
    if has_messages:
        # As vLLM: a text to embed does not end with the beginning of an answer.
        conversation = parse_rendering(fields, add_generation_prompt=False)
        if fields.boolean("add_special_tokens"):
            raise fields.refuse(
                "add_special_tokens", "add_special_tokens is for input; a chat template writes its own, leave it out"
            )
    encoding = fields.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise fields.fail("encoding_format", '"float" or "base64"')
    use_activation, normalize = (fields.boolean(name, default=True) for name in ("use_activation", "normalize"))
    params = PoolingParams(
        dimensions=fields.integer("dimensions", 1, 2**31 - 1), use_activation=use_activation, normalize=normalize
    )
    return EmbeddingRequest(
        options=parse_options(fields, model),
        params=params,
        inputs=() if has_messages else read_prompts(fields, "input", MAX_INPUTS),
        conversation=conversation,
        as_base64=encoding == "base64",
        ignored=fields.unread(),
    )


def _encode(model: ServedModel, asked: EmbeddingRequest) -> list[list[int]]:
    if asked.conversation is not None:
        text = render(model.tokenizer, asked.conversation, asked.conversation.template_kwargs)
        return [encode_prompt(model, text, add_special_tokens=False, name="messages")]
    return [
        encode(model, item, asked.options, _name(asked, number)) if isinstance(item, str) else list(item)
        for number, item in enumerate(asked.inputs)
    ]


def _name(asked: EmbeddingRequest, number: int) -> str:
    """What an error calls an input."""
    if asked.conversation is not None:
        return "messages"
    return "input" if len(asked.inputs) == 1 else f"input[{number}]"


async def _body(
    head: Mapping[str, Any], states: list[bytes], usage: Mapping[str, Any], asked: EmbeddingRequest
) -> bytes:
    """The answer's JSON, made in pieces: of a long list it is many megabytes, and streams must not wait for it."""
    parts = []
    for number, state in enumerate(states):
        vector = make_vector(state, asked.params)
        item = {"object": "embedding", "index": number, "embedding": _shown(vector, as_base64=asked.as_base64)}
        parts.append(msgspec.json.encode(item))
        if number % ENCODED_AT_ONCE == ENCODED_AT_ONCE - 1:
            await asyncio.sleep(0)
    around = msgspec.json.encode(head), msgspec.json.encode(usage)
    return around[0][:-1] + b',"data":[' + b",".join(parts) + b'],"usage":' + around[1] + b"}"


def _shown(vector: Vector, *, as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers


ENDPOINTS = (
    Endpoint(
        method="POST",
        path="/v1/embeddings",
        handler=embeddings,
        tag="vectors",
        summary="Embeds texts: the hidden state of the last token, normalised",
        body=EMBEDDING_BODY,
        examples=EMBEDDING_EXAMPLES,
        answers=EMBEDDING_ANSWERS,
        generates=True,
    ),
)

"""How alike texts are: `/v1/score` in vLLM's shapes, `/v1/rerank` in Jina's and Cohere's.

A score is the cosine of the two texts' embeddings, as vLLM's is for a model that embeds. Each text is embedded once,
however many others it is compared with.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import web

from octavo_server.api.body import read_parsed
from octavo_server.api.endpoint import Endpoint
from octavo_server.api.fields import Fields, checked_text
from octavo_server.api.generation import ignored_headers
from octavo_server.api.pooling import MAX_INPUTS, PoolingOptions, encode, make_requests, parse_options, pool
from octavo_server.api.pooling_schemas import (
    PAIRS,
    RERANK_ANSWERS,
    RERANK_BODY,
    RERANK_EXAMPLES,
    RERANK_NOT_SERVED,
    SCORE_ANSWERS,
    SCORE_BODY,
    SCORE_EXAMPLES,
    SCORE_NOT_SERVED,
)
from octavo_server.api.schemas import refuse_not_served
from octavo_server.api.state import STATE
from octavo_server.engine.vectors import PoolingParams, check_pairs, make_vector, scores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo_server.api.state import ServerState
    from octavo_server.engine.vectors import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text and what an error calls it."""

    name: str
    value: str
    max_tokens: int | None = None
    """Of its beginning, the tokens to use; None: all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRequest:
    """Body of `/v1/score`: one text against each, or as many pairs."""

    options: PoolingOptions
    first: tuple[Text, ...]
    second: tuple[Text, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankRequest:
    """Body of `/v1/rerank`."""

    options: PoolingOptions
    query: Text
    documents: tuple[Text, ...]
    top_n: int
    return_documents: bool
    ignored: tuple[str, ...]


async def score(http: web.Request) -> web.StreamResponse:
    """Scores pairs of texts."""
    state = http.app[STATE]
    state.ready_engine()
    asked = await read_parsed(http, lambda body: parse_score(body, state.model_names[0]))
    vectors, usage = await _embed(state, asked.options, [*asked.first, *asked.second])
    found = scores(vectors[: len(asked.first)], vectors[len(asked.first) :])
    data = [{"index": number, "object": "score", "score": value} for number, value in enumerate(found)]
    answer = {
        "id": f"score-{state.new_id()}",
        "object": "list",
        "created": int(time.time()),
        "model": asked.options.model,
        "data": data,
        "usage": usage,
    }
    return web.json_response(answer, headers=ignored_headers(asked.ignored))


async def rerank(http: web.Request) -> web.StreamResponse:
    """Sorts documents by how alike they are to a query."""
    state = http.app[STATE]
    state.ready_engine()
    asked = await read_parsed(http, lambda body: parse_rerank(body, state.model_names[0]))
    vectors, usage = await _embed(state, asked.options, [asked.query, *asked.documents])
    found = scores(vectors[:1], vectors[1:])
    # Equal ones stay in the client's order.
    ranking = sorted(range(len(found)), key=lambda number: -found[number])[: asked.top_n or None]
    answer = {
        "id": f"rerank-{state.new_id()}",
        "model": asked.options.model,
        "results": [_result(asked, number, found[number]) for number in ranking],
        "usage": usage,
    }
    return web.json_response(answer, headers=ignored_headers(asked.ignored))


def parse_score(body: Mapping[str, Any], default_model: str) -> ScoreRequest:
    """Checks and types a score body.

    Raises:
        InvalidRequestError: naming the field.
    """
    fields = Fields(body)
    refuse_not_served(fields, SCORE_NOT_SERVED)
    given = [pair for pair in PAIRS if any(fields.get(name) is not None for name in pair)]
    if len(given) != 1:
        spellings = ", ".join(f"{first} and {second}" for first, second in PAIRS)
        raise fields.refuse("text_1", f"send the two sides to compare as one of these pairs: {spellings}")
    (first_name, second_name) = given[0]
    first, second = _texts(fields, first_name), _texts(fields, second_name)
    check_pairs(len(first), len(second), names=given[0])
    return ScoreRequest(
        options=parse_options(fields, _model(fields, default_model)),
        first=first,
        second=second,
        ignored=fields.unread(),
    )


def parse_rerank(body: Mapping[str, Any], default_model: str) -> RerankRequest:
    """Checks and types a rerank body.

    Raises:
        InvalidRequestError: naming the field.
    """
    fields = Fields(body)
    refuse_not_served(fields, RERANK_NOT_SERVED)
    query = fields.text("query")
    if query is None:
        raise fields.fail("query", "a string")
    most = fields.integer("max_tokens_per_doc", 1, 2**31 - 1)
    documents = fields.array("documents", max_items=MAX_INPUTS)
    if not documents:
        raise fields.fail("documents", f"an array of 1 to {MAX_INPUTS} strings or objects with a text")
    return RerankRequest(
        options=parse_options(fields, _model(fields, default_model)),
        query=Text(name="query", value=query),
        documents=tuple(_document(fields, item, number, most) for number, item in enumerate(documents)),
        top_n=fields.integer("top_n", 0, 2**31 - 1) or 0,
        return_documents=fields.boolean("return_documents", default=True),
        ignored=fields.unread(),
    )


def _model(fields: Fields, default: str) -> str:
    given = fields.text("model", max_chars=1024)
    return default if given is None else given


def _texts(fields: Fields, name: str) -> tuple[Text, ...]:
    value = fields.get(name)
    if isinstance(value, str):
        return (Text(name=name, value=checked_text(value, name)),)
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_INPUTS or not all(isinstance(v, str) for v in value):
        raise fields.fail(name, f"a string or an array of 1 to {MAX_INPUTS} strings")
    return tuple(
        Text(name=f"{name}[{number}]", value=checked_text(item, f"{name}[{number}]"))
        for number, item in enumerate(value)
    )


def _document(fields: Fields, item: Any, number: int, max_tokens: int | None) -> Text:
    name = f"documents[{number}]"
    if not isinstance(item, str):
        part = Fields(item if isinstance(item, dict) else {}, f"{name}.")
        found = part.text("text")
        if found is None:
            raise part.refuse("text", f"{name} must be a string or an object with a text")
        fields.ignore(part.unread())
        item = found
    return Text(name=name, value=checked_text(item, name), max_tokens=max_tokens)


async def _embed(state: ServerState, options: PoolingOptions, texts: list[Text]) -> tuple[list[Vector], dict[str, Any]]:
    """The texts' vectors, each of length 1, and the usage."""
    state.check_model(options.model)
    model = state.ready_engine()

    def encode_all() -> list[list[int]]:
        return [encode(model, text.value, options, text.name)[: text.max_tokens] for text in texts]

    prompts = await asyncio.to_thread(encode_all)
    pooled = await pool(state, make_requests(state, options, prompts, lambda number: texts[number].name))
    params = PoolingParams()
    return [make_vector(hidden, params) for hidden in pooled.states], pooled.usage


def _result(asked: RerankRequest, number: int, relevance: float) -> dict[str, Any]:
    result: dict[str, Any] = {"index": number, "relevance_score": relevance}
    if asked.return_documents:
        result["document"] = {"text": asked.documents[number].value}
    return result


ENDPOINTS = (
    *(
        Endpoint(
            method="POST",
            path=path,
            handler=score,
            tag="vectors",
            summary="How alike pairs of texts are",
            body=SCORE_BODY,
            examples=SCORE_EXAMPLES,
            answers=SCORE_ANSWERS,
            generates=True,
        )
        for path in ("/v1/score", "/score")
    ),
    *(
        Endpoint(
            method="POST",
            path=path,
            handler=rerank,
            tag="vectors",
            summary="Documents sorted by how alike they are to a query",
            body=RERANK_BODY,
            examples=RERANK_EXAMPLES,
            answers=RERANK_ANSWERS,
            generates=True,
        )
        for path in ("/v1/rerank", "/v2/rerank", "/rerank")
    ),
)

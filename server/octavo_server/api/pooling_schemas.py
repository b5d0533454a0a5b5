"""What `/openapi.json` says of embeddings, scores and rankings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo_server.api.endpoint import json_answer
from octavo_server.api.generation_schemas import CACHE_SALT, CHAT_RENDERING, MESSAGES, PRIORITY, not_served, prompts_of
from octavo_server.api.json_schema import (
    MODEL,
    any_of,
    array,
    boolean,
    integer,
    number,
    obj,
    one_of,
    optional,
    optionals,
    record,
    text,
)
from octavo_server.api.pooling import MAX_INPUTS, NOT_SERVED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo_server.api.endpoint import Schema

# Known and not served; beside each the values that change nothing.
EMBEDDING_NOT_SERVED: Mapping[str, tuple[Any, ...]] = {"embed_dtype": ("float32",), "endianness": ("native", "little")}
"""vLLM's."""
SCORE_NOT_SERVED: Mapping[str, tuple[Any, ...]] = {"use_activation": (True,), "activation": (True,), "softmax": (True,)}
"""The cosine of a model that embeds has no activation."""
RERANK_NOT_SERVED: Mapping[str, tuple[Any, ...]] = {
    **SCORE_NOT_SERVED,
    "rank_fields": (["text"],),
    "max_chunks_per_doc": (1,),
}
"""Cohere's, of its first version."""

_COUNT = integer(0)
USAGE = record(
    {
        "prompt_tokens": _COUNT,
        "total_tokens": _COUNT,
        "prompt_tokens_details": record({"cached_tokens": _COUNT}),
    }
)
_TRUNCATE = any_of(integer(-1, -1), integer(1, 2**31 - 1), {"type": "null"})
_COMMON: Mapping[str, Schema] = {
    **optionals({"add_special_tokens": boolean(), "priority": PRIORITY, "cache_salt": CACHE_SALT}),
    "truncate_prompt_tokens": {
        **_TRUNCATE,
        "description": "Use the last tokens alone: so many, or for -1 as many as fit. Without it what is too long is refused.",
    },
    "user": {},
    **not_served(NOT_SERVED),
}
_VECTOR_OPTIONS: Mapping[str, Schema] = {
    **_COMMON,
    "encoding_format": one_of("float", "base64", None),
    **optionals(
        {
            "dimensions": integer(1, 2**31 - 1, description="Less than all needs a model that was trained for it."),
            "use_activation": boolean(description="Normalise to length 1; true unless given."),
            "normalize": boolean(description="An older name of use_activation."),
        }
    ),
    **not_served(EMBEDDING_NOT_SERVED),
}
_OF_INPUTS = obj(
    {"model": MODEL, "input": prompts_of(MAX_INPUTS), "messages": {"type": "null"}, **_VECTOR_OPTIONS},
    required=("model", "input"),
)
_OF_CHAT = obj(
    {
        "model": MODEL,
        "messages": MESSAGES,
        "input": {"type": "null"},
        **optionals(CHAT_RENDERING),
        **_VECTOR_OPTIONS,
        "add_special_tokens": one_of(False, None),
    },
    required=("model", "messages"),
)
EMBEDDING_BODY = any_of(_OF_INPUTS, _OF_CHAT)
EMBEDDING_EXAMPLES = (
    {"model": "MODEL", "input": ["A pod holds containers.", "The fox jumps."]},
    {"model": "MODEL", "input": "A pod holds containers.", "encoding_format": "base64"},
    {"model": "MODEL", "messages": [{"role": "user", "content": "What is a pod?"}]},
)
EMBEDDING_ANSWERS = json_answer(
    "The vectors, in the order of the inputs.",
    record(
        {
            "id": text(),
            "object": one_of("list"),
            "created": _COUNT,
            "model": MODEL,
            "data": array(
                record(
                    {
                        "object": one_of("embedding"),
                        "index": _COUNT,
                        "embedding": any_of(array(number()), text(description="float32, little-endian, in base64.")),
                    }
                )
            ),
            "usage": USAGE,
        }
    ),
)

_SIDE = any_of(text(minLength=1), array(text(minLength=1), 1, MAX_INPUTS))


def _pair(first: str, second: str) -> Schema:
    return obj(
        {first: _SIDE, second: _SIDE, "model": optional(MODEL), **_COMMON, **not_served(SCORE_NOT_SERVED)},
        required=(first, second),
    )


PAIRS = (("text_1", "text_2"), ("queries", "documents"), ("data_1", "data_2"))
"""Spellings of the two sides of a score, the oldest first."""
SCORE_BODY = any_of(*(_pair(first, second) for first, second in PAIRS))
SCORE_EXAMPLES = tuple(
    {"model": "MODEL", first: "What is a pod?", second: ["A pod holds containers.", "The fox jumps."]}
    for first, second in PAIRS
)
SCORE_ANSWERS = json_answer(
    "One score a pair, from -1 to 1.",
    record(
        {
            "id": text(),
            "object": one_of("list"),
            "created": _COUNT,
            "model": MODEL,
            "data": array(record({"index": _COUNT, "object": one_of("score"), "score": number(-1, 1)})),
            "usage": USAGE,
        }
    ),
)

_DOCUMENT = any_of(text(minLength=1), obj({"text": text(minLength=1)}, required=("text",)))
RERANK_BODY = obj(
    {
        "model": optional(MODEL),
        "query": text(minLength=1),
        "documents": array(_DOCUMENT, 1, MAX_INPUTS),
        **_COMMON,
        **optionals(
            {
                "top_n": integer(0, 2**31 - 1, description="How many results; 0: all."),
                "return_documents": boolean(description="Whether results have their documents; true unless given."),
                "max_tokens_per_doc": integer(1, 2**31 - 1, description="Use the first tokens of a document alone."),
            }
        ),
        **not_served(RERANK_NOT_SERVED),
    },
    required=("query", "documents"),
)
RERANK_EXAMPLES = (
    {
        "model": "MODEL",
        "query": "What is a pod?",
        "documents": ["The fox jumps.", {"text": "A pod holds containers."}],
        "top_n": 1,
    },
)
RERANK_ANSWERS = json_answer(
    "The likest first.",
    record(
        {
            "id": text(),
            "model": MODEL,
            "results": array(
                obj(
                    {"index": _COUNT, "relevance_score": number(-1, 1), "document": record({"text": text()})},
                    required=("index", "relevance_score"),
                )
            ),
            "usage": USAGE,
        }
    ),
)

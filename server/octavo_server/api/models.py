"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from octavo_server.api.endpoint import Endpoint, json_answer
from octavo_server.api.json_schema import MODEL, array, boolean, integer, one_of, optional, record, text
from octavo_server.api.state import STATE, ServerState


async def list_models(http: web.Request) -> web.Response:
    """All names under which the model is served."""
    state = http.app[STATE]
    state.ready_engine()
    return web.json_response({"object": "list", "data": [_model(state, name) for name in state.model_names]})


async def get_model(http: web.Request) -> web.Response:
    """One of them."""
    state = http.app[STATE]
    state.ready_engine()
    name = http.match_info["id"]
    state.check_model(name)
    return web.json_response(_model(state, name))


def _model(state: ServerState, name: str) -> dict[str, Any]:
    loaded = state.ready_engine()
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "octavo",
        "root": state.model_root or state.model_names[0],
        "parent": None,
        "max_model_len": loaded.limits.max_sequence_tokens,
        "permission": [_permission(state, name)],
    }


def _permission(state: ServerState, name: str) -> dict[str, Any]:
    """What clients written for vLLM read: everybody may sample."""
    return {
        "id": f"modelperm-{name}",
        "object": "model_permission",
        "created": state.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


_PERMISSION = record(
    {
        "id": text(),
        "object": one_of("model_permission"),
        "created": integer(0),
        **dict.fromkeys(
            (
                "allow_create_engine",
                "allow_sampling",
                "allow_logprobs",
                "allow_search_indices",
                "allow_view",
                "allow_fine_tuning",
                "is_blocking",
            ),
            boolean(),
        ),
        "organization": text(),
        "group": optional(text()),
    }
)
_MODEL_OBJECT = record(
    {
        "id": MODEL,
        "object": one_of("model"),
        "created": integer(0),
        "owned_by": text(),
        "root": text(),
        "parent": optional(text()),
        "max_model_len": integer(1),
        "permission": array(_PERMISSION),
    }
)

ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/v1/models",
        handler=list_models,
        tag="models",
        summary="The models that are served here",
        answers=json_answer("All of them.", record({"object": one_of("list"), "data": array(_MODEL_OBJECT)})),
    ),
    Endpoint(
        method="GET",
        path="/v1/models/{id:.+}",
        handler=get_model,
        tag="models",
        summary="One model",
        answers=json_answer("The model.", _MODEL_OBJECT),
        parameters=({"name": "id", "in": "path", "required": True, "schema": MODEL},),
        errors=(404,),
    ),
)

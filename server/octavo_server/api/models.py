"""`GET /v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

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
        "root": state.model_names[0],
        "parent": None,
        "max_model_len": loaded.engine.limits.max_sequence_tokens,
    }

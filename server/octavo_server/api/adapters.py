"""`POST /v1/load_lora_adapter` and `/v1/unload_lora_adapter`: known, and refused by name until adapters are served."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from octavo_server.api.endpoint import Endpoint
from octavo_server.api.error_response import ApiError

if TYPE_CHECKING:
    from aiohttp import web


async def refuse(http: web.Request) -> NoReturn:
    """Says so, whatever was sent."""
    raise ApiError(
        400, f"{http.path}: adapters (LoRA) are not supported yet in this version of Octavo", code="not_supported"
    )


ENDPOINTS = tuple(
    Endpoint(
        method="POST",
        path=path,
        handler=refuse,
        tag="adapters",
        summary="Not supported yet: always 400",
        answers={},
        needs_engine=False,
    )
    for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
)

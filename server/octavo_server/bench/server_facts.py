"""What a server over HTTP tells of itself: all of it from ours, what there is from others."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo_server.bench.client import Target

_OF_PROPS = ("build_info", "total_slots", "model_ftype", "model_path", "n_ctx")
"""Of llama.cpp's /props; the rest are defaults of sampling, and the chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """Sorted as a record has them."""

    server: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    location: Path | None = None
    """Of the model's files; on this machine only where the server is."""
    context_tokens: int | None = None


async def ask_facts(session: aiohttp.ClientSession, target: Target) -> ServerFacts:
    """Asks; what does not answer is left out."""
    listed = (await _get(session, target, "/v1/models")).get("data")
    models = [item for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
    mine = next((item for item in models if item.get("id") == target.model), models[0] if len(models) == 1 else {})
    ours = await _get(session, target, "/server_info")
    props = await _get(session, target, "/props")
    version = (await _get(session, target, "/version")).get("version")
    context = mine.get("max_model_len") or (props.get("default_generation_settings") or {}).get("n_ctx")
    server = {
        "url": target.url,
        "owned_by": mine.get("owned_by"),
        "version": version,
        "context": context,
        **{name: props[name] for name in _OF_PROPS if name in props},
    }
    if "environment" in ours:
        server["environment"] = ours["environment"]
    location = ours.get("location") or props.get("model_path")
    return ServerFacts(
        server={name: value for name, value in server.items() if value is not None},
        engine=_mapping(ours.get("settings")),
        resolved=_mapping(ours.get("resolved")),
        location=Path(location) if location else None,
        context_tokens=context if isinstance(context, int) else None,
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


async def _get(session: aiohttp.ClientSession, target: Target, path: str) -> dict[str, Any]:
    try:
        async with session.get(target.url + path, headers=target.headers) as response:
            return _mapping(json.loads(await response.text())) if response.status == 200 else {}
    except (aiohttp.ClientError, OSError, ValueError):
        return {}

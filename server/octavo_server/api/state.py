"""What every handler needs, handed over as one value; no handler keeps anything of its own."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from octavo_server.api.error_response import ApiError
from octavo_server.api.responses_store import ResponseStore, routing_digests
from octavo_server.chat_output.formats import served_formats
from octavo_server.engine.async_engine import AsyncEngine, EngineState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo_server.api.batch_service import BatchService
    from octavo_server.api.tracing import Tracing
    from octavo_server.chat_output.formats import ServedFormats
    from octavo_server.config import ServerConfig
    from octavo_server.engine.served_model import ServedModel
    from octavo_server.metrics import ServerMetrics


def new_id() -> str:
    """For requests and answers; nobody can guess it."""
    return secrets.token_hex(12)


@dataclass(slots=True, kw_only=True)
class ServerState:
    """The server's parts, and whether it is draining."""

    config: ServerConfig
    engine: AsyncEngine
    metrics: ServerMetrics
    model_names: tuple[str, ...]
    """Names that clients may ask for; the first is the label of metrics."""
    model_root: str = ""
    """The model's name on the hub, where it comes from there; `root` of `/v1/models`."""
    engine_settings: Mapping[str, Any] = field(default_factory=dict)
    """As they were given to the engine; `settings` of `/server_info`."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds of the start; `created` of `/v1/models`."""
    new_id: Callable[[], str] = new_id
    responses: ResponseStore = field(init=False)
    wall_clock: Callable[[], float] = time.time
    """Unix seconds."""
    batches: BatchService | None = None
    """Files and batches; None without --data-dir."""
    tracing: Tracing | None = None
    """None without --otlp-traces-endpoint."""
    draining: bool = False
    num_active: int = 0
    """Generation handlers that have not ended."""
    _formats: ServedFormats | None = field(default=None, init=False)
    _id_end: str = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self._id_end = f"_{routing_digests(config.routing_tag)}" if config.routing_tag else ""
        self.responses = ResponseStore(
            max_responses=config.max_stored_responses,
            max_bytes=config.max_stored_responses_bytes,
            max_age_s=config.max_stored_responses_age,
            clock=time.monotonic,
        )

    def new_stored_id(self) -> str:
        """For what may be asked for again or referred to; ends in the routing tag, where there is one."""
        return f"{self.new_id()}{self._id_end}"

    def ready_engine(self) -> ServedModel:
        """The loaded model.

        Raises:
            ApiError: 503 while loading or draining, or when the engine is dead.
        """
        if self.draining:
            raise ApiError(503, "the server is shutting down; ask another one", code="draining", close=True)
        if self.engine.state is EngineState.LOADING:
            stage = self.engine.progress.stage.replace("_", " ")
            raise ApiError(503, f"the model is not ready yet ({stage})", code="loading", headers={"Retry-After": "5"})
        if self.engine.state is not EngineState.READY or self.engine.loaded is None:
            raise ApiError(503, "the engine has ended; the server is about to restart", code="engine_dead", close=True)
        return self.engine.loaded

    @property
    def formats(self) -> ServedFormats:
        """The formats in which the loaded model's answers are read."""
        if self._formats is None:
            templates = self.ready_engine().tokenizer.chat_template_sources
            self._formats = served_formats(self.config.tool_call_parser, self.config.reasoning_parser, templates)
        return self._formats

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a model that is not served here."""
        if name not in self.model_names:
            known = ", ".join(self.model_names)
            raise ApiError(
                404,
                f"the model {name[:200]!r} is not served here; served: {known}",
                code="model_not_found",
                param="model",
            )


STATE = web.AppKey("state", ServerState)

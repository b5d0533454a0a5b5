"""Whether the engine runs in the serving process or beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from octavo_server.engine.build import build_server_engine
from octavo_server.engine.engine_process import EngineProcess
from octavo_server.engine.engine_thread import EngineThread
from octavo_server.machine import may_have_gpu

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig
    from octavo_server.engine.async_engine import EngineHost


def make_host(config: EngineConfig, *, where: Literal["auto", "in", "out"], log_level: str) -> EngineHost:
    """What will run the engine of `config`; nothing is started."""
    if where == "out" or (where == "auto" and may_have_gpu(config.device)):
        return EngineProcess(config, log_level=log_level)
    return EngineThread(lambda progress: build_server_engine(config, progress))

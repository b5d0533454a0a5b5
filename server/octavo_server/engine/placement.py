"""Whether the engine runs in the serving process or beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from octavo_server.engine.build import build_server_engine
from octavo_server.engine.engine_process import EngineProcess
from octavo_server.engine.engine_thread import EngineThread

if TYPE_CHECKING:
    from octavo_server.config import EngineConfig
    from octavo_server.engine.async_engine import EngineHost

# Of NVIDIA's driver, AMD's, and WSL's; finding out by torch would take seconds before the port opens.
_GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")


def make_host(config: EngineConfig, *, where: Literal["auto", "in", "out"], log_level: str) -> EngineHost:
    """What will run the engine of `config`; nothing is started."""
    if where == "out" or (where == "auto" and may_have_gpu(config.device)):
        return EngineProcess(config, log_level=log_level)
    return EngineThread(lambda progress: build_server_engine(config, progress))


def may_have_gpu(device: str, devices: Path = Path("/dev")) -> bool:
    """Whether `--device` may turn out to be a GPU on this machine."""
    if device != "auto":
        return device != "cpu"
    return any(next(devices.glob(pattern), None) is not None for pattern in _GPU_FILES)

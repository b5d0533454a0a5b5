"""The engine and the OpenAI-compatible server. `LLM`, `SamplingParams` and `PoolingParams` are the offline API."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_server.engine.request import SamplingParams
    from octavo_server.engine.vectors import PoolingParams
    from octavo_server.llm import LLM

__all__ = ["LLM", "PoolingParams", "SamplingParams"]


def __getattr__(name: str) -> object:
    # Lazy, so that `octavo --help` and the opening of the port do not wait for torch.
    if name == "SamplingParams":
        from octavo_server.engine.request import SamplingParams

        return SamplingParams
    if name == "PoolingParams":
        from octavo_server.engine.vectors import PoolingParams

        return PoolingParams
    if name == "LLM":
        from octavo_server.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

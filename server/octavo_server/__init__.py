"""The engine and the OpenAI-compatible server. What is listed here is the offline API, under vLLM's names."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_server.engine.request import SamplingParams
    from octavo_server.engine.vectors import PoolingParams
    from octavo_server.llm import LLM
    from octavo_server.llm_inputs import TextPrompt, TokensPrompt
    from octavo_server.llm_outputs import CompletionOutput, RequestOutput
    from octavo_server.structured_output.params import StructuredOutputsParams

__all__ = [
    "LLM",
    "CompletionOutput",
    "PoolingParams",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
]

_HOMES = {
    "LLM": "llm",
    "CompletionOutput": "llm_outputs",
    "PoolingParams": "engine.vectors",
    "RequestOutput": "llm_outputs",
    "SamplingParams": "engine.request",
    "StructuredOutputsParams": "structured_output.params",
    "TextPrompt": "llm_inputs",
    "TokensPrompt": "llm_inputs",
}


def __getattr__(name: str) -> object:
    # Lazy, so that `octavo --help` and the opening of the port do not wait for torch.
    if name in _HOMES:
        return getattr(import_module(f"octavo_server.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""The model as those who speak with clients see it: text side and limits, no weights, wherever the engine runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo_server.engine.admission import Limits
    from octavo_server.models.config import GenerationDefaults, VectorSizes
    from octavo_server.structured_output.compiler import GrammarCompiler
    from octavo_server.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A loaded model without its tensors."""

    tokenizer: Tokenizer
    defaults: GenerationDefaults
    """Sampling values for what a request leaves out."""
    limits: Limits
    vectors: VectorSizes
    grammars: GrammarCompiler
    resolved: Mapping[str, str | int] = field(default_factory=dict)
    """What the engine's settings have become: kernels, types, blocks, limits."""

"""What an output must look like, as a client says it: plain values, under vLLM's names."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass

STRUCTURED_OUTPUTS = "structured_outputs"
"""The field of that name, with which refusals begin; other endpoints' names for it are put in its place."""
KINDS = ("json", "json_object", "regex", "choice", "grammar")
"""Fields of which exactly one is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StructuredOutputsParams:
    """Exactly one of `json`, `json_object`, `regex`, `choice` and `grammar`, and how to read it.

    Any value can be held; compiling refuses what is wrong before anything runs.
    """

    json: str | None = None
    """Text of a JSON Schema; a schema that is given as an object or a boolean becomes its text."""
    json_object: bool | None = None
    """Any JSON object."""
    regex: str | None = None
    """The whole output matches it; Rust's syntax: no look-around, no back references."""
    choice: tuple[str, ...] | None = None
    """The output is one of these; a list becomes a tuple."""
    grammar: str | None = None
    """Lark as llguidance reads it, or GBNF/EBNF (`root ::= …`)."""
    disable_any_whitespace: bool = False
    """Compact JSON: no whitespace between its tokens. Without meaning for the other kinds."""
    whitespace_pattern: str | None = None
    """Regular expression of the whitespace that JSON may have between its tokens."""
    after: str | None = None
    """Binds only what follows the first occurrence of this text, such as the end of a model's reasoning ("</think>")."""

    opening: str | None = None
    """With `after`: binds at once, unless the output begins with this text, such as "<think>"."""

    unless: str | None = None
    """An answer that begins with this text instead is not bound, such as a tool call's opening mark."""

    def __post_init__(self) -> None:
        schema: object = self.json
        if schema is not None and not isinstance(schema, str):
            object.__setattr__(self, "json", json_format.dumps(schema))
        choice: object = self.choice
        if isinstance(choice, list):
            object.__setattr__(self, "choice", tuple(choice))

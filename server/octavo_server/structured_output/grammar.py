"""From what a client asks of an output to the text of one llguidance grammar; pure.

A grammar's text is all that travels with a request: it is compiled again wherever the engine runs, in under a
millisecond for usual schemas. Reading what a stranger wrote may take minutes: see `trial`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from octavo_server.errors import InvalidRequestError
from octavo_server.structured_output.params import KINDS, STRUCTURED_OUTPUTS, StructuredOutputsParams

MAX_GRAMMAR_CHARS = 2**18
"""Of one schema, expression or grammar: what takes 100 ms to compile is a third of it."""
MAX_CHOICES = 10_000

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between tokens of JSON where the request says nothing: indentation ten levels deep. Without a bound a model that has
lost its way fills its whole output with blanks."""

_BODY = "body"
"""Name of the grammar that binds only after a marker."""


def check_shape(params: StructuredOutputsParams) -> None:
    """What can be said of the values before anything reads them.

    Raises:
        InvalidRequestError: not exactly one kind is given, a value has the wrong type, or it is too large.
    """
    given = _kinds(params)
    if len(given) != 1:
        raise _refusal(f"needs exactly one of {', '.join(KINDS)}, got {', '.join(given) or 'none'}")
    for name in ("json", "regex", "grammar", "whitespace_pattern"):
        value: object = getattr(params, name)
        if value is not None and not isinstance(value, str):
            raise _refusal(f"{name} must be text")
        _check_text(name, value or "")
    choices: object = params.choice
    if choices is not None and not (isinstance(choices, tuple) and all(isinstance(item, str) for item in choices)):
        raise _refusal("choice must be strings")
    if choices is not None and not (1 <= len(choices) <= MAX_CHOICES and all(choices)):
        raise _refusal(f"choice must be 1 to {MAX_CHOICES:,} strings that are not empty")
    _check_text("choice", "".join(params.choice or ()))


def grammar_text(params: StructuredOutputsParams, special_tokens: Mapping[str, int]) -> str:
    """The grammar's text, of values whose shape has been checked.

    Args:
        params: what the output must look like.
        special_tokens: tokens that only their id can name, such as "</think>" where it is one.

    Raises:
        InvalidRequestError: a value cannot be read, or becomes too large.
    """
    [kind] = _kinds(params)
    text = _TEXTS[kind](params)
    _check_size(kind, text)
    if params.after is None and params.unless is None:
        return text
    return _within(params, text, special_tokens)


def _kinds(params: StructuredOutputsParams) -> list[str]:
    return [kind for kind in KINDS if getattr(params, kind) not in (None, False)]


def _check_text(name: str, text: str) -> None:
    _check_size(name, text)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refusal(f"{name} holds half of a character, a lone surrogate; mend it") from error


def _check_size(name: str, text: str) -> None:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise _refusal(f"{name} has {len(text):,} characters, at most {MAX_GRAMMAR_CHARS:,} are taken; shorten it")


def _json_text(params: StructuredOutputsParams) -> str:
    try:
        schema = json.loads(params.json or "")
    except (ValueError, RecursionError) as error:
        raise _refusal(f"json is no valid JSON: {_first_line(error)}") from error
    if not isinstance(schema, dict | bool):
        raise _refusal("json must be a JSON Schema, which is an object")
    if schema is False:
        raise _refusal("json is false, a schema that nothing satisfies")
    if isinstance(schema, dict) and "x-guidance" in schema:
        # It could have unsupported keywords ignored.
        raise _refusal("json holds x-guidance, which is not supported; leave it out")
    return _schema_text(json.dumps({} if schema is True else schema), params)


def _json_object_text(params: StructuredOutputsParams) -> str:
    return _schema_text('{"type": "object"}', params)


def _schema_text(schema: str, params: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    options: dict[str, Any] = {"whitespace_flexible": False}
    if not params.disable_any_whitespace:
        options = {"whitespace_pattern": WHITESPACE if params.whitespace_pattern is None else params.whitespace_pattern}
    try:
        text: str = LLMatcher.grammar_from_json_schema(schema, overrides=options)
    except (ValueError, RecursionError) as error:
        raise _refusal(f"json is no schema that can be read: {_first_line(error)}") from error
    return text


def _regex_text(params: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    text: str = LLMatcher.grammar_from_regex(params.regex or "")
    return text


def _choice_text(params: StructuredOutputsParams) -> str:
    from llguidance import LLMatcher

    lines = " | ".join(_literal(item) for item in dict.fromkeys(params.choice or ()))
    # As one terminal: an alternative of a rule is an item of the parser's, and those are few.
    text: str = LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {lines}")
    return text


def _literal(text: str) -> str:
    """As JSON writes it, which Lark reads, but for control characters that JSON leaves as they are."""
    return re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", json.dumps(text, ensure_ascii=False))


def _grammar_text(params: StructuredOutputsParams) -> str:
    from llguidance import grammar_from

    try:
        text: str = grammar_from("grammar", params.grammar or "")
    except (ValueError, RecursionError) as error:
        raise _refusal(f"grammar cannot be read: {_first_line(error)}") from error
    return text


_TEXTS = {
    "json": _json_text,
    "json_object": _json_object_text,
    "regex": _regex_text,
    "choice": _choice_text,
    "grammar": _grammar_text,
}


def _within(params: StructuredOutputsParams, text: str, special_tokens: Mapping[str, int]) -> str:
    """The grammar `text` where the output is bound, and what may stand before it or in its place."""
    whole = json.loads(text)
    [body] = whole["grammars"]

    def mark(given: str) -> str:
        return f"<[{special_tokens[given]}]>" if given in special_tokens else json.dumps(given)

    answer, rules = f"@{_BODY}", []
    if params.unless is not None:
        answer = f"({answer} | {mark(params.unless)} rest)"
        rules.append("rest: /(?s:.*)/")
    if params.after is not None:
        is_token = params.after in special_tokens
        before = f"free {mark(params.after)}" if is_token else "free"
        rules.append("free: /(?s:.*)/" if is_token else f"free[suffix={json.dumps(params.after)}]: /(?s:.*)/")
        if params.opening is not None:
            before = f"({mark(params.opening)} {before})?"
        answer = f"{before} {answer}"
    prefix = "\n".join([f"start: {answer}", *rules])
    return json.dumps({**whole, "grammars": [{"lark_grammar": prefix}, {**body, "name": _BODY}]})


def _refusal(message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{STRUCTURED_OUTPUTS}: {message}", param=STRUCTURED_OUTPUTS)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]

"""Typed, ranged reads of a request's JSON object; every refusal names the field, what was given and what is allowed.

`null` is the same as absent. What was never read is unknown and is reported by `unread()`.
"""

from __future__ import annotations

import json
import math
from itertools import islice
from typing import TYPE_CHECKING, Any

from octavo_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SHOWN_CHARS = 80
_MAX_NESTED = 100


class Fields:
    """One JSON object. Owns the record of which keys were read."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self._read: set[str] = set()
        self._ignored: list[str] = []

    def get(self, name: str) -> Any:
        """The raw value, or None."""
        self._read.add(name)
        return self._values.get(name)

    def fail(self, name: str, needed: str) -> InvalidRequestError:
        """The error for `name`: what is needed, and what came."""
        param = self._prefix + name
        return InvalidRequestError(f"{param} must be {needed}, got {shown(self._values.get(name))}", param=param)

    def refuse(self, name: str, message: str) -> InvalidRequestError:
        """The error for `name` with a message of its own."""
        return InvalidRequestError(message, param=self._prefix + name)

    def number(self, name: str, low: float, high: float) -> float | None:
        """A finite number in [low, high]."""
        value = self.get(name)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise self.fail(name, f"a number from {low:g} to {high:g}")
        return float(value)

    def integer(self, name: str, low: int, high: int) -> int | None:
        """A whole number in [low, high]; 5.0 counts as 5."""
        value = self.get(name)
        if value is None:
            return None
        number = whole(value)
        if number is None or not low <= number <= high:
            raise self.fail(name, f"a whole number from {low} to {high}")
        return number

    def boolean(self, name: str, default: bool = False) -> bool:
        value = self.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(name, "true or false")
        return value

    def text(self, name: str, *, max_chars: int | None = None) -> str | None:
        """A string that can be encoded as UTF-8."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or (max_chars is not None and len(value) > max_chars):
            raise self.fail(name, "a string" + (f" of at most {max_chars} characters" if max_chars else ""))
        return checked_text(value, self._prefix + name)

    def obj(self, name: str) -> Fields | None:
        """A nested object."""
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(name, "an object")
        return Fields(value, f"{self._prefix}{name}.")

    def array(self, name: str, *, max_items: int) -> list[Any] | None:
        value = self.get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) > max_items:
            raise self.fail(name, f"an array of at most {max_items} items")
        return value

    def skip(self, names: Iterable[str]) -> None:
        """Marks fields as known though they change nothing."""
        self._read.update(names)

    def ignore(self, names: Iterable[str]) -> None:
        """Takes full names of nested fields that nobody asked for, for `unread`; as many as anybody would read."""
        self._ignored += islice(names, max(0, _MAX_NESTED - len(self._ignored)))

    def unread(self) -> tuple[str, ...]:
        """Names that nobody asked for, sorted."""
        return tuple(sorted(self._prefix + name for name in self._values if name not in self._read) + self._ignored)


def whole(value: object) -> int | None:
    """A whole number, of which JSON knows two spellings: 5 and 5.0."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def wholes(values: list[Any]) -> tuple[int, ...] | None:
    """Whole numbers alone; None where one is something else."""
    found = tuple(number for value in values if (number := whole(value)) is not None)
    return found if len(found) == len(values) else None


def checked_text(value: str, param: str) -> str:
    """`value`, unless it holds a lone surrogate, which no tokenizer and no UTF-8 can hold."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{param} holds a lone surrogate at character {error.start}, which is no text; send valid Unicode",
            param=param,
        ) from error
    return value


def checked_json(value: object, param: str) -> None:
    """Refuses an object in which some text holds a lone surrogate."""
    checked_text(json.dumps(value, ensure_ascii=False), param)


def shown(value: object) -> str:
    """A bounded picture of a value for an error message."""
    text = ascii(value) if not isinstance(value, list | dict) else f"{type(value).__name__} of {len(value)} items"
    text = {"True": "true", "False": "false", "None": "null"}.get(text, text)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"

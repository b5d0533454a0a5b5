"""Reads one JSON object field by field; collects what is wrong instead of stopping at the first mistake.

Every field that was not asked for is a problem too: nothing is silently ignored.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo_operator.api.quantity import parse_duration_s


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a manifest: where, and what to do."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ObjectReader:
    """Takes fields out of one JSON object; `finish` reports those that nobody took."""

    def __init__(self, raw: Any, path: str, problems: list[Problem]) -> None:
        self.path = path
        self.problems = problems
        self._known: list[str] = []
        self.raw: Mapping[str, Any] = {}
        if isinstance(raw, Mapping):
            self.raw = raw
        else:
            self.complain("", f"must be an object, not {type_name(raw)}")

    def complain(self, field: str, message: str) -> None:
        self.problems.append(Problem(f"{self.path}.{field}" if field else self.path, message))

    def take(self, field: str) -> Any:
        """The raw value; None where absent or null."""
        self._known.append(field)
        return self.raw.get(field)

    def has(self, field: str) -> bool:
        return self.raw.get(field) is not None

    def child(self, field: str) -> ObjectReader:
        """The object below; an empty one where absent."""
        value = self.take(field)
        return ObjectReader({} if value is None else value, f"{self.path}.{field}", self.problems)

    def string(self, field: str, *, default: str = "", pattern: str = "", remedy: str = "") -> str:
        value = self.take(field)
        if value is None:
            return default
        if not isinstance(value, str):
            self.complain(field, f"must be a string, not {type_name(value)}")
            return default
        if pattern and not re.fullmatch(pattern, value):
            self.complain(field, f"{value!r} {remedy}")
            return default
        return value

    def integer(self, field: str, *, low: int, high: int, default: int = 0) -> int:
        value = self.take(field)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            self.complain(field, f"must be a whole number, not {type_name(value)}")
            return default
        if not low <= value <= high:
            self.complain(field, f"is {value}, must be from {low} to {high}")
            return default
        return value

    def boolean(self, field: str, *, default: bool) -> bool:
        value = self.take(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.complain(field, f"must be true or false, not {type_name(value)}")
            return default
        return value

    def choice(self, field: str, options: tuple[str, ...], *, default: str) -> str:
        value = self.string(field, default=default)
        if value not in options:
            self.complain(field, f"is {value!r}, must be one of {', '.join(options)}")
            return default
        return value

    def duration_s(self, field: str, *, default: int) -> int:
        """Seconds of a duration such as 1h30m; "" is the default."""
        text = self.string(field)
        seconds = parse_duration_s(text)
        if seconds is None:
            self.complain(field, f"{text!r} is no duration, such as 90s, 10m or 1h30m")
        return default if not text or seconds is None else seconds

    def strings(self, field: str, *, most: int) -> tuple[str, ...]:
        value = self.take(field)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
            self.complain(field, "must be a list of non-empty strings")
            return ()
        if len(value) > most:
            self.complain(field, f"has {len(value)} items, at most {most} are allowed")
            return ()
        return tuple(value)

    def not_served(self, field: str, remedy: str) -> None:
        """A field whose place is known and that nothing serves yet: only an empty value passes."""
        if self.take(field):
            self.complain(field, f"is not served yet; {remedy}")

    def mapping(self, field: str) -> Mapping[str, Any]:
        """An object that is passed on as it is."""
        value = self.take(field)
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            self.complain(field, f"must be an object, not {type_name(value)}")
            return {}
        return value

    def finish(self) -> None:
        for field in self.raw:
            if field not in self._known:
                near = difflib.get_close_matches(field, self._known, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(self._known))}"
                self.complain(str(field), f"unknown field{hint}")


def type_name(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)

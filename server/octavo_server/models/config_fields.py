"""Typed reads of one JSON object of a checkpoint; every failure names the key and the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from octavo_server.errors import StartupError

_LARGEST = 10**18
"""Far beyond every size, rate and factor."""


class ConfigFields:
    """A key that is absent and one that is null are the same."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.source = source

    def fail(self, message: str) -> NoReturn:
        raise StartupError("ModelInvalid", f"{self.source}: {message}")

    def unsupported(self, message: str) -> NoReturn:
        raise StartupError("UnsupportedArchitecture", f"{self.source}: {message}")

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def optional(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            self.fail(f"key {key} is missing")
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.fail(f"{key} is {value!r}, not a number")
        # compared as it is: a long enough integer has no float
        if not -_LARGEST <= value <= _LARGEST:
            self.fail(f"{key} is not a number between {-_LARGEST} and {_LARGEST}")
        return float(value)

    def above(self, bound: float, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        if value <= bound:
            self.fail(f"{key} is {value:g}, must be above {bound:g}")
        return value

    def natural(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value < 0 or value != int(value):
            self.fail(f"{key} is {value:g}, not a whole number of 0 or more")
        return int(value)

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.number(key, default)
        if value < 1 or value != int(value):
            self.fail(f"{key} is {value:g}, not a positive integer")
        return int(value)

    def flag(self, key: str, *, default: bool = False) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.fail(f"{key} is {value!r}, not true or false")
        return default if value is None else value

    def section(self, key: str) -> ConfigFields | None:
        """The object under `key`; None where it is absent or empty."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self.fail(f"{key} is {value!r}, not an object")
        return ConfigFields(value, f"{self.source}: {key}") if value else None

    def names(self, key: str) -> list[str] | None:
        value = self.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            self.fail(f"{key} is {value!r}, not a list of names")
        return value

    def token_ids(self, key: str) -> list[int]:
        """One id or a list of them."""
        value = self.get(key)
        ids = [item for item in (value if isinstance(value, list) else [value]) if item is not None]
        for item in ids:
            if isinstance(item, bool) or not isinstance(item, int):
                self.fail(f"{key} is {value!r}, not a token id or a list of them")
        return ids

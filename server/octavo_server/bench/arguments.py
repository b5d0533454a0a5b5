"""Types of the commands' flags: what cannot be measured is refused with the value and the remedy."""

from __future__ import annotations

import json
import math
from typing import Any

from octavo_server.errors import ConfigError


def whole(flag: str, least: int = 1) -> Any:
    """A reader of a whole number, `least` or more."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise ConfigError(f"{flag} is {text!r}, it must be a whole number, {least} or more")
        return value

    return read


def counts(flag: str) -> Any:
    """A reader of whole numbers between commas."""

    def read(text: str) -> list[int]:
        try:
            found = [int(part) for part in text.split(",")]
        except ValueError:
            found = []
        if not found or min(found) < 1:
            raise ConfigError(f"{flag} is {text!r}, it must be whole numbers such as 1,8,32")
        return found

    return read


def rates(text: str) -> list[float]:
    """Requests a second, between commas."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < value < math.inf for value in found):
        raise ConfigError(f"--request-rate is {text!r}, it must be numbers above 0 such as 2 or 1,2,4")
    return found


def share(text: str) -> float:
    """From 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"--range-ratio is {text!r}, it must be at least 0 and below 1")
    return value


def json_object(text: str) -> dict[str, Any]:
    """Of --extra."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--extra is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError("--extra must be a JSON object")
    return value

"""Kubernetes' small notations as numbers: quantities ("500m", "24Gi"), durations ("1h30m"), ratios ("0.8")."""

from __future__ import annotations

import re
from decimal import Decimal

_QUANTITY = re.compile(
    r"^([+-]?[0-9]+(?:\.[0-9]+)?|[+-]?\.[0-9]+)(?:e([+-]?[0-9]{1,2})|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei))?$"
)
_DURATION = re.compile(r"^(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m)?(?:([0-9]{1,6})s)?$")
_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(1000),
    "M": Decimal(1000) ** 2,
    "G": Decimal(1000) ** 3,
    "T": Decimal(1000) ** 4,
    "P": Decimal(1000) ** 5,
    "E": Decimal(1000) ** 6,
    "Ki": Decimal(1024),
    "Mi": Decimal(1024) ** 2,
    "Gi": Decimal(1024) ** 3,
    "Ti": Decimal(1024) ** 4,
    "Pi": Decimal(1024) ** 5,
    "Ei": Decimal(1024) ** 6,
}


def parse_quantity(text: str) -> Decimal | None:
    """The number behind a Kubernetes quantity, None where it is none."""
    match = _QUANTITY.match(text)
    if match is None:
        return None
    number, exponent, suffix = match.groups()
    if exponent is not None:
        return Decimal(number) * Decimal(10) ** int(exponent)
    return Decimal(number) * _SUFFIXES.get(suffix or "", Decimal(1))


def parse_duration_s(text: str) -> int | None:
    """Seconds of a duration such as 10m or 1h30m; "" is 0; None where it is no duration."""
    match = _DURATION.match(text)
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds


def milli(ratio: str) -> str:
    """A ratio as the quantity that autoscaling/v2 stores: "0.8" is "800m", "2" is "2"."""
    thousandths = int(Decimal(ratio) * 1000)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"

"""`scaling.behavior` as the rules of autoscaling/v2, with the defaults that the API server would fill in.

An HPA's behavior is judged by the API server; that of the built-in autoscaler here, by the same bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo_operator.api.quantity import parse_quantity
from octavo_operator.api.reader import ObjectReader, Problem
from octavo_operator.api.types import Scaling
from octavo_operator.desired.hpa import behavior_of
from octavo_operator.errors import SpecInvalidError

TOLERANCE = 0.1
"""So far from the target nothing is done; the default of the HPA controller."""
MAX_WINDOW_S = 3600
MAX_PERIOD_S = 1800
MAX_CHANGE = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How much may change in a period."""

    is_percent: bool
    value: int
    """Pods, or percent of those at the period's beginning."""
    period_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Of one direction."""

    window_s: int
    """The most cautious recommendation of so many seconds counts."""
    select: str
    """Max, Min or Disabled: which of the policies counts."""
    policies: tuple[Policy, ...]
    tolerance: float = TOLERANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Behavior:
    up: Rules
    down: Rules


_UP = Rules(
    window_s=0,
    select="Max",
    policies=(Policy(is_percent=False, value=4, period_s=15), Policy(is_percent=True, value=100, period_s=15)),
)
_DOWN = Rules(window_s=300, select="Max", policies=(Policy(is_percent=True, value=100, period_s=15),))


def read_behavior(scaling: Scaling) -> Behavior:
    """Raises SpecInvalidError for what an HPA would not take, each by its field."""
    problems: list[Problem] = []
    raw = ObjectReader(behavior_of(scaling), "spec.scaling.behavior", problems)
    behavior = Behavior(up=_rules(raw.child("scaleUp"), _UP), down=_rules(raw.child("scaleDown"), _DOWN))
    if problems:
        raise SpecInvalidError(tuple(problems))
    return behavior


def _rules(raw: ObjectReader, default: Rules) -> Rules:
    window_s = raw.integer("stabilizationWindowSeconds", low=0, high=MAX_WINDOW_S, default=default.window_s)
    rules = Rules(
        window_s=window_s,
        select=raw.choice("selectPolicy", ("Max", "Min", "Disabled"), default=default.select),
        policies=_policies(raw, default.policies),
        tolerance=_tolerance(raw),
    )
    raw.finish()
    return rules


def _policies(raw: ObjectReader, default: tuple[Policy, ...]) -> tuple[Policy, ...]:
    items = raw.take("policies")
    if items is None:
        return default
    if not isinstance(items, list) or not items:
        raw.complain("policies", "must be a list of at least one policy")
        return default
    return tuple(
        _policy(ObjectReader(item, f"{raw.path}.policies[{number}]", raw.problems)) for number, item in enumerate(items)
    )


def _policy(raw: ObjectReader) -> Policy:
    kind = raw.string("type")
    if kind not in ("Pods", "Percent"):
        raw.complain("type", f"is {kind!r}, must be one of Pods, Percent")
    value = raw.integer("value", low=1, high=MAX_CHANGE)
    period_s = raw.integer("periodSeconds", low=1, high=MAX_PERIOD_S)
    for field in ("value", "periodSeconds"):
        if not raw.has(field):
            raw.complain(field, "is required")
    raw.finish()
    return Policy(is_percent=kind == "Percent", value=value, period_s=period_s)


def _tolerance(raw: ObjectReader) -> float:
    value: Any = raw.take("tolerance")
    if value is None:
        return TOLERANCE
    number = parse_quantity(str(value)) if isinstance(value, str | int | float) else None
    if number is None or number < 0:
        raw.complain("tolerance", f"{value!r} is no quantity of 0 or more, such as 0.05")
        return TOLERANCE
    return float(number)

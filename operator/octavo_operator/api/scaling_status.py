"""`status.scaling` as values: what the replicas were asked for, and the last decisions with what stood in their way.

Written before anything is done about it, as the rollout's: an operator that dies in between goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from octavo_operator.api.rollout_status import format_time, parse_time
from octavo_operator.api.types import JsonObject

MAX_DECISIONS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingDecision:
    """Another number of replicas, or the wish for one that something stands in the way of."""

    at: datetime
    before: int
    after: int
    reason: str
    """Who asks for it and why, one sentence without a full stop."""
    blocked_by: str = ""
    """What it waits for; "" once it was carried out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingStatus:
    """How many replicas there shall be, and how that came about."""

    desired: int | None = None
    """Replicas that the Deployments are asked for; None before the first look."""
    decisions: tuple[ScalingDecision, ...] = ()
    """Newest first. The first one is blocked exactly as long as something stands in its way."""
    schedule: str = ""
    """The one of `scaling.schedules` that is in force."""

    @classmethod
    def read(cls, status: JsonObject) -> ScalingStatus:
        """From a ModelDeployment's status; what is absent or cannot be read is empty."""
        raw = status.get("scaling") or {}
        desired = raw.get("desired")
        decisions = (_read_decision(each) for each in raw.get("decisions") or () if isinstance(each, Mapping))
        return cls(
            desired=desired if isinstance(desired, int) else None,
            decisions=tuple(each for each in decisions if each is not None),
            schedule=str(raw.get("schedule") or ""),
        )

    @property
    def blocked(self) -> ScalingDecision | None:
        """The decision that waits now."""
        newest = self.decisions[0] if self.decisions else None
        return newest if newest is not None and newest.blocked_by else None

    def moved(self, after: int, reason: str, *, at: datetime) -> ScalingStatus:
        """As it is once `after` replicas are asked for; what was blocked until now stays below."""
        if self.desired in (None, after):
            return replace(self, desired=after)
        decision = ScalingDecision(at=at, before=int(self.desired or 0), after=after, reason=reason)
        return replace(self, desired=after, decisions=(decision, *self.decisions)[:MAX_DECISIONS])

    def held(self, after: int, reason: str, blocked_by: str, *, at: datetime) -> ScalingStatus:
        """As it is while `after` replicas are wanted and may not be asked for."""
        before, rest = self.blocked, self.decisions
        if before is not None:
            rest = rest[1:]
            at, reason = before.at, before.reason if before.after == after else reason
        desired = int(self.desired or 0)
        decision = ScalingDecision(at=at, before=desired, after=after, reason=reason, blocked_by=blocked_by)
        return replace(self, decisions=(decision, *rest)[:MAX_DECISIONS])

    def unwanted(self) -> ScalingStatus:
        """As it is when nobody wants any more what was blocked: it was never carried out."""
        return self if self.blocked is None else replace(self, decisions=self.decisions[1:])

    def as_json(self) -> dict[str, Any]:
        """As it is written; fields that say nothing are left out."""
        fields = {
            "desired": self.desired,
            "schedule": self.schedule,
            "decisions": [_decision_as_json(each) for each in self.decisions],
        }
        return {name: value for name, value in fields.items() if value not in (None, [], "")}


def _decision_as_json(decision: ScalingDecision) -> dict[str, Any]:
    fields = {
        "time": format_time(decision.at),
        "from": decision.before,
        "to": decision.after,
        "reason": decision.reason,
        "blockedBy": decision.blocked_by,
    }
    return {name: value for name, value in fields.items() if value != ""}


def _read_decision(raw: JsonObject) -> ScalingDecision | None:
    at, before, after = parse_time(raw.get("time")), raw.get("from"), raw.get("to")
    if at is None or not isinstance(before, int) or not isinstance(after, int):
        return None
    texts = {name: str(raw.get(key) or "") for name, key in (("reason", "reason"), ("blocked_by", "blockedBy"))}
    return ScalingDecision(at=at, before=before, after=after, **texts)

"""`status.rollout` as values: all that a rollout must remember from one reconcile to the next.

Written before anything is done about it, so that an operator that dies in between goes on where it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from octavo_operator.api.types import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A revision that was rolled back: it is not tried again before spec or `rollout` change."""

    revision: str
    settings: str
    """Fingerprint of the `rollout` under which it failed."""
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GateStatus:
    """How far the gate is; `rollout.gate` has the states."""

    state: str
    at: datetime
    """Since when."""
    message: str = ""
    baseline: str = ""
    """Tokens a second of the revision before; "" where they were not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutStatus:
    """What became of the revisions so far."""

    revision: str = ""
    """The revision that is rolled out; after a roll-back the one before."""
    stable: str = ""
    """The last revision that served whole: what a roll-back goes back to."""
    admitted: tuple[str, ...] = ()
    """Revisions that the gateway routes to, the one that is rolled out first."""
    strategy: str = ""
    """How `revision` replaces the others; "" where there was nothing to replace."""
    why: str = ""
    """One sentence: why this strategy, or what the rollout waits for."""
    pending: str = ""
    """A revision that may not begin yet."""
    no_room_since: datetime | None = None
    """Since when a new replica has found no room."""
    held_since: datetime | None = None
    """Since when no admitted replica is ready in a swap."""
    refused: Refused | None = None
    gate: GateStatus | None = None
    """Of the rollout under way, or of the last one."""

    @classmethod
    def read(cls, status: JsonObject) -> RolloutStatus:
        """From a ModelDeployment's status; what is absent is empty."""
        raw = status.get("rollout") or {}
        refused = raw.get("refused")
        return cls(
            **{name: str(raw.get(name) or "") for name in ("revision", "stable", "strategy", "why", "pending")},
            admitted=tuple(raw.get("admitted") or ()),
            no_room_since=parse_time(raw.get("noRoomSince")),
            held_since=parse_time(raw.get("heldSince")),
            gate=_read_gate(raw.get("gate")),
            refused=_read_refused(refused) if isinstance(refused, Mapping) else None,
        )

    def as_json(self) -> dict[str, Any]:
        """As it is written; fields that say nothing are left out."""
        refused, gate = self.refused, self.gate
        fields = {
            "revision": self.revision,
            "stable": self.stable,
            "admitted": list(self.admitted),
            "strategy": self.strategy,
            "why": self.why,
            "pending": self.pending,
            "noRoomSince": format_time(self.no_room_since) if self.no_room_since else "",
            "heldSince": format_time(self.held_since) if self.held_since else "",
            "refused": {name: getattr(refused, name) for name in Refused.__slots__} if refused else {},
            "gate": _gate_as_json(gate) if gate else {},
        }
        return {name: value for name, value in fields.items() if value}


def format_time(at: datetime) -> str:
    """RFC 3339 in whole seconds, as Kubernetes writes times."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def parse_time(text: Any) -> datetime | None:
    """None where there is no time that can be read."""
    try:
        at = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _gate_as_json(gate: GateStatus) -> dict[str, str]:
    fields = {"state": gate.state, "message": gate.message, "at": format_time(gate.at), "baseline": gate.baseline}
    return {name: value for name, value in fields.items() if value}


def _read_gate(raw: Any) -> GateStatus | None:
    at = parse_time(raw.get("at")) if isinstance(raw, Mapping) else None
    if at is None:
        return None
    texts = {name: str(raw.get(name) or "") for name in ("state", "message", "baseline")}
    return GateStatus(at=at, **texts)


def _read_refused(raw: JsonObject) -> Refused:
    return Refused(**{name: str(raw.get(name) or "") for name in Refused.__slots__})

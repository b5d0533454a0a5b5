"""What the clients' side and the engine say to each other: plain values, the same through a thread and a socket.

commands  Add, Abort, Stop                   in the order in which they were given
events    Progressed*, Ready, Stepped*       or Died at any point, after which nothing comes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from octavo_server.engine.admission import Limits
from octavo_server.engine.engine import OutputDelta
from octavo_server.engine.records import EngineRecords
from octavo_server.engine.request import Request
from octavo_server.engine.startup import Stage
from octavo_server.metrics import EngineSnapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Add:
    """Take this request."""

    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Abort:
    """Nobody reads this request any more."""

    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End, whatever runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far the start has come; as StartupProgress, which it is a picture of."""

    stage: Stage
    bytes: int
    total_bytes: int
    message: str
    stage_seconds: dict[str, float]
    location: str
    """Where on this machine the model lies; empty until that is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The model is loaded; requests may come."""

    limits: Limits
    snapshot: EngineSnapshot
    resolved: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A step, or several, ended."""

    deltas: list[OutputDelta]
    snapshot: EngineSnapshot
    num_taken: int
    """Outputs that the engine has ever taken from its commands."""
    num_commands: int
    """Commands that it has ever taken."""
    records: EngineRecords


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The engine has ended and serves nobody any more."""

    message: str
    reason: str | None = None
    """One of the control plane's reasons, where the start failed."""


Command = Add | Abort | Stop
Event = Progressed | Ready | Stepped | Died


def add_event(pending: list[Event], event: Event) -> None:
    """Appends an event to those that wait to be taken; where nobody takes them, they grow no longer than the outputs."""
    last = pending[-1] if pending else None
    if isinstance(last, Stepped) and isinstance(event, Stepped):
        pending[-1] = _joined_steps(last, event)
    elif isinstance(last, Progressed) and isinstance(event, Progressed):
        pending[-1] = event
    else:
        pending.append(event)


def joined_deltas(deltas: Sequence[OutputDelta]) -> OutputDelta:
    """Deltas of one output, in order, as one."""
    if len(deltas) == 1:
        return deltas[0]
    return deltas[-1]._replace(
        text="".join([delta.text for delta in deltas]),
        tokens=tuple(chain.from_iterable([delta.tokens for delta in deltas])),
        prompt_logprobs=tuple(chain.from_iterable([delta.prompt_logprobs for delta in deltas])),
    )


def _joined_steps(earlier: Stepped, later: Stepped) -> Stepped:
    deltas: dict[tuple[str, int], list[OutputDelta]] = {}
    for delta in chain(earlier.deltas, later.deltas):
        deltas.setdefault((delta.request_id, delta.index), []).append(delta)
    earlier.records.extend(later.records)
    return replace(later, deltas=[joined_deltas(parts) for parts in deltas.values()], records=earlier.records)

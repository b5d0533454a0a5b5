"""Decides what the HPA cannot: whether an idle model may go to zero. Every answer carries a sentence why.

Pure: everything it knows comes in as arguments. How many replicas the pressure asks for is the HPA's own arithmetic and has no twin here.

Times come in as durations in seconds, so that no clock is needed here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroDecision:
    """Whether to write `spec.replicas` 0."""

    to_zero: bool
    reason: str
    """One sentence for a person, without a full stop."""
    blocked_by: str = ""
    """What stands in the way, as a CamelCase word; empty where only time is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Idleness:
    """How quiet a ModelDeployment is, in seconds up to now; `idle_for_s` is None while no replica has been ready."""

    idle_for_s: float | None
    since_last_wake_s: float | None
    """None: it was never woken as far as anyone knows."""
    held: int
    silent_pods: tuple[str, ...] = ()
    silent_gateways: tuple[str, ...] = ()


def decide_zero(*, min_replicas: int, replicas: int, idle_after_s: float, idleness: Idleness) -> ZeroDecision:
    """Whether a model that nobody uses may go to zero now.

    It may when for `idle_after_s` since the first Ready no counter moved, nothing ran or waited, no gateway held a
    request and nobody woke it.
    """
    if min_replicas > 0:
        return ZeroDecision(to_zero=False, reason=f"minReplicas is {min_replicas}, so it never goes to zero")
    if replicas == 0:
        return ZeroDecision(to_zero=False, reason="it is at zero replicas already")
    blocker = _zero_blocker(idleness, idle_after_s)
    if blocker is not None:
        return blocker
    return ZeroDecision(to_zero=True, reason=f"no request for {_seconds(idle_after_s)}, which is its idleAfter")


def _zero_blocker(idleness: Idleness, idle_after_s: float) -> ZeroDecision | None:
    """The first thing that speaks against zero, in the order in which a person would want to hear it."""
    if idleness.held > 0:
        return _blocked("HoldingRequests", f"gateways hold {idleness.held} requests for it")
    if idleness.idle_for_s is None:
        return _blocked("NeverReady", "no replica has been ready since it left zero")
    if idleness.silent_pods:
        return _blocked("MetricsUnavailable", f"{len(idleness.silent_pods)} ready pods do not report their load")
    if idleness.silent_gateways:
        names = ", ".join(idleness.silent_gateways)
        return _blocked("GatewayUnavailable", f"it is unknown what these gateways hold: {names}")
    if idleness.since_last_wake_s is not None and idleness.since_last_wake_s < idle_after_s:
        woken = _seconds(idleness.since_last_wake_s)
        return _blocked("RecentlyWoken", f"it was woken {woken} ago, idleAfter is {_seconds(idle_after_s)}")
    if idleness.idle_for_s < idle_after_s:
        quiet = _seconds(idleness.idle_for_s)
        return ZeroDecision(to_zero=False, reason=f"idle for {quiet}, idleAfter is {_seconds(idle_after_s)}")
    return None


def _blocked(word: str, reason: str) -> ZeroDecision:
    return ZeroDecision(to_zero=False, reason=reason, blocked_by=word)


def _seconds(duration_s: float) -> str:
    return f"{duration_s:.0f} s"

"""What a start does and what it took: `status.download` and `status.coldStart`, from `/startup` and the pod's own times. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from typing import Any

from octavo_operator.api.types import JsonObject
from octavo_operator.observed import Observed, Pod, Startup
from octavo_operator.units import bytes_text, seconds_text


def make_download(startups: Iterable[Startup]) -> dict[str, Any] | None:
    """The download that has most left to fetch; None where nothing is fetched."""
    running = [startup for startup in startups if startup.is_downloading and startup.total_bytes]
    if not running:
        return None
    slowest = max(running, key=lambda startup: startup.left_bytes)
    report = {
        "bytes": slowest.done_bytes,
        "totalBytes": slowest.total_bytes,
        "bytesPerSecond": slowest.bytes_per_second,
        "progress": f"{bytes_text(slowest.done_bytes, slowest.total_bytes)}{_left(slowest)}",
    }
    if slowest.left_s is not None:
        report["remainingSeconds"] = slowest.left_s
    return report


def _left(startup: Startup) -> str:
    return "" if startup.left_s is None else f" {seconds_text(startup.left_s)}"


def pod_to_report(pods: Iterable[Pod], status: JsonObject) -> Pod | None:
    """The newest ready pod, where its start has not been told yet."""
    newest = max((pod for pod in pods if pod.is_ready), key=lambda pod: pod.created, default=None)
    told = str(status.get("coldStart", {}).get("created", ""))
    return newest if newest is not None and newest.created > told else None


def make_cold_start(observed: Observed) -> JsonObject | None:
    """How long the newest pod took from its creation to Ready, stage by stage; the old report where there is no newer pod."""
    pod = pod_to_report(observed.pods, observed.status)
    startup = observed.startups.get(pod.name) if pod is not None else None
    if pod is None or startup is None or startup.is_loading:
        old: JsonObject | None = observed.status.get("coldStart")
        return old
    return _report(pod, startup.stage_seconds)


def _report(pod: Pod, stages: Mapping[str, float]) -> dict[str, Any]:
    scheduled, ready = pod.condition("PodScheduled"), pod.condition("Ready")
    spans = {
        "scheduled": _span(pod.created, scheduled.get("lastTransitionTime")),
        "download": stages.get("downloading", 0.0),
        "load": stages.get("loading_weights", 0.0),
        "warmup": stages.get("warming_up", 0.0),
        "total": _span(pod.created, ready.get("lastTransitionTime")),
    }
    if not pod.server.get("restartCount"):
        # Of a container that was started anew nobody knows when it was first.
        started = pod.server.get("state", {}).get("running", {}).get("startedAt")
        spans["imagePull"] = _span(scheduled.get("lastTransitionTime"), started)
    durations = {name: f"{seconds:.0f}s" for name, seconds in spans.items() if seconds is not None}
    return {"pod": pod.name, "created": pod.created, **durations}


def _span(since: str | None, until: str | None) -> float | None:
    """Seconds between two times of the API server; None where one is missing."""
    if not since or not until:
        return None
    begin, end = (datetime.datetime.fromisoformat(text.replace("Z", "+00:00")) for text in (since, until))
    return max(0.0, (end - begin).total_seconds())

from __future__ import annotations

import datetime
from typing import Any

import pytest

from octavo_operator.events import make_event
from octavo_testing.control_plane import a_manifest

AT = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)


def status(ready: str, reason: str) -> dict[str, Any]:
    return {"conditions": [{"type": "Ready", "status": ready, "reason": reason, "message": "m" * 2000}]}


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        (None, status("False", "ImagePullFailed"), "Warning"),
        (status("False", "LoadingWeights"), status("True", "AllReplicasReady"), "Normal"),
        (status("True", "AllReplicasReady"), status("False", "InsufficientGPU"), "Warning"),
        (status("False", "InsufficientGPU"), status("False", "InsufficientGPU"), None),
        (status("False", "Starting"), status("False", "LoadingWeights"), None),
        (status("False", "WarmingUp"), status("False", "ProbeFailed"), None),
        (status("True", "AllReplicasReady"), status("False", "ProbeFailed"), "Warning"),
    ],
)
def test_only_news_for_people_become_events(old: dict[str, Any] | None, new: dict[str, Any], kind: str | None) -> None:
    event = make_event(a_manifest(status=old), new, identity="op-1", now=AT)

    assert (None if event is None else event["type"]) == kind


def test_event_is_about_the_resource_and_bounded() -> None:
    event = make_event(a_manifest(), status("False", "ModelNotFound"), identity="op-1", now=AT)

    assert event is not None
    assert event["involvedObject"]["kind"] == "ModelDeployment"
    assert event["reason"] == "ModelNotFound"
    assert event["eventTime"] == "2026-01-02T00:00:00.000000Z"
    assert len(event["message"]) == 1024


def test_event_bears_the_time_by_which_describe_sorts() -> None:
    event = make_event(a_manifest(), status("False", "ModelNotFound"), identity="op-1", now=AT)

    assert event is not None
    assert (event["apiVersion"], event["firstTimestamp"], event["lastTimestamp"], event["count"]) == (
        "v1",
        "2026-01-02T00:00:00Z",
        "2026-01-02T00:00:00Z",
        1,
    )

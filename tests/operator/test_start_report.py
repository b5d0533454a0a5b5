"""status.download and status.coldStart: what a start does, and what it took."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.observed import Pod, Startup
from octavo_operator.start_report import make_cold_start, make_download, pod_to_report
from octavo_operator.status import make_status
from octavo_testing.control_plane import NOW, a_desired, a_manifest, a_pod, a_resource, an_observed, running

GB = 10**9
LOADED = Startup(
    stage="ready", stage_seconds={"starting": 1.2, "downloading": 0.0, "loading_weights": 8.6, "warming_up": 4.0}
)


def a_timed_pod(name: str = "qwen-abc-1", *, created: str = "10:00:00", ready: bool = True, **server: Any) -> Pod:
    """Scheduled after 2 s, its container runs after 33 s, ready after 46 s."""
    pod = a_pod(name, ready=ready, server=running(**server))
    minute = created[:6]
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": f"2026-01-01T{minute}02Z"},
        {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": f"2026-01-01T{minute}46Z"},
    ]
    statuses = [{**pod.server, "state": {"running": {"startedAt": f"2026-01-01T{minute}33Z"}}}]
    return Pod(
        raw={
            **pod.raw,
            "metadata": {**pod.raw["metadata"], "creationTimestamp": f"2026-01-01T{created}Z"},
            "status": {**pod.raw["status"], "conditions": conditions, "containerStatuses": statuses},
        }
    )


def test_the_download_with_most_left_is_told() -> None:
    fast = Startup(stage="downloading", done_bytes=14 * GB, total_bytes=15 * GB, bytes_per_second=GB)
    slow = Startup(
        stage="downloading", done_bytes=3_100_000_000, total_bytes=14_900_000_000, bytes_per_second=281_000_000
    )

    assert make_download([fast, slow]) == {
        "bytes": 3_100_000_000,
        "totalBytes": 14_900_000_000,
        "bytesPerSecond": 281_000_000,
        "remainingSeconds": 42,
        "progress": "3.1/14.9 GB 42 s",
    }


@pytest.mark.parametrize(
    "startups",
    [[], [Startup(stage="loading_weights", done_bytes=1, total_bytes=2)], [Startup(stage="downloading")]],
    ids=["nobody", "weights from the disk", "not begun"],
)
def test_nothing_is_told_while_nothing_is_fetched(startups: list[Startup]) -> None:
    assert make_download(startups) is None


def test_what_does_not_move_has_no_end() -> None:
    told = make_download([Startup(stage="downloading", done_bytes=5_000_000, total_bytes=9_000_000)])

    assert told is not None
    assert told["progress"] == "5/9 MB"
    assert "remainingSeconds" not in told


def test_a_start_is_taken_apart() -> None:
    pod = a_timed_pod()

    told = make_cold_start(an_observed(pods=(pod,), startups={pod.name: LOADED}))

    assert told == {
        "pod": "qwen-abc-1",
        "created": "2026-01-01T10:00:00Z",
        "scheduled": "2s",
        "imagePull": "31s",
        "download": "0s",
        "load": "9s",
        "warmup": "4s",
        "total": "46s",
    }


def test_a_container_that_was_started_anew_tells_no_image_pull() -> None:
    pod = a_timed_pod(restartCount=1)

    told = make_cold_start(an_observed(pods=(pod,), startups={pod.name: LOADED}))

    assert told is not None
    assert "imagePull" not in told


def test_each_start_is_told_once_and_only_of_newer_pods() -> None:
    old, new = a_timed_pod("old"), a_timed_pod("new", created="11:00:00")
    first = make_cold_start(an_observed(pods=(old,), startups={"old": LOADED}))
    status = {"coldStart": first}

    assert pod_to_report((old,), {}) is old
    assert pod_to_report((old,), status) is None
    assert pod_to_report((old, new), status) is new
    assert pod_to_report((a_timed_pod("new", created="11:00:00", ready=False), old), status) is None
    observed = an_observed(pods=(old, new), resource=a_manifest(status=status))
    # It was asked and did not answer.
    assert make_cold_start(observed) == first
    warming = {"new": Startup(stage="warming_up")}
    assert make_cold_start(an_observed(pods=(old, new), startups=warming, resource=a_manifest(status=status))) == first


def test_the_status_has_both_while_they_mean_something() -> None:
    pod = a_timed_pod()
    loading = Startup(stage="downloading", done_bytes=GB, total_bytes=2 * GB, bytes_per_second=GB)
    resource = a_resource()

    def status(**fields: Any) -> dict[str, Any]:
        return make_status(resource, a_desired(resource), an_observed(**fields), gateway_url="", now=NOW)

    during = status(pods=(a_timed_pod(ready=False),), startups={pod.name: loading})
    after = status(pods=(pod,), startups={pod.name: LOADED}, resource=a_manifest(status=during))

    assert during["download"]["progress"] == "1.0/2.0 GB 1 s"
    assert "coldStart" not in during
    assert "download" not in after
    assert after["coldStart"]["total"] == "46s"

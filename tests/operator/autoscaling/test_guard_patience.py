"""How long the pending guard waits for a replica that its node cannot make, and for whom it never gives up."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from octavo_operator.autoscaling.guard import NODE_PATIENCE_S, find_blocker
from octavo_testing.control_plane import (
    AT,
    NOW,
    a_deployment,
    a_pod,
    a_resource,
    an_observed,
    ended,
    termination_log,
    waiting,
)

SCALED: dict[str, Any] = {"scaling": {"minReplicas": 1, "maxReplicas": 8}}
NO_IMAGE = {"server": waiting("ImagePullBackOff", "no such image")}
STALLED = {"server": waiting("CrashLoopBackOff", lastState=ended(1, termination_log("DownloadStalled", "got nothing")))}
NO_NODE = {"unschedulable": "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."}


def blocker(late: dict[str, Any], *, of: str = "abc") -> str:
    """Long after a pod beside one of revision abc that serves was made."""
    pods = (a_pod("qwen-abc-0", revision="abc", ready=True), a_pod("qwen-late", revision=of, **late))
    pods[1].raw["metadata"]["creationTimestamp"] = NOW
    deployments = [a_deployment(name, replicas=2) for name in {"abc", of}]
    now = AT + timedelta(seconds=2 * NODE_PATIENCE_S)
    return find_blocker(a_resource(**SCALED), an_observed(*deployments, pods=pods), now=now)


@pytest.mark.parametrize(("late", "words"), [(NO_NODE, "needs 1 nvidia.com/gpu"), (STALLED, "got nothing")])
def test_what_the_next_replica_would_suffer_too_blocks_however_long_it_takes(late: dict[str, Any], words: str) -> None:
    assert words in blocker(late)


def test_a_pod_without_a_time_of_its_node_is_given_up_by_its_age() -> None:
    assert blocker(NO_IMAGE) == ""


def test_another_revision_that_serves_says_nothing_of_this_ones_image() -> None:
    assert "no such image" in blocker(NO_IMAGE, of="other")

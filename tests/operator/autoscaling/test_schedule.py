"""Bounds that change by the clock: which schedule is in force, and that everything follows it at its time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from octavo_operator.autoscaling.schedule import apply_schedules
from octavo_operator.cron import last_start, next_start
from octavo_operator.errors import SpecInvalidError
from octavo_testing.control_plane import a_resource
from octavo_testing.rollout_cluster import Cluster, a_cluster

DAY = {"name": "day", "cron": "0 8 * * 1-5", "minReplicas": 3, "maxReplicas": 10}
NIGHT = {"name": "night", "cron": "0 20 * * 1-5", "minReplicas": 0, "maxReplicas": 2}
MONDAY = "2026-03-02T"


def bounds(schedules: list[dict[str, Any]], at: str, **scaling: Any) -> tuple[str, int, int, float | None]:
    """(schedule, fewest, most, seconds until the next one begins)."""
    resource = a_resource(scaling={"minReplicas": 1, "maxReplicas": 4, **scaling, "schedules": schedules})
    scheduled = apply_schedules(resource, now=datetime.fromisoformat(at))
    found = scheduled.resource.spec.scaling
    assert found is not None
    return scheduled.schedule, found.min_replicas, found.max_replicas, scheduled.look_again_s


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (f"{MONDAY}07:59:59Z", ("night", 0, 2, 1)),
        (f"{MONDAY}08:00:00Z", ("day", 3, 10, 12 * 3600)),
        (f"{MONDAY}19:59:59.9Z", ("day", 3, 10, 1)),
        (f"{MONDAY}20:00:00.001Z", ("night", 0, 2, 12 * 3600 - 0.001)),
        ("2026-03-08T12:00:00Z", ("night", 0, 2, 20 * 3600)),
    ],
)
def test_a_schedule_is_in_force_until_the_next_one_begins(at: str, expected: tuple[str, int, int, float]) -> None:
    assert bounds([DAY, NIGHT], at) == pytest.approx(expected)


def test_without_schedules_nothing_changes() -> None:
    assert bounds([], f"{MONDAY}08:00:00Z") == ("", 1, 4, None)


def test_what_a_schedule_leaves_out_is_as_scaling_says() -> None:
    lunch = {"name": "lunch", "cron": "0 12 * * *"}

    assert bounds([{**lunch, "maxReplicas": 9}], f"{MONDAY}13:00:00Z")[:3] == ("lunch", 1, 9)
    assert bounds([{**lunch, "minReplicas": 2}], f"{MONDAY}13:00:00Z")[:3] == ("lunch", 2, 4)
    assert bounds([lunch], f"{MONDAY}13:00:00Z")[:3] == ("lunch", 1, 4)


def test_of_two_that_fire_in_the_same_minute_the_last_one_counts() -> None:
    every, first = {**DAY, "cron": "0 8 * * *"}, {**DAY, "name": "first", "cron": "0 8 1 * *"}

    assert bounds([every, first], "2026-03-01T09:00:00Z")[0] == "first"
    assert bounds([first, every], "2026-03-01T09:00:00Z")[0] == "day"
    assert bounds([every, first], "2026-03-02T09:00:00Z")[0] == "day"


def test_a_schedule_is_of_its_time_zone_in_summer_too() -> None:
    berlin = [{**DAY, "timeZone": "Europe/Berlin"}, {**NIGHT, "timeZone": "Europe/Berlin"}]

    assert bounds(berlin, "2026-01-15T07:30:00Z")[0] == "day"
    assert bounds(berlin, "2026-07-15T06:30:00Z")[0] == "day"
    assert bounds(berlin, "2026-07-15T18:30:00Z")[0] == "night"


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ({"cron": "61 * * * *"}, r"spec\.scaling\.schedules\[1\]\.cron: Bad minute"),
        ({"cron": "0 0 30 2 *"}, r"spec\.scaling\.schedules\[1\]\.cron"),
        ({"timeZone": "Mars/Base"}, r"spec\.scaling\.schedules\[1\]\.timeZone: .*Mars/Base"),
    ],
)
def test_what_no_schema_can_judge_is_refused_by_its_field(schedule: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecInvalidError, match=words):
        bounds([DAY, {**NIGHT, **schedule}], f"{MONDAY}08:00:00Z")


@settings(deadline=None)
@example(now=datetime(2026, 3, 29, 1, 0, 30, tzinfo=UTC), cron="30 2 * * *", zone="Europe/Berlin")
@example(now=datetime(2026, 10, 25, 1, 45, tzinfo=UTC), cron="30 2 * * *", zone="Europe/Berlin")
@example(now=datetime(2026, 10, 25, 1, 10, tzinfo=UTC), cron="30 2 * * *", zone="Europe/Berlin")
@example(now=datetime(2026, 10, 25, 0, 59, 30, tzinfo=UTC), cron="*/7 * * * *", zone="Europe/Berlin")
@given(
    now=st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    cron=st.sampled_from(["0 8 * * 1-5", "*/7 * * * *", "30 2 * * *", "0 0 1 * *", "15 1-3 * * 0"]),
    zone=st.sampled_from(["", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
)
def test_between_the_last_start_and_the_next_nothing_fires(now: datetime, cron: str, zone: str) -> None:
    """The days on which clocks are set included: nobody waits for a time that has passed, or misses one."""
    last, following = last_start(cron, zone, now), next_start(cron, zone, now)

    assert last <= now < following
    assert next_start(cron, zone, last - timedelta(seconds=1)) == last
    assert next_start(cron, zone, last) == following
    assert last.tzinfo == following.tzinfo == UTC, "in any other zone a sum is off by an hour where clocks are set"


# All that the operator does by it


def at(cluster: Cluster, clock: str) -> Any:
    """The operator, at a time of that Monday."""
    cluster.now = datetime.fromisoformat(f"{MONDAY}{clock}Z")
    outcome = cluster.reconcile()
    cluster.reconcile()
    return outcome


def a_scheduled_cluster() -> Cluster:
    cluster = a_cluster(gpus=16, replicas=2, scaling={"minReplicas": 1, "maxReplicas": 4, "schedules": [DAY, NIGHT]})
    at(cluster, "07:59:00")
    return cluster


def hpa_bounds(cluster: Cluster) -> tuple[int, int]:
    spec = cluster.objects["HorizontalPodAutoscaler", "qwen"]["spec"]
    return spec["minReplicas"], spec["maxReplicas"]


def test_the_autoscalers_bounds_follow_and_the_operator_wakes_up_for_it() -> None:
    cluster = a_scheduled_cluster()
    assert hpa_bounds(cluster) == (1, 2), "from zero only a request wakes"
    assert cluster.reconcile().look_again_s == 60

    at(cluster, "08:00:00")

    assert hpa_bounds(cluster) == (3, 10)
    assert cluster.manifest["status"]["scaling"]["schedule"] == "day"
    cluster.edit(replicas=3)
    at(cluster, "08:00:15")
    decision = cluster.manifest["status"]["scaling"]["decisions"][0]
    assert (decision["to"], decision["reason"]) == (3, "minReplicas is 3 by schedule day")
    cluster.edit(replicas=2)
    at(cluster, "20:00:15")
    decision = cluster.manifest["status"]["scaling"]["decisions"][0]
    assert (decision["to"], decision["reason"]) == (2, "maxReplicas is 2 by schedule night")


def test_a_model_that_sleeps_is_woken_by_a_schedule_with_more() -> None:
    cluster = a_scheduled_cluster()
    cluster.edit(replicas=0)
    at(cluster, "07:59:30")
    assert cluster.manifest["spec"]["replicas"] == 0

    at(cluster, "08:00:00")

    assert cluster.manifest["spec"]["replicas"] == 3
    assert sum(cluster.counts().values()) == 3


def test_while_a_schedule_is_in_force_nothing_is_written() -> None:
    cluster = a_scheduled_cluster()
    at(cluster, "08:00:00")
    cluster.writes.clear()

    at(cluster, "11:00:00")

    assert cluster.writes == []


def test_a_schedule_that_cannot_be_is_a_condition_and_what_runs_goes_on() -> None:
    cluster = a_scheduled_cluster()
    cluster.edit(scaling={"maxReplicas": 4, "schedules": [{**DAY, "cron": "99 8 * * *"}]})

    cluster.reconcile()

    ready = cluster.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "SpecInvalid")
    assert "spec.scaling.schedules[0].cron" in ready["message"]
    assert cluster.ready() == 2

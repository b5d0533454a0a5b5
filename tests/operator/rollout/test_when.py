"""When a rollout may begin."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from octavo_operator.api.types import RolloutWhen
from octavo_operator.errors import SpecInvalidError
from octavo_operator.rollout.when import check_window, why_wait
from octavo_testing.rollout_cluster import Cluster, a_cluster, revision_of

NIGHTLY = {"policy": "Window", "cron": "0 2 * * *", "duration": "1h"}


def window(cron: str = "0 2 * * *", *, hours: float = 1, zone: str = "") -> RolloutWhen:
    return RolloutWhen(policy="Window", cron=cron, duration_s=int(hours * 3600), time_zone=zone)


def is_open(when: RolloutWhen, at: str) -> bool:
    return why_wait(when, idle_for_s=None, now=datetime.fromisoformat(at)) is None


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ("2026-03-03T01:59:59Z", False),
        ("2026-03-03T02:00:00Z", True),
        ("2026-03-03T02:59:59Z", True),
        ("2026-03-03T03:00:00Z", False),
    ],
)
def test_window_is_open_from_its_time_for_its_duration(at: str, expected: bool) -> None:
    assert is_open(window(), at) is expected


def test_window_that_is_about_to_open_within_the_minute_is_not_open_yet() -> None:
    assert not is_open(window("1 2 * * *"), "2026-03-03T02:00:30Z")


def test_window_may_reach_over_midnight_and_weeks() -> None:
    saturday = window("0 22 * * 6", hours=30)

    assert is_open(saturday, "2026-03-08T23:00:00Z")
    assert not is_open(saturday, "2026-03-09T04:00:00Z")


def test_window_is_of_its_time_zone_in_summer_too() -> None:
    berlin = window(zone="Europe/Berlin")

    assert is_open(berlin, "2026-01-15T01:30:00Z")
    assert is_open(berlin, "2026-07-15T00:30:00Z")
    assert not is_open(berlin, "2026-07-15T01:30:00Z")


@pytest.mark.parametrize("day", ["2026-03-29", "2026-07-15", "2026-10-25"], ids=["forward", "neither", "back"])
def test_window_lasts_as_long_when_clocks_are_set(day: str) -> None:
    berlin = window("0 1 * * *", hours=4, zone="Europe/Berlin")
    begin = datetime.fromisoformat(f"{day}T01:00:00").replace(tzinfo=ZoneInfo("Europe/Berlin")).astimezone(UTC)

    assert [is_open(berlin, (begin + timedelta(minutes=m)).isoformat()) for m in (-1, 0, 239, 240)] == [
        False,
        True,
        True,
        False,
    ]


def test_wait_says_when_the_window_opens_and_is_looked_at_then() -> None:
    wait = why_wait(window(), idle_for_s=None, now=datetime.fromisoformat("2026-03-03T01:58:00Z"))

    assert wait is not None
    assert wait.why == "rollout.when is Window '0 2 * * *' and the next one opens at 2026-03-03T02:00:00Z"
    assert wait.look_again_s == 120


@pytest.mark.parametrize(("idle_for_s", "waits"), [(None, True), (59.0, True), (60.0, False)])
def test_idle_is_a_minute_without_a_request(idle_for_s: float | None, waits: bool) -> None:
    when = RolloutWhen(policy="Idle")

    assert (
        why_wait(when, idle_for_s=idle_for_s, now=datetime.fromisoformat("2026-03-03T00:00:00Z")) is not None
    ) is waits


@pytest.mark.parametrize(
    ("when", "words"),
    [
        (window("61 * * * *"), r"spec\.rollout\.when\.cron: Bad minute"),
        (window("0 0 30 2 *"), r"spec\.rollout\.when\.cron"),
        (window(zone="Mars/Base"), r"spec\.rollout\.when\.timeZone: .*Mars/Base"),
        (window(zone="../etc"), r"spec\.rollout\.when\.timeZone"),
    ],
)
def test_what_the_schema_cannot_judge_is_refused_by_name(when: RolloutWhen, words: str) -> None:
    with pytest.raises(SpecInvalidError, match=words):
        check_window(when)


def waiting_cluster(**when: str) -> tuple[Cluster, str]:
    """A model that serves and whose new revision waits at noon."""
    cluster = a_cluster(gpus=3, replicas=2, rollout={"when": when})
    cluster.now = cluster.now.replace(hour=12, minute=0, second=0)
    cluster.edit(engine={"maxNumSeqs": 4})
    cluster.reconcile()
    return cluster, revision_of(cluster)


def test_rollout_waits_for_its_window_says_so_and_then_begins() -> None:
    cluster, old = waiting_cluster(**NIGHTLY)

    assert (list(cluster.counts()), cluster.rollout["pending"] != old) == ([old], True)
    progressing = cluster.condition("Progressing")
    assert (progressing["reason"], cluster.condition("Ready")["status"]) == ("RolloutPending", "True")
    assert "opens at 2026-01-" in progressing["message"]
    cluster.now = cluster.now.replace(hour=2) + timedelta(days=1)
    cluster.settle()

    assert old not in cluster.counts()
    assert "pending" not in cluster.rollout
    assert cluster.condition("Progressing")["reason"] == "RolledOut"


def test_rollout_that_has_begun_goes_on_when_the_window_closes() -> None:
    cluster, old = waiting_cluster(**NIGHTLY)
    cluster.now = cluster.now.replace(hour=2, minute=59) + timedelta(days=1)
    cluster.reconcile()
    assert revision_of(cluster) != old

    cluster.wait(3600)
    cluster.settle()

    assert old not in cluster.counts()


def test_pending_revision_is_not_begun_while_replicas_are_scaled() -> None:
    cluster, old = waiting_cluster(**NIGHTLY)
    cluster.edit(replicas=3)
    cluster.settle()

    assert cluster.counts() == {old: 3}


def test_idle_model_rolls_over() -> None:
    cluster, old = waiting_cluster(policy="Idle")
    cluster.idle_for_s = 30.0
    assert cluster.reconcile().look_again_s == 5
    assert revision_of(cluster) == old

    cluster.idle_for_s = 61.0
    cluster.settle()

    assert old not in cluster.counts()


def test_model_that_serves_nothing_does_not_wait() -> None:
    cluster = Cluster(gpus=1)
    cluster.edit(rollout={"when": NIGHTLY}, engine={"maxNumSeqs": 13})
    cluster.now = cluster.now.replace(hour=12)
    cluster.settle()
    assert cluster.served() == 0

    cluster.edit(engine={"maxNumSeqs": 4})
    cluster.settle()

    assert cluster.served() == 1


def crash_all(cluster: Cluster) -> None:
    while cluster.ready():
        cluster.crash(0)


def test_moment_without_a_ready_replica_does_not_begin_a_rollout_and_a_minute_does() -> None:
    """A server that is started anew would otherwise bring the change at noon that was put off until the night."""
    cluster, old = waiting_cluster(**NIGHTLY)
    crash_all(cluster)
    cluster.reconcile()
    cluster.wait(30)
    outcome = cluster.reconcile()
    assert (revision_of(cluster), cluster.condition("Available")["status"]) == (old, "False")
    assert outcome.look_again_s is not None
    assert outcome.look_again_s <= 60
    cluster.start_servers()
    cluster.reconcile()
    crash_all(cluster)
    cluster.reconcile()
    assert revision_of(cluster) == old

    cluster.wait(60)
    cluster.reconcile()

    assert revision_of(cluster) != old


def test_wrong_cron_expression_is_told_in_the_status() -> None:
    cluster, old = waiting_cluster(**NIGHTLY)
    cluster.edit(rollout={"when": {**NIGHTLY, "cron": "99 2 * * *"}})
    cluster.reconcile()

    assert revision_of(cluster) == old
    ready = cluster.condition("Ready")
    assert (ready["reason"], ready["message"]) == ("SpecInvalid", "spec.rollout.when.cron: Bad minute")

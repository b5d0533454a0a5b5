"""Rules of the activity clock, in virtual time."""

from __future__ import annotations

from octavo_operator.autoscaling.policy import decide_zero
from octavo_operator.autoscaling.window import Activity, ActivityTracker
from octavo_testing.adapter import NOW, a_load

KEY = "default/qwen"


def observe(tracker: ActivityTracker, at: float, loads=None, *, replicas: int = 1, held: int = 0, last_wake=None):
    """One round `at` seconds after the test's beginning."""
    loads = {"pod": a_load(requests_total=7)} if loads is None else loads
    wake = None if last_wake is None else NOW + last_wake
    return tracker.observe(KEY, replicas=replicas, loads=loads, held=held, last_wake=wake, now=NOW + at)


def idle_for(activity: Activity, at: float) -> float | None:
    return activity.idleness(now=NOW + at).idle_for_s


def test_the_clock_starts_with_the_tracker_not_with_the_pods():
    """A restarted operator waits a whole idleAfter, however long the model has been idle."""
    tracker = ActivityTracker()

    observe(tracker, 0)

    assert idle_for(observe(tracker, 90), 100) == 100


def test_a_counter_that_moved_restarts_the_clock():
    tracker = ActivityTracker()
    observe(tracker, 0)

    observe(tracker, 50, {"pod": a_load(requests_total=8)})

    assert idle_for(observe(tracker, 60, {"pod": a_load(requests_total=8)}), 60) == 10


def test_running_or_waiting_requests_are_activity_even_when_no_counter_moves():
    for load in (a_load(running=1, requests_total=7), a_load(waiting=1, requests_total=7)):
        tracker = ActivityTracker()
        observe(tracker, 0)
        assert idle_for(observe(tracker, 40, {"pod": load}), 40) == 0


def test_a_request_that_a_gateway_holds_is_activity():
    tracker = ActivityTracker()
    observe(tracker, 0)

    activity = observe(tracker, 40, held=2)

    assert idle_for(activity, 40) == 0
    assert activity.idleness(now=NOW + 40).held == 2


def test_a_restarted_container_that_took_no_request_is_no_activity():
    """Its counter falls to 0; nothing was asked of it."""
    tracker = ActivityTracker()
    observe(tracker, 0)

    assert idle_for(observe(tracker, 30, {"pod": a_load(requests_total=0)}), 30) == 30


def test_a_restarted_container_that_took_requests_is_activity():
    tracker = ActivityTracker()
    observe(tracker, 0)

    assert idle_for(observe(tracker, 30, {"pod": a_load(requests_total=2)}), 30) == 0


def test_after_a_counter_reset_the_lower_counter_is_the_one_to_compare_with():
    tracker = ActivityTracker()
    observe(tracker, 0)
    observe(tracker, 30, {"pod": a_load(requests_total=2)})

    assert idle_for(observe(tracker, 60, {"pod": a_load(requests_total=2)}), 60) == 30


def test_a_ready_pod_of_unknown_load_counts_as_busy_and_is_named():
    tracker = ActivityTracker()
    observe(tracker, 0)

    activity = observe(tracker, 30, {"pod": a_load(requests_total=7), "silent": None})

    assert idle_for(activity, 30) == 0
    assert activity.silent_pods == ("silent",)


def test_a_pod_that_speaks_again_with_its_old_counter_did_nothing_meanwhile():
    tracker = ActivityTracker()
    observe(tracker, 0)
    observe(tracker, 30, {"pod": None})

    assert idle_for(observe(tracker, 60), 60) == 30


def test_no_replica_ready_yet_has_no_idle_time():
    tracker = ActivityTracker()

    assert idle_for(observe(tracker, 500, {}), 500) is None


def test_idle_time_begins_at_the_first_ready():
    tracker = ActivityTracker()
    observe(tracker, 0, {})

    observe(tracker, 100, {"pod": a_load(requests_total=0)})

    assert idle_for(observe(tracker, 130, {"pod": a_load(requests_total=0)}), 130) == 30


def test_losing_readiness_for_a_while_keeps_the_first_ready():
    tracker = ActivityTracker()
    observe(tracker, 0, {"pod": a_load(requests_total=0)})
    observe(tracker, 20, {})

    assert idle_for(observe(tracker, 30, {"pod": a_load(requests_total=0)}), 30) == 30


def test_a_spell_above_zero_begins_anew_after_zero():
    """Woken by anybody at second 1000: the wake is noted, and the old first Ready counts no more."""
    tracker = ActivityTracker()
    observe(tracker, 0)
    observe(tracker, 700, {}, replicas=0)

    loading = observe(tracker, 1000, {}, replicas=1)
    ready = observe(tracker, 1030, {"pod-2": a_load(requests_total=0)}, replicas=1)

    assert loading.idleness(now=NOW + 1000).idle_for_s is None
    assert loading.idleness(now=NOW + 1010).since_last_wake_s == 10
    assert idle_for(ready, 1040) == 10


def test_a_wake_that_a_gateway_tells_is_kept_and_an_older_one_does_not_replace_it():
    tracker = ActivityTracker()

    observe(tracker, 50, last_wake=40)
    activity = observe(tracker, 60, last_wake=30)

    assert activity.idleness(now=NOW + 60).since_last_wake_s == 20


def test_a_model_that_was_never_woken_has_no_wake():
    assert observe(ActivityTracker(), 0).idleness(now=NOW).since_last_wake_s is None


def test_what_is_not_retained_is_forgotten():
    tracker = ActivityTracker()
    observe(tracker, 0)

    tracker.retain([KEY])
    assert len(tracker) == 1
    assert tracker.activity(KEY) == observe(tracker, 1, replicas=1)

    tracker.retain(["default/other"])
    assert len(tracker) == 0
    assert tracker.activity(KEY) is None


def test_from_the_first_ready_to_zero_and_awake_again_in_virtual_time():
    """The whole life of an idle model, a round every two seconds: idleAfter 60 s."""
    tracker = ActivityTracker()
    replicas, zeros, requests = 1, [], 0
    for at in range(0, 400, 2):
        if at == 200:
            replicas = 1
        if at == 20:
            requests = 1
        loads = {"pod": a_load(requests_total=requests if at < 200 else 0)} if replicas and at % 200 >= 10 else {}
        activity = observe(tracker, at, loads, replicas=replicas)
        decision = decide_zero(
            min_replicas=0, replicas=replicas, idle_after_s=60.0, idleness=activity.idleness(now=NOW + at)
        )
        if decision.to_zero:
            replicas = 0
            zeros.append(at)

    # Ready at 10, asked at 20, so zero at 80; woken at 200, Ready at 210, never asked, so zero at 270.
    assert zeros == [80, 270]

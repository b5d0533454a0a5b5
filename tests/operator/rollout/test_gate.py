"""A new revision serves only once it has passed its gate; one that fails is rolled back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from octavo_operator.api.rollout_status import GateStatus
from octavo_operator.api.types import RolloutGate
from octavo_operator.rollout.gate import advance
from octavo_operator.rollout.gate_report import GateCheck, GateReport
from octavo_testing.control_plane import AT, a_pod, an_observed
from octavo_testing.rollout_cluster import Cluster, a_cluster, check_kills, revision_of

PROMPTS = [{"prompt": "What is 2 + 2?", "expect": "4"}]


def gated(*, gpus: int = 3, replicas: int = 2, strategy: str = "Auto", to: int = 4, **gate: Any) -> tuple[Cluster, str]:
    """A model that serves, and whose changed spec has a gate; nothing of the rollout has happened yet."""
    settings = {"strategy": strategy, "maxHold": "10m", "gate": gate or {"prompts": PROMPTS}}
    cluster = a_cluster(gpus=gpus, replicas=replicas, rollout=settings)
    old = revision_of(cluster)
    cluster.edit(engine={"maxNumSeqs": to})
    return cluster, old


def step(cluster: Cluster) -> None:
    cluster.reconcile()
    cluster.run_deployments()
    cluster.schedule()
    cluster.start_servers()
    cluster.finish_drains()


def rollbacks(cluster: Cluster, reason: str) -> float | None:
    return cluster.metrics.registry.get_sample_value("octavo_operator_rollbacks_total", {"reason": reason})


def test_first_revision_needs_no_gate() -> None:
    """There is nothing to go back to, and nothing served worse before."""
    cluster = a_cluster(gpus=1, replicas=1, rollout={"gate": {"prompts": PROMPTS}})

    assert cluster.served() == 1
    assert "gate" not in cluster.rollout


def test_ready_replica_is_not_admitted_before_its_gate_has_passed() -> None:
    cluster, old = gated()
    cluster.answers = False

    for _ in range(4):
        step(cluster)
    new = revision_of(cluster)

    assert cluster.counts() == {old: 2, new: 1}
    assert cluster.ready(new) == 1
    assert cluster.rollout["admitted"] == [old]
    assert cluster.rollout["gate"]["state"] == "Running"
    assert cluster.check is not None
    assert (cluster.check.revision, cluster.check.model) == (new, "qwen")
    cluster.answers = True
    cluster.settle()
    assert cluster.counts() == {new: 2}
    assert cluster.rollout["gate"]["state"] == "Passed"
    assert cluster.check is None


def test_failing_gate_rolls_back_and_says_what_failed() -> None:
    cluster, old = gated()
    cluster.bad_answer = "prompt 1 of 1: the answer does not contain '4'"

    cluster.settle()

    assert cluster.counts() == {old: 2}
    assert cluster.served() == 2
    ready = cluster.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "RolloutGateFailed")
    assert "did not pass the gate: prompt 1 of 1: the answer does not contain '4'" in ready["message"]
    assert cluster.condition("Progressing")["reason"] == "RolloutGateFailed"
    assert cluster.condition("Available")["status"] == "True"
    assert cluster.rollout["gate"]["state"] == "Failed"
    assert cluster.events[-1] == "RolloutGateFailed"
    assert rollbacks(cluster, "RolloutGateFailed") == 1


@pytest.mark.parametrize("strategy", ["HoldAndSwap", "Recreate"])
def test_failing_gate_of_a_swap_brings_the_old_replicas_back(strategy: str) -> None:
    cluster, old = gated(gpus=2, strategy=strategy)
    cluster.bad_answer = "wrong"

    cluster.settle()

    assert cluster.counts() == {old: 2}
    assert cluster.served() == 2


def test_swap_holds_requests_until_the_gate_has_passed() -> None:
    cluster, old = gated(gpus=1, replicas=1, strategy="HoldAndSwap")
    cluster.answers = False

    for _ in range(6):
        step(cluster)

    assert cluster.ready(revision_of(cluster)) == 1
    assert cluster.rollout["admitted"] == [old]
    assert cluster.condition("Available")["reason"] == "HoldingRequests"
    cluster.answers = True
    cluster.settle()
    assert cluster.served() == 1


def test_speed_of_the_old_revision_is_measured_before_any_of_it_is_taken_away() -> None:
    cluster, old = gated(gpus=1, replicas=1, strategy="HoldAndSwap", minThroughputRatio="0.9")
    cluster.answers = False

    for _ in range(4):
        step(cluster)
    assert cluster.counts()[old] == 1
    assert cluster.check is not None
    assert (cluster.check.state, cluster.check.revision) == ("Measuring", old)
    cluster.answers = True
    step(cluster)
    assert cluster.rollout["gate"]["baseline"] == "20.0"
    cluster.answers = False
    for _ in range(6):
        step(cluster)
    assert (cluster.check.state, cluster.check.baseline) == ("Running", 20.0)
    cluster.answers = True
    cluster.settle()

    assert old not in cluster.counts()


def test_gate_that_gets_no_answer_fails_after_its_timeout() -> None:
    cluster, old = gated(prompts=PROMPTS, timeout="3m")
    cluster.answers = False
    for _ in range(3):
        step(cluster)
    outcome = cluster.reconcile()
    assert outcome.look_again_s is not None
    assert outcome.look_again_s <= 180

    cluster.wait(180)
    cluster.settle()

    assert list(cluster.counts()) == [old]
    assert "the checks took longer than timeout, 180 s" in cluster.condition("Ready")["message"]


@pytest.mark.parametrize("gate", [{"prompts": PROMPTS}, {"minThroughputRatio": "0.9"}], ids=["running", "measuring"])
def test_time_in_which_the_resource_is_suspended_is_not_the_gates(gate: dict[str, Any]) -> None:
    cluster, old = gated(timeout="3m", **gate)
    cluster.answers = False
    for _ in range(3):
        step(cluster)
    cluster.edit(suspend=True)
    cluster.settle()

    cluster.edit(suspend=False)
    cluster.reconcile()
    cluster.answers = True
    cluster.settle()

    assert (list(cluster.counts()), cluster.rollout["gate"]["state"]) == ([cluster.rollout["revision"]], "Passed")
    assert old not in cluster.counts()


def test_report_under_other_settings_does_not_count() -> None:
    cluster, old = gated()
    cluster.bad_answer = "wrong"
    cluster.settle()

    cluster.bad_answer = ""
    cluster.edit(rollout={"gate": {"prompts": [{"prompt": "And 3 + 3?", "expect": "6"}]}})
    cluster.settle()

    assert old not in cluster.counts()
    assert cluster.rollout["gate"]["state"] == "Passed"
    assert "refused" not in cluster.rollout


def test_renamed_model_is_asked_by_its_new_name_and_measured_by_its_old_one() -> None:
    cluster, old = gated(minThroughputRatio="0.5")
    cluster.edit(servedNames=["renamed"])
    cluster.answers = False
    step(cluster)
    assert cluster.check is not None
    assert (cluster.check.revision, cluster.check.model) == (old, "qwen")

    cluster.answers = True
    step(cluster)
    cluster.answers = False
    for _ in range(4):
        step(cluster)

    assert (cluster.check.state, cluster.check.model) == ("Running", "renamed")


def test_change_at_zero_replicas_is_gated_when_the_model_wakes() -> None:
    cluster = a_cluster(gpus=1, replicas=1, rollout={"gate": {"prompts": PROMPTS}})
    old = revision_of(cluster)
    cluster.edit(replicas=0)
    cluster.settle()
    cluster.edit(engine={"maxNumSeqs": 4})
    cluster.settle()
    cluster.bad_answer = "wrong"

    cluster.edit(replicas=1)
    cluster.settle()

    assert cluster.counts() == {old: 1}
    assert cluster.served() == 1


@pytest.mark.parametrize("bad_answer", ["", "wrong"])
def test_operator_killed_while_the_gate_is_asked_comes_to_the_same_end(bad_answer: str) -> None:
    def asked() -> Cluster:
        cluster, _ = gated(gpus=1, replicas=1, strategy="HoldAndSwap", minThroughputRatio="0.9")
        cluster.bad_answer = bad_answer
        return cluster

    check_kills(asked)


@pytest.mark.parametrize(("ready", "words"), [(True, "gave no tokens"), (False, "was not ready")])
def test_speed_that_cannot_be_compared_is_left_out_and_the_message_says_so(ready: bool, words: str) -> None:
    """Where the server refuses what is asked of it, or nothing serves when the rollout begins."""
    gate = RolloutGate(min_throughput_ratio="0.9")
    check = GateCheck(state="Measuring", revision="old", address="", model="", gate=gate)
    pods = (a_pod("old-1", revision="old", ready=ready), a_pod("new-1", revision="new", ready=True))
    status = None

    for reported in (
        None,
        GateReport(check=check, tokens_per_second=0.0),
        GateReport(check=replace(check, state="Running", revision="new")),
    ):
        status = advance(
            gate, status, stable="old", target="new", observed=an_observed(pods=pods, gate_report=reported), now=AT
        )

    assert status is not None
    assert (status.state, status.baseline) == ("Passed", "")
    assert f"the revision before {words}, so minThroughputRatio is left out" in status.message


def test_report_on_another_check_is_no_answer() -> None:
    """It was asked under settings, or of a revision, that have changed since."""
    asked, other = RolloutGate(min_throughput_ratio="0.9"), RolloutGate(min_throughput_ratio="0.8")
    running = GateStatus(state="Running", at=AT)

    def next_state(**fields: Any) -> str:
        check = GateCheck(
            **{"state": "Running", "revision": "new", "address": "", "model": "", "gate": asked, **fields}
        )
        observed = an_observed(gate_report=GateReport(check=check))
        return advance(asked, running, stable="old", target="new", observed=observed, now=AT).state

    assert next_state() == "Passed"
    assert next_state(gate=other) == next_state(revision="old") == next_state(state="Measuring") == "Running"

"""Whatever happens in whatever order, and whenever the operator dies: what a rollout must never do, and that it ends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from octavo_testing.rollout_cluster import BROKEN, Cluster, OperatorDiedError, a_cluster

GATE = {"prompts": [{"prompt": "What is 2 + 2?", "expect": "4"}], "timeout": "2m"}
STRATEGIES = ("Auto", "Surge", "HoldAndSwap", "Recreate")


class Rollouts(RuleBasedStateMachine):
    """People edit, servers start, crash and drain, the operator acts and dies, in any order."""

    cluster: Cluster
    settings: dict[str, Any]

    @initialize(
        gpus=st.integers(1, 4),
        replicas=st.integers(1, 3),
        strategy=st.sampled_from(STRATEGIES),
        gate=st.sampled_from([{}, {}, GATE, {**GATE, "minThroughputRatio": "0.9"}]),
        scaling=st.sampled_from([{}, {"scaling": {"minReplicas": 0, "maxReplicas": 3}}]),
    )
    def begin(self, gpus: int, replicas: int, strategy: str, gate: dict[str, Any], scaling: dict[str, Any]) -> None:
        self.proven: set[str] = set()
        self.settings = {"strategy": strategy, "maxHold": "3m", "gate": gate}
        self.cluster = a_cluster(gpus=max(gpus, replicas), replicas=replicas, rollout=self.settings, **scaling)
        self.cluster.edit(engine={"maxNumSeqs": 4})

    @rule(to=st.sampled_from([3, 4, 5, BROKEN]))
    def edit_spec(self, to: int) -> None:
        self.cluster.edit(engine={"maxNumSeqs": to})

    @rule(to=st.integers(0, 3))
    def scale(self, to: int) -> None:
        self.cluster.edit(replicas=to)

    @rule(to=st.sampled_from([3, 4, 5]))
    def edit_spec_and_go_on(self, to: int) -> None:
        self.edit_spec(to=to)
        self.go_on(times=2, starts=False, drains=False)

    @rule(to=st.sampled_from(STRATEGIES))
    def choose_strategy(self, to: str) -> None:
        self.settings = {**self.settings, "strategy": to}
        self.cluster.edit(rollout=self.settings)

    @rule(answers=st.booleans(), bad_answer=st.sampled_from(["", "", "wrong"]))
    def change_answers(self, answers: bool, bad_answer: str) -> None:
        self.cluster.answers, self.cluster.bad_answer = answers, bad_answer

    @rule(to=st.sampled_from([False, False, False, True]))
    def suspend(self, to: bool) -> None:
        self.cluster.edit(suspend=to)

    @rule(times=st.integers(1, 4), starts=st.booleans(), drains=st.booleans())
    def go_on(self, times: int, starts: bool, drains: bool) -> None:
        for _ in range(times):
            self.reconcile(dies_after=None)
            self.run_deployments()
            if starts:
                self.start_servers(most=1)
            if drains:
                self.finish_drains()

    @rule(dies_after=st.one_of(st.none(), st.integers(0, 6)))
    def reconcile(self, dies_after: int | None) -> None:
        cluster = self.cluster
        kept, counts, wanted = self._kept(), cluster.counts(), cluster.wanted
        cluster.writes_left = dies_after
        try:
            cluster.reconcile()
        except OperatorDiedError:
            pass
        else:
            self._check_room(counts)
        finally:
            cluster.writes_left = None
        self._check_service(min(kept, wanted))

    @rule()
    def run_deployments(self) -> None:
        self.cluster.run_deployments()
        self.cluster.schedule()

    @rule(most=st.integers(1, 3))
    def start_servers(self, most: int) -> None:
        self.cluster.start_servers(most=most)

    @rule()
    def finish_drains(self) -> None:
        self.cluster.finish_drains()
        self.cluster.schedule()

    @rule(number=st.integers(0, 3))
    def crash(self, number: int) -> None:
        self.cluster.crash(number)

    @rule(seconds=st.sampled_from([5, 25, 200]))
    def wait(self, seconds: int) -> None:
        self.cluster.wait(seconds)

    @rule(comes=st.booleans())
    def announce_node(self, comes: bool) -> None:
        self.cluster.node_comes = comes

    @invariant()
    def somebody_is_admitted(self) -> None:
        """An empty list would open the gateway to all revisions."""
        assert self.cluster.rollout["admitted"]

    @invariant()
    def nobody_passes_by_the_gate(self) -> None:
        rollout = self.cluster.rollout
        self.proven.add(rollout["stable"])
        if rollout.get("gate", {}).get("state") == "Passed":
            self.proven.add(rollout["revision"])
        if self.settings["gate"]:
            assert self.proven.issuperset(rollout["admitted"])

    @invariant()
    def what_may_be_needed_is_kept(self) -> None:
        kept = self.cluster.kept_revisions()
        assert set(self.cluster.counts()) <= kept
        assert len(kept) <= 5 + len(self.cluster.counts())

    def teardown(self) -> None:
        """Left alone it comes to rest: whole, or stuck with what served before still serving."""
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        cluster.answers = True
        cluster.edit(suspend=False)
        cluster.settle()
        is_sound = cluster.manifest["spec"].get("engine", {}).get("maxNumSeqs") != BROKEN
        if is_sound:
            assert cluster.served() == min(cluster.wanted, cluster.gpus)
            if cluster.wanted <= cluster.gpus and not self._waits_for_room():
                assert list(cluster.counts()) == [cluster.rollout["revision"]]

    def _waits_for_room(self) -> bool:
        return bool(self.cluster.manifest["spec"]["rollout"]["strategy"] == "Surge" or self.cluster.node_comes)

    def _check_room(self, before: dict[str, int]) -> None:
        """A swap never asks for a pod more while the pods that are there fill what is wanted."""
        cluster, after = self.cluster, self.cluster.counts()
        if cluster.rollout.get("strategy") not in ("HoldAndSwap", "Recreate") or sum(before.values()) == 0:
            return
        target = cluster.rollout["revision"]
        if after.get(target, 0) > before.get(target, 0):
            others = sum(pod.revision != target for pod in cluster.views())
            assert after[target] + others <= cluster.wanted

    def _check_service(self, kept: int) -> None:
        """The operator itself never takes more ready replicas out of service than its strategy says."""
        strategy = self.cluster.rollout.get("strategy")
        allowance = {"HoldAndSwap": 1, "Recreate": kept}.get(strategy or "", 0)
        assert self._kept() >= kept - allowance

    def _kept(self) -> int:
        """Ready replicas that the gateway routes to and that no Deployment is about to take away."""
        cluster, counts = self.cluster, self.cluster.counts()
        return sum(min(cluster.ready(name), counts.get(name, 0)) for name in cluster.rollout["admitted"])


@pytest.mark.parametrize(
    "examples", [30, pytest.param(800, marks=[pytest.mark.full, pytest.mark.timeout(1200)])], ids=["short", "long"]
)
def test_rollouts_keep_their_promises(examples: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis has no types here
        Rollouts,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=examples < 100,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],
        ),
    )

"""A change of the model whose files a Job has to fetch first."""

from __future__ import annotations

import pytest

from octavo_testing.rollout_cluster import a_cluster, revision_of


@pytest.mark.parametrize("strategy", ["Auto", "Surge", "HoldAndSwap", "Recreate"])
def test_what_serves_stays_until_the_next_model_is_fetched(strategy: str) -> None:
    """No strategy takes a replica away for one that would have nothing to load."""
    cluster = a_cluster(gpus=1, replicas=1, rollout={"strategy": strategy, "maxHold": "1m"})
    old = revision_of(cluster)
    cluster.edit(model="hf://org/other", cache={"type": "PVC", "size": "1Gi"})
    cluster.reconcile()
    cluster.reconcile()

    assert list(cluster.counts()) == [old]
    assert cluster.condition("Ready")["status"] == "True"
    assert cluster.condition("ModelCached")["status"] == "False"
    progressing = cluster.condition("Progressing")
    assert (progressing["reason"], "its model is being fetched" in progressing["message"]) == ("RolloutPending", True)

    (job,) = [key for key in cluster.objects if key[0] == "Job"]
    cluster.objects[job]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    cluster.settle()

    assert cluster.condition("ModelCached")["status"] == "True"
    if strategy != "Surge":
        # Which would need a second GPU.
        assert old not in cluster.counts()

"""The snapshot's own facts, for what the API server may leave out."""

from __future__ import annotations

from typing import Any

import pytest

from octavo_operator.observed import Pod, belongs_to, replicas_of
from octavo_testing.control_plane import UID, a_deployment, a_manifest, a_pod, an_observed


def test_pod_that_nobody_has_scheduled_has_neither_address_nor_node() -> None:
    bare = Pod(raw={"metadata": {"name": "a"}})

    assert (bare.ip, bare.node, bare.uid, bare.revision, bare.is_ready) == ("", "", "", "", False)
    assert a_pod().ip == "10.0.0.7"


def test_evicted_pod_is_not_ready_whatever_its_condition_says() -> None:
    assert not a_pod(ready=True, phase="Failed").is_ready


def test_deployment_without_a_count_has_one_replica() -> None:
    assert replicas_of({"spec": {}}) == 1
    assert replicas_of(a_deployment("old", replicas=3)) == 3


def test_snapshot_knows_whose_it_is() -> None:
    assert an_observed().uid == UID


def test_deployments_are_found_by_revision_and_foreign_ones_are_not_taken() -> None:
    foreign = {"kind": "Deployment", "metadata": {"name": "x", "labels": {}}}

    assert list(an_observed(a_deployment("old"), foreign).deployments) == ["old"]


@pytest.mark.parametrize(
    ("name", "owners", "labels", "is_ours"),
    [
        ("qwen", [{"uid": UID, "controller": True}], {}, True),
        ("a-copy", [{"uid": UID, "controller": True}], {}, True),
        ("a-copy", [], {}, False),
        ("a-copy", [{"uid": UID}], {}, False),
        ("qwen", [{"uid": "another", "controller": True}], {}, False),
        ("qwen", [], {}, True),
        ("qwen-old", [], {"octavo.dev/revision": "old"}, True),
        ("qwen-copy", [], {"octavo.dev/revision": "old"}, False),
    ],
)
def test_copy_that_a_person_made_with_our_labels_is_not_ours(
    name: str, owners: list[dict[str, Any]], labels: dict[str, str], is_ours: bool
) -> None:
    """Else the operator would delete a second Service that somebody made from the first."""
    metadata = {"name": name, "ownerReferences": owners, "labels": labels}

    assert belongs_to({"metadata": metadata}, a_manifest()) == is_ours

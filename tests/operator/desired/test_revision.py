"""Which template a resource runs by: what was rendered once is used again, whoever could render it otherwise now."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from octavo_operator.api.types import ModelDeploymentSpec
from octavo_operator.desired.pod import PodSettings
from octavo_operator.desired.revision import (
    OUTSIDE_OF_TEMPLATE,
    Revision,
    choose_revision,
    number_of,
    read_revision,
    render_controller_revision,
    render_revision,
    revisions_to_keep,
)
from octavo_testing.control_plane import POD_SETTINGS, a_resource
from octavo_testing.rollout_cluster import Cluster, a_cluster, revision_of

NEWER = PodSettings(
    image="registry.test/octavo:2", image_cpu="registry.test/octavo:2-cpu", image_rocm="registry.test/octavo:2-rocm"
)


def rendered(settings: PodSettings = POD_SETTINGS, **spec: Any) -> Revision:
    return render_revision(a_resource(**spec), settings)


def kept(*revisions: Revision) -> dict[str, Revision]:
    return {each.name: dataclasses.replace(each, number=number) for number, each in enumerate(revisions, start=1)}


def chosen(revision: Revision, known: dict[str, Revision], **spec: Any) -> str:
    return choose_revision(a_resource(**spec), revision, known).name


def test_revision_survives_the_cluster_unchanged() -> None:
    revision = rendered(engine={"maxNumSeqs": 4})

    read = read_revision(render_controller_revision(a_resource(), revision, number=7))

    assert read == dataclasses.replace(revision, number=7)
    assert revision.template["metadata"]["labels"]["octavo.dev/revision"] == revision.name


def test_newer_operator_keeps_what_the_older_one_rendered() -> None:
    old, new = rendered(), rendered(NEWER)

    assert old.name != new.name
    assert chosen(new, kept(old)) == old.name
    assert chosen(new, kept(old), rollout={"operatorUpgrade": "Roll"}) == new.name
    assert chosen(new, {}) == new.name


def test_newer_operator_renders_anew_when_the_spec_changes() -> None:
    old, new = rendered(), rendered(NEWER, engine={"maxNumSeqs": 4})

    assert chosen(new, kept(old), engine={"maxNumSeqs": 4}) == new.name


def test_spec_that_goes_back_gets_its_latest_template_again() -> None:
    first, second = rendered(), rendered(NEWER)

    assert chosen(second, kept(first, second)) == second.name
    assert chosen(second, kept(second, first)) == first.name


@pytest.mark.parametrize("field", OUTSIDE_OF_TEMPLATE)
def test_what_no_template_depends_on_makes_no_revision(field: str) -> None:
    values: dict[str, Any] = {
        "replicas": 5,
        "scaling": {"maxReplicas": 9},
        "routing": {"maxHeldRequests": 1},
        "access": {"keysFrom": [{"secretRef": {"name": "keys"}}]},
        "rollout": {"maxHold": "1m"},
        "disruption": {"maxUnavailable": 2},
        "suspend": True,
    }
    changed = {field: values[field]}

    assert rendered(**changed).name == rendered().name
    assert chosen(rendered(NEWER, **changed), kept(rendered()), **changed) == rendered().name
    # As a newer schema fills defaults in.
    filled = {**changed, "engine": {"dtype": "auto"}}
    assert chosen(rendered(NEWER, **filled), kept(rendered()), **filled) == rendered().name


def test_every_field_of_the_spec_is_in_the_template_or_outside_of_it() -> None:
    """A new field that no template depends on must be named, or else changing it restarts the model."""
    samples: dict[str, Any] = {
        "model": "hf://org/other",
        "source": {"secretRef": {"name": "hf"}},
        "cache": {"type": "PVC", "size": "1Gi"},
        "servedNames": ["other"],
        "resources": {"gpu": {"count": 0}},
        "engine": {"maxNumSeqs": 4},
        "drain": {"timeout": "7s"},
        "placement": {"nodeSelector": {"a": "b"}},
        "podTemplate": {"metadata": {"annotations": {"a": "b"}}},
    }

    assert all(rendered(**{name: value}).name != rendered().name for name, value in samples.items())
    assert len(samples) + len(OUTSIDE_OF_TEMPLATE) == len(dataclasses.fields(ModelDeploymentSpec))


def test_what_a_newer_schema_fills_in_is_no_change() -> None:
    old = rendered(engine={"maxNumSeqs": 4})
    filled_in = {"maxNumSeqs": 4, "dtype": "auto", "prefixCaching": True}

    assert chosen(rendered(NEWER, engine=filled_in), kept(old), engine=filled_in) == old.name


def test_kept_spec_that_is_no_spec_any_more_matches_nothing() -> None:
    strange = dataclasses.replace(rendered(), inputs={"model": "gone://x"})

    assert chosen(rendered(NEWER), kept(strange)) == rendered(NEWER).name


def test_numbers_grow_with_each_use() -> None:
    first, second = rendered(), rendered(NEWER)
    known = kept(first, second)

    assert number_of(known[second.name], known) == 2
    assert number_of(known[first.name], known) == 3
    assert number_of(rendered(engine={"maxNumSeqs": 4}), known) == 3


def test_five_are_kept_and_those_in_use_on_top() -> None:
    known = kept(*(rendered(engine={"maxNumSeqs": number}) for number in range(1, 9)))
    names = list(known)

    assert revisions_to_keep(known, {names[7]}) == set(names[3:])
    assert revisions_to_keep(known, {names[0], names[7]}) == {names[0], *names[4:]}


def test_object_of_another_kind_of_revision_is_no_template() -> None:
    assert read_revision({"metadata": {"labels": {"octavo.dev/revision": "a"}}, "data": {"spec": {}}}) is None


def test_operator_upgrade_restarts_no_model_and_the_next_change_brings_its_template() -> None:
    cluster = a_cluster(gpus=2, replicas=1)
    before = _pods(cluster)

    cluster.settings = NEWER
    cluster.settle()
    assert (_pods(cluster), cluster.writes) == (before, [])
    cluster.edit(engine={"maxNumSeqs": 4})
    cluster.settle()

    (pod,) = cluster.pods
    assert pod["spec"]["containers"][0]["image"] == NEWER.image
    assert cluster.served() == 1


def test_newer_operator_restores_the_older_template_after_a_hand_edit() -> None:
    cluster = a_cluster(gpus=2, replicas=1)
    cluster.settings = NEWER
    (deployment,) = cluster.deployments()
    template = deployment["spec"]["template"]
    cluster.objects["Deployment", deployment["metadata"]["name"]] = {
        **deployment,
        "spec": {**deployment["spec"], "template": {**template, "spec": {"containers": []}}},
    }

    cluster.reconcile()

    assert cluster.deployments()[0]["spec"]["template"] == template


def test_roll_takes_the_newer_operators_template_at_once() -> None:
    cluster = a_cluster(gpus=2, replicas=1, rollout={"operatorUpgrade": "Roll"})
    before = revision_of(cluster)

    cluster.settings = NEWER
    cluster.settle()

    assert revision_of(cluster) != before
    assert cluster.pods[0]["spec"]["containers"][0]["image"] == NEWER.image


def _pods(cluster: Cluster) -> list[str]:
    return [pod["metadata"]["name"] for pod in cluster.pods]

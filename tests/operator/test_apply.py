"""How a plan is carried out: what is another's stays, what is outdated is refused, nothing without leadership."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import pytest

from octavo_operator.apply import Executor, NotLeaderError
from octavo_operator.desired import names
from octavo_operator.errors import ClusterError, NameInTransitError, NameTakenError
from octavo_operator.kube.client import KubeClient
from octavo_operator.metrics import Metrics
from octavo_operator.object_cache import ObjectCache
from octavo_operator.plan import Apply, Delete, MarkPod, WriteReplicas
from octavo_testing.control_plane import a_desired, a_manifest, an_observed

QWEN = ("default", "qwen")


class FakeKube:
    """Remembers what was written; `there` is what bears the name that is asked for."""

    def __init__(self, there: dict[str, Any] | None = None) -> None:
        self.there = there
        self.writes: list[Any] = []
        self.answer: dict[str, Any] = {}
        self.refusal: ClusterError | None = None
        self.admission: dict[str, Any] = {}
        """What becomes of fields of an object that is applied."""
        self.gives_way = False
        """Whether force overcomes the refusal."""

    async def find(self, kind: Any, namespace: str, name: str) -> dict[str, Any] | None:
        return self.there

    async def apply(self, kind: Any, manifest: Any, *, force: bool) -> Any:
        if self.refusal is not None and not (force and self.gives_way):
            raise self.refusal
        self.writes.append(manifest)
        return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "7", "uid": "u"}, **self.admission}

    async def delete(self, kind: Any, namespace: str, name: str, *, uid: str) -> None:
        self.writes.append((kind.name, namespace, name, uid))

    async def merge_patch(self, path: str, body: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.writes.append((path, body))
        return self.answer


def an_executor(kube: FakeKube, *, cache: ObjectCache | None = None, is_leader: bool = True) -> Executor:
    return Executor(
        kube=cast(KubeClient, kube), cache=cache or ObjectCache(), metrics=Metrics(), is_leader=lambda: is_leader
    )


def manifest_of(kind: str) -> Any:
    return next(manifest for manifest in a_desired().objects if manifest["kind"] == kind)


def owned_by(manifest: Any, **owner: Any) -> Any:
    owners = [{"controller": True, **owner}] if owner else []
    return {**manifest, "metadata": {**manifest["metadata"], "resourceVersion": "5", "ownerReferences": owners}}


@pytest.mark.parametrize("there", [None, owned_by(manifest_of("Service"))], ids=["absent", "orphan"])
async def test_free_name_is_taken(there: Any) -> None:
    kube = FakeKube(there)

    assert await an_executor(kube).execute(QWEN, [Apply(manifest=manifest_of("Service"), is_new=True)], an_observed())

    assert len(kube.writes) == 1


async def test_what_an_admission_policy_has_changed_is_not_applied_again_at_once() -> None:
    """It would be changed again, as fast as the API server answers."""
    kube = FakeKube()
    kube.admission = {"spec": {"type": "LoadBalancer"}}

    plan = [Apply(manifest=manifest_of("Service"), is_new=True)]

    assert not await an_executor(kube).execute(QWEN, plan, an_observed())


async def test_somebody_elses_object_is_left_alone_for_good() -> None:
    kube = FakeKube(owned_by(manifest_of("Service"), kind="Helm", name="qwen", uid="x"))

    with pytest.raises(NameTakenError, match="Service qwen exists and does not belong to this ModelDeployment"):
        await an_executor(kube).execute(QWEN, [Apply(manifest=manifest_of("Service"), is_new=True)], an_observed())

    assert kube.writes == []


@pytest.mark.parametrize("kind", ["Service", "Deployment"])
async def test_object_of_a_deleted_resource_of_the_same_name_is_waited_for(kind: str) -> None:
    """Deleted and applied again at once: the garbage collector has not come yet."""
    there = owned_by(manifest_of(kind), kind="ModelDeployment", name="qwen", uid="the one before")
    cache = ObjectCache()
    cache.put(there)
    kube = FakeKube(there)

    with pytest.raises(NameInTransitError, match="still belongs to the deleted ModelDeployment"):
        await an_executor(kube, cache=cache).execute(
            QWEN, [Apply(manifest=manifest_of(kind), is_new=True)], an_observed()
        )

    assert kube.writes == []


@pytest.mark.parametrize(("kind", "is_watched"), [("ScaledObject", False), ("Service", True)])
async def test_what_is_deleted_is_gone_at_once_only_where_no_watch_would_tell(kind: str, is_watched: bool) -> None:
    """Of a kind that is only listed it would seem to be there until the next list, and be deleted again and again."""
    labels = {names.NAME_LABEL: "qwen"}
    metadata = {"namespace": "default", "name": "qwen", "uid": "u", "resourceVersion": "5", "labels": labels}
    found = {"kind": kind, "metadata": metadata}
    cache, kube = ObjectCache(), FakeKube()
    cache.put(found)

    await an_executor(kube, cache=cache).execute(QWEN, [Delete(key=(kind, "qwen"))], an_observed(found))

    assert kube.writes == [(kind, "default", "qwen", "u")]
    assert cache.owned(QWEN) == ([found] if is_watched else [])


async def test_replicas_are_written_only_to_the_version_that_was_seen() -> None:
    kube = FakeKube()

    await an_executor(kube).execute(QWEN, [WriteReplicas(replicas=0, reason="idle")], an_observed())

    ((path, body),) = kube.writes
    assert path.endswith("/modeldeployments/qwen/scale")
    assert body == {"metadata": {"resourceVersion": "10"}, "spec": {"replicas": 0}}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ('Apply failed with 1 conflict: conflict with "helm": .spec.replicas', NameTakenError),
        ("the object has been modified; please apply your changes to the latest version", ClusterError),
    ],
)
async def test_conflict_is_anothers_object_only_where_fields_are_taken(message: str, error: type[Exception]) -> None:
    kube = FakeKube(owned_by(manifest_of("Deployment"), kind="Helm", name="qwen", uid="x"))
    kube.refusal = ClusterError(409, "Conflict", message)

    with pytest.raises(error):
        await an_executor(kube).execute(QWEN, [Apply(manifest=manifest_of("Deployment"), is_new=True)], an_observed())


OURS = {"kind": "ModelDeployment", "name": "qwen", "uid": an_observed().uid}


@pytest.mark.parametrize(
    ("owner", "error"),
    [
        (OURS, None),
        ({}, None),
        ({**OURS, "uid": "the one before"}, NameInTransitError),
        ({"kind": "Rollout", "name": "qwen", "uid": "x"}, NameTakenError),
    ],
    ids=["ours", "orphan", "of the one before", "another's"],
)
async def test_fields_that_somebody_took_are_taken_back_only_of_what_is_ours(
    owner: dict[str, str], error: type[Exception] | None
) -> None:
    """With another label on it our Deployment is one that no watch tells of."""
    kube = FakeKube(owned_by(manifest_of("Deployment"), **owner))
    kube.refusal, kube.gives_way = ClusterError(409, "Conflict", "Apply failed with 1 conflict: ..."), True
    plan = [Apply(manifest=manifest_of("Deployment"), is_new=True)]

    with pytest.raises(error) if error else contextlib.nullcontext():
        await an_executor(kube).execute(QWEN, plan, an_observed())

    assert len(kube.writes) == (error is None)


async def test_writes_are_counted_by_what_is_done_and_by_kind() -> None:
    metrics, cache = Metrics(), ObjectCache()
    executor = Executor(kube=cast(KubeClient, FakeKube()), cache=cache, metrics=metrics, is_leader=lambda: True)
    plan = [Apply(manifest=manifest_of("Service"), is_new=True), WriteReplicas(replicas=0, reason="idle")]

    await executor.execute(QWEN, plan, an_observed())
    await executor.write_status(QWEN, {"replicas": 1})

    (family,) = [each for each in metrics.registry.collect() if each.name == "octavo_operator_writes"]
    counted = {tuple(sample.labels.values()) for sample in family.samples if sample.name.endswith("_total")}
    assert counted == {
        ("Apply", "Service"),
        ("WriteReplicas", "ModelDeployment"),
        ("WriteStatus", "ModelDeployment"),
    }


async def test_what_was_not_written_is_not_counted() -> None:
    """Tried again and again it would look like a fight with somebody."""
    metrics, kube = Metrics(), FakeKube(owned_by(manifest_of("Service"), kind="Helm", name="qwen", uid="x"))
    executor = Executor(kube=cast(KubeClient, kube), cache=ObjectCache(), metrics=metrics, is_leader=lambda: True)

    with pytest.raises(NameTakenError):
        await executor.execute(QWEN, [Apply(manifest=manifest_of("Service"), is_new=True)], an_observed())

    written = {"operation": "Apply", "kind": "Service"}
    assert metrics.registry.get_sample_value("octavo_operator_writes_total", written) is None


@pytest.mark.parametrize("generation", [3, 4], ids=["same spec", "newer spec"])
async def test_spec_that_comes_with_the_answer_of_a_status_write_is_left_to_its_event(generation: int) -> None:
    """Somebody edits while the status is under way: kept at once, the edit would be known and never looked at."""
    cache, kube = ObjectCache(), FakeKube()
    cache.put(a_manifest())
    metadata = {**a_manifest()["metadata"], "generation": generation, "resourceVersion": "11"}
    kube.answer = {**a_manifest(), "metadata": metadata}

    await an_executor(kube, cache=cache).write_status(QWEN, {"replicas": 1})

    assert cache.put(kube.answer) == (frozenset() if generation == 3 else {QWEN})


async def test_nothing_is_written_without_leadership() -> None:
    kube = FakeKube()

    with pytest.raises(NotLeaderError):
        await an_executor(kube, is_leader=False).execute(
            QWEN, [Apply(manifest=manifest_of("Service"), is_new=True)], an_observed()
        )

    assert kube.writes == []


@pytest.mark.parametrize("status", [403, 404])
async def test_a_pod_that_cannot_be_marked_keeps_nobody_from_going(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    kube = FakeKube()
    kube.refusal = ClusterError(status, "No", "not this pod")

    changed = await an_executor(kube).execute(QWEN, [MarkPod(pod="qwen-a", tokens=7)], an_observed())

    assert not changed
    assert [record.message for record in caplog.records] == ["pod cannot be marked"]


async def test_a_mark_is_kubernetes_own_annotation() -> None:
    kube = FakeKube()

    await an_executor(kube).execute(QWEN, [MarkPod(pod="qwen-a", tokens=7)], an_observed())

    annotations = {"controller.kubernetes.io/pod-deletion-cost": "7"}
    assert kube.writes == [("/api/v1/namespaces/default/pods/qwen-a", {"metadata": {"annotations": annotations}})]

"""What the cluster has for autoscalers, as its API tells, and KEDA that comes and goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from octavo_operator.errors import ClusterError
from octavo_operator.kube.client import KubeClient, Listing
from octavo_operator.kube.kinds import Kind
from octavo_operator.object_cache import ObjectCache, ResourceKey
from octavo_operator.scaling_apis import NO_ADDRESS, NO_KEDA, ScalingApisReader
from octavo_testing.apiserver import ApiServer, BinariesMissingError
from octavo_testing.chart import install_optional_kinds
from octavo_testing.operator_process import Namespace, running_operator, until

PROMETHEUS = "http://prometheus:9090"


@dataclass
class FakeApi:
    """The two things that are asked."""

    groups: tuple[str, ...] = ()
    objects: list[dict[str, Any]] = field(default_factory=list)
    error: ClusterError | None = None
    version: int = 10
    asked: list[str] = field(default_factory=list)

    async def get_path(self, path: str) -> dict[str, Any]:
        assert path == "/apis"
        return {"groups": [{"name": name} for name in self.groups]}

    async def list_kind(self, kind: Kind, namespace: str, selector: str) -> Listing:
        assert kind.name == "ScaledObject"
        assert "managed-by=octavo" in selector
        self.asked.append(namespace)
        if self.error is not None:
            raise self.error
        self.version += 1
        return Listing(items=self.objects, version=self.version)


@dataclass
class World:
    api: FakeApi
    prometheus: str = PROMETHEUS
    has_adapter: bool = False
    namespaces: tuple[str, ...] = ()
    enqueued: list[ResourceKey] = field(default_factory=list)
    rounds: int = 0

    def __post_init__(self) -> None:
        self.cache = ObjectCache()
        self.reader = ScalingApisReader(
            kube=cast(KubeClient, self.api),
            cache=self.cache,
            namespaces=self.namespaces,
            prometheus=self.prometheus,
            has_adapter=self.has_adapter,
            enqueue=self.enqueued.append,
            enqueue_all=self._count,
        )

    def _count(self) -> None:
        self.rounds += 1


def a_scaled_object(version: int = 5) -> dict[str, Any]:
    labels = {"octavo.dev/modeldeployment": "qwen"}
    metadata = {"namespace": "team", "name": "qwen", "uid": "u", "resourceVersion": str(version), "labels": labels}
    return {"kind": "ScaledObject", "metadata": metadata}


@pytest.mark.parametrize(
    ("groups", "has_adapter", "expected"),
    [(("apps",), False, False), (("apps", "custom.metrics.k8s.io"), False, True), ((), True, True)],
)
async def test_metrics_are_there_where_we_or_another_serve_them(
    groups: tuple[str, ...], has_adapter: bool, expected: bool
) -> None:
    world = World(FakeApi(groups=groups), has_adapter=has_adapter)

    await world.reader.look()

    assert world.reader.apis.has_custom_metrics is expected


@pytest.mark.parametrize(
    ("groups", "prometheus", "error", "trouble"),
    [
        (("keda.sh",), PROMETHEUS, None, ""),
        (("keda.sh",), "", None, NO_ADDRESS),
        ((), PROMETHEUS, None, NO_KEDA),
        (("keda.sh",), PROMETHEUS, ClusterError(404, "NotFound", "gone"), NO_KEDA),
        (("keda.sh",), PROMETHEUS, ClusterError(403, "Forbidden", "may not list"), "keda.enabled: 403 Forbidden"),
    ],
)
async def test_keda_takes_its_api_an_address_and_a_right(
    groups: tuple[str, ...], prometheus: str, error: ClusterError | None, trouble: str
) -> None:
    world = World(FakeApi(groups=groups, error=error), prometheus=prometheus)

    await world.reader.look()

    assert trouble in world.reader.apis.keda_trouble
    assert bool(world.reader.apis.keda_trouble) == bool(trouble)


async def test_an_outage_changes_nothing_and_is_raised() -> None:
    world = World(FakeApi(groups=("keda.sh",)))
    await world.reader.look()
    world.api.error = ClusterError(0, "Unreachable", "no answer")

    with pytest.raises(ClusterError):
        await world.reader.look()

    assert world.reader.apis.keda_trouble == ""


async def test_all_are_looked_at_when_something_else_is_there_and_only_then() -> None:
    world = World(FakeApi())
    await world.reader.look()
    assert world.rounds == 1
    await world.reader.look()
    assert world.rounds == 1

    world.api.groups = ("keda.sh",)
    await world.reader.look()

    assert world.rounds == 2


async def test_scaled_objects_are_listed_where_we_serve_and_go_with_their_api() -> None:
    world = World(FakeApi(groups=("keda.sh",), objects=[a_scaled_object()]), namespaces=("team", "other"))
    key = ("team", "qwen")

    await world.reader.look()
    assert set(world.api.asked) == {"team", "other"}
    assert [obj["kind"] for obj in world.cache.owned(key)] == ["ScaledObject"]
    assert world.enqueued == [key]

    world.api.groups = ()
    await world.reader.look()
    assert world.cache.owned(key) == []
    assert world.enqueued == [key, key]


@pytest.mark.timeout(120)
def test_the_operator_makes_and_removes_a_scaled_object_on_the_real_api(apiserver: ApiServer, tmp_path: Any) -> None:
    """KEDA's CustomResourceDefinition is there, KEDA is not."""
    try:
        install_optional_kinds(apiserver)
    except BinariesMissingError as error:
        pytest.skip(str(error))
    namespace = Namespace(apiserver, "by-keda")
    flags = ("--namespaces=by-keda", f"--prometheus-address={PROMETHEUS}")
    with running_operator(apiserver, tmp_path / "log", *flags):
        namespace.create("qwen", scaling={"maxReplicas": 3})

        until(lambda: namespace.names("ScaledObject"), lambda names: names == {"qwen"})
        assert namespace.names("HorizontalPodAutoscaler") == set(), "Auto, with KEDA and no metrics"
        waits = until(lambda: namespace.condition("qwen", "ScalingActive"), bool)
        assert waits["reason"] == "ScalerStarting"

        namespace.patch("ModelDeployment", "qwen", {"spec": {"scaling": {"backend": "HPA"}}})
        until(lambda: namespace.names("HorizontalPodAutoscaler"), lambda names: names == {"qwen"})
        assert namespace.names("ScaledObject") == set()

        namespace.patch("ModelDeployment", "qwen", {"spec": {"scaling": {"backend": "KEDA"}}})
        until(lambda: namespace.names("ScaledObject"), lambda names: names == {"qwen"})
        assert namespace.names("HorizontalPodAutoscaler") == set()

"""An operator whose API server has a bad day: afterwards, or in spite of it, everything is as it was asked for.

A real kube-apiserver, and between it and the operator a proxy that disturbs. Short here, long by `./scripts/test --full`.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo_operator.controller import SECOND_SYNC_S
from octavo_operator.handlers import INACTIVITY_TIMEOUT_S
from octavo_testing.apiserver import ApiServer
from octavo_testing.faulty_proxy import Asked, FaultyProxy, Refusal
from octavo_testing.operator_process import Namespace, count_writes, running_operator, until

FULL = bool(os.environ.get("OCTAVO_FULL"))
pytestmark = pytest.mark.timeout(600)


def lasting(*, short_s: float, full_s: float) -> float:
    return full_s if FULL else short_s


RECOVERY_S = lasting(short_s=10, full_s=30)
"""Pauses between two tries grow to 10 s. The short one ends before the operator's second list, which would heal all."""


@pytest.fixture
def proxy(apiserver: ApiServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FaultyProxy]:
    """The operator at work behind it."""
    proxy = FaultyProxy(apiserver)
    log = tmp_path / "operator.log"
    with proxy.running():
        name = request.node.name.replace("_", "-").replace("[", "-").rstrip("]").lower()
        flags = [f"--kubeconfig={proxy.kubeconfig(tmp_path)}", f"--lease-name={name}"]
        with running_operator(apiserver, log, *flags):
            until(log.read_text, lambda text: "is_leader=True" in text)
            yield proxy


@pytest.fixture
def namespace(apiserver: ApiServer, proxy: FaultyProxy, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """With one model that was made on a good day."""
    made = Namespace(apiserver, request.node.name.replace("_", "-").replace("[", "-").rstrip("]").lower()[:60])
    made.create("old", replicas=1)
    made.deployment_of("old")
    until(lambda: made.names("Service"), bool)
    yield made
    made.clear()


def disturb(namespace: Namespace) -> None:
    """What people do while the API server has its bad day: something new, a change, and a deletion by mistake."""
    namespace.create("new", replicas=2)
    namespace.patch("ModelDeployment", "old", {"spec": {"replicas": 3}})
    namespace.delete("Service", "old")


def check_recovery(namespace: Namespace, *, within_s: float = RECOVERY_S) -> float:
    """Everything comes to be as asked for, and then there is silence; how long it took, in seconds."""
    begun = time.monotonic()
    until(lambda: replicas(namespace), lambda got: got == {"old": 3, "new": 2}, within_s=within_s)
    for kind, names in (("Service", {"old", "new"}), ("PodDisruptionBudget", {"old", "new"})):
        until(lambda kind=kind: namespace.names(kind), lambda got, names=names: got == names, within_s=within_s)  # type: ignore[misc]
    for name in ("old", "new"):
        until(lambda name=name: is_told(namespace, name), bool, within_s=within_s)  # type: ignore[misc]
    took_s = time.monotonic() - begun
    until(lambda: writes_of_two_seconds(namespace.server), lambda writes: writes == 0, within_s=within_s)
    return took_s


def replicas(namespace: Namespace) -> dict[str, int]:
    path = f"/apis/apps/v1/namespaces/{namespace.name}/deployments"
    found: list[dict[str, Any]] = namespace.server.request("GET", path).body["items"]
    return {each["metadata"]["labels"]["octavo.dev/modeldeployment"]: each["spec"]["replicas"] for each in found}


def is_told(namespace: Namespace, name: str) -> bool:
    """Whether the status is of the spec and names no trouble with the cluster."""
    resource = namespace.get("ModelDeployment", name) or {}
    status = resource.get("status", {})
    is_current = status.get("observedGeneration") == resource["metadata"]["generation"]
    return is_current and namespace.condition(name)["reason"] == "Creating"


def writes_of_two_seconds(server: ApiServer) -> int:
    before = count_writes(server)
    time.sleep(2)
    return count_writes(server) - before


def test_api_server_that_was_away(namespace: Namespace, record_property: Any) -> None:
    with namespace.server.down():
        time.sleep(lasting(short_s=2, full_s=30))

    disturb(namespace)

    record_property("recovered_s", check_recovery(namespace))


def test_watches_that_break_every_few_seconds(proxy: FaultyProxy, namespace: Namespace, record_property: Any) -> None:
    """It never gets better: changes are seen nevertheless."""
    proxy.cut_after_s = lasting(short_s=1, full_s=5)
    time.sleep(lasting(short_s=2.5, full_s=30))

    disturb(namespace)

    record_property("recovered_s", check_recovery(namespace))


@pytest.mark.full
def test_watches_that_stand_and_say_nothing(proxy: FaultyProxy, namespace: Namespace, record_property: Any) -> None:
    # No list of the operator's own, of which a start has a few, may heal what only the time-out should.
    time.sleep(SECOND_SYNC_S + 5)
    proxy.silence_watches()

    disturb(namespace)

    record_property("recovered_s", check_recovery(namespace, within_s=INACTIVITY_TIMEOUT_S + 10))


def test_watches_whose_place_in_history_is_forgotten(
    proxy: FaultyProxy, namespace: Namespace, record_property: Any
) -> None:
    for _ in range(int(lasting(short_s=3, full_s=30))):
        proxy.expire_watches()
        time.sleep(1)
    proxy.expire_watches()

    disturb(namespace)

    record_property("recovered_s", check_recovery(namespace))


def test_every_second_write_meets_a_conflict(proxy: FaultyProxy, namespace: Namespace, record_property: Any) -> None:
    """It never gets better, and it is no trouble: nobody is told of it."""
    numbers = itertools.count()
    conflict = Refusal(status=409, reason="Conflict")
    proxy.fault = lambda asked: conflict if asked.is_write and next(numbers) % 2 else None

    disturb(namespace)

    record_property("recovered_s", check_recovery(namespace))
    assert next(numbers) > 10


@pytest.mark.parametrize(
    "refusal",
    [
        Refusal(status=429, reason="TooManyRequests", headers={"Retry-After": "2"}),
        Refusal(status=500, reason="InternalError"),
    ],
    ids=["429", "500"],
)
def test_everything_is_refused_for_a_while(
    proxy: FaultyProxy, namespace: Namespace, refusal: Refusal, record_property: Any
) -> None:
    proxy.fault = lambda _: refusal
    disturb(namespace)
    time.sleep(lasting(short_s=3, full_s=20))
    proxy.fault = lambda _: None

    record_property("recovered_s", check_recovery(namespace))


def test_one_kind_that_is_forbidden_is_named_and_held_against_nobody_afterwards(
    proxy: FaultyProxy, namespace: Namespace, record_property: Any
) -> None:
    said = 'services is forbidden: User "octavo" cannot patch resource "services" in API group ""'

    def forbid(asked: Asked) -> Refusal | None:
        return Refusal(status=403, reason="Forbidden", message=said) if asked.resource == "services" else None

    proxy.fault = forbid
    disturb(namespace)
    ready = until(lambda: namespace.condition("new"), lambda got: got.get("reason") == "ClusterError")
    assert said in ready["message"]
    time.sleep(lasting(short_s=1, full_s=20))
    proxy.fault = lambda _: None

    record_property("recovered_s", check_recovery(namespace))

"""A cluster of a few GPUs in memory: Deployments make pods, a scheduler places them, servers become ready or never do.

The operator in it is the real Reconciler with the real Executor; only the API server and the snapshot are fakes. Nothing
happens by itself: each step of a controller is a call, and time is a number.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from octavo_operator.apply import Executor
from octavo_operator.autoscaling.built_in import BuiltInScaler
from octavo_operator.config import OperatorConfig
from octavo_operator.desired.pod import PodSettings
from octavo_operator.desired.scaler import ScalingApis
from octavo_operator.errors import ClusterError
from octavo_operator.kube.kinds import Kind
from octavo_operator.metrics import Metrics
from octavo_operator.object_cache import ObjectCache
from octavo_operator.observed import Observed, Pod
from octavo_operator.reconcile import Outcome, Reconciler
from octavo_operator.rollout.gate_report import GateCheck, GateReport
from octavo_testing.control_plane import AT, POD_SETTINGS, a_manifest, a_node

T = TypeVar("T")

KEY = ("default", "qwen")
BROKEN = 13
"""A revision with this `engine.maxNumSeqs` never becomes ready."""


class OperatorDiedError(Exception):
    """The operator was killed between two writes."""


@dataclass
class Cluster:
    """Everything that is there; `writes_left` is how many writes the operator lives for."""

    gpus: int
    """Of each node."""
    nodes: int = 1
    manifest: dict[str, Any] = field(default_factory=lambda: a_manifest(replicas=1))
    settings: PodSettings = POD_SETTINGS
    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    now: datetime.datetime = AT
    node_comes: bool = False
    idle_for_s: float | None = None
    check: GateCheck | None = None
    """What the operator wants to know for a gate."""
    answers: bool = True
    """Whether checks are answered."""
    bad_answer: str = ""
    """What is wrong with the new revision, of which the checks tell."""
    writes: list[str] = field(default_factory=list)
    writes_left: int | None = None
    events: list[str] = field(default_factory=list)
    """Reasons of the events that the operator wrote."""
    metrics: Metrics = field(default_factory=Metrics)
    in_flight: dict[str, int] = field(default_factory=dict)
    """Tokens that run, by pod name."""
    scaling_apis: ScalingApis = field(default_factory=ScalingApis)
    built_in: BuiltInScaler = field(default_factory=BuiltInScaler)
    """The only memory of the operator that outlives a look."""
    pressures: Callable[[str], float] | None = None
    """KV pressure of a ready pod, by its name."""
    _version: int = 100
    _made: int = 0

    # What people do.

    def edit(self, **spec: Any) -> None:
        metadata = {**self.manifest["metadata"], "generation": self.manifest["metadata"]["generation"] + 1}
        self.manifest = self._touch({**self.manifest, "metadata": metadata, "spec": {**self.manifest["spec"], **spec}})

    # What the operator does.

    def reconcile(self) -> Outcome:
        """One pass of an operator that has just started: it knows only what the cluster says."""
        cache = ObjectCache()
        for obj in (self.manifest, *self.objects.values(), *self.pods):
            cache.put(obj)
        executor = Executor(kube=self, cache=cache, metrics=self.metrics, is_leader=lambda: True)  # type: ignore[arg-type]  # the fake
        reconciler = Reconciler(
            observer=self,  # type: ignore[arg-type]  # the fake
            executor=executor,
            metrics=self.metrics,
            gates=self,
            built_in=self.built_in,
            config=OperatorConfig(pods=self.settings, identity="test"),
            now=lambda: self.now,
        )
        return _run(reconciler.reconcile(KEY))

    def want(self, _key: tuple[str, str], check: GateCheck | None) -> None:
        """An operator that has just started has no report yet, and every check is answered by the next look."""
        self.check = check

    def report(self, _key: tuple[str, str]) -> GateReport | None:
        if self.check is None or not self.answers:
            return None
        problem = self.bad_answer if self.check.state == "Running" else ""
        return GateReport(check=self.check, problem=problem, tokens_per_second=20.0)

    async def snapshot(self, _key: tuple[str, str]) -> Observed:
        ready = [pod.name for pod in self.views() if pod.is_ready]
        pressures = {name: self.pressures(name) for name in ready} if self.pressures else {}
        return Observed(
            pressures=pressures,
            pressure=sum(pressures.values()) / len(pressures) if pressures else None,
            scaling_apis=self.scaling_apis,
            resource=self.manifest,
            objects=dict(self.objects),
            pods=tuple(self.views()),
            in_flight=self.in_flight,
            idle_for_s=self.idle_for_s,
            awaits_node=self.node_comes,
            nodes=tuple(a_node(name, gpus=self.gpus) for name in self.node_names()),
        )

    # The API server.

    async def apply(self, kind: Kind, manifest: Mapping[str, Any], *, force: bool) -> dict[str, Any]:
        del force
        key = (kind.name, manifest["metadata"]["name"])
        self._write(f"apply {kind.name} {key[1]}")
        found = self.objects.get(key)
        if found is not None and kind.name == "ControllerRevision" and found["data"] != manifest["data"]:
            raise ClusterError(422, "Invalid", "data: field is immutable")
        status = {"status": found["status"]} if found and "status" in found else {}
        metadata = {**manifest["metadata"], "uid": found["metadata"]["uid"] if found else f"uid-{'-'.join(key)}"}
        self.objects[key] = self._touch({**manifest, **status, "metadata": metadata})
        return self.objects[key]

    async def merge_patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        name, _, subresource = path.partition("/modeldeployments/")[2].partition("/")
        if name:
            self._write(f"patch {subresource} {','.join(body.get('status', body.get('spec', {})))}")
            self.manifest = self._touch(
                _merge(self.manifest, {key: body[key] for key in ("status", "spec") if key in body})
            )
            return self.manifest
        if "/pods/" in path:
            [pod] = [pod for pod in self.pods if pod["metadata"]["name"] == path.rpartition("/")[2]]
            self._write(f"mark {pod['metadata']['name']}")
            pod["metadata"] = {**pod["metadata"], **body["metadata"]}
            return pod
        key = ("Deployment", path.rpartition("/")[2])
        self._write(f"patch {key}")
        self.objects[key] = self._touch(_merge(self.objects[key], body))
        return self.objects[key]

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        del namespace
        self._write(f"delete {kind.name} {name}")
        assert self.objects[(kind.name, name)]["metadata"]["uid"] == uid
        del self.objects[(kind.name, name)]

    async def create(self, _path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.events.append(str(body["reason"]))
        return body

    async def find(self, kind: Kind, _namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind.name, name))

    # The controllers.

    def run_deployments(self) -> None:
        """Each Deployment makes the pods that it lacks, or lets surplus ones go: first those that do not serve, then the
        cheapest."""
        for deployment in self.deployments():
            count, labels = deployment["spec"]["replicas"], deployment["spec"]["template"]["metadata"]["labels"]
            own = [pod for pod in self.pods if pod["metadata"]["labels"] == labels and _lives(pod)]
            own.sort(
                key=lambda pod: (bool(pod["spec"].get("nodeName")), Pod(raw=pod).is_ready, Pod(raw=pod).deletion_cost)
            )
            for pod in own[: max(0, len(own) - count)]:
                self._let_go(pod)
            for _ in range(count - len(own)):
                self.pods.append(self._new_pod(deployment))

    def schedule(self) -> None:
        """Pods without a node get the first with as many free GPUs as they ask for, or are told that there is none.

        No node bears any label.
        """
        for pod in self.pods:
            if not _lives(pod) or pod["spec"].get("nodeName"):
                continue
            room = [name for name in self.node_names() if self.free_gpus(name) >= _gpus_of(pod)]
            if pod["spec"].get("nodeSelector"):
                complaint = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
                self._set_condition(pod, "PodScheduled", "False", message=complaint)
            elif room:
                pod["spec"]["nodeName"] = room[0]
                self._set_condition(pod, "PodScheduled", "True")
            else:
                complaint = f"0/{self.nodes} nodes are available: {self.nodes} Insufficient nvidia.com/gpu."
                self._set_condition(pod, "PodScheduled", "False", message=complaint)

    def start_servers(self, *, most: int = 1000) -> None:
        """Placed pods of sound revisions become ready."""
        starting = [pod for pod in self.pods if self._could_serve(pod) and not Pod(raw=pod).is_ready]
        for pod in starting[:most]:
            self._set_condition(pod, "Ready", "True")

    def crash(self, number: int) -> None:
        """A ready pod stops being ready; its kubelet starts it anew."""
        ready = [pod for pod in self.pods if Pod(raw=pod).is_ready]
        if ready:
            self._set_condition(ready[number % len(ready)], "Ready", "False")

    def finish_drains(self) -> None:
        self.pods = [pod for pod in self.pods if "deletionTimestamp" not in pod["metadata"]]

    def wait(self, seconds: float) -> None:
        self.now += datetime.timedelta(seconds=seconds)

    def settle(self, *, rounds: int = 60, step_s: float = 120.0) -> None:
        """Everything goes its way until nobody does anything for longer than anything takes."""
        quiet = 0
        for _ in range(rounds):
            before = len(self.writes), [pod["metadata"]["resourceVersion"] for pod in self.pods]
            self.reconcile()
            self.run_deployments()
            self.schedule()
            self.start_servers()
            self.finish_drains()
            self.wait(step_s)
            after = len(self.writes), [pod["metadata"]["resourceVersion"] for pod in self.pods]
            quiet = quiet + 1 if before == after else 0
            if quiet * step_s > 600:
                return
        raise AssertionError(f"it does not come to rest: {self.writes[-20:]}")

    def settle_though_killed(self, *, after_writes: int) -> None:
        """The operator dies after that many writes, and a new one finds what the dead one has left."""
        self.writes_left = after_writes
        try:
            self.settle()
        except OperatorDiedError:
            self.writes_left = None
            self.settle()
        else:
            raise AssertionError(f"it came to rest within {after_writes} writes")

    # What a test asks.

    @property
    def rollout(self) -> dict[str, Any]:
        found: dict[str, Any] = self.manifest.get("status", {}).get("rollout", {})
        return found

    @property
    def wanted(self) -> int:
        return int(self.manifest["spec"].get("replicas", 1))

    def condition(self, kind: str) -> dict[str, Any]:
        conditions = self.manifest.get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})

    def deployments(self) -> list[dict[str, Any]]:
        return [obj for (kind, _), obj in sorted(self.objects.items()) if kind == "Deployment"]

    def counts(self) -> dict[str, int]:
        """Replicas of each Deployment by revision."""
        return {
            deployment["metadata"]["labels"]["octavo.dev/revision"]: deployment["spec"]["replicas"]
            for deployment in self.deployments()
        }

    def kept_revisions(self) -> set[str]:
        kept = (obj for (kind, _), obj in self.objects.items() if kind == "ControllerRevision")
        return {obj["metadata"]["labels"]["octavo.dev/revision"] for obj in kept}

    def ready(self, revision: str | None = None) -> int:
        return sum(pod.is_ready and revision in (None, pod.revision) for pod in self.views())

    def served(self) -> int:
        """Ready pods that the gateway routes to."""
        admitted = self.rollout.get("admitted", [])
        return sum(pod.is_ready and pod.revision in admitted for pod in self.views())

    def draining(self) -> int:
        return sum(pod.is_terminating for pod in self.views())

    def views(self) -> Iterator[Pod]:
        return (Pod(raw=raw) for raw in self.pods)

    def node_names(self) -> list[str]:
        return [f"node{number}" for number in range(self.nodes)]

    def free_gpus(self, node: str) -> int:
        return self.gpus - sum(_gpus_of(pod) for pod in self.pods if pod["spec"].get("nodeName") == node)

    def end_state(self) -> dict[str, Any]:
        """What must not depend on how it came about: all but times, versions and the order of use."""
        rollout = {name: value for name, value in self.rollout.items() if name not in ("why", "strategy")}
        if "gate" in rollout:
            rollout["gate"] = {name: value for name, value in rollout["gate"].items() if name != "at"}
        return {"counts": self.counts(), "objects": sorted(self.objects), "rollout": rollout, "ready": self.ready()}

    def _could_serve(self, pod: dict[str, Any]) -> bool:
        args = " ".join(pod["spec"]["containers"][0].get("args", ()))
        return _lives(pod) and bool(pod["spec"].get("nodeName")) and f"--max-num-seqs={BROKEN}" not in args

    def _let_go(self, pod: dict[str, Any]) -> None:
        """A pod without a node goes at once, one that runs drains first."""
        if not pod["spec"].get("nodeName"):
            self.pods.remove(pod)
            return
        grace = datetime.timedelta(seconds=pod["spec"]["terminationGracePeriodSeconds"])
        pod["metadata"]["deletionTimestamp"] = (self.now + grace).isoformat()
        self._touch(pod)

    def _new_pod(self, deployment: dict[str, Any]) -> dict[str, Any]:
        self._made += 1
        template = deployment["spec"]["template"]
        name = f"{deployment['metadata']['name']}-{self._made}"
        metadata = {**template["metadata"], "name": name, "namespace": "default", "uid": f"uid-{name}"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": dict(template["spec"])}
        return self._touch({**pod, "status": {"phase": "Pending", "conditions": [], "podIP": "10.0.0.7"}})

    def _set_condition(self, pod: dict[str, Any], kind: str, status: str, *, message: str = "") -> None:
        conditions = pod["status"]["conditions"]
        old = next((each for each in conditions if each["type"] == kind), None)
        if old is not None and old["status"] == status:
            return
        pod["status"]["conditions"] = [each for each in conditions if each["type"] != kind]
        at = self.now.isoformat().replace("+00:00", "Z")
        condition = {"type": kind, "status": status, "message": message, "lastTransitionTime": at}
        pod["status"]["conditions"].append(condition)
        self._touch(pod)

    def _write(self, what: str) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise OperatorDiedError(what)
            self.writes_left -= 1
        self.writes.append(what)

    def _touch(self, obj: dict[str, Any]) -> dict[str, Any]:
        self._version += 1
        obj["metadata"] = {**obj["metadata"], "resourceVersion": str(self._version)}
        return obj


def revision_of(cluster: Cluster) -> str:
    """The revision that is rolled out."""
    return str(cluster.rollout["revision"])


def a_cluster(*, gpus: int, replicas: int, nodes: int = 1, **spec: Any) -> Cluster:
    """A model that serves whole by its first revision."""
    cluster = Cluster(gpus=gpus, nodes=nodes, manifest=a_manifest(replicas=replicas, **spec))
    cluster.settle()
    assert cluster.served() == replicas
    cluster.writes.clear()
    return cluster


def check_kills(make: Callable[[], Cluster], *, most: int = 20) -> None:
    """The operator may die after any of its first writes: what comes of a cluster that `make` gives is the same."""
    whole = make()
    whole.settle()
    for after_writes in range(min(most + 1, len(whole.writes))):
        killed = make()
        killed.settle_though_killed(after_writes=after_writes)
        assert killed.end_state() == whole.end_state(), f"killed after {after_writes} writes"


def _gpus_of(pod: Mapping[str, Any]) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])


def _lives(pod: Mapping[str, Any]) -> bool:
    return "deletionTimestamp" not in pod["metadata"]


def _merge(old: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch applied; neither argument is changed, since the operator still looks at the old one."""
    merged = {key: value for key, value in old.items() if patch.get(key, value) is not None}
    for key, value in patch.items():
        if isinstance(value, Mapping):
            merged[key] = _merge(merged.get(key) or {}, value)
        elif value is not None:
            merged[key] = value
    return merged


def _run(work: Coroutine[Any, Any, T]) -> T:
    """The fakes never wait, so that no event loop is needed."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        work.close()
    raise AssertionError("a fake has waited")

"""One snapshot of what is there, as values: the only input of plan and status besides the desired state.

Raw objects stay as the API server gave them; the properties here are the only places that know their shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from octavo_operator.api.rollout_status import parse_time
from octavo_operator.api.types import JsonObject
from octavo_operator.desired import names
from octavo_operator.desired.cache import claims_in
from octavo_operator.desired.render import ObjectKey
from octavo_operator.desired.revision import CONTROLLER_REVISION, Revision, read_revision
from octavo_operator.desired.scaler import ScalingApis
from octavo_operator.rollout.gate_report import GateReport

LOST_AFTER = timedelta(minutes=1)
"""Past the end of its grace, which is a pod's deletionTimestamp: time for a slow kubelet, and for clocks that differ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Startup:
    """A server's `/startup` answer."""

    stage: str
    done_bytes: int = 0
    total_bytes: int = 0
    bytes_per_second: int = 0
    """Of the last seconds."""
    idle_s: float = 0.0
    """Since anything moved."""
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Of each stage that has ended."""
    message: str = ""

    @property
    def is_loading(self) -> bool:
        return self.stage != "ready"

    @property
    def is_downloading(self) -> bool:
        return self.stage == "downloading"

    @property
    def left_bytes(self) -> int:
        return max(0, self.total_bytes - self.done_bytes)

    @property
    def left_s(self) -> int | None:
        """Seconds that the rest takes as fast as it goes now; None where nothing moves."""
        return -(-self.left_bytes // self.bytes_per_second) if self.bytes_per_second else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one replica can take, as the ready ones say."""

    kv_tokens: int
    max_num_seqs: int
    tokens_per_second: float
    """Output of the best ten seconds since the start; 0 before any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """A server pod."""

    raw: JsonObject

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"].get("uid", ""))

    @property
    def created(self) -> str:
        """RFC 3339; such times of one server sort as text."""
        return str(self.raw["metadata"].get("creationTimestamp", ""))

    @property
    def ip(self) -> str:
        return str(self._status.get("podIP", ""))

    @property
    def node(self) -> str:
        return str(self.raw.get("spec", {}).get("nodeName", ""))

    @property
    def node_selector(self) -> Mapping[str, str]:
        selector: Mapping[str, str] = self.raw.get("spec", {}).get("nodeSelector") or {}
        return selector

    @property
    def revision(self) -> str:
        return str(self.raw["metadata"].get("labels", {}).get(names.REVISION_LABEL, ""))

    @property
    def is_download(self) -> bool:
        """It only fetches the model."""
        return names.DOWNLOAD_LABEL in self.raw["metadata"].get("labels", {})

    @property
    def is_controlled(self) -> bool:
        """False for one that a person has made, or detached from its ReplicaSet to look into it."""
        return controller_of(self.raw) is not None

    @property
    def is_terminating(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]

    def is_lost(self, now: datetime) -> bool:
        """Whether it should long have ended: its node is gone, or somebody's finalizer holds it."""
        ends = parse_time(self.raw["metadata"].get("deletionTimestamp"))
        return ends is not None and now - ends > LOST_AFTER

    @property
    def is_finished(self) -> bool:
        """Evicted, completed or lost with its node: the Deployment has replaced it."""
        return self._status.get("phase") in ("Failed", "Succeeded")

    @property
    def is_pending(self) -> bool:
        """No container of it runs yet."""
        return self._status.get("phase") == "Pending"

    @property
    def is_ready(self) -> bool:
        return not self.is_terminating and not self.is_finished and self.condition("Ready").get("status") == "True"

    @property
    def deletion_cost(self) -> int:
        """As Kubernetes reads it: 0 where nobody has said anything."""
        said = str((self.raw["metadata"].get("annotations") or {}).get(names.DELETION_COST, "0"))
        return int(said) if said.removeprefix("-").isdecimal() else 0

    @property
    def has_fallen(self) -> bool:
        """It was ready in this life of its container and is no more: it hangs, or its node is gone."""
        turned = self.condition("Ready").get("lastTransitionTime")
        started = self.server.get("state", {}).get("running", {}).get("startedAt")
        return not self.is_ready and bool(turned and started) and str(turned) > str(started)

    @property
    def waits_for_node(self) -> bool:
        return self.condition("PodScheduled").get("status") == "False"

    @property
    def claims(self) -> Mapping[str, str]:
        """Template of each claim for devices, by the claim's name in the pod."""
        asked = self.raw.get("spec", {}).get("resourceClaims") or ()
        return {claim["name"]: claim.get("resourceClaimTemplateName", "") for claim in asked}

    @property
    def claims_to_come(self) -> Mapping[str, str]:
        """As `claims`, those that nobody has made yet."""
        made = {claim["name"] for claim in self._status.get("resourceClaimStatuses") or ()}
        return {name: template for name, template in self.claims.items() if name not in made}

    @property
    def server(self) -> JsonObject:
        """Status of our container; empty before the kubelet has made one."""
        ours = names.DOWNLOAD_CONTAINER if self.is_download else names.CONTAINER
        return next((status for status in self._status.get("containerStatuses", []) if status["name"] == ours), {})

    @property
    def containers(self) -> tuple[JsonObject, ...]:
        """Statuses of all containers, init containers first."""
        return (*self._status.get("initContainerStatuses", ()), *self._status.get("containerStatuses", ()))

    def condition(self, kind: str) -> JsonObject:
        found = (condition for condition in self._status.get("conditions", []) if condition["type"] == kind)
        return next(found, {})

    @property
    def _status(self) -> JsonObject:
        status: JsonObject = self.raw.get("status", {})
        return status


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """What a node offers."""

    name: str
    is_cordoned: bool
    has_taints: bool
    capacity: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """An older ModelDeployment that claims one of our served names."""

    served_name: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ZeroWish:
    """The autoscaler's decision that nobody needs a replica."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicasWish:
    """What the built-in autoscaler wants."""

    replicas: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """Everything about one ModelDeployment at one moment."""

    resource: JsonObject
    objects: Mapping[ObjectKey, JsonObject] = field(default_factory=dict)
    """Our objects by (kind, name); pods are apart."""
    pods: tuple[Pod, ...] = ()
    downloads: tuple[Pod, ...] = ()
    """Pods of the Job that fetches the model."""
    startups: Mapping[str, Startup] = field(default_factory=dict)
    """`/startup` by pod name: of pods that are not ready, and once of a new one that is; absent where the pod did not answer."""
    pressure: float | None = None
    """Mean KV pressure of the ready pods; None where it is unknown."""
    pressures: Mapping[str, float] = field(default_factory=dict)
    """The same of each, by pod name; absent where it has not told lately."""
    capacity: Capacity | None = None
    """None where no ready pod has told its load lately."""
    nodes: tuple[Node, ...] | None = None
    """None where the operator may not or need not list them."""
    rivals: tuple[Rival, ...] = ()
    zero_wish: ZeroWish | None = None
    replicas_wish: ReplicasWish | None = None
    """None where the built-in autoscaler does not scale it, or wants what there is."""
    keys_trouble: str = ""
    """Which Secret of access.keysFrom cannot be read, and the remedy; empty when all is well."""
    idle_for_s: float | None = None
    """Seconds without any request, told only where a rollout may wait for it; None where some replica does not tell."""
    gate_report: GateReport | None = None
    """The last report on a check that a rollout's gate has asked for."""
    awaits_node: bool = False
    """A pod has no node, and an autoscaler of nodes has said that it brings one."""
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Tokens that a pod holds in its KV cache for requests that run, by name; absent where it has not told lately."""
    scaling_apis: ScalingApis = field(default_factory=ScalingApis)

    @property
    def uid(self) -> str:
        return str(self.resource["metadata"]["uid"])

    @property
    def status(self) -> JsonObject:
        status: JsonObject = self.resource.get("status") or {}
        return status

    @property
    def deployments(self) -> dict[str, JsonObject]:
        """Deployments by revision."""
        return {
            obj["metadata"]["labels"][names.REVISION_LABEL]: obj
            for (kind, _), obj in self.objects.items()
            if kind == "Deployment" and names.REVISION_LABEL in obj["metadata"].get("labels", {})
        }

    def is_fetched(self, job: ObjectKey | None) -> bool:
        """Whether the Job's claim holds the model; no Job is as good."""
        if job is None:
            return True
        conditions = self.objects.get(job, {}).get("status", {}).get("conditions") or []
        is_complete = any(each["type"] == "Complete" and each["status"] == "True" for each in conditions)
        return is_complete and not self.is_outlived(job)

    def is_outlived(self, job: ObjectKey) -> bool:
        """Whether the claim is another one than the Job filled: somebody deleted that."""
        found = self.objects.get(job)
        if found is None:
            return False
        filled = (self.objects.get(("PersistentVolumeClaim", name)) for name in claims_in(found))
        return any(claim is not None and _created(claim) > _created(found) for claim in filled)

    @property
    def claims_in_use(self) -> frozenset[str]:
        """Names of the claims that the Deployments' pods mount."""
        return frozenset().union(*map(claims_in, self.deployments.values()))

    @property
    def revisions(self) -> dict[str, Revision]:
        """The templates that are kept, by name."""
        kept = (read_revision(obj) for (kind, _), obj in self.objects.items() if kind == CONTROLLER_REVISION)
        return {revision.name: revision for revision in kept if revision is not None}

    @property
    def living_pods(self) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.pods if not pod.is_terminating and not pod.is_finished)

    def ready_pods(self, revision: str | None = None) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.pods if pod.is_ready and revision in (None, pod.revision))

    def lacks_room(self, revision: str) -> bool:
        """Whether a pod of it waits for a node, or the cluster refuses to make one."""
        waits = any(pod.waits_for_node for pod in self.living_pods if pod.revision == revision)
        return waits or refusal_of(self.deployments.get(revision, {})) is not None

    def has_pods(self, revision: str) -> bool:
        """Any that has not ended, those that drain included."""
        return any(pod.revision == revision and not pod.is_finished for pod in self.pods)


def _created(obj: JsonObject) -> str:
    """RFC 3339; times of one API server sort as text."""
    return str(obj["metadata"].get("creationTimestamp", ""))


def replicas_of(deployment: JsonObject) -> int:
    count: Any = deployment.get("spec", {}).get("replicas", 1)
    return int(count)


def generation_of(resource: JsonObject) -> int:
    """Counts the changes of the spec."""
    return int(resource["metadata"].get("generation", 0))


def refusal_of(deployment: JsonObject) -> JsonObject | None:
    """The Deployment's condition that says why no pod can be made; None where they can."""
    conditions = deployment.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == "ReplicaFailure" and each["status"] == "True"), None)


def controller_of(obj: JsonObject) -> JsonObject | None:
    """The owner that manages the object."""
    owners = obj["metadata"].get("ownerReferences", [])
    return next((owner for owner in owners if owner.get("controller")), None)


def belongs_to(obj: JsonObject, resource: JsonObject) -> bool:
    """Whether an object that bears our labels is ours indeed, and no copy that a person made under another name.

    One that nobody controls was left behind by an orphaning deletion if its name is one that we would give.
    """
    controller = controller_of(obj)
    if controller is not None:
        return bool(controller["uid"] == resource["metadata"]["uid"])
    name, revision = resource["metadata"]["name"], obj["metadata"].get("labels", {}).get(names.REVISION_LABEL)
    given = name if revision is None else names.deployment_name(name, revision)
    return bool(obj["metadata"]["name"] == given)

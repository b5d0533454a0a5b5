"""The ModelDeployment as frozen values, field by field as the CRD has them.

Never reads JSON itself: `validation.parse_spec` makes these from a manifest and refuses what does not fit.
A test holds these classes, the parser and crds/modeldeployments.octavo.dev.yaml together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GROUP = "octavo.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "ModelDeployment"
PLURAL = "modeldeployments"

DEFAULT_IDLE_AFTER_S = 600

JsonObject = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretRef:
    """The Secret with the credentials for the model's source; `key` is the entry with the token, where it is one."""

    name: str
    key: str = "token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How the model is fetched."""

    secret_ref: SecretRef | None = None
    checksum: str = ""
    """sha256:HEX that the model must have; "" takes whatever comes."""
    allow: tuple[str, ...] = ()
    """Patterns of the weight files to fetch; empty means all that serving reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """Where a fetched model is kept."""

    type: str = "Auto"
    size: str = ""
    """Of the claim, as a quantity."""
    storage_class_name: str = ""
    access_mode: str = ""
    """Of the claim; "" is ReadWriteMany, because replicas may be on several nodes."""

    @property
    def kind(self) -> str:
        """PVC, NodeLocal, Image or None: what Auto means."""
        if self.type != "Auto":
            return self.type
        return "PVC" if self.storage_class_name else "None"


PRODUCT_LABELS = {"nvidia.com": "nvidia.com/gpu.product", "amd.com": "amd.com/gpu.product-name"}
"""Of nodes: which GPUs they have, as NVIDIA's GPU feature discovery and AMD's node labeller write it, by vendor."""


def is_slice(resource_name: str) -> bool:
    """Whether it stands for a part of a GPU: NVIDIA's MIG, or a compute partition of AMD."""
    return re.match(r"nvidia\.com/mig-|amd\.com/[a-z]px_", resource_name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceClaim:
    """Devices that dynamic resource allocation finds: each pod gets a claim of its own, made from the template."""

    name: str
    template: str
    """Name of a ResourceClaimTemplate of the same namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The devices of a replica."""

    count: int = 1
    resource_name: str = "nvidia.com/gpu"
    product: str = ""
    """Value of the label `product_label` that a node must bear; "" takes any."""
    claims: tuple[DeviceClaim, ...] = ()
    """Which hold `count` GPUs together; then none is asked for by `resource_name`, which only says whose they are."""

    @property
    def product_label(self) -> str:
        """Of nodes; empty where nobody labels them with what this vendor's GPUs are."""
        return PRODUCT_LABELS.get(self.resource_name.partition("/")[0], "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    gpu: Gpu = field(default_factory=Gpu)
    cpu: str = ""
    """CPU request as a quantity; "" requests none."""
    memory: str = ""
    """Memory request and limit as a quantity; "" sets none."""
    shared_memory: str = ""
    """Size of /dev/shm as a quantity; "" is 1Gi for each GPU, 1Gi without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """Settings of the inference engine; 0 and "" leave the choice to it."""

    max_model_len: int = 0
    max_num_seqs: int = 0
    gpu_memory_utilization: str = ""
    dtype: str = "auto"
    quantization: str = ""
    kv_cache_dtype: str = "auto"
    prefix_caching: bool = True
    tensor_parallel_size: int = 0
    """Ranks of a replica: 0 is one a GPU, or one on the CPU."""
    extra_args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingSchedule:
    """Other bounds from the time that `cron` names; what is None is as `Scaling` has it."""

    name: str
    cron: str
    """Five fields."""
    time_zone: str = ""
    """Of `cron`, such as Europe/Berlin; "" is UTC."""
    min_replicas: int | None = None
    max_replicas: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    max_replicas: int
    min_replicas: int = 1
    target_pressure: str = "0.8"
    """KV pressure per replica to aim for, a decimal string; may exceed 1."""
    idle_after_s: int = 0
    """Seconds without a request until zero replicas; 0 means never (minReplicas ≥ 1, in all schedules too)."""
    backend: str = "Auto"
    """Auto, HPA, KEDA or BuiltIn; `desired.scaler` says what each is."""
    behavior: JsonObject = field(default_factory=dict)
    schedules: tuple[ScalingSchedule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Which replica the gateway chooses, and what it does while none can take a request."""

    strategy: str = "Auto"
    max_held_requests: int = 256
    hold_timeout_s: int = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use the model through the gateway, and how much."""

    keys_from: tuple[str, ...] = ()
    """Names of Secrets whose entries are API keys; empty is open to all."""
    tokens_per_minute: int = 0
    """Of each key; 0 is no limit."""
    tokens_per_day: int = 0
    audit: str = "Metadata"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutWhen:
    """When a rollout may begin."""

    policy: str = "Immediately"
    cron: str = ""
    """With Window: when it opens, five fields."""
    duration_s: int = 0
    """With Window: how long it stays open, in seconds."""
    time_zone: str = ""
    """With Window: the zone of `cron`, such as Europe/Berlin; "" is UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenPrompt:
    """A prompt whose answer is known."""

    prompt: str
    expect: str
    """What the answer must contain."""
    max_tokens: int = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class GateQuery:
    """A Prometheus query whose value must not exceed `maximum`."""

    prometheus: str
    """Base URL."""
    expr: str
    """PromQL; `$(revision)` is the new revision."""
    maximum: str
    """A decimal string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGate:
    """What a new revision must show before the gateway routes to it."""

    prompts: tuple[GoldenPrompt, ...] = ()
    min_throughput_ratio: str = ""
    """Least speed as a share of the speed of the revision before, a decimal string; "" is any."""
    query: GateQuery | None = None
    timeout_s: int = 300
    """How long the checks may take from the first ready replica, in seconds."""

    @property
    def is_set(self) -> bool:
        return bool(self.prompts or self.min_throughput_ratio or self.query)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a new revision replaces the one that serves."""

    strategy: str = "Auto"
    max_hold_s: int = 300
    """Longest time without a ready replica in a swap, in seconds; then the revision before comes back."""
    when: RolloutWhen = field(default_factory=RolloutWhen)
    gate: RolloutGate = field(default_factory=RolloutGate)
    operator_upgrade: str = "Keep"
    """Keep: what a newer operator renders differently waits for the next change of the spec. Roll: it rolls out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Disruption:
    """What may evict replicas."""

    max_unavailable: int | str | None = None
    """Replicas that may be missing at the same time, a number or a percentage; None is one where there can be two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[JsonObject, ...] = ()
    affinity: JsonObject = field(default_factory=dict)
    topology_spread: str = "Soft"
    priority_class_name: str = ""
    runtime_class_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDeploymentSpec:
    model: str
    source: Source = field(default_factory=Source)
    cache: Cache = field(default_factory=Cache)
    served_names: tuple[str, ...] = ()
    """Empty means metadata.name; see `ModelDeployment.served_names`."""
    resources: Resources = field(default_factory=Resources)
    engine: EngineSettings = field(default_factory=EngineSettings)
    replicas: int | None = None
    scaling: Scaling | None = None
    drain_timeout_s: int = 120
    routing: Routing = field(default_factory=Routing)
    access: Access = field(default_factory=Access)
    rollout: Rollout = field(default_factory=Rollout)
    disruption: Disruption = field(default_factory=Disruption)
    placement: Placement = field(default_factory=Placement)
    pod_template: JsonObject = field(default_factory=dict)
    suspend: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDeployment:
    """One resource as it was read, its spec parsed."""

    namespace: str
    name: str
    spec: ModelDeploymentSpec
    uid: str = ""
    generation: int = 0
    given: JsonObject = field(default_factory=dict)
    """The spec as it came, which a ControllerRevision keeps beside what was rendered from it."""

    @property
    def served_names(self) -> tuple[str, ...]:
        return self.spec.served_names or (self.name,)

    @property
    def wanted_replicas(self) -> int:
        """Replicas asked for now: the number in the spec, else one, or the scaler's fewest but at least one."""
        if self.spec.replicas is not None:
            return self.spec.replicas
        return max(1, self.spec.scaling.min_replicas) if self.spec.scaling else 1

    @property
    def most_replicas(self) -> int:
        """Replicas that there can be without another edit of the spec."""
        return self.spec.scaling.max_replicas if self.spec.scaling else self.wanted_replicas

    @property
    def may_sleep(self) -> bool:
        """Whether idleness takes it to zero replicas and a request wakes it."""
        return self.spec.scaling is not None and self.spec.scaling.min_replicas == 0

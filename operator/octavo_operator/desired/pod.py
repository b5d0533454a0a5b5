"""The pod template of a server: PodSecurity *restricted*, no API token, probes that fail on lack of progress.

The order of the life's numbers: preStop sleep (routers take the pod out) < drain (running requests finish) < grace.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from octavo_operator.api.types import Gpu, ModelDeployment
from octavo_operator.desired import names
from octavo_operator.desired.cache import model_mounts, model_volumes, spec_as_mounted
from octavo_operator.desired.credentials import credential_env
from octavo_operator.desired.engine_args import PVC_MOUNT_PATH, SERVER_PORT, parallel_flags, render_server_args
from octavo_operator.desired.gpu import container_claims, extended_resources, node_selector, pod_claims
from octavo_operator.desired.merge import strategic_merge

PRE_STOP_SLEEP_S = 5
"""Longer than a gateway or kube-proxy needs to see that the pod goes."""
GRACE_SLACK_S = 15
"""For closing streams and freeing the GPU after the drain."""
SHARED_MEMORY_GIB = 1
"""Of each GPU: ranks on one node speak through it."""
RUN_AS = 65532
CACHE_PATH = "/cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSettings:
    """What the operator's configuration says about every server pod."""

    image: str
    image_cpu: str
    image_rocm: str
    """For GPUs of AMD."""
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()

    def image_for(self, gpu: Gpu) -> str:
        """The one whose PyTorch is made for what a pod asks for."""
        if not gpu.count:
            return self.image_cpu
        return self.image_rocm if gpu.resource_name.startswith("amd.com/") else self.image


def pod_template(resource: ModelDeployment, settings: PodSettings) -> dict[str, Any]:
    """The template without the revision's label, which is made of its fingerprint."""
    labels = {"metadata": {"labels": names.object_labels(resource.name)}}
    merged = strategic_merge({"spec": _pod_spec(resource, settings)}, resource.spec.pod_template)
    # Last, because the overlay may add labels, but the selectors of Service and Deployment must go on matching.
    return strategic_merge(merged, labels)


def given(fields: dict[str, Any]) -> dict[str, Any]:
    """Only the fields that are set: an empty one would be an owned field that says nothing."""
    return {key: value for key, value in fields.items() if value not in ("", {}, [])}


def _pod_spec(resource: ModelDeployment, settings: PodSettings) -> dict[str, Any]:
    placement = resource.spec.placement
    optional = {
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "resourceClaims": pod_claims(resource.spec.resources.gpu),
        "nodeSelector": node_selector(resource.spec),
        "tolerations": [dict(toleration) for toleration in placement.tolerations],
        "affinity": dict(placement.affinity),
        "topologySpreadConstraints": _spread(resource),
        "priorityClassName": placement.priority_class_name,
        "runtimeClassName": placement.runtime_class_name,
    }
    return {
        "serviceAccountName": resource.name,
        "automountServiceAccountToken": False,
        # A Service named octavo would otherwise inject OCTAVO_PORT=tcp://…, which reads like one of our settings.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": PRE_STOP_SLEEP_S + resource.spec.drain_timeout_s + GRACE_SLACK_S,
        "securityContext": pod_security(),
        "containers": [_container(resource, settings)],
        "volumes": _volumes(resource),
        **given(optional),
    }


def pod_security() -> dict[str, Any]:
    """What PodSecurity *restricted* asks of a pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": RUN_AS,
        "runAsGroup": RUN_AS,
        "fsGroup": RUN_AS,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _container(resource: ModelDeployment, settings: PodSettings) -> dict[str, Any]:
    spec = resource.spec
    has_gpu = spec.resources.gpu.count > 0
    return {
        "name": names.CONTAINER,
        "image": settings.image_for(spec.resources.gpu),
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["octavo"],
        "args": _args(resource),
        "ports": [{"name": names.PORT_NAME, "containerPort": SERVER_PORT, "protocol": "TCP"}],
        "env": _env(resource),
        "resources": _resources(resource),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            # The hook that brings a GPU's driver into the container writes to its root.
            "readOnlyRootFilesystem": not has_gpu,
        },
        # 200 from the moment that the port listens, before torch is imported: liveness takes over at once.
        "startupProbe": probe("/startup", period_s=2, timeout_s=5, failures=90),
        "livenessProbe": probe("/health", period_s=10, timeout_s=5, failures=3),
        "readinessProbe": probe("/ready", period_s=2, timeout_s=5, failures=2),
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_SLEEP_S}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(resource),
    }


def _args(resource: ModelDeployment) -> list[str]:
    """A server that was given a GPU and finds none must say so and not creep on the CPU; extraArgs have the last word."""
    model, *flags = render_server_args(spec_as_mounted(resource.spec), resource.name)
    num_gpus = resource.spec.resources.gpu.count
    device = ["--device=cuda"] if num_gpus > 0 else []
    folder = [f"--download-dir={PVC_MOUNT_PATH}"] if resource.spec.cache.kind == "NodeLocal" else []
    return ["serve", model, *device, *parallel_flags(resource.spec, num_gpus), *folder, *flags]


def home_env() -> list[dict[str, Any]]:
    """Whatever keeps files for later finds a writable place."""
    return [
        {"name": "HOME", "value": CACHE_PATH},
        {"name": "HF_HOME", "value": f"{CACHE_PATH}/huggingface"},
        # The image's user has no line in /etc/passwd, and torch asks for its name.
        {"name": "USER", "value": "octavo"},
    ]


def _env(resource: ModelDeployment) -> list[dict[str, Any]]:
    # Where a Job fetched the model, the server asks nobody for it.
    fetches_itself = resource.spec.cache.kind in ("None", "NodeLocal")
    secret = resource.spec.source.secret_ref if fetches_itself else None
    return [
        *home_env(),
        {"name": "OCTAVO_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        # Ids of stored responses end in digests of it, by which the gateway finds this pod again.
        {"name": "OCTAVO_ROUTING_TAG", "value": f"{resource.namespace}/{resource.name}/$(OCTAVO_POD_NAME)"},
        *credential_env(secret, resource.spec.model),
    ]


def _resources(resource: ModelDeployment) -> dict[str, Any]:
    asked = resource.spec.resources
    gpus = extended_resources(asked.gpu)
    requests = given({"cpu": asked.cpu, "memory": asked.memory, **gpus})
    limits = given({"memory": asked.memory, **gpus})
    return given({"requests": requests, "limits": limits, "claims": container_claims(asked.gpu)})


def probe(path: str, *, period_s: int, timeout_s: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": names.PORT_NAME, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def _volumes(resource: ModelDeployment) -> list[dict[str, Any]]:
    asked = resource.spec.resources
    size = asked.shared_memory or f"{SHARED_MEMORY_GIB * max(1, asked.gpu.count)}Gi"
    volumes: list[dict[str, Any]] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}},
        {"name": "cache", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
    ]
    return [*volumes, *model_volumes(resource)]


def _mounts(resource: ModelDeployment) -> list[dict[str, Any]]:
    mounts: list[dict[str, Any]] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "cache", "mountPath": CACHE_PATH},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    return [*mounts, *model_mounts(resource)]


def _spread(resource: ModelDeployment) -> list[dict[str, Any]]:
    actions = {"Soft": "ScheduleAnyway", "Hard": "DoNotSchedule"}
    action = actions.get(resource.spec.placement.topology_spread)
    if action is None:
        return []
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": action,
            "labelSelector": {"matchLabels": names.pod_selector(resource.name)},
        }
    ]

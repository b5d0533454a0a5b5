"""What `doctor` judges: facts of a cluster → outcomes, each with what to do. Pure.

| level | means |
|---|---|
| ok | as it should be |
| warn | works, but something that people expect will not |
| fail | Octavo or its models cannot work; the exit status is 1 |
| skip | could not be looked at, with the reason |
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from octavo_operator.api.quantity import parse_quantity

from .cluster import Json
from .resources import condition, name_of, namespace_of, status_of

Level = Literal["ok", "warn", "fail", "skip"]
OLDEST_MINOR = 30
METRIC = "octavo_kv_pressure_ratio"
_GPU_RESOURCE = re.compile(r"^(nvidia\.com/(gpu|mig-.+)|amd\.com/gpu|gpu\.intel\.com/.+)$")
_GPU_LABELS = ("nvidia.com/gpu.present", "amd.com/gpu.present", "feature.node.kubernetes.io/pci-10de.present")
_DEVICE_PLUGINS = ("nvidia-device-plugin", "amdgpu-device-plugin", "intel-gpu-plugin", "gpu-operator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    level: Level
    check: str
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """One thing that somebody must be allowed to do."""

    who: str
    group: str
    resource: str
    verb: str
    namespace: str = ""
    subresource: str = ""

    @property
    def text(self) -> str:
        resource = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        where = f"in {self.namespace}" if self.namespace else "in all namespaces"
        return f"{self.verb} {resource}{'.' + self.group if self.group else ''} {where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was read; None is what could not be."""

    namespace: str
    version: Mapping[str, str]
    crd: Json | None
    is_served: bool
    """Whether the API server serves ModelDeployments, which everybody may ask."""
    operators: Sequence[Json]
    gateways: Sequence[Json]
    leases: Sequence[Json] | None
    nodes: Sequence[Json] | None
    pods: Sequence[Json] | None
    daemon_sets: Sequence[Json] | None
    metrics_service: Json | None
    metrics: Sequence[str] | None
    """Names that custom.metrics.k8s.io offers; None where nobody serves it."""
    quotas: Sequence[Json] | None
    models: Sequence[Json]
    rights: Mapping[Right, bool | None] = field(default_factory=dict)


def judge(facts: Facts, now: datetime.datetime) -> list[Outcome]:
    """All checks, in the order in which a person would follow them."""
    return [
        check_version(facts),
        check_crd(facts),
        check_operator(facts),
        check_leader(facts, now),
        check_gateway(facts),
        *check_rights(facts),
        check_gpus(facts),
        check_metrics(facts),
        *check_quotas(facts),
        *check_models(facts),
    ]


def check_version(facts: Facts) -> Outcome:
    minor = int(re.sub(r"\D", "", facts.version.get("minor", "0")) or 0)
    said = f"Kubernetes {facts.version.get('gitVersion', '?')}"
    if (facts.version.get("major"), minor) < ("1", OLDEST_MINOR):
        return Outcome(level="fail", check="version", message=said, remedy=f"Octavo needs 1.{OLDEST_MINOR} or later")
    return Outcome(level="ok", check="version", message=said)


def check_crd(facts: Facts) -> Outcome:
    install = "install the chart: helm install octavo … --namespace octavo-system --create-namespace"
    if not facts.is_served:
        return Outcome(level="fail", check="CRD", message="ModelDeployments are not served", remedy=install)
    if facts.crd is None:
        return Outcome(level="ok", check="CRD", message="octavo.dev/v1alpha1 is served")
    given = facts.crd["metadata"].get("annotations", {}).get("octavo.dev/chart-version", "")
    running = next((_version(each) for each in facts.operators), "")
    if given and running and given != running:
        return Outcome(
            level="warn",
            check="CRD",
            message=f"the CRD is of chart {given}, the operator of {running}",
            remedy="upgrade the chart with crds.install: true, or apply crds/modeldeployments.octavo.dev.yaml",
        )
    return Outcome(
        level="ok", check="CRD", message=f"octavo.dev/v1alpha1 is served{f', of chart {given}' if given else ''}"
    )


def check_operator(facts: Facts) -> Outcome:
    return _check_deployment("operator", facts.operators, "no change, scaling or repair happens")


def check_gateway(facts: Facts) -> Outcome:
    return _check_deployment("gateway", facts.gateways, "no request is routed")


def _check_deployment(component: str, found: Sequence[Json], loss: str) -> Outcome:
    if not found:
        return Outcome(
            level="fail",
            check=component,
            message=f"no Deployment of the {component} is found; {loss}",
            remedy="install the chart, or look with rights to list Deployments in its namespace",
        )
    deployment = found[0]
    ready, wanted = int(status_of(deployment).get("readyReplicas") or 0), int(deployment["spec"].get("replicas", 1))
    where = f"{namespace_of(deployment)}/{name_of(deployment)}"
    said = f"{where}: {ready} of {wanted} ready, version {_version(deployment) or '?'}"
    if len(found) > 1:
        others = ", ".join(f"{namespace_of(each)}/{name_of(each)}" for each in found[1:])
        return Outcome(
            level="warn",
            check=component,
            message=f"{said}; also {others}",
            remedy="two releases must watch different namespaces",
        )
    if not ready:
        see = f"kubectl -n {namespace_of(deployment)} describe pods -l app.kubernetes.io/component={component}"
        return Outcome(level="fail", check=component, message=f"{said}; {loss}", remedy=see)
    return Outcome(level="ok" if ready >= wanted else "warn", check=component, message=said)


def check_leader(facts: Facts, now: datetime.datetime) -> Outcome:
    if facts.leases is None:
        return Outcome(level="skip", check="leader", message="Leases may not be read")
    names = {(namespace_of(each), name_of(each)) for each in facts.operators}
    lease = next((each for each in facts.leases if (namespace_of(each), name_of(each)) in names), None)
    if lease is None:
        return Outcome(level="fail", check="leader", message="no operator has taken the Lease", remedy="see its log")
    spec = lease["spec"]
    renewed = datetime.datetime.fromisoformat(str(spec.get("renewTime")).replace("Z", "+00:00"))
    old_s = (now - renewed).total_seconds()
    said = f"{spec.get('holderIdentity') or 'nobody'}, renewed {old_s:.0f} s ago"
    if old_s > 2 * float(spec.get("leaseDurationSeconds") or 15):
        return Outcome(level="fail", check="leader", message=f"{said}; nobody writes", remedy="see the operator's log")
    return Outcome(level="ok", check="leader", message=said)


def check_rights(facts: Facts) -> Iterable[Outcome]:
    """One outcome for each who."""
    for who in dict.fromkeys(right.who for right in facts.rights):
        mine = {right: may for right, may in facts.rights.items() if right.who == who}
        missing = [right.text for right, may in mine.items() if may is False]
        check = f"rights of {who}"
        if missing:
            remedy = (
                "ask for a role such as `edit`, which the chart extends"
                if who == "you"
                else "upgrade the chart; its roles give exactly what is needed"
            )
            level: Level = "warn" if who == "you" else "fail"
            yield Outcome(level=level, check=check, message=f"may not {'; '.join(missing)}", remedy=remedy)
        elif all(may is None for may in mine.values()):
            yield Outcome(level="skip", check=check, message="you may not ask (create subjectaccessreviews)")
        else:
            yield Outcome(level="ok", check=check, message=f"all {len(mine)} that are needed")


def check_gpus(facts: Facts) -> Outcome:
    if facts.nodes is None:
        return Outcome(level="skip", check="GPUs", message="nodes may not be listed")
    offered = gpus(facts.nodes)
    if offered:
        used = _used_gpus(facts.pods or ())
        kinds = [
            f"{total} {name} on {number} {'node' if number == 1 else 'nodes'}"
            + (f" ({total - used.get(name, 0)} free)" if facts.pods is not None else "")
            for name, (total, number) in sorted(offered.items())
        ]
        return Outcome(level="ok", check="GPUs", message=", ".join(kinds))
    labelled = [name_of(node) for node in facts.nodes if any(_labels(node).get(key) == "true" for key in _GPU_LABELS)]
    plugins = [
        name_of(each) for each in facts.daemon_sets or () if any(word in name_of(each) for word in _DEVICE_PLUGINS)
    ]
    if labelled or plugins:
        why = f"{', '.join(labelled)} have GPUs" if labelled else f"the device plugin {plugins[0]} is installed"
        return Outcome(
            level="fail",
            check="GPUs",
            message=f"{why}, but no node offers any",
            remedy="see the device plugin's pods and the drivers: kubectl describe node; NVIDIA's GPU operator installs both",
        )
    return Outcome(
        level="warn",
        check="GPUs",
        message="no node offers a GPU",
        remedy="install a device plugin, or set resources.gpu.count: 0 to serve on CPUs",
    )


def gpus(nodes: Sequence[Json]) -> dict[str, tuple[int, int]]:
    """Resource name → (devices, nodes) on nodes that take pods."""
    found: dict[str, tuple[int, int]] = {}
    for node in nodes:
        if node["spec"].get("unschedulable"):
            continue
        for name, count in (status_of(node).get("allocatable") or {}).items():
            if _GPU_RESOURCE.match(name) and int(count):
                total, number = found.get(name, (0, 0))
                found[name] = total + int(count), number + 1
    return found


def _used_gpus(pods: Sequence[Json]) -> dict[str, int]:
    used: dict[str, int] = {}
    for pod in pods:
        if not pod["spec"].get("nodeName") or status_of(pod).get("phase") in ("Succeeded", "Failed"):
            continue
        for container in pod["spec"].get("containers", ()):
            for name, count in ((container.get("resources") or {}).get("limits") or {}).items():
                if _GPU_RESOURCE.match(name):
                    used[name] = used.get(name, 0) + int(count)
    return used


def check_metrics(facts: Facts) -> Outcome:
    scaled = [name_of(each) for each in facts.models if each["spec"].get("scaling")]
    need: Level = "fail" if scaled else "warn"
    cost = f"; {', '.join(scaled)} cannot be scaled" if scaled else "; models with `scaling` could not be scaled"
    if facts.metrics_service is None and facts.metrics is None:
        return Outcome(
            level=need,
            check="metrics API",
            message=f"nobody serves custom.metrics.k8s.io{cost}",
            remedy="install the chart with metricsAdapter.enabled: auto",
        )
    service = (facts.metrics_service or {}).get("spec", {}).get("service") or {}
    who = f"{service.get('namespace', '?')}/{service.get('name', '?')}"
    available = condition(facts.metrics_service or {}, "Available")
    if available.get("status") == "False":
        message = f"{who} does not answer the API server: {available.get('message', '')}{cost}"
        return Outcome(
            level=need, check="metrics API", message=message, remedy="see the operator's log and its Service"
        )
    if not any(name.endswith(f"/{METRIC}") for name in facts.metrics or ()):
        return Outcome(
            level=need,
            check="metrics API",
            message=f"{who} serves custom metrics, but not {METRIC}{cost}",
            remedy="add the rule of examples/autoscalers/prometheus-adapter-values.yaml, or take it over: metricsAdapter.enabled: true",
        )
    return Outcome(level="ok", check="metrics API", message=f"{who} serves {METRIC}")


def check_quotas(facts: Facts) -> Iterable[Outcome]:
    check = f"quotas of {facts.namespace}"
    if facts.quotas is None:
        yield Outcome(level="skip", check=check, message="ResourceQuotas may not be listed")
        return
    spent = [
        f"{name_of(quota)}: {name} {used} of {hard}"
        for quota in facts.quotas
        for name, hard in (status_of(quota).get("hard") or {}).items()
        if _is_needed(name)
        for used in [(status_of(quota).get("used") or {}).get(name, "0")]
        if _amount(used) >= _amount(hard)
    ]
    if spent:
        yield Outcome(
            level="fail",
            check=check,
            message=f"spent: {'; '.join(spent)}",
            remedy="raise the quota, or remove what uses it",
        )
    elif facts.quotas:
        yield Outcome(level="ok", check=check, message=f"{len(facts.quotas)} with room left")
    else:
        yield Outcome(level="ok", check=check, message="none")


def check_models(facts: Facts) -> Iterable[Outcome]:
    if not facts.models:
        yield Outcome(level="ok", check=f"models of {facts.namespace}", message="none yet")
    for model in facts.models:
        ready = condition(model, "Ready")
        check = f"model {name_of(model)}"
        if ready.get("status") == "True":
            yield Outcome(level="ok", check=check, message=str(ready.get("message", "")))
            continue
        message = f"{ready.get('reason', 'not looked at yet')}: {ready.get('message', '')}".rstrip(": ")
        yield Outcome(level="warn", check=check, message=message, remedy=f"kubectl octavo status {name_of(model)}")


def _is_needed(resource: str) -> bool:
    """Whether a replica takes of it."""
    plain = resource.removeprefix("requests.").removeprefix("limits.")
    objects = {"pods", "count/pods", "services", "count/services", "count/deployments.apps", "cpu", "memory"}
    return plain in objects or bool(_GPU_RESOURCE.match(plain))


def _amount(text: str) -> Decimal:
    return parse_quantity(str(text)) or Decimal(0)


def _version(thing: Json) -> str:
    return str(_labels(thing).get("app.kubernetes.io/version", ""))


def _labels(thing: Json) -> Mapping[str, str]:
    labels: Mapping[str, str] = thing["metadata"].get("labels") or {}
    return labels

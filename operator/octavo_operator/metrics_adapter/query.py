"""From a request's path to measurements. Pure: paths and snapshots in, values out.

| path below /apis/custom.metrics.k8s.io/VERSION/namespaces/NS | answers |
|---|---|
| `pods/*/METRIC?labelSelector=…` | each selected serving pod with a fresh load; an empty list is an answer |
| `pods/NAME/METRIC` | that pod, or 404 |
| `modeldeployments.octavo.dev/NAME/METRIC` | the mean over its serving pods, or 404 |
| `modeldeployments.octavo.dev/*/METRIC` | each ModelDeployment that has a mean |
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from octavo_operator.metrics_adapter.documents import (
    GROUP,
    METRICS,
    MODEL_DEPLOYMENTS,
    PODS,
    VERSIONS,
    Measurement,
    api_group,
    api_group_list,
    api_resource_list,
)
from octavo_operator.metrics_adapter.errors import BadRequestError, NotFoundError
from octavo_operator.metrics_adapter.kube_access import PathAccess, ResourceAccess
from octavo_operator.metrics_adapter.label_selector import LabelSelector, parse_label_selector
from octavo_operator.metrics_adapter.store import MetricsStore, PodLoad, ServerPod

ALL_OBJECTS = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricQuery:
    """A request for values, as the path and query name it."""

    access: ResourceAccess
    selector: LabelSelector
    metric_selector: LabelSelector


def parse_access(raw_path: str) -> ResourceAccess | PathAccess:
    """What a GET of this path asks for, cut as Kubernetes' own RequestInfo cuts it (`%2A` is the star)."""
    path = raw_path.partition("?")[0]
    segments = [unquote(segment) for segment in path.strip("/").split("/")]
    if len(segments) < 4 or segments[:2] != ["apis", GROUP]:
        return PathAccess(verb="get", path="/" + "/".join(segments))
    _, group, version, *rest = segments
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name, *subresource = (*rest, "") if len(rest) == 1 else rest
    return ResourceAccess(
        verb="get" if name else "list",
        group=group,
        version=version,
        namespace=namespace,
        resource=resource,
        subresource="/".join(subresource),
        name=name,
    )


def discovery_document(path: str) -> dict[str, Any]:
    """The document at a path that names no metric.

    Raises:
        NotFoundError: there is none, as for /openapi: the aggregator then does without.
    """
    if path == "/apis":
        return api_group_list()
    if path == f"/apis/{GROUP}":
        return api_group()
    version = path.removeprefix(f"/apis/{GROUP}/")
    if version in VERSIONS:
        return api_resource_list(version)
    raise NotFoundError("the server could not find the requested resource", details={})


def parse_query(access: ResourceAccess, label_selector: str, metric_label_selector: str) -> MetricQuery:
    """A request for values that this adapter can answer.

    Raises:
        NotFoundError: version, resource or metric is unknown.
        BadRequestError: a selector is malformed, or stands where names cannot be selected.
    """
    known = access.version in VERSIONS and access.namespace and access.resource in (PODS, MODEL_DEPLOYMENTS)
    if not known or access.subresource not in METRICS:
        raise _no_metric(access)
    selector = parse_label_selector(label_selector)
    if selector.requirements and access.resource == MODEL_DEPLOYMENTS:
        raise BadRequestError(f"labelSelector is not served for {MODEL_DEPLOYMENTS}; ask for one by its name")
    return MetricQuery(access=access, selector=selector, metric_selector=parse_label_selector(metric_label_selector))


def measure(query: MetricQuery, pods: Iterable[ServerPod], store: MetricsStore, now: float) -> list[Measurement]:
    """The measurements that answer a query, sorted by name.

    Raises:
        NotFoundError: one object was asked for by name and has no fresh value.
    """
    access = query.access
    serving = [(pod, load) for pod in pods if pod.namespace == access.namespace and (load := _load(pod, store, now))]
    by_name = _pods(query, serving) if access.resource == PODS else _models(query, serving)
    # Our metrics bear no labels of their own, so a selector over them takes all or nothing.
    if not query.metric_selector.matches({}):
        by_name = []
    if access.name == ALL_OBJECTS:
        return sorted(by_name, key=lambda measurement: measurement.name)
    found = [measurement for measurement in by_name if measurement.name == access.name]
    if not found:
        raise _no_metric(access)
    return found


def _load(pod: ServerPod, store: MetricsStore, now: float) -> PodLoad | None:
    return store.fresh(pod.uid, now) if pod.is_serving else None


def _pods(query: MetricQuery, serving: Sequence[tuple[ServerPod, PodLoad]]) -> list[Measurement]:
    return [_measurement(query.access, pod.name, [load]) for pod, load in serving if query.selector.matches(pod.labels)]


def _models(query: MetricQuery, serving: Sequence[tuple[ServerPod, PodLoad]]) -> list[Measurement]:
    loads: dict[str, list[PodLoad]] = {}
    for pod, load in serving:
        if pod.model:
            loads.setdefault(pod.model, []).append(load)
    return [_measurement(query.access, model, loads[model]) for model in loads]


def _measurement(access: ResourceAccess, name: str, loads: Sequence[PodLoad]) -> Measurement:
    """The mean; it is as old as its oldest part."""
    return Measurement(
        resource=access.resource,
        namespace=access.namespace,
        name=name,
        metric=access.subresource,
        value=sum(load.pressure for load in loads) / len(loads),
        at=min(load.at for load in loads),
    )


def _no_metric(access: ResourceAccess) -> NotFoundError:
    """The sentence and details of the reference adapter, which HPA conditions quote."""
    which = "" if access.name in ("", ALL_OBJECTS) else f" {access.name}"
    message = f"the server could not find the metric {access.subresource} for {access.resource}{which}"
    return NotFoundError(message, details={"name": access.name, "group": GROUP, "kind": access.resource})

"""Paths and small readings of the objects that the commands look at."""

from __future__ import annotations

import datetime
from typing import Any

from octavo_cli.errors import CliError
from octavo_cli.local.screen import short_age
from octavo_operator.desired import names

from .cluster import Cluster, Json, Refused, find

GROUP = "/apis/octavo.dev/v1alpha1"
KEDA = "/apis/keda.sh/v1alpha1"
SYSTEM_NAMESPACE = "octavo-system"


def model_path(namespace: str, name: str = "") -> str:
    """Of one ModelDeployment, of a namespace's, or of all where `namespace` is empty."""
    return collection(GROUP, "modeldeployments", namespace) + (f"/{name}" if name else "")


def collection(api: str, plural: str, namespace: str = "") -> str:
    return f"{api}/namespaces/{namespace}/{plural}" if namespace else f"{api}/{plural}"


def get_model(cluster: Cluster, name: str) -> Json:
    """Raises CliError that names what there is instead."""
    found = find(cluster, model_path(cluster.namespace, name))
    if found is not None:
        return found
    others = [name_of(each) for each in items(cluster, model_path(cluster.namespace))]
    there = f"it has {', '.join(sorted(others))}" if others else "it has none"
    raise CliError(f"namespace {cluster.namespace} has no ModelDeployment {name!r}; {there}")


def items(cluster: Cluster, path: str, **query: str) -> list[Json]:
    """Of a list; raises CliError with a remedy where the kind is not served."""
    found = find(cluster, path, **query)
    if found is None and path.startswith(GROUP):
        raise CliError("this cluster has no ModelDeployments; install the chart: helm install octavo …")
    return list((found or {}).get("items") or ())


def items_or_none(cluster: Cluster, path: str, **query: str) -> list[Json] | None:
    """None where the asking person may not list them."""
    try:
        return items(cluster, path, **query)
    except Refused as refused:
        if refused.status == 403:
            return None
        raise


def pods_of(cluster: Cluster, namespace: str, name: str) -> list[Json]:
    pods = items(cluster, collection("/api/v1", "pods", namespace), labelSelector=names.selector_text(name))
    return sorted(pods, key=name_of)


def scaled_objects_of(cluster: Cluster, namespace: str, selector: str) -> list[Json] | None:
    """Empty where there is no KEDA; None where they may not be listed."""
    return items_or_none(cluster, collection(KEDA, "scaledobjects", namespace), labelSelector=selector)


def release_objects(cluster: Cluster, api: str, plural: str, component: str) -> list[Json]:
    """Of Octavo's own installation, wherever it is; in the usual namespace where only that may be listed."""
    selector = f"app.kubernetes.io/name=octavo,app.kubernetes.io/component={component}"
    found = items_or_none(cluster, collection(api, plural), labelSelector=selector)
    if found is None:
        found = items_or_none(cluster, collection(api, plural, SYSTEM_NAMESPACE), labelSelector=selector)
    return found or []


def name_of(thing: Json) -> str:
    return str(thing["metadata"]["name"])


def labels_of(thing: Json) -> dict[str, str]:
    return dict(thing["metadata"].get("labels") or {})


def namespace_of(thing: Json) -> str:
    return str(thing["metadata"].get("namespace", ""))


def condition(thing: Json, kind: str) -> Json:
    """Empty where there is none."""
    found: Json = next((each for each in status_of(thing).get("conditions") or () if each["type"] == kind), {})
    return found


def is_at_zero(model: Json) -> bool:
    """Nobody asks it, or somebody said so: its autoscaler rests, which is no fault."""
    return bool(model["spec"].get("replicas") == 0)


def status_of(thing: Json) -> dict[str, Any]:
    return dict(thing.get("status") or {})


def age(timestamp: str | None, now: datetime.datetime) -> str:
    """Since an RFC 3339 time; empty where there is none."""
    if not timestamp:
        return ""
    return short_age(
        max(0.0, (now - datetime.datetime.fromisoformat(timestamp.replace("Z", "+00:00"))).total_seconds())
    )


def flag_of(deployment: Json, name: str) -> str:
    """Value of a flag of its program; empty where it is not given."""
    (container,) = [
        each for each in deployment["spec"]["template"]["spec"]["containers"] if each["name"] in name_of(deployment)
    ][:1] or [{}]
    for argument in container.get("args") or ():
        if argument.startswith(f"--{name}="):
            return str(argument.partition("=")[2])
    return ""

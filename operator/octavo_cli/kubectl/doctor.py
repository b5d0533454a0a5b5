"""`kubectl octavo doctor`: reads what the checks judge, prints their outcomes, and fails where one does."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from octavo_operator.desired import names
from octavo_operator.kube import kinds

from .checks import judge
from .cluster import Cluster, Json, Refused, find
from .facts import Facts, Level, Outcome, Right
from .resources import (
    GROUP,
    KEDA,
    collection,
    flag_of,
    items_or_none,
    model_path,
    namespace_of,
    release_objects,
    scaled_objects_of,
)

_MARKS: dict[Level, tuple[str, str]] = {
    "ok": ("✔", "green"),
    "warn": ("!", "yellow"),
    "fail": ("✘", "red"),
    "skip": ("–", "dim"),
}
CUSTOM_METRICS = "/apis/custom.metrics.k8s.io/v1beta2"
DEVICES = "/apis/resource.k8s.io/v1"
KEDA_OPERATOR = "app.kubernetes.io/name=keda-operator"
APPLIED = ("list", "watch", "create", "patch", "delete")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, one object a check")


def run(cluster: Cluster, given: argparse.Namespace, console: Console) -> int:
    outcomes = judge(gather(cluster), datetime.datetime.now(datetime.UTC))
    if given.json:
        fields = ("level", "check", "message", "remedy")
        print(json.dumps([{name: getattr(each, name) for name in fields} for each in outcomes], indent=2))
    else:
        console.print(outcome_table(outcomes))
    return int(any(each.level == "fail" for each in outcomes))


def outcome_table(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in outcomes:
        mark, colour = _MARKS[each.level]
        said = Text(each.message)
        if each.remedy:
            said.append(f"\n→ {each.remedy}", style=colour)
        table.add_row(Text(mark, style=colour), Text(each.check, style="bold"), said)
    return table


def gather(cluster: Cluster) -> Facts:
    """One round of reads; what may not be read is None."""
    namespace = cluster.namespace
    operators = release_objects(cluster, "/apis/apps/v1", "deployments", "operator")
    gateways = release_objects(cluster, "/apis/apps/v1", "deployments", "gateway")
    is_served = find(cluster, GROUP) is not None
    models = items_or_none(cluster, model_path(namespace)) if is_served else []
    homes = dict.fromkeys(map(namespace_of, operators))
    leases = [items_or_none(cluster, collection("/apis/coordination.k8s.io/v1", "leases", home)) for home in homes]
    return Facts(
        namespace=namespace,
        version={key: str(value) for key, value in cluster.get("/version").items()},
        crd=_find_or_none(
            cluster, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/modeldeployments.octavo.dev"
        ),
        is_served=is_served,
        operators=operators,
        gateways=gateways,
        leases=None if None in leases else [lease for found in leases for lease in found or ()],
        nodes=items_or_none(cluster, "/api/v1/nodes"),
        pods=items_or_none(cluster, "/api/v1/pods"),
        daemon_sets=items_or_none(cluster, "/apis/apps/v1/daemonsets"),
        metrics_service=_find_or_none(
            cluster, "/apis/apiregistration.k8s.io/v1/apiservices/v1beta2.custom.metrics.k8s.io"
        ),
        metrics=_metrics(cluster),
        quotas=items_or_none(cluster, collection("/api/v1", "resourcequotas", namespace)),
        models=models or (),
        sees_models=models is not None,
        serves_claims=find(cluster, DEVICES) is not None,
        claim_templates=items_or_none(cluster, collection(DEVICES, "resourceclaimtemplates", namespace)),
        serves_keda=find(cluster, KEDA) is not None,
        keda_operators=items_or_none(cluster, "/apis/apps/v1/deployments", labelSelector=KEDA_OPERATOR),
        scaled_objects=scaled_objects_of(cluster, namespace, names.ALL_OBJECTS_SELECTOR),
        rights={
            right: _may(cluster, right, account)
            for right, account in [*_own_rights(namespace), *_rights_of(operators, gateways)]
        },
    )


def _find_or_none(cluster: Cluster, path: str) -> Json | None:
    try:
        return find(cluster, path)
    except Refused as refused:
        if refused.status == 403:
            return None
        raise


def _metrics(cluster: Cluster) -> list[str] | None:
    """What the aggregated API offers; None where nobody answers for it, whatever the API server makes of that."""
    try:
        found = find(cluster, CUSTOM_METRICS)
    except Refused:
        return None
    return None if found is None else [str(each["name"]) for each in found.get("resources") or ()]


def _own_rights(namespace: str) -> Iterable[tuple[Right, str]]:
    for group, resource, subresource, verb in (
        ("octavo.dev", "modeldeployments", "", "create"),
        ("octavo.dev", "modeldeployments", "", "patch"),
        ("", "pods", "", "list"),
        ("", "pods", "log", "get"),
        ("", "pods", "proxy", "get"),
    ):
        right = Right(
            who="you", group=group, resource=resource, subresource=subresource, verb=verb, namespace=namespace
        )
        yield right, ""


def _rights_of(operators: Sequence[Json], gateways: Sequence[Json]) -> Iterable[tuple[Right, str]]:
    """What the programs must be allowed to do where they watch."""
    for deployment in operators[:1]:
        for namespace in _watched(deployment):
            for kind in (*kinds.WATCHED, *kinds.LISTED):
                for verb in _verbs(kind, deployment):
                    yield _right("the operator", namespace, kind.group, kind.plural, verb), _account(deployment)
            status = _right("the operator", namespace, "octavo.dev", "modeldeployments", "patch", "status")
            yield status, _account(deployment)
    for deployment in gateways[:1]:
        for namespace in _watched(deployment):
            for group, resource in (("octavo.dev", "modeldeployments"), ("", "pods")):
                for verb in ("list", "watch"):
                    yield _right("the gateway", namespace, group, resource, verb), _account(deployment)
            scale = _right("the gateway", namespace, "octavo.dev", "modeldeployments", "patch", "scale")
            yield scale, _account(deployment)


def _verbs(kind: kinds.Kind, operator: Json) -> tuple[str, ...]:
    """NetworkPolicies are made only where the operator is told so; those of before are removed all the same. ScaledObjects
    need a Prometheus.
    """
    if kind == kinds.SCALED_OBJECT:
        return ("list", "create", "patch", "delete") if flag_of(operator, "prometheus-address") else ()
    if kind not in kinds.OWNED:
        return ("list", "watch")
    if kind == kinds.NETWORK_POLICY and not flag_of(operator, "server-network-policy"):
        return ("list", "watch", "delete")
    return APPLIED


def _right(who: str, namespace: str, group: str, resource: str, verb: str, subresource: str = "") -> Right:
    return Right(who=who, namespace=namespace, group=group, resource=resource, subresource=subresource, verb=verb)


def _watched(deployment: Json) -> list[str]:
    """The namespaces of its --namespaces flag; one empty name means all."""
    return [name for name in flag_of(deployment, "namespaces").split(",") if name] or [""]


def _account(deployment: Json) -> str:
    account = deployment["spec"]["template"]["spec"].get("serviceAccountName", "default")
    return f"system:serviceaccount:{namespace_of(deployment)}:{account}"


def _may(cluster: Cluster, right: Right, account: str) -> bool | None:
    """None where the asking person may not ask for others."""
    attributes = {
        "group": right.group,
        "resource": right.resource,
        "verb": right.verb,
        **({"subresource": right.subresource} if right.subresource else {}),
        **({"namespace": right.namespace} if right.namespace else {}),
    }
    kind, plural = (
        ("SubjectAccessReview", "subjectaccessreviews")
        if account
        else (
            "SelfSubjectAccessReview",
            "selfsubjectaccessreviews",
        )
    )
    body = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": kind,
        "spec": {
            "resourceAttributes": attributes,
            **({"user": account, "groups": _groups(account)} if account else {}),
        },
    }
    try:
        return bool(cluster.send("POST", f"/apis/authorization.k8s.io/v1/{plural}", body)["status"]["allowed"])
    except Refused as refused:
        if refused.status == 403:
            return None
        raise


def _groups(account: str) -> list[str]:
    """Of a service account, as its token gives them."""
    namespace = account.split(":")[2]
    return ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]

"""What `doctor` judges: facts of a cluster → outcomes, each with what to do. Pure."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from decimal import Decimal

from octavo_operator.api.quantity import parse_quantity

from .cluster import Json
from .facts import Facts, Level, Outcome
from .gpu_checks import check_claims, check_device_plugins, check_gpus, check_sizes, gpus_of, is_gpu
from .resources import condition, labels_of, name_of, namespace_of, status_of
from .scaling_checks import check_keda, check_metrics

OLDEST_MINOR = 30


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
        *check_device_plugins(facts),
        *check_sizes(facts),
        *check_claims(facts),
        check_metrics(facts),
        *check_keda(facts),
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
    if not spec.get("renewTime"):
        return Outcome(level="fail", check="leader", message="the Lease was never renewed", remedy="see its log")
    renewed = datetime.datetime.fromisoformat(str(spec["renewTime"]).replace("Z", "+00:00"))
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
        return
    short = [short for quota in facts.quotas for short in _too_short(quota, facts)]
    if short:
        yield Outcome(
            level="warn",
            check=check,
            message=f"not enough for a whole replica: {'; '.join(short)}",
            remedy="raise the quota, or remove what uses it",
        )
    elif facts.quotas:
        yield Outcome(level="ok", check=check, message=f"{len(facts.quotas)} with room left")
    else:
        yield Outcome(level="ok", check=check, message="none")


def _too_short(quota: Json, facts: Facts) -> Iterable[str]:
    """What of GPUs is left, where it is less than one more replica of a model takes."""
    hard, used = (status_of(quota).get(name) or {} for name in ("hard", "used"))
    for model in facts.models:
        gpu = gpus_of(model)
        name = f"requests.{gpu.resource_name}" if gpu else ""
        if gpu is None or gpu.claims or name not in hard:
            continue
        left = _amount(hard[name]) - _amount(used.get(name, "0"))
        if left < gpu.count:
            yield f"{name_of(quota)} has {left} of {name} left, a replica of {name_of(model)} takes {gpu.count}"


def check_models(facts: Facts) -> Iterable[Outcome]:
    if not facts.sees_models:
        yield Outcome(level="skip", check=f"models of {facts.namespace}", message="ModelDeployments may not be listed")
    elif not facts.models:
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
    return plain in objects or is_gpu(plain)


def _amount(text: str) -> Decimal:
    return parse_quantity(str(text)) or Decimal(0)


def _version(thing: Json) -> str:
    return str(labels_of(thing).get("app.kubernetes.io/version", ""))

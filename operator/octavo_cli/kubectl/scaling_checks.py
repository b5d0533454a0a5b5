"""What `doctor` judges of autoscalers: whether somebody serves the metric, and whether there is KEDA where it is wanted."""

from __future__ import annotations

from collections.abc import Iterable

from .cluster import Json
from .facts import Facts, Level, Outcome
from .resources import condition, flag_of, is_at_zero, name_of, namespace_of, status_of

METRIC = "octavo_kv_pressure_ratio"
INSTALL_KEDA = "install KEDA (https://keda.sh), or choose another scaling.backend"
NO_ADDRESS = "set the chart's values keda.enabled and prometheus.address, or choose another scaling.backend"


def check_metrics(facts: Facts) -> Outcome:
    scaled = [name_of(each) for each in facts.models if _scales_by_metric(each, facts)]
    need: Level = "fail" if scaled else "warn"
    cost = (
        f"; {', '.join(scaled)} cannot be scaled" if scaled else "; models of scaling.backend HPA could not be scaled"
    )
    if facts.metrics_service is None and facts.metrics is None:
        return Outcome(
            level=need,
            check="metrics API",
            message=f"nobody serves custom.metrics.k8s.io{cost}",
            remedy="install the chart with metricsAdapter.enabled: auto, or let the operator scale: scaling.backend BuiltIn",
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


def _scales_by_metric(model: Json, facts: Facts) -> bool:
    """Auto does where the operator's adapter is on or somebody else serves metrics; else it scales by other means."""
    scaling = model["spec"].get("scaling")
    if not scaling:
        return False
    is_served = facts.metrics_service is not None or facts.metrics is not None
    has_adapter = any(flag_of(each, "metrics-adapter") != "false" for each in facts.operators)
    backend = scaling.get("backend", "Auto")
    return backend == "HPA" or (backend == "Auto" and (is_served or has_adapter))


def check_keda(facts: Facts) -> Iterable[Outcome]:
    """Nothing where neither a model nor the chart wants it."""
    wanting = [name_of(each) for each in facts.models if _scales_by_keda(each, facts)]
    has_address = _has_prometheus(facts)
    if wanting and facts.operators and not has_address:
        yield _no_keda(wanting, "the operator has no --prometheus-address", NO_ADDRESS)
    elif not wanting and not has_address:
        return
    elif not facts.serves_keda:
        yield _no_keda(wanting, "the cluster has no API keda.sh", INSTALL_KEDA)
    elif facts.keda_operators is None:
        yield Outcome(level="skip", check="KEDA", message="keda.sh is served; its Deployment may not be looked for")
    elif not facts.keda_operators:
        yield _no_keda(wanting, "keda.sh is served, but no Deployment keda-operator is found", INSTALL_KEDA)
    else:
        yield _check_keda_operator(wanting, facts.keda_operators[0])
    yield from _check_scaled_objects(facts)


def _no_keda(wanting: list[str], what: str, remedy: str) -> Outcome:
    cost = f"{', '.join(wanting)} cannot be scaled" if wanting else "models of scaling.backend KEDA could not be scaled"
    return Outcome(level="fail" if wanting else "warn", check="KEDA", message=f"{what}; {cost}", remedy=remedy)


def _check_keda_operator(wanting: list[str], deployment: Json) -> Outcome:
    where, name = namespace_of(deployment), name_of(deployment)
    ready, wanted = int(status_of(deployment).get("readyReplicas") or 0), int(deployment["spec"].get("replicas", 1))
    said = f"{where}/{name}: {ready} of {wanted} ready"
    if ready:
        return Outcome(level="ok", check="KEDA", message=said)
    return _no_keda(wanting, said, f"kubectl -n {where} describe deployment {name}")


def _check_scaled_objects(facts: Facts) -> Iterable[Outcome]:
    """Those that KEDA cannot scale by, whatever stands in the way; at zero there is nothing for its autoscaler to do."""
    resting = {name_of(model) for model in facts.models if is_at_zero(model)}
    for each in facts.scaled_objects or ():
        kinds = ("Ready",) if name_of(each) in resting else ("Ready", "HPAActive")
        failed = [found for kind in kinds for found in [condition(each, kind)] if _is_false(found)]
        if failed:
            why = "; ".join(f"{found['type']} is False: {found.get('message', '')}" for found in failed)
            yield Outcome(
                level="warn",
                check=f"ScaledObject {name_of(each)}",
                message=why,
                remedy=f"kubectl -n {facts.namespace} describe scaledobject {name_of(each)}",
            )


def _is_false(found: Json) -> bool:
    return bool(found.get("status") == "False")


def _scales_by_keda(model: Json, facts: Facts) -> bool:
    """Auto does where nobody serves custom metrics, and KEDA is there with a Prometheus to ask."""
    backend = (model["spec"].get("scaling") or {}).get("backend", "Auto")
    is_left_to_it = facts.serves_keda and _has_prometheus(facts) and not _scales_by_metric(model, facts)
    return backend == "KEDA" or (backend == "Auto" and bool(model["spec"].get("scaling")) and is_left_to_it)


def _has_prometheus(facts: Facts) -> bool:
    return any(flag_of(each, "prometheus-address") for each in facts.operators)

"""Manifest → `ModelDeployment`, by the same rules as the CRD's schema and CEL.

The API server has refused most of this already; this is what local mode relies on, and what catches an object that
an older CRD let in. Never repairs: a manifest with a problem gives `SpecInvalidError` that lists them all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from octavo_operator.api.cache import parse_cache
from octavo_operator.api.engine import parse_engine
from octavo_operator.api.gpu import parse_gpu
from octavo_operator.api.quantity import parse_quantity
from octavo_operator.api.reader import ObjectReader, Problem
from octavo_operator.api.rollout import parse_rollout
from octavo_operator.api.scaling import MAX_REPLICAS, parse_scaling
from octavo_operator.api.source import parse_model, parse_source
from octavo_operator.api.types import (
    API_VERSION,
    KIND,
    Access,
    Disruption,
    ModelDeployment,
    ModelDeploymentSpec,
    Placement,
    Resources,
    Routing,
)
from octavo_operator.errors import SpecInvalidError

NAME = r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?"
SERVED_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}"
STRATEGIES = ("Auto", "LeastPressure", "PrefixAffinity", "RoundRobin")
SPREADS = ("Soft", "Hard", "None")
SECRET_NAME = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
MAX_KEY_SOURCES = 16
PERCENTAGE = r"(100|[1-9]?[0-9])%"
AUDITS = ("None", "Metadata", "Full")
MAX_TOKENS = 10**12


def parse_model_deployment(manifest: Any, *, creating: bool = False) -> ModelDeployment:
    """The resource as a value; raises SpecInvalidError with every problem.

    `creating` is for a manifest from a person: there replicas and scaling exclude each other. In a cluster the
    autoscaler writes replicas beside scaling later.
    """
    problems: list[Problem] = []
    top = ObjectReader(manifest, "manifest", problems)
    if (top.take("apiVersion"), top.take("kind")) != (API_VERSION, KIND):
        top.complain("kind", f"must be {KIND} of apiVersion {API_VERSION}")
    metadata = top.mapping("metadata")
    top.take("status")
    name = metadata.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        problems.append(
            Problem(
                "metadata.name",
                f"is {name!r}, must start with a letter and hold at most 52 lower-case letters, digits and '-'",
            )
        )
    spec = _parse_spec(top.take("spec"), problems)
    top.finish()
    if creating and spec.scaling is not None and spec.replicas is not None:
        problems.append(Problem("spec.replicas", "and spec.scaling exclude each other; remove replicas"))
    if problems:
        raise SpecInvalidError(tuple(problems))
    return ModelDeployment(
        namespace=metadata.get("namespace") or "default",
        name=str(name),
        uid=metadata.get("uid") or "",
        generation=metadata.get("generation") or 0,
        spec=spec,
        given=manifest.get("spec") or {},
    )


def parse_spec(raw: Any) -> ModelDeploymentSpec:
    """A spec that was kept; raises SpecInvalidError where it no longer is one."""
    problems: list[Problem] = []
    spec = _parse_spec(raw, problems)
    if problems:
        raise SpecInvalidError(tuple(problems))
    return spec


def _parse_spec(raw: Any, problems: list[Problem]) -> ModelDeploymentSpec:
    spec = ObjectReader(raw, "spec", problems)
    model = parse_model(spec)
    source = parse_source(spec.child("source"), model)
    resources = _resources(spec.child("resources"))
    spec.not_served("adapters", "merge the adapter into the model's weights and give that model")
    result = ModelDeploymentSpec(
        model=model,
        source=source,
        cache=parse_cache(spec.child("cache"), model, source),
        served_names=_served_names(spec),
        resources=resources,
        engine=parse_engine(spec.child("engine"), resources.gpu.count),
        replicas=spec.integer("replicas", low=0, high=MAX_REPLICAS) if spec.has("replicas") else spec.take("replicas"),
        scaling=parse_scaling(spec.child("scaling")) if spec.has("scaling") else spec.take("scaling"),
        drain_timeout_s=_drain_timeout_s(spec.child("drain")),
        routing=_routing(spec.child("routing")),
        access=_access(spec.child("access")),
        rollout=parse_rollout(spec.child("rollout")),
        disruption=_disruption(spec.child("disruption")),
        placement=_placement(spec.child("placement")),
        pod_template=_pod_template(spec),
        suspend=spec.boolean("suspend", default=False),
    )
    _check_product_selector(spec, result)
    spec.finish()
    return result


def _check_product_selector(spec: ObjectReader, result: ModelDeploymentSpec) -> None:
    label = result.resources.gpu.product_label
    if result.resources.gpu.product and label in result.placement.node_selector:
        spec.complain("placement.nodeSelector", f"and resources.gpu.product both say which {label}; keep one of them")


def _served_names(spec: ObjectReader) -> tuple[str, ...]:
    names = spec.strings("servedNames", most=16)
    for name in names:
        if not re.fullmatch(SERVED_NAME, name):
            spec.complain(
                "servedNames", f"{name!r} must begin with a letter or digit and hold only those and . _ : / -"
            )
    if len(set(names)) != len(names):
        spec.complain("servedNames", "holds a name twice")
    return names


def _resources(raw: ObjectReader) -> Resources:
    result = Resources(
        gpu=parse_gpu(raw.child("gpu")),
        cpu=_quantity(raw, "cpu"),
        memory=_quantity(raw, "memory"),
        shared_memory=_quantity(raw, "sharedMemory"),
    )
    raw.finish()
    return result


def _drain_timeout_s(raw: ObjectReader) -> int:
    timeout_s = raw.duration_s("timeout", default=120)
    raw.finish()
    return timeout_s


def _routing(raw: ObjectReader) -> Routing:
    result = Routing(
        strategy=raw.choice("strategy", STRATEGIES, default="Auto"),
        max_held_requests=raw.integer("maxHeldRequests", low=0, high=100_000, default=256),
        hold_timeout_s=raw.duration_s("holdTimeout", default=600),
    )
    raw.not_served("inferencePool", "leave it false: requests come through Octavo's gateway or the Service")
    raw.finish()
    return result


def _access(raw: ObjectReader) -> Access:
    result = Access(
        keys_from=_keys_from(raw),
        tokens_per_minute=raw.integer("tokensPerMinute", low=0, high=MAX_TOKENS),
        tokens_per_day=raw.integer("tokensPerDay", low=0, high=MAX_TOKENS),
        audit=raw.choice("audit", AUDITS, default="Metadata"),
    )
    if (result.tokens_per_minute or result.tokens_per_day) and not result.keys_from:
        raw.complain("", "tokensPerMinute and tokensPerDay count per key and need keysFrom")
    raw.finish()
    return result


def _disruption(raw: ObjectReader) -> Disruption:
    given = raw.take("maxUnavailable")
    is_share = isinstance(given, str) and re.fullmatch(PERCENTAGE, given)
    is_number = type(given) is int and 0 <= given <= MAX_REPLICAS
    if given is not None and not is_share and not is_number:
        raw.complain("maxUnavailable", f"{given!r} must be from 0 to {MAX_REPLICAS}, or a percentage such as 25%")
        given = None
    raw.finish()
    return Disruption(max_unavailable=given)


def _keys_from(raw: ObjectReader) -> tuple[str, ...]:
    sources = raw.take("keysFrom")
    if sources is None:
        return ()
    if not _is_list_of_objects(sources) or len(sources) > MAX_KEY_SOURCES:
        raw.complain("keysFrom", f"must be a list of at most {MAX_KEY_SOURCES} objects, each with secretRef")
        return ()
    names = []
    for number, source in enumerate(sources):
        reader = ObjectReader(source, f"{raw.path}.keysFrom[{number}]", raw.problems)
        secret = reader.child("secretRef")
        name = secret.string("name", pattern=SECRET_NAME, remedy="is no name of a Secret")
        if not secret.has("name"):
            secret.complain("name", "is required: the name of a Secret in the same namespace")
        secret.finish()
        reader.finish()
        names.append(name)
    return tuple(names)


def _placement(raw: ObjectReader) -> Placement:
    tolerations = raw.take("tolerations")
    if tolerations is not None and not _is_list_of_objects(tolerations):
        raw.complain("tolerations", "must be a list of objects")
        tolerations = None
    node_selector = raw.mapping("nodeSelector")
    if not all(isinstance(value, str) for value in node_selector.values()):
        raw.complain("nodeSelector", 'values must be strings; put numbers and booleans in quotes, such as "true"')
    result = Placement(
        node_selector=node_selector,
        tolerations=tuple(tolerations or ()),
        affinity=raw.mapping("affinity"),
        topology_spread=raw.choice("topologySpread", SPREADS, default="Soft"),
        priority_class_name=raw.string("priorityClassName"),
        runtime_class_name=raw.string("runtimeClassName"),
    )
    raw.finish()
    return result


def _pod_template(spec: ObjectReader) -> Mapping[str, Any]:
    overlay = spec.mapping("podTemplate")
    pod_spec = overlay.get("spec", {})
    if not isinstance(pod_spec, Mapping):
        spec.complain("podTemplate", "spec must be an object")
        return {}
    containers = pod_spec.get("containers")
    if containers is None:
        return overlay
    if not _is_list_of_objects(containers):
        spec.complain("podTemplate", "spec.containers must be a list of objects")
        return {}
    servers = [container for container in containers if container.get("name") == "server"]
    if not servers:
        spec.complain("podTemplate", 'spec.containers must list the container "server"; a merge cannot rename it')
    elif "command" in servers[0]:
        spec.complain("podTemplate", 'must not set the command of the container "server"; use engine.extraArgs')
    return overlay


def _quantity(raw: ObjectReader, field: str) -> str:
    """A non-negative quantity; a bare number is taken as one too, as Kubernetes does."""
    value = raw.take(field)
    if value is None or value == "":
        return ""
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    number = parse_quantity(text) if isinstance(text, str) else None
    if number is None or number < 0:
        raw.complain(field, f"{value!r} is no quantity, such as 4, 500m or 24Gi")
        return ""
    return str(text)


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)

"""`kubectl octavo status [NAME]`: the tree of a ModelDeployment's objects, each with what is amiss and why."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from octavo_cli.errors import CliError
from octavo_operator.desired import names
from octavo_operator.diagnosis import diagnose_pod
from octavo_operator.observed import Pod

from .cluster import Cluster, Json
from .resources import (
    age,
    collection,
    condition,
    get_model,
    items,
    items_or_none,
    model_path,
    name_of,
    namespace_of,
    pods_of,
    scaled_objects_of,
    status_of,
)

NUM_EVENTS = 5
START_STAGES = ("scheduled", "imagePull", "download", "load", "warmup", "total")
FINE_WHERE_FALSE = ("Progressing", "Active")
"""A rollout that has ended, and a ScaledObject whose model nobody asks: its least number of replicas stays."""
AMISS_WHERE_TRUE = ("Fallback", "Paused")
"""Of a ScaledObject."""
GOOD, BAD, BUSY, QUIET = "green", "red", "yellow", "dim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that one tree is made of."""

    model: Json
    deployments: Sequence[Json] = ()
    pods: Sequence[Json] = ()
    scaler: Json | None = None
    """A HorizontalPodAutoscaler: the operator's, or the one that KEDA made of the ScaledObject, whose labels it bears."""
    scaled_object: Json | None = None
    events: Sequence[Json] = field(default_factory=tuple)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", default="", help="of the ModelDeployment (default: all)")
    parser.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")


def run(cluster: Cluster, given: argparse.Namespace, console: Console) -> int:
    namespace = "" if given.all_namespaces else cluster.namespace
    if given.name and not given.all_namespaces:
        models = [get_model(cluster, given.name)]
    else:
        models = [each for each in items(cluster, model_path(namespace)) if given.name in ("", name_of(each))]
    if not models:
        raise CliError(f"there is no ModelDeployment {given.name or ''} in {namespace or 'any namespace'}")
    for model in models:
        console.print(status_tree(observe(cluster, model), datetime.datetime.now(datetime.UTC)))
    return 0


def observe(cluster: Cluster, model: Json) -> Snapshot:
    """What belongs to a ModelDeployment; what the person may not read is left out."""
    namespace, name = namespace_of(model), name_of(model)
    selector = names.selector_text(name)
    scalers = items_or_none(
        cluster, collection("/apis/autoscaling/v2", "horizontalpodautoscalers", namespace), labelSelector=selector
    )
    events = items_or_none(
        cluster, collection("/api/v1", "events", namespace), fieldSelector=f"involvedObject.name={name}"
    )
    return Snapshot(
        model=model,
        deployments=items(cluster, collection("/apis/apps/v1", "deployments", namespace), labelSelector=selector),
        pods=pods_of(cluster, namespace, name),
        scaler=next(iter(scalers or ()), None),
        scaled_object=next(iter(scaled_objects_of(cluster, namespace, selector) or ()), None),
        events=events or (),
    )


def status_tree(seen: Snapshot, now: datetime.datetime) -> Tree:
    """Pure: the whole view of one ModelDeployment."""
    model, status = seen.model, status_of(seen.model)
    ready = condition(model, "Ready")
    tree = Tree(_headline(model, ready, now), guide_style=QUIET)
    if ready.get("message"):
        tree.add(Text(str(ready["message"]), style="" if ready["status"] == "True" else BUSY))
    for label, value in _facts(model, status):
        tree.add(Text.assemble((f"{label} ", QUIET), value))
    branch = tree.add(Text("conditions", style=QUIET))
    for each in status.get("conditions") or ():
        branch.add(_condition_line(each, now))
    _add_revisions(tree, seen, now)
    above = tree if seen.scaled_object is None else _add_scaled_object(tree, seen.scaled_object, now)
    if seen.scaler is not None:
        _add_scaler(above, seen.scaler)
    _add_events(tree, seen.events, now)
    return tree


def _headline(model: Json, ready: Json, now: datetime.datetime) -> Text:
    status = status_of(model)
    wanted = (status.get("scaling") or {}).get("desired", model["spec"].get("replicas", 1))
    colour = GOOD if ready.get("status") == "True" else BUSY if status.get("readyReplicas") else BAD
    return Text.assemble(
        (f"{namespace_of(model)}/{name_of(model)}", "bold"),
        f"  {status.get('readyReplicas', 0)}/{wanted} ready  ",
        (str(ready.get("reason") or "NotObservedYet"), f"bold {colour}"),
        (f"  {age(model['metadata'].get('creationTimestamp'), now)}", QUIET),
    )


def _facts(model: Json, status: Json) -> list[tuple[str, str]]:
    download, start = status.get("download") or {}, status.get("coldStart") or {}
    facts = [
        ("model", str(model["spec"].get("model", ""))),
        ("serves", ", ".join(status.get("servedModels") or ())),
        ("endpoint", str(status.get("endpoint", ""))),
        ("pressure", str((status.get("scaling") or {}).get("pressure", ""))),
        ("capacity", _capacity(status.get("capacity") or {})),
        ("download", str(download.get("progress", ""))),
        ("cold start", ", ".join(f"{stage} {start[stage]}" for stage in START_STAGES if stage in start)),
    ]
    observed, wanted = status.get("observedGeneration"), model["metadata"].get("generation")
    if observed != wanted:
        facts.append(("behind", f"the operator has seen generation {observed or 'none'} of {wanted}; does it run?"))
    return [(label, value) for label, value in facts if value]


def _capacity(found: Json) -> str:
    units = {"kvTokensPerReplica": "tokens of KV cache", "maxConcurrent": "sequences", "tokensPerSecond": "tokens/s"}
    said = ", ".join(f"{found[name]} {unit}" for name, unit in units.items() if found.get(name))
    return f"{said} a replica" if said else ""


def _condition_line(found: Json, now: datetime.datetime) -> Text:
    mark, colour = _mark(found["type"], found["status"])
    return Text.assemble(
        (f"{mark} ", colour),
        f"{found['type']} ",
        (f"{found['reason']} " if found.get("reason") else "", colour),
        str(found.get("message", "")),
        (f"  {age(found.get('lastTransitionTime'), now)}", QUIET),
    )


def _mark(kind: str, status: str) -> tuple[str, str]:
    if status == "Unknown":
        return "?", BUSY
    if kind in AMISS_WHERE_TRUE:
        return ("✘", BAD) if status == "True" else ("·", QUIET)
    if status == "True":
        return "✔", GOOD
    return ("·", QUIET) if kind in FINE_WHERE_FALSE else ("✘", BAD)


def _add_revisions(tree: Tree, seen: Snapshot, now: datetime.datetime) -> None:
    rollout = status_of(seen.model).get("rollout") or {}
    pods: dict[str, list[Json]] = {}
    for pod in seen.pods:
        pods.setdefault(str(pod["metadata"].get("labels", {}).get(names.REVISION_LABEL, "")), []).append(pod)
    for deployment in sorted(seen.deployments, key=name_of):
        revision = str(deployment["metadata"].get("labels", {}).get(names.REVISION_LABEL, ""))
        notes = [
            *(["wanted"] if revision == rollout.get("revision") else []),
            *(["gets requests"] if revision in (rollout.get("admitted") or ()) else []),
        ]
        count = f"{status_of(deployment).get('readyReplicas', 0)}/{deployment['spec'].get('replicas', 0)} ready"
        branch = tree.add(Text.assemble(("revision ", QUIET), revision, f"  {count}  ", (", ".join(notes), "cyan")))
        for pod in pods.pop(revision, ()):
            branch.add(_pod_line(seen.model, pod, now))
    for revision, left in pods.items():
        branch = tree.add(Text.assemble(("revision ", QUIET), revision, ("  its Deployment is gone", BUSY)))
        for pod in left:
            branch.add(_pod_line(seen.model, pod, now))
    for label in ("strategy", "why", "pending"):
        if rollout.get(label):
            tree.add(Text.assemble((f"rollout {label} ", QUIET), str(rollout[label])))
    refused = rollout.get("refused") or {}
    if refused:
        said = f"{refused.get('revision', '')} {refused.get('reason', '')}: {refused.get('message', '')}"
        tree.add(Text.assemble(("rolled back ", QUIET), (said, BAD)))


def _pod_line(model: Json, raw: Json, now: datetime.datetime) -> Text:
    pod = Pod(raw=raw)
    gpu = (model["spec"].get("resources") or {}).get("gpu") or {}
    finding = diagnose_pod(pod, None, (), str(gpu.get("resourceName") or "nvidia.com/gpu"))
    if pod.is_terminating:
        said, colour = "Draining", BUSY
    elif pod.is_ready:
        said, colour = "Ready", GOOD
    else:
        said, colour = (f"{finding.reason}: {finding.sentence}" if finding else "Starting"), BAD
    restarts = int(pod.server.get("restartCount", 0))
    return Text.assemble(
        f"{pod.name}  ",
        (said, colour),
        (f"  on {pod.node}" if pod.node else "", QUIET),
        (f"  {restarts} restarts" if restarts else "", BUSY),
        (f"  {age(raw['metadata'].get('creationTimestamp'), now)}", QUIET),
    )


def _add_scaled_object(tree: Tree, scaled: Json, now: datetime.datetime) -> Tree:
    """Ready and Active always, and what else KEDA says that is amiss."""
    spec = scaled["spec"]
    bounds = f"{spec.get('minReplicaCount', 0)}…{spec.get('maxReplicaCount', 100)}"
    branch = tree.add(Text.assemble(("autoscaler ", QUIET), f"ScaledObject {name_of(scaled)}  {bounds}"))
    told = status_of(scaled).get("conditions") or ()
    if not told:
        branch.add(Text("✘ KEDA has not looked at it: does its operator run? kubectl octavo doctor", style=BAD))
    for each in told:
        if each["type"] in ("Ready", "Active") or _mark(each["type"], each["status"])[0] == "✘":
            branch.add(_condition_line(each, now))
    return branch


def _add_scaler(tree: Tree, scaler: Json) -> None:
    spec, status = scaler["spec"], status_of(scaler)
    bounds = f"{status.get('currentReplicas', 0)} → {status.get('desiredReplicas', 0)} of {spec.get('minReplicas', 1)}"
    branch = tree.add(Text.assemble(("autoscaler ", QUIET), f"{name_of(scaler)}  {bounds}…{spec['maxReplicas']}"))
    for each in status.get("conditions") or ():
        if each["status"] != "True" and each["type"] != "ScalingLimited":
            branch.add(Text.assemble((f"✘ {each['type']} ", BAD), str(each.get("message", ""))))


def _add_events(tree: Tree, events: Sequence[Json], now: datetime.datetime) -> None:
    def seen_at(event: Json) -> str:
        return str(event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp"))

    newest = sorted(events, key=seen_at)[-NUM_EVENTS:]
    if newest:
        branch = tree.add(Text("events", style=QUIET))
        for event in newest:
            colour = BUSY if event.get("type") == "Warning" else QUIET
            said = Text.assemble((f"{event.get('reason', '')} ", colour), str(event.get("message", "")))
            branch.add(said.append(f"  {age(seen_at(event), now)}", style=QUIET))

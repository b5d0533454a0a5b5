"""`kubectl octavo status [NAME]`: the tree of a ModelDeployment's objects, each with what is amiss and why."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterable, Iterator, Sequence
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
    is_at_zero,
    items,
    items_or_none,
    labels_of,
    model_path,
    name_of,
    namespace_of,
    scaled_objects_of,
    status_of,
)

NUM_EVENTS = 5
START_STAGES = ("scheduled", "imagePull", "download", "load", "warmup", "total")
FINE_WHERE_FALSE = ("Progressing", "Active")
"""A rollout that has ended, and a ScaledObject whose model nobody asks: its least number of replicas stays."""
FINE_AT_ZERO = ("ScalingActive", "HPAActive")
"""An autoscaler rests while its model stands at zero."""
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
    hidden: Sequence[str] = ()
    """Kinds that the person may not list."""


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
    now = datetime.datetime.now(datetime.UTC)
    for seen in observe(cluster, models, namespace, given.name):
        console.print(status_tree(seen, now))
    return 0


def observe(cluster: Cluster, models: Sequence[Json], namespace: str, name: str) -> Iterator[Snapshot]:
    """What belongs to each, from one list a kind, however many there are; what may not be listed is named instead."""
    selector = names.selector_text(name) if name else names.ALL_OBJECTS_SELECTOR
    about = f"involvedObject.name={name}" if name else "involvedObject.kind=ModelDeployment"
    hpas = collection("/apis/autoscaling/v2", "horizontalpodautoscalers", namespace)
    lists = {
        "deployments": items_or_none(
            cluster, collection("/apis/apps/v1", "deployments", namespace), labelSelector=selector
        ),
        "pods": items_or_none(cluster, collection("/api/v1", "pods", namespace), labelSelector=selector),
        "autoscalers": items_or_none(cluster, hpas, labelSelector=selector),
        "ScaledObjects": scaled_objects_of(cluster, namespace, selector),
        "events": items_or_none(cluster, collection("/api/v1", "events", namespace), fieldSelector=about),
    }
    hidden = tuple(kind for kind, found in lists.items() if found is None)
    by_owner = {kind: _by_owner(found or ()) for kind, found in lists.items()}
    for model in models:
        mine = {kind: found.get((namespace_of(model), name_of(model)), []) for kind, found in by_owner.items()}
        yield Snapshot(
            model=model,
            deployments=mine["deployments"],
            pods=sorted(mine["pods"], key=name_of),
            scaler=next(iter(mine["autoscalers"]), None),
            scaled_object=next(iter(mine["ScaledObjects"]), None),
            events=mine["events"],
            hidden=hidden,
        )


def _by_owner(things: Iterable[Json]) -> dict[tuple[str, str], list[Json]]:
    """By namespace and name of the ModelDeployment that they belong to, or are about."""
    found: dict[tuple[str, str], list[Json]] = {}
    for each in things:
        about = each.get("involvedObject")
        owner = str(about.get("name")) if about else labels_of(each).get(names.NAME_LABEL, "")
        found.setdefault((namespace_of(each), owner), []).append(each)
    return found


def status_tree(seen: Snapshot, now: datetime.datetime) -> Tree:
    """Pure: the whole view of one ModelDeployment."""
    model, status = seen.model, status_of(seen.model)
    ready = condition(model, "Ready")
    tree = Tree(_headline(model, ready, now), guide_style=QUIET)
    if ready.get("message"):
        tree.add(Text(str(ready["message"]), style="" if ready["status"] == "True" else BUSY))
    for label, value in _facts(model, status):
        tree.add(Text.assemble((f"{label} ", QUIET), value))
    fine = (*FINE_WHERE_FALSE, *(FINE_AT_ZERO if is_at_zero(model) else ()))
    branch = tree.add(Text("conditions", style=QUIET))
    for each in status.get("conditions") or ():
        branch.add(_condition_line(each, now, fine))
    _add_revisions(tree, seen, now)
    above = tree if seen.scaled_object is None else _add_scaled_object(tree, seen.scaled_object, now, fine)
    if seen.scaler is not None:
        _add_scaler(above, seen.scaler, fine)
    _add_events(tree, seen.events, now)
    if seen.hidden:
        tree.add(Text(f"not shown, for you may not list them: {', '.join(seen.hidden)}", style=QUIET))
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
        ("  being deleted" if model["metadata"].get("deletionTimestamp") else "", BUSY),
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


def _condition_line(found: Json, now: datetime.datetime, fine: Sequence[str]) -> Text:
    mark, colour = _mark(found["type"], found["status"], fine)
    return Text.assemble(
        (f"{mark} ", colour),
        f"{found['type']} ",
        (f"{found['reason']} " if found.get("reason") else "", colour),
        str(found.get("message", "")),
        (f"  {age(found.get('lastTransitionTime'), now)}", QUIET),
    )


def _mark(kind: str, status: str, fine: Sequence[str]) -> tuple[str, str]:
    """`fine` are those that may be False."""
    if status == "Unknown":
        return "?", BUSY
    if kind in AMISS_WHERE_TRUE:
        return ("✘", BAD) if status == "True" else ("·", QUIET)
    if status == "True":
        return "✔", GOOD
    return ("·", QUIET) if kind in fine else ("✘", BAD)


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


def _add_scaled_object(tree: Tree, scaled: Json, now: datetime.datetime, fine: Sequence[str]) -> Tree:
    """Ready and Active always, and what else KEDA says that is amiss."""
    spec = scaled["spec"]
    bounds = f"{spec.get('minReplicaCount', 0)}…{spec.get('maxReplicaCount', 100)}"
    branch = tree.add(Text.assemble(("autoscaler ", QUIET), f"ScaledObject {name_of(scaled)}  {bounds}"))
    told = status_of(scaled).get("conditions") or ()
    if not told:
        branch.add(Text("✘ KEDA has not looked at it: does its operator run? kubectl octavo doctor", style=BAD))
    for each in told:
        if each["type"] in ("Ready", "Active") or _mark(each["type"], each["status"], fine)[0] == "✘":
            branch.add(_condition_line(each, now, fine))
    return branch


def _add_scaler(tree: Tree, scaler: Json, fine: Sequence[str]) -> None:
    spec, status = scaler["spec"], status_of(scaler)
    bounds = f"{status.get('currentReplicas', 0)} → {status.get('desiredReplicas', 0)} of {spec.get('minReplicas', 1)}"
    branch = tree.add(Text.assemble(("autoscaler ", QUIET), f"{name_of(scaler)}  {bounds}…{spec['maxReplicas']}"))
    for each in status.get("conditions") or ():
        if each["status"] != "True" and each["type"] != "ScalingLimited":
            mark, colour = _mark(each["type"], each["status"], fine)
            branch.add(Text.assemble((f"{mark} {each['type']} ", colour), str(each.get("message", ""))))


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

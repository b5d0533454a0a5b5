"""`kubectl octavo rollout status|pause|resume|undo NAME`: a new revision on its way, and the way back."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from octavo_cli.errors import CliError
from octavo_operator.desired import names
from octavo_operator.desired.revision import OUTSIDE_OF_TEMPLATE

from .cluster import JSON_PATCH, MERGE_PATCH, Cluster, Json, Refused
from .resources import collection, condition, get_model, items_or_none, model_path, name_of, status_of

POLL_S = 1.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("status", "pause", "resume", "undo"))
    parser.add_argument("name", help="of the ModelDeployment")
    parser.add_argument("-w", "--watch", action="store_true", help="status: wait until the rollout has ended")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of --watch (%(default)g)")
    parser.add_argument("--to-revision", default="", metavar="HASH", help="undo: this one instead of the one before")


def run(cluster: Cluster, given: argparse.Namespace, console: Console) -> int:
    model = get_model(cluster, given.name)
    if given.action == "status":
        return status(cluster, given, console)
    if given.action == "undo":
        target = undo(cluster, model, given.to_revision)
        console.print(
            f"{given.name} goes back to revision {target}; see `kubectl octavo rollout status {given.name} -w`"
        )
        return 0
    suspend = given.action == "pause"
    path = model_path(cluster.namespace, given.name)
    cluster.send("PATCH", path, {"spec": {"suspend": suspend}}, content_type=MERGE_PATCH)
    said = "rests: no rollout, scaling or repair until `resume`; running pods stay" if suspend else "goes on"
    console.print(f"{given.name} {said}")
    return 0


def status(
    cluster: Cluster,
    given: argparse.Namespace,
    console: Console,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """0 when the wanted revision runs alone and whole, 1 while it does not; with --watch 0 comes, or the time is over."""
    end, said = clock() + given.timeout, ""
    while True:
        model = get_model(cluster, given.name)
        is_done, sentence = progress(model)
        if sentence != said:
            console.print(Text(sentence, style="green" if is_done else "yellow"), soft_wrap=True)
            said = sentence
        if is_done or not given.watch:
            break
        refused = (status_of(model).get("rollout") or {}).get("refused") or {}
        if refused and condition(model, "Progressing").get("reason") == refused.get("reason"):
            raise CliError(f"revision {refused.get('revision')} was rolled back; the one before serves")
        if clock() >= end:
            raise CliError(f"{given.name} was not rolled out within {given.timeout:g} s")
        sleep(POLL_S)
    if not given.watch:
        _show_revisions(cluster, model, console)
    return 0 if is_done else 1


def progress(model: Json) -> tuple[bool, str]:
    """(whether the rollout has ended, what is told of it)."""
    found, seen = status_of(model), condition(model, "Progressing")
    if found.get("observedGeneration") != model["metadata"].get("generation") or not seen:
        return False, "the operator has not looked at the change yet"
    sentence = f"{seen['reason']}: {seen.get('message', '')}"
    return seen["status"] == "False" and seen["reason"] == "RolledOut", sentence


def undo(cluster: Cluster, model: Json, wanted: str) -> str:
    """Puts the kept spec of a revision back; returns the revision."""
    current = str((status_of(model).get("rollout") or {}).get("revision", ""))
    found = kept_revisions(cluster, model)
    if found is None:
        raise CliError(
            f"{name_of(model)}: what is kept of revisions may not be read; ask for list controllerrevisions.apps"
        )
    kept = [each for each in found if _revision(each) != current]
    chosen = [each for each in kept if not wanted or _revision(each) == wanted]
    if not chosen:
        there = ", ".join(_revision(each) for each in kept) or "none"
        which = f"revision {wanted}" if wanted else "no revision before this one"
        raise CliError(f"{name_of(model)}: {which} is kept; kept beside {current or 'the current one'}: {there}")
    target = chosen[-1]
    spec = restored_spec(model["spec"], (target.get("data") or {}).get("spec") or {})
    # Whoever changed the resource meanwhile wins.
    version = model["metadata"]["resourceVersion"]
    operations = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": version},
        {"op": "replace", "path": "/spec", "value": spec},
    ]
    try:
        cluster.send("PATCH", model_path(cluster.namespace, name_of(model)), operations, content_type=JSON_PATCH)
    except Refused as refused:
        if refused.status in (409, 422) and "resourceVersion" in str(refused):
            raise CliError(f"{name_of(model)} was changed meanwhile; look at it and try again") from refused
        raise
    return _revision(target)


def restored_spec(now: Json, kept: Json) -> Json:
    """The kept revision's fields, and what no revision keeps as it is now."""
    if not kept.get("model"):
        raise CliError("the kept revision holds no spec; it is of another version of Octavo")
    return {**kept, **{key: now[key] for key in OUTSIDE_OF_TEMPLATE if key in now}}


def kept_revisions(cluster: Cluster, model: Json) -> list[Json] | None:
    """ControllerRevisions that the operator keeps, oldest first; None where they may not be listed."""
    path = collection("/apis/apps/v1", "controllerrevisions", cluster.namespace)
    found = items_or_none(cluster, path, labelSelector=names.selector_text(name_of(model)))
    return None if found is None else sorted(found, key=lambda each: int(each.get("revision") or 0))


def _show_revisions(cluster: Cluster, model: Json, console: Console) -> None:
    rollout = status_of(model).get("rollout") or {}
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("REVISION", "NUMBER", "MODEL", "NOTE"):
        table.add_column(heading)
    kept = kept_revisions(cluster, model)
    for each in kept or ():
        notes = [
            *(["wanted"] if _revision(each) == rollout.get("revision") else []),
            *(["gets requests"] if _revision(each) in (rollout.get("admitted") or ()) else []),
        ]
        spec = (each.get("data") or {}).get("spec") or {}
        table.add_row(_revision(each), str(each.get("revision", "")), str(spec.get("model", "")), ", ".join(notes))
    if kept:
        console.print(table)


def _revision(kept: Json) -> str:
    return str(kept["metadata"].get("labels", {}).get(names.REVISION_LABEL, ""))

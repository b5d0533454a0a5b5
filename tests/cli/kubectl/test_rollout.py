"""Rollouts: told until they end, paused, and taken back to a kept revision."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from octavo_cli.errors import CliError
from octavo_cli.kubectl import __main__ as plugin
from octavo_cli.kubectl import rollout
from octavo_cli.kubectl.cluster import Refused
from octavo_testing.kube_objects import MODELS, FakeCluster, a_condition, a_kept_revision, a_model

KEPT = "/apis/apps/v1/namespaces/team/controllerrevisions"
ROLLED_OUT = a_condition("Progressing", "False", "RolledOut", "revision r2 runs with 1 replicas")
ROLLING = a_condition("Progressing", "True", "RollingOut", "revision r2 replaces r1")


def given(*arguments: str) -> Any:
    parser = plugin.parser(only="rollout")
    rollout.add_arguments(parser.subcommands["rollout"])
    return parser.parse_args(["rollout", *arguments])


def a_cluster(model: dict[str, Any], *kept: dict[str, Any]) -> FakeCluster:
    return FakeCluster({f"{MODELS}/qwen": model, MODELS: [model], KEPT: list(kept)})


def run(cluster: FakeCluster, *arguments: str) -> tuple[int, str]:
    console = Console(width=160, record=True, quiet=False, file=io.StringIO())
    with console.file:
        code = rollout.run(cluster, given(*arguments), console)
    return code, console.export_text()


@pytest.mark.parametrize(("condition", "status"), [(ROLLED_OUT, 0), (ROLLING, 1)])
def test_status_says_how_far_and_whether_it_has_ended(condition: dict[str, Any], status: int) -> None:
    code, text = run(a_cluster(a_model("qwen", condition), a_kept_revision("r1", 1)), "status", "qwen")

    assert code == status
    assert f"{condition['reason']}: {condition['message']}" in text
    assert "r1" in text


def test_a_change_that_the_operator_has_not_seen_is_not_called_rolled_out() -> None:
    model = a_model("qwen", ROLLED_OUT)
    model["metadata"]["generation"] = 3

    assert rollout.progress(model) == (False, "the operator has not looked at the change yet")


def test_watch_tells_each_change_once_and_ends_with_the_rollout() -> None:
    cluster = a_cluster(a_model("qwen", ROLLING))
    console = Console(width=160, record=True, file=io.StringIO())
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            cluster.objects[f"{MODELS}/qwen"] = a_model("qwen", ROLLED_OUT)

    with console.file:
        code = rollout.status(cluster, given("status", "qwen", "-w"), console, clock=lambda: sum(slept), sleep=sleep)

    assert code == 0
    assert console.export_text().count("RollingOut") == 1


def test_watch_gives_up_after_its_timeout() -> None:
    slept: list[float] = []

    with pytest.raises(CliError, match="qwen was not rolled out within 5 s"):
        rollout.status(
            a_cluster(a_model("qwen", ROLLING)),
            given("status", "qwen", "-w", "--timeout=5"),
            Console(quiet=True),
            clock=lambda: sum(slept),
            sleep=slept.append,
        )


def test_watch_ends_at_once_where_the_rollout_was_taken_back() -> None:
    refused = {"revision": "r2", "reason": "MaxHoldExceeded", "message": "no replica within 5m"}
    condition = a_condition("Progressing", "False", "MaxHoldExceeded", "no replica within 5m")
    cluster = a_cluster(a_model("qwen", condition, rollout={"revision": "r1", "refused": refused}))

    with pytest.raises(CliError, match="revision r2 was rolled back"):
        run(cluster, "status", "qwen", "-w")


@pytest.mark.parametrize(("action", "suspend"), [("pause", True), ("resume", False)])
def test_pause_and_resume_write_suspend(action: str, suspend: bool) -> None:
    cluster = a_cluster(a_model("qwen", ROLLING))

    run(cluster, action, "qwen")

    assert cluster.sent == [("PATCH", f"{MODELS}/qwen", {"spec": {"suspend": suspend}})]


def test_undo_puts_the_kept_spec_back_and_leaves_what_no_revision_keeps() -> None:
    spec = {"model": "hf://org/new", "replicas": 3, "suspend": False, "engine": {"maxModelLen": 8}}
    model = a_model("qwen", ROLLED_OUT, spec=spec, rollout={"revision": "r3"})
    kept = [
        a_kept_revision("r3", 3, model="hf://org/new"),
        a_kept_revision("r1", 1, model="hf://org/oldest"),
        a_kept_revision("r2", 2, model="hf://org/old", servedNames=["a"]),
    ]
    cluster = a_cluster(model, *kept)

    _, text = run(cluster, "undo", "qwen")

    (_, path, operations) = cluster.sent[0]
    assert path == f"{MODELS}/qwen"
    assert operations[0] == {"op": "test", "path": "/metadata/resourceVersion", "value": "7"}
    assert operations[1]["value"] == {"model": "hf://org/old", "servedNames": ["a"], "replicas": 3, "suspend": False}
    assert "qwen goes back to revision r2" in text


def test_undo_goes_to_the_revision_that_is_named() -> None:
    model = a_model("qwen", rollout={"revision": "r3"})
    cluster = a_cluster(model, a_kept_revision("r1", 1), a_kept_revision("r2", 2), a_kept_revision("r3", 3))

    assert "revision r1" in run(cluster, "undo", "qwen", "--to-revision=r1")[1]


@pytest.mark.parametrize(
    ("kept", "arguments", "said"),
    [
        ([], [], "qwen: no revision before this one is kept; kept beside r3: none"),
        ([a_kept_revision("r3", 3)], [], "no revision before this one"),
        ([a_kept_revision("r1", 1)], ["--to-revision=r9"], "revision r9 is kept; kept beside r3: r1"),
        ([{**a_kept_revision("r1", 1), "data": {"template": {}}}], [], "holds no spec"),
    ],
)
def test_undo_says_what_there_is_where_it_cannot(kept: list[Any], arguments: list[str], said: str) -> None:
    cluster = a_cluster(a_model("qwen", rollout={"revision": "r3"}), *kept)

    with pytest.raises(CliError, match=said):
        run(cluster, "undo", "qwen", *arguments)
    assert cluster.sent == []


def test_undo_does_not_call_unread_revisions_none() -> None:
    cluster = a_cluster(a_model("qwen", rollout={"revision": "r3"}))
    cluster.objects["/apis/apps/v1/namespaces/team/controllerrevisions"] = 403

    with pytest.raises(CliError, match=r"may not be read; ask for list controllerrevisions\.apps"):
        run(cluster, "undo", "qwen")


def test_undo_loses_against_whoever_changed_the_resource_meanwhile() -> None:
    cluster = a_cluster(a_model("qwen", rollout={"revision": "r3"}), a_kept_revision("r1", 1))

    def refuse(method: str, path: str, body: Any) -> dict[str, Any]:
        raise Refused(422, "testing path /metadata/resourceVersion failed")

    cluster.answer = refuse

    with pytest.raises(CliError, match="changed meanwhile"):
        run(cluster, "undo", "qwen")

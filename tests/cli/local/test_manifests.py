"""Files of manifests: all problems at once, by the operator's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from octavo_cli.errors import CliError
from octavo_cli.local.manifests import load_manifests
from octavo_testing.local_mode import a_manifest, write_manifests

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    assert load_manifests([str(path)])


def test_all_documents_of_all_files_are_read(tmp_path: Path) -> None:
    one = write_manifests(tmp_path / "one.yaml", a_manifest("a"), a_manifest("b"))
    two = write_manifests(tmp_path / "two.yaml", a_manifest("c"))

    assert [each.key for each in load_manifests([str(one), str(two)])] == ["default/a", "default/b", "default/c"]


def test_every_problem_is_told_with_its_place(tmp_path: Path) -> None:
    path = write_manifests(
        tmp_path / "m.yaml", a_manifest("a", replicas=-1), a_manifest("b", model="ftp://x"), a_manifest("c", zzz=1)
    )

    with pytest.raises(CliError) as refused:
        load_manifests([str(path)])

    lines = str(refused.value).splitlines()
    assert ["document 1" in lines[0], "document 2" in lines[1], "document 3" in lines[2]] == [True] * 3
    assert "spec.replicas" in lines[0]
    assert "spec.model" in lines[1]
    assert "spec.zzz" in lines[2]


def test_what_only_the_operator_can_judge_is_refused_by_name(tmp_path: Path) -> None:
    """All of it, although none of it does anything here: a manifest is one on both sides."""
    schedules = [
        {"name": "day", "cron": "0 8 * * 1-5"},
        {"name": "odd", "cron": "0 25 * * *"},
        {"name": "far", "cron": "0 8 * * *", "timeZone": "Europe/Nowhere"},
        {"name": "never", "cron": "0 0 31 2 *"},
    ]
    behavior = {"scaleUp": {"stabilizationWindowSeconds": 9999}}
    scaling = {"maxReplicas": 2, "schedules": schedules, "behavior": behavior}
    rollout = {"when": {"policy": "Window", "cron": "61 8 * * *", "duration": "1h"}}
    good = a_manifest("b", replicas=None, scaling={"maxReplicas": 2, "schedules": schedules[:1]})
    path = write_manifests(tmp_path / "m.yaml", a_manifest("a", replicas=None, scaling=scaling, rollout=rollout), good)

    with pytest.raises(CliError) as refused:
        load_manifests([str(path)])

    told = [line.strip().partition(", document 1: ")[2] for line in str(refused.value).splitlines()]
    assert [line.split(" ")[0].rstrip(":") for line in told] == [
        "spec.rollout.when.cron",
        "spec.scaling.schedules[1].cron",
        "spec.scaling.schedules[2].timeZone",
        "spec.scaling.schedules[3].cron",
        "spec.scaling.behavior.scaleUp.stabilizationWindowSeconds",
    ]


def test_a_name_or_served_name_twice_is_refused(tmp_path: Path) -> None:
    path = write_manifests(
        tmp_path / "m.yaml", a_manifest("a"), a_manifest("a"), a_manifest("b", servedNames=["a", "x"])
    )

    with pytest.raises(CliError) as refused:
        load_manifests([str(path)])

    assert "default/a is there twice" in str(refused.value)
    assert "'a' is claimed by default/a and by default/b" in str(refused.value)


A_SECRET: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "keys"},
    "stringData": {"alice": "sk-1"},
    "data": {"bob": "c2stMg=="},
}


def test_keys_come_from_secrets_among_the_documents(tmp_path: Path) -> None:
    guarded = a_manifest("a", access={"keysFrom": [{"secretRef": {"name": "keys"}}]})
    path = write_manifests(tmp_path / "m.yaml", guarded, A_SECRET, a_manifest("b"))

    first, second = load_manifests([str(path)])

    assert first.secrets == {"default/keys": {"alice": b"sk-1", "bob": b"sk-2"}}
    assert second.secrets == {}


def test_a_secret_that_is_missing_or_unreadable_is_told(tmp_path: Path) -> None:
    guarded = a_manifest("a", access={"keysFrom": [{"secretRef": {"name": "keys"}}]})
    missing = write_manifests(tmp_path / "missing.yaml", guarded)
    broken = write_manifests(tmp_path / "broken.yaml", guarded, {**A_SECRET, "data": {"bob": "!"}})

    with pytest.raises(CliError, match="names the Secret default/keys, which is none of these documents"):
        load_manifests([str(missing)])
    with pytest.raises(CliError, match="document 2: no Secret with"):
        load_manifests([str(broken)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no ModelDeployment in there"),
        ("{a: [", "is not YAML"),
        ("kind: Service\napiVersion: v1\n", "must be ModelDeployment"),
        ("just words", "document 1"),
    ],
)
def test_other_content_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "m.yaml"
    path.write_text(text)

    with pytest.raises(CliError, match=said):
        load_manifests([str(path)])

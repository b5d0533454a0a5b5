from __future__ import annotations

from typing import Any

from octavo_operator.observed import Rival
from octavo_operator.served_names import claimed_names, find_rivals
from octavo_testing.control_plane import a_manifest


def claimant(name: str, *, created: str, uid: str = "u", served: list[str] | None = None) -> dict[str, Any]:
    manifest = a_manifest(name, servedNames=served)
    manifest["metadata"] |= {"creationTimestamp": created, "uid": uid}
    return manifest


def test_name_belongs_to_the_oldest() -> None:
    old = claimant("old", created="2026-01-01T00:00:00Z", served=["chat"])
    middle = claimant("middle", created="2026-01-02T00:00:00Z", served=["chat"])
    young = claimant("young", created="2026-01-03T00:00:00Z", served=["chat", "free"])

    assert find_rivals(young, [young, middle, old]) == (Rival(served_name="chat", namespace="default", name="old"),)
    assert find_rivals(old, [young, middle, old]) == ()


def test_uid_decides_between_twins() -> None:
    one, two = (claimant(f"n{uid}", created="t", uid=uid, served=["chat"]) for uid in "12")

    assert find_rivals(one, [one, two]) == ()
    assert find_rivals(two, [one, two])[0].name == "n1"


def test_resource_claims_its_own_name_where_it_names_none() -> None:
    assert claimed_names(a_manifest("qwen")) == ("qwen",)
    assert claimed_names(a_manifest("qwen", servedNames=["a"])) == ("a",)

"""Who owns a name, and what a client is told about one that nobody has."""

from __future__ import annotations

import difflib

import pytest

from octavo_gateway.endpoints import table_of
from octavo_testing.gateway import a_model, a_replica


def test_oldest_resource_keeps_a_contested_name() -> None:
    old = a_model("old", served_names=("shared",), created_s=1.0, uid="z")
    young = a_model("young", served_names=("shared",), created_s=2.0, uid="a")

    table = table_of([young, old])

    assert table.resolve("shared") == old


def test_uid_decides_between_resources_of_the_same_second() -> None:
    first = a_model("b", served_names=("shared",), created_s=1.0, uid="1")
    second = a_model("a", served_names=("shared",), created_s=1.0, uid="2")

    assert table_of([second, first]).resolve("shared") == first


def test_namespace_and_name_always_route() -> None:
    loser = a_model("young", served_names=("shared",), created_s=2.0)
    table = table_of([a_model("old", served_names=("shared",), created_s=1.0), loser])

    assert table.resolve("default/young") == loser


def test_a_model_that_lost_all_names_is_listed_by_namespace_and_name() -> None:
    table = table_of(
        [
            a_model("old", served_names=("shared",), created_s=1.0),
            a_model("young", served_names=("shared",), created_s=2.0),
        ]
    )

    assert list(table.listed) == ["default/young", "shared"]


def test_unknown_name_suggests_what_is_close() -> None:
    table = table_of([a_model("qwen2.5-7b"), a_model("llama")])

    assert table.explain_unknown("qwen2.5-8b").endswith("Did you mean 'qwen2.5-7b'?")


def test_of_thousands_of_names_a_wrong_one_is_compared_with_few_and_still_finds_what_is_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each comparison takes a tenth of a millisecond, in which no request of anybody goes on."""
    compared: list[int] = []
    closest = difflib.get_close_matches

    def watched(word: str, known: list[str], *, n: int, cutoff: float) -> list[str]:
        compared.append(len(known))
        return closest(word, known, n, cutoff)

    monkeypatch.setattr(difflib, "get_close_matches", watched)
    names = [f"org{number % 13}/qwen{number}-7b-instruct" for number in range(3000)]
    table = table_of([a_model(f"m{number}", served_names=(name,)) for number, name in enumerate(names)])

    said = [table.explain_unknown(name) for name in ("org6/qwen2021-7b-instruc", "qwen2021-7b-instruct")]

    assert ["Did you mean" in each and "'org6/qwen2021-7b-instruct'" in each for each in said] == [True, True]
    assert compared == [20, 20]


def test_unknown_name_far_from_all_lists_what_there_is_within_bounds() -> None:
    table = table_of([a_model(f"model-{number:03}") for number in range(200)])

    said = table.explain_unknown("x" * 10_000)

    assert "'model-000'" in said
    assert "and 180 more" in said
    assert len(said) < 1000


def test_only_ready_replicas_that_stay_are_routable() -> None:
    states = [(ready, terminating) for ready in (True, False) for terminating in (True, False)]

    routable = [state for state in states if a_replica(ready=state[0], terminating=state[1]).is_routable]

    assert routable == [(True, False)]


def test_a_model_at_zero_needs_a_wake_or_is_switched_off() -> None:
    asleep = a_model(is_scaled_to_zero=True, can_wake=True)
    off = a_model(is_scaled_to_zero=True, can_wake=False)

    assert (asleep.needs_wake, asleep.is_switched_off) == (True, False)
    assert (off.needs_wake, off.is_switched_off) == (False, True)

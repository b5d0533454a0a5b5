"""Which chips and which Triton launch kernels early, and have wide tiles."""

from __future__ import annotations

import importlib

import pytest
import torch
import triton.language as tl

from octavo_kernels import launch, overlap
from octavo_kernels.extend_attention import extend_tiling

EARLY = {"IS_OVERLAPPED": True, "launch_pdl": True}
IN_TURN = {"IS_OVERLAPPED": False}


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((0, 0), IN_TURN), ((8, 9), IN_TURN), ((9, 0), EARLY), ((10, 0), EARLY), ((12, 0), EARLY)],
)
def test_kernels_are_launched_early_where_the_chip_can(
    capability: tuple[int, int], expected: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "nvidia_capability", lambda: capability)

    assert overlap.overlapped() == expected


def test_a_triton_that_has_no_such_wait_launches_in_turn_and_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not exist fails where a kernel is compiled, though nothing calls it."""
    monkeypatch.setattr(launch, "nvidia_capability", lambda: (9, 0))
    with monkeypatch.context() as patched:
        patched.delattr(tl.extra.cuda, "gdc_wait")
        old = importlib.reload(overlap)
        found = old.overlapped()
        is_named = "gdc_wait" in old.await_inputs.fn.__code__.co_names
    importlib.reload(overlap)

    assert found == IN_TURN
    assert not is_named
    assert overlap.overlapped() == EARLY


@pytest.mark.parametrize(
    ("capability", "columns"), [((0, 0), 64), ((8, 0), 64), ((9, 0), 128), ((10, 0), 128), ((12, 0), 64)]
)
def test_tiles_are_wide_where_shared_memory_holds_them(
    capability: tuple[int, int], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "nvidia_capability", lambda: capability)

    plain, biased = (extend_tiling(4, 128, torch.bfloat16, has_bias=has_bias) for has_bias in (False, True))

    assert (plain.columns, biased.columns) == (columns, 32)
    assert plain.query_tile == biased.query_tile

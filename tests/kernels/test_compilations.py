from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numba
import pytest
import triton
from numba.core import event
from triton.runtime.jit import JITFunction

from octavo_kernels import compilations
from octavo_kernels.compilations import CompileWatch


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not watched yet; what the compilers are told is put back."""
    monkeypatch.setattr(event, "_registered", defaultdict(list))
    monkeypatch.setattr(compilations, "_watched", set())
    monkeypatch.setattr(compilations, "_names", [])
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", None)


def compiled_by_triton(name: str) -> None:
    """As its compiler calls, see `JITFunction._call_hook`."""
    triton.knobs.runtime.jit_post_compile_hook(
        key="k", repr="r", fn=SimpleNamespace(name=name), compile={}, is_manual_warmup=False, already_compiled=False
    )


def test_each_watch_is_told_what_triton_compiled_since_it_asked_last() -> None:
    first = CompileWatch()
    compiled_by_triton("one")
    second = CompileWatch()
    compiled_by_triton("two")

    assert (first.take(), second.take()) == (["one", "two"], ["two"])
    assert (first.take(), second.take()) == ([], [])


def test_a_hook_that_was_there_is_still_called(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_post_compile_hook", lambda **given: seen.append(given["fn"].name))
    watch = CompileWatch()

    compiled_by_triton("one")

    assert (seen, watch.take()) == (["one"], ["one"])


def test_before_triton_3_4_the_hook_is_the_classs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(triton, "knobs")
    monkeypatch.setattr(JITFunction, "compiled_hook", None, raising=False)
    watch = CompileWatch()

    JITFunction.compiled_hook(fn=SimpleNamespace(name="one"), key="k")

    assert watch.take() == ["one"]


def test_numba_tells_of_a_compilation_and_of_no_call() -> None:
    watch = CompileWatch()

    @numba.njit
    def twice(x):  # type: ignore[no-untyped-def]
        return x + x

    assert twice(2) == 4
    assert twice(3) == 6
    assert watch.take() == ["twice"]
    assert twice(2.0) == 4.0
    assert watch.take() == ["twice"]

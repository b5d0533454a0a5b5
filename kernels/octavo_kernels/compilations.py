"""Which kernels this process has compiled, or read from the disk, noted as it happens by Triton's and Numba's own hooks.

Both compile when a kernel is called with types, sizes or constants that it was not called with before, in the middle of
whatever called it. Hooks are a process's, so the list is too.
"""

from __future__ import annotations

import sys
from typing import Any

_names: list[str] = []
_watched: set[str] = set()


class CompileWatch:
    """Says what was compiled since it was last asked, from when it was made."""

    def __init__(self) -> None:
        _watch_imported()
        self._num_told = len(_names)

    def take(self) -> list[str]:
        """Names of kernels, one a compilation."""
        found = _names[self._num_told :]
        self._num_told += len(found)
        return found


def _watch_imported() -> None:
    """Hooks into the compilers that are in use; each once."""
    for name, watch in (("triton", _watch_triton), ("numba", _watch_numba)):
        if name in sys.modules and name not in _watched:
            _watched.add(name)
            watch()


def _watch_triton() -> None:
    import triton
    from triton.runtime.jit import JITFunction

    # From Triton 3.4 on a knob, before that a class's attribute; called with the same names.
    owner: Any = triton.knobs.runtime if hasattr(triton, "knobs") else JITFunction
    name = "jit_post_compile_hook" if hasattr(triton, "knobs") else "compiled_hook"
    before = getattr(owner, name)

    def hook(**compiled: Any) -> Any:
        _names.append(str(compiled["fn"].name))
        return before(**compiled) if before is not None else None

    setattr(owner, name, hook)


def _watch_numba() -> None:
    from numba.core import event

    class Listener(event.Listener):  # type: ignore[misc]  # Numba is untyped
        def on_start(self, event: Any) -> None:
            _names.append(str(event.data["dispatcher"].py_func.__name__))

        def on_end(self, event: Any) -> None:
            pass

    event.register("numba:compile", Listener())

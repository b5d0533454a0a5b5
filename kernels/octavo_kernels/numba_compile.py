"""How CPU kernels are compiled: which instructions they may use, and where the machine code is kept.

Compiling takes seconds, so the code is cached on disk, under $NUMBA_CACHE_DIR, else $OCTAVO_CACHE, else the user's
cache folder. The folder's name holds all that the code depends on, because Numba itself looks at one source file only.
NUMBA_CPU_NAME and NUMBA_CPU_FEATURES choose another processor than this one, e.g. while an image is built.
$OCTAVO_COMPILED_KERNELS names what was compiled then: it may lie where nothing can be written, so it is copied from.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.registry import cpu_target

logger = logging.getLogger(__name__)


def _target() -> tuple[str, str, str]:
    """Triple, processor and features ("+avx2,-sse4a,…") that Numba compiles for."""
    triple, processor, features = cpu_target.target_context.codegen().magic_tuple()
    return str(triple), str(processor), str(features)


HAS_VNNI = {"+avx512vnni", "+avx512bw", "+avx512vl"} <= set(_target()[2].split(","))
"""Whether one instruction multiplies and adds 64 pairs of bytes (AVX-512 VNNI)."""

IS_X86 = _target()[0].startswith(("x86_64", "i686"))

HAS_HALF = not IS_X86 or bool({"+f16c", "+avx512f"} & set(_target()[2].split(",")))
"""Whether an instruction converts between float16 and float32."""

PROCESSOR = _target()[1]

INSTRUCTIONS = "AVX-512 VNNI" if HAS_VNNI else "portable vectors"
"""For the start's log line."""


def _cache_folder() -> Path | None:
    """A folder for this code on this processor; None where nothing can be written."""
    key = hashlib.blake2b(repr((_target(), numba.__version__, llvmlite.__version__)).encode(), digest_size=8)
    for source in sorted(Path(__file__).parent.glob("numba_*.py")):
        key.update(source.read_bytes())
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = os.environ.get("NUMBA_CACHE_DIR") or os.environ.get("OCTAVO_CACHE") or Path(home) / "octavo"
    folder = Path(base) / f"numba-{key.hexdigest()}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _begin_with(folder, os.environ.get("OCTAVO_COMPILED_KERNELS"))
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        logger.warning("compiled kernels are not kept, each start compiles them anew: %s", error)
        return None


def _begin_with(folder: Path, compiled: str | None) -> None:
    """A copy of the folder of the same name in `compiled`, whole or not at all, where there is none yet."""
    if not compiled or folder.exists():
        return
    if not (Path(compiled) / folder.name).is_dir():
        logger.warning(
            "kernels are compiled now, which takes some seconds: %s has none for %s with Numba %s; run octavo compile there",
            compiled,
            PROCESSOR,
            numba.__version__,
        )
        return
    with tempfile.TemporaryDirectory(prefix=".numba-", dir=folder.parent) as scratch:
        # Times are kept: Numba compares them with the source's.
        copy = Path(shutil.copytree(Path(compiled) / folder.name, Path(scratch) / folder.name))
        with contextlib.suppress(OSError):
            # Another process may have been first.
            copy.rename(folder)


FOLDER = _cache_folder()
"""Where compiled kernels are kept; None where they are not."""
if FOLDER is not None:
    # Read when a function is decorated, so this stands before the first kernel.
    numba.config.CACHE_DIR = str(FOLDER)

_kernels: list[Any] = []

# A sum may be taken in any order, so that it fits vectors; NaN and infinity keep their meaning.
_FAST_MATH = {"reassoc", "contract", "nsz"}


def kernel(function: Callable[..., None]) -> Any:
    """Compiles `function` on its first call, for threads that run without the interpreter's lock."""
    made = numba.njit(nogil=True, cache=FOLDER is not None, fastmath=_FAST_MATH, error_model="numpy")(function)
    _kernels.append(made)
    return made


def counts() -> tuple[int, int]:
    """How many kernels this process has compiled, and how many it has found compiled."""
    stats = [made.stats for made in _kernels]
    return sum(sum(each.cache_misses.values()) for each in stats), sum(sum(each.cache_hits.values()) for each in stats)


def part(function: Callable[..., Any]) -> Any:
    """A function that only kernels call."""
    return numba.njit(nogil=True, fastmath=_FAST_MATH, error_model="numpy")(function)

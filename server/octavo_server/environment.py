"""What is installed and what it runs on: for figures, which say nothing without it. Imports nothing heavy."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("octavo", "torch", "triton", "numba", "llvmlite", "numpy", "transformers", "tokenizers")
_FEATURES = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "sve", "i8mm", "bf16")
"""Beginnings of the names of processor features that decide which kernels run."""
_TIMEOUT_S = 10.0


def environment() -> dict[str, Any]:
    """Versions, processor, devices and drivers; asks programs of the machine, so not for an event loop."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "os": platform.platform(),
        "cpu": _cpuinfo("model name"),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu_limit": _text("/sys/fs/cgroup/cpu.max"),
        "cpu_features": sorted(
            name for name in (_cpuinfo("flags") or _cpuinfo("Features")).split() if name.startswith(_FEATURES)
        ),
        "devices": _devices(),
    }


def circumstances() -> dict[str, Any]:
    """What another run on the same machine may find changed."""
    memory = {line.split(":")[0]: line.split()[1] for line in _text("/proc/meminfo").splitlines()}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "memory_available_mib": int(memory.get("MemAvailable", 0)) // 1024,
    }


def commit(folder: Path) -> str:
    """The git commit of a checkout, with "+" where files were changed; "" elsewhere."""
    found = _run("git", "-C", str(folder), "rev-parse", "HEAD")
    changed = found and _run("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no")
    return found + ("+" if changed else "")


def _versions() -> dict[str, str]:
    """Of what decides speed; a package that is not there is left out."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> list[str]:
    """A line a GPU: name, driver, memory; as the vendor's own tool says."""
    return _run("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader").splitlines()


def _cpuinfo(field: str) -> str:
    lines = _text("/proc/cpuinfo").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == field), "")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _run(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""

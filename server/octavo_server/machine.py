"""What this machine says of itself: memory, and whether there may be a GPU. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from octavo_server.capacity import usable_memory_bytes
from octavo_server.errors import ConfigError

# Of cgroup v2, then of v1.
_CGROUP_MEMORY_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
# Of NVIDIA's driver, AMD's, and WSL's; finding out by torch would take seconds before the port opens.
_GPU_FILES = ("nvidia[0-9]*", "kfd", "dxg")


def host_memory_bytes(*, is_needed: bool = True) -> int:
    """Memory that this process may count on; 0 where the machine does not say and it is not needed.

    Raises:
        ConfigError: it is needed and the machine does not say.
    """
    limits = [text for name in _CGROUP_MEMORY_FILES if (text := read_text(name))]
    try:
        return usable_memory_bytes(meminfo=read_text("/proc/meminfo"), cgroup_limits=limits)
    except ConfigError:
        if is_needed:
            raise
        return 0


def resident_bytes() -> int:
    """Memory of this process that is there now; 0 where the system does not say."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", read_text("/proc/self/status"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def may_have_gpu(device: str, devices: Path = Path("/dev")) -> bool:
    """Whether `--device` may turn out to be a GPU on this machine."""
    if device != "auto":
        return device != "cpu"
    return any(next(devices.glob(pattern), None) is not None for pattern in _GPU_FILES)


def read_text(name: str) -> str:
    """What the system's file `name` says; empty where there is none."""
    path = Path(name)
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""

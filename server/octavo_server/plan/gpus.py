"""Where a model may run: what a GPU's memory holds and how fast it is read. Pure; the machine is read in `machine.py`."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from typing import Literal

from octavo_server.errors import ConfigError

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device; of several, each."""

    name: str
    kind: Literal["cpu", "gpu"]
    memory_bytes: int
    """Of a GPU all, of a CPU what this process may count on."""
    bytes_per_s: float | None = None
    """Peak bandwidth of the memory, None where nobody says."""


def _gpu(name: str, gib: float, gb_per_s: float) -> Device:
    return Device(name=name, kind="gpu", memory_bytes=int(gib * GIB), bytes_per_s=gb_per_s * 1e9)


# Memory: what CUDA and HIP report in all (torch's "total capacity of … GiB" in published reports; the least where cards
# differ), which is less than the data sheet says. Bandwidth: the makers' data sheets, decimal.
GPUS: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("B200", 178.35, 8000),
        _gpu("H200", 139.72, 4800),
        _gpu("H100", 79.18, 3350),
        _gpu("H100-PCIe", 79.18, 2000),
        _gpu("GH200", 94.50, 4000),
        _gpu("A100", 79.25, 2039),
        _gpu("A100-40GB", 39.38, 1555),
        _gpu("L40S", 44.39, 864),
        _gpu("L40", 44.39, 864),
        _gpu("L4", 22.03, 300),
        _gpu("A30", 23.53, 933),
        _gpu("A10", 22.03, 600),
        _gpu("A10G", 22.03, 600),
        _gpu("T4", 14.56, 320),
        _gpu("V100-32GB", 31.73, 900),
        _gpu("V100", 15.75, 900),
        _gpu("RTX-PRO-6000", 94.96, 1792),
        _gpu("RTX-6000-Ada", 47.40, 960),
        _gpu("RTX-A6000", 47.40, 768),
        _gpu("RTX-5090", 31.36, 1792),
        _gpu("RTX-4090", 23.53, 1008),
        _gpu("RTX-3090", 23.53, 936),
        _gpu("MI300X", 191.69, 5300),
    )
}

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(GiB|GB)", re.IGNORECASE)
_CAPACITY = re.compile(r"-\d+GB$")
_ALIASES = {"h100-sxm": "H100", "h100-80gb": "H100", "a100-80gb": "A100", "a100-sxm": "A100", "v100-16gb": "V100"}


def find_gpu(text: str) -> Device:
    """The GPU called `text`, in any case and with any dashes, or one of that much memory, such as 48GiB.

    A node's label `nvidia.com/gpu.product` is such a name too: NVIDIA-H100-80GB-HBM3.

    Raises:
        ConfigError: there is none in the table, naming the nearest and all.
    """
    size = _SIZE.fullmatch(text.strip())
    if size is not None and float(size[1]) > 0:
        unit = GIB if size[2].lower() == "gib" else 10**9
        return Device(name=text.strip(), kind="gpu", memory_bytes=int(float(size[1]) * unit))
    wanted = _plain(text)
    known = {_plain(name): device for name, device in GPUS.items()}
    known |= {_plain(alias): GPUS[name] for alias, name in _ALIASES.items()}
    if wanted in known:
        return known[wanted]
    labelled = _labelled(text)
    if labelled is not None:
        return labelled
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.5)
    hint = f"did you mean {known[near[0]].name}? " if near else ""
    raise ConfigError(
        f"--gpu {text[:60]!r} is not in the table; {hint}known are cpu, {', '.join(GPUS)}; any other by its memory, "
        f"such as --gpu 48GiB"
    )


def share_of(device: Device, ways: int) -> Device:
    """What one of `ways` processes has: a GPU of its own, or its part of the CPU's memory."""
    return device if device.kind == "gpu" else replace(device, memory_bytes=device.memory_bytes // ways)


def device_called(name: str, memory_bytes: int) -> Device:
    """A GPU as its driver names it, with the table's bandwidth where that knows it."""
    best = _best_match(name, memory_bytes)
    return Device(
        name=name, kind="gpu", memory_bytes=memory_bytes, bytes_per_s=None if best is None else best.bytes_per_s
    )


def _labelled(text: str) -> Device | None:
    """By a maker's full name, with the gigabytes that it holds where it does."""
    size = re.search(r"(\d+)GB", text)
    # A part of a GPU (MIG) is named after the whole.
    if re.match(r"(?i)nvidia|tesla|amd", text) is None or "MIG" in text:
        return None
    return _best_match(text, None if size is None else int(size[1]) * GIB)


def _best_match(name: str, memory_bytes: int | None) -> Device | None:
    found = [
        gpu
        for gpu in GPUS.values()
        if _plain(_CAPACITY.sub("", gpu.name)) in _plain(name)
        and (memory_bytes is None or abs(gpu.memory_bytes - memory_bytes) < 0.1 * memory_bytes)
    ]
    # The longest name: an H100 PCIe is no H100, an A10G no A10.
    return max(found, key=lambda gpu: len(gpu.name), default=None)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]|nvidia|amd|tesla|geforce|instinct", "", name.lower())

"""This machine's own device, as a plan's. Imports torch only where there may be a GPU."""

from __future__ import annotations

from octavo_server.machine import host_memory_bytes, may_have_gpu
from octavo_server.plan.gpus import Device, device_called


def this_device(device: str, *, is_memory_needed: bool = True) -> Device:
    """The first GPU or the CPU; `device` as of `--device`, auto being the GPU where there is one.

    Raises:
        ConfigError: a CPU's memory is needed and the machine does not say how much there is.
    """
    if may_have_gpu(device):
        import torch

        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            return device_called(properties.name, int(properties.total_memory))
    return Device(name="CPU", kind="cpu", memory_bytes=host_memory_bytes(is_needed=is_memory_needed))


def gpu_overhead_bytes(held_bytes: int) -> int:
    """Of the current GPU's memory in use what is not `held_bytes`: the driver's, the libraries', a neighbour's."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - held_bytes)

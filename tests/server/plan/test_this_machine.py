"""This machine's own device, and what an engine on a GPU finds there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from octavo_server import machine
from octavo_server.config import EngineConfig
from octavo_server.engine import build
from octavo_server.errors import ConfigError
from octavo_server.models.loader import load_model
from octavo_server.plan import this_machine
from octavo_server.plan.gpus import GIB, Device
from octavo_server.plan.layout import choose_layout, rotary_bytes
from octavo_testing.model_shapes import SMALL_QWEN3, a_config

MEMINFO = "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB"


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the system's files say."""
    found: dict[str, str] = {"/proc/meminfo": MEMINFO}
    monkeypatch.setattr(machine, "read_text", lambda name: found.get(name, ""))
    return found


def test_a_cgroups_limit_is_the_memory(files: dict[str, str]) -> None:
    assert machine.host_memory_bytes() == 8 * GIB
    files["/sys/fs/cgroup/memory.max"] = str(2 * GIB)
    assert machine.host_memory_bytes() == 2 * GIB
    assert this_machine.this_device("cpu") == Device(name="CPU", kind="cpu", memory_bytes=2 * GIB)


def test_memory_that_nobody_tells_is_an_error_only_where_it_is_needed(files: dict[str, str]) -> None:
    files.clear()

    with pytest.raises(ConfigError, match="--kv-cache-memory-bytes"):
        machine.host_memory_bytes()
    assert machine.host_memory_bytes(is_needed=False) == 0


def test_resident_memory_is_read(files: dict[str, str]) -> None:
    files["/proc/self/status"] = "VmPeak:\t  900 kB\nVmRSS:\t     100 kB\nVmData: 5 kB"
    assert machine.resident_bytes() == 102_400
    files.clear()
    assert machine.resident_bytes() == 0


def test_the_first_gpu_is_the_device_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(name="NVIDIA H200", total_memory=140 * GIB)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)

    found = this_machine.this_device("cuda")

    assert found == Device(name="NVIDIA H200", kind="gpu", memory_bytes=140 * GIB, bytes_per_s=4.8e12)


def test_an_engine_on_a_gpu_counts_what_others_hold_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 GiB, 5 are free once the weights are there: the rest is the driver's and the neighbours'."""
    config = EngineConfig(model=str(a_config(tmp_path, SMALL_QWEN3)), dtype="bfloat16", gpu_memory_utilization=0.8)
    model = load_model(tmp_path, dtype="bfloat16", load_format="dummy")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5 * GIB, 10 * GIB))

    layout = choose_layout(config, stored_dtype=model.config.dtype, kind="gpu", ways=1)
    plan = build._plan_memory(config, model, layout, Device(name="GPU", kind="gpu", memory_bytes=10 * GIB))

    assert plan.overhead_bytes == 5 * GIB - model.num_weight_bytes - rotary_bytes(plan.model)
    # 8 GiB may be taken in all, and 5 are: 3 are left for steps and cache
    assert plan.kv_bytes == pytest.approx(
        3 * GIB - plan.activation_bytes - plan.graph_bytes, abs=plan.kv_shape.block_bytes
    )

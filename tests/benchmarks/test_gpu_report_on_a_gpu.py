"""What the GPU report notes on a GPU alone, with a stand-in for the device."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks.gpu_report import engine_speed, startup
from benchmarks.gpu_report.record import PartRecord
from benchmarks.gpu_report.table import BARS
from octavo_server.engine.startup import StartupProgress


@pytest.fixture
def record(tmp_path: Path) -> PartRecord:
    return PartRecord(part="start-up", path=tmp_path / "record.json", is_tiny=True)


@dataclass
class CompilingEngine:
    """Compiles two kernels as it is built, and one more for its first request."""

    cache: Path
    has_work: bool = False

    def __post_init__(self) -> None:
        (self.cache / "first").mkdir(parents=True)
        for name in ("a.cubin", "b.hsaco", "a.json"):
            (self.cache / "first" / name).touch()

    def add_request(self, _request: object) -> None:
        self.has_work = True

    def step(self) -> None:
        (self.cache / "c.cubin").touch()
        self.has_work = False


def test_a_kernel_that_is_compiled_after_ready_is_told_apart(
    record: PartRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(command: Sequence[str], env: Mapping[str, str], **_: object) -> SimpleNamespace:
        def build(_config: object, progress: StartupProgress) -> SimpleNamespace:
            progress.enter("warming_up")
            return SimpleNamespace(engine=CompilingEngine(Path(env["TRITON_CACHE_DIR"])))

        monkeypatch.setattr(startup, "build_engine", build)
        startup.main([*command[3:]])
        return SimpleNamespace(stdout=capsys.readouterr().out)

    monkeypatch.setattr(subprocess, "run", run)

    startup._start(record, "cold", tmp_path, "cuda")

    found = {figure.name: figure.value for figure in record.figures}
    assert found["cold: kernels compiled until ready"] == 2
    assert found["cold: kernels compiled after ready"] == 1
    assert {name for part, name in BARS if part == "start-up" and name.startswith("cold")} <= set(found)


def test_the_memory_that_recording_took_stands_beside_its_time(
    record: PartRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_bytes, recorded = 8_000_000_000, []

    class Recording:
        def record_graphs(self, max_num_seqs: int) -> bool:
            nonlocal free_bytes
            recorded.append(max_num_seqs)
            free_bytes -= 1_500_000_000
            return True

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free_bytes, 0))
    monkeypatch.setattr(engine_speed, "wait", lambda _device: None)
    model: Any = Recording()

    engine_speed._record_graphs(record, torch.device("cuda", 0), model, "fp8: ")

    (figure,) = record.figures
    assert (figure.name, figure.unit, figure.note) == ("fp8: graphs recorded", "s", "up to 256 sequences, 1.5 GB")
    assert recorded == [256]
    assert record.absent == []


def test_kernels_that_overlap_are_counted_once_and_waits_between_them_not_at_all() -> None:
    spans = [(0.0, 10.0), (4.0, 12.0), (5.0, 6.0), (7.0, 11.0), (20.0, 25.0), (25.0, 26.0)]
    events = [
        SimpleNamespace(device_type=DeviceType.CUDA, time_range=SimpleNamespace(start=start, end=end))
        for start, end in reversed(spans)
    ]
    events.append(SimpleNamespace(device_type=DeviceType.CPU, time_range=SimpleNamespace(start=0.0, end=99.0)))

    assert engine_speed._covered(SimpleNamespace(events=lambda: events)) == 12 + 6  # type: ignore[arg-type]  # stands in for a profile

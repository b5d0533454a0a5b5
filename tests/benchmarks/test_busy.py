"""Fair shares, the processes beside, and the command on a tiny model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from benchmarks import busy
from benchmarks.busy import Slowdown, fair_share, running, stopped_processes
from benchmarks.llama_cpp import Case
from octavo_testing.server import a_tiny_model


@pytest.mark.parametrize(
    ("threads", "beside", "processors", "expected"),
    [(2, 0, 2, 1.0), (2, 1, 2, 2 / 3), (2, 2, 2, 0.5), (2, 1, 4, 1.0), (4, 4, 4, 0.5), (4, 2, 2, 2 / 3)],
)
def test_a_fair_share_is_as_much_for_each_that_runs(
    threads: int, beside: int, processors: int, expected: float
) -> None:
    assert fair_share(threads, beside, processors) == pytest.approx(expected)


def test_a_slowdown_is_judged_by_the_fair_share() -> None:
    found = Slowdown(case="x", beside=2, share=0.5, alone_rates=[90.0, 100.0, 110.0], busy_rates=[30.0, 40.0, 50.0])

    assert (found.left, found.in_proportion) == (pytest.approx(0.4), pytest.approx(0.8))


def has_stopped(pid: int) -> bool:
    """Whether Linux says so; a signal takes a moment."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] == "T":
            return True
        time.sleep(0.01)
    return False


def seconds_used(pid: int) -> int:
    """Of a processor, in the kernel's ticks."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[11:13]))


def test_others_run_only_meanwhile_and_end() -> None:
    with stopped_processes(1) as [process]:
        assert has_stopped(process.pid)
        before = seconds_used(process.pid)
        with running([process]):
            while seconds_used(process.pid) < before + 5:
                time.sleep(0.01)
        assert has_stopped(process.pid)

    assert process.poll() is not None


def test_each_case_is_measured_beside_each_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_tiny_model(tmp_path / "tiny")
    cases = (
        Case(name="decode 2", batch=2, prompt_tokens=8, steps=3),
        Case(name="prefill 16", batch=1, prompt_tokens=16, steps=0),
    )
    monkeypatch.setattr(busy, "CASES", cases)
    arguments = [str(tmp_path / "tiny"), "--quantization", "none", "--threads", "1", "--rounds", "2", "--beside", "1,2"]

    status = busy.main([*arguments, "--json", str(tmp_path / "out.json")])

    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    found = [
        (each["case"], each["beside"], len(each["alone_rates"]), len(each["busy_rates"])) for each in record["results"]
    ]
    assert status == 0
    assert found == [(case.name, beside, 2, 2) for case in cases for beside in (1, 2)]
    assert all(rate > 0 for each in record["results"] for rate in each["busy_rates"])
    assert "prefill 16" in capsys.readouterr().out

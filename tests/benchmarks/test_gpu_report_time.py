"""The GPU report's time: each part has its own, all together have one, and what is left over is for the next run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu_report import __main__ as command
from benchmarks.gpu_report.parts import PARTS
from benchmarks.gpu_report.process import run_within
from benchmarks.gpu_report.record import PartRecord, read_record, source_digest

NAMES = list(PARTS)


class Runs:
    """Parts that take as long as they are told to, by a clock that nothing else moves."""

    def __init__(self, seconds: float) -> None:
        self.now_s = 0.0
        self.seconds = seconds
        self.limits: dict[str, float] = {}

    def clock(self) -> float:
        return self.now_s

    def run(self, record: PartRecord, limit_s: float) -> PartRecord:
        self.limits[record.part] = limit_s
        self.now_s += min(self.seconds, limit_s)
        record.status = "done" if self.seconds < limit_s else "failed"
        record.save()
        return record


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], Runs]:
    def make(seconds: float) -> Runs:
        made = Runs(seconds)
        monkeypatch.setattr(command, "run", made.run)
        return made

    return make


def test_parts_that_take_all_they_may_end_before_nine_minutes(tmp_path: Path, runs: Callable[[float], Runs]) -> None:
    endless = runs(1e6)

    assert command.main(["--out", str(tmp_path)], endless.clock) == 1

    assert list(endless.limits) == NAMES
    assert endless.limits == {name: part.budget_s for name, part in PARTS.items()}
    assert endless.now_s < 9 * 60


def test_a_part_gets_what_is_left_of_the_whole(tmp_path: Path, runs: Callable[[float], Runs]) -> None:
    endless = runs(1e6)
    within = PARTS[NAMES[0]].budget_s + 12

    command.main(["--out", str(tmp_path), "--within", str(within)], endless.clock)

    assert endless.limits == {NAMES[0]: PARTS[NAMES[0]].budget_s, NAMES[1]: 12}
    record = read_record(tmp_path / f"{NAMES[2]}.json")
    assert record is not None
    assert record.status == "failed"
    assert "run the same command again to go on" in record.error


def test_the_next_run_goes_on_where_time_was_over(tmp_path: Path, runs: Callable[[float], Runs]) -> None:
    first = runs(5)
    assert command.main(["--out", str(tmp_path), "--within", "25"], first.clock) == 1
    second = runs(5)

    assert command.main(["--out", str(tmp_path)], second.clock) == 0

    assert list(first.limits) + list(second.limits) == NAMES


def test_what_other_code_measured_is_measured_again(
    tmp_path: Path, runs: Callable[[float], Runs], monkeypatch: pytest.MonkeyPatch
) -> None:
    command.main(["--out", str(tmp_path), "--only", "limits"], runs(1).clock)
    again = runs(1)
    monkeypatch.setattr(command, "source_digest", lambda: "another")

    command.main(["--out", str(tmp_path), "--only", "limits"], again.clock)

    assert list(again.limits) == ["limits"]


def test_without_time_what_an_earlier_run_had_of_a_part_stays(tmp_path: Path, runs: Callable[[float], Runs]) -> None:
    cut = PartRecord(part="limits", path=tmp_path / "limits.json", is_tiny=False, source=source_digest())
    cut.figure("copy", 4000.0, "GB/s")

    assert command.main(["--out", str(tmp_path), "--only", "limits", "--within", "1"], runs(1).clock) == 1

    assert "4000 GB/s" in (tmp_path / "report.md").read_text()


def test_the_digest_changes_with_any_source(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("a = 1\n")
    before = source_digest(["code"], tmp_path)
    assert source_digest(["code"], tmp_path) == before

    (tmp_path / "code" / "a.py").write_text("a = 2\n")

    assert source_digest(["code"], tmp_path) != before


def test_a_process_is_ended_with_its_children_when_its_time_is_over(tmp_path: Path) -> None:
    child_file = tmp_path / "child"
    script = (
        "import pathlib, subprocess, sys, time; child = subprocess.Popen(['sleep', '60']); "
        f"pathlib.Path({str(child_file)!r}).write_text(str(child.pid)); time.sleep(60)"
    )

    ended = run_within([sys.executable, "-c", script], os.environ, 1.0)

    assert ended == "ended after 1 s, all that it had"
    assert is_gone(int(child_file.read_text()))


@pytest.mark.parametrize(("script", "status"), [("raise SystemExit(3)", 3), ("import os; os.abort()", -6)])
def test_how_a_process_ended_by_itself_is_told(script: str, status: int) -> None:
    assert run_within([sys.executable, "-c", script], os.environ, 60) == f"its process ended with status {status}"


def is_gone(pid: int) -> bool:
    """Killed, and waited for by whoever took it over."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False

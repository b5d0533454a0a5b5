"""Programs are ended by what was recorded of them, and a stranger with a recorded id is left alone."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.cluster.errors import ClusterError
from e2e.cluster.processes import Processes, descendants, start_time


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path / "run", tmp_path / "log")
    yield found
    found.stop(found.running(), grace_s=0)
    found.reap()


def test_stopped_program_is_gone_and_its_output_is_kept(processes: Processes, tmp_path: Path) -> None:
    marker = tmp_path / "begun"
    process_id = processes.start("sleeper", ["sh", "-c", f"echo begun; : > {marker}; exec sleep 60"])
    _wait(marker)
    assert {"sleeper": process_id} == processes.running()

    processes.stop(["sleeper"], grace_s=5)

    assert processes.running() == {}
    assert processes.log_end("sleeper") == "begun"


def test_deaf_program_is_killed_after_the_grace(processes: Processes, tmp_path: Path) -> None:
    marker = tmp_path / "trapped"
    process_id = processes.start("deaf", ["sh", "-c", f"trap '' TERM; : > {marker}; while :; do sleep 60; done"])
    _wait(marker)

    processes.stop(["deaf"], grace_s=0.2)

    assert start_time(process_id) is None


def test_another_run_ends_what_an_earlier_one_recorded(processes: Processes) -> None:
    """As after a crash: nothing is left but the files."""
    process_id = processes.start("orphan", ["sleep", "60"])

    Processes(processes.records, processes.logs).stop(["orphan"], grace_s=5)

    assert start_time(process_id) is None


def test_stranger_with_a_recorded_id_is_left_alone(processes: Processes) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        processes.records.mkdir()
        record = {"pid": stranger.pid, "started": (start_time(stranger.pid) or 0) - 1}
        (processes.records / "recycled.json").write_text(json.dumps(record))

        processes.stop(["recycled"], grace_s=0)

        assert processes.running() == {}
        assert stranger.poll() is None
        stranger.send_signal(signal.SIGKILL)


def test_ended_program_is_reported_with_the_end_of_its_log(processes: Processes) -> None:
    processes.start("brief", ["sh", "-c", "echo no such file >&2; exit 3"])
    processes.reap()

    with pytest.raises(ClusterError, match="brief ended: no such file"):
        processes.require_running("brief")


def test_descendants_are_children_of_children(processes: Processes, tmp_path: Path) -> None:
    marker = tmp_path / "ready"
    parent = processes.start("parent", ["sh", "-c", f"sh -c 'sleep 60 & : > {marker}; wait' & wait"])
    _wait(marker)

    found = descendants([parent])

    assert len(found) == 2
    for process_id in found:
        subprocess.run(["kill", "-9", str(process_id)], check=True)


def _wait(file: Path) -> None:
    while not file.exists():
        time.sleep(0.01)

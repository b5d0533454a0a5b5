"""The programs of one cluster: started detached, remembered on disk, ended by their id and never by a name.

A record holds the process id and its start time, so that a later run, after a crash too, ends exactly these processes
and not a stranger that got the same id.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from e2e.cluster.errors import ClusterError

_POLL_S = 0.05


@dataclass(slots=True)
class Processes:
    """Owns the records and logs of a cluster's programs."""

    records: Path
    """Folder with one JSON file a program."""
    logs: Path
    """Folder with one log a program."""
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str, command: Sequence[str | Path]) -> int:
        """Start `command` in a session of its own, its output going to `logs/NAME.log`; returns its id."""
        self.records.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True, exist_ok=True)
        with (self.logs / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[child.pid] = child
        record = {"pid": child.pid, "started": start_time(child.pid)}
        (self.records / f"{name}.json").write_text(json.dumps(record))
        return child.pid

    def running(self) -> dict[str, int]:
        """Name → id of every recorded program that still runs."""
        found = {}
        for file in sorted(self.records.glob("*.json")):
            record = json.loads(file.read_text() or "{}")
            process_id, began = record.get("pid", 0), record.get("started")
            # Null where the program had ended before it could be looked at.
            if began is not None and began == start_time(process_id):
                found[file.stem] = process_id
        return found

    def require_running(self, *names: str) -> None:
        """Raise ClusterError with the end of the log of a program that should run and does not."""
        alive = self.running()
        for name in names:
            if name not in alive:
                raise ClusterError(f"{name} ended: {self.log_end(name)}")

    def log_end(self, name: str, *, num_bytes: int = 3000) -> str:
        """Last bytes that a program wrote."""
        file = self.logs / f"{name}.log"
        return file.read_bytes()[-num_bytes:].decode(errors="replace").strip() if file.exists() else "(no log)"

    def stop(self, names: Iterable[str], *, grace_s: float) -> None:
        """End the named programs together: SIGTERM, then SIGKILL after `grace_s`."""
        alive = self.running()
        end_processes([alive[name] for name in names if name in alive], grace_s=grace_s)

    def reap(self) -> None:
        """Take the exit status of every program that this process started; all must have ended."""
        for child in self._children.values():
            child.wait(timeout=10)
        self._children.clear()


def end_processes(process_ids: Sequence[int], *, grace_s: float) -> None:
    """SIGTERM to each, SIGKILL to those that are there after `grace_s`; returns when all are gone."""
    started = {process_id: start_time(process_id) for process_id in process_ids}
    if grace_s > 0:
        _signal(started, signal.SIGTERM)
        _wait_gone(started, time.monotonic() + grace_s)
    _signal(started, signal.SIGKILL)
    _wait_gone(started, time.monotonic() + 10)


def descendants(process_ids: Iterable[int]) -> list[int]:
    """All children of children of `process_ids`, deepest last."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    frontier = list(process_ids)
    while frontier:
        frontier = [child for parent in frontier for child in children.get(parent, [])]
        found += frontier
    return found


def start_time(process_id: int) -> int | None:
    """Clock ticks since boot at which a process began, None when it is gone or a zombie."""
    fields = _stat(process_id)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _stat(process_id: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on: the name before it may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{process_id}/stat").read_text()
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def _signal(started: dict[int, int | None], number: signal.Signals) -> None:
    for process_id, began in started.items():
        if began is not None and start_time(process_id) == began:
            try:
                os.kill(process_id, number)
            except ProcessLookupError:
                continue


def _wait_gone(started: dict[int, int | None], deadline: float) -> None:
    while time.monotonic() < deadline:
        if all(began is None or start_time(process_id) != began for process_id, began in started.items()):
            return
        time.sleep(_POLL_S)

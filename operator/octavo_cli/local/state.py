"""What runs on this machine, in files that `octavo ps` and `octavo top` read: one folder per `octavo up`, named by its process id.

    $XDG_STATE_HOME/octavo/up-PID/state.json     written anew at each change, gone at the end
    $XDG_STATE_HOME/octavo/up-PID/NAME-0.log     a replica's output

A folder whose process is gone is what is left of a crash; its logs are kept for a week.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .deployment import Row

KEEP_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """One replica, for `octavo top`."""

    model: str
    name: str
    url: str
    """Empty while its server does not run."""
    is_ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """One running `octavo up`."""

    pid: int
    process_started: str
    """Start time of the process as the kernel counts it: a process id may be used again."""
    started_s: float
    url: str
    internal_url: str
    models: tuple[Row, ...]
    replicas: tuple[ReplicaState, ...] = ()


def state_home(env: Mapping[str, str]) -> Path:
    base = env.get("XDG_STATE_HOME") or os.path.join(env.get("HOME") or os.path.expanduser("~"), ".local", "state")
    return Path(base) / "octavo"


class RunFolder:
    """Owns the folder of this run."""

    def __init__(self, home: Path, *, pid: int, now_s: float) -> None:
        self.path = home / f"up-{pid}"
        self._pid = pid
        self._started_s = now_s
        _prune(home, now_s)
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, mode=0o700)

    def write(self, *, url: str, internal_url: str, rows: Sequence[Row], replicas: Sequence[ReplicaState] = ()) -> None:
        state = RunState(
            pid=self._pid,
            process_started=process_started(self._pid),
            started_s=self._started_s,
            url=url,
            internal_url=internal_url,
            models=tuple(rows),
            replicas=tuple(replicas),
        )
        part = self.path / "state.part"
        part.write_text(json.dumps(asdict(state)), encoding="utf-8")
        part.replace(self.path / "state.json")

    def close(self, *, keep_logs: bool) -> None:
        (self.path / "state.json").unlink(missing_ok=True)
        if not keep_logs:
            shutil.rmtree(self.path, ignore_errors=True)


def running(home: Path) -> Iterator[RunState]:
    """Every run whose process still lives."""
    for path in sorted(home.glob("up-*/state.json")):
        state = _read(path)
        if state is not None and process_started(state.pid) == state.process_started != "":
            yield state


def process_started(pid: int) -> str:
    """Empty where there is no such process; a constant where the system does not tell start times."""
    try:
        # Field 22; the second field is the command in parentheses and may hold anything.
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        if Path("/proc/self/stat").exists():
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    return "unknown"


def _read(path: Path) -> RunState | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        models = tuple(Row(**row) for row in found["models"])
        replicas = tuple(ReplicaState(**each) for each in found.get("replicas", ()))
        return RunState(**{**found, "models": models, "replicas": replicas})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _prune(home: Path, now_s: float) -> None:
    alive = {f"up-{state.pid}" for state in running(home)}
    for folder in home.glob("up-*"):
        if folder.name not in alive and now_s - folder.stat().st_mtime > KEEP_S:
            shutil.rmtree(folder, ignore_errors=True)

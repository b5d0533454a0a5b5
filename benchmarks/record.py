"""What every figure needs beside it: the commit, the machine and how busy it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import ROOT


def write_json(path: str, command: str, figures: dict[str, Any]) -> None:
    """Writes `figures` with where they come from; nothing where `path` is empty."""
    if not path:
        return
    record = {"command": command, **circumstances(), **figures}
    Path(path).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def circumstances() -> dict[str, Any]:
    """Commit, date, machine and its load average."""
    return {
        "commit": _git("rev-parse", "HEAD"),
        "clean": not _git("status", "--porcelain", "--untracked-files=no"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")

"""What `./scripts/test --full` leaves behind: one JSON file with the commit, the date, and what each long proof measured.

A test gives its figures by pytest's `record_property(name, value)`.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest


class FullRecord:
    """A pytest plug-in; keeps the long proofs and every test that recorded a figure."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder = folder
        self._root = root
        self._outcomes: Counter[str] = Counter()
        self._proofs: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[report.outcome] += 1
        if report.when == "call" and ("full" in report.keywords or report.user_properties):
            self._proofs.append(
                {
                    "test": report.nodeid,
                    "outcome": report.outcome,
                    "seconds": round(report.duration, 1),
                    "figures": dict(report.user_properties),
                }
            )

    def pytest_sessionfinish(self) -> None:
        now = datetime.now(UTC)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"full-{now:%Y-%m-%d-%H%M}.json"
        record = {
            "commit": self._git("rev-parse", "HEAD"),
            "clean": not self._git("status", "--porcelain", "--untracked-files=no"),
            "date": now.isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "machine": platform.machine(),
            "outcomes": dict(self._outcomes),
            "proofs": self._proofs,
        }
        path.write_text(json.dumps(record, indent=2) + "\n")

    def _git(self, *arguments: str) -> str:
        done = subprocess.run(["git", "-C", self._root, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

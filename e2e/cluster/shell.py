"""Run a program to its end and say plainly when it failed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from e2e.cluster.errors import CommandError


def run(
    command: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 120,
) -> str:
    """Standard output of `command`; raises CommandError with the end of its output when it fails or hangs."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=stdin,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            timeout=timeout_s,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired as hung:
        raise CommandError(f"{' '.join(words)} did not end within {timeout_s:.0f} s") from hung
    except FileNotFoundError as absent:
        raise CommandError(f"{words[0]} is not installed") from absent
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()[-4000:]
        raise CommandError(f"{' '.join(words)} exited with {done.returncode}: {said}")
    return done.stdout


def succeeds(command: Sequence[str | Path], *, timeout_s: float = 60) -> bool:
    """Whether `command` exits with 0; for clean-up steps whose failure only means that there was nothing to do."""
    try:
        run(command, timeout_s=timeout_s)
    except CommandError:
        return False
    return True

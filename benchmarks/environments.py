"""Other makers' engines in environments of their own, kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

CACHE = Path(os.environ.get("OCTAVO_CACHE", Path.home() / ".cache" / "octavo"))


def interpreter(folder: Path) -> Path:
    """That of the environment in `folder`, whether there is one or not."""
    return folder / "venv" / "bin" / "python"


def install(
    folder: Path, packages: Sequence[str], env: Mapping[str, str] | None = None, *, shares_ours: bool = False
) -> Path:
    """Makes the environment where it is missing or was left half made -> its interpreter.

    packages: as `pip install` takes them; env: of that command, beside ours; `shares_ours` lets it see ours too.
    """
    python, marker = interpreter(folder), folder / "venv" / "installed"
    if marker.exists():
        return python
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / "venv")], check=True)
    if shares_ours:
        inside = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        site = subprocess.run(inside, check=True, capture_output=True, text=True).stdout.strip()
        (Path(site) / "ours.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    subprocess.run([str(python), "-m", "pip", "install", *packages], check=True, env={**os.environ, **(env or {})})
    # Last, so that one that was cut off is made anew.
    marker.write_text("\n".join(packages), encoding="utf-8")
    return python

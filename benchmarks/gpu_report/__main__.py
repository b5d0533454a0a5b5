"""Runs the parts one after the other and writes DIR/report.json and DIR/report.md after each.

    python -m benchmarks.gpu_report --out DIR [--only PART[,PART]] [--tiny]

A part that is done in DIR is not run again; one that failed is. Exit status 0: all parts asked for are done and every
check held.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import ROOT
from benchmarks.arguments import amount
from benchmarks.gpu_report.parts import PARTS
from benchmarks.gpu_report.record import PartRecord, read_record
from benchmarks.gpu_report.table import report
from benchmarks.record import circumstances


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line a part, and the report at the end."""
    values = parser().parse_args(argv)
    folder = Path(values.out)
    folder.mkdir(parents=True, exist_ok=True)
    for name in values.only:
        path = folder / f"{name}.json"
        found = read_record(path)
        if found is not None and found.status == "done" and found.is_tiny == values.tiny:
            print(f"{name}: done before")
            continue
        record = run(name, path, is_tiny=values.tiny, budget_s=values.budget or PARTS[name].budget_s)
        print(f"{name}: {record.status} after {record.seconds:.0f} s", flush=True)
        write_report(folder)
    print(write_report(folder))
    records = [read_record(folder / f"{name}.json") for name in values.only]
    return 0 if all(record is not None and record.is_good for record in records) else 1


def run(name: str, path: Path, *, is_tiny: bool, budget_s: float) -> PartRecord:
    """One part in a process of its own, which is ended after `budget_s`."""
    path.unlink(missing_ok=True)
    paths = [ROOT, ROOT / "kernels", ROOT / "server", ROOT / "tests"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])}
    if is_tiny:
        env["TRITON_INTERPRET"] = "1"
    size = "tiny" if is_tiny else "full"
    command = [sys.executable, "-m", "benchmarks.gpu_report.parts", name, str(path.parent), size, str(budget_s)]
    process = subprocess.Popen(command, env=env)
    try:
        process.wait(budget_s)
        ended = f"its process ended with status {process.returncode}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        ended = f"ended after {budget_s:g} s, its budget; give it more with --budget"
    record = read_record(path) or PartRecord(part=name, path=path, is_tiny=is_tiny)
    if record.status == "running":
        record.status, record.error, record.seconds = "failed", ended, record.seconds or budget_s
        record.save()
    return record


def write_report(folder: Path) -> str:
    """Both files, of every part in `folder` -> the Markdown."""
    found = [read_record(folder / f"{name}.json") for name in PARTS]
    records = [record for record in found if record is not None]
    whole = {**(circumstances() if shutil.which("git") else {}), "parts": [record.as_json() for record in records]}
    (folder / "report.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    text = report(records, {name: part.title for name, part in PARTS.items()})
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


def parser() -> argparse.ArgumentParser:
    """The flags."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_report", description="Prove and measure the GPU path; see docs/performance.md."
    )
    made.add_argument("--out", required=True, metavar="DIR", help="a file for each part, report.json and report.md")
    made.add_argument("--only", type=_parts, default=list(PARTS), metavar="PART[,PART]", help=", ".join(PARTS))
    made.add_argument(
        "--tiny", action="store_true", help="toy sizes on a CPU: shows that the report runs, and no speed"
    )
    made.add_argument(
        "--budget", type=amount, default=0.0, metavar="S", help="seconds for each part instead of its own"
    )
    return made


def _parts(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is no part; choose from {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    raise SystemExit(main())

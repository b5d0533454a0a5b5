"""Runs the parts one after the other and writes DIR/report.json and DIR/report.md after each.

    python -m benchmarks.gpu_report --out DIR [--only PART[,PART]] [--tiny] [--within S]

A part that is done in DIR, by the same code, is not run again; one that failed is. Exit status 0: all parts asked for are
done and every check held.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from benchmarks import ROOT
from benchmarks.arguments import amount
from benchmarks.gpu_report.parts import PARTS
from benchmarks.gpu_report.process import run_within
from benchmarks.gpu_report.record import PartRecord, read_record, source_digest, write_whole
from benchmarks.gpu_report.table import report
from benchmarks.record import circumstances

WITHIN_S = 535.0
"""Of all parts together: nine minutes, less a moment to write the report."""

LEAST_S = 10.0
"""With less than that left no part is begun: it takes as long to import torch and find the GPU."""


def main(argv: Sequence[str] | None = None, clock: Callable[[], float] = monotonic) -> int:
    """Prints a line a part, and the report at the end."""
    values = parser().parse_args(argv)
    folder = Path(values.out)
    folder.mkdir(parents=True, exist_ok=True)
    deadline_s, source = clock() + values.within, source_digest()
    for name in values.only:
        path = folder / f"{name}.json"
        if is_kept(read_record(path), source, is_tiny=values.tiny):
            print(f"{name}: done before")
            continue
        fresh = PartRecord(part=name, path=path, is_tiny=values.tiny, source=source)
        limit_s = min(values.budget or PARTS[name].budget_s, deadline_s - clock())
        record = run(fresh, limit_s) if limit_s >= min(LEAST_S, values.budget or LEAST_S) else postpone(fresh, values)
        print(f"{name}: {record.status} after {record.seconds:.0f} s", flush=True)
        write_report(folder)
    print(write_report(folder))
    records = [read_record(folder / f"{name}.json") for name in values.only]
    return 0 if all(record is not None and record.is_good for record in records) else 1


def is_kept(found: PartRecord | None, source: str, *, is_tiny: bool) -> bool:
    """Whether a record on disk stands for what would be run now."""
    return found is not None and (found.status, found.source, found.is_tiny) == ("done", source, is_tiny)


def run(record: PartRecord, limit_s: float) -> PartRecord:
    """A part in a process of its own, which is ended after `limit_s` -> what it wrote, or how it failed."""
    record.save()
    paths = [ROOT, ROOT / "kernels", ROOT / "server", ROOT / "tests"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])}
    if record.is_tiny:
        env["TRITON_INTERPRET"] = "1"
    command = [sys.executable, "-m", "benchmarks.gpu_report.parts", str(record.path), str(limit_s)]
    began_s = monotonic()
    ended = run_within(command, env, limit_s)
    found = read_record(record.path) or record
    if found.status == "running":
        found.status, found.error, found.seconds = "failed", ended, monotonic() - began_s
        found.save()
    return found


def postpone(record: PartRecord, values: argparse.Namespace) -> PartRecord:
    """Notes that there was no time for it; what an earlier run had of it, by the same code, stays."""
    found = read_record(record.path)
    if found is not None and (found.source, found.is_tiny) == (record.source, record.is_tiny):
        return found
    record.status = "failed"
    record.error = f"not begun: the {values.within:g} s of all parts are over; run the same command again to go on, or raise --within"
    record.save()
    return record


def write_report(folder: Path) -> str:
    """Both files, of every part in `folder` -> the Markdown."""
    found = [read_record(folder / f"{name}.json") for name in PARTS]
    records = [record for record in found if record is not None]
    whole = {**(circumstances() if shutil.which("git") else {}), "parts": [record.as_json() for record in records]}
    write_whole(folder / "report.json", json.dumps(whole, indent=2) + "\n")
    text = report(records, {name: part.title for name, part in PARTS.items()})
    write_whole(folder / "report.md", text)
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
    made.add_argument(
        "--within",
        type=amount,
        default=WITHIN_S,
        metavar="S",
        help="seconds for all parts together; what is not begun by then is left for the next run (default: %(default)g)",
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

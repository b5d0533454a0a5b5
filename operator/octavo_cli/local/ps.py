"""`octavo ps`: what `octavo up` runs on this machine."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict

from .screen import short_age
from .state import RunState, running, state_home


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="octavo ps", description="List what `octavo up` runs on this machine.")
    parser.add_argument("--json", action="store_true", help="print JSON, one object per `octavo up`")
    given = parser.parse_args(argv)
    runs = list(running(state_home(os.environ)))
    if given.json:
        print(json.dumps([asdict(run) for run in runs]))
    elif runs:
        print("\n".join(listing(runs, time.time())))
    else:
        print("nothing runs; start with: octavo up examples/quickstart.yaml --mount /models=DIR")
    return 0


def listing(runs: Sequence[RunState], now_s: float) -> list[str]:
    cells = [("MODEL", "READY", "REPLICAS", "REASON", "RESTARTS", "AGE", "PID", "URL")]
    for run in runs:
        age = short_age(now_s - run.started_s)
        cells += [
            (
                row.model,
                str(row.ready),
                f"{row.num_ready}/{row.replicas}",
                row.reason,
                str(row.restarts),
                age,
                str(run.pid),
                run.url,
            )
            for row in run.models
        ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]

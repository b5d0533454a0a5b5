"""What measures speed, waste and endurance: `python -m benchmarks.NAME`, from a checkout. A table, and JSON with --json.

The simulator and the tiny model are the tests' own, so the tests' folder is made importable here.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))

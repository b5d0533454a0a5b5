"""`octavo up` as it is, with fake_server.py in the place of `octavo serve`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from rich.console import Console

from octavo_cli.local.up import parse, up

if __name__ == "__main__":
    server = [sys.executable, str(Path(__file__).with_name("fake_server.py"))]
    sys.exit(asyncio.run(up(parse(sys.argv[1:]), Console(), server_command=server)))

"""`python -m octavo_server serve …`: the same commands as `octavo`, without the control plane's."""

from __future__ import annotations

import sys

from octavo_server.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

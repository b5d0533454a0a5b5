"""llama.cpp's HTTP server for `benchmarks.servers`: run by the interpreter of its own environment, imports nothing of ours.

    python -P xllamacpp_child.py MODEL.gguf THREADS SLOTS CONTEXT

One JSON line when it listens; ends with standard input.
"""

from __future__ import annotations

import json
import sys

import xllamacpp  # type: ignore[import-not-found]


def main() -> None:
    """Serves until standard input ends."""
    path, threads, slots, context = sys.argv[1], *map(int, sys.argv[2:])
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_parallel = slots
    # Of all slots together.
    params.n_ctx = slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.port = 0
    params.verbosity = 0
    server = xllamacpp.Server(params)
    about = {
        "url": server.listening_address,
        "version": xllamacpp.__version__,
        "system": xllamacpp.get_system_info().strip(),
        "build": xllamacpp.BUILD_INFO,
    }
    print(json.dumps(about), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()

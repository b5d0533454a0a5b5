"""`octavo download URI --to DIR`: for people with a bar, for a Job in the cluster with `/startup` and last words."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.config import read_checksum
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import ConfigError, StartupError
from octavo_server.flags import FlagParser
from octavo_server.logs import set_up_logging
from octavo_server.progress import Bar, JsonLines
from octavo_server.sources.uri import SUPPORTED
from octavo_server.termination import write_termination_log

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def download(argv: Sequence[str]) -> Path:
    """Runs the command; gives where the model is now.

    Raises:
        StartupError: with the reason that the control plane shows; it stands in the termination log too.
    """
    values = _parser().parse_strictly(argv)
    set_up_logging("warning")
    try:
        return _download(values)
    except StartupError as error:
        write_termination_log(error.reason, str(error))
        raise


def _parser() -> FlagParser:
    parser = FlagParser(
        prog="octavo download", description="Fetch a model's files, go on where that was cut off, check them."
    )
    parser.add_argument("uri", nargs="?", metavar="URI", help=f"what to fetch: {SUPPORTED}")
    parser.add_argument("--to", metavar="DIR", help="the folder to put the files into")
    parser.add_argument(
        "--allow-patterns",
        nargs="+",
        metavar="PATTERN",
        help="which files, such as '*.safetensors' (default: all that serving reads)",
    )
    parser.add_argument(
        "--weight-files",
        nargs="+",
        metavar="PATTERN",
        help="which weight files; configuration and tokenizer come with them (default: as octavo serve)",
    )
    parser.add_argument("--checksum", metavar="sha256:HEX", help="what the model must have, as --model-checksum")
    parser.add_argument(
        "--port", type=int, metavar="PORT", help="serve /startup and /health there as long as it takes (default: none)"
    )
    parser.add_argument(
        "--progress",
        choices=("bar", "json", "none"),
        default="bar",
        help="bar on stderr; json: a line a second on stdout, as /startup has it; none (default: bar)",
    )
    return parser


def _download(values: argparse.Namespace) -> Path:
    if not values.uri or not values.to:
        raise ConfigError("URI and --to are needed: octavo download hf://ORG/NAME --to DIR")
    if values.allow_patterns and values.weight_files:
        raise ConfigError("--allow-patterns names all files and --weight-files some of them; give one")
    from octavo_server.sources.download import Wanted
    from octavo_server.sources.download import download as fetch
    from octavo_server.sources.store import TEXT_FILES

    patterns = values.allow_patterns or (values.weight_files and [*TEXT_FILES, *values.weight_files])
    checksum = read_checksum(values.checksum) if values.checksum else ""
    wanted = Wanted(patterns=tuple(patterns) if patterns else None, checksum=checksum)
    told = StartupProgress()
    told.enter("downloading")
    with ExitStack() as stack:
        shown: Bar | JsonLines = Bar("bytes", is_bytes=True, is_shown=values.progress == "bar")
        if values.progress == "json":
            shown = JsonLines(sys.stdout)
        stack.enter_context(shown)
        if values.port is not None:
            stack.enter_context(_Told(told, values.port))

        def on_bytes(done: int, total: int) -> None:
            shown.show(done, total)
            told.add_bytes(done, total)

        return fetch(values.uri, Path(values.to).expanduser(), wanted, on_bytes)


class _Told:
    """Serves `/startup` and `/health` from a thread of its own while the download runs."""

    def __init__(self, progress: StartupProgress, port: int) -> None:
        self._progress = progress
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._error: OSError | None = None
        self._is_open = threading.Event()
        self._thread = threading.Thread(target=self._run, name="startup", daemon=True)

    def __enter__(self) -> _Told:
        self._thread.start()
        self._is_open.wait()
        if self._error is not None:
            self._thread.join()
            raise ConfigError(f"--port {self._port} cannot be opened: {self._error.strerror}; take another")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        from octavo_server.api.download_progress import serve_progress

        try:
            self._loop.run_until_complete(serve_progress(self._progress, self._port, self._is_open.set, self._end))
        except OSError as error:
            self._error = error
        finally:
            self._is_open.set()
            self._loop.close()

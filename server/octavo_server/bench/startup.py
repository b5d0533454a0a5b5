"""`octavo bench startup`: from the start of `octavo serve` to its first answer, stage by stage, and its memory at rest.

Warm is a start like the one just before it: files in the page cache, kernels compiled. Cold has the model's files out of
the page cache (asked of the kernel, and checked) and an empty folder for compiled kernels; Python's own files stay.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo_server.bench.arguments import whole
from octavo_server.bench.output import Output, add_output_flags
from octavo_server.bench.record import Record, Result, describe_model
from octavo_server.bench.server_process import ServerProcess
from octavo_server.bench.stats import of_rounds, table
from octavo_server.config import EngineConfig
from octavo_server.errors import ConfigError, OctavoError
from octavo_server.flags import FlagParser, add_flags, build, read_settings
from octavo_server.models.location import resolve_location
from octavo_server.sources.uri import parse_source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

COMMAND = "bench startup"
NAME = "model"
_HEADER = ("start", "measure", "median", "least", "most")
_REQUEST_S = 120.0
_PROBED_PAGES = 256
"""Of a file, spread over it, when it is asked how much lies in the page cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start; seconds from the process's beginning."""

    listening_s: float
    ready_s: float
    stage_seconds: Mapping[str, float]
    first_answer_s: float
    """Of a request for one token, sent when it was ready: what was left undone would show here."""
    idle_bytes: int
    """Resident memory of all its processes after that."""
    info: Mapping[str, Any]
    """Its `/server_info`."""
    cached_before: float
    """Share of the model's bytes in the page cache at the beginning."""


def bench_startup(argv: Sequence[str]) -> int:
    """Starts the server again and again; 1 where the median warm start took longer than --within."""
    values = startup_parser().parse_strictly(argv)
    settings = read_settings(values, os.environ, EngineConfig)
    config = build(EngineConfig, settings)
    output = Output.from_flags(values, COMMAND)
    source = parse_source(config.model)
    if isinstance(source, Path):
        # A typing error should not wait for a server.
        resolve_location(source)
    argv = serve_arguments(config, settings)
    # What was never started here compiles and reads first; that is no warm start.
    untimed = _start("untimed", argv, Path(config.model), {})
    location = Path(untimed.info["location"])
    kinds: dict[str, Callable[[], Start]] = {"warm": lambda: _start("warm", argv, location, {})}
    if values.cold:
        kinds["cold"] = lambda: _cold_start(argv, location)
    starts: dict[str, list[Start]] = {kind: [] for kind in kinds}
    for _ in range(values.rounds):
        for kind, start in kinds.items():
            starts[kind].append(start())
    results = [summarize(kind, found) for kind, found in starts.items()]
    print(f"{config.model}: {values.rounds} starts each")
    print(table(_HEADER, [row for result in results for row in _rows(result)]))
    workload = {"rounds": values.rounds, "cold": values.cold}
    model = describe_model(config.model, location) if output.wants_record else {"name": config.model}
    record = Record(
        command=COMMAND,
        workload=workload,
        results=results,
        model=model,
        engine=asdict(config),
        resolved=untimed.info["resolved"],
        notes=output.notes,
    )
    output.give(record, f"{config.model}, starts")
    return verdict(results[0], values.within)


def serve_arguments(config: EngineConfig, settings: Mapping[str, Any]) -> list[str]:
    """The command line of `octavo serve` for the settings that were given."""
    argv = [config.model, "--served-model-name", NAME]
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if name == "model" or value is None:
            continue
        if isinstance(value, bool):
            argv.append(flag if value else "--no-" + flag.removeprefix("--"))
        elif isinstance(value, tuple):
            argv += [flag, *map(str, value)]
        else:
            argv += [flag, str(value)]
    return argv


def summarize(kind: str, starts: Sequence[Start]) -> Result:
    """Medians are over the starts."""
    stages = {stage for start in starts for stage in start.stage_seconds}
    times = {
        "ready_s": [start.ready_s for start in starts],
        "listening_s": [start.listening_s for start in starts],
        **{f"{stage}_s": [start.stage_seconds.get(stage, 0.0) for start in starts] for stage in sorted(stages)},
        "first_answer_s": [start.first_answer_s for start in starts],
    }
    return Result(
        name=kind,
        measures={
            **{name: of_rounds(found, "s", "lower") for name, found in times.items()},
            "idle_mib": of_rounds([start.idle_bytes / 2**20 for start in starts], "MiB", "lower"),
        },
        counts={"starts": len(starts), "cached_before": [round(start.cached_before, 3) for start in starts]},
    )


def startup_parser() -> FlagParser:
    parser = FlagParser(prog="octavo bench startup", description="Time the start of octavo serve, stage by stage.")
    add_flags(parser, EngineConfig)
    add = parser.add_argument_group("starts").add_argument
    add("--rounds", type=whole("--rounds"), default=3, help="starts of each kind (default: %(default)s)")
    add("--cold", action="store_true", help="also start with the model out of the page cache and no compiled kernels")
    add("--within", type=_seconds, default=None, metavar="SECONDS", help="exit with 1 where a warm start takes longer")
    add_output_flags(parser)
    return parser


def evict(files: Sequence[Path]) -> None:
    """Asks the kernel to drop the files from the page cache."""
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cached_share(files: Sequence[Path]) -> float:
    """How much of the files lies in the page cache, 0 to 1, by pages spread over them; reads nothing from the disk."""
    found = total = 0
    for path in files:
        with open(path, "rb") as file:
            size = path.stat().st_size
            for at in range(0, size, max(mmap.PAGESIZE, size // _PROBED_PAGES)):
                total += 1
                found += _is_cached(file.fileno(), at)
    return found / total if total else 0.0


def _is_cached(descriptor: int, offset: int) -> bool:
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
    except OSError as error:
        raise OctavoError(f"the file system does not tell what is in the page cache: {error.strerror}") from error


def _cold_start(argv: Sequence[str], location: Path) -> Start:
    evict(_files(location))
    with tempfile.TemporaryDirectory(prefix="octavo-cold-") as folder:
        return _start("cold", argv, location, {"NUMBA_CACHE_DIR": folder})


def _start(kind: str, argv: Sequence[str], location: Path, env: Mapping[str, str]) -> Start:
    print(f"{kind} start …", file=sys.stderr)
    cached = cached_share(_files(location))
    with _serving(argv, env) as server:
        server.wait_until_ready()
        ready_s = time.monotonic() - server.started_s
        assert server.listening_s is not None, "who is ready listens"
        began = time.monotonic()
        _ask(server.url + "/v1/completions", {"model": NAME, "prompt": [1], "max_tokens": 1})
        return Start(
            listening_s=server.listening_s - server.started_s,
            ready_s=ready_s,
            first_answer_s=time.monotonic() - began,
            stage_seconds=_ask(server.url + "/startup")["stage_seconds"],
            idle_bytes=server.rss_bytes(),
            info=_ask(server.url + "/server_info"),
            cached_before=cached,
        )


@contextmanager
def _serving(argv: Sequence[str], env: Mapping[str, str]) -> Iterator[ServerProcess]:
    # A key of the environment would be asked of us too.
    server = ServerProcess(argv, {**env, "OCTAVO_API_KEY": None})
    try:
        yield server
    finally:
        server.stop()


def _ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=_REQUEST_S) as response:
        return json.load(response)


def _files(location: Path) -> list[Path]:
    """Of the model; none where it is not on this machine yet."""
    if location.is_file():
        return [location]
    return sorted(path for path in location.glob("*") if path.is_file() and path.stat().st_size)


def _rows(result: Result) -> Iterator[Sequence[object]]:
    for name, measure in result.measures.items():
        numbers = (measure.percentile(50), measure.values[0], measure.values[-1])
        yield (result.name, name, *(f"{number:.2f}" for number in numbers if number is not None))
    yield (result.name, "in page cache", *(f"{share:.0%}" for share in _spread(result.counts["cached_before"])))


def _spread(shares: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(shares)
    return ordered[len(ordered) // 2], ordered[0], ordered[-1]


def verdict(warm: Result, within: float | None) -> int:
    """1 where the median start took longer; says so."""
    if within is None:
        return 0
    median = warm.measures["ready_s"].percentile(50)
    assert median is not None, "there was at least one start"
    print(f"ready after {median:.2f} s, bar {within:g} s {'reached' if median <= within else 'MISSED'}")
    return 0 if median <= within else 1


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ConfigError(f"--within is {text!r}, it must be seconds above 0")
    return value

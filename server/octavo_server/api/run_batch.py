"""`octavo run-batch`: a file of requests answered without a server to talk to, by the very handlers of one.

No port is opened; the lines come in by the private door. Answers are kept beside the output as they come, so that a run
that was cut off goes on where it ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from octavo_server.api.batches import batched
from octavo_server.api.private_door import PrivateDoor
from octavo_server.api.routes import ENDPOINTS
from octavo_server.api.server import make_runner
from octavo_server.batch.disk import write_parts
from octavo_server.batch.journal import Journal
from octavo_server.batch.lines import LineRules, read_lines, summarize
from octavo_server.batch.runner import LineRunner
from octavo_server.engine.async_engine import EngineState
from octavo_server.errors import InvalidRequestError, OctavoError, StartupError
from octavo_server.sources.remote_file import fetch_file, is_remote, send_file

if TYPE_CHECKING:
    from octavo_server.api.state import ServerState
    from octavo_server.batch.answers import Answer
    from octavo_server.batch.records import Counts

ALSO = ("/v1/score", "/v1/rerank")
"""What a line may ask beside what a batch of the server may."""
SHOWN_MISTAKES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What to read and where to write; each a path or an http(s) address."""

    input_file: str
    output_file: str
    tmp_dir: str | None
    """For answers so far, and what is fetched or to be sent. None: beside a local output, else the system's."""


async def run_batch(state: ServerState, job: BatchJob, on_progress: Callable[[Counts], None]) -> Counts:
    """Answers every line and writes them all in the input's order.

    Raises:
        OctavoError: the input cannot run, the model cannot be loaded, or something cannot be read or written.
    """
    folder = _folder(job)
    async with _local_input(job, folder) as path:
        rules = LineRules(
            urls=frozenset(batched(ENDPOINTS, ALSO)),
            max_bytes=state.config.max_request_bytes,
            max_lines=state.config.max_batch_lines,
        )
        total = await asyncio.to_thread(_check, path, rules)
        partial = await asyncio.to_thread(_partial_path, path, state, job, folder)
        journal = await asyncio.to_thread(Journal, partial)
        try:
            on_progress(journal.counts(total))
            if len(journal) < total:
                await _answer(state, path, rules, journal, lambda: on_progress(journal.counts(total)))
            await asyncio.to_thread(journal.sync)
            await _write(job, folder, partial, journal)
            counts = journal.counts(total)
            journal.delete()
            return counts
        finally:
            journal.close()


async def _answer(
    state: ServerState, path: Path, rules: LineRules, journal: Journal, on_answer: Callable[[], None]
) -> None:
    """Loads the model and asks it what is not answered yet."""
    async with _asking(state) as door:
        runner = LineRunner(door, lambda _: _num_places(state), new_id=state.new_id, clock=time.monotonic)

        def keep(answers: list[Answer]) -> None:
            for answer in answers:
                journal.add(answer)

        async def on_answers(answers: list[Answer]) -> None:
            await asyncio.to_thread(keep, answers)
            on_answer()

        with path.open("rb") as file:
            lines = (line for line in read_lines(file, rules) if line.number not in journal)
            if not await runner.run(lines, on_answers, lambda: state.engine.state is not EngineState.READY):
                raise state.engine.failure or StartupError("EngineCrashed", "the engine ended before the last line")


@asynccontextmanager
async def _asking(state: ServerState) -> AsyncIterator[PrivateDoor]:
    """The loaded model behind the private door, and nothing else open."""
    runner = make_runner(state)
    await runner.setup()
    door = PrivateDoor(next(iter(state.config.api_key), None))
    try:
        assert runner.server is not None
        await door.open(runner.server)
        state.engine.start()
        if await state.engine.wait_until(EngineState.READY, EngineState.DEAD) is EngineState.DEAD:
            assert state.engine.failure is not None
            raise state.engine.failure
        yield door
    finally:
        await door.aclose()
        await state.engine.aclose()
        await runner.cleanup()


def _num_places(state: ServerState) -> int:
    """As many lines as run at once; more would wait in the engine."""
    return max(1, min(state.config.max_num_queued_reqs, state.engine.snapshot.max_num_seqs))


def _check(path: Path, rules: LineRules) -> int:
    with path.open("rb") as file:
        summary = summarize(file, rules)
    if summary.errors:
        shown = "; ".join(error.message for error in summary.errors[:SHOWN_MISTAKES])
        more = len(summary.errors) - SHOWN_MISTAKES
        raise InvalidRequestError(f"the input cannot run: {shown}" + (f"; and {more} more" if more > 0 else ""))
    return summary.num_lines


def _folder(job: BatchJob) -> Path:
    if job.tmp_dir is not None:
        folder = Path(job.tmp_dir).expanduser()
    elif is_remote(job.output_file):
        folder = Path(tempfile.gettempdir())
    else:
        folder = Path(job.output_file).expanduser().absolute().parent
    if not folder.is_dir():
        raise OctavoError(f"{folder} is no folder; make it first")
    return folder


@asynccontextmanager
async def _local_input(job: BatchJob, folder: Path) -> AsyncIterator[Path]:
    if not is_remote(job.input_file):
        path = Path(job.input_file).expanduser()
        if not path.is_file():
            raise OctavoError(f"--input-file {path} is no file")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="octavo-batch-", dir=folder) as fetched:
        path = Path(fetched) / "input.jsonl"
        await fetch_file(job.input_file, path)
        yield path


def _partial_path(path: Path, state: ServerState, job: BatchJob, folder: Path) -> Path:
    """Where the answers so far are: another name for another input, model or output, so that none is mixed up."""
    digest = hashlib.sha256(f"{state.model_names[0]}\n{job.output_file}\n".encode())
    with path.open("rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    name = "output" if is_remote(job.output_file) else Path(job.output_file).name
    return folder / f"{name}.{digest.hexdigest()[:16]}.partial"


async def _write(job: BatchJob, folder: Path, partial: Path, journal: Journal) -> None:
    if not is_remote(job.output_file):
        await asyncio.to_thread(write_parts, Path(job.output_file).expanduser(), journal.all_entries())
        return
    whole = folder / f"{partial.stem}.jsonl"
    await asyncio.to_thread(write_parts, whole, journal.all_entries())
    await send_file(whole, job.output_file)
    whole.unlink()

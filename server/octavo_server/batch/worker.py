"""Takes stored batches from one status to the next, beside the server's other work, and goes on after a restart.

Two tasks. One keeps house: validates what is new, ends what was cancelled or has expired before its turn, and drops
what is too old. The other runs the lines of one batch after the other, oldest first. Whatever fails on the disk is told
in the batch's `errors` and tried again; answers that are in the journal are never asked for again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from octavo_server.batch.answers import Answer, expired
from octavo_server.batch.lines import LineRules, read_lines, summarize
from octavo_server.batch.records import BatchError, BatchRecord, BatchStatus, Results, begin, end, fail, finalize
from octavo_server.batch.runner import in_thread
from octavo_server.errors import NotStoredError, OctavoError

if TYPE_CHECKING:
    from octavo_server.batch.runner import LineRunner
    from octavo_server.batch.storage import Store

logger = logging.getLogger(__name__)

HOUSEKEEPING_S = 5.0
RETRY_S = 5.0
"""After something failed, on the disk mostly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerParts:
    """What a worker works with."""

    store: Store
    runner: LineRunner
    max_line_bytes: int
    max_lines: int
    new_id: Callable[[], str]
    is_ready: Callable[[], bool]
    """Whether lines may run at all."""


class BatchWorker:
    """Owns both tasks."""

    def __init__(self, parts: WorkerParts) -> None:
        self._parts = parts
        self._store = parts.store
        self._news = asyncio.Event()
        self._work = asyncio.Event()
        self._taken: set[str] = set()
        """Batches that one of the tasks works on."""
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins; in a running loop."""
        self._tasks = [
            asyncio.create_task(self._forever(self._keep_house, self._news, HOUSEKEEPING_S)),
            asyncio.create_task(self._forever(self._run_batches, self._work, HOUSEKEEPING_S)),
        ]

    async def aclose(self) -> None:
        """Stops where it is; lines that run are given back."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task

    def wake(self) -> None:
        """A batch is new, or was cancelled."""
        self._news.set()
        self._work.set()

    async def _forever(self, step: Callable[[], Awaitable[None]], event: asyncio.Event, pause_s: float) -> None:
        while True:
            event.clear()
            try:
                await step()
            except Exception:
                logger.exception("batches: a step failed, it is tried again")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await event.wait()

    # Housekeeping

    async def _keep_house(self) -> None:
        await in_thread(self._store.sweep)
        for batch_id in [batch.batch_id for batch in self._store.batches() if not batch.status.is_end]:
            # Read anew: the other task went on while the one before was tended.
            batch = self._store.batch(batch_id)
            if batch_id not in self._taken and not batch.status.is_end:
                await self._take(batch, self._tend)

    async def _tend(self, batch: BatchRecord) -> None:
        if batch.status is BatchStatus.VALIDATING:
            await in_thread(lambda: self._validate(batch))
            self._work.set()
        elif batch.status is BatchStatus.CANCELLING:
            await self._finish(batch, BatchStatus.CANCELLED)
        elif batch.status is BatchStatus.IN_PROGRESS and batch.expires_at <= self._store.now():
            await self._expire(batch)

    def _validate(self, batch: BatchRecord) -> None:
        try:
            with self._store.input_path(batch).open("rb") as file:
                summary = summarize(file, self._rules(batch))
        except NotStoredError as error:
            self._fail(batch, (BatchError(code="no_file", message=str(error)),))
            return
        if summary.errors:
            self._fail(batch, tuple(summary.errors))
            return

        def change(current: BatchRecord) -> BatchRecord:
            if current.status is not BatchStatus.VALIDATING:
                return current
            return begin(current, total=summary.num_lines, model=summary.model, now=self._store.now())

        self._store.update_batch(batch.batch_id, change)

    def _fail(self, batch: BatchRecord, errors: tuple[BatchError, ...]) -> None:
        def change(current: BatchRecord) -> BatchRecord:
            if current.status is BatchStatus.CANCELLING:
                return current
            return fail(current, errors, self._store.now())

        self._store.update_batch(batch.batch_id, change)

    # Running

    async def _run_batches(self) -> None:
        while (batch := self._next_batch()) is not None:
            if not await self._take(batch, self._run):
                await asyncio.sleep(RETRY_S)

    def _next_batch(self) -> BatchRecord | None:
        """The oldest that is to run; None while the server cannot."""
        if not self._parts.is_ready():
            return None
        runs = (BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING)
        found = (batch for batch in self._store.batches() if batch.status in runs)
        return next((batch for batch in found if batch.batch_id not in self._taken), None)

    async def _run(self, batch: BatchRecord) -> None:
        if batch.status is BatchStatus.IN_PROGRESS:
            try:
                has_ended = await self._answer_lines(batch)
            except NotStoredError as error:
                told = BatchError(code="no_file", message=str(error))
                return await in_thread(lambda: self._fail(batch, (told,)))
            status = self._store.batch(batch.batch_id).status
            if not has_ended and status is BatchStatus.IN_PROGRESS:
                # Expired, or the server ends.
                return await self._expire(batch) if batch.expires_at <= self._store.now() else None
            if status is BatchStatus.CANCELLING:
                return await self._finish(batch, BatchStatus.CANCELLED)
            await in_thread(lambda: self._finalize(batch))
        return await self._finish(batch, BatchStatus.COMPLETED)

    def _finalize(self, batch: BatchRecord) -> None:
        def change(current: BatchRecord) -> BatchRecord:
            return current if current.status is BatchStatus.CANCELLING else finalize(current, self._store.now())

        self._store.update_batch(batch.batch_id, change)

    async def _answer_lines(self, batch: BatchRecord) -> bool:
        """False where it was stopped: cancelled, expired, or the server ends."""
        store, batch_id = self._store, batch.batch_id
        with ExitStack() as files:
            # The stack closes it also where this is cancelled meanwhile.
            journal = await in_thread(lambda: files.enter_context(closing(store.journal(batch_id))))

            def keep(answers: list[Answer]) -> None:
                for answer in answers:
                    journal.add(answer)
                store.note_journal(batch_id, journal.num_bytes)
                counts = journal.counts(batch.counts.total)
                store.update_batch(
                    batch_id,
                    lambda current: replace(current, counts=counts, tokens=journal.tokens, errors=()),
                    lasting=False,
                )

            async def on_answers(answers: list[Answer]) -> None:
                await in_thread(lambda: keep(answers))

            def must_stop() -> bool:
                # Before lines begin: what is computed must be kept.
                store.check_room()
                current = store.batch(batch_id)
                is_over = current.status is not BatchStatus.IN_PROGRESS or current.expires_at <= store.now()
                return is_over or not self._parts.is_ready()

            await on_answers([])
            with store.input_path(batch).open("rb") as file:
                lines = (line for line in read_lines(file, self._rules(batch)) if line.number not in journal)
                has_ended = await self._parts.runner.run(lines, on_answers, must_stop)
            await in_thread(journal.sync)
            return has_ended

    # Endings

    async def _expire(self, batch: BatchRecord) -> None:
        """What is not answered gets an entry that says so."""

        def answer_rest() -> None:
            journal = self._store.journal(batch.batch_id)
            try:
                with suppress(NotStoredError), self._store.input_path(batch).open("rb") as file:
                    for line in read_lines(file, self._rules(batch)):
                        journal.add(expired(line, self._parts.new_id()))
                journal.sync()
            finally:
                journal.close()

        await in_thread(answer_rest)
        await self._finish(batch, BatchStatus.EXPIRED)

    async def _finish(self, batch: BatchRecord, status: BatchStatus) -> None:
        """Makes the files, keeps the end, and drops the journal: in this order, so that a crash repeats it whole."""
        await in_thread(lambda: self._write_results(batch, status))
        logger.info("batch %s is %s", batch.batch_id, self._store.batch(batch.batch_id).status.value)

    def _write_results(self, batch: BatchRecord, status: BatchStatus) -> None:
        store, journal = self._store, self._store.journal(batch.batch_id)
        try:
            counts = journal.counts(batch.counts.total)

            def make(is_ok: bool, name: str) -> str | None:
                # The same id where a crash lets it be made again.
                made = store.make_file(
                    f"file-{batch.batch_id.removeprefix('batch_')}-{name}",
                    journal.entries(is_ok=is_ok),
                    filename=f"{batch.batch_id}_{name}.jsonl",
                    max_age_s=batch.output_max_age,
                )
                return None if made is None else made.file_id

            results = Results(
                counts=counts,
                tokens=journal.tokens,
                output_file_id=make(True, "output"),
                error_file_id=make(False, "errors"),
            )
            store.update_batch(batch.batch_id, lambda current: end(current, status, results, store.now()))
            journal.delete()
            store.note_journal(batch.batch_id, 0)
        finally:
            journal.close()

    def _rules(self, batch: BatchRecord) -> LineRules:
        parts = self._parts
        return LineRules(urls=frozenset({batch.endpoint}), max_bytes=parts.max_line_bytes, max_lines=parts.max_lines)

    async def _take(self, batch: BatchRecord, work: Callable[[BatchRecord], Awaitable[None]]) -> bool:
        """Works on a batch, from which the other task keeps away; False, and told in its `errors`, where it cannot go on."""
        self._taken.add(batch.batch_id)
        try:
            await work(batch)
        except OctavoError as error:
            logger.error("batch %s cannot go on, it is tried again: %s", batch.batch_id, error)
            told = BatchError(code="storage", message=str(error))
            with suppress(OctavoError):
                self._store.update_batch(
                    batch.batch_id, lambda current: replace(current, errors=(told,)), lasting=False
                )
            return False
        finally:
            self._taken.discard(batch.batch_id)
        return True

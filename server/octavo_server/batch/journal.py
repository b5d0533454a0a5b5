"""The answers of a batch that runs, in the order in which they came; what is in it is never asked again.

One line an answer: a short JSON head, a tab, the entry as it will stand in the output or error file. A line without its
end was cut off by a crash and is dropped when the journal is opened. Bytes are on the disk at the latest `SYNC_S` after
they were added, so that a power cut repeats little work and no answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from octavo_server.batch.answers import Answer
from octavo_server.batch.disk import disk_errors, sync
from octavo_server.batch.records import Counts, Tokens

SYNC_S = 1.0


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an entry lies."""

    is_ok: bool
    start: int
    num_bytes: int


class Journal:
    """Owns one file, and knows what is in it. Not for several threads at once."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._synced_s = clock()
        self._places: dict[int, _Place] = {}
        self.tokens = Tokens()
        with disk_errors():
            self._file = path.open("a+b")
            try:
                self._end = self._read_back()
                self._file.truncate(self._end)
            except OSError:
                self._file.close()
                raise

    def __contains__(self, number: int) -> bool:
        """Whether the line is answered."""
        return number in self._places

    def __len__(self) -> int:
        """Lines that are answered."""
        return len(self._places)

    @property
    def num_bytes(self) -> int:
        return self._end

    def counts(self, total: int) -> Counts:
        """Of `total` lines, how many are answered and how."""
        completed = sum(place.is_ok for place in self._places.values())
        return Counts(total=total, completed=completed, failed=len(self._places) - completed)

    def add(self, answer: Answer) -> None:
        """Keeps an answer; the first of a line counts.

        Raises:
            DiskError: it could not be written; the journal is as it was.
        """
        if answer.number in self._places:
            return
        tokens = answer.tokens
        counted = (tokens.prompt, tokens.cached, tokens.completion, tokens.reasoning)
        head = {"line": answer.number, "ok": answer.is_ok, "tokens": counted}
        start = self._end + len(line := json.dumps(head).encode() + b"\t")
        with disk_errors():
            try:
                self._file.write(line + answer.entry + b"\n")
                self._file.flush()
            except OSError:
                self._reopen()
                raise
            self._keep(answer.number, answer.is_ok, tokens, _Place(answer.is_ok, start, len(answer.entry)))
            self._end = start + len(answer.entry) + 1
            if self._clock() - self._synced_s >= SYNC_S:
                self.sync()

    def sync(self) -> None:
        """Returns when all is on the disk."""
        with disk_errors():
            sync(self._file.fileno())
        self._synced_s = self._clock()

    def entries(self, *, is_ok: bool) -> Iterator[bytes]:
        """The lines of the output file, or of the error file, in the input's order."""
        with disk_errors(), self._path.open("rb") as file:
            for _, place in sorted(self._places.items()):
                if place.is_ok == is_ok:
                    file.seek(place.start)
                    yield file.read(place.num_bytes) + b"\n"

    def all_entries(self) -> Iterator[bytes]:
        """Both, in the input's order."""
        with disk_errors(), self._path.open("rb") as file:
            for _, place in sorted(self._places.items()):
                file.seek(place.start)
                yield file.read(place.num_bytes) + b"\n"

    def close(self) -> None:
        self._file.close()

    def delete(self) -> None:
        """Closes and removes it."""
        self.close()
        with disk_errors():
            self._path.unlink(missing_ok=True)

    def _keep(self, number: int, is_ok: bool, tokens: Tokens, place: _Place) -> None:
        self._places[number] = place
        self.tokens += tokens

    def _read_back(self) -> int:
        """Fills the table; returns where the last whole line ends."""
        end = 0
        self._file.seek(0)
        for line in self._file:
            head, tab, entry = line.partition(b"\t")
            if not tab or not entry.endswith(b"\n"):
                break
            try:
                read = json.loads(head)
                prompt, cached, completion, reasoning = read["tokens"]
                number, is_ok = int(read["line"]), bool(read["ok"])
            except (ValueError, KeyError, TypeError):
                # Blocks of zeros, as some file systems leave after a power cut.
                break
            tokens = Tokens(prompt=prompt, cached=cached, completion=completion, reasoning=reasoning)
            if number not in self._places:
                self._keep(number, is_ok, tokens, _Place(is_ok, end + len(head) + 1, len(entry) - 1))
            end += len(line)
        return end

    def _reopen(self) -> None:
        """Drops what a failed write left, in the buffer and in the file."""
        with suppress(OSError):
            self._file.close()
        self._file = self._path.open("a+b")
        self._file.truncate(self._end)

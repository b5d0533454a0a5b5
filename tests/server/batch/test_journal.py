"""Answers that were written stay, whenever the process ends; what was cut off is as if it had never been."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from octavo_server.batch import journal as module
from octavo_server.batch.answers import Answer, Reply, answered
from octavo_server.batch.journal import Journal
from octavo_server.batch.lines import Line
from octavo_server.batch.records import Counts, Tokens
from octavo_server.errors import DiskError


def an_answer(number: int, *, is_ok: bool = True) -> Answer:
    line = Line(number=number, custom_id=f"\t{number}\u2028", url="/", payload=b"{}", model=None)
    usage = {"prompt_tokens": 3, "completion_tokens": number}
    reply = Reply(status=200 if is_ok else 400, request_id="r", body={"usage": usage, "text": "a\nb"})
    return answered(line, reply, "id")


def test_entries_come_in_the_inputs_order_whatever_the_answers_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    for number, is_ok in ((3, True), (1, True), (2, False), (4, True)):
        journal.add(an_answer(number, is_ok=is_ok))

    good = [json.loads(entry)["custom_id"] for entry in journal.entries(is_ok=True)]
    bad = [json.loads(entry)["custom_id"] for entry in journal.entries(is_ok=False)]

    assert good == ["\t1\u2028", "\t3\u2028", "\t4\u2028"]
    assert bad == ["\t2\u2028"]
    assert len(list(journal.all_entries())) == 4
    assert journal.counts(9) == Counts(total=9, completed=3, failed=1)
    assert journal.tokens == Tokens(prompt=9, completion=8)
    journal.close()


def test_the_first_answer_of_a_line_counts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.add(an_answer(1))
    journal.add(an_answer(1, is_ok=False))

    assert journal.counts(1) == Counts(total=1, completed=1)
    assert journal.tokens == Tokens(prompt=3, completion=1)
    journal.close()


def test_a_cut_at_any_byte_loses_the_answer_that_was_cut_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "j"
    whole, ends = Journal(path), []
    for number in (1, 2, 3):
        whole.add(an_answer(number))
        ends.append(whole.num_bytes)
    entries = list(whole.all_entries())
    whole.close()
    content = path.read_bytes()
    assert ends[-1] == len(content)

    for cut in {*range(0, len(content), 3), *ends, *(end - 1 for end in ends)}:
        path.write_bytes(content[:cut])
        again = Journal(path)
        kept = sum(end <= cut for end in ends)
        assert list(again.all_entries()) == entries[:kept]
        again.add(an_answer(3))
        again.close()
        reopened = Journal(path)
        assert 3 in reopened
        assert reopened.counts(3).completed == min(kept, 2) + 1
        reopened.close()


def test_zeros_at_the_end_as_a_power_cut_leaves_them_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.add(an_answer(1))
    journal.close()
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + bytes(100) + b"\t\n")

    again = Journal(path)

    assert again.counts(2).completed == 1
    assert path.stat().st_size == size
    again.close()


def test_a_full_disk_leaves_it_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "j"
    journal = Journal(path)
    journal.add(an_answer(1))

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, data: bytes) -> None:
            self.file.write(data[: len(data) // 2])  # type: ignore[attr-defined]

        def flush(self) -> None:
            self.file.flush()  # type: ignore[attr-defined]
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            self.file.close()  # type: ignore[attr-defined]

    monkeypatch.setattr(journal, "_file", Full(journal._file))
    with pytest.raises(DiskError, match="full"):
        journal.add(an_answer(2))
    journal.add(an_answer(3))
    journal.close()

    again = Journal(path)
    assert [number for number in (1, 2, 3) if number in again] == [1, 3]
    again.close()


def test_what_was_added_is_on_the_disk_after_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, synced = [0.0], []
    monkeypatch.setattr(module, "sync", lambda _: synced.append(now[0]))
    journal = Journal(tmp_path / "j", clock=lambda: now[0])

    for moment in (0.1, 0.9, 1.1, 1.2, 2.5):
        now[0] = moment
        journal.add(an_answer(int(moment * 10)))

    assert synced == [1.1, 2.5]
    journal.close()

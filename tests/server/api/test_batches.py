"""Files and batches with the official client, over the real engine's API."""

from __future__ import annotations

import asyncio
import errno
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from octavo_server.batch import disk, journal, pace, storage, worker
from octavo_testing.batches import CHAT, COMPLETIONS, Client, a_line, clients, jsonl
from octavo_testing.server import NAME, a_chat


@pytest.fixture
async def client(tokenizer_folder: Path, tmp_path: Path) -> AsyncIterator[Client]:
    async with clients(tokenizer_folder, tmp_path / "data") as made:
        yield made


async def test_a_batch_answers_every_line_as_the_endpoint_does(client: Client) -> None:
    batch = await client.create(jsonl(*(a_line(number) for number in range(1, 41))), metadata={"team": "a"})
    assert batch.status == "validating"

    batch = await client.ended(batch)

    entries = await client.entries(batch.output_file_id)
    alone = (await client.server.post(CHAT, a_line(7)["body"])).json
    assert (batch.status, batch.error_file_id, batch.errors) == ("completed", None, None)
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 40, "completed": 40, "failed": 0}
    assert [entry["custom_id"] for entry in entries] == [f"line-{number}" for number in range(1, 41)]
    assert all(entry["response"]["status_code"] == 200 and entry["error"] is None for entry in entries)
    assert entries[6]["response"]["body"]["choices"] == alone["choices"]
    assert len({entry["response"]["request_id"] for entry in entries}) == 40
    assert (batch.metadata, batch.model, batch.endpoint) == ({"team": "a"}, NAME, CHAT)
    usages = [entry["response"]["body"]["usage"] for entry in entries]
    assert batch.usage is not None
    assert batch.usage.input_tokens == sum(usage["prompt_tokens"] for usage in usages)
    assert batch.usage.output_tokens == sum(usage["completion_tokens"] for usage in usages)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at < batch.expires_at  # type: ignore[operator]


async def test_a_line_whose_model_is_no_text_fails_alone(client: Client) -> None:
    """A record cannot hold it: writing it failed over and over, and the batch never began."""
    batch = await client.create(jsonl(a_line(1, model="\ud800"), a_line(2)))

    batch = await client.ended(batch)

    [answered] = await client.entries(batch.output_file_id)
    [refused] = await client.entries(batch.error_file_id)
    assert (batch.status, batch.model) == ("completed", NAME)
    assert (answered["custom_id"], refused["custom_id"]) == ("line-2", "line-1")
    assert refused["response"]["status_code"] == 400


async def test_a_journal_that_opens_while_the_server_ends_is_closed(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that nobody closes is reported by the interpreter; tests count that as an error."""
    begins, goes_on, real = threading.Event(), threading.Event(), storage.Store.journal
    opened: list[journal.Journal] = []

    def open_late(store: storage.Store, batch_id: str) -> journal.Journal:
        begins.set()
        goes_on.wait(10)
        opened.append(real(store, batch_id))
        return opened[0]

    monkeypatch.setattr(storage.Store, "journal", open_late)
    async with clients(tokenizer_folder, tmp_path / "data") as client:
        await client.create(jsonl(a_line(1)))
        await asyncio.to_thread(begins.wait, 10)
        asyncio.get_running_loop().call_later(0.1, goes_on.set)

    [found] = opened
    assert found._file.closed


async def test_lines_that_cannot_be_asked_or_are_refused_go_to_the_error_file(client: Client) -> None:
    lines = [
        a_line(1),
        "{not json",
        {**a_line(3), "url": "/v1/embeddings"},
        {**a_line(4), "custom_id": 4},
        a_line(5, temperature=9),
        a_line(6, stream=True),
        {**a_line(7), "method": "GET"},
        a_line(8, model="other"),
        "",
        a_line(10),
    ]

    batch = await client.ended(await client.create(jsonl(*lines)))

    good, bad = await client.entries(batch.output_file_id), await client.entries(batch.error_file_id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 9, "completed": 2, "failed": 7}
    assert [entry["custom_id"] for entry in good] == ["line-1", "line-10"]
    asked = {entry["custom_id"]: entry["response"] for entry in bad if entry["response"]}
    assert {name: response["status_code"] for name, response in asked.items()} == {"line-5": 400, "line-8": 404}
    assert asked["line-5"]["body"]["error"]["param"] == "temperature"
    unasked = {entry["error"]["line"]: entry for entry in bad if entry["error"]}
    assert {line: entry["custom_id"] for line, entry in unasked.items()} == {
        2: None,
        3: "line-3",
        4: None,
        6: "line-6",
        7: "line-7",
    }
    for line, words in {2: "JSON", 3: "url", 4: "custom_id", 6: "body.stream", 7: "method"}.items():
        assert unasked[line]["error"]["code"] == "invalid_line"
        assert f"line {line}: " in unasked[line]["error"]["message"]
        assert words in unasked[line]["error"]["message"]


@pytest.mark.parametrize(
    ("content", "code", "line"),
    [
        (jsonl(a_line(1), a_line(2), a_line(1)), "duplicate_custom_id", 3),
        (jsonl("[]", "x"), "invalid_line", 1),
        (b"\n \n", "empty_file", None),
        (jsonl(*(a_line(number) for number in range(6))), "too_many_lines", 6),
    ],
    ids=["an id twice", "no line can run", "no lines", "too many lines"],
)
async def test_a_file_that_cannot_run_fails_whole_and_says_where(
    tokenizer_folder: Path, tmp_path: Path, content: bytes, code: str, line: int | None
) -> None:
    async with clients(tokenizer_folder, tmp_path, max_batch_lines=5) as client:
        batch = await client.ended(await client.create(content))

    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert (batch.errors.data[0].code, batch.errors.data[0].line) == (code, line)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


async def test_a_cancel_keeps_the_lines_that_have_finished(client: Client) -> None:
    fake = client.server.fake
    assert fake is not None
    fake.runner.gate.clear()
    short, long = [a_line(n, max_tokens=2) for n in range(3)], [a_line(9, max_tokens=400, ignore_eos=True)]
    batch = await client.create(jsonl(*short, *long))
    await client.server.until(lambda: client.server.state.num_active == 4)
    # more than the short ones need, also where they begin one after another, and fewer than the long one
    fake.runner.let_through(50)
    batch = await client.until(batch, lambda now: now.request_counts is not None and now.request_counts.completed == 3)

    cancelling = await client.openai.batches.cancel(batch.id)
    await client.server.until(lambda: client.server.state.num_active == 0)
    fake.runner.open()
    batch = await client.ended(batch)

    assert cancelling.status == "cancelling"
    assert batch.status == "cancelled"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 4, "completed": 3, "failed": 0}
    assert len(await client.entries(batch.output_file_id)) == 3
    assert (await client.openai.batches.cancel(batch.id)).status == "cancelled"
    await client.server.until(lambda: client.server.state.engine.num_unfinished == 0)


async def test_a_batch_behind_another_is_cancelled_at_once(client: Client) -> None:
    fake = client.server.fake
    assert fake is not None
    fake.runner.gate.clear()
    first = await client.create(jsonl(a_line(1)))
    second = await client.create(jsonl(a_line(2)))
    await client.until(second, lambda now: now.status == "in_progress")

    await client.openai.batches.cancel(second.id)

    assert (await client.ended(second)).status == "cancelled"
    assert (await client.openai.batches.retrieve(first.id)).status == "in_progress"
    fake.runner.open()
    assert (await client.ended(first)).status == "completed"


async def test_what_has_ended_cannot_be_cancelled(client: Client) -> None:
    batch = await client.ended(await client.create(jsonl(a_line(1))))

    with pytest.raises(openai.ConflictError, match="completed"):
        await client.openai.batches.cancel(batch.id)


async def test_lines_whose_time_has_passed_say_so(client: Client) -> None:
    fake = client.server.fake
    assert fake is not None
    fake.runner.gate.clear()
    batch = await client.create(
        jsonl(a_line(1, max_tokens=1), a_line(2, max_tokens=400, ignore_eos=True), "bad"), completion_window="60s"
    )
    await client.server.until(lambda: client.server.state.num_active == 2)
    fake.runner.let_through(50)
    await client.until(batch, lambda now: now.request_counts is not None and now.request_counts.completed == 1)

    client.server.state.wall_clock = lambda: batch.created_at + 61.0
    await client.server.until(lambda: client.server.state.num_active == 0)
    fake.runner.open()
    batch = await client.ended(batch)

    assert batch.status == "expired"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 1, "failed": 2}
    late = {entry["custom_id"]: entry["error"]["code"] for entry in await client.entries(batch.error_file_id)}
    assert late == {"line-2": "batch_expired", None: "invalid_line"}
    assert [entry["custom_id"] for entry in await client.entries(batch.output_file_id)] == ["line-1"]


async def test_a_restart_goes_on_where_the_server_ended(tokenizer_folder: Path, tmp_path: Path) -> None:
    """Each line is answered once: those that were answered before keep their answers, ids and all."""
    async with clients(tokenizer_folder, tmp_path) as client:
        assert client.server.fake is not None
        client.server.fake.runner.gate.clear()
        lines = [a_line(n, max_tokens=2 if n < 4 else 20, ignore_eos=True) for n in range(1, 9)]
        batch = await client.create(jsonl(*lines))
        await client.server.until(lambda: client.server.state.num_active == 8)
        client.server.fake.runner.let_through(6)
        await client.until(batch, lambda now: now.request_counts is not None and now.request_counts.completed == 3)
        # As SIGTERM does.
        client.server.state.draining = True
        await client.server.until(lambda: client.server.state.num_active == 0)
    written = next(tmp_path.glob("batches/*.journal"))
    before = [line.split(b"\t")[1].strip() for line in written.read_bytes().splitlines()]
    with written.open("ab") as file:
        file.write(b'{"line": 5, "ok": tr')  # as a crash in the middle of a write leaves it

    async with clients(tokenizer_folder, tmp_path) as client:
        ended = await client.ended(batch)
        content = (await client.openai.files.content(str(ended.output_file_id))).content
        assert client.server.state.engine.num_accepted == 5

    assert ended.status == "completed"
    entries = [json.loads(line) for line in content.splitlines()]
    assert [entry["custom_id"] for entry in entries] == [f"line-{n}" for n in range(1, 9)]
    assert len(before) == 3
    assert set(before) <= set(content.splitlines())
    assert not list(tmp_path.glob("batches/*.journal"))


async def test_live_requests_come_first(
    tokenizer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch holds every place; whoever comes then gets them, and the batch ends all the same."""
    monkeypatch.setattr(pace, "PATIENCE_S", 0.0)
    monkeypatch.setattr(pace, "BETWEEN_S", 0.0)
    async with clients(tokenizer_folder, tmp_path, seqs=4) as client:
        fake, state = client.server.fake, client.server.state
        assert fake is not None
        fake.runner.gate.clear()
        batch = await client.create(jsonl(*(a_line(n, max_tokens=300, ignore_eos=True) for n in range(4))))
        await client.server.until(lambda: state.engine.num_unfinished == 4)
        fake.runner.let_through(8)
        await client.server.until(lambda: state.engine.snapshot.num_running == 4)
        live = [
            asyncio.create_task(client.server.post(CHAT, a_chat(f"live {n}", max_tokens=3, ignore_eos=True)))
            for n in range(2)
        ]
        await client.server.until(lambda: state.num_active == 6)
        while not all(task.done() for task in live):
            # A slow engine: a few steps, then a moment for whoever decides.
            fake.runner.let_through(2)
            await asyncio.sleep(0.02)
        counts = (await client.openai.batches.retrieve(batch.id)).request_counts
        fake.runner.open()
        ended = await client.ended(batch)

    assert [task.result().status for task in live] == [200, 200]
    assert counts is not None
    assert counts.completed == 0
    assert ended.request_counts is not None
    assert ended.request_counts.completed == 4


async def test_a_drain_does_not_wait_for_batches(tokenizer_folder: Path, tmp_path: Path) -> None:
    async with clients(tokenizer_folder, tmp_path) as client:
        fake, state = client.server.fake, client.server.state
        assert fake is not None
        fake.runner.gate.clear()
        batch = await client.create(jsonl(a_line(1, max_tokens=400, ignore_eos=True)))
        await client.server.until(lambda: state.num_active == 1)

        state.draining = True
        await client.server.until(lambda: state.num_active == 0)

        assert (await client.openai.batches.retrieve(batch.id)).status == "in_progress"
        with pytest.raises(openai.InternalServerError, match="shutting down"):
            await client.upload(b"{}")


async def test_a_full_disk_is_told_and_waited_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_S", 0.01)
    fake = client.server.fake
    assert fake is not None
    fake.runner.gate.clear()
    batch = await client.create(jsonl(a_line(1), a_line(2)))
    await client.server.until(lambda: client.server.state.num_active == 2)

    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(disk.os, "fsync", full)
        patched.setattr(journal, "SYNC_S", 0.0)
        fake.runner.open()
        stuck = await client.until(batch, lambda now: now.errors is not None)
        with pytest.raises(openai.InternalServerError, match="the disk is full") as refused:
            await client.upload(b"{}")
        num_files = len([file async for file in client.openai.files.list()])
    ended = await client.ended(batch)

    assert stuck.status == "in_progress"
    assert stuck.errors is not None
    assert stuck.errors.data is not None
    assert "the disk is full" in (stuck.errors.data[0].message or "")
    assert refused.value.status_code == 507
    assert num_files == 1
    assert (ended.status, ended.errors) == ("completed", None)
    assert len(await client.entries(ended.output_file_id)) == 2


async def test_without_room_for_answers_none_is_asked_for(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "RETRY_S", 0.01)
    file_id = await client.upload(jsonl(a_line(1)))
    store = client.server.state.batches.store  # type: ignore[union-attr]  # --data-dir is given
    add = store.add_batch
    with monkeypatch.context() as patched:

        def add_then_fill(batch: Any) -> None:
            add(batch)
            patched.setattr(storage, "MIN_FREE_BYTES", 2**62)

        patched.setattr(store, "add_batch", add_then_fill)
        batch = await client.openai.batches.create(input_file_id=file_id, endpoint=CHAT, completion_window="24h")  # type: ignore[arg-type]
        await client.until(batch, lambda now: now.errors is not None)
        assert client.server.state.engine.num_accepted == 0

    assert (await client.ended(batch)).status == "completed"


async def test_a_server_with_keys_answers_its_own_lines(tokenizer_folder: Path, tmp_path: Path) -> None:
    async with clients(tokenizer_folder, tmp_path, api_key=("secret", "other")) as client:
        batch = await client.ended(await client.create(jsonl(a_line(1))))
        for path in ("/v1/files", "/v1/batches"):
            assert (await client.server.get(path)).status == 401

    assert batch.request_counts is not None
    assert batch.request_counts.completed == 1


async def test_no_more_lines_run_at_once_than_the_flag_says(tokenizer_folder: Path, tmp_path: Path) -> None:
    async with clients(tokenizer_folder, tmp_path, max_batch_concurrency=2) as client:
        fake, state = client.server.fake, client.server.state
        assert fake is not None
        fake.runner.gate.clear()
        batch = await client.create(jsonl(*(a_line(n) for n in range(6))))
        await client.server.until(lambda: state.num_active == 2)
        await asyncio.sleep(0)
        most = [state.num_active]

        def done() -> bool:
            most.append(state.num_active)
            return state.engine.num_accepted == 6 and state.num_active == 0

        fake.runner.open()
        await client.server.until(done)
        await client.ended(batch)

    assert max(most) == 2


async def test_completions_too(client: Client) -> None:
    batch = await client.ended(await client.create(jsonl(a_line(1, COMPLETIONS)), COMPLETIONS))

    (entry,) = await client.entries(batch.output_file_id)
    assert entry["response"]["body"]["object"] == "text_completion"

"""Files: what the official client sends, and what nobody should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from octavo_server.config import ServerConfig
from octavo_server.errors import ConfigError
from octavo_testing.server import Answer, Server, fake_server

FILES = "/v1/files"


@pytest.fixture
async def server(tokenizer_folder: Path, tmp_path: Path) -> AsyncIterator[Server]:
    async with fake_server(tokenizer_folder, data_dir=str(tmp_path / "data")) as running:
        yield running


@pytest.fixture
async def client(server: Server) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


async def send(server: Server, body: Any, **headers: str) -> Answer:
    async with server.session.post(server.url + FILES, data=body, headers=headers) as response:
        return Answer(response.status, response.headers, await response.read())


def a_form(content: bytes = b"{}\n", **fields: str) -> aiohttp.FormData:
    form = aiohttp.FormData()
    # The file first, as curl sends it where -F file comes first.
    form.add_field("file", content, filename="in.jsonl")
    for name, value in {"purpose": "batch", **fields}.items():
        form.add_field(name, value)
    return form


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "data" / "files").iterdir())


async def test_a_file_comes_back_as_it_was_sent(client: openai.AsyncOpenAI, server: Server) -> None:
    content = bytes(range(256)) * 20_000  # several chunks of whatever is read and written at once
    sent = await client.files.create(file=("größe 🙂.jsonl", content), purpose="batch")

    found = await client.files.retrieve(sent.id)
    got = (await client.files.content(sent.id)).content
    async with server.session.head(f"{server.url}{FILES}/{sent.id}/content") as head:
        length = head.headers["Content-Length"]

    assert got == content
    assert found == sent
    assert (sent.bytes, sent.filename, sent.purpose, sent.object) == (len(content), "größe 🙂.jsonl", "batch", "file")
    assert int(length) == len(content)
    assert sent.expires_at is not None
    assert sent.expires_at - sent.created_at == 30 * 86400


async def test_files_are_listed_in_pages_and_by_purpose(client: openai.AsyncOpenAI) -> None:
    made = [(await client.files.create(file=("a", b"x"), purpose="batch")).id for _ in range(3)]

    assert [file.id async for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id async for file in client.files.list(order="asc")] == made
    assert [file.id async for file in client.files.list(purpose="batch_output")] == []


async def test_a_deleted_file_is_gone(client: openai.AsyncOpenAI, server: Server, tmp_path: Path) -> None:
    file_id = (await client.files.create(file=("a", b"x"), purpose="batch")).id

    deleted = await client.files.delete(file_id)

    assert deleted.deleted
    for path in (f"{FILES}/{file_id}", f"{FILES}/{file_id}/content"):
        assert (await server.get(path)).status == 404
    with pytest.raises(openai.NotFoundError):
        await client.files.delete(file_id)
    assert left_in(tmp_path) == []


async def test_a_file_that_a_batch_reads_stays(client: openai.AsyncOpenAI, server: Server) -> None:
    assert server.fake is not None
    server.fake.runner.gate.clear()
    line = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": "tiny", "prompt": "x"}}\n'
    file_id = (await client.files.create(file=("a", line), purpose="batch")).id
    batch = await client.batches.create(input_file_id=file_id, endpoint="/v1/completions", completion_window="24h")

    with pytest.raises(openai.ConflictError, match=batch.id):
        await client.files.delete(file_id)
    # Not even its age takes it away.
    await server.until(lambda: server.state.num_active == 1)
    server.state.wall_clock = lambda: batch.created_at + 31 * 86400.0
    assert server.state.batches is not None
    server.state.batches.store.sweep()
    await server.until(lambda: server.state.num_active == 0)
    server.fake.runner.open()
    async with asyncio.timeout(20):
        while (ended := await client.batches.retrieve(batch.id)).status not in ("completed", "expired"):
            await asyncio.sleep(0.01)

    assert ended.status == "expired"
    assert ended.error_file_id is not None


async def test_a_file_expires(client: openai.AsyncOpenAI, server: Server, tmp_path: Path) -> None:
    expiry = {"anchor": "created_at", "seconds": 3600}
    made = await client.files.create(file=("a", b"x"), purpose="batch", expires_after=expiry)  # type: ignore[arg-type]
    assert made.expires_at == made.created_at + 3600

    server.state.wall_clock = lambda: made.created_at + 3600.0
    assert (await server.get(f"{FILES}/{made.id}")).status == 404
    assert server.state.batches is not None
    server.state.batches.wake()
    await server.until(lambda: left_in(tmp_path) == [])


@pytest.mark.parametrize(
    ("form", "param"),
    [
        (a_form(purpose="fine-tune"), "purpose"),
        (a_form(b""), "file"),
        (aiohttp.FormData({"purpose": "batch"}, default_to_multipart=True), "file"),
        (a_form(**{"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}), "expires_after[anchor]"),
        (a_form(**{"expires_after[anchor]": "created_at", "expires_after[seconds]": "9"}), "expires_after[seconds]"),
        (a_form(**{"expires_after[anchor]": "created_at"}), "expires_after[seconds]"),
        (a_form(purpose="x" * 2000), "purpose"),
    ],
    ids=["purpose", "empty", "no file", "anchor", "seconds", "no seconds", "a long field"],
)
async def test_a_field_that_cannot_be_served_is_named(
    server: Server, tmp_path: Path, form: aiohttp.FormData, param: str
) -> None:
    answer = await send(server, form)

    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert left_in(tmp_path) == []


async def test_two_files_in_one_request_are_refused(server: Server, tmp_path: Path) -> None:
    form = a_form()
    form.add_field("file", b"more", filename="b")

    assert (await send(server, form)).status == 400
    assert left_in(tmp_path) == []


async def test_a_field_that_nobody_knows_is_named_in_a_header(server: Server) -> None:
    assert (await send(server, a_form(colour="blue"))).headers["X-Octavo-Ignored"] == "colour"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data; boundary=b", 400),
        (b"nothing", "multipart/form-data; boundary=b", 400),
        (b"--b\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b", 400),
        (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\ncut', "multipart/form-data; boundary=b", 400),
        (b"--b\r\n" + b"x" * 100_000, "multipart/form-data; boundary=b", 400),
        (b"--b\r\nno header\r\n\r\nx\r\n--b--", "multipart/form-data; boundary=b", 400),
        (b"--b--", "multipart/form-data", 400),
        (
            b'--b\r\nContent-Disposition: form-data; name="file"\r\nContent-Transfer-Encoding: base64\r\n\r\neA==\r\n--b--',
            "multipart/form-data; boundary=b",
            400,
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n' * 30 + b"--b--",
            "multipart/form-data; boundary=b",
            400,
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="m"\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c--\r\n--b--',
            "multipart/form-data; boundary=b",
            400,
        ),
    ],
)
async def test_a_body_that_is_no_form_is_refused(
    server: Server, tmp_path: Path, body: bytes, content_type: str, status: int
) -> None:
    answer = await send(server, body, **{"Content-Type": content_type})

    assert answer.status == status, answer.body
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert left_in(tmp_path) == []


async def test_a_client_that_leaves_in_the_middle_leaves_nothing(server: Server, tmp_path: Path) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 100000\r\n\r\n"
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nbegun'
    )
    await server.until(lambda: left_in(tmp_path) != [])

    writer.close()
    await writer.wait_closed()

    await server.until(lambda: left_in(tmp_path) == [])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"max_stored_files": 1}, "--max-stored-files is 1"),
        ({"max_stored_bytes": 3}, "--max-stored-bytes is 3"),
        ({"max_upload_bytes": 2}, "--max-upload-bytes"),
    ],
)
async def test_what_is_stored_is_bounded(
    tokenizer_folder: Path, tmp_path: Path, config: dict[str, int], words: str
) -> None:
    async with fake_server(tokenizer_folder, data_dir=str(tmp_path / "data"), **config) as server:
        answers = [await send(server, a_form(b"abc")) for _ in range(2)]
        refused = answers[-1].json["error"]
        for file in (await server.get(FILES)).json["data"]:
            async with server.session.delete(f"{server.url}{FILES}/{file['id']}") as deleted:
                assert deleted.status == 200
        again = await send(server, a_form(b"ab"))

    assert answers[-1].status == 400
    assert (refused["code"], words in refused["message"]) == ("storage_full", True)
    assert again.status == 200


async def test_what_is_stored_survives_a_restart_and_what_was_cut_off_does_not(
    tokenizer_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    async with fake_server(tokenizer_folder, data_dir=str(folder)) as server:
        kept = (await send(server, a_form(b"kept"))).json
    (folder / "files" / "file-1.part").write_bytes(b"an upload that a crash cut off")
    (folder / "files" / "file-2.data").write_bytes(b"a file whose record was not yet written")
    (folder / "files" / "file-3.json").write_bytes(b"{ damaged")
    (folder / "files" / "file-3.data").write_bytes(b"what somebody may still want")

    async with fake_server(tokenizer_folder, data_dir=str(folder)) as server:
        listed = (await server.get(FILES)).json["data"]
        content = (await server.get(f"{FILES}/{kept['id']}/content")).body

    assert listed == [kept]
    assert content == b"kept"
    assert left_in(tmp_path) == sorted([f"{kept['id']}.data", f"{kept['id']}.json", "file-3.data", "file-3.json"])


async def test_a_folder_serves_one_server(tokenizer_folder: Path, tmp_path: Path) -> None:
    async with fake_server(tokenizer_folder, data_dir=str(tmp_path)):
        with pytest.raises(ConfigError, match="used by another server"):
            async with fake_server(tokenizer_folder, data_dir=str(tmp_path)):
                pass


async def test_a_folder_that_cannot_be_made_ends_the_start(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"--data-dir .* cannot be used: not a directory"):
        async with fake_server(tokenizer_folder, data_dir=str(tmp_path / "file" / "data")):
            pass


def test_bounds_are_those_of_openai_unless_told() -> None:
    config = ServerConfig()

    assert (config.max_upload_bytes, config.max_batch_lines, config.max_stored_age) == (200 * 2**20, 50_000, 2_592_000)

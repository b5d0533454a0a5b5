"""`octavo run-batch`: the lines of a file, answered by the server's own handlers, with an exit status that says how it went."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from octavo_server import cli
from octavo_server.api.run_batch import BatchJob, run_batch
from octavo_server.api.server import make_state
from octavo_server.config import EngineConfig, ServerConfig
from octavo_server.errors import InvalidRequestError, OctavoError
from octavo_testing.server import NAME, a_chat, a_completion

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SMALL = ("--num-gpu-blocks-override", "200", "--served-model-name", NAME, "--log-level", "error")


@pytest.fixture(autouse=True)
def _own_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "set_up_logging", lambda _: None)


def write_lines(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def a_line(number: int, url: str = COMPLETIONS, **body: Any) -> dict[str, Any]:
    made = a_completion(f"prompt {number}", **body) if url == COMPLETIONS else a_chat(f"question {number}", **body)
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": made}


def run(model: Path, source: object, target: object, *more: str) -> int:
    return cli.main(["run-batch", "-i", str(source), "-o", str(target), "--model", str(model), *SMALL, *more])


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Files:
    """An http server of one file, and what was PUT to it."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.put: list[bytes] = []
        self.url = ""

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/in.jsonl", self._get)
        app.router.add_put("/out.jsonl", self._put)
        return app

    async def _get(self, _: web.Request) -> web.Response:
        return web.Response(body=self.content)

    async def _put(self, request: web.Request) -> web.Response:
        self.put.append(await request.read())
        return web.Response(status=201)


@pytest.fixture
def files() -> Iterator[Files]:
    files, loop, ready = Files(b""), asyncio.new_event_loop(), threading.Event()

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(files.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        files.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        return runner

    def run_loop() -> None:
        runner = loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run_loop, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield files
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def test_every_line_is_answered_in_the_inputs_order(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [COMPLETIONS, CHAT, "/v1/embeddings"]
    lines = [a_line(n, urls[n % 2]) for n in range(20)]
    lines.append({"custom_id": "e", "method": "POST", "url": urls[2], "body": {"model": NAME, "input": "a"}})

    status = run(tiny_model, write_lines(tmp_path / "in.jsonl", *lines), tmp_path / "out.jsonl")

    found = entries(tmp_path / "out.jsonl")
    assert status == 0
    assert [entry["custom_id"] for entry in found] == [line["custom_id"] for line in lines]
    assert all(entry["response"]["status_code"] == 200 for entry in found)
    assert {entry["response"]["body"]["object"] for entry in found} == {"text_completion", "chat.completion", "list"}
    assert "21 of 21 lines answered, 0 failed" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_lines_that_fail_are_in_the_output_and_in_the_status(tiny_model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", a_line(1), "no json", a_line(3, temperature=9))

    status = run(tiny_model, source, tmp_path / "out.jsonl")

    good, bad, refused = entries(tmp_path / "out.jsonl")
    assert status == 1
    assert good["response"]["status_code"] == 200
    assert (bad["error"]["line"], bad["response"]) == (2, None)
    assert refused["response"]["body"]["error"]["param"] == "temperature"


def test_input_and_output_may_be_addresses(tiny_model: Path, tmp_path: Path, files: Files) -> None:
    files.content = write_lines(tmp_path / "in.jsonl", a_line(1)).read_bytes()
    (tmp_path / "tmp").mkdir()

    status = run(
        tiny_model, f"{files.url}/in.jsonl", f"{files.url}/out.jsonl?sig=x", "--output-tmp-dir", str(tmp_path / "tmp")
    )

    assert status == 0
    assert [json.loads(body)["custom_id"] for body in files.put] == ["line-1"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_results_that_could_not_be_sent_are_kept(
    tiny_model: Path, tmp_path: Path, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", a_line(1))

    status = run(tiny_model, source, f"{files.url}/nowhere?sig=secret", "--output-tmp-dir", str(tmp_path))

    message = capsys.readouterr().err
    assert status == 1
    assert "answered 404; the results are in" in message
    assert "secret" not in message
    (kept,) = [path for path in tmp_path.iterdir() if path.name.startswith("output.") and path.suffix == ".jsonl"]
    assert len(entries(kept)) == 1


async def test_a_run_that_was_cut_off_goes_on_where_it_ended(tiny_model: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", *(a_line(n, max_tokens=n + 1, ignore_eos=True) for n in range(12)))
    job = BatchJob(input_file=str(source), output_file=str(tmp_path / "out.jsonl"), tmp_dir=None)

    def a_state() -> Any:
        engine = EngineConfig(model=str(tiny_model), num_gpu_blocks_override=200, max_num_seqs=2)
        return make_state(engine, ServerConfig(served_model_name=(NAME,)))

    def cut_off(counts: Any) -> None:
        if counts.completed >= 5:
            raise RuntimeError("the power is gone")

    with pytest.raises(RuntimeError, match="power"):
        await run_batch(a_state(), job, cut_off)
    (partial,) = tmp_path.glob("*.partial")
    before = [line.split(b"\t", 1)[1] for line in partial.read_bytes().splitlines()]
    again, progress = a_state(), []
    counts = await run_batch(again, job, lambda now: progress.append(now.completed))

    assert len(before) == progress[0] >= 5
    assert again.engine.num_accepted == 12 - len(before)
    assert (counts.total, counts.completed) == (12, 12)
    whole = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert set(before) <= set(whole)
    assert [json.loads(line)["custom_id"] for line in whole] == [f"line-{n}" for n in range(12)]
    assert not list(tmp_path.glob("*.partial"))


async def test_another_input_takes_nothing_from_a_run_that_was_cut_off(tiny_model: Path, tmp_path: Path) -> None:
    engine = EngineConfig(model=str(tiny_model), num_gpu_blocks_override=200)
    config = ServerConfig(served_model_name=(NAME,))
    job = BatchJob(input_file=str(tmp_path / "in.jsonl"), output_file=str(tmp_path / "out.jsonl"), tmp_dir=None)

    def cut_off(counts: Any) -> None:
        if counts.completed:
            raise RuntimeError

    write_lines(tmp_path / "in.jsonl", a_line(1))
    with pytest.raises(RuntimeError):
        await run_batch(make_state(engine, config), job, cut_off)
    write_lines(tmp_path / "in.jsonl", a_line(2))
    seen: list[int] = []
    await run_batch(make_state(engine, config), job, lambda now: seen.append(now.completed))

    assert seen[0] == 0
    assert [entry["custom_id"] for entry in entries(tmp_path / "out.jsonl")] == ["line-2"]


@pytest.mark.parametrize(
    ("lines", "words"),
    [((a_line(1), a_line(1)), "line 1"), (("{}",), "custom_id"), (("",), "no lines")],
    ids=["an id twice", "none can run", "empty"],
)
async def test_an_input_that_cannot_run_is_refused_before_the_model_is_loaded(
    tmp_path: Path, lines: tuple[Any, ...], words: str
) -> None:
    job = BatchJob(
        input_file=str(write_lines(tmp_path / "in.jsonl", *lines)),
        output_file=str(tmp_path / "out.jsonl"),
        tmp_dir=None,
    )

    with pytest.raises(InvalidRequestError, match=words):
        await run_batch(make_state(EngineConfig(model="/nowhere"), ServerConfig()), job, lambda _: None)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [("/nowhere.jsonl", "out.jsonl", "is no file"), ("in.jsonl", "/nowhere/out.jsonl", "/nowhere is no folder")],
)
async def test_places_that_are_not_there_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, target: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "in.jsonl", a_line(1))
    job = BatchJob(input_file=source, output_file=target, tmp_dir=None)

    with pytest.raises(OctavoError, match=words):
        await run_batch(make_state(EngineConfig(model="/nowhere"), ServerConfig()), job, lambda _: None)


async def test_a_model_that_cannot_be_loaded_ends_it(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", a_line(1))
    job = BatchJob(input_file=str(source), output_file=str(tmp_path / "out.jsonl"), tmp_dir=None)

    with pytest.raises(OctavoError, match="/nowhere does not exist"):
        await run_batch(make_state(EngineConfig(model="/nowhere"), ServerConfig()), job, lambda _: None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["-i", "a", "-o", "b"], "--model is missing"),
        (["--model", "m", "-o", "b"], "--input-file is missing"),
        (["--model", "m", "-i", "a", "-o", "b", "--port", "1"], "unknown flag --port"),
    ],
)
def test_a_flag_that_is_missing_or_means_nothing_is_named(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run-batch", *argv]) == 2
    assert words in capsys.readouterr().err

"""Against a local server that speaks the hub's protocol, through the library that people use."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from octavo_server.errors import StartupError
from octavo_server.sources.hub import TEXT_FILES, fetch_model
from octavo_server.sources.uri import HubModel

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": bytes(range(256)) * 4096,
    "tokenizer.json": b"{}",
    "weights/small.gguf": b"GGUF",
    "pytorch_model.bin": b"never fetched",
    "README.md": b"never fetched",
}


class Hub:
    """One repository, org/model; counts what is asked of it."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.url = ""

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/org/model/revision/{revision}", self._info)
        app.router.add_get("/api/models/org/model/tree/{revision}", self._tree)
        app.router.add_get("/org/model/resolve/{revision}/{file:.+}", self._file)
        app.router.add_route("*", "/{rest:.*}", self._missing)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        if self.refusal is not None:
            status, code = self.refusal
            return web.json_response({"error": code}, status=status, headers={"X-Error-Code": code})
        if request.match_info["revision"] not in ("main", COMMIT):
            return web.json_response({}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return web.json_response({"id": "org/model", "sha": COMMIT, "siblings": []})

    async def _tree(self, request: web.Request) -> web.Response:
        return web.json_response(
            [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
        )

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["file"]
        data = FILES[name]
        if request.method == "GET":
            self.fetched.append(name)
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        return web.Response(body=data, headers=headers)

    async def _missing(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=404, headers={"X-Error-Code": "RepoNotFound"})


@pytest.fixture
def hub() -> Iterator[Hub]:
    """The hub, in a thread of its own: the library's client blocks."""
    hub, loop, ready = Hub(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(hub.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        hub.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        ready.set()
        return runner

    def run() -> None:
        runner = loop.run_until_complete(serve())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    yield hub
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def _fetch(
    hub: Hub, repository: str = "org/model", file: str = "", revision: str | None = None
) -> tuple[Path, list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    model = HubModel(repository=repository, file=file, revision=revision)
    path = fetch_model(model, on_bytes=lambda *pair: seen.append(pair), endpoint=hub.url)
    return path, seen


def test_fetches_what_serving_reads_and_nothing_else(hub: Hub) -> None:
    path, _ = _fetch(hub)

    assert sorted(hub.fetched) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (path / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_counts_every_byte(hub: Hub) -> None:
    _, seen = _fetch(hub)

    total = sum(len(FILES[name]) for name in ("config.json", "model.safetensors", "tokenizer.json"))
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


def test_a_second_start_fetches_nothing(hub: Hub) -> None:
    _fetch(hub)
    hub.fetched.clear()

    _fetch(hub)

    assert hub.fetched == []


def test_what_is_in_the_cache_needs_no_network(hub: Hub) -> None:
    first, _ = _fetch(hub)
    hub.url = "http://127.0.0.1:9"

    again, _ = _fetch(hub)

    assert again == first


def test_one_gguf_file_of_a_repository(hub: Hub) -> None:
    path, _ = _fetch(hub, file="weights/small.gguf")

    assert path.read_bytes() == b"GGUF"
    assert hub.fetched == ["weights/small.gguf"]


@pytest.mark.parametrize(
    ("name", "revision", "refusal", "reason", "words"),
    [
        ("org/other", None, None, "ModelNotFound", "no model org/other"),
        ("org/model", "v9", None, "ModelNotFound", "no revision v9"),
        ("org/model/absent.gguf", None, None, "ModelNotFound", "no file absent.gguf"),
        ("org/model", None, (403, "GatedRepo"), "ModelAccessDenied", "HF_TOKEN"),
        ("org/model", None, (503, ""), "DownloadStalled", "org/model"),
    ],
)
def test_says_why_it_cannot(
    hub: Hub, name: str, revision: str | None, refusal: tuple[int, str] | None, reason: str, words: str
) -> None:
    hub.refusal = refusal

    with pytest.raises(StartupError, match=words) as caught:
        _fetch(hub, "/".join(name.split("/")[:2]), name.partition("model/")[2], revision)

    assert caught.value.reason == reason


def test_configuration_and_tokenizer_without_weights(hub: Hub) -> None:
    fetch_model(HubModel(repository="org/model"), on_bytes=lambda *_: None, files=TEXT_FILES, endpoint=hub.url)

    assert sorted(hub.fetched) == ["config.json", "tokenizer.json"]

"""A local server that speaks the hub's protocol, for the library that people use."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "model.safetensors": bytes(range(256)) * 4096,
    "tokenizer.json": b"{}",
    "weights/small.gguf": b"GGUF",
    "pytorch_model.bin": b"never fetched",
    "README.md": b"never fetched",
}


def _sibling(name: str) -> dict[str, object]:
    data = FILES[name]
    git = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
    large = {"lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}}
    return {"rfilename": name, "size": len(data), "blobId": git, **(large if len(data) > 1000 else {})}


class Hub:
    """One repository, org/model; counts what is asked of it."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.refusal: tuple[int, str] | None = None
        self.url = ""
        self.damaged: set[str] = set()
        """Files of which the last byte comes wrong."""
        self.cut: set[str] = set()
        """Files of which half comes, once."""
        self.ranges: list[int] = []
        """Where resumed downloads went on."""

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/api/models/org/model", self._info)
        app.router.add_get("/api/models/org/model/revision/{revision}", self._info)
        app.router.add_get("/api/models/org/model/tree/{revision}", self._tree)
        app.router.add_get("/org/model/resolve/{revision}/{file:.+}", self._file)
        app.router.add_route("*", "/{rest:.*}", self._missing)
        return app

    async def _info(self, request: web.Request) -> web.Response:
        if self.refusal is not None:
            status, code = self.refusal
            return web.json_response({"error": code}, status=status, headers={"X-Error-Code": code})
        if request.match_info.get("revision", "main") not in ("main", COMMIT):
            return web.json_response({}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
        return web.json_response({"id": "org/model", "sha": COMMIT, "siblings": [_sibling(name) for name in FILES]})

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
        if request.method == "GET" and name in self.damaged:
            data = data[:-1] + b"?"
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if request.method == "GET" and name in self.cut:
            self.cut.remove(name)
            return await self._cut_off(request, data)
        self.ranges += [start] if start else []
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return web.Response(body=data[start:], headers=headers, status=206 if start else 200)

    async def _cut_off(self, request: web.Request, data: bytes) -> web.StreamResponse:
        """Half of it, then the connection ends."""
        response = web.StreamResponse(headers={"ETag": f'"{hashlib.sha1(data).hexdigest()}"'})
        response.content_length = len(data)
        await response.prepare(request)
        await response.write(data[: len(data) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    async def _missing(self, request: web.Request) -> web.Response:
        return web.json_response({}, status=404, headers={"X-Error-Code": "RepoNotFound"})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The hub, in a thread of its own: the library's client blocks."""
    hub, loop, ready = Hub(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> web.AppRunner:
        runner = web.AppRunner(hub.application(), shutdown_timeout=1.0)
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

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield hub
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)

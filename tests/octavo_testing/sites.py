"""Local endpoints that models are fetched from: an HTTPS site and a container registry, both with faults on demand.

S3 and Google's XML interface are moto's, which nobody of us wrote.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trustme
from aiohttp import web


class Site:
    """Serves `files` by path; tells what was asked of it."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.url = ""
        self.tls: ssl.SSLContext | None = None
        self.asked: list[tuple[str, int]] = []
        """(path, first byte) of each GET."""
        self.statuses: list[int] = []
        """Of the next answers; empty: as is due."""
        self.cuts: list[int] = []
        """After so many bytes the next bodies end without a word."""
        self.holds_after: int | None = None
        """After so many bytes bodies wait until the client is gone."""
        self.token = ""
        """Bearer token that is wanted; empty: none."""
        self.redirects: dict[str, str] = {}
        self.has_tags = True
        self.has_ranges = True

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/{path:.*}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if self.statuses:
            return web.Response(status=self.statuses.pop(0))
        if request.path in self.redirects:
            raise web.HTTPFound(self.redirects[request.path])
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        if request.method == "GET":
            self.asked.append((request.path, start))
        data = self.files.get(request.path)
        if data is None:
            return web.Response(status=404)
        return await self.body(request, data, start)

    async def body(self, request: web.Request, data: bytes, start: int) -> web.StreamResponse:
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        if not self.has_ranges or request.headers.get("If-Range", tag) != tag:
            start = 0
        response = web.StreamResponse(status=206 if start else 200, headers={"ETag": tag} if self.has_tags else {})
        response.content_length = len(data) - start
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        end = start + self.cuts.pop(0) if self.cuts else len(data)
        rest = data[start:end]
        await response.write(rest[: self.holds_after])
        while self.holds_after is not None and request.transport is not None:
            await asyncio.sleep(0.02)
        await response.write(rest[self.holds_after or len(rest) :])
        if len(rest) < len(data) - start and request.transport is not None:
            request.transport.close()
        return response


class Registry(Site):
    """The pull side of the distribution specification, with the token protocol where a login is set."""

    def __init__(self) -> None:
        super().__init__({})
        self.login: tuple[str, str] | None = None
        self.manifests: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.tokens = 0

    @property
    def address(self) -> str:
        return self.url.partition("://")[2]

    def push(
        self, repository: str, tag: str, files: Mapping[str, bytes], kind: str = "application/octet-stream"
    ) -> str:
        """As `oras push`; gives the manifest's digest."""
        return self.push_layers(
            repository,
            tag,
            [
                {"mediaType": kind, "annotations": {"org.opencontainers.image.title": name}, "data": data}
                for name, data in files.items()
            ],
        )

    def push_layers(self, repository: str, tag: str, layers: list[dict[str, object]]) -> str:
        described = []
        for layer in layers:
            data = layer["data"]
            assert isinstance(data, bytes)
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.blobs[digest] = data
            rest = {key: value for key, value in layer.items() if key != "data"}
            described.append({"digest": digest, "size": len(data), **rest})
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "artifactType": "application/vnd.example.model",
                "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "sha256:44", "size": 2},
                "layers": described,
            }
        ).encode()
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        self.manifests[f"{repository}:{tag}"] = self.manifests[f"{repository}:{digest}"] = manifest
        return digest

    def application(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/token", self._give_token)
        app.router.add_get("/v2/{repository:.+}/manifests/{reference}", self._manifest)
        app.router.add_get("/v2/{repository:.+}/blobs/{digest}", self._blob)
        return app

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.login is None or request.headers.get("Authorization") == f"Bearer t{self.tokens}":
            return None
        challenge = f'Bearer realm="{self.url}/token",service="{self.address}",scope="repository:x:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    async def _give_token(self, request: web.Request) -> web.Response:
        assert self.login is not None
        basic = base64.b64encode(":".join(self.login).encode()).decode()
        if request.headers.get("Authorization") != f"Basic {basic}" or request.query["service"] != self.address:
            return web.Response(status=401)
        self.tokens += 1
        return web.json_response({"token": f"t{self.tokens}"})

    async def _manifest(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if request.method == "GET" and "application/vnd.oci.image.manifest.v1+json" not in request.headers["Accept"]:
            return web.Response(status=404)
        data = self.manifests.get(f"{request.match_info['repository']}:{request.match_info['reference']}")
        return web.Response(body=data) if data is not None else web.Response(status=404)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        digest = request.match_info["digest"]
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if request.method == "GET":
            self.asked.append((digest, start))
        return await self.body(request, self.blobs[digest], start)


@contextmanager
def running_site(site: Site, tls: ssl.SSLContext | None = None) -> Iterator[None]:
    """In a thread of its own: those who fetch block."""
    site.tls = tls
    loop, is_open = asyncio.new_event_loop(), threading.Event()

    async def serve() -> AsyncIterator[None]:
        runner = web.AppRunner(site.application(), shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        site.url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        is_open.set()
        yield
        await runner.cleanup()

    def run() -> None:
        life = serve()
        loop.run_until_complete(anext(life))
        loop.run_forever()
        loop.run_until_complete(anext(life, None))
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert is_open.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def own_authority(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS for 127.0.0.1, and the file with the authority that signed it."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    path = folder / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return context, path

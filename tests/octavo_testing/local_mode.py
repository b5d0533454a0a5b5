"""Builders for the tests of local mode: manifests, and `octavo up` as a real process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml

WAIT_S = 30.0


def a_manifest(name: str = "tiny", *, model: str = "file:///models/tiny.gguf", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "octavo.dev/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name},
        "spec": {"model": model, "resources": {"gpu": {"count": 0}}, **spec},
    }


def write_manifests(path: Path, *manifests: dict[str, Any]) -> Path:
    path.write_text("---\n".join(yaml.safe_dump(manifest) for manifest in manifests))
    return path


def a_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Up:
    """A running `octavo up`."""

    process: asyncio.subprocess.Process
    port: int
    home: Path
    lines: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    readers: list[asyncio.Task[None]] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    """Every child that was ever looked up, so that a failing test leaves none of them."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def folder(self) -> Path:
        """Where this run keeps its state and logs."""
        return self.home / "octavo" / f"up-{self.process.pid}"

    @property
    def state(self) -> dict[str, Any]:
        path = self.folder / "state.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def children(self) -> list[int]:
        """Processes that it started and that live."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = [int(pid) for pid in path.read_text().split()] if path.exists() else []
        self.seen.update(found)
        return found

    def row(self, model: str) -> dict[str, Any]:
        return next((dict(row) for row in self.state.get("models", ()) if row["model"] == model), {})

    async def until(self, condition: Callable[[], bool], *, within_s: float = WAIT_S) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError("\n".join([*self.lines, *self.errors, str(self.state)])) from None

    async def until_said(self, words: str, *, within_s: float = WAIT_S) -> None:
        await self.until(lambda: any(words in line for line in [*self.lines, *self.errors]), within_s=within_s)

    async def until_ready(self, model: str, *, within_s: float = WAIT_S) -> None:
        await self.until(lambda: self.row(model).get("ready") is True, within_s=within_s)

    async def end(self, number: signal.Signals = signal.SIGINT, *, within_s: float = WAIT_S) -> int:
        self.process.send_signal(number)
        return await self.ended(within_s=within_s)

    async def ended(self, *, within_s: float = WAIT_S) -> int:
        async with asyncio.timeout(within_s):
            await asyncio.gather(*self.readers)
            return await self.process.wait()

    async def ask(self, model: str, **fields: Any) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as client,
            client.post(f"{self.url}/v1/chat/completions", json={"model": model, **fields}) as response,
        ):
            return response.status, json.loads(await response.read())


@contextlib.asynccontextmanager
async def running_up(command: Sequence[str], home: Path, *arguments: str, **env: str) -> AsyncIterator[Up]:
    """`command` is what precedes the arguments of `octavo up`; whatever is left at the end is killed."""
    port = a_free_port()
    process = await asyncio.create_subprocess_exec(
        *command,
        *arguments,
        f"--port={port}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "XDG_STATE_HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **env},
    )
    up = Up(process, port, home)
    up.readers = [
        asyncio.create_task(_read(process.stdout, up.lines)),
        asyncio.create_task(_read(process.stderr, up.errors)),
    ]
    try:
        yield up
    finally:
        left = {*up.children, *up.seen}
        if process.returncode is None:
            process.kill()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*up.readers)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie still answers to signal 0.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def _read(stream: asyncio.StreamReader | None, into: list[str]) -> None:
    assert stream is not None
    async for line in stream:
        into.append(line.decode().rstrip())

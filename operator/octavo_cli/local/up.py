"""`octavo up FILE…`: run ModelDeployments on this machine until Ctrl-C, which drains; a second one ends at once."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp
from rich.console import Console

from octavo_cli.errors import CliError
from octavo_gateway.app import Gateway, running_gateway
from octavo_gateway.config import GatewayConfig
from octavo_gateway.endpoints import RoutingTable
from octavo_gateway.errors import CannotListen
from octavo_gateway.metrics import Metrics
from octavo_gateway.static_source import StaticSource
from octavo_operator.api.types import ModelDeployment

from . import launch, manifests
from .deployment import LocalDeployment
from .replica import Replica, default_server_command
from .screen import Screen, make_screen
from .state import ReplicaState, RunFolder, state_home


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    files: tuple[str, ...]
    mounts: tuple[str, ...] = ()
    host: str = launch.LOOPBACK
    port: int = 8080
    internal_port: int = 0
    audit_log: str = ""


def main(argv: Sequence[str]) -> int:
    options = parse(argv)
    if importlib.util.find_spec("torch") is None:
        raise CliError("`octavo up` needs the package 'torch'; pip install 'octavo[server]'")
    try:
        return asyncio.run(up(options, Console(), server_command=default_server_command()))
    except CannotListen as error:
        raise CliError(f"{error}; try another --port") from error


def parse(argv: Sequence[str]) -> UpOptions:
    parser = argparse.ArgumentParser(prog="octavo up", description=(__doc__ or "").split(": ", 1)[-1])
    parser.add_argument("files", nargs="+", metavar="FILE", help="YAML with ModelDeployments; - is standard input")
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="PATH=DIR",
        help="where a path of a file:// model lies on this machine, such as /models=$HOME/models; may be repeated",
    )
    parser.add_argument("--host", default=launch.LOOPBACK, help="address that the gateway listens on (%(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port of the OpenAI-compatible API (%(default)s)")
    parser.add_argument(
        "--internal-port", type=int, default=0, help="port of /metrics /healthz /readyz /held; 0 takes a free one (0)"
    )
    parser.add_argument(
        "--audit-log",
        default="",
        metavar="FILE",
        help="JSON line of each request whose model wants it (access.audit); - is standard output; default: none",
    )
    given = parser.parse_args(argv)
    return UpOptions(
        files=tuple(given.files),
        mounts=tuple(given.mount),
        host=given.host,
        port=given.port,
        internal_port=given.internal_port,
        audit_log=given.audit_log,
    )


async def up(options: UpOptions, console: Console, *, server_command: Sequence[str]) -> int:
    """Everything, from the manifests to the end of the last process."""
    loaded = manifests.load_manifests(options.files)
    mounts = launch.parse_mounts(options.mounts)
    resources = [launch.on_this_machine(manifest.resource, mounts) for manifest in loaded]
    gpus = launch.find_gpus(os.environ)
    stop = _stop_signals()
    folder = RunFolder(state_home(os.environ), pid=os.getpid(), now_s=time.time())
    session = LocalSession(folder, make_screen(console), loaded)
    config = GatewayConfig(
        host=options.host, port=options.port, internal_port=options.internal_port, audit_log=options.audit_log
    )
    try:
        async with (
            running_gateway(config, session.make_source, random.Random()) as gateway,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True)) as http,
        ):
            session.gateway = gateway
            for manifest, launches in zip(loaded, launch.plan_launches(resources, gpus), strict=True):
                replicas = [
                    Replica(each, folder.path, http, session.publish, server_command=server_command)
                    for each in launches
                ]
                session.deployments.append(LocalDeployment(manifest, replicas, gpus))
            with session.screen:
                session.greet(options.host, [note for resource in resources for note in _notes(resource, gpus)])
                await session.run(stop)
    finally:
        folder.close(keep_logs=session.has_failures)
    if session.has_failures:
        print(f"replicas failed; their logs are in {folder.path}", file=sys.stderr)
    return 0


class LocalSession:
    """Owns the deployments of one `octavo up`, tells the gateway and the screen of each change."""

    def __init__(self, folder: RunFolder, screen: Screen, loaded: Sequence[manifests.Manifest]) -> None:
        self._manifests = loaded
        self.deployments: list[LocalDeployment] = []
        self.screen = screen
        self.gateway: Gateway | None = None
        self._folder = folder
        self._source: StaticSource | None = None
        self._created_s = time.time()
        self._host = ""

    @property
    def replicas(self) -> list[Replica]:
        return [replica for deployment in self.deployments for replica in deployment.replicas]

    @property
    def has_failures(self) -> bool:
        return any(replica.has_failed for replica in self.replicas)

    def make_source(self, publish: Callable[[RoutingTable], None], _: Metrics) -> StaticSource:
        secrets = {name: entries for manifest in self._manifests for name, entries in manifest.secrets.items()}
        self._source = StaticSource(publish, secrets=secrets)
        return self._source

    def greet(self, host: str, notes: Sequence[str]) -> None:
        self._host = host
        names = [name for deployment in self.deployments for name in deployment.manifest.resource.served_names]
        self.screen.say(f"{self._url('port')}/v1 serves {', '.join(names)}; Ctrl-C drains and ends")
        self.screen.say(f"metrics of the gateway: {self._url('internal_port')}/metrics; logs: {self._folder.path}")
        for note in notes:
            self.screen.say(note)
        self.publish()

    def publish(self) -> None:
        """The one way in which a change of a replica reaches gateway, screen and state file."""
        assert self._source is not None
        self._source.set_models(deployment.routing(created_s=self._created_s) for deployment in self.deployments)
        rows = [deployment.row for deployment in self.deployments]
        self.screen.show(rows)
        replicas = [
            ReplicaState(
                model=deployment.manifest.resource.name,
                name=replica.name,
                url=replica.url if replica.pid is not None else "",
                is_ready=replica.is_ready,
            )
            for deployment in self.deployments
            for replica in deployment.replicas
        ]
        urls = {"url": self._url("port"), "internal_url": self._url("internal_port")}
        self._folder.write(**urls, rows=rows, replicas=replicas)

    async def run(self, stop: asyncio.Queue[int]) -> None:
        running = [asyncio.create_task(replica.run()) for replica in self.replicas]
        ticker = asyncio.create_task(self._tick())
        try:
            await self._until_stopped(stop, running)
            self.screen.say("draining: running requests finish; Ctrl-C again ends now")
            drain = asyncio.create_task(self._drain())
            again = asyncio.create_task(stop.get())
            await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
            for task in (drain, again):
                task.cancel()
            await asyncio.gather(drain, again, return_exceptions=True)
        finally:
            for replica in self.replicas:
                replica.kill()
            ticker.cancel()
            await asyncio.gather(ticker, *running, return_exceptions=True)

    async def _until_stopped(self, stop: asyncio.Queue[int], running: Sequence[asyncio.Task[None]]) -> None:
        """Wait for a signal; a replica's task that fails by a fault of ours ends everything with its traceback."""
        stopped = asyncio.create_task(stop.get())
        done, _ = await asyncio.wait({stopped, *running}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for task in done - {stopped}:
            task.result()

    async def _drain(self) -> None:
        """No new requests; what runs finishes; then the servers end."""
        assert self.gateway is not None
        for deployment in self.deployments:
            deployment.is_draining = True
        self.publish()
        longest_s = max(deployment.drain_timeout_s for deployment in self.deployments)
        await self.gateway.drain(delay_s=0.0, timeout_s=longest_s)
        await asyncio.gather(
            *(
                replica.stop(timeout_s=deployment.drain_timeout_s)
                for deployment in self.deployments
                for replica in deployment.replicas
            )
        )

    async def _tick(self) -> None:
        """Plain lines tell progress even while nothing changes by name."""
        while True:
            await asyncio.sleep(1.0)
            self.screen.show([deployment.row for deployment in self.deployments])

    def _url(self, port: str) -> str:
        host = self._host if self._host not in ("", "0.0.0.0", "::") else launch.LOOPBACK
        return f"http://{host}:{getattr(self.gateway, port)}"


def _notes(resource: ModelDeployment, gpus: Sequence[str]) -> list[str]:
    return [f"{resource.name}: {note}" for note in launch.notes(resource, gpus)]


def _stop_signals() -> asyncio.Queue[int]:
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, signals.put_nowait, number)
    return signals

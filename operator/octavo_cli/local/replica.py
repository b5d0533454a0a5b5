"""One replica: a server process that is started, watched, restarted with back-off, and drained at the end.

Does here what a kubelet does: the probes are the pod's, the termination log is read, and the facts are told in the
shape of a pod's status, so that the operator's own diagnosis explains them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from octavo_cli.child_process import end_with_parent
from octavo_operator.desired import names
from octavo_operator.observed import Pod, Startup

from .launch import LOOPBACK, Launch

logger = logging.getLogger(__name__)

POLL_EVERY_S = 0.3
PROBE_TIMEOUT_S = 5.0
LIVENESS_EVERY_S = 10.0
LIVENESS_FAILURES = 3
MUST_LISTEN_WITHIN_S = 180.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
STEADY_AFTER_S = 60.0
"""A replica that was ready so long starts its back-off anew."""
KILL_AFTER_S = 10.0
"""Seconds beyond the drain time-out after which a server that does not end is killed."""
LAST_LINES_BYTES = 2048
REVISION = "local"


class Replica:
    """Owns one process at a time and the facts about it; ``changed`` is called after each change of them."""

    def __init__(
        self,
        launch: Launch,
        folder: Path,
        http: aiohttp.ClientSession,
        changed: Callable[[], None],
        *,
        server_command: Sequence[str],
    ) -> None:
        self.launch = launch
        self.startup: Startup | None = None
        self.is_ready = False
        self.is_draining = False
        self.restarts = 0
        self.has_failed = False
        """Its server ended at least once by itself."""
        self.log_path = folder / f"{launch.name}.log"
        self._termination_path = folder / f"{launch.name}.termination"
        self._http = http
        self._changed = changed
        self._server_command = list(server_command)
        self._process: asyncio.subprocess.Process | None = None
        self._port = 0
        self._ended: dict[str, Any] | None = None
        self._failures_in_a_row = 0
        self._stop = asyncio.Event()

    @property
    def name(self) -> str:
        return self.launch.name

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def pod(self) -> Pod:
        """The facts as a pod's status."""
        metadata: dict[str, Any] = {"name": self.name, "labels": {names.REVISION_LABEL: REVISION}}
        if self.is_draining:
            metadata["deletionTimestamp"] = "now"
        conditions = [{"type": "Ready", "status": str(self.is_ready)}]
        if self.launch.is_waiting_for_gpu:
            gpu = self.launch.resource.spec.resources.gpu.resource_name
            conditions.append({"type": "PodScheduled", "status": "False", "message": f"Insufficient {gpu}"})
        is_backing_off = self._process is None and self._ended is not None
        state = {"waiting": {"reason": "BackOff"}} if is_backing_off else {"running": {"startedAt": "then"}}
        server = {
            "name": names.CONTAINER,
            "restartCount": self.restarts,
            "state": state,
            "lastState": {"terminated": self._ended} if self._ended else {},
        }
        return Pod(raw={"metadata": metadata, "status": {"conditions": conditions, "containerStatuses": [server]}})

    async def run(self) -> None:
        """Keep a server running until ``stop``; ends when its process has."""
        if self.launch.is_waiting_for_gpu:
            await self._stop.wait()
            return
        while not self._stop.is_set():
            began = time.monotonic()
            self._process = await self._start()
            if self._stop.is_set():
                # The order to end came while there was no process yet to be told.
                self._kill_group(self._process.pid)
            self._changed()
            watcher = asyncio.create_task(self._watch(began))
            try:
                code = await self._process.wait()
            finally:
                watcher.cancel()
                await asyncio.gather(watcher, return_exceptions=True)
                self._kill_group(self._process.pid)
            self._note_end(code)
            if not self._stop.is_set():
                await self._back_off()

    async def stop(self, *, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL to what has not ended within the time-out; the server drains in between."""
        self._stop.set()
        self.is_draining = True
        self._changed()
        process = self._process
        if process is None:
            return
        self._signal(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), timeout_s + KILL_AFTER_S)
        except TimeoutError:
            logger.warning("a server did not end and is killed", extra={"replica": self.name})
            self.kill()

    def kill(self) -> None:
        self._stop.set()
        if self._process is not None:
            self._kill_group(self._process.pid)

    async def _start(self) -> asyncio.subprocess.Process:
        self._port = free_port()
        self.startup, self.is_ready = None, False
        self._termination_path.unlink(missing_ok=True)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_suffix(".previous.log"))
        env = {
            **os.environ,
            **self.launch.environment,
            "OCTAVO_TERMINATION_LOG": str(self._termination_path),
            "PYTHONUNBUFFERED": "1",
        }
        with self.log_path.open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *self._server_command,
                *self.launch.arguments(self._port),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                env=env,
                # A session of its own: Ctrl-C at the terminal reaches `octavo up` alone, which drains first.
                start_new_session=True,
                preexec_fn=end_with_parent,
            )

    async def _watch(self, began: float) -> None:
        """The three probes, until cancelled."""
        ready_since: float | None = None
        failures, next_liveness = 0, began + LIVENESS_EVERY_S
        while True:
            self._note(*await self._probe())
            now = time.monotonic()
            if self.is_ready:
                ready_since = ready_since or now
                if now - ready_since >= STEADY_AFTER_S:
                    self._failures_in_a_row = 0
            if self.startup is None and now - began > MUST_LISTEN_WITHIN_S:
                self._give_up("it did not listen")
            if self.startup is not None and now >= next_liveness:
                next_liveness = now + LIVENESS_EVERY_S
                failures = 0 if await self._get("/health") is not None else failures + 1
                if failures >= LIVENESS_FAILURES:
                    self._give_up("its /health failed")
            await asyncio.sleep(POLL_EVERY_S)

    async def _probe(self) -> tuple[Startup | None, bool]:
        if await self._get("/ready") is not None:
            return Startup(stage="ready"), True
        answer = await self._get("/startup")
        if answer is None:
            return self.startup, False
        return (
            Startup(
                stage=str(answer.get("stage", "")),
                done_bytes=int(answer.get("bytes") or 0),
                total_bytes=int(answer.get("total_bytes") or 0),
                message=str(answer.get("message", "")),
            ),
            False,
        )

    async def _get(self, path: str) -> dict[str, Any] | None:
        """The JSON of a 200, {} where it has none; None for anything else."""
        try:
            async with self._http.get(
                self.url + path, timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
            ) as response:
                if response.status != 200:
                    return None
                try:
                    answer = await response.json(content_type=None)
                except ValueError:
                    return {}
                return answer if isinstance(answer, dict) else {}
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None

    def _note(self, startup: Startup | None, is_ready: bool) -> None:
        if (startup, is_ready) != (self.startup, self.is_ready):
            self.startup, self.is_ready = startup, is_ready
            self._changed()

    def _note_end(self, code: int) -> None:
        self.has_failed = self.has_failed or not self._stop.is_set()
        # A shell's and the kubelet's way to write a signal: 128 and its number.
        self._ended = {"exitCode": code if code >= 0 else 128 - code, "message": self._last_words()}
        self._process, self.startup, self.is_ready = None, None, False
        self._changed()

    def _last_words(self) -> str:
        """The termination log, else the end of the log, as `FallbackToLogsOnError` does."""
        for path in (self._termination_path, self.log_path):
            try:
                text = path.read_bytes()[-LAST_LINES_BYTES:].decode(errors="replace").strip()
            except OSError:
                continue
            if text:
                return text
        return ""

    async def _back_off(self) -> None:
        pause_s = backoff_s(self._failures_in_a_row)
        self._failures_in_a_row += 1
        try:
            await asyncio.wait_for(self._stop.wait(), pause_s)
        except TimeoutError:
            self.restarts += 1

    def _give_up(self, why: str) -> None:
        logger.warning("a server is killed and started again", extra={"replica": self.name, "why": why})
        if self._process is not None:
            self._kill_group(self._process.pid)

    def _kill_group(self, pid: int) -> None:
        """The server and whatever it started; its session has its own process group."""
        self._signal(pid, signal.SIGKILL, group=True)

    @staticmethod
    def _signal(pid: int, number: signal.Signals, *, group: bool = False) -> None:
        try:
            (os.killpg if group else os.kill)(pid, number)
        except ProcessLookupError:
            return


def default_server_command() -> list[str]:
    return [sys.executable, "-m", "octavo_cli", "serve"]


def backoff_s(failures_before: int) -> float:
    return float(min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures_before, 10)))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    return port


def startups_of(replicas: Sequence[Replica]) -> Mapping[str, Startup]:
    return {replica.name: replica.startup for replica in replicas if replica.startup is not None}

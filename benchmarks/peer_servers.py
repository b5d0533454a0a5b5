"""Other makers' servers as child processes: installed into environments of their own, stopped while they are not measured.

| name | what it is |
|---|---|
| llama.cpp | the server inside the package `xllamacpp`, with 8 slots |
| transformers | `transformers serve --continuous-batching`, float32, of this environment's own version |
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.environments import CACHE, install
from octavo_server.bench.client import Target
from octavo_server.bench.server_process import ServerProcess
from octavo_server.engine.build import OMP_SPINS

HOME = CACHE
CHILD = Path(__file__).with_name("xllamacpp_child.py")
SLOTS, KV_BLOCK = 8, 32
START_S, STOP_S = 600.0, 30.0
NAME = "model"
_SERVE = "from transformers.cli.transformers import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What all servers are started with."""

    model: Path
    threads: int
    context: int
    """Tokens of a request and its answer."""
    clients: int
    """Most at once."""
    quantization: str


@dataclass(slots=True, kw_only=True)
class Running:
    """A server that answers, and how to ask it."""

    name: str
    target: Target
    pids: Sequence[int]
    about: Mapping[str, Any] = field(default_factory=dict)
    """What it and its package tell."""

    def pause(self) -> None:
        """Takes the processors from it; some servers poll while nothing is asked."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            os.kill(pid, number)


class Ours:
    """`octavo serve`."""

    name = "octavo"

    def __init__(self, setup: Setup) -> None:
        limits = ("--max-model-len", str(setup.context))
        self._server = ServerProcess(
            [str(setup.model), "--served-model-name", NAME, "--quantization", setup.quantization, *limits],
            {"OCTAVO_API_KEY": None, "OMP_NUM_THREADS": str(setup.threads)},
        )

    def wait(self) -> Running:
        self._server.wait_until_ready()
        target = Target(url=self._server.url, model=NAME)
        return Running(name=self.name, target=target, pids=self._server.pids())

    def close(self) -> None:
        self._server.stop()


class LlamaCpp:
    """Its server in a process of its own interpreter."""

    name = "llama.cpp"

    def __init__(self, setup: Setup) -> None:
        python = install(HOME / "xllamacpp", ["xllamacpp"])
        arguments = [str(setup.model), str(setup.threads), str(SLOTS), str(setup.context)]
        # Threads that wait without bound slow it many times where anything else runs; ours have the same bound.
        self._child = _child([str(python), "-P", str(CHILD), *arguments], {"GOMP_SPINCOUNT": str(OMP_SPINS)})

    def wait(self) -> Running:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp's server ended with status {self._child.wait()}")
        about = json.loads(line)
        target = Target(url=about["url"], model=NAME)
        return Running(name=self.name, target=target, pids=[self._child.pid], about=about)

    def close(self) -> None:
        _end(self._child)


class Transformers:
    """Its own server, over a dequantised copy of the model."""

    name = "transformers"

    def __init__(self, setup: Setup) -> None:
        packages = ["fastapi", "uvicorn", "openai", "pydantic"]
        python = install(HOME / "transformers-serve", packages, shares_ours=True)
        self._folder = dequantise(setup.model)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        blocks = setup.clients * -(-setup.context // KV_BLOCK)
        flags = {
            "--device": "cpu",
            "--dtype": "float32",
            "--host": "127.0.0.1",
            "--port": str(self._port),
            "--cb-block-size": str(KV_BLOCK),
            "--cb-num-blocks": str(blocks),
        }
        command = [str(python), "-c", _SERVE, "serve", str(self._folder), "--continuous-batching"]
        env = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(setup.threads), "GOMP_SPINCOUNT": str(OMP_SPINS)}
        self._child = _child([*command, *(part for pair in flags.items() for part in pair)], env)

    def wait(self) -> Running:
        url = f"http://127.0.0.1:{self._port}"
        deadline = time.monotonic() + START_S
        while not _is_up(url + "/health"):
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"transformers' server did not start; status {self._child.poll()}")
            time.sleep(0.2)
        # It refuses fields that it does not know. Without an end token in the model answers have their full length.
        extra = {"stream_options": None, "ignore_eos": None}
        about = {"version": metadata.version("transformers"), "torch": metadata.version("torch")}
        target = Target(url=url, model=str(self._folder), extra=extra, timeout_s=3600)
        return Running(name=self.name, target=target, pids=[self._child.pid], about=about)

    def close(self) -> None:
        _end(self._child)


PEERS = {peer.name: peer for peer in (LlamaCpp, Transformers)}


def dequantise(model: Path) -> Path:
    """The model's copy for transformers, made where it is missing."""
    with open(model, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = HOME / "transformers-serve" / f"{model.stem}-{digest[:12]}"
    if not folder.exists():
        command = [sys.executable, "-m", "benchmarks.dequantised", str(model), str(folder)]
        subprocess.run(command, check=True, cwd=ROOT, env=_env({"HF_HUB_OFFLINE": "1"}), stderr=subprocess.DEVNULL)
    return folder


def _child(command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE if str(CHILD) in command else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_env(env),
    )


def _env(more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **more}


def _end(child: subprocess.Popen[str]) -> None:
    child.terminate()
    try:
        child.communicate(timeout=STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False

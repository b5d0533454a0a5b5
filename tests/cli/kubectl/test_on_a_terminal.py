"""`chat` and `top` on a terminal of 40 columns, a real one by its own means: Ctrl-C is a byte that somebody typed."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from octavo_server.metrics import EngineSnapshot, ServerMetrics
from octavo_testing.kube_objects import a_model, a_pod

COLUMNS, LINES = 40, 24
PATIENCE_S = 60.0
PODS = ("qwen2-5-7b-instruct-6c9f8d7b5-abcd0", "qwen2-5-7b-instruct-of-a-long-name-6c9f8d7b5-abcd1")
"""The second one is wider than the terminal."""
CTRL_C, CTRL_D = b"\x03", b"\x04"
SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Shell:
    """A terminal, and the program in its foreground."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.modes_before = termios.tcgetattr(self._theirs)
        self.seen = ""
        self._at = 0
        self.process = subprocess.Popen(
            command,
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )

    def until(self, wanted: str) -> None:
        """Shown after what was last waited for."""
        self._wait(lambda: wanted in self.seen[self._at :], wanted)
        self._at = self.seen.index(wanted, self._at) + len(wanted)

    def _wait(self, is_so: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not is_so():
            assert time.monotonic() < end, f"waited in vain for {what}; seen: {self.seen!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.seen += os.read(self._ours, 65536).decode(errors="replace")

    def until_it_reads(self) -> None:
        """A signal that comes between the prompt and read(2) would not interrupt it."""
        self.until("> ")
        wchan = Path(f"/proc/{self.process.pid}/wchan")
        self._wait(lambda: wchan.read_text() in ("wait_woken", "n_tty_read"), "a read of the terminal")

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def end(self) -> int:
        """The exit status; what was still shown is in `seen`."""
        self._wait(lambda: self.process.poll() is not None, "the end")
        while select.select([self._ours], [], [], 0.1)[0]:
            self.seen += os.read(self._ours, 65536).decode(errors="replace")
        return int(self.process.returncode)

    @property
    def modes(self) -> list[object]:
        return termios.tcgetattr(self._theirs)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)
        os.close(self._theirs)


class Cluster(ThreadingHTTPServer):
    """An API server and a gateway in one: a model, its pods and metrics; an answer that stays where it is."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.questions: list[list[str]] = []
        self.never = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who leaves in the middle of an answer does what is tested."""

    def answer(self, path: str) -> bytes:
        if path.endswith("/metrics"):
            snapshot = EngineSnapshot(pressure=1.25, num_running=17, num_waiting=3, kv_usage=0.5)
            return ServerMetrics("tiny", lambda: snapshot).render()
        if path.endswith("/pods"):
            pods = [a_pod(name) for name in PODS]
            return json.dumps({"items": pods}).encode()
        if path.endswith("/services"):
            metadata = {"name": "octavo-gateway", "namespace": "sys"}
            return json.dumps(
                {"items": [{"metadata": metadata, "spec": {"ports": [{"name": "http", "port": 80}]}}]}
            ).encode()
        if path.endswith("/models"):
            return json.dumps({"data": [{"id": "team/qwen"}]}).encode()
        return json.dumps(a_model("qwen")).encode()


class _Handler(BaseHTTPRequestHandler):
    server: Cluster

    def log_message(self, *_: object) -> None:
        return

    def do_GET(self) -> None:
        body = self.server.answer(self.path.partition("?")[0])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = [message["content"] for message in asked["messages"]]
        self.server.questions.append(messages)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        is_slow = messages[-1] == "slowly"
        event = json.dumps({"choices": [{"delta": {"content": "Once upon" if is_slow else "At once."}}]})
        self.wfile.write(f"data: {event}\n\n".encode())
        self.wfile.flush()
        if is_slow:
            self.server.never.wait(PATIENCE_S)
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        thread = threading.Thread(target=cluster.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield cluster
        cluster.never.set()
        cluster.shutdown()
        thread.join()


@pytest.fixture
def shell(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Shell]]:
    """Starts `kubectl octavo` against the cluster; the kubectl that forwards ends by Ctrl-C, as the real one does."""
    port = cluster.server_port
    program, config = tmp_path / "kubectl", tmp_path / "kubeconfig"
    program.write_text(f"#!/bin/sh\necho 'Forwarding from 127.0.0.1:{port} -> 80'\nexec sleep 600\n")
    program.chmod(0o755)
    context = {"cluster": "c", "user": "u", "namespace": "team"}
    config.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {}}],
                "contexts": [{"name": "c", "context": context}],
            }
        )
    )
    env = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "KUBECONFIG": str(config),
        "TERM": "xterm-256color",
    }
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "OPENAI_API_KEY"):
        env.pop(name, None)
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Shell:
            shell = Shell([sys.executable, "-m", "octavo_cli.kubectl", *arguments], env)
            stack.callback(shell.close)
            return shell

        yield start


def lines_of(text: str) -> list[str]:
    return [line.rstrip() for line in _CONTROL.sub("", text).replace("\r", "\n").split("\n") if line.strip()]


def is_running(pid: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def forwards_of(terminal: Shell) -> list[str]:
    """Children of the program that run."""
    children = Path(f"/proc/{terminal.process.pid}/task/{terminal.process.pid}/children").read_text().split()
    return [child for child in children if is_running(child)]


def test_ctrl_c_during_an_answer_ends_the_answer_and_the_conversation_goes_on(
    shell: Callable[..., Shell], cluster: Cluster
) -> None:
    """Through the same forwarded port: the terminal sends Ctrl-C to all of its foreground."""
    terminal = shell("chat", "qwen")
    terminal.until("> ")
    terminal.type(b"slowly\n")
    terminal.until("Once upon")
    terminal.type(CTRL_C)
    terminal.until("> ")
    assert len(forwards_of(terminal)) == 1

    terminal.type(b"again\n")
    terminal.until("At once.")
    terminal.until("> ")
    terminal.type(CTRL_D)

    assert terminal.end() == 0
    # What was cut off is no part of the conversation.
    assert cluster.questions == [["slowly"], ["again"]]
    assert "Traceback" not in terminal.seen
    assert terminal.seen.endswith("\n")
    assert terminal.modes == terminal.modes_before


def test_ctrl_c_at_the_prompt_ends_the_program_without_a_traceback(shell: Callable[..., Shell]) -> None:
    terminal = shell("chat", "qwen")
    terminal.until_it_reads()
    terminal.type(CTRL_C)

    assert terminal.end() == 130
    assert lines_of(terminal.seen)[-1] == "> ^C"
    # The shell's own prompt gets a line of its own.
    assert terminal.seen.endswith("\n")
    assert terminal.modes == terminal.modes_before


def test_ctrl_c_during_the_answer_to_a_single_question_ends_the_program(shell: Callable[..., Shell]) -> None:
    terminal = shell("chat", "qwen", "slowly")
    terminal.until("Once upon")
    terminal.type(CTRL_C)

    assert terminal.end() == 130
    assert lines_of(terminal.seen) == ["Once upon^C"]
    assert terminal.seen.endswith("\n")


def test_nothing_is_forwarded_once_the_program_is_gone_however_it_went(shell: Callable[..., Shell]) -> None:
    terminal = shell("chat", "qwen")
    terminal.until("> ")
    (forward,) = forwards_of(terminal)
    terminal.process.kill()

    end = time.monotonic() + PATIENCE_S
    while is_running(forward):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_top_fits_a_narrow_terminal_and_leaves_it_as_it_was(shell: Callable[..., Shell]) -> None:
    terminal = shell("top", "--interval=0.2")
    for _ in range(2):
        terminal.until("PREFIX HITS")
        terminal.until("abcd1")
        terminal.until("PREFIX HITS")
    terminal.type(CTRL_C)

    assert terminal.end() == 130
    lines = lines_of(terminal.seen)
    assert max(map(len, lines)) <= COLUMNS
    assert not any("…" in line or "Traceback" in line for line in lines)
    assert {"team/qwen", PODS[0], PODS[1][:COLUMNS], PODS[1][COLUMNS:]} <= set(lines)
    for number in ("PRESSURE 1.25", "RUNNING 17", "WAITING 3", "KV 50%"):
        assert any(number in line for line in lines), number
    assert terminal.seen.count(HIDE_CURSOR) == 1
    assert terminal.seen.rindex(SHOW_CURSOR) > terminal.seen.rindex(HIDE_CURSOR)
    assert terminal.seen.replace(SHOW_CURSOR, "").endswith("\n")
    assert terminal.modes == terminal.modes_before

"""The comparison of servers: turns, ratios within a round, verdicts; with stand-ins for the peers, ours is real."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import peer_servers, servers
from benchmarks.peer_servers import LlamaCpp, Running, Setup
from benchmarks.servers import OURS, Rounds, judge, measure
from octavo_server.bench.client import Target, Timing
from octavo_server.bench.datasets import Dataset
from octavo_server.bench.load import Round
from octavo_testing.server import a_tiny_model

STAND_IN = """
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Peer(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        for _ in range(3):
            self.wfile.write(b'data: {"choices":[{"delta":{"content":"a"}}]}\\n\\n')
        self.wfile.write(b"data: [DONE]\\n\\n")
    def log_message(self, *_):
        pass

path, threads, slots, context = sys.argv[1:]
server = ThreadingHTTPServer(("127.0.0.1", 0), Peer)
import threading
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_address[1]}"
print(json.dumps({"url": url, "version": "0", "slots": slots, "context": context}), flush=True)
sys.stdin.read()
"""


class Asked:
    """A server that only notes what happens to it."""

    def __init__(self, name: str, log: list[tuple[str, str]]) -> None:
        self.name = name
        self.log = log
        self.target = Target(url=f"http://{name}", model="m")

    def pause(self) -> None:
        self.log.append((self.name, "paused"))

    def go_on(self) -> None:
        self.log.append((self.name, "goes on"))


def a_round(tokens: int, wall_s: float = 1.0, ttft_s: float = 0.1, gap_s: float = 0.01) -> Round:
    timing = Timing(start_s=0.0, end_s=wall_s, usage={"completion_tokens": tokens}, is_complete=True)
    timing.piece(ttft_s)
    timing.piece(ttft_s + gap_s)
    return Round(planned=1, timings=[timing], wall_s=wall_s)


def test_each_is_asked_the_same_in_turn_while_the_others_are_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[tuple[str, str]] = []
    asked: dict[str, list[str]] = {"one": [], "two": []}

    async def load(target: Target, asks: Sequence[Any], level: Any, *, warmup: int = 0) -> Round:
        name = target.url.removeprefix("http://")
        log.append((name, f"asked by {level.concurrency}"))
        asked[name].append(str(asks[warmup:]))
        return a_round(10)

    monkeypatch.setattr(servers, "run_load", load)
    both: list[Any] = [Asked("one", log), Asked("two", log)]

    found = measure(both, [1, 2], Dataset(prompt_tokens=4, max_tokens=2), requests=2, rounds=2)

    turn = [
        entry
        for size in (1, 2)
        for name in ("one", "two")
        for entry in ((name, "goes on"), (name, f"asked by {size}"), (name, "paused"))
    ]
    assert log == [("one", "paused"), ("two", "paused"), *turn, *turn]
    assert asked["one"] == asked["two"]
    assert len(set(asked["one"])) == 4
    assert {key: len(rounds) for key, rounds in found.of.items()} == {
        ("one", 1): 2, ("one", 2): 2, ("two", 1): 2, ("two", 2): 2,
    }  # fmt: skip


def test_a_ratio_is_taken_within_each_round() -> None:
    """A machine that is half as fast in one round changes nothing."""
    found = Rounds(
        of={
            (OURS, 8): [a_round(60), a_round(30), a_round(60)],
            ("llama.cpp", 8): [a_round(10), a_round(5), a_round(10)],
        }
    )

    assert found.ratio("llama.cpp", 8) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("ours", "missed", "no_worse"),
    [
        (a_round(40), False, True),
        (a_round(39), True, True),
        (a_round(90, ttft_s=0.2), True, False),
        (a_round(90, gap_s=0.02), True, False),
    ],
)
def test_a_bar_is_of_tokens_a_second_with_no_worse_latency(ours: Round, missed: bool, no_worse: bool) -> None:
    found = Rounds(of={(OURS, 8): [ours], ("llama.cpp", 8): [a_round(10)]})

    (verdict,) = judge(found, ["llama.cpp"], [8])

    assert (verdict["missed"], verdict["no_worse"], verdict["bar"]) == (missed, no_worse, 4.0)


def test_where_there_is_no_bar_none_is_missed() -> None:
    found = Rounds(of={(OURS, 1): [a_round(1, ttft_s=9)], ("transformers", 1): [a_round(10)]})

    assert judge(found, ["transformers"], [1])[0]["missed"] is False


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a stand-in for llama.cpp's server is installed; its interpreter is this one."""
    python = tmp_path / "xllamacpp" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "xllamacpp" / "venv" / "installed").touch()
    (tmp_path / "child.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(peer_servers, "HOME", tmp_path)
    monkeypatch.setattr(peer_servers, "CHILD", tmp_path / "child.py")
    return tmp_path


def a_setup(model: Path) -> Setup:
    return Setup(model=model, threads=1, context=256, clients=2, quantization="none")


@pytest.fixture
def peer(home: Path) -> Iterator[Running]:
    server = LlamaCpp(a_setup(home / "model.gguf"))
    yield server.wait()
    server.close()


def test_a_peer_is_stopped_and_goes_on(peer: Running) -> None:
    def state() -> str:
        return Path(f"/proc/{peer.pids[0]}/stat").read_text().rpartition(")")[2].split()[0]

    peer.pause()
    stopped = asyncio.run(_until(lambda: state() == "T"))
    peer.go_on()

    assert stopped
    assert asyncio.run(_until(lambda: state() != "T"))
    assert (peer.about["slots"], peer.about["context"]) == ("8", "256")


async def _until(condition: Any) -> bool:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)
    return True


def test_a_peer_that_does_not_start_is_told(home: Path) -> None:
    (home / "child.py").write_text("raise SystemExit(3)", encoding="utf-8")
    server = LlamaCpp(a_setup(home / "model.gguf"))

    with pytest.raises(SystemExit, match="ended with status 3"):
        server.wait()
    server.close()


def test_a_peer_that_fails_requests_ends_the_comparison(peer: Running) -> None:
    peer.pids = []
    peer.target = Target(url="http://127.0.0.1:9", model="m")

    with pytest.raises(SystemExit, match=r"llama.cpp, 1 clients: .*Cannot connect"):
        measure([peer], [1], Dataset(prompt_tokens=4, max_tokens=2), requests=1, rounds=1)


def test_the_command_compares_both_and_writes_what_ran(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, path = a_tiny_model(home / "tiny"), home / "out.json"
    argv = [str(model), "--peers", "llama.cpp", "-c", "1,2", "-n", "2", "--rounds", "1", "--prompt-tokens", "4"]

    status = servers.main(
        [
            *argv,
            "--max-tokens",
            "5",
            "--context",
            "256",
            "--threads",
            "1",
            "--quantization",
            "none",
            "--json",
            str(path),
        ]
    )

    printed, record = capsys.readouterr().out, json.loads(path.read_text())
    verdicts = record["verdicts"]
    assert status == (1 if any(verdict["missed"] for verdict in verdicts) else 0)
    assert [result["name"] for result in record["results"]] == [
        "octavo, 1 clients", "octavo, 2 clients", "llama.cpp, 1 clients", "llama.cpp, 2 clients",
    ]  # fmt: skip
    assert [result["output_tokens"] for result in record["results"]] == [10, 10, 6, 6]
    assert (record["engine"]["quantization"], record["resolved"]["kernels"]) == ("none", "torch")
    assert (record["engine"]["max_model_len"], record["server"]["llama.cpp"]["version"]) == (256, "0")
    assert f"to llama.cpp at 2: {verdicts[1]['ratio']:.2f}x" in printed


def test_our_servers_children_are_stopped_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(peer_servers.os, "kill", lambda pid, number: signals.append((pid, number)))
    running = Running(name=OURS, target=Target(url="", model=""), pids=[5, 6])

    running.pause()
    running.go_on()

    assert signals == [(5, signal.SIGSTOP), (6, signal.SIGSTOP), (5, signal.SIGCONT), (6, signal.SIGCONT)]


@pytest.mark.parametrize("text", ["vllm", "llama.cpp,x"])
def test_an_unknown_peer_is_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        servers.parser().parse_args(["m.gguf", "--peers", text])
    assert "none of llama.cpp, transformers" in capsys.readouterr().err

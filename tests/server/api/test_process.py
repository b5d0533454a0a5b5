"""A serving process as a kubelet sees it: exit codes, last words, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from octavo_testing.server import NAME
from octavo_testing.server_process import A_LONG_STREAM, post, ready, serving, status_of, wait_until_gone

FAIL_S = 60.0


@pytest.fixture(params=["in", "out"])
def where(request: pytest.FixtureRequest) -> str:
    """Where the engine runs: what holds for one must hold for the other."""
    return str(request.param)


@pytest.mark.parametrize(
    ("content", "reason", "words"),
    [
        (None, "ModelNotFound", "does not exist"),
        ({}, "ModelNotFound", "neither config.json nor a .gguf file"),
        ({"config.json": '{"architectures": ["Nonesuch"]}'}, "UnsupportedArchitecture", "Nonesuch"),
        ({"config.json": "{"}, "ModelInvalid", "not valid JSON"),
    ],
)
def test_a_bad_model_folder_ends_with_one_line_and_last_words(
    tmp_path: Path, content: dict[str, str] | None, reason: str, words: str, where: str
) -> None:
    folder, log = tmp_path / "model", tmp_path / "termination-log"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    with serving(str(folder), "--port", "0", "--engine-process", where, log=log) as process:
        status = process.wait()

    errors = [line for line in process.lines if line.startswith("octavo: error: ")]
    last_words = json.loads(log.read_text())
    assert status == 1
    assert len(errors) == 1
    assert words in errors[0]
    assert not any("Traceback" in line for line in process.lines)
    assert (last_words["reason"], f"octavo: error: {last_words['message']}") == (reason, errors[0])
    assert time.monotonic() - process.started_s < FAIL_S


def test_truncated_weights_end_the_start(tiny_model: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "model", tmp_path / "termination-log"
    folder.mkdir()
    for path in tiny_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:1000])
    with serving(str(folder), "--port", "0", log=log) as process:
        status = process.wait()

    assert status == 1
    assert json.loads(log.read_text())["reason"] == "ModelInvalid"
    assert not any("Traceback" in line for line in process.lines)


def test_a_port_in_use_ends_the_start_before_anything_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with serving(str(tiny_model), "--host", "127.0.0.1", "--port", port, log=log) as process:
            status = process.wait()

    message = json.loads(log.read_text())["message"]
    assert status == 2
    assert f"127.0.0.1 port {port}" in message
    assert "--port" in message
    assert len(process.lines) == 1


def test_sigterm_drains_finishes_what_runs_and_exits_0(tiny_model: Path, where: str) -> None:
    with ready(tiny_model, "--engine-process", where) as (process, url):
        with post(url + "/v1/completions", A_LONG_STREAM) as stream:
            first = stream.readline()
            process.child.send_signal(signal.SIGTERM)
            process.until("draining: 1 requests")
            refused = (status_of(url + "/ready"), status_of(url + "/health"))
            with pytest.raises(urllib.error.HTTPError) as new:
                post(url + "/v1/completions", {"model": NAME, "prompt": "x"})
            connection = new.value.headers["Connection"].lower()
            code = json.loads(new.value.read())["error"]["code"]
            rest = stream.read().decode()
        status = process.wait()

    events = [json.loads(part[6:]) for part in (first.decode() + rest).split("\n\n")[:-2]]
    assert refused == (503, 200)
    assert (new.value.code, code, connection) == (503, "draining", "close")
    assert rest.endswith("data: [DONE]\n\n")
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    assert status == 0


def test_what_does_not_finish_in_time_ends_with_an_error_event(tiny_model: Path) -> None:
    with ready(tiny_model, "--shutdown-timeout", "0") as (process, url):
        with post(url + "/v1/completions", A_LONG_STREAM) as stream:
            stream.readline()
            process.child.send_signal(signal.SIGTERM)
            rest = stream.read().decode()
        status = process.wait()

    last = json.loads(rest.split("\n\n")[-3].strip().removeprefix("data: "))
    assert rest.endswith("data: [DONE]\n\n")
    assert last["error"]["code"] == "draining"
    assert "within 0 s" in last["error"]["message"]
    assert status == 0


def test_a_second_sigterm_ends_now(tiny_model: Path, where: str) -> None:
    with ready(tiny_model, "--shutdown-timeout", "600", "--engine-process", where) as (process, url):
        engine_pid = process.engine_pid if where == "out" else None
        streams = [post(url + "/v1/completions", A_LONG_STREAM) for _ in range(4)]
        process.child.send_signal(signal.SIGTERM)
        process.until("draining")
        process.child.send_signal(signal.SIGTERM)
        status = process.wait()
        for stream in streams:
            stream.close()

    assert status == 143
    if engine_pid is not None:
        wait_until_gone(engine_pid)


def test_sigterm_while_loading_exits_0_at_once(tiny_model: Path, where: str) -> None:
    argv = (str(tiny_model), "--host", "127.0.0.1", "--port", "0", "--engine-process", where)
    with serving(*argv) as process:
        process.until("listening")
        process.child.send_signal(signal.SIGTERM)

        assert process.wait() == 0
        assert not any("Traceback" in line for line in process.lines)


def test_an_engine_process_that_is_killed_ends_the_server_with_an_error_event_and_last_words(
    tiny_model: Path, tmp_path: Path
) -> None:
    log = tmp_path / "termination-log"
    with ready(tiny_model, "--engine-process", "out", log=log) as (process, url):
        # Stopped before, so that the stream cannot have ended.
        os.kill(process.engine_pid, signal.SIGSTOP)
        with post(url + "/v1/completions", A_LONG_STREAM) as stream:
            os.kill(process.engine_pid, signal.SIGKILL)
            rest = stream.read().decode()
        status = process.wait()

    last = json.loads(rest.split("\n\n")[-3].strip().removeprefix("data: "))
    last_words = json.loads(log.read_text())
    assert rest.endswith("data: [DONE]\n\n")
    assert last["error"]["code"] == "engine_dead"
    assert status == 1
    assert last_words["reason"] == "EngineCrashed"
    assert "SIGKILL" in last_words["message"]
    assert not any("Traceback" in line for line in process.lines)


def test_an_engine_process_does_not_outlive_a_server_that_is_killed(tiny_model: Path) -> None:
    with ready(tiny_model, "--engine-process", "out") as (process, url):
        engine_pid = process.engine_pid
        with post(url + "/v1/completions", A_LONG_STREAM) as stream:
            stream.readline()
            process.child.kill()
            process.child.wait()

            wait_until_gone(engine_pid)


def test_a_server_beside_its_engine_never_loads_torch(tiny_model: Path) -> None:
    """/proc says which libraries a process has mapped."""
    with ready(tiny_model, "--engine-process", "out") as (process, url):
        with post(url + "/v1/completions", {"model": NAME, "prompt": "The quick"}) as response:
            response.read()
        mapped = {
            name: "libtorch" in Path(f"/proc/{pid}/maps").read_text()
            for name, pid in (("server", process.child.pid), ("engine", process.engine_pid))
        }

    assert mapped == {"server": False, "engine": True}


@pytest.mark.model
def test_the_real_model_answers_through_octavo_serve(smollm2_path: Path) -> None:
    """The whole way: file, tokenizer, template, engine, HTTP. The answer is transformers' own, greedy, in float32."""
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "What is Kubernetes? Answer in one sentence."}],
        "temperature": 0,
        "max_tokens": 60,
    }
    with ready(smollm2_path) as (process, url):
        with post(url + "/v1/chat/completions", body) as response:
            answer = json.loads(response.read())
        process.child.send_signal(signal.SIGTERM)
        status = process.wait()

    assert answer["choices"][0]["message"]["content"] == (
        "Kubernetes is a software platform that allows organizations to manage their virtual private clouds (VPCs) "
        "and other cloud-native services."
    )
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert status == 0

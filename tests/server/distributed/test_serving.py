"""`octavo serve --tensor-parallel-size 2` as a kubelet and its clients see it."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
from pathlib import Path
from typing import Any

import pytest

from octavo_server import LLM, SamplingParams
from octavo_testing.server import NAME
from octavo_testing.server_process import A_LONG_STREAM, Process, post, ready, serving, status_of, wait_until_gone

TWO = ("--tensor-parallel-size", "2")
PROMPT = "The quick brown fox jumps over a pod."


@pytest.fixture(params=["in", "out"])
def where(request: pytest.FixtureRequest) -> str:
    """Where the engine, and with it rank 0, runs."""
    return str(request.param)


def rank_of(process: Process) -> int:
    (pid,) = process.rank_pids
    return pid


def events_of(text: str) -> list[Any]:
    parts = [part.removeprefix("data: ") for part in text.split("\n\n") if part]
    assert parts[-1] == "[DONE]"
    return [json.loads(part) for part in parts[:-1]]


def answer(url: str, path: str, **body: Any) -> Any:
    with post(url + path, {"model": NAME, **body}) as response:
        return json.loads(response.read())


def test_answers_are_those_of_one_rank_and_a_drain_ends_all(tiny_model: Path) -> None:
    alone = LLM(str(tiny_model), num_gpu_blocks_override=200)
    (expected,) = alone.generate(PROMPT, SamplingParams(temperature=0, max_tokens=24, logprobs=2), use_tqdm=False)
    (vector,) = alone.embed(PROMPT, use_tqdm=False)
    asked = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    with ready(tiny_model, *TWO) as (process, url):
        pid = rank_of(process)
        with post(url + "/v1/completions", {"model": NAME, **asked, "stream": True}) as response:
            events = events_of(response.read().decode())
        told = answer(url, "/v1/completions", **asked, logprobs=2)["choices"][0]
        scored = answer(url, "/v1/completions", prompt=PROMPT, max_tokens=1, echo=True, logprobs=0)["choices"][0]
        embedded = answer(url, "/v1/embeddings", input=PROMPT)["data"][0]["embedding"]
        with post(url + "/v1/completions", A_LONG_STREAM) as stream:
            stream.readline()
            process.child.send_signal(signal.SIGTERM)
            rest = stream.read().decode()
        status = process.wait()

    (output,) = expected.outputs
    assert "".join(event["choices"][0]["text"] for event in events) == told["text"] == output.text
    assert output.logprobs is not None
    logprobs = [entry[token].logprob for token, entry in zip(output.token_ids, output.logprobs, strict=True)]
    # the token that ended it is not shown
    shown = told["logprobs"]["token_logprobs"]
    assert shown == pytest.approx(logprobs[: len(shown)], abs=5e-4)
    assert len(shown) > 3
    assert len(scored["logprobs"]["token_logprobs"]) == 10
    assert embedded == pytest.approx(vector.outputs.embedding, abs=1e-4)
    assert events_of("data: " + rest.split("data: ", 1)[1])[-1]["choices"][0]["finish_reason"] == "length"
    assert status == 0
    wait_until_gone(pid)


def test_a_rank_that_is_killed_ends_the_server_with_an_error_event_and_last_words(
    tiny_model: Path, tmp_path: Path, where: str
) -> None:
    log = tmp_path / "termination-log"
    with ready(tiny_model, *TWO, "--engine-process", where, log=log) as (process, url):
        pid = rank_of(process)
        # Stopped before, so that the stream cannot have ended.
        os.kill(pid, signal.SIGSTOP)
        with post(url + "/v1/completions", A_LONG_STREAM) as stream:
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            rest = stream.read().decode()
        status = process.wait()
        took_s = time.monotonic() - began

    last_words = json.loads(log.read_text())
    assert events_of(rest)[-1]["error"]["code"] == "engine_dead"
    assert status == 1
    assert last_words["reason"] == "EngineCrashed"
    assert "rank 1" in last_words["message"]
    assert "SIGKILL" in last_words["message"]
    assert took_s < 15
    assert not any("Traceback" in line for line in process.lines)


def test_a_rank_that_ends_while_nobody_asks_is_noticed(tiny_model: Path, where: str) -> None:
    with ready(tiny_model, *TWO, "--engine-process", where) as (process, url):
        assert status_of(url + "/health") == 200
        os.kill(rank_of(process), signal.SIGKILL)

        assert process.wait() == 1
    assert sum(line.startswith("octavo: error: ") for line in process.lines) == 1


def test_ranks_end_with_a_server_that_is_killed(tiny_model: Path, where: str) -> None:
    with ready(tiny_model, *TWO, "--engine-process", where) as (process, url):
        pid = rank_of(process)
        with post(url + "/v1/completions", A_LONG_STREAM) as stream:
            stream.readline()
            process.child.kill()
            process.child.wait()

            wait_until_gone(pid)


def test_ranks_that_cannot_be_ends_the_start_with_one_line(tiny_model: Path, tmp_path: Path) -> None:
    log = tmp_path / "termination-log"
    with serving(str(tiny_model), "--port", "0", "--tensor-parallel-size", "3", log=log) as process:
        assert process.wait() == 1

    (line,) = (line for line in process.lines if line.startswith("octavo: error: "))
    assert "4 heads with 2 key/value heads cannot be dealt to 3 devices; possible are 1, 2, 4" in line
    assert json.loads(log.read_text())["reason"] == "SpecInvalid"


def test_a_request_that_fails_alone_leaves_the_ranks_in_step(tiny_model: Path) -> None:
    with ready(tiny_model, *TWO) as (_, url):
        with pytest.raises(urllib.error.HTTPError) as refused:
            answer(url, "/v1/completions", prompt=[600], max_tokens=4)
        with refused.value:
            assert refused.value.code == 400
        assert (
            answer(url, "/v1/completions", prompt=PROMPT, max_tokens=4, ignore_eos=True)["usage"]["completion_tokens"]
            == 4
        )

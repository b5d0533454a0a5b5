"""Local mode with real processes: a small fake server first, the real one with the real model at the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import openai
import pytest

from octavo_cli import __main__ as cli
from octavo_cli.local.launch import Launch
from octavo_cli.local.replica import Replica
from octavo_operator.api.validation import parse_model_deployment
from octavo_testing.local_mode import Up, a_manifest, is_alive, running_up, write_manifests

HERE = Path(__file__).parent
WITH_FAKE_SERVER = (sys.executable, str(HERE / "up_with_fake_server.py"))
WITH_REAL_SERVER = (sys.executable, "-m", "octavo_cli", "up")


@contextlib.asynccontextmanager
async def a_fake_up(tmp_path: Path, mode: str = "ok", **spec: object) -> AsyncIterator[Up]:
    """One model, `tiny`, whose server fares as ``mode`` says."""
    (tmp_path / "tiny.gguf").write_text(mode)
    path = write_manifests(tmp_path / "m.yaml", a_manifest(**spec))  # type: ignore[arg-type]
    async with running_up(WITH_FAKE_SERVER, tmp_path, str(path), "--mount", f"/models={tmp_path}") as up:
        yield up


async def test_from_manifest_to_answer_to_nothing_left(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path, replicas=2, servedNames=["tiny", "alias"]) as up:
        await up.until_ready("tiny")
        children = up.children
        status, answer = await up.ask("alias")
        code = await up.end()

    assert (status, answer["model"]) == (200, "alias")
    assert len(children) == 2
    assert code == 0
    assert not [pid for pid in children if is_alive(pid)]
    assert not up.folder.exists()


async def test_its_lines_say_where_to_ask_and_how_it_stands(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path) as up:
        await up.until_ready("tiny")
        await up.end()

    assert up.lines[0] == f"{up.url}/v1 serves tiny; Ctrl-C drains and ends"
    assert "tiny: Starting: 0 of 1 replicas ready; tiny-0 starts" in up.lines
    assert "tiny: AllReplicasReady: 1 of 1 replicas ready" in up.lines
    assert len([line for line in up.lines if "tiny: Draining" in line]) == 1
    assert "draining: running requests finish; Ctrl-C again ends now" in up.lines


async def test_top_reads_each_replica_where_it_listens(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path, replicas=2) as up:
        await up.until_ready("tiny")
        command = [sys.executable, "-m", "octavo_cli", "top", "--interval=0.1"]
        env = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "COLUMNS": "150"}
        top = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=env)
        out, _ = await top.communicate()
        await up.end()

    lines = [line.split()[:3] for line in out.decode().splitlines()]
    assert (top.returncode, lines) == (
        0,
        [["MODEL", "REPLICA", "PRESSURE"], ["tiny", "tiny-0", "0.50"], ["tiny", "tiny-1", "0.50"]],
    )


async def test_a_killed_server_is_started_again_and_requests_wait_for_it(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path) as up:
        await up.until_ready("tiny")
        (old,) = up.children
        os.kill(old, signal.SIGKILL)
        status, answer = await up.ask("tiny")
        row = up.row("tiny")
        code = await up.end()

    assert (status, row["restarts"], row["ready"]) == (200, 1, True)
    assert answer["pid"] != old
    assert code == 0


async def test_a_server_that_ends_with_words_gives_its_reason(tmp_path: Path) -> None:
    """The termination log's reason is the condition's, and the restarts go on with back-off."""
    async with a_fake_up(tmp_path, "bad") as up:
        await up.until(lambda: up.row("tiny").get("restarts", 0) >= 1)
        row = up.row("tiny")
        code = await up.end()

    assert (row["ready"], row["reason"]) == (False, "UnsupportedArchitecture")
    assert "no engine for BadForCausalLM" in row["message"]
    assert "pod" not in row["message"]
    assert code == 0
    assert any("their logs are in" in line for line in up.errors)
    assert list(up.folder.glob("*.log"))


async def test_a_server_that_ends_without_words_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path, "crash") as up:
        await up.until(lambda: up.row("tiny").get("reason") == "EngineCrashed")
        message = up.row("tiny")["message"]
        await up.end()

    assert "exit code 3" in message
    assert "the last line of the log" in message
    assert list(up.folder.glob("*.log"))


async def test_loading_is_told_with_its_progress(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path, "slow") as up:
        await up.until_said("LoadingWeights")
        code = await up.end()

    assert "tiny: LoadingWeights: 0 of 1 replicas ready; tiny-0 loads the weights, 1.0 of 2.0 GB" in up.lines
    assert code == 0


async def test_a_running_stream_finishes_before_the_servers_end(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path) as up, aiohttp.ClientSession() as client:
        await up.until_ready("tiny")
        body = {"model": "tiny", "stream": True, "pause_s": 0.5}
        async with client.post(f"{up.url}/v1/chat/completions", json=body) as response:
            await response.content.readline()
            up.process.send_signal(signal.SIGINT)
            await up.until_said("draining")
            await asyncio.sleep(0.2)
            with pytest.raises(aiohttp.ClientConnectionError):
                await up.ask("tiny")
            text = await response.text()
        code = await up.ended()

    assert text.endswith("data: [DONE]\n\n")
    assert code == 0


async def test_a_request_that_waits_during_the_drain_is_told_so_at_once(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path, "slow") as up:
        await up.until_said("LoadingWeights")
        asking = asyncio.create_task(up.ask("tiny"))
        await asyncio.sleep(0.3)
        code = await up.end(within_s=10)
        status, answer = await asking

    assert (status, answer["error"]["type"], code) == (503, "service_unavailable", 0)


async def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path) as up, aiohttp.ClientSession() as client:
        await up.until_ready("tiny")
        children = up.children
        body = {"model": "tiny", "stream": True, "pause_s": 60}
        async with client.post(f"{up.url}/v1/chat/completions", json=body) as response:
            await response.content.readline()
            up.process.send_signal(signal.SIGINT)
            await up.until_said("draining")
            await up.end(within_s=10)

    assert up.process.returncode == 0
    assert not [pid for pid in children if is_alive(pid)]


async def test_a_stop_in_the_moment_of_a_start_leaves_no_process(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_text("ok")
    resource = parse_model_deployment(a_manifest(model=f"file://{tmp_path}/tiny.gguf"), creating=True)
    command = (sys.executable, str(HERE / "fake_server.py"))
    pids: list[int] = []
    async with aiohttp.ClientSession() as http:
        replica = Replica(
            Launch(name="tiny-0", resource=resource),
            tmp_path,
            http,
            lambda: pids.append(replica.pid or 0),
            server_command=command,
        )
        running = asyncio.create_task(replica.run())
        await asyncio.sleep(0)
        await replica.stop(timeout_s=1)
        async with asyncio.timeout(5):
            await running

    assert not [pid for pid in pids if pid and is_alive(pid)]


async def test_nothing_outlives_an_up_that_is_killed(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path) as up:
        await up.until_ready("tiny")
        children = up.children
        up.process.kill()
        await up.process.wait()
        await up.until(lambda: not [pid for pid in children if is_alive(pid)], within_s=10)

    assert len(children) == 1


async def test_servers_are_reachable_from_this_machine_only_and_see_no_gpu(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path) as up:
        await up.until_ready("tiny")
        (pid,) = up.children
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
        _, answer = await up.ask("tiny")
        await up.end()

    assert "--host=127.0.0.1" in arguments
    assert "--served-model-name" in arguments
    assert answer["env"]["CUDA_VISIBLE_DEVICES"] == ""


async def test_keys_of_a_secret_among_the_documents_guard_the_model(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_text("ok")
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"alice": "sk-1"}}
    guarded = a_manifest(access={"keysFrom": [{"secretRef": {"name": "keys"}}]})
    path = write_manifests(tmp_path / "m.yaml", guarded, secret)
    audit = tmp_path / "audit.jsonl"
    arguments = (str(path), "--mount", f"/models={tmp_path}", f"--audit-log={audit}")
    async with running_up(WITH_FAKE_SERVER, tmp_path, *arguments) as up:
        await up.until_ready("tiny")
        async with aiohttp.ClientSession() as client:
            statuses = []
            for headers in ({}, {"Authorization": "Bearer sk-1"}):
                async with client.post(
                    f"{up.url}/v1/chat/completions", json={"model": "tiny"}, headers=headers
                ) as answer:
                    statuses.append(answer.status)
        await up.end()

    assert statuses == [401, 200]
    assert [json.loads(line)["who"] for line in audit.read_text().splitlines()] == ["default/keys/alice"]


async def test_a_suspended_model_starts_nothing_and_says_so(tmp_path: Path) -> None:
    async with a_fake_up(tmp_path, suspend=True) as up:
        await up.until_said("Suspended")
        status, answer = await up.ask("tiny")
        children = up.children
        await up.end()

    assert (status, answer["error"]["code"], children) == (503, "scaled_to_zero", [])
    assert "tiny: suspend is true; nothing is started" in up.lines


async def test_what_does_not_apply_is_said(tmp_path: Path) -> None:
    scaling = {"minReplicas": 0, "maxReplicas": 3}
    async with a_fake_up(tmp_path, scaling=scaling, placement={"nodeSelector": {"a": "b"}}) as up:
        await up.until_ready("tiny")
        await up.end()

    said = "\n".join(up.lines)
    assert "tiny: scaling does not apply here; 1 replica(s) run" in said
    assert "tiny: placement does not apply here; there is one machine" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent.yaml"], "cannot read absent.yaml: No such file or directory"),
        (["{bad}"], "spec.replicsa"),
        (["{good}"], "map its folder: --mount /models=DIR"),
        (["{good}", "--mount", "models"], "must be /PATH/IN/CONTAINER=DIR"),
        (["{good}", "--mount", "/models=/no/such"], "is not a folder"),
    ],
)
def test_mistakes_end_with_one_error_and_status_1(
    tmp_path: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    good = write_manifests(tmp_path / "good.yaml", a_manifest())
    bad = write_manifests(tmp_path / "bad.yaml", a_manifest(replicsa=2))
    given = [argument.format(good=good, bad=bad) for argument in arguments]

    assert cli.main(["up", *given]) == 1

    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert said in errors


async def test_a_port_in_use_is_told(tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_text("ok")
    path = write_manifests(tmp_path / "m.yaml", a_manifest())
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    process = await asyncio.create_subprocess_exec(
        *WITH_REAL_SERVER,
        *(str(path), f"--mount=/models={tmp_path}", f"--port={port}"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    server.close()
    await server.wait_closed()

    assert process.returncode == 1
    assert said.decode() == f"error: cannot listen on 127.0.0.1:{port}: address already in use; try another --port\n"


@pytest.mark.model
@pytest.mark.timeout(600)
async def test_the_real_model_answers_survives_a_kill_and_leaves_nothing(tmp_path: Path, smollm2_path: Path) -> None:
    """up → ready → a streamed answer → the server is killed → it is back → Ctrl-C → nothing is left."""
    quickstart = Path(__file__).parents[3] / "examples" / "quickstart.yaml"
    mount = f"/models={smollm2_path.parent}"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    async with running_up(WITH_REAL_SERVER, tmp_path, str(quickstart), "--mount", mount) as up:
        await up.until_ready("smollm2", within_s=240)
        async with openai.AsyncOpenAI(base_url=f"{up.url}/v1", api_key="none") as client:

            async def answer() -> str:
                stream = await client.chat.completions.create(
                    model="smollm2", messages=question, stream=True, temperature=0, max_tokens=12
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])

            first = await answer()
            (old,) = up.children
            os.kill(old, signal.SIGKILL)
            second = await answer()
        children = up.children
        code = await up.end(within_s=60)

    assert "Paris" in first
    assert second == first
    assert old not in children
    assert up.row("smollm2") == {}
    assert code == 0
    assert not [pid for pid in children if is_alive(pid)]

"""How a gateway ends: unready at once, running requests finish, what is left is told why."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import aiohttp
import pytest

from octavo_testing.gateway import CHAT, a_gateway, a_model, an_upstream, streaming, until


async def test_a_draining_gateway_is_unready_and_still_takes_requests_for_its_delay() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        drain = asyncio.create_task(bench.gateway.drain(delay_s=0.5, timeout_s=5))
        await until(lambda: not bench.gateway.is_ready)
        ready, why = await bench.internal("/readyz")
        answer = await bench.ask()
        await drain

    assert (ready, why) == (503, "draining\n")
    assert (answer.status, answer.headers["Connection"]) == (200, "close")


async def test_after_the_delay_no_new_connection_is_taken() -> None:
    async with an_upstream() as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        await bench.gateway.drain(delay_s=0, timeout_s=1)

        with pytest.raises(aiohttp.ClientConnectionError):
            await bench.ask()


async def test_a_running_stream_finishes_during_the_drain() -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with an_upstream(streaming(gate)) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        response = await bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True})
        drain = asyncio.create_task(bench.gateway.drain(delay_s=0, timeout_s=5))
        await asyncio.sleep(0.1)
        assert not drain.done()
        await gate.put(b"data: late\n\n")
        await gate.put(None)
        body = await response.content.read()
        async with asyncio.timeout(1):
            await drain

    assert body == b"data: late\n\n"


async def test_what_outlasts_the_timeout_ends_with_an_error_event() -> None:
    gate: asyncio.Queue[bytes | None] = asyncio.Queue()
    async with an_upstream(streaming(gate)) as upstream, a_gateway(a_model("m", upstream.replica())) as bench:
        response = await bench.client.post(bench.url + CHAT, json={"model": "m", "stream": True})
        await gate.put(b"data: 1\n\n")
        await response.content.readline()
        await bench.gateway.drain(delay_s=0, timeout_s=0.1)
        rest = await response.content.read()

    events = [line[6:] for line in rest.decode().splitlines() if line.startswith("data: ")]
    assert json.loads(events[0])["error"]["code"] == "shutting_down"
    assert events[1] == "[DONE]"


async def test_a_held_request_that_outlasts_the_timeout_gets_503() -> None:
    async with a_gateway(a_model("m")) as bench:
        asking = asyncio.create_task(bench.ask())
        await until(lambda: bench.gateway.proxy.in_flight == 1)
        await bench.gateway.drain(delay_s=0, timeout_s=0.1)
        answer = await asking

    assert (answer.status, answer.error["code"]) == (503, "shutting_down")


async def a_gateway_process(tmp_path: Path, api_url: str) -> tuple[asyncio.subprocess.Process, int]:
    """The real command, at an API server that answers nothing useful; the internal port it listens on."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": api_url}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )
    flags = ["--host=127.0.0.1", "--port=0", "--internal-port=0", "--drain-delay-s=0.1", "--log-format=json"]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "octavo_gateway", f"--kubeconfig={kubeconfig}", *flags),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stderr is not None
    async for raw in process.stderr:
        line = json.loads(raw)
        if line["message"] == "gateway listens":
            return process, line["internal_port"]
    raise AssertionError("the gateway ended")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_real_process_with_status_0(tmp_path: Path, number: signal.Signals) -> None:
    """With the API server away it lives, is unready, and ends when told to."""
    process, internal_port = await a_gateway_process(tmp_path, "http://127.0.0.1:9")
    async with aiohttp.ClientSession() as client:
        async with client.get(f"http://127.0.0.1:{internal_port}/healthz") as health:
            pass
        async with client.get(f"http://127.0.0.1:{internal_port}/readyz") as ready:
            pass
    process.send_signal(number)
    async with asyncio.timeout(10):
        await process.communicate()

    assert (health.status, ready.status) == (200, 503)
    assert process.returncode == 0


async def test_a_port_in_use_is_one_line_and_status_1(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(
        '{"clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}], "users": [{"name": "u", "user": {}}],'
        ' "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "current-context": "c"}'
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "octavo_gateway", f"--kubeconfig={kubeconfig}", "--host=127.0.0.1", f"--port={port}"),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()
    server.close()
    await server.wait_closed()

    assert process.returncode == 1
    assert said.decode().startswith(f"error: cannot listen on 127.0.0.1:{port}")
    assert said.count(b"\n") == 1


async def test_without_a_cluster_it_says_what_to_give() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("KUBERNETES_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "octavo_gateway"),
        stderr=asyncio.subprocess.PIPE,
        env={**env, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    async with asyncio.timeout(20):
        _, said = await process.communicate()

    assert process.returncode == 1
    assert b"--kubeconfig FILE" in said

"""`kubectl octavo chat` through a port that a kubectl forwards; the kubectl is a script, the gateway a real one."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from rich.console import Console

from octavo_cli.errors import CliError
from octavo_cli.kubectl import __main__ as plugin
from octavo_cli.kubectl import chat
from octavo_testing.adapter import a_ca
from octavo_testing.gateway import a_gateway, an_upstream
from octavo_testing.gateway import a_model as a_routed_model
from octavo_testing.kube_objects import MODELS, FakeCluster, a_model

EVENTS = b'data: {"choices": [{"delta": {"content": "Paris."}}]}\n\ndata: [DONE]\n\n'


def a_cluster(**port: Any) -> FakeCluster:
    service = {
        "metadata": {"name": "octavo-gateway", "namespace": "sys"},
        "spec": {"ports": [{"name": "http", "port": 8080, **port}]},
    }
    return FakeCluster({f"{MODELS}/qwen": a_model("qwen"), "/api/v1/services": [service]})


def a_kubectl(folder: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps what it was asked, says that it forwards to `port`, and waits."""
    program, asked = folder / "kubectl", folder / "asked"
    program.write_text(
        f'#!/bin/sh\necho "$@" > {asked}\necho "Forwarding from 127.0.0.1:{port} -> 8080"\nexec sleep 60\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return asked


def ask(cluster: FakeCluster) -> int:
    parser = plugin.parser(only="chat")
    chat.add_arguments(parser.subcommands["chat"])
    return chat.run(cluster, parser.parse_args(["chat", "qwen", "Capital of France?"]), Console(file=io.StringIO()))


async def answer(_: web.Request) -> web.Response:
    return web.Response(body=EVENTS, content_type="text/event-stream")


@pytest.mark.parametrize("is_tls", [False, True])
async def test_a_question_reaches_the_gateway_whether_it_speaks_tls_or_not(
    is_tls: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its certificate is for another name than the tunnel's end."""
    (cert, key), folder = a_ca("llm.example.com").write(tmp_path, "tls"), tmp_path / "tls"
    folder.mkdir()
    cert.rename(folder / "tls.crt")
    key.rename(folder / "tls.key")
    model = a_routed_model("qwen", served_names=("qwen", "team/qwen"))
    async with (
        an_upstream(answer) as upstream,
        a_gateway(model, tls_dir=str(folder) if is_tls else "") as bench,
    ):
        bench.set_models(a_routed_model("qwen", upstream.replica(), served_names=("qwen", "team/qwen")))
        asked = a_kubectl(tmp_path, bench.gateway.port, monkeypatch)
        status = await asyncio.to_thread(ask, a_cluster(**({"appProtocol": "https"} if is_tls else {})))

    assert (status, capsys.readouterr().out) == (0, "Paris.\n")
    assert asked.read_text().split() == ["port-forward", "--namespace=sys", "service/octavo-gateway", ":8080"]


def test_without_a_gateway_it_is_said_where_it_was_looked_for() -> None:
    with pytest.raises(CliError, match="no Service of Octavo's gateway is found"):
        ask(FakeCluster({f"{MODELS}/qwen": a_model("qwen")}))


def test_what_kubectl_cannot_do_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "kubectl"
    program.write_text("#!/bin/sh\necho 'error: pods is forbidden' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    with pytest.raises(CliError, match="kubectl port-forward: error: pods is forbidden"):
        ask(a_cluster())

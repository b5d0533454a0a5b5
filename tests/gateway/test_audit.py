"""The audit log through a real gateway: who did what, and what was said only where the model wants it."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from octavo_gateway import audit
from octavo_gateway.audit import AuditLog, line_of
from octavo_gateway.endpoints import Access, Audit
from octavo_gateway.metrics import Metrics
from octavo_testing.gateway import CHAT, a_gateway, a_model, an_upstream, answering, until

SECRETS = {"default/keys": {"alice": b"sk-alice"}}
ALICE = {"Authorization": "Bearer sk-alice", "X-Request-Id": "r-1"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def lost(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("octavo_gateway_lost_audit_lines_total")


async def asked(path: Path, level: Audit, **fields: Any) -> list[dict[str, Any]]:
    """The log after one good request, one without a key, and one for another model."""
    guarded = Access(keys_from=("keys",), audit=level)
    usage = {"usage": {"prompt_tokens": 4, "completion_tokens": 6}}

    async with an_upstream(answering("hi")) as upstream:
        upstream.handler = _telling(usage)
        models = a_model("m", upstream.replica("m-1"), access=guarded), a_model("open", access=Access(audit=Audit.NONE))
        async with a_gateway(*models, secrets=SECRETS, audit_log=str(path)) as bench:
            await until(lambda: bench.gateway.is_ready)
            body = {"model": "m", "messages": [{"role": "user", "content": "a secret"}], **fields}
            await bench.send("POST", CHAT, json=body, headers=ALICE)
            await bench.send("POST", CHAT, json=body)
            await bench.send("POST", CHAT, json={"model": "nobody"})
    return lines(path)


def _telling(answer: dict[str, Any]) -> Any:
    from aiohttp import web

    async def handler(_: web.Request) -> web.Response:
        return web.json_response(answer)

    return handler


async def test_metadata_says_who_asked_what_for_how_much_and_nothing_of_what_was_said(tmp_path: Path) -> None:
    good, refused = await asked(tmp_path / "audit.jsonl", Audit.METADATA)

    assert (good["who"], good["client"], good["model"]) == ("default/keys/alice", "127.0.0.1", "default/m")
    assert (good["request_id"], good["status"], good["pod"], good["attempts"]) == ("r-1", 200, "m-1", 1)
    assert (good["prompt_tokens"], good["output_tokens"]) == (4, 6)
    assert 0 < good["first_byte_seconds"] <= good["seconds"] < 60
    assert good["time"].endswith("Z")
    assert len(good["trace_id"]) == 32
    assert (refused["who"], refused["status"], refused["pod"]) == (None, 401, None)
    assert "secret" not in json.dumps([good, refused])


async def test_full_has_what_was_asked_too_but_no_key(tmp_path: Path) -> None:
    good, refused = await asked(tmp_path / "audit.jsonl", Audit.FULL, temperature=0.5)

    assert good["request"]["messages"][0]["content"] == "a secret"
    assert good["request"]["temperature"] == 0.5
    assert refused["status"] == 401
    assert "sk-alice" not in json.dumps([good, refused])


async def test_none_writes_nothing(tmp_path: Path) -> None:
    assert await asked(tmp_path / "audit.jsonl", Audit.NONE) == []


async def test_a_held_request_says_how_long(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with a_gateway(a_model("m", hold_timeout_s=0.3), audit_log=str(path)) as bench:
        await bench.ask()

    (line,) = lines(path)
    assert line["status"] == 503
    assert line["held_seconds"] >= 0.3


def test_a_long_request_is_cut_and_any_text_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BODY_BYTES", 10)

    cut = line_of({"a": 1}, b'{"model": "m", "x": 1}')
    pretty = line_of({"a": 1}, b'{\n"x":1}')
    strange = line_of({"a": "\ud800 \u2028"}, b"")

    assert json.loads(cut) == {"a": 1, "request_text": '{"model": ', "request_bytes": 22}
    assert json.loads(pretty) == {"a": 1, "request": {"x": 1}}
    assert [text.count("\n") for text in (cut, pretty, strange)] == [1, 1, 1]
    assert json.loads(strange) == {"a": "\ud800 \u2028"}
    assert strange.isascii()


def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path, moved = tmp_path / "audit.jsonl", tmp_path / "audit.1.jsonl"
    log = AuditLog(str(path), Metrics())
    log.write({"n": 1})
    _wait_for(path)
    path.rename(moved)
    log.write({"n": 2})
    log.close()

    assert (lines(moved), lines(path)) == ([{"n": 1}], [{"n": 2}])


def _wait_for(path: Path) -> None:
    for _ in range(2000):
        if lines(path):
            return
        threading.Event().wait(0.005)
    raise AssertionError(f"nothing in {path}")


def test_what_finds_the_queue_full_or_cannot_be_written_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metrics = Metrics()
    nowhere = AuditLog(str(tmp_path / "no folder" / "audit.jsonl"), metrics)
    nowhere.write({"n": 1})
    nowhere.close()
    assert lost(metrics) == 1

    monkeypatch.setattr(audit, "MAX_WAITING_BYTES", 100)
    log = AuditLog(str(tmp_path / "audit.jsonl"), metrics)
    log.write({"n": 2}, b'{"x": "' + b"x" * 200 + b'"}')
    log.close()

    assert lost(metrics) == 2
    assert lines(tmp_path / "audit.jsonl") == []

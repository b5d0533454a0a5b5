from __future__ import annotations

import json
import logging

import aiohttp

from octavo_operator.logs import Formatter
from octavo_operator.metrics import Metrics
from octavo_operator.web import make_app, serving


async def test_port_tells_metrics_health_and_readiness() -> None:
    metrics, state = Metrics(), {"trouble": "", "ready": False}
    metrics.errors.labels(reason="NameTaken").inc()
    app = make_app(metrics, trouble=lambda: str(state["trouble"]), is_ready=lambda: bool(state["ready"]))

    async with serving(app, host="127.0.0.1", port=0) as port, aiohttp.ClientSession() as session:

        async def get(path: str) -> tuple[int, str]:
            async with session.get(f"http://127.0.0.1:{port}{path}") as response:
                return response.status, await response.text()

        assert (await get("/healthz"))[0] == 200
        assert (await get("/readyz"))[0] == 503
        state |= {"trouble": "stuck for 400 s", "ready": True}
        assert await get("/healthz") == (503, "stuck for 400 s")
        assert (await get("/readyz"))[0] == 200
        assert 'octavo_operator_reconcile_errors_total{reason="NameTaken"} 1.0' in (await get("/metrics"))[1]


def test_log_lines_carry_their_fields() -> None:
    record = logging.makeLogRecord({"name": "octavo", "levelname": "INFO", "msg": "hello", "resource": "a/b"})

    as_json = json.loads(Formatter(as_json=True).format(record))

    assert (as_json["message"], as_json["resource"], as_json["level"]) == ("hello", "a/b", "INFO")
    assert Formatter(as_json=False).format(record).endswith("INFO octavo hello resource=a/b")

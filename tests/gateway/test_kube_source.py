"""List and watch against a transport that the test plays, and once against a real HTTP server through the real client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from octavo_gateway import kube_source
from octavo_gateway.endpoints import RoutingTable
from octavo_gateway.errors import KubeApiError
from octavo_gateway.kube_source import KubeApiTransport, KubeSource
from octavo_gateway.metrics import Metrics
from octavo_testing.gateway import a_model, until

MODELS = "/apis/octavo.dev/v1alpha1/modeldeployments"
PODS = "/api/v1/pods"
Event = dict[str, Any] | KubeApiError | None


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_source, "MAX_BACKOFF_S", 0.01)
    monkeypatch.setattr(kube_source, "PUBLISH_AFTER_S", 0.0)


def a_deployment(name: str = "m", *, version: str = "1", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"namespace": "default", "name": name, "resourceVersion": version}, "spec": spec}


def a_pod(name: str = "m-1", *, model: str = "m", version: str = "1", **metadata: Any) -> dict[str, Any]:
    labels = {"octavo.dev/modeldeployment": model}
    return {
        "metadata": {"namespace": "default", "name": name, "resourceVersion": version, "labels": labels, **metadata},
        "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    }


def event(kind: str, thing: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": thing}


@dataclass
class PlayedTransport:
    """Lists what is in ``objects``; a watch yields what the test puts: an event, an error to raise, None for an end."""

    objects: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {MODELS: [], PODS: []})
    version: str = "100"
    page_size: int = 1000
    calls: list[tuple[str, str, dict[str, str], object]] = field(default_factory=list)
    failures: list[KubeApiError] = field(default_factory=list)
    watches: dict[str, asyncio.Queue[Event]] = field(default_factory=dict)

    async def request(self, method: str, path: str, query: Mapping[str, str], body: object = None) -> dict[str, Any]:
        self.calls.append((method, path, dict(query), body))
        if self.failures:
            raise self.failures.pop(0)
        begin = int(query.get("continue", 0))
        things = self.objects.get(path, [])
        more = {"continue": str(begin + self.page_size)} if begin + self.page_size < len(things) else {}
        return {"metadata": {"resourceVersion": self.version, **more}, "items": things[begin : begin + self.page_size]}

    async def watch(self, path: str, query: Mapping[str, str]) -> AsyncIterator[dict[str, Any]]:
        self.calls.append(("WATCH", path, dict(query), None))
        while (happened := await self.queue(path).get()) is not None:
            if isinstance(happened, KubeApiError):
                raise happened
            yield happened

    def queue(self, path: str) -> asyncio.Queue[Event]:
        return self.watches.setdefault(path, asyncio.Queue())

    def count(self, kind: str, path: str) -> int:
        return sum((method, where) == (kind, path) for method, where, _, _ in self.calls)

    def last_query(self, kind: str, path: str) -> dict[str, str]:
        return next(query for method, where, query, _ in reversed(self.calls) if (method, where) == (kind, path))


@dataclass
class Watched:
    source: KubeSource
    metrics: Metrics
    tables: list[RoutingTable]

    @property
    def table(self) -> RoutingTable:
        return self.tables[-1] if self.tables else RoutingTable(is_complete=False)


@contextlib.asynccontextmanager
async def a_source(transport: Any, **options: Any) -> AsyncIterator[Watched]:
    tables: list[RoutingTable] = []
    metrics = Metrics()
    source = KubeSource(transport, tables.append, metrics, rng=random.Random(1), **options)
    task = asyncio.create_task(source.run())
    try:
        yield Watched(source, metrics, tables)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_the_first_table_has_what_was_listed() -> None:
    transport = PlayedTransport({MODELS: [a_deployment()], PODS: [a_pod()]})

    async with a_source(transport) as watched:
        await until(lambda: watched.table.is_complete)

    assert [replica.pod for replica in watched.table.models["default/m"].replicas] == ["m-1"]
    assert transport.last_query("GET", PODS)["labelSelector"] == (
        "app.kubernetes.io/managed-by=octavo,app.kubernetes.io/component=server"
    )


async def test_a_long_list_is_read_in_pages() -> None:
    names = [f"m{number}" for number in range(7)]
    transport = PlayedTransport({MODELS: [a_deployment(name) for name in names], PODS: []}, page_size=3)

    async with a_source(transport) as watched:
        await until(lambda: watched.table.is_complete)

    assert sorted(watched.table.owners) == names
    assert transport.count("GET", MODELS) == 3


async def test_the_watch_begins_where_the_list_ended_and_is_bounded_in_time() -> None:
    transport = PlayedTransport()

    async with a_source(transport):
        await until(lambda: transport.count("WATCH", MODELS) == 1)

    query = transport.last_query("WATCH", MODELS)
    assert (query["resourceVersion"], query["allowWatchBookmarks"], query["watch"]) == ("100", "true", "true")
    assert 0 < int(query["timeoutSeconds"]) < kube_source.READ_TIMEOUT_S


async def test_events_change_the_table() -> None:
    transport = PlayedTransport({MODELS: [a_deployment()], PODS: []})
    async with a_source(transport) as watched:
        pods = transport.queue(PODS)
        await until(lambda: watched.table.is_complete)

        def replicas() -> list[tuple[str, bool]]:
            return [(replica.pod, replica.is_routable) for replica in watched.table.models["default/m"].replicas]

        await pods.put(event("ADDED", a_pod("m-1")))
        await until(lambda: replicas() == [("m-1", True)])
        await pods.put(event("MODIFIED", a_pod("m-1", deletionTimestamp="now")))
        await until(lambda: replicas() == [("m-1", False)])
        await pods.put(event("DELETED", a_pod("m-1")))
        await until(lambda: replicas() == [])


async def test_an_event_that_changes_nothing_for_routing_makes_no_new_table() -> None:
    asleep = a_deployment("asleep", version="5", replicas=0, scaling={"maxReplicas": 2})
    transport = PlayedTransport({MODELS: [a_deployment(), asleep], PODS: [a_pod()]})
    async with a_source(transport) as watched:
        await until(lambda: watched.table.is_complete)
        before = watched.table
        for version in range(101, 110):
            told = {**a_deployment(version=str(version)), "status": {"observedGeneration": version}}
            await transport.queue(MODELS).put(event("MODIFIED", told))
            await transport.queue(PODS).put(event("MODIFIED", a_pod(version=str(version), annotations={"a": "b"})))
        await until(lambda: transport.queue(MODELS).empty() and transport.queue(PODS).empty())
        await asyncio.sleep(0.02)
        assert watched.table is before

        # A wake needs the newest version.
        asleep["metadata"] = {**asleep["metadata"], "resourceVersion": "111"}
        await transport.queue(MODELS).put(event("MODIFIED", asleep))
        await until(lambda: watched.table.models["default/asleep"].resource_version == "111")


async def test_a_watch_that_ends_goes_on_from_the_last_version_seen() -> None:
    transport = PlayedTransport()
    async with a_source(transport):
        await until(lambda: transport.count("WATCH", MODELS) == 1)
        await transport.queue(MODELS).put(event("ADDED", a_deployment(version="105")))
        await transport.queue(MODELS).put(event("BOOKMARK", {"metadata": {"resourceVersion": "120"}}))
        await transport.queue(MODELS).put(None)
        await until(lambda: transport.count("WATCH", MODELS) == 2)

    assert transport.last_query("WATCH", MODELS)["resourceVersion"] == "120"
    assert transport.count("GET", MODELS) == 1


async def test_a_watch_that_ends_at_once_each_time_is_not_begun_in_a_hot_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_source, "MAX_BACKOFF_S", 0.2)
    transport = PlayedTransport()
    for _ in range(1000):
        transport.queue(MODELS).put_nowait(None)
    async with a_source(transport) as watched:
        await until(lambda: transport.count("WATCH", MODELS) >= 3)
        await asyncio.sleep(0.3)
        failures = watched.metrics.exposition().decode()

    assert transport.count("WATCH", MODELS) < 10
    assert 'octavo_gateway_source_errors_total{what="watch"}' in failures


@pytest.mark.parametrize("is_event", [True, False])
async def test_a_version_that_is_too_old_lists_anew_and_drops_what_is_gone(is_event: bool) -> None:
    """410 comes as an ERROR event, or as the status of the watch itself."""
    transport = PlayedTransport({MODELS: [a_deployment("gone"), a_deployment("stays")], PODS: []})
    async with a_source(transport) as watched:
        await until(lambda: len(watched.table.models) == 2)
        transport.objects[MODELS] = [a_deployment("stays"), a_deployment("new")]
        gone = {"code": 410, "message": "too old resource version"}
        await transport.queue(MODELS).put(event("ERROR", gone) if is_event else KubeApiError(410, "Gone"))
        await until(lambda: sorted(watched.table.models) == ["default/new", "default/stays"])

    assert transport.count("GET", MODELS) == 2


async def test_a_cut_or_silent_watch_is_begun_again_without_a_list() -> None:
    transport = PlayedTransport({MODELS: [a_deployment()], PODS: []})
    async with a_source(transport) as watched:
        await until(lambda: watched.table.is_complete)
        await transport.queue(MODELS).put(KubeApiError(0, "ServerTimeoutError"))
        await until(lambda: transport.count("WATCH", MODELS) == 2)
        await transport.queue(MODELS).put(event("ADDED", a_deployment("second")))
        await until(lambda: len(watched.table.models) == 2)

    assert transport.count("GET", MODELS) == 1


@pytest.mark.parametrize("status", [0, 401, 403, 404, 429, 500])
async def test_a_failing_list_is_tried_until_it_works(status: int) -> None:
    transport = PlayedTransport({MODELS: [a_deployment()], PODS: []})
    transport.failures = [KubeApiError(status, "no")] * 5
    async with a_source(transport) as watched:
        assert not watched.table.is_complete
        await until(lambda: watched.table.is_complete)

    assert list(watched.table.models) == ["default/m"]


async def test_while_the_api_server_is_away_the_table_stands() -> None:
    transport = PlayedTransport({MODELS: [a_deployment()], PODS: [a_pod()]})
    async with a_source(transport) as watched:
        await until(lambda: watched.table.is_complete)
        for path in (MODELS, PODS):
            await transport.queue(path).put(KubeApiError(0, "away"))
        await until(lambda: transport.count("WATCH", PODS) >= 2)

        assert watched.table.models["default/m"].replicas[0].is_routable


async def test_an_object_that_cannot_be_read_does_not_stop_the_others() -> None:
    broken = a_deployment("broken", routing={"holdTimeout": "soon"})
    transport = PlayedTransport({MODELS: [broken, a_deployment("fine")], PODS: []})
    async with a_source(transport) as watched:
        await until(lambda: watched.table.is_complete)

    assert list(watched.table.models) == ["default/fine"]
    assert b'octavo_gateway_source_errors_total{what="object"} 1.0' in watched.metrics.exposition()


async def test_only_the_named_namespaces_are_read() -> None:
    paths = [f"/apis/octavo.dev/v1alpha1/namespaces/{name}/modeldeployments" for name in ("a", "b")]
    transport = PlayedTransport({path: [a_deployment(f"m{number}")] for number, path in enumerate(paths)})
    async with a_source(transport, namespaces=("a", "b")) as watched:
        await until(lambda: watched.table.is_complete)

    assert sorted(watched.table.models) == ["default/m0", "default/m1"]
    assert transport.count("GET", MODELS) == 0
    assert transport.count("GET", "/api/v1/namespaces/a/pods") == 1


async def test_a_table_is_complete_only_when_every_list_was_read() -> None:
    class OnePathFails(PlayedTransport):
        async def request(
            self, method: str, path: str, query: Mapping[str, str], body: object = None
        ) -> dict[str, Any]:
            if path == PODS:
                raise KubeApiError(403, "pods is forbidden")
            return await super().request(method, path, query, body)

    async with a_source(OnePathFails({MODELS: [a_deployment()]})) as watched:
        await until(lambda: bool(watched.tables))
        await asyncio.sleep(0.05)

    assert not watched.table.is_complete


async def test_a_wake_is_a_scale_patch_bound_to_the_version_that_was_seen() -> None:
    transport = PlayedTransport()
    source = KubeSource(transport, lambda _: None, Metrics())

    await source.wake(a_model("m", resource_version="41"))

    ((method, path, _, body),) = transport.calls
    assert (method, path) == ("PATCH", "/apis/octavo.dev/v1alpha1/namespaces/default/modeldeployments/m/scale")
    assert body == {"metadata": {"resourceVersion": "41"}, "spec": {"replicas": 1}}


async def test_a_secret_is_read_by_its_name_alone_and_decoded() -> None:
    class WithSecret(PlayedTransport):
        async def request(
            self, method: str, path: str, query: Mapping[str, str], body: object = None
        ) -> dict[str, Any]:
            await super().request(method, path, query, body)
            return {"kind": "Secret", "data": {"alice": "c2stYWxpY2U="}}

    transport = WithSecret()

    entries = await KubeSource(transport, lambda _: None, Metrics()).read_secret("team", "keys")

    assert entries == {"alice": b"sk-alice"}
    assert transport.calls == [("GET", "/api/v1/namespaces/team/secrets/keys", {}, None)]


async def test_a_burst_of_changes_makes_few_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_source, "PUBLISH_AFTER_S", 0.05)
    transport = PlayedTransport()
    async with a_source(transport) as watched:
        await until(lambda: watched.table.is_complete)
        before = len(watched.tables)
        for number in range(200):
            await transport.queue(MODELS).put(event("ADDED", a_deployment(f"m{number}")))
        await until(lambda: len(watched.table.models) == 200)

    assert len(watched.tables) - before <= 3


@contextlib.asynccontextmanager
async def an_api_server(tmp_path: Path, handler: Any) -> AsyncIterator[KubeApiTransport]:
    """The real client, by a kubeconfig, at a real HTTP server whose every request the test answers."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    path = tmp_path / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{runner.addresses[0][1]}"}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    }
    path.write_text(json.dumps(config))
    transport = await KubeApiTransport.open(str(path))
    try:
        yield transport
    finally:
        await transport.close()
        await runner.cleanup()


async def test_the_real_client_sends_token_query_and_merge_patch(tmp_path: Path) -> None:
    seen: list[tuple[str, str, str | None, str, str]] = []

    async def handler(request: web.Request) -> web.Response:
        headers = request.headers
        seen.append(
            (
                request.method,
                request.path_qs,
                headers.get("Authorization"),
                headers["Content-Type"],
                await request.text(),
            )
        )
        return web.json_response({"kind": "Scale"})

    async with an_api_server(tmp_path, handler) as transport:
        answer = await transport.request("PATCH", "/apis/x", {"fieldManager": "f"}, {"spec": {"replicas": 1}})

    assert answer == {"kind": "Scale"}
    assert seen == [
        (
            "PATCH",
            "/apis/x?fieldManager=f",
            "Bearer secret",
            "application/merge-patch+json",
            '{"spec": {"replicas": 1}}',
        )
    ]


async def test_the_real_client_tells_the_servers_refusal(tmp_path: Path) -> None:
    async def handler(_: web.Request) -> web.Response:
        return web.json_response({"kind": "Status", "message": "pods is forbidden"}, status=403)

    async with an_api_server(tmp_path, handler) as transport:
        with pytest.raises(KubeApiError, match="403: pods is forbidden") as refusal:
            await transport.request("GET", PODS, {})

    assert refusal.value.status == 403


async def test_the_real_client_streams_a_watch_and_takes_long_lines(tmp_path: Path) -> None:
    big = a_deployment("big", note="x" * 1_000_000)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for each in (event("ADDED", big), event("BOOKMARK", {"metadata": {"resourceVersion": "9"}})):
            await response.write(json.dumps(each).encode() + b"\n")
        return response

    async with an_api_server(tmp_path, handler) as transport:
        events = [each async for each in transport.watch(MODELS, {"watch": "true"})]

    assert [each["type"] for each in events] == ["ADDED", "BOOKMARK"]


async def test_a_silent_watch_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_source, "READ_TIMEOUT_S", 0.2)

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.Event().wait()
        return response

    async with an_api_server(tmp_path, handler) as transport, asyncio.timeout(5):
        with pytest.raises(KubeApiError, match="SocketTimeoutError"):
            await anext(transport.watch(MODELS, {}))


async def test_a_watch_that_is_cut_in_the_middle_of_a_line_is_an_error(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b'{"type": "ADDED", "obj')
        return response

    async with an_api_server(tmp_path, handler) as transport:
        with pytest.raises(KubeApiError, match="JSONDecodeError"):
            await anext(transport.watch(MODELS, {}))


async def test_an_api_server_that_is_away_is_status_0(tmp_path: Path) -> None:
    async def handler(request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        raise ConnectionResetError

    async with an_api_server(tmp_path, handler) as transport:
        with pytest.raises(KubeApiError) as away:
            await transport.request("GET", PODS, {})

    assert away.value.status == 0


async def test_without_a_cluster_opening_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(KubeApiError, match="give --kubeconfig FILE"):
        await KubeApiTransport.open()

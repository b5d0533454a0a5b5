"""The client over a real socket: what it sends, and that every failure is one kind of error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import certifi
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.config import incluster_config

from octavo_operator.errors import ClusterError
from octavo_operator.kube.client import KubeClient, proxy_of
from octavo_operator.kube.kinds import POD, SERVICE
from octavo_operator.metrics import Metrics


class FakeApi:
    """Answers from a list and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.headers: dict[str, str] = {}
        self.requests: list[dict[str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        asked = {"method": request.method, "path": request.path, "query": dict(request.query)}
        self.requests.append({**asked, "headers": request.headers, "body": await request.text()})
        status, body = self.answers.pop(0)
        if isinstance(body, str):
            return web.Response(status=status, text=body, headers=self.headers)
        return web.json_response(body, status=status)


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture
async def kube(api: FakeApi, tmp_path: Path) -> AsyncIterator[KubeClient]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.handle)
    async with TestServer(app) as server:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.port}"}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        async with KubeClient.connect(path) as client:
            yield client


async def test_list_reads_all_pages_and_names_the_kind(kube: KubeClient, api: FakeApi) -> None:
    api.answers = [
        (200, {"metadata": {"continue": "next", "resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}}]}),
        (200, {"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]}),
    ]

    listing = await kube.list_kind(POD, "ns", "a=b")

    assert [(item["kind"], item["metadata"]["name"]) for item in listing.items] == [("Pod", "a"), ("Pod", "b")]
    assert listing.version == 7
    assert api.requests[0]["path"] == "/api/v1/namespaces/ns/pods"
    assert api.requests[0]["query"]["labelSelector"] == "a=b"
    assert api.requests[1]["query"]["continue"] == "next"
    assert api.requests[0]["headers"]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://api.example:6443", "http://proxy:3128"),
        ("https://10.96.0.1:443", None),
        ("http://api.example:80", None),
    ],
)
def test_proxy_comes_from_the_environment(url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "10.96.0.1")

    assert proxy_of(url) == proxy


async def test_requests_ask_no_thread_for_proxies_or_passwords(
    kube: KubeClient, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hops to a thread for each request would be a tenth of the operator's time."""

    async def refuse(*_: Any) -> None:
        raise AssertionError("a request used a thread")

    monkeypatch.setattr(asyncio, "to_thread", refuse)
    api.answers = [(200, {})]

    assert await kube.get_path("/apis") == {}


async def test_answer_that_is_no_list_is_not_taken_for_an_empty_one(kube: KubeClient, api: FakeApi) -> None:
    """Such as the page of a proxy: everything would count as deleted."""
    api.answers = [(200, {"message": "welcome"})]

    with pytest.raises(ClusterError, match="no list of Kubernetes"):
        await kube.list_kind(POD, "ns", "a=b")


async def test_apply_is_server_side_with_one_field_manager(kube: KubeClient, api: FakeApi) -> None:
    api.answers = [(200, {"ok": True})]
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "qwen", "namespace": "ns"}}

    assert await kube.apply(SERVICE, manifest, force=True) == {"ok": True}

    request = api.requests[0]
    assert (request["method"], request["path"]) == ("PATCH", "/api/v1/namespaces/ns/services/qwen")
    assert request["query"] == {"fieldManager": "octavo-operator", "force": "true", "fieldValidation": "Strict"}
    assert request["headers"]["Content-Type"] == "application/apply-patch+yaml; charset=utf-8"


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/api/v1/nodes", "nodes"),
        ("/api/v1/namespaces/team/pods", "pods"),
        ("/api/v1/namespaces/team", "namespaces"),
        ("/apis/octavo.dev/v1alpha1/namespaces/team/modeldeployments/qwen/status", "modeldeployments/status"),
        ("/apis", ""),
    ],
)
async def test_each_exchange_is_counted_by_what_it_is_about(
    kube: KubeClient, api: FakeApi, path: str, resource: str
) -> None:
    metrics = Metrics()
    kube.on_answer = metrics.count_request
    api.answers = [(404, {})]

    await kube.get_path(path)

    labels = {"method": "GET", "resource": resource, "code": "404"}
    assert metrics.registry.get_sample_value("octavo_operator_requests_total", labels) == 1


async def test_absent_object_is_none(kube: KubeClient, api: FakeApi) -> None:
    api.answers = [(404, {"reason": "NotFound", "message": "no"}), (200, {"items": []})]

    assert await kube.get_path("/x") is None
    assert await kube.find(SERVICE, "ns", "qwen") is None
    assert api.requests[1]["query"] == {"fieldSelector": "metadata.name=qwen"}


async def test_deletion_of_what_has_gone_is_done(kube: KubeClient, api: FakeApi) -> None:
    api.answers = [(404, {"message": "gone"}), (409, {"message": "another uid"}), (403, {"message": "no right"})]

    await kube.delete(SERVICE, "ns", "qwen", uid="u1")
    await kube.delete(SERVICE, "ns", "qwen", uid="u1")
    with pytest.raises(ClusterError, match="no right"):
        await kube.delete(SERVICE, "ns", "qwen", uid="u1")

    assert '"uid": "u1"' in api.requests[0]["body"]


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (422, {"reason": "Invalid", "message": "bad field"}, "422 Invalid: bad field"),
        (500, "<html>oops</html>", "<html>oops</html>"),
        (200, "[1]", None),
    ],
)
async def test_refusal_is_a_cluster_error(
    kube: KubeClient, api: FakeApi, status: int, body: Any, said: str | None
) -> None:
    api.answers = [(status, body)]
    if said is None:
        assert await kube.get_path("/x") == {"message": "[1]"}
        return

    with pytest.raises(ClusterError) as refused:
        await kube.get_path("/x")

    assert refused.value.status == status
    assert said in str(refused.value)


async def test_busy_server_says_how_long_to_wait(kube: KubeClient, api: FakeApi) -> None:
    api.answers = [(429, "Too many requests, please try again later.")]
    api.headers = {"Retry-After": "3"}

    with pytest.raises(ClusterError, match="Too many requests") as refused:
        await kube.get_path("/api/v1/pods")

    assert (refused.value.retry_after_s, refused.value.is_passing) == (3, True)


async def test_unreachable_server_is_a_cluster_error(tmp_path: Path) -> None:
    config = {
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))

    told: list[tuple[str, str, int]] = []
    async with KubeClient.connect(path) as client:
        client.on_answer = lambda *exchange: told.append(exchange)
        with pytest.raises(ClusterError) as refused:
            await client.get_path("/x")

    assert refused.value.status == 0
    assert told == [("GET", "/x", 0)]


async def test_missing_kubeconfig_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no way to the API server"):
        async with KubeClient.connect(tmp_path / "absent"):
            pass


async def test_watches_get_the_same_credentials(kube: KubeClient) -> None:
    credentials = await kube.credentials()

    assert credentials.token == "secret"
    assert credentials.server.startswith("http://127.0.0.1:")


async def test_watches_get_the_token_of_the_pods_own_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library hands it over as "bearer TOKEN", in lower case."""
    (tmp_path / "token").write_text("secret")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", certifi.where())
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")

    async with KubeClient.connect(None) as kube:
        credentials = await kube.credentials()

    assert credentials.token == "secret"
    assert credentials.server == "https://127.0.0.1:6443"

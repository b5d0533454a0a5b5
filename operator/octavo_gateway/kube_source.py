"""Feeds the router from Kubernetes: lists and watches ModelDeployments and their pods, and wakes models from zero.

A watch ends after ``WATCH_S`` by the server's own hand and after ``READ_TIMEOUT_S`` of silence by ours, so that a cut
or silent connection costs at most that long. 410 (too old) lists anew. While the API server is away the last table
stands: routing goes on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import aiohttp
from kubernetes.aio import client, config

from .endpoints import Model, RoutingTable
from .errors import KubeApiError
from .kube_objects import (
    POD_SELECTOR,
    KubeObject,
    build_table,
    object_key,
    read_model,
    read_pod,
)
from .metrics import Metrics
from .quota_loops import QuotaBackend

logger = logging.getLogger(__name__)

MODELS_PATH = "/apis/octavo.dev/v1alpha1"
CORE_PATH = "/api/v1"
PAGE_SIZE = 500
WATCH_S = 40
READ_TIMEOUT_S = 55.0
REQUEST_TIMEOUT_S = 20.0
MAX_BACKOFF_S = 15.0
SHORT_WATCH_S = 1.0
"""A watch that ends sooner without a word is a failure, so that it is not begun again in a hot loop."""
PUBLISH_AFTER_S = 0.02
"""Changes that come within this time make one new table."""

GONE = 410
# The last two come from credential plug-ins of a kubeconfig.
UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError, ValueError, config.ConfigException, client.ApiException)
Query = Mapping[str, str]
Facts = TypeVar("Facts")


class KubeTransport(Protocol):
    """The edge to the API server; both methods raise KubeApiError and nothing else."""

    async def request(self, method: str, path: str, query: Query, body: object = None) -> dict[str, Any]: ...

    def watch(self, path: str, query: Query) -> AsyncIterator[dict[str, Any]]: ...


class KubeSource:
    """Owns one reflector per kind and namespace; publishes a table soon after anything changed."""

    def __init__(
        self,
        transport: KubeTransport,
        publish: Callable[[RoutingTable], None],
        metrics: Metrics,
        *,
        namespaces: Sequence[str] = (),
        quota_backend: QuotaBackend | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.quota_backend = quota_backend
        self._transport = transport
        self._publish = publish
        self._dirty = asyncio.Event()
        rng = rng or random.Random()
        scopes = [f"/namespaces/{name}" for name in namespaces] or [""]
        self._models = [
            Reflector(
                transport, f"{MODELS_PATH}{scope}/modeldeployments", {}, read_model, self._dirty.set, metrics, rng
            )
            for scope in scopes
        ]
        self._pods = [
            Reflector(
                transport,
                f"{CORE_PATH}{scope}/pods",
                {"labelSelector": POD_SELECTOR},
                read_pod,
                self._dirty.set,
                metrics,
                rng,
            )
            for scope in scopes
        ]

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for models in self._models:
                group.create_task(models.run())
            for pods in self._pods:
                group.create_task(pods.run())
            group.create_task(self._publish_changes())

    async def wake(self, model: Model) -> None:
        """PATCH the scale subresource 0 → 1; the resource version makes it void where somebody else was faster."""
        namespace, name = model.key.split("/", 1)
        body = {"metadata": {"resourceVersion": model.resource_version}, "spec": {"replicas": 1}}
        path = f"{MODELS_PATH}/namespaces/{namespace}/modeldeployments/{name}/scale"
        await self._transport.request("PATCH", path, {"fieldManager": "octavo-gateway"}, body)

    async def read_secret(self, namespace: str, name: str) -> dict[str, bytes]:
        """The entries of a Secret, decoded."""
        secret = await self._transport.request("GET", f"{CORE_PATH}/namespaces/{namespace}/secrets/{name}", {})
        try:
            return {entry: base64.b64decode(value) for entry, value in (secret.get("data") or {}).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise KubeApiError(0, f"the Secret cannot be decoded: {error}") from error

    async def _publish_changes(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(PUBLISH_AFTER_S)
            self._dirty.clear()
            self._publish(self.table())

    def table(self) -> RoutingTable:
        return build_table(
            (facts for reflector in self._models for facts in reflector.items.values()),
            (facts for reflector in self._pods for facts in reflector.items.values()),
            is_complete=all(models.is_listed for models in self._models) and all(pods.is_listed for pods in self._pods),
        )


class Reflector(Generic[Facts]):
    """Keeps the facts of all objects under one path up to date; ``items`` is replaced, or changed, only here."""

    def __init__(
        self,
        transport: KubeTransport,
        path: str,
        query: Query,
        read: Callable[[KubeObject], Facts | None],
        changed: Callable[[], None],
        metrics: Metrics,
        rng: random.Random,
    ) -> None:
        self.items: dict[str, Facts] = {}
        self.is_listed = False
        self._transport = transport
        self._path = path
        self._query = dict(query)
        self._read = read
        self._changed = changed
        self._metrics = metrics
        self._rng = rng
        self._version = ""
        self._failures = 0
        self._last_failure = ""

    async def run(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                began = time.monotonic()
                if not await self._watch() and time.monotonic() - began < SHORT_WATCH_S:
                    raise KubeApiError(0, "the watch ended at once")
                self._failures = 0
            except KubeApiError as error:
                if error.status == GONE:
                    self._version = ""
                await self._back_off(error)

    async def _list(self) -> None:
        items: dict[str, Facts] = {}
        query = {**self._query, "limit": str(PAGE_SIZE)}
        while True:
            page = await self._transport.request("GET", self._path, query)
            for thing in page.get("items") or ():
                self._take(items, thing)
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                break
            query["continue"] = metadata["continue"]
        self.items, self._version, self.is_listed = items, metadata.get("resourceVersion", ""), True
        self._last_failure = ""
        self._changed()

    async def _watch(self) -> int:
        """The number of events until the watch ended."""
        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(WATCH_S),
        }
        heard = 0
        async for event in self._transport.watch(self._path, query):
            self._failures = 0
            heard += 1
            self._apply(event)
        return heard

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind, thing = event.get("type"), event.get("object") or {}
        if kind == "ERROR":
            raise KubeApiError(int(thing.get("code", 0)), str(thing.get("message", "watch failed")))
        self._version = (thing.get("metadata") or {}).get("resourceVersion", self._version)
        if kind not in ("ADDED", "MODIFIED", "DELETED"):
            return
        key = object_key(thing)
        before = self.items.get(key)
        if kind == "DELETED":
            self.items.pop(key, None)
        else:
            self._take(self.items, thing)
        # Most events are of what routing does not go by, such as a status, and a table of thousands is dear.
        if self.items.get(key) != before:
            self._changed()

    def _take(self, items: dict[str, Facts], thing: KubeObject) -> None:
        """Read one object into ``items``; one that cannot be read must not stop the others."""
        key = object_key(thing)
        try:
            facts = self._read(thing)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            logger.warning("ignored an object", extra={"object": key, "why": str(error)})
            self._metrics.source_errors.labels("object").inc()
            facts = None
        if facts is None:
            items.pop(key, None)
        else:
            items[key] = facts

    async def _back_off(self, error: KubeApiError) -> None:
        self._failures += 1
        self._metrics.source_errors.labels("watch" if self._version else "list").inc()
        if str(error) != self._last_failure and error.status != GONE:
            logger.warning("cannot read from the API server", extra={"path": self._path, "why": str(error)})
            self._last_failure = str(error)
        longest = min(MAX_BACKOFF_S, 0.25 * 2 ** min(self._failures, 10))
        await asyncio.sleep(longest * self._rng.uniform(0.5, 1.0))


class KubeApiTransport:
    """The official asyncio client, for its configuration and credentials; bodies stay plain JSON."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def open(cls, kubeconfig: str = "") -> KubeApiTransport:
        """From a kubeconfig file, or in a pod from its service account (whose token is read anew every minute)."""
        configuration = client.Configuration()
        try:
            if kubeconfig:
                await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
            else:
                config.load_incluster_config(client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            hint = "" if kubeconfig else "; outside of a cluster give --kubeconfig FILE"
            raise KubeApiError(0, f"no access to a cluster: {error}{hint}") from error
        return cls(client.ApiClient(configuration))

    async def close(self) -> None:
        await self._api.close()

    async def request(self, method: str, path: str, query: Query, body: object = None) -> dict[str, Any]:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
        try:
            response = await self._send(method, path, query, body, timeout)
            async with response:
                answer: dict[str, Any] = await response.json(content_type=None)
        except UNREACHABLE as error:
            raise KubeApiError(0, f"{type(error).__name__}: {error}") from error
        return answer

    async def watch(self, path: str, query: Query) -> AsyncIterator[dict[str, Any]]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_TIMEOUT_S, sock_read=READ_TIMEOUT_S)
        try:
            response = await self._send("GET", path, query, None, timeout)
            async with response:
                async for line in response.content:
                    yield json.loads(line)
        except UNREACHABLE as error:
            raise KubeApiError(0, f"{type(error).__name__}: {error}") from error

    async def _send(
        self, method: str, path: str, query: Query, body: object, timeout: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json"
        prepared = await self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        wrapped = await self._api.call_api(*prepared, _request_timeout=timeout)
        response: aiohttp.ClientResponse = wrapped.response
        if response.status >= 400:
            async with response:
                text = (await response.text())[:2000]
            raise KubeApiError(response.status, _status_message(text))
        return response


def _status_message(text: str) -> str:
    """The sentence of a Kubernetes Status object, else the text itself."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip() or "no message"

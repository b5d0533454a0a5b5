"""The Kubernetes API as five verbs over plain JSON: get, list, apply, patch, create, delete.

The asyncio client of the official package carries credentials, TLS and connections; its generated models are not used,
because what the operator sends is exactly what `desired/` rendered. Every failure is a `ClusterError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio import client, config

from octavo_operator.api.types import JsonObject
from octavo_operator.desired.names import FIELD_MANAGER
from octavo_operator.errors import ClusterError
from octavo_operator.kube.kinds import Kind

REQUEST_TIMEOUT_S = 8.0
PAGE_SIZE = 500
USER_AGENT = "octavo-operator"

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml; charset=utf-8"
"""With its parameter, because the client would encode a body of the bare type once more."""
JSON = "application/json"
METADATA_ONLY = f"{JSON};as=PartialObjectMetadata;g=meta.k8s.io;v=v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """How to reach the API server, for the watches, which have a client of their own."""

    server: str
    ca_path: str | None
    verify: bool
    token: str | None
    certificate_path: str | None
    private_key_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All objects of a kind at one moment."""

    items: list[dict[str, Any]]
    version: int
    """The resource version of that moment."""


class KubeClient:
    """Owns the connections to one API server."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.on_answer: Callable[[str, str, int], None] = lambda _method, _path, _status: None
        """Told of each exchange, with status 0 where no answer came."""

    @classmethod
    @asynccontextmanager
    async def connect(cls, kubeconfig: Path | None) -> AsyncIterator[KubeClient]:
        """A client by the kubeconfig file, or by the pod's service account where there is none."""
        configuration = client.Configuration()
        try:
            if kubeconfig is None:
                config.load_incluster_config(client_configuration=configuration)
            else:
                await config.load_kube_config(config_file=str(kubeconfig), client_configuration=configuration)
        except (config.ConfigException, OSError) as error:
            raise ClusterError(0, "NoCredentials", f"no way to the API server: {error}") from error
        # Left to itself, aiohttp asks .netrc and the environment in a thread, twice for each request.
        configuration.proxy = configuration.proxy or proxy_of(configuration.host)
        configuration.client_session_kwargs = {"trust_env": False}
        api = client.ApiClient(configuration)
        api.user_agent = USER_AGENT
        try:
            yield cls(api)
        finally:
            await api.close()

    async def credentials(self) -> Credentials:
        """What is valid now; a service account's token is read anew."""
        configuration = self._api.configuration
        settings = (await configuration.auth_settings()).get("BearerToken", {})
        header = str(settings.get("value") or "")
        return Credentials(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            verify=configuration.verify_ssl,
            # The pod's own account comes as "bearer TOKEN", a kubeconfig's as "Bearer TOKEN".
            token=header.rpartition(" ")[2] or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )

    async def find(self, kind: Kind, namespace: str, name: str) -> dict[str, Any] | None:
        """One object whatever its labels; by a list, because the right to list is there for the watches anyway."""
        query = {"fieldSelector": f"metadata.name={name}"}
        answer = await self.request("GET", kind.path(namespace), query=query)
        return next(iter(answer.get("items") or ()), None)

    async def get_path(self, path: str) -> dict[str, Any] | None:
        """None where there is no such object."""
        try:
            return await self.request("GET", path)
        except ClusterError as error:
            if error.status == 404:
                return None
            raise

    async def is_readable(self, path: str) -> bool:
        """Whether an object is there and may be read, without reading it: its metadata alone is sent.

        Raises ClusterError where it may not be read, or nobody knows.
        """
        try:
            await self.request("GET", path, accept=METADATA_ONLY)
        except ClusterError as error:
            if error.status == 404:
                return False
            raise
        return True

    async def list_kind(self, kind: Kind, namespace: str, selector: str) -> Listing:
        """All pages; items carry kind and apiVersion, which lists leave out."""
        listing = await self.list_path(kind.path(namespace), selector)
        items = [{**item, "kind": kind.name, "apiVersion": kind.api_version} for item in listing.items]
        return Listing(items=items, version=listing.version)

    async def list_path(self, path: str, selector: str = "") -> Listing:
        query = {"limit": str(PAGE_SIZE), **({"labelSelector": selector} if selector else {})}
        items: list[dict[str, Any]] = []
        while True:
            page = await self.request("GET", path, query=query)
            items += page.get("items") or []
            metadata = page.get("metadata", {})
            token, version = metadata.get("continue"), str(metadata.get("resourceVersion", ""))
            if not version.isdigit():
                raise ClusterError(0, "NoList", f"GET {path}: the answer is no list of Kubernetes")
            if not token:
                # Every page is of the moment of the first.
                return Listing(items=items, version=int(version))
            query["continue"] = token

    async def apply(self, kind: Kind, manifest: JsonObject, *, force: bool) -> dict[str, Any]:
        """Server-side apply with our one field manager; without `force` another's value is a 409."""
        metadata = manifest["metadata"]
        return await self.apply_at(kind.path(metadata.get("namespace", ""), metadata["name"]), manifest, force=force)

    async def apply_at(self, path: str, manifest: JsonObject, *, force: bool) -> dict[str, Any]:
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false", "fieldValidation": "Strict"}
        return await self.request("PATCH", path, query=query, body=_as_yaml(manifest), content_type=APPLY_PATCH)

    async def merge_patch(self, path: str, body: JsonObject) -> dict[str, Any]:
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request("PATCH", path, query=query, body=body, content_type=MERGE_PATCH)

    async def create(self, path: str, body: JsonObject) -> dict[str, Any]:
        return await self.request("POST", path, body=body)

    async def replace(self, path: str, body: JsonObject) -> dict[str, Any]:
        return await self.request("PUT", path, body=body)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str) -> None:
        """Deletes that very object; one that has gone or was replaced meanwhile is left alone."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self.request("DELETE", kind.path(namespace, name), body=options)
        except ClusterError as error:
            if error.status not in (404, 409):
                raise

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: JsonObject | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> dict[str, Any]:
        """One exchange; raises ClusterError for everything but 2xx."""
        url = f"{self._api.configuration.host}{path}{'?' + urlencode(query) if query else ''}"
        headers = {"Content-Type": content_type, "Accept": accept, "User-Agent": USER_AGENT}
        try:
            await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
            response = await self._api.call_api(
                method, url, headers, body=body, _request_timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
            )
            answer = _parse(await response.read())
        except (TimeoutError, aiohttp.ClientError, OSError, client.ApiException, config.ConfigException) as error:
            self.on_answer(method, path, 0)
            raise ClusterError(0, "Unreachable", f"{method} {path}: {error or type(error).__name__}") from error
        self.on_answer(method, path, response.status)
        if response.status >= 300:
            reason = str(answer.get("reason") or response.reason or "")
            message = str(answer.get("message") or response.reason or "")
            retry_after = str(response.headers.get("Retry-After", ""))
            raise ClusterError(
                response.status, reason, message, retry_after_s=float(retry_after) if retry_after.isdigit() else 0.0
            )
        return answer


def proxy_of(url: str) -> str | None:
    """The proxy that the environment (HTTPS_PROXY, NO_PROXY …) names for a server."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def _as_yaml(manifest: JsonObject) -> bytes:
    """JSON, but no character as a pair of surrogates, which YAML refuses, and none that YAML does not print."""
    text = json.dumps(manifest, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text).encode()


def _parse(data: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(data)
    except ValueError:
        return {"message": data[:200].decode(errors="replace")}
    return answer if isinstance(answer, dict) else {"message": str(answer)[:200]}

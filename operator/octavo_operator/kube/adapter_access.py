"""`metrics_adapter.kube_access` over the KubeClient: reviews, the aggregator's CA, our Secret, APIServices."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from octavo_operator.errors import ClusterError
from octavo_operator.kube.client import KubeClient
from octavo_operator.metrics_adapter.kube_access import (
    AccessDecision,
    KubeAccessError,
    PathAccess,
    ResourceAccess,
    StoredSecret,
    UserInfo,
)

ANSWER_WITHIN_S = 4.5
"""The aggregator waits 5 s for the adapter, which may ask the API server before it answers."""

_API_SERVICES = "/apis/apiregistration.k8s.io/v1/apiservices"
_CLUSTER_ROLES = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
_AUTHENTICATION = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"


class KubeAdapterAccess:
    """What the custom metrics adapter needs of the API server."""

    def __init__(self, kube: KubeClient) -> None:
        self._kube = kube

    async def review_token(self, token: str) -> UserInfo | None:
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        async with _as_access_error():
            answer = await self._kube.create("/apis/authentication.k8s.io/v1/tokenreviews", body)
        status = answer.get("status", {})
        if not status.get("authenticated"):
            return None
        user = status.get("user", {})
        return UserInfo(
            name=user.get("username", ""),
            uid=user.get("uid", ""),
            groups=tuple(user.get("groups") or ()),
            extra={key: tuple(values) for key, values in (user.get("extra") or {}).items()},
        )

    async def review_access(self, user: UserInfo, access: ResourceAccess | PathAccess) -> AccessDecision:
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {**_subject(user), **_attributes(access)},
        }
        async with _as_access_error():
            answer = await self._kube.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", body)
        status = answer.get("status", {})
        reason = status.get("reason") or status.get("evaluationError") or ""
        return AccessDecision(allowed=bool(status.get("allowed")), reason=reason)

    async def read_authentication_config(self) -> Mapping[str, str] | None:
        found = await self._get(_AUTHENTICATION)
        return None if found is None else found.get("data") or {}

    async def read_secret(self, namespace: str, name: str) -> StoredSecret | None:
        found = await self._get(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if found is None:
            return None
        data = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
        return StoredSecret(data=data, resource_version=found["metadata"]["resourceVersion"])

    async def replace_secret(self, namespace: str, name: str, secret: StoredSecret) -> bool:
        path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
        data = {key: base64.b64encode(value).decode() for key, value in secret.data.items()}
        async with _as_access_error():
            found = await self._kube.get_path(path)
            if found is None or found["metadata"]["resourceVersion"] != secret.resource_version:
                return False
            try:
                # The whole object as it was read keeps labels and type, and is refused when it is stale.
                await self._kube.replace(path, {**found, "data": data})
            except ClusterError as error:
                if error.status != 409:
                    raise
                return False
        return True

    async def read_api_service(self, name: str) -> dict[str, Any] | None:
        return await self._get(f"{_API_SERVICES}/{name}")

    async def apply_api_service(self, body: dict[str, Any]) -> None:
        path = f"{_API_SERVICES}/{body['metadata']['name']}"
        async with _as_access_error():
            await self._kube.apply_at(path, body, force=True)

    async def read_cluster_role_uid(self, name: str) -> str | None:
        found = await self._get(f"{_CLUSTER_ROLES}/{name}")
        return None if found is None else str(found["metadata"]["uid"])

    async def _get(self, path: str) -> dict[str, Any] | None:
        async with _as_access_error():
            return await self._kube.get_path(path)


@asynccontextmanager
async def _as_access_error() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            yield
    except TimeoutError:
        raise KubeAccessError(f"the API server did not answer within {ANSWER_WITHIN_S:.0f} s") from None
    except ClusterError as error:
        raise KubeAccessError(str(error)) from error


def _subject(user: UserInfo) -> dict[str, Any]:
    extra = {key: list(values) for key, values in user.extra.items()}
    return {"user": user.name, "uid": user.uid, "groups": list(user.groups), "extra": extra}


def _attributes(access: ResourceAccess | PathAccess) -> dict[str, Any]:
    if isinstance(access, PathAccess):
        return {"nonResourceAttributes": {"verb": access.verb, "path": access.path}}
    return {
        "resourceAttributes": {
            "verb": access.verb,
            "group": access.group,
            "version": access.version,
            "namespace": access.namespace,
            "resource": access.resource,
            "subresource": access.subresource,
            "name": access.name,
        }
    }

"""Reviews, the Secret and APIServices of the metrics adapter on a real API server."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from octavo_operator.kube.adapter_access import KubeAdapterAccess
from octavo_operator.kube.client import KubeClient
from octavo_operator.metrics_adapter.apiservices import AdapterService, build_api_services, differs
from octavo_operator.metrics_adapter.kube_access import (
    KubeAccessError,
    PathAccess,
    ResourceAccess,
    StoredSecret,
    UserInfo,
)
from octavo_testing.apiserver import ADMIN_TOKEN, ApiServer

METRIC = ResourceAccess(
    verb="get",
    group="custom.metrics.k8s.io",
    version="v1beta2",
    namespace="default",
    resource="pods",
    subresource="octavo_kv_pressure_ratio",
    name="*",
)


@pytest.fixture
async def access(apiserver: ApiServer) -> AsyncIterator[KubeAdapterAccess]:
    async with KubeClient.connect(apiserver.kubeconfig) as kube:
        yield KubeAdapterAccess(kube)


async def test_token_is_reviewed(access: KubeAdapterAccess) -> None:
    admin = await access.review_token(ADMIN_TOKEN)

    assert admin is not None
    assert admin.name == "admin"
    assert "system:masters" in admin.groups
    assert await access.review_token("forged") is None


async def test_access_is_reviewed(access: KubeAdapterAccess) -> None:
    admin, nobody = UserInfo(name="admin", groups=("system:masters",)), UserInfo(name="nobody")

    assert (await access.review_access(admin, METRIC)).allowed
    assert not (await access.review_access(nobody, METRIC)).allowed
    assert (await access.review_access(admin, PathAccess(verb="get", path="/apis"))).allowed


async def test_secret_is_written_only_at_the_version_that_was_read(
    access: KubeAdapterAccess, apiserver: ApiServer
) -> None:
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    body = {"metadata": {"name": "adapter", "labels": labels}, "type": "Opaque"}
    apiserver.request("POST", "/api/v1/namespaces/default/secrets", body)
    read = await access.read_secret("default", "adapter")
    assert read is not None

    written = await access.replace_secret(
        "default", "adapter", StoredSecret(data={"tls.crt": b"x"}, resource_version=read.resource_version)
    )
    stale = await access.replace_secret(
        "default", "adapter", StoredSecret(data={"tls.crt": b"y"}, resource_version=read.resource_version)
    )
    now = await access.read_secret("default", "adapter")

    assert (written, stale) == (True, False)
    assert now is not None
    assert now.data == {"tls.crt": b"x"}
    kept = apiserver.request("GET", "/api/v1/namespaces/default/secrets/adapter").body
    assert kept["metadata"]["labels"] == labels
    assert await access.read_secret("default", "absent") is None


async def test_api_services_are_applied_and_then_as_wanted(access: KubeAdapterAccess, apiserver: ApiServer) -> None:
    service = AdapterService(name="octavo", namespace="default", cluster_role="view")
    uid = await access.read_cluster_role_uid("view")
    assert uid is not None
    wanted = build_api_services(service, ca_bundle_pem=b"", owner_uid=uid)[0]
    wanted["spec"] |= {"insecureSkipTLSVerify": True}
    del wanted["spec"]["caBundle"]

    await access.apply_api_service(wanted)

    live = await access.read_api_service(wanted["metadata"]["name"])
    apiserver.request("DELETE", f"/apis/apiregistration.k8s.io/v1/apiservices/{wanted['metadata']['name']}")
    assert not differs(live, wanted)
    assert await access.read_cluster_role_uid("absent") is None


async def test_authentication_config_is_its_data(access: KubeAdapterAccess, apiserver: ApiServer) -> None:
    path = "/api/v1/namespaces/kube-system/configmaps"
    apiserver.request("POST", path, {"metadata": {"name": "extension-apiserver-authentication"}})
    data = {"data": {"requestheader-client-ca-file": "pem"}}
    apiserver.request(
        "PATCH", f"{path}/extension-apiserver-authentication", data, content_type="application/merge-patch+json"
    )

    config = await access.read_authentication_config()

    assert config is not None
    assert config["requestheader-client-ca-file"] == "pem"


async def test_refusal_is_an_access_error(access: KubeAdapterAccess) -> None:
    with pytest.raises(KubeAccessError, match="invalid"):
        await access.apply_api_service({"metadata": {"name": "x"}, "apiVersion": "v1", "kind": "APIService"})

"""The adapter over real TLS with real certificates: who is believed, who may, and what they get."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from octavo_operator.metrics_adapter.access import ALLOWED_FOR_S, DENIED_FOR_S, TOKEN_FOR_S, Authenticator, Authorizer
from octavo_operator.metrics_adapter.app import make_adapter
from octavo_operator.metrics_adapter.front_proxy import parse_authentication_config
from octavo_operator.metrics_adapter.kube_access import PathAccess, ResourceAccess, UserInfo
from octavo_operator.metrics_adapter.serving import AdapterTls, listening
from octavo_operator.metrics_adapter.store import MetricsStore
from octavo_testing.adapter import (
    FakeKube,
    KeyPair,
    VirtualClock,
    a_ca,
    a_client,
    a_load,
    a_pod,
    authentication_config,
)

BASE = "/apis/custom.metrics.k8s.io/v1beta2"
METRIC = "octavo_kv_pressure_ratio"
ALL_PODS = f"{BASE}/namespaces/default/pods/%2A/{METRIC}"
HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
AS_HPA = {"X-Remote-User": HPA}


class Adapter:
    """A running adapter and everything around it that a test may turn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = VirtualClock()
        # TLS itself looks at the real clock, so certificates are made for now and the virtual clock starts now.
        self.ca = a_ca()
        self.clock.at = self.ca.cert.not_valid_before_utc.timestamp() + 3600
        self.proxy = a_client("front-proxy-client", self.ca, days=5)
        self.kube = FakeKube(allowed_users={HPA})
        self.store = MetricsStore()
        self.pods = [a_pod("qwen-1"), a_pod("qwen-2")]
        for pod, pressure in zip(self.pods, (3.2, 0.85), strict=True):
            self.store.put(pod.uid, a_load(pressure, at=self.clock.at))
        self.tls = AdapterTls()
        serving = a_ca("adapter")
        self.tls.load_certificate(serving.cert_pem, serving.key_pem)
        self.tls.ask_for_clients_of(self.ca.cert_pem.decode())
        self.authenticator = Authenticator(self.kube, now=self.clock)
        self.trust(self.ca)
        self.app = make_adapter(
            list_pods=lambda: self.pods,
            store=self.store,
            authenticator=self.authenticator,
            authorizer=Authorizer(self.kube, now=self.clock),
            now=self.clock,
        )
        self.url = ""

    def trust(self, ca: KeyPair, **options: str) -> None:
        self.authenticator.front_proxy = parse_authentication_config(authentication_config(ca, **options))

    @contextlib.asynccontextmanager
    async def session(self, client: KeyPair | None = None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if client is not None:
            context.load_cert_chain(*client.write(self.folder, "client"))
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(self.url, connector=connector) as session:
            yield session

    async def get(self, path: str, *, client: KeyPair | None = None, headers=None, method: str = "GET"):
        """(status, document) of one request; the front proxy's own certificate unless another is given."""
        async with (
            self.session(client) as session,
            session.request(method, URL(self.url + path, encoded=True), headers=headers) as response,
        ):
            assert response.content_type == "application/json"
            return response.status, (await response.json() if method != "HEAD" else None)

    async def get_as(self, user: str, path: str = ALL_PODS, *, groups: tuple[str, ...] = (), method: str = "GET"):
        headers = [("X-Remote-User", user), *(("X-Remote-Group", group) for group in groups)]
        return await self.get(path, client=self.proxy, headers=headers, method=method)


@pytest.fixture
async def adapter(tmp_path):
    adapter = Adapter(tmp_path)
    async with listening(adapter.app, adapter.tls, host="127.0.0.1", port=0) as port:
        adapter.url = f"https://127.0.0.1:{port}"
        yield adapter


async def test_the_hpa_controller_gets_the_pressure_of_all_pods(adapter):
    """Exactly the request of the controller, the star percent-encoded."""
    status, document = await adapter.get_as(HPA, ALL_PODS + "?labelSelector=octavo.dev%2Fmodeldeployment%3Dqwen")

    assert status == 200
    assert document["kind"] == "MetricValueList"
    assert [(item["describedObject"]["name"], item["value"]) for item in document["items"]] == [
        ("qwen-1", "3200m"),
        ("qwen-2", "850m"),
    ]


async def test_a_pod_that_reports_an_absurd_pressure_is_left_out_and_the_others_are_told(adapter):
    """A Quantity cannot hold it: one liar would take the metric from all."""
    adapter.store.put(adapter.pods[0].uid, a_load(1e300, at=adapter.clock.at))

    status, document = await adapter.get_as(HPA)

    assert (status, [item["value"] for item in document["items"]]) == (200, ["850m"])


async def test_a_fault_of_ours_is_a_status_too_and_its_traceback_is_logged(adapter, caplog):
    adapter.pods = None

    status, document = await adapter.get_as(HPA)

    assert (status, document["kind"], document["reason"]) == (500, "Status", "InternalError")
    assert "NoneType" in caplog.text


async def test_a_plain_star_and_a_selector_that_selects_nothing(adapter):
    status, document = await adapter.get_as(HPA, ALL_PODS.replace("%2A", "*") + "?labelSelector=app%3Dnone")

    assert (status, document["items"]) == (200, [])


async def test_a_model_as_an_object_is_the_mean(adapter):
    _, document = await adapter.get_as(HPA, f"{BASE}/namespaces/default/modeldeployments.octavo.dev/qwen/{METRIC}")

    (item,) = document["items"]
    assert item["value"] == "2025m"
    assert item["describedObject"] == {
        "kind": "ModelDeployment",
        "namespace": "default",
        "name": "qwen",
        "apiVersion": "octavo.dev/v1alpha1",
    }


async def test_what_is_reviewed_is_the_access_that_rbac_names(adapter):
    await adapter.get_as(HPA)

    ((user, access),) = adapter.kube.access_reviews
    assert user == UserInfo(name=HPA, groups=("system:authenticated",))
    assert access == ResourceAccess(
        verb="get",
        group="custom.metrics.k8s.io",
        version="v1beta2",
        namespace="default",
        resource="pods",
        subresource=METRIC,
        name="*",
    )


async def test_the_aggregators_discovery_without_groups_is_let_in_as_authenticated(adapter):
    """1.36's aggregator sends its name and no group; RBAC's system:discovery speaks of the group alone."""
    adapter.kube.allowed_groups = {"system:authenticated"}

    for path in ("/apis", "/apis/custom.metrics.k8s.io", BASE, BASE.replace("beta2", "beta1")):
        status, document = await adapter.get_as("system:kube-aggregator", path)
        assert status == 200
        assert document["kind"] in ("APIGroupList", "APIGroup", "APIResourceList")

    assert adapter.kube.access_reviews[0][1] == PathAccess(verb="get", path="/apis")


async def test_everything_that_a_front_proxy_says_of_a_user_reaches_the_review(adapter):
    headers = [
        ("X-Remote-User", HPA),
        ("X-Remote-Uid", "u-1"),
        ("X-Remote-Group", "a"),
        ("X-Remote-Group", "system:authenticated"),
        ("X-Remote-Extra-Scopes%2fX", "one"),
        ("X-Remote-Extra-Scopes%2fX", "two"),
    ]

    await adapter.get(BASE, client=adapter.proxy, headers=headers)

    assert adapter.kube.access_reviews[0][0] == UserInfo(
        name=HPA, uid="u-1", groups=("a", "system:authenticated"), extra={"scopes/x": ("one", "two")}
    )


async def test_forged_headers_without_a_certificate_are_worth_nothing(adapter):
    forged = {"X-Remote-User": HPA, "X-Remote-Group": "system:masters"}

    status, document = await adapter.get(ALL_PODS, headers=forged)

    assert status == 401
    assert (document["kind"], document["reason"], document["code"]) == ("Status", "Unauthorized", 401)
    assert adapter.kube.access_reviews == []


async def test_a_certificate_of_the_right_ca_with_another_name_is_worth_nothing(adapter):
    other = a_client("some-kubelet", adapter.ca)

    status, _ = await adapter.get(ALL_PODS, client=other, headers=AS_HPA)

    assert status == 401


async def test_a_certificate_of_another_ca_does_not_even_connect(adapter):
    stranger = a_client("front-proxy-client", a_ca())

    with pytest.raises(aiohttp.ClientError):
        await adapter.get(ALL_PODS, client=stranger, headers=AS_HPA)


async def test_an_expired_front_proxy_certificate_is_worth_nothing(adapter):
    adapter.clock.at = adapter.proxy.cert.not_valid_after_utc.timestamp() + 1

    status, _ = await adapter.get_as(HPA)

    assert status == 401


async def test_a_withdrawn_ca_loses_its_open_connections_too(adapter):
    async with adapter.session(adapter.proxy) as session:
        async with session.get(BASE, headers=AS_HPA) as response:
            assert response.status == 200

        adapter.trust(a_ca("new-ca"))

        async with session.get(BASE, headers=AS_HPA) as response:
            assert response.status == 401


async def test_a_new_ca_is_asked_for_on_new_connections(adapter):
    rotated = a_ca("new-ca")
    adapter.tls.ask_for_clients_of(rotated.cert_pem.decode())
    adapter.trust(rotated)

    status, _ = await adapter.get(BASE, client=a_client("front-proxy-client", rotated), headers=AS_HPA)

    assert status == 200


async def test_no_allowed_names_allow_every_certificate_of_the_ca(adapter):
    """As in Kubernetes: an empty list does not limit."""
    adapter.trust(adapter.ca, allowed_names="[]")

    status, _ = await adapter.get(BASE, client=a_client("anything", adapter.ca), headers=AS_HPA)

    assert status == 200


async def test_without_a_front_proxy_in_the_cluster_no_headers_count(adapter):
    adapter.authenticator.front_proxy = None

    status, _ = await adapter.get_as(HPA)

    assert status == 401


async def test_a_bearer_token_is_reviewed_and_remembered_for_a_while(adapter):
    adapter.kube.users_by_token["t0ken"] = UserInfo(name=HPA, groups=("system:serviceaccounts",))
    headers = {"Authorization": "Bearer t0ken"}

    for _ in range(2):
        status, document = await adapter.get(ALL_PODS, headers=headers)
        assert (status, len(document["items"])) == (200, 2)
    assert adapter.kube.token_reviews == ["t0ken"]
    assert adapter.kube.access_reviews[0][0].groups == ("system:serviceaccounts", "system:authenticated")

    del adapter.kube.users_by_token["t0ken"]
    adapter.clock.at += TOKEN_FOR_S

    assert (await adapter.get(ALL_PODS, headers=headers))[0] == 401


@pytest.mark.parametrize("value", ["Bearer wrong", "Bearer", "Bearer ", "Basic dXNlcjpwdw==", ""])
async def test_any_other_authorization_is_refused(adapter, value):
    assert (await adapter.get(ALL_PODS, headers={"Authorization": value}))[0] == 401


async def test_a_token_beside_forged_headers_counts_for_itself_alone(adapter):
    adapter.kube.users_by_token["t0ken"] = UserInfo(name="somebody")

    status, document = await adapter.get(ALL_PODS, headers={"Authorization": "Bearer t0ken", **AS_HPA})

    assert status == 403
    assert 'User "somebody"' in document["message"]


async def test_who_may_not_gets_the_status_that_kubectl_prints(adapter):
    status, document = await adapter.get_as("jane")

    assert status == 403
    assert document["reason"] == "Forbidden"
    assert document["message"] == (
        f'pods.custom.metrics.k8s.io "*" is forbidden: User "jane" cannot get resource "pods/{METRIC}" in API group '
        '"custom.metrics.k8s.io" in the namespace "default": no RBAC policy matched'
    )


async def test_who_may_not_discover_is_told_the_path(adapter):
    status, document = await adapter.get_as("jane", "/openapi/v2")

    assert status == 403
    assert document["message"] == 'forbidden: User "jane" cannot get path "/openapi/v2": no RBAC policy matched'


async def test_openapi_is_not_served_and_says_so(adapter):
    for path in ("/openapi/v2", "/openapi/v3", "/"):
        status, document = await adapter.get_as(HPA, path)
        assert (status, document["reason"]) == (404, "NotFound")


async def test_a_review_is_remembered_and_a_revoked_right_is_gone_within_ten_seconds(adapter):
    assert ALLOWED_FOR_S <= 10
    for _ in range(3):
        await adapter.get_as(HPA)
    assert len(adapter.kube.access_reviews) == 1

    adapter.kube.allowed_users.clear()
    adapter.clock.at += ALLOWED_FOR_S

    assert (await adapter.get_as(HPA))[0] == 403


async def test_a_right_that_was_just_given_is_seen_soon(adapter):
    assert (await adapter.get_as("jane"))[0] == 403
    adapter.kube.allowed_users.add("jane")

    assert (await adapter.get_as("jane"))[0] == 403
    adapter.clock.at += DENIED_FOR_S
    assert (await adapter.get_as("jane"))[0] == 200


async def test_one_users_answer_is_never_anothers(adapter):
    assert (await adapter.get_as(HPA))[0] == 200

    assert (await adapter.get_as("jane"))[0] == 403
    assert (await adapter.get_as(HPA, groups=("other",)))[0] == 200
    assert len(adapter.kube.access_reviews) == 3


async def test_an_api_server_that_does_not_answer_is_no_yes_and_is_not_remembered(adapter):
    adapter.kube.is_down = True

    status, document = await adapter.get_as(HPA)
    token_status, _ = await adapter.get(ALL_PODS, headers={"Authorization": "Bearer t0ken"})

    assert (status, document["reason"]) == (503, "ServiceUnavailable")
    assert token_status == 503
    adapter.kube.is_down = False
    assert (await adapter.get_as(HPA))[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_other_methods_are_not_allowed(adapter, method):
    status, document = await adapter.get_as(HPA, method=method)

    assert (status, document["reason"]) == (405, "MethodNotAllowed")


async def test_head_is_a_get_without_a_body(adapter):
    assert await adapter.get_as(HPA, method="HEAD") == (200, None)


async def test_an_unknown_metric_is_a_status_404(adapter):
    status, document = await adapter.get_as(HPA, ALL_PODS.replace(METRIC, "nope"))

    assert status == 404
    assert document["message"] == "the server could not find the metric nope for pods"


async def test_a_malformed_selector_is_a_status_400(adapter):
    status, document = await adapter.get_as(HPA, ALL_PODS + "?labelSelector=app%20in")

    assert (status, document["reason"]) == (400, "BadRequest")


async def test_a_long_selector_fits(adapter):
    """An HPA over many labels; aiohttp's own limit of the request line is 8 KiB."""
    names = ",".join(f"name-{number}" for number in range(2000))

    status, _ = await adapter.get_as(HPA, f"{ALL_PODS}?labelSelector=app%20in%20({names})")

    assert status == 200


async def test_the_serving_certificate_changes_while_connections_stay_open(adapter):
    async def served() -> bytes:
        port = int(adapter.url.rpartition(":")[2])
        return (await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))).encode()

    before = await served()
    renewed = a_ca("adapter")
    async with adapter.session(adapter.proxy) as session:
        async with session.get(BASE, headers=AS_HPA) as response:
            assert response.status == 200
        assert adapter.tls.load_certificate(renewed.cert_pem, renewed.key_pem)
        async with session.get(BASE, headers=AS_HPA) as response:
            assert response.status == 200

    assert await served() == renewed.cert_pem != before
    assert not adapter.tls.load_certificate(renewed.cert_pem, renewed.key_pem)

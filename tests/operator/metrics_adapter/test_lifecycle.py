"""The adapter's life beside the cluster: certificate, trust, listener and announcement, and what may go wrong."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import logging
import ssl

import pytest

from octavo_operator.metrics_adapter.apiservices import AdapterService, api_service_names
from octavo_operator.metrics_adapter.certificates import from_secret_data
from octavo_operator.metrics_adapter.front_proxy import AuthenticationConfigError, parse_authentication_config
from octavo_operator.metrics_adapter.kube_access import StoredSecret
from octavo_operator.metrics_adapter.lifecycle import AdapterSettings, MetricsAdapter
from octavo_operator.metrics_adapter.store import MetricsStore
from octavo_testing.adapter import NOW, FakeKube, VirtualClock, a_ca, authentication_config

SERVICE = AdapterService(name="octavo-metrics-adapter", namespace="sys", cluster_role="sys-octavo-operator")
SECRET = ("sys", "octavo-metrics-adapter")
IN_CLUSTER = AdapterSettings(host="127.0.0.1", port=0, secret_name=SECRET[1], service=SERVICE)


@pytest.fixture
def kube() -> FakeKube:
    """A cluster in which the chart was just installed."""
    return FakeKube(
        config=authentication_config(a_ca()),
        secrets={SECRET: StoredSecret(data={}, resource_version="1")},
        cluster_roles={"sys-octavo-operator": "uid-of-role"},
    )


def an_adapter(kube: FakeKube, settings: AdapterSettings = IN_CLUSTER, clock=None) -> MetricsAdapter:
    return MetricsAdapter(settings, kube=kube, store=MetricsStore(), list_pods=list, now=clock or VirtualClock())


def foreign(name: str) -> dict:
    return {
        "metadata": {"name": name},
        "spec": {"service": {"name": "prometheus-adapter", "namespace": "monitoring"}},
    }


async def test_a_first_start_fills_the_secret_and_announces_both_versions(kube):
    adapter = an_adapter(kube)

    await adapter.refresh()

    certificate = from_secret_data(kube.secrets[SECRET].data)
    assert certificate is not None
    assert sorted(kube.api_services) == sorted(api_service_names())
    for service in kube.api_services.values():
        assert base64.b64decode(service["spec"]["caBundle"]) == certificate.ca_bundle_pem
        assert service["metadata"]["ownerReferences"][0]["uid"] == "uid-of-role"
    assert adapter.announcement == "ours"
    assert adapter.troubles == {}


async def test_a_quiet_cluster_sees_no_further_write(kube):
    adapter = an_adapter(kube)
    await adapter.refresh()
    kube.writes.clear()

    for _ in range(5):
        await adapter.refresh()

    assert kube.writes == []


async def test_a_second_replica_takes_the_firsts_certificate(kube):
    await an_adapter(kube).refresh()
    kube.writes.clear()

    await an_adapter(kube).refresh()

    assert kube.writes == []


async def test_two_replicas_that_start_at_once_end_with_one_certificate(kube):
    adapters = [an_adapter(kube), an_adapter(kube)]

    await asyncio.gather(*(adapter.refresh() for adapter in adapters))
    await asyncio.gather(*(adapter.refresh() for adapter in adapters))

    certificate = from_secret_data(kube.secrets[SECRET].data)
    assert kube.writes.count("secret sys/octavo-metrics-adapter") == 1
    bundles = {service["spec"]["caBundle"] for service in kube.api_services.values()}
    assert bundles == {base64.b64encode(certificate.ca_bundle_pem).decode()}


async def test_a_replica_that_always_loses_the_race_says_so_and_goes_on(kube):
    kube.conflicts_to_come = 3
    adapter = an_adapter(kube)

    await adapter.refresh()
    assert "other replicas keep writing" in adapter.troubles["certificate"]

    await adapter.refresh()
    assert adapter.troubles == {}


async def test_a_certificate_is_renewed_in_time(kube):
    clock = VirtualClock()
    adapter = an_adapter(kube, clock=clock)
    await adapter.refresh()
    first = kube.secrets[SECRET].data["tls.crt"]

    clock.at = NOW + 61 * 86_400
    await adapter.refresh()

    assert kube.secrets[SECRET].data["tls.crt"] != first


async def test_a_changed_ca_bundle_and_a_deleted_apiservice_are_restored(kube):
    adapter = an_adapter(kube)
    await adapter.refresh()
    wanted = copy.deepcopy(kube.api_services)
    kube.api_services["v1beta1.custom.metrics.k8s.io"]["spec"]["caBundle"] = ""
    del kube.api_services["v1beta2.custom.metrics.k8s.io"]

    await adapter.refresh()

    assert kube.api_services == wanted


async def test_another_provider_is_left_alone_and_named_once(kube, caplog):
    kube.api_services = {name: foreign(name) for name in api_service_names()}
    adapter = an_adapter(kube)

    with caplog.at_level(logging.WARNING):
        await adapter.refresh()
        await adapter.refresh()

    assert adapter.announcement == "foreign"
    assert kube.api_services == {name: foreign(name) for name in api_service_names()}
    assert [record.api_services for record in caplog.records] == [api_service_names()]


async def test_another_provider_is_replaced_where_that_was_asked_for(kube):
    kube.api_services = {name: foreign(name) for name in api_service_names()}
    settings = AdapterSettings(port=0, secret_name=SECRET[1], service=SERVICE, take_over=True)
    adapter = an_adapter(kube, settings)

    await adapter.refresh()

    assert adapter.announcement == "ours"
    assert all(live["spec"]["service"]["name"] == SERVICE.name for live in kube.api_services.values())


async def test_a_provider_that_leaves_makes_room(kube):
    kube.api_services = {name: foreign(name) for name in api_service_names()}
    adapter = an_adapter(kube)
    await adapter.refresh()

    kube.api_services.clear()
    await adapter.refresh()

    assert adapter.announcement == "ours"


async def test_a_missing_secret_says_how_to_get_it_back_and_heals(kube):
    secret = kube.secrets.pop(SECRET)
    adapter = an_adapter(kube)

    await adapter.refresh()
    assert adapter.troubles["certificate"] == (
        "Secret sys/octavo-metrics-adapter is gone; `helm upgrade` makes it again"
    )

    kube.secrets[SECRET] = secret
    await adapter.refresh()
    assert adapter.troubles == {}


async def test_trouble_is_one_sentence(kube):
    secret = kube.secrets.pop(SECRET)
    adapter = an_adapter(kube)

    await adapter.refresh()
    assert adapter.trouble.startswith("certificate: Secret sys/octavo-metrics-adapter is gone")

    kube.secrets[SECRET] = secret
    kube.api_services = {name: foreign(name) for name in api_service_names()}
    await adapter.refresh()
    assert "another custom metrics provider is installed" in adapter.trouble

    kube.api_services.clear()
    await adapter.refresh()
    assert adapter.trouble == ""


async def test_nothing_is_announced_before_there_is_a_certificate(kube):
    """An APIService with an empty caBundle would take the group away from everybody."""
    kube.secrets.clear()
    adapter = an_adapter(kube)

    await adapter.refresh()

    assert kube.api_services == {}
    assert adapter.announcement == "pending"


async def test_without_its_owner_nothing_is_announced(kube):
    """An APIService that nobody owns would outlive the release and block namespaces."""
    kube.cluster_roles.clear()
    adapter = an_adapter(kube)

    await adapter.refresh()

    assert kube.api_services == {}
    assert "ClusterRole sys-octavo-operator is gone" in adapter.troubles["announcement"]


async def test_an_outage_of_the_api_server_is_logged_once_and_changes_nothing(kube, caplog):
    adapter = an_adapter(kube)
    await adapter.refresh()
    kube.is_down = True

    with caplog.at_level(logging.ERROR):
        await adapter.refresh()
        await adapter.refresh()

    assert set(adapter.troubles) == {"certificate", "front proxy", "announcement"}
    assert len(caplog.records) == 3
    assert adapter.announcement == "ours"


async def test_a_malformed_configuration_keeps_the_old_trust(kube):
    adapter = an_adapter(kube)
    await adapter.refresh()
    kube.config = {**kube.config, "requestheader-allowed-names": "front-proxy-client"}

    await adapter.refresh()

    assert adapter.troubles == {"front proxy": "requestheader-allowed-names is no JSON list"}


async def test_files_are_served_and_read_anew_without_any_secret_or_apiservice(tmp_path):
    kube = FakeKube()
    pair = a_ca("adapter")
    cert, key = pair.write(tmp_path, "adapter")
    adapter = an_adapter(kube, AdapterSettings(host="127.0.0.1", port=0, cert_file=cert, key_file=key))

    async with running(adapter):
        assert await served_certificate(adapter.port) == pair.cert_pem.decode()
        renewed = a_ca("adapter")
        renewed.write(tmp_path, "adapter")
        await adapter.refresh()
        assert await served_certificate(adapter.port) == renewed.cert_pem.decode()

    assert adapter.announcement == "none"
    assert kube.writes == []


async def test_a_missing_file_is_said_and_waited_for(tmp_path):
    adapter = an_adapter(FakeKube(), AdapterSettings(cert_file=tmp_path / "no.crt", key_file=tmp_path / "no.key"))

    await adapter.refresh()

    assert "no.crt" in adapter.troubles["certificate"]


async def test_outside_a_cluster_without_files_it_names_the_flags():
    adapter = an_adapter(FakeKube(), AdapterSettings())

    await adapter.refresh()

    assert "--metrics-adapter-cert" in adapter.troubles["certificate"]


async def test_it_listens_with_the_certificate_of_the_secret(kube):
    adapter = an_adapter(kube)

    async with running(adapter):
        served = await served_certificate(adapter.port)

    assert served.encode() == kube.secrets[SECRET].data["tls.crt"]


@pytest.mark.parametrize("data", [None, {}, {"client-ca-file": "x"}, {"requestheader-client-ca-file": " "}])
def test_a_cluster_without_a_front_proxy_has_no_configuration(data):
    assert parse_authentication_config(data) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("requestheader-client-ca-file", "nonsense"),
        ("requestheader-allowed-names", "{}"),
        ("requestheader-group-headers", "[1]"),
        ("requestheader-username-headers", '[""]'),
    ],
)
def test_a_malformed_configuration_names_the_key(key, value):
    with pytest.raises(AuthenticationConfigError, match=key):
        parse_authentication_config({**authentication_config(a_ca()), key: value})


@contextlib.asynccontextmanager
async def running(adapter: MetricsAdapter):
    task = asyncio.create_task(adapter.run())
    try:
        async with asyncio.timeout(10):
            while adapter.port is None:
                await asyncio.sleep(0.01)
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def served_certificate(port: int) -> str:
    return await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))

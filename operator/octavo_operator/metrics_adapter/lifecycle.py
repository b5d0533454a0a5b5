"""The adapter's life in the operator's process: certificate, front-proxy trust, listener, announcement.

    await MetricsAdapter(settings, kube=…, store=…, list_pods=…).run()      # until cancelled

Every 30 seconds it looks again at what may change under it: the ConfigMap with the front proxy's CA, its own
certificate and the APIServices. Whatever fails is logged once, kept as it was and tried again after five seconds; the
listener goes on meanwhile. All replicas of the operator do this at once: the Secret is written with its resource
version and the APIServices only when they differ.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from octavo_operator.metrics_adapter.access import Authenticator, Authorizer
from octavo_operator.metrics_adapter.apiservices import AdapterService, build_api_services, differs, ownership
from octavo_operator.metrics_adapter.app import make_adapter
from octavo_operator.metrics_adapter.certificates import (
    ServingCertificate,
    from_secret_data,
    renewed,
    service_dns_names,
)
from octavo_operator.metrics_adapter.front_proxy import AuthenticationConfigError, parse_authentication_config
from octavo_operator.metrics_adapter.kube_access import AdapterKube, KubeAccessError, StoredSecret
from octavo_operator.metrics_adapter.serving import AdapterTls, listening
from octavo_operator.metrics_adapter.store import MetricsStore, ServerPod

logger = logging.getLogger(__name__)

REFRESH_S = 30.0
RETRY_S = 5.0

Announcement = Literal["pending", "ours", "foreign", "none"]


class CertificateError(Exception):
    """There is no certificate to serve with; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterSettings:
    """How the adapter is served and announced."""

    host: str = ""
    """Address to listen on; empty is all of them, IPv6 too."""
    port: int = 6443
    cert_file: Path | None = None
    """PEM files given by hand: then no Secret is read and nothing is renewed by us, only read anew."""
    key_file: Path | None = None
    secret_name: str = ""
    """The chart's Secret, in the namespace of `service`."""
    service: AdapterService | None = None
    """None outside a cluster: the adapter serves, but no APIService is written."""
    take_over: bool = False
    """Whether to replace another provider's APIService (`metricsAdapter.enabled: true`) or leave it (`auto`)."""


class MetricsAdapter:
    """Owns the adapter's TLS context, its authenticator and what became of the announcement."""

    def __init__(
        self,
        settings: AdapterSettings,
        *,
        kube: AdapterKube,
        store: MetricsStore,
        list_pods: Callable[[], Iterable[ServerPod]],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._kube = kube
        self._now = now
        self._tls = AdapterTls()
        self._authenticator = Authenticator(kube, now=now)
        self._app = make_adapter(
            list_pods=list_pods,
            store=store,
            authenticator=self._authenticator,
            authorizer=Authorizer(kube, now=now),
            now=now,
        )
        self._ca_bundle_pem = b""
        self._troubles: dict[str, str] = {}
        self.announcement: Announcement = "pending"
        """Who provides custom metrics: `foreign` is another provider that was left alone, `none` means unannounced."""
        self.port: int | None = None
        """The port that it listens on; None until then."""

    @property
    def troubles(self) -> dict[str, str]:
        """What does not work now, sentence by step; empty when all is well."""
        return dict(self._troubles)

    @property
    def trouble(self) -> str:
        """Why an HPA may not get values, in one sentence; empty when all is well."""
        if self._troubles:
            return "; ".join(f"{step}: {sentence}" for step, sentence in sorted(self._troubles.items()))
        if self.announcement == "foreign":
            return (
                "another custom metrics provider is installed and was left alone; give it the rule for this metric or "
                "set metricsAdapter.enabled to true"
            )
        return ""

    async def run(self) -> None:
        """Serve until cancelled."""
        await self._until_certificate()
        await self._attempt("front proxy", self._refresh_front_proxy)
        async with listening(self._app, self._tls, host=self._settings.host, port=self._settings.port) as port:
            self.port = port
            logger.info("the custom metrics adapter serves", extra={"port": port})
            while True:
                await self.refresh()
                await asyncio.sleep(RETRY_S if self._troubles else REFRESH_S)

    async def refresh(self) -> None:
        """Look once at everything that may have changed."""
        await self._attempt("certificate", self._refresh_certificate)
        await self._attempt("front proxy", self._refresh_front_proxy)
        await self._attempt("announcement", self._announce)

    async def _until_certificate(self) -> None:
        while True:
            await self._attempt("certificate", self._refresh_certificate)
            if self._tls.is_ready:
                return
            await asyncio.sleep(RETRY_S)

    async def _attempt(self, step: str, action: Callable[[], Awaitable[None]]) -> None:
        try:
            await action()
        except (KubeAccessError, AuthenticationConfigError, CertificateError, ssl.SSLError) as error:
            if self._troubles.get(step) != str(error):
                logger.error("the custom metrics adapter has trouble", extra={"step": step, "error": str(error)})
            self._troubles[step] = str(error)
        else:
            self._troubles.pop(step, None)

    async def _refresh_certificate(self) -> None:
        cert_file, key_file = self._settings.cert_file, self._settings.key_file
        if cert_file is not None and key_file is not None:
            cert_pem, key_pem = await asyncio.to_thread(_read_files, cert_file, key_file)
            self._tls.load_certificate(cert_pem, key_pem)
            return
        certificate = await self._ensure_secret()
        self._ca_bundle_pem = certificate.ca_bundle_pem
        if self._tls.load_certificate(certificate.cert_pem, certificate.key_pem):
            logger.info("the custom metrics adapter has a new certificate")

    async def _ensure_secret(self) -> ServingCertificate:
        """The Secret's certificate, renewed first where it is due."""
        service = self._settings.service
        if service is None:
            raise CertificateError("outside a cluster give --metrics-adapter-cert and --metrics-adapter-key")
        for _ in range(3):
            secret = await self._kube.read_secret(service.namespace, self._settings.secret_name)
            if secret is None:
                raise CertificateError(
                    f"Secret {service.namespace}/{self._settings.secret_name} is gone; `helm upgrade` makes it again"
                )
            current = from_secret_data(secret.data)
            fresh = renewed(current, service_dns_names(service.name, service.namespace), self._now())
            if fresh is None and current is not None:
                return current
            if fresh is not None and await self._kube.replace_secret(
                service.namespace,
                self._settings.secret_name,
                StoredSecret(data=fresh.to_secret_data(), resource_version=secret.resource_version),
            ):
                return fresh
        raise CertificateError("other replicas keep writing the certificate's Secret; trying again")

    async def _refresh_front_proxy(self) -> None:
        config = parse_authentication_config(await self._kube.read_authentication_config())
        if config is not None:
            self._tls.ask_for_clients_of(config.client_ca_pem)
        self._authenticator.front_proxy = config

    async def _announce(self) -> None:
        """Write the APIServices that are absent, ours and different, or another's that we are told to take over."""
        service = self._settings.service
        if service is None:
            self.announcement = "none"
            return
        if not self._ca_bundle_pem:
            # An APIService whose CA nobody knows would take the group away from everybody.
            return
        uid = await self._kube.read_cluster_role_uid(service.cluster_role)
        if uid is None:
            raise KubeAccessError(f"ClusterRole {service.cluster_role} is gone, so nothing can own the APIServices")
        foreign = []
        for wanted in build_api_services(service, ca_bundle_pem=self._ca_bundle_pem, owner_uid=uid):
            name = wanted["metadata"]["name"]
            live = await self._kube.read_api_service(name)
            if ownership(live, service) == "foreign" and not self._settings.take_over:
                foreign.append(name)
            elif differs(live, wanted):
                await self._kube.apply_api_service(wanted)
        if foreign and self.announcement != "foreign":
            logger.warning(
                "another custom metrics provider is installed and was left alone; HPAs need its octavo rule, or set "
                "metricsAdapter.enabled to true to take it over",
                extra={"api_services": foreign},
            )
        self.announcement = "foreign" if foreign else "ours"


def _read_files(cert_file: Path, key_file: Path) -> tuple[bytes, bytes]:
    try:
        return cert_file.read_bytes(), key_file.read_bytes()
    except OSError as error:
        raise CertificateError(f"the adapter's certificate cannot be read: {error}") from error

"""The operator's configuration: flags for where it runs, `OCTAVO_…` variables for what the chart says. Read once."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octavo_operator.desired.pod import PodSettings
from octavo_operator.errors import OctavoOperatorError
from octavo_operator.metrics_adapter.apiservices import AdapterService
from octavo_operator.metrics_adapter.lifecycle import AdapterSettings

DEFAULT_IMAGE = "ghcr.io/octavo-dev/octavo-server:0.1.0"
DEFAULT_IMAGE_CPU = "ghcr.io/octavo-dev/octavo-server:0.1.0-cpu"
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
INTERNAL_PORT = 8082


class ConfigError(OctavoOperatorError):
    """A flag or variable that cannot be; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorConfig:
    """Everything that may differ between two installations."""

    kubeconfig: Path | None = None
    """None in a cluster: the pod's service account is used."""
    namespaces: tuple[str, ...] = ()
    """Namespaces to serve; empty is all."""
    own_namespace: str = "default"
    """Where the Lease lives."""
    gateway_namespace: str = ""
    """Where gateway pods are looked for; empty is everywhere."""
    identity: str = ""
    """Name of this replica in the Lease."""
    lease_name: str = "octavo-operator"
    gateway_url: str = ""
    """Base URL of the gateway without /v1; empty where there is none."""
    host: str = ""
    port: int = INTERNAL_PORT
    """Port of /metrics, /healthz and /readyz; 0 is any free one."""
    num_workers: int = 16
    """ModelDeployments reconciled at the same time; each waits for the API server most of its time."""
    resync_s: float = 300.0
    """Seconds between two full lists, which heal what a watch missed."""
    log_level: str = "INFO"
    log_format: str = "text"
    pods: PodSettings = field(default_factory=lambda: PodSettings(image=DEFAULT_IMAGE, image_cpu=DEFAULT_IMAGE_CPU))
    adapter: AdapterSettings | None = None
    """None: the custom metrics adapter is off."""


def parse_config(argv: Sequence[str], env: Mapping[str, str]) -> OperatorConfig:
    """Flags and environment as one value; raises ConfigError, and SystemExit for --help and unknown flags."""
    flags = _parser().parse_args(argv)
    own_namespace = env.get("OCTAVO_NAMESPACE") or _service_account_namespace() or "default"
    namespaces = flags.namespaces if flags.namespaces is not None else env.get("OCTAVO_NAMESPACES", "")
    image = env.get("OCTAVO_SERVER_IMAGE") or DEFAULT_IMAGE
    return OperatorConfig(
        kubeconfig=flags.kubeconfig,
        namespaces=_items(namespaces),
        own_namespace=own_namespace,
        gateway_namespace=env.get("OCTAVO_GATEWAY_NAMESPACE") or env.get("OCTAVO_NAMESPACE", ""),
        identity=env.get("OCTAVO_POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        lease_name=env.get("OCTAVO_LEASE_NAME") or "octavo-operator",
        gateway_url=env.get("OCTAVO_GATEWAY_URL", "").rstrip("/").removesuffix("/v1"),
        port=flags.port,
        log_level=_choice(env, "OCTAVO_LOG_LEVEL", ("DEBUG", "INFO", "WARNING", "ERROR"), "INFO"),
        log_format=_choice(env, "OCTAVO_LOG_FORMAT", ("text", "json"), "text"),
        pods=PodSettings(
            image=image,
            image_cpu=env.get("OCTAVO_SERVER_IMAGE_CPU") or (DEFAULT_IMAGE_CPU if image == DEFAULT_IMAGE else image),
            image_pull_policy=_choice(
                env, "OCTAVO_SERVER_IMAGE_PULL_POLICY", ("IfNotPresent", "Always", "Never"), "IfNotPresent"
            ),
            image_pull_secrets=_items(env.get("OCTAVO_SERVER_IMAGE_PULL_SECRETS", "")),
        ),
        adapter=_adapter(flags, env, own_namespace),
    )


def _adapter(flags: argparse.Namespace, env: Mapping[str, str], namespace: str) -> AdapterSettings | None:
    """By files where they are given; by the chart's Secret where a Service is named; else off."""
    port = flags.metrics_adapter_port
    if flags.metrics_adapter_cert is not None or flags.metrics_adapter_key is not None:
        if flags.metrics_adapter_cert is None or flags.metrics_adapter_key is None:
            raise ConfigError("--metrics-adapter-cert and --metrics-adapter-key belong together; give both")
        return AdapterSettings(
            port=6443 if port is None else port,
            cert_file=flags.metrics_adapter_cert,
            key_file=flags.metrics_adapter_key,
        )
    service = env.get("OCTAVO_ADAPTER_SERVICE", "")
    if not service:
        if port is not None:
            raise ConfigError("--metrics-adapter-port needs --metrics-adapter-cert and --metrics-adapter-key")
        return None
    for name in ("OCTAVO_ADAPTER_SECRET", "OCTAVO_ADAPTER_CLUSTER_ROLE"):
        if not env.get(name):
            raise ConfigError(f"OCTAVO_ADAPTER_SERVICE is set, so {name} must be set too")
    return AdapterSettings(
        port=6443 if port is None else port,
        secret_name=env["OCTAVO_ADAPTER_SECRET"],
        service=AdapterService(name=service, namespace=namespace, cluster_role=env["OCTAVO_ADAPTER_CLUSTER_ROLE"]),
        take_over=env.get("OCTAVO_ADAPTER_TAKE_OVER", "").lower() == "true",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="octavo_operator", description="Keeps ModelDeployments running.")
    parser.add_argument("--kubeconfig", type=Path, help="kubeconfig file; without it the pod's service account is used")
    parser.add_argument("--namespaces", help="comma-separated namespaces to serve; default: all")
    parser.add_argument("--port", type=int, default=INTERNAL_PORT, help="port of /metrics, /healthz and /readyz")
    parser.add_argument("--metrics-adapter-port", type=int, help="port of the custom metrics adapter (default 6443)")
    parser.add_argument("--metrics-adapter-cert", type=Path, help="PEM certificate of the adapter")
    parser.add_argument("--metrics-adapter-key", type=Path, help="PEM private key of the adapter")
    return parser


def _choice(env: Mapping[str, str], name: str, options: tuple[str, ...], default: str) -> str:
    value = env.get(name) or default
    found = next((option for option in options if option.lower() == value.lower()), None)
    if found is None:
        raise ConfigError(f"{name} is {value!r}, must be one of {', '.join(options)}")
    return found


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _service_account_namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text().strip()
    except OSError:
        return ""

"""The operator's configuration: flags for where it runs, `OCTAVO_…` variables for what the chart says. Read once."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from octavo_operator.api.rollout import URL
from octavo_operator.api.types import JsonObject
from octavo_operator.desired.pod import PodSettings
from octavo_operator.errors import OctavoOperatorError
from octavo_operator.metrics_adapter.apiservices import AdapterService
from octavo_operator.metrics_adapter.lifecycle import AdapterSettings

DEFAULT_IMAGE = "ghcr.io/octavo-dev/octavo-server:0.1.0"
DEFAULT_IMAGE_CPU = f"{DEFAULT_IMAGE}-cpu"
DEFAULT_IMAGE_ROCM = f"{DEFAULT_IMAGE}-rocm"
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
    key_readers: tuple[str, ...] = ()
    """Service accounts NAMESPACE:NAME of gateway and operator, named in the remedy of KeysUnreadable."""
    prometheus: str = ""
    """Base URL of the Prometheus that KEDA asks; empty where KEDA shall not be used."""
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
    pods: PodSettings = field(
        default_factory=lambda: PodSettings(
            image=DEFAULT_IMAGE, image_cpu=DEFAULT_IMAGE_CPU, image_rocm=DEFAULT_IMAGE_ROCM
        )
    )
    network_rules: JsonObject | None = None
    """policyTypes, ingress and egress of each ModelDeployment's NetworkPolicy; None: there is to be none."""
    adapter: AdapterSettings | None = None
    """None: the custom metrics adapter is off."""


def parse_config(argv: Sequence[str], env: Mapping[str, str]) -> OperatorConfig:
    """Flags over environment over defaults; raises ConfigError, and SystemExit for --help and unknown flags."""
    flags = _parser(env).parse_args(argv)
    own_namespace = flags.lease_namespace or _service_account_namespace() or "default"
    return OperatorConfig(
        kubeconfig=flags.kubeconfig,
        namespaces=_items(flags.namespaces),
        own_namespace=own_namespace,
        gateway_namespace=flags.gateway_namespace,
        key_readers=_items(flags.key_readers),
        identity=env.get("OCTAVO_POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
        lease_name=flags.lease_name,
        prometheus=_prometheus(flags.prometheus_address),
        gateway_url=flags.gateway_url.rstrip("/").removesuffix("/v1"),
        port=flags.port,
        log_level=flags.log_level.upper(),
        log_format=flags.log_format,
        pods=PodSettings(
            image=flags.server_image,
            image_cpu=flags.server_image_cpu or _variant(flags.server_image, DEFAULT_IMAGE_CPU),
            image_rocm=flags.server_image_rocm or _variant(flags.server_image, DEFAULT_IMAGE_ROCM),
            image_pull_policy=flags.server_image_pull_policy,
            image_pull_secrets=_items(flags.server_image_pull_secrets),
        ),
        network_rules=_network_rules(flags.server_network_policy),
        adapter=_adapter(flags),
    )


def _network_rules(text: str) -> JsonObject | None:
    if not text:
        return None
    try:
        rules = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"--server-network-policy is no JSON: {error}") from error
    known = {"policyTypes", "ingress", "egress"}
    if not isinstance(rules, dict) or not rules.get("policyTypes") or rules.keys() - known:
        raise ConfigError(
            "--server-network-policy must be an object with policyTypes, and ingress and egress as a NetworkPolicy has "
            f"them, not {text[:80]}"
        )
    return rules


def _prometheus(address: str) -> str:
    if address and not re.fullmatch(URL, address):
        raise ConfigError(f"--prometheus-address is {address!r}, must be like http://prometheus.monitoring:9090")
    return address


def _variant(image: str, default: str) -> str:
    """Of another server image than the default nobody knows what stands beside it, so that it is for all."""
    return default if image == DEFAULT_IMAGE else image


def _adapter(flags: argparse.Namespace) -> AdapterSettings | None:
    """By files where they are given; by the chart's Secret where a Service is named; else off."""
    if flags.metrics_adapter == "false":
        return None
    by_files = (flags.metrics_adapter_cert, flags.metrics_adapter_key)
    if any(by_files):
        if not all(by_files):
            raise ConfigError("--metrics-adapter-cert and --metrics-adapter-key belong together; give both")
        return AdapterSettings(port=flags.metrics_adapter_port, cert_file=by_files[0], key_file=by_files[1])
    if not flags.metrics_adapter_service:
        return None
    namespace, _, name = flags.metrics_adapter_service.partition("/")
    if not namespace or not name or not flags.metrics_adapter_secret or not flags.metrics_adapter_owner:
        raise ConfigError(
            "--metrics-adapter-service must be NAMESPACE/NAME and needs --metrics-adapter-secret and "
            "--metrics-adapter-owner"
        )
    return AdapterSettings(
        port=flags.metrics_adapter_port,
        secret_name=flags.metrics_adapter_secret,
        service=AdapterService(name=name, namespace=namespace, cluster_role=flags.metrics_adapter_owner),
        take_over=flags.metrics_adapter == "true",
    )


def _parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    """Every flag that the chart gives; those with a variable take it as their default."""
    parser = argparse.ArgumentParser(
        prog="octavo operator run", description="Keeps ModelDeployments running.", allow_abbrev=False
    )
    parser.add_argument("--kubeconfig", type=Path, help="kubeconfig file; without it the pod's service account is used")
    _text(parser, env, "namespaces", "comma-separated namespaces to serve; default: all")
    parser.add_argument("--port", type=int, default=INTERNAL_PORT, help="port of /metrics, /healthz and /readyz")
    levels, formats = ("debug", "info", "warning", "error"), ("text", "json")
    _choice(parser, env, "log-level", levels, "how much is logged")
    _choice(parser, env, "log-format", formats, "text for people, json for collectors")
    _text(parser, env, "lease-namespace", "namespace of the Lease; default: the pod's own", variable="OCTAVO_NAMESPACE")
    _text(parser, env, "lease-name", "name of the Lease", default="octavo-operator")
    _text(parser, env, "gateway-url", "base URL of the gateway, for status.endpoint; default: the Service's own URL")
    _text(parser, env, "gateway-namespace", "namespace of the gateway's pods; default: all")
    _text(parser, env, "prometheus-address", "base URL of the Prometheus that KEDA asks; default: KEDA is not used")
    _text(parser, env, "key-readers", "service accounts NAMESPACE:NAME that read keys, for the remedy in a condition")
    _text(parser, env, "server-image", "image of the server with GPU support (CUDA)", default=DEFAULT_IMAGE)
    _text(parser, env, "server-image-cpu", "image of the server where gpu.count is 0; default: the first one")
    _text(parser, env, "server-image-rocm", "image of the server for GPUs of AMD (amd.com/gpu); default: the first one")
    policies = ("IfNotPresent", "Always", "Never")
    _choice(parser, env, "server-image-pull-policy", policies, "imagePullPolicy of server pods")
    _text(parser, env, "server-image-pull-secrets", "comma-separated imagePullSecrets of server pods")
    _text(
        parser,
        env,
        "server-network-policy",
        "JSON: policyTypes, ingress and egress of the NetworkPolicy of each ModelDeployment's pods; default: none",
    )
    _choice(
        parser, env, "metrics-adapter", ("auto", "true", "false"), "serve custom.metrics.k8s.io; true takes it over"
    )
    parser.add_argument("--metrics-adapter-port", type=int, default=6443, help="port of the custom metrics adapter")
    parser.add_argument("--metrics-adapter-cert", type=Path, help="PEM certificate of the adapter")
    parser.add_argument("--metrics-adapter-key", type=Path, help="PEM private key of the adapter")
    _text(parser, env, "metrics-adapter-service", "NAMESPACE/NAME of the Service that leads to the adapter")
    _text(parser, env, "metrics-adapter-secret", "Secret for the adapter's certificate, in the Service's namespace")
    _text(parser, env, "metrics-adapter-owner", "ClusterRole that owns the APIServices")
    return parser


def _text(
    parser: argparse.ArgumentParser,
    env: Mapping[str, str],
    flag: str,
    about: str,
    *,
    default: str = "",
    variable: str = "",
) -> None:
    variable = variable or f"OCTAVO_{flag.replace('-', '_').upper()}"
    parser.add_argument(f"--{flag}", default=env.get(variable) or default, help=f"{about} (${variable})")


def _choice(
    parser: argparse.ArgumentParser, env: Mapping[str, str], flag: str, options: tuple[str, ...], about: str
) -> None:
    """The first option is the default, but for log levels, where it is info."""
    variable = f"OCTAVO_{flag.replace('-', '_').upper()}"
    default = env.get(variable) or ("info" if "info" in options else options[0])
    if default not in options:
        raise ConfigError(f"{variable} is {default!r}, must be one of {', '.join(options)}")
    parser.add_argument(f"--{flag}", choices=options, default=default, help=f"{about} (${variable})")


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _service_account_namespace() -> str:
    try:
        return NAMESPACE_FILE.read_text().strip()
    except OSError:
        return ""

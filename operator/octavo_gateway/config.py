"""The gateway's settings: flag > ``OCTAVO_GATEWAY_…`` variable > default, read once."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

logger = logging.getLogger(__name__)

ENV_PREFIX = "OCTAVO_GATEWAY_"


def _option(default: Any, description: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": description, "choices": choices})


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayConfig:
    host: str = _option("", "address that both ports listen on; empty means all, IPv4 and IPv6")
    port: int = _option(8080, "public port, the OpenAI-compatible API; 0 takes a free one")
    internal_port: int = _option(8081, "internal port: /metrics /healthz /readyz /held; 0 takes a free one")
    tls_dir: str = _option(
        "", "folder with tls.crt and tls.key, read again when they change; empty means that the public port speaks HTTP"
    )
    kubeconfig: str = _option("", "kubeconfig file for use outside of a cluster; empty means the pod's service account")
    namespaces: tuple[str, ...] = _option((), "namespaces to watch, separated by commas; empty means all")
    max_request_bytes: int = _option(64 * 2**20, "largest request body in bytes; the default is the server's own")
    max_buffered_bytes: int = _option(256 * 2**20, "largest sum of request bodies in memory at once, in bytes")
    max_headers: int = _option(128, "most headers of a request, then 431")
    max_header_bytes: int = _option(8190, "largest header, and largest request line, in bytes; then 431")
    max_connections: int = _option(4096, "most connections of clients at once; one more is a 503 and closed")
    header_timeout_s: float = _option(30.0, "seconds within which the head of a request must have come, then 408")
    keepalive_timeout_s: float = _option(75.0, "seconds after which a connection without requests is closed")
    body_silence_s: float = _option(30.0, "seconds without a byte in the middle of a request's body, then 408")
    body_timeout_s: float = _option(
        300.0, "seconds within which a request's whole body must have come, then 408; 0 means no limit"
    )
    write_timeout_s: float = _option(
        60.0, "seconds that a client may take nothing of what waits for it; then its connection is cut"
    )
    connect_timeout_s: float = _option(5.0, "seconds for a TCP connection to a replica; then another one is tried")
    first_byte_timeout_s: float = _option(
        600.0,
        "seconds within which a replica must begin to answer, then 504; an unstreamed answer begins when it is complete; 0 means no limit",
    )
    stall_timeout_s: float = _option(
        600.0,
        "seconds that a replica may be silent in the middle of an answer; then an error event ends a stream, and another answer is cut; 0 means no limit",
    )
    request_timeout_s: float = _option(
        3600.0, "seconds that a request may take in all, holding included, then 504; 0 means no limit"
    )
    audit_log: str = _option(
        "-",
        "file for a JSON line of each request whose model wants it (access.audit); - is standard output, empty none",
    )
    otlp_traces_endpoint: str = _option(
        "", "OTLP/HTTP endpoint of an OpenTelemetry collector for a span of each request; empty sends none"
    )
    own_address: str = _option("", "this gateway's address among the ready ones of --quota-objects")
    quota_objects: str = _option(
        "",
        "NAMESPACE/PREFIX of what quotas hold on to: Secret PREFIX-peers, ConfigMaps PREFIX-quota-0 to -7, Service "
        "PREFIX-internal; empty means that this gateway is alone and days end with it",
    )
    drain_delay_s: float = _option(
        3.0, "seconds after SIGTERM during which new requests are still taken, until load balancers have noticed"
    )
    shutdown_timeout_s: float = _option(120.0, "seconds that running requests get to finish after SIGTERM")
    log_level: str = _option("info", "how much is logged", ("debug", "info", "warning", "error"))
    log_format: str = _option("text", "form of log lines", ("text", "json"))


def parse_config(argv: Sequence[str], env: Mapping[str, str]) -> GatewayConfig:
    parser = argparse.ArgumentParser(
        prog="octavo gateway run",
        description="Route, hold and protect in front of the replicas of all ModelDeployments. "
        f"Each flag has a variable, --log-level for example {ENV_PREFIX}LOG_LEVEL.",
    )
    defaults = _from_env(parser, env)
    for option in fields(GatewayConfig):
        default = defaults.get(option.name, option.default)
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=_parser_of(option.default),
            default=default,
            choices=option.metadata["choices"],
            help=f"{option.metadata['help']} (default: {_shown(default)})",
        )
    config = GatewayConfig(**vars(parser.parse_args(argv)))
    if config.quota_objects and not re.fullmatch(r"[^/]+/[^/]+", config.quota_objects):
        parser.error(f"--quota-objects {config.quota_objects!r} must be NAMESPACE/PREFIX")
    return config


def _from_env(parser: argparse.ArgumentParser, env: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for option in fields(GatewayConfig):
        name = ENV_PREFIX + option.name.upper()
        raw = env.get(name)
        if raw is None:
            continue
        if raw.startswith("tcp://"):
            # Kubernetes' service links inject OCTAVO_GATEWAY_PORT=tcp://… where a Service is named octavo-gateway.
            logger.warning("ignored a service link", extra={"variable": name})
            continue
        try:
            value = _parser_of(option.default)(raw)
        except ValueError:
            parser.error(f"{name}={raw!r} is not a number")
        choices = option.metadata["choices"]
        if choices and value not in choices:
            parser.error(f"{name}={raw!r} must be one of {', '.join(choices)}")
        values[option.name] = value
    return values


def _parser_of(default: object) -> Callable[[str], Any]:
    return _names if isinstance(default, tuple) else type(default)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _shown(value: object) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)

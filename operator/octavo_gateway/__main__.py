"""``python -m octavo_gateway``: the gateway in front of a cluster's models."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence

from . import logs
from .app import running_gateway
from .config import GatewayConfig, parse_config
from .endpoints import RoutingTable
from .errors import BadCertificate, CannotListen, KubeApiError
from .metrics import Metrics
from .tracing import TracingUnavailable


def main(argv: Sequence[str] | None = None) -> int:
    config = parse_config(sys.argv[1:] if argv is None else argv, os.environ)
    logs.configure(config.log_level, config.log_format)
    try:
        return asyncio.run(run(config))
    except (KubeApiError, BadCertificate, CannotListen, TracingUnavailable) as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(f"the package {error.name!r} is missing; pip install 'octavo[gateway]'")


async def run(config: GatewayConfig) -> int:
    # Only a gateway in front of a cluster needs the Kubernetes client.
    from .kube_quota import KubeQuotaBackend
    from .kube_source import KubeApiTransport, KubeSource

    stop = _stop_signals()
    transport = await KubeApiTransport.open(config.kubeconfig)
    rng = random.Random()

    def make_source(publish: Callable[[RoutingTable], None], metrics: Metrics) -> KubeSource:
        backend = None
        if config.quota_objects:
            namespace, _, prefix = config.quota_objects.partition("/")
            backend = KubeQuotaBackend(transport, metrics, namespace=namespace, prefix=prefix)
        return KubeSource(transport, publish, metrics, namespaces=config.namespaces, quota_backend=backend, rng=rng)

    try:
        async with running_gateway(config, make_source, rng) as gateway:
            await stop.get()
            drain = asyncio.create_task(
                gateway.drain(delay_s=config.drain_delay_s, timeout_s=config.shutdown_timeout_s)
            )
            again = asyncio.create_task(stop.get())
            await asyncio.wait({drain, again}, return_when=asyncio.FIRST_COMPLETED)
            again.cancel()
            drain.cancel()
    finally:
        await transport.close()
    return 0


def _stop_signals() -> asyncio.Queue[int]:
    """SIGTERM and SIGINT as a queue: the first one drains, the second one ends now."""
    signals: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    return signals


def _fail(message: str) -> int:
    sys.stderr.write(f"error: {message}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())

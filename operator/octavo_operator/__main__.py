"""`python -m octavo_operator`: the operator in a cluster, or outside of one with --kubeconfig."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Sequence

from octavo_operator.config import OperatorConfig, parse_config
from octavo_operator.controller import Controller
from octavo_operator.errors import OctavoOperatorError
from octavo_operator.kube.client import KubeClient
from octavo_operator.logs import configure_logging
from octavo_operator.probe import StartupProbe

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 after a signal, 1 where the configuration or a part of the operator failed."""
    try:
        config = parse_config(sys.argv[1:] if argv is None else argv, os.environ)
        configure_logging(level=config.log_level, log_format=config.log_format)
        asyncio.run(run(config))
    except OctavoOperatorError as error:
        sys.stderr.write(f"octavo operator: {error}\n")
        return 1
    return 0


async def run(config: OperatorConfig) -> None:
    """The operator until a signal ends it."""
    async with KubeClient.connect(config.kubeconfig) as kube, StartupProbe.open_session() as session:
        await Controller(config, kube, session).run()


if __name__ == "__main__":
    sys.exit(main())

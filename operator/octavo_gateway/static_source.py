"""Feeds the router in local mode: whoever runs the servers says which models and replicas there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from .endpoints import Model, RoutingTable, table_of
from .errors import KubeApiError
from .quota_loops import QuotaBackend


class StaticSource:
    def __init__(
        self, publish: Callable[[RoutingTable], None], *, secrets: Mapping[str, Mapping[str, bytes]] | None = None
    ) -> None:
        """`secrets` has the entries of each Secret by ``NAMESPACE/NAME``."""
        self.quota_backend: QuotaBackend | None = None
        """Nothing outlives a local gateway, and it is alone."""
        self._publish = publish
        self._secrets = secrets or {}

    def set_models(self, models: Iterable[Model]) -> None:
        self._publish(table_of(models))

    async def run(self) -> None:
        """Nothing to watch: changes come through ``set_models``."""

    async def read_secret(self, namespace: str, name: str) -> Mapping[str, bytes]:
        try:
            return self._secrets[f"{namespace}/{name}"]
        except KeyError:
            raise KubeApiError(404, f"no Secret {namespace}/{name} was given") from None

    async def wake(self, model: Model) -> None:
        """Local models are never scaled to zero, so the waker does not come here."""
        raise AssertionError(f"{model.key} cannot be scaled to zero in local mode")

"""Feeds the router in local mode: whoever runs the servers says which models and replicas there are."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from .endpoints import Model, RoutingTable, table_of


class StaticSource:
    def __init__(self, publish: Callable[[RoutingTable], None]) -> None:
        self._publish = publish

    def set_models(self, models: Iterable[Model]) -> None:
        self._publish(table_of(models))

    async def run(self) -> None:
        """Nothing to watch: changes come through ``set_models``."""

    async def wake(self, model: Model) -> None:
        """Local models are never scaled to zero, so the waker does not come here."""
        raise AssertionError(f"{model.key} cannot be scaled to zero in local mode")

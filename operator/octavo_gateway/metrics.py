"""The gateway's metrics; the ``model`` label is always a key of the routing table, never a client's string."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
UNKNOWN_MODEL = ""


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "octavo_gateway_requests",
            "Requests by model and the status that the client was given (499: it left first).",
            ["model", "code"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "octavo_gateway_request_seconds",
            "Seconds from a request's arrival to its last byte.",
            ["model"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.in_flight = Gauge(
            "octavo_gateway_in_flight_requests", "Requests that are being answered or held.", registry=self.registry
        )
        self.held = Gauge(
            "octavo_gateway_held_requests",
            "Requests that wait because no replica can take them.",
            ["model"],
            registry=self.registry,
        )
        self.hold_seconds = Histogram(
            "octavo_gateway_hold_seconds",
            "Seconds that a held request waited.",
            ["model"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.upstream_errors = Counter(
            "octavo_gateway_upstream_errors",
            "Attempts on a replica that failed before its first byte, or broke in the middle of an answer.",
            ["model", "reason"],
            registry=self.registry,
        )
        self.spills = Counter(
            "octavo_gateway_prefix_spills",
            "Requests that did not go where their prefix is cached, because that replica was over its bound.",
            ["model"],
            registry=self.registry,
        )
        self.wakes = Counter(
            "octavo_gateway_wakes", "Times that a model was scaled from 0 to 1.", ["model"], registry=self.registry
        )
        self.routable_replicas = Gauge(
            "octavo_gateway_routable_replicas",
            "Replicas that may take requests.",
            ["model"],
            registry=self.registry,
        )
        self.source_errors = Counter(
            "octavo_gateway_source_errors",
            "Failed lists, watches and writes at the API server.",
            ["what"],
            registry=self.registry,
        )
        self._models: set[str] = set()

    def keep_only(self, models: Iterable[str]) -> None:
        """Forget the series of models that have left the table."""
        models = set(models)
        for model in self._models - models:
            for metric in (self.requests, self.upstream_errors):
                metric.remove_by_labels({"model": model})
            for family in (
                self.request_seconds,
                self.held,
                self.hold_seconds,
                self.spills,
                self.wakes,
                self.routable_replicas,
            ):
                family.remove_by_labels({"model": model})
        self._models = models

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

"""The gateway's metrics; the ``model`` label is always a key of the routing table, never a client's string."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
UNKNOWN_MODEL = ""


class Metrics:
    """Owns the registry; series of a model end with it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._models: set[str] = set()
        self._per_model: list[Counter | Gauge | Histogram] = []
        self.requests = self._counter(
            "requests", "Requests by model and the status that the client was given (499: it left first).", "code"
        )
        self.request_seconds = self._histogram("request_seconds", "Seconds from a request's arrival to its last byte.")
        self.in_flight = self._total("in_flight_requests", "Requests that are being answered or held.")
        self.held = self._gauge("held_requests", "Requests that wait because no replica can take them.")
        self.hold_seconds = self._histogram("hold_seconds", "Seconds that a held request waited.")
        self.upstream_errors = self._counter(
            "upstream_errors",
            "Attempts on a replica that failed before its first byte, or broke or fell silent in the middle of an answer.",
            "reason",
        )
        self.spills = self._counter(
            "prefix_spills",
            "Requests that did not go where their prefix is cached, because that replica was over its bound.",
        )
        self.ejections = self._counter("ejections", "Times that a replica was left alone after failures in a row.")
        self.wakes = self._counter("wakes", "Times that a model was scaled from 0 to 1.")
        self.routable_replicas = self._gauge("routable_replicas", "Replicas that may take requests.")
        self.unreadable_secrets = self._total(
            "unreadable_secrets", "Secrets named by access.keysFrom that cannot be read."
        )
        self.tokens = self._counter("tokens", "Tokens of answers, as their usage tells.", "kind")
        self.quota_rejections = self._counter(
            "quota_rejections", "Requests refused because the key had used up its tokens.", "quota"
        )
        self.silent_owners = self._event(
            "silent_quota_owners", "Times that the gateway which owns a key's quota did not answer."
        )
        self.lost_audits = self._event("lost_audit_lines", "Lines of the audit log that could not be written in time.")
        self.unsaved_days = self._event(
            "unsaved_days", "Day totals of keys that were not saved, because their ConfigMap is full."
        )
        self.tls_reloads = self._event(
            "tls_reloads", "Times that a changed certificate was read, or could not be.", "outcome"
        )
        self.cut_connections = self._event(
            "cut_connections",
            "Clients' connections that a limit ended: too_many_connections, header_timeout, write_timeout.",
            "reason",
        )
        self.source_errors = self._event(
            "source_errors", "Failed lists, watches, reads and writes at the API server.", "what"
        )

    def keep_only(self, models: Iterable[str]) -> None:
        """Forget the series of models that have left the table."""
        models = set(models)
        for model in self._models - models:
            for family in self._per_model:
                family.remove_by_labels({"model": model})
        self._models = models

    def label_of(self, model: str) -> str:
        """The model as a label: one that has left the table meanwhile has no series any more, and gets none."""
        return model if model in self._models else UNKNOWN_MODEL

    def exposition(self) -> bytes:
        return generate_latest(self.registry)

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        made = Counter(f"octavo_gateway_{name}", about, ["model", *labels], registry=self.registry)
        self._per_model.append(made)
        return made

    def _gauge(self, name: str, about: str) -> Gauge:
        made = Gauge(f"octavo_gateway_{name}", about, ["model"], registry=self.registry)
        self._per_model.append(made)
        return made

    def _histogram(self, name: str, about: str) -> Histogram:
        made = Histogram(f"octavo_gateway_{name}", about, ["model"], registry=self.registry, buckets=SECONDS)
        self._per_model.append(made)
        return made

    def _event(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"octavo_gateway_{name}", about, labels, registry=self.registry)

    def _total(self, name: str, about: str) -> Gauge:
        return Gauge(f"octavo_gateway_{name}", about, registry=self.registry)

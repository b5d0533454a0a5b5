"""The operator's own metrics, declared together."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from octavo_operator.kube.kinds import resource_of


class Metrics:
    """One set of instruments in a registry of its own, so that tests do not share them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.reconcile_seconds = Histogram(
            "octavo_operator_reconcile_seconds",
            "Time of one reconcile of one ModelDeployment.",
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
            registry=self.registry,
        )
        self.errors = Counter(
            "octavo_operator_reconcile_errors_total",
            "Reconciles that failed, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.writes = Counter(
            "octavo_operator_writes_total",
            "Changes of the cluster, by what was done and the kind of object.",
            ["operation", "kind"],
            registry=self.registry,
        )
        self.requests = Counter(
            "octavo_operator_requests_total",
            "Requests to the API server, watches left out, by their answer; code 0 where none came.",
            ["method", "resource", "code"],
            registry=self.registry,
        )
        self.rollbacks = Counter(
            "octavo_operator_rollbacks_total",
            "Rollouts that went back to the revision before, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "octavo_operator_queue_depth", "ModelDeployments that wait or are worked on.", registry=self.registry
        )
        self.is_leader = Gauge(
            "octavo_operator_is_leader", "1 on the replica that writes, 0 elsewhere.", registry=self.registry
        )
        self.adapter_up = Gauge(
            "octavo_operator_metrics_adapter_up",
            "1 where the custom metrics adapter is served and announced by us, 0 where it has trouble or is off.",
            registry=self.registry,
        )
        self.model_deployments = Gauge(
            "octavo_operator_model_deployments", "ModelDeployments that are known.", registry=self.registry
        )

    def count_request(self, method: str, path: str, status: int) -> None:
        self.requests.labels(method=method, resource=resource_of(path), code=status).inc()

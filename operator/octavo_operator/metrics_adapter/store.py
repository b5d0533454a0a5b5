"""What the server pods last reported, for the adapter, the policies and the status to read.

The scraper is the only writer. A load older than `fresh_for_s` is as good as none: readers never see it, because a
number from a pod that has stopped to answer would scale on the past.

Every time here is Unix seconds of one clock, the `now` that the caller passes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

MODEL_LABEL = "octavo.dev/modeldeployment"
"""Label that ties a pod to its ModelDeployment; ARCHITECTURE.md holds it for every process."""
MAX_PRESSURE = 1e9
"""A greater one is no measurement; the gateway draws the same line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPod:
    """A server pod as the operator's watch last saw it."""

    namespace: str
    name: str
    uid: str
    ip: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ready: bool
    terminating: bool = False

    @property
    def model(self) -> str:
        """Name of the ModelDeployment in the pod's namespace; empty for a pod of nobody."""
        return self.labels.get(MODEL_LABEL, "")

    @property
    def is_serving(self) -> bool:
        """Only such pods are scraped, counted and given to an HPA."""
        return self.ready and not self.terminating and bool(self.ip)


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLoad:
    """One answer of a pod's `/load`."""

    pressure: float
    """Demanded KV blocks over all blocks; may exceed 1."""
    running: int
    waiting: int
    draining: bool
    requests_total: int
    """Generation requests accepted since the server's start; falls back to 0 with a restarted container."""
    kv_usage: float
    at: float
    """When it was read, Unix seconds."""
    kv_tokens: int = 0
    """Tokens that the KV cache has room for; 0 where the server is too old to say so."""
    max_num_seqs: int = 0
    tokens_per_second: float = 0.0
    """Output of the server's best ten seconds."""

    @property
    def is_usable(self) -> bool:
        """False for NaN, negative or absurd pressure, which a broken server may report and nobody may scale on."""
        return 0 <= self.pressure <= MAX_PRESSURE


class MetricsStore:
    """Owns the newest load of each pod, by pod uid, at most `max_pods` of them (the longest unheard goes first)."""

    def __init__(self, *, fresh_for_s: float = 10.0, max_pods: int = 20_000) -> None:
        self.fresh_for_s = fresh_for_s
        self._max_pods = max_pods
        self._loads: OrderedDict[str, PodLoad] = OrderedDict()

    def __len__(self) -> int:
        return len(self._loads)

    def put(self, uid: str, load: PodLoad) -> None:
        self._loads[uid] = load
        self._loads.move_to_end(uid)
        while len(self._loads) > self._max_pods:
            self._loads.popitem(last=False)

    def fresh(self, uid: str, now: float) -> PodLoad | None:
        """The pod's load, or None when it never answered, answered too long ago or answered nonsense."""
        load = self._loads.get(uid)
        if load is None or now - load.at > self.fresh_for_s or not load.is_usable:
            return None
        return load

    def retain(self, uids: Iterable[str]) -> None:
        """Forget every pod that is not among `uids`."""
        keep = set(uids)
        for uid in [uid for uid in self._loads if uid not in keep]:
            del self._loads[uid]


def mean_pressure(pods: Iterable[ServerPod], store: MetricsStore, now: float) -> float | None:
    """Mean over the serving pods that have a fresh load; None when there is none."""
    loads = [store.fresh(pod.uid, now) for pod in pods if pod.is_serving]
    pressures = [load.pressure for load in loads if load is not None]
    return sum(pressures) / len(pressures) if pressures else None

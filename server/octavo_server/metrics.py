"""All metrics of the server, under vLLM's names and with vLLM's meanings, plus ours (`octavo_…`).

Gauges are read from a snapshot when `/metrics` is asked for, so a step never touches them. Counters count what clients
were told: `completion_tokens` of every ended output, `prompt_tokens` once a request. No label ever holds a request id.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from octavo_server.engine.request import FinishReason
from octavo_server.throughput import Throughput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from octavo_server.engine.records import EngineRecords

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TTFT_BUCKETS = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.15,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
    20.0,
    40.0,
    80.0,
    160.0,
    640.0,
)
# Half a millisecond upwards: the field's usual first bucket of 10 ms hides everything a fast engine does.
_TOKEN_BUCKETS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.004,
    0.006,
    0.008,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    10.0,
)
_REQUEST_BUCKETS = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
    960.0,
    1920.0,
)
_STEP_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """The engine at one moment; made after each step, read by `/metrics`, `/load` and `/health`. Counts are totals."""

    num_running: int = 0
    num_waiting: int = 0
    kv_usage: float = 0.0
    """Referenced blocks over all blocks, 0 to 1."""
    pressure: float = 0.0
    """Demanded blocks over all blocks, or sequences over --max-num-seqs, whichever is larger; not capped at 1."""
    kv_waste: float = 0.0
    """Slots allocated and not used over slots allocated."""
    block_size: int = 0
    num_blocks: int = 0
    max_num_seqs: int = 0
    prefix_queries: int = 0
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_hits: int = 0
    """Of those, tokens that were found."""
    preemptions: int = 0


@dataclass(slots=True, kw_only=True)
class RequestTimes:
    """When a request's stages began, in seconds of the engine's clock."""

    arrival_s: float
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    output_tokens: int = 0
    prompt_tokens: int = 0
    finish_reasons: list[FinishReason] = field(default_factory=list)


class ServerMetrics:
    """Owns the registry. `snapshot` is asked at each scrape."""

    def __init__(
        self,
        model_name: str,
        snapshot: Callable[[], EngineSnapshot],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._clock = clock
        self._throughput = Throughput(clock())
        self._model = model_name
        self.registry.register(_SnapshotCollector(model_name, snapshot))
        self._make_counters()
        self._make_histograms()

    def _make_counters(self) -> None:
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens of accepted requests.")
        self._generation_tokens = self._counter("vllm:generation_tokens", "Output tokens, as in usage.")
        success = Counter(
            "vllm:request_success",
            "Outputs that ended, by reason.",
            ("model_name", "finished_reason"),
            registry=self.registry,
        )
        self._success = {reason: success.labels(self._model, reason.value) for reason in FinishReason}
        self._rejected = Counter(
            "octavo_rejected_requests", "Requests refused, by reason.", ("model_name", "reason"), registry=self.registry
        )
        for reason in ("invalid_value", "queue_full"):
            # There from the start, so that a first increase is seen as one.
            self._rejected.labels(self._model, reason)
        self._startup = Gauge(
            "octavo_startup_seconds",
            "Seconds that each stage of the start took.",
            ("model_name", "stage"),
            registry=self.registry,
        )
        self._step_errors = self._counter(
            "octavo_engine_step_errors", "Steps that raised and were repeated without the offender."
        )

        self._compilations = self._counter(
            "octavo_kernel_compilations", "Kernels compiled after the start, while requests waited for them."
        )

    def _make_histograms(self) -> None:
        histogram = self._histogram
        self._ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", _TTFT_BUCKETS)
        self._itl = histogram(
            "vllm:inter_token_latency_seconds", "Gap between two tokens of a sequence.", _TOKEN_BUCKETS
        )
        self._tpot = histogram("vllm:request_time_per_output_token_seconds", "Mean gap of a request.", _TOKEN_BUCKETS)
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to end.", _REQUEST_BUCKETS)
        self._queue = histogram("vllm:request_queue_time_seconds", "Arrival to first step.", _REQUEST_BUCKETS)
        self._prefill = histogram("vllm:request_prefill_time_seconds", "First step to first token.", _REQUEST_BUCKETS)
        self._decode = histogram("vllm:request_decode_time_seconds", "First to last token.", _REQUEST_BUCKETS)
        self._request_prompt = histogram("vllm:request_prompt_tokens", "Prompt tokens a request.", _COUNT_BUCKETS)
        self._request_generation = histogram(
            "vllm:request_generation_tokens", "Output tokens a request.", _COUNT_BUCKETS
        )
        self._iteration = histogram("vllm:iteration_tokens_total", "Tokens computed in a step.", _BATCH_BUCKETS)
        self._step = histogram("octavo_engine_step_seconds", "Length of an engine step.", _STEP_BUCKETS)
        self._host_gap = histogram(
            "octavo_engine_host_gap_seconds", "Between two steps while work is there.", _STEP_BUCKETS
        )

    def record(self, records: EngineRecords) -> None:
        """Counts what the engine noted since its last report."""
        for step in records.steps:
            self._iteration.observe(step.num_tokens)
            self._step.observe(step.seconds)
            if step.gap_s is not None:
                self._host_gap.observe(step.gap_s)
        for num_tokens in records.accepted_prompt_tokens:
            self._prompt_tokens.inc(num_tokens)
        self._generation_tokens.inc(records.num_output_tokens)
        self._throughput.add(records.num_output_tokens, self._clock())
        for gap_s in records.token_gaps_s:
            self._itl.observe(gap_s)
        for seconds in records.first_tokens_s:
            self._ttft.observe(seconds)
        for request in records.finished:
            self._record_finished(request.times, request.ended_s)
        self._step_errors.inc(records.num_step_errors)
        self._compilations.inc(records.num_compilations)

    def _record_finished(self, times: RequestTimes, now: float) -> None:
        for reason in times.finish_reasons:
            self._success[reason].inc()
        self._e2e.observe(now - times.arrival_s)
        self._request_prompt.observe(times.prompt_tokens)
        self._request_generation.observe(times.output_tokens)
        if times.scheduled_s is None:
            return
        self._queue.observe(times.scheduled_s - times.arrival_s)
        if times.first_token_s is None or times.last_token_s is None:
            return
        self._prefill.observe(times.first_token_s - times.scheduled_s)
        decode_s = times.last_token_s - times.first_token_s
        self._decode.observe(decode_s)
        per_output = times.output_tokens / max(1, len(times.finish_reasons))
        if per_output > 1:
            self._tpot.observe(decode_s / (per_output - 1))

    @property
    def peak_tokens_per_second(self) -> float:
        """Output tokens a second in the best ten seconds since the start."""
        return self._throughput.peak(self._clock())

    def record_rejected(self, reason: str) -> None:
        """A request that was refused: invalid, unauthorized, queue_full, loading, draining, dead, too_large."""
        self._rejected.labels(self._model, reason).inc()

    def record_startup(self, stage: str, seconds: float) -> None:
        """A stage of the start that ended."""
        self._startup.labels(self._model, stage).set(seconds)

    def render(self) -> bytes:
        """The text of `/metrics`."""
        return generate_latest(self.registry)

    def _counter(self, name: str, doc: str) -> Counter:
        return Counter(name, doc, ("model_name",), registry=self.registry).labels(self._model)

    def _histogram(self, name: str, doc: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, doc, ("model_name",), buckets=buckets, registry=self.registry).labels(self._model)


class _SnapshotCollector(Collector):
    """Turns one snapshot into gauges and counters at scrape time."""

    def __init__(self, model_name: str, snapshot: Callable[[], EngineSnapshot]) -> None:
        self._model = model_name
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        now = self._snapshot()
        for name, doc, value in (
            ("vllm:num_requests_running", "Sequences that run.", now.num_running),
            ("vllm:num_requests_waiting", "Sequences that wait.", now.num_waiting),
            ("vllm:kv_cache_usage_perc", "Referenced KV blocks over all, 0 to 1.", now.kv_usage),
            (
                "octavo_kv_pressure_ratio",
                "Demanded KV blocks over all, or sequences over their limit; may exceed 1.",
                now.pressure,
            ),
            ("octavo_kv_waste_ratio", "KV slots allocated and not used over allocated.", now.kv_waste),
        ):
            family = GaugeMetricFamily(name, doc, labels=("model_name",))
            family.add_metric((self._model,), value)
            yield family
        info = GaugeMetricFamily(
            "vllm:cache_config_info", "KV cache layout.", labels=("model_name", "block_size", "num_gpu_blocks")
        )
        info.add_metric((self._model, str(now.block_size), str(now.num_blocks)), 1)
        yield info
        yield self._adapters()
        for name, doc, count in (
            ("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", now.prefix_queries),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", now.prefix_hits),
            ("vllm:num_preemptions", "Sequences preempted and computed anew.", now.preemptions),
            # Nothing is speculated yet; dashboards divide one by the other.
            ("vllm:spec_decode_num_draft_tokens", "Tokens drafted ahead of the model.", 0),
            ("vllm:spec_decode_num_accepted_tokens", "Drafted tokens that the model would have chosen.", 0),
        ):
            counter = CounterMetricFamily(name, doc, labels=("model_name",))
            counter.add_metric((self._model,), count)
            yield counter

    def _adapters(self) -> Metric:
        """Which adapters run and wait; none yet, which is what routers by adapter must read."""
        labels = ("model_name", "max_lora", "running_lora_adapters", "waiting_lora_adapters")
        family = GaugeMetricFamily("vllm:lora_requests_info", "LoRA adapters with requests, by name.", labels=labels)
        family.add_metric((self._model, "0", "", ""), 0)
        return family

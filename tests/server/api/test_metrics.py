"""`/metrics`: vLLM's names, counts equal to what clients were told, and zero at rest."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from octavo_testing.server import Server, a_chat, a_completion, fake_server, real_server, samples

GAUGES = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "octavo_kv_pressure_ratio",
    "octavo_kv_waste_ratio",
]
CONTRACT: dict[str, tuple[str, set[str]]] = {
    **{name: ("gauge", set[str]()) for name in GAUGES},
    "vllm:lora_requests_info": ("gauge", {"max_lora", "running_lora_adapters", "waiting_lora_adapters"}),
    "vllm:cache_config_info": ("gauge", {"block_size", "num_gpu_blocks"}),
    "octavo_startup_seconds": ("gauge", {"stage"}),
    "vllm:prefix_cache_queries": ("counter", set()),
    "vllm:prefix_cache_hits": ("counter", set()),
    "vllm:num_preemptions": ("counter", set()),
    "vllm:prompt_tokens": ("counter", set()),
    "vllm:generation_tokens": ("counter", set()),
    "vllm:request_success": ("counter", {"finished_reason"}),
    "vllm:spec_decode_num_draft_tokens": ("counter", set()),
    "vllm:spec_decode_num_accepted_tokens": ("counter", set()),
    "octavo_rejected_requests": ("counter", {"reason"}),
    "octavo_engine_step_errors": ("counter", set()),
    "octavo_kernel_compilations": ("counter", set()),
    "vllm:time_to_first_token_seconds": ("histogram", set()),
    "vllm:inter_token_latency_seconds": ("histogram", set()),
    "vllm:request_time_per_output_token_seconds": ("histogram", set()),
    "vllm:e2e_request_latency_seconds": ("histogram", set()),
    "vllm:request_queue_time_seconds": ("histogram", set()),
    "vllm:request_prefill_time_seconds": ("histogram", set()),
    "vllm:request_decode_time_seconds": ("histogram", set()),
    "vllm:request_prompt_tokens": ("histogram", set()),
    "vllm:request_generation_tokens": ("histogram", set()),
    "vllm:iteration_tokens_total": ("histogram", set()),
    "octavo_engine_step_seconds": ("histogram", set()),
    "octavo_engine_host_gap_seconds": ("histogram", set()),
}
"""Metric family → its type, and its labels beside `model_name`."""
QUERIES = [
    # Panels of vLLM's Grafana dashboard
    'histogram_quantile(0.99, sum by(le) (rate(vllm:e2e_request_latency_seconds_bucket{model_name="m"}[5m])))',
    'rate(vllm:e2e_request_latency_seconds_sum{model_name="m"}[5m]) / rate(vllm:e2e_request_latency_seconds_count{model_name="m"}[5m])',
    'rate(vllm:prompt_tokens_total{model_name="m"}[5m])',
    'rate(vllm:generation_tokens_total{model_name="m"}[5m])',
    'histogram_quantile(0.95, sum by(le) (rate(vllm:inter_token_latency_seconds_bucket{model_name="m"}[5m])))',
    'histogram_quantile(0.9, sum by(le) (rate(vllm:time_to_first_token_seconds_bucket{model_name="m"}[5m])))',
    'vllm:num_requests_running{model_name="m"}',
    'vllm:num_requests_waiting{model_name="m"}',
    'vllm:kv_cache_usage_perc{model_name="m"}',
    'sum by(le) (increase(vllm:request_prompt_tokens_bucket{model_name="m"}[5m]))',
    'sum by(le) (increase(vllm:request_generation_tokens_bucket{model_name="m"}[5m]))',
    'sum by(finished_reason) (increase(vllm:request_success_total{model_name="m"}[5m]))',
    'rate(vllm:request_queue_time_seconds_sum{model_name="m"}[5m])',
    'rate(vllm:request_prefill_time_seconds_sum{model_name="m"}[5m])',
    'rate(vllm:request_decode_time_seconds_sum{model_name="m"}[5m])',
    "rate(vllm:spec_decode_num_accepted_tokens_total[5m]) / rate(vllm:spec_decode_num_draft_tokens_total[5m])",
    "rate(vllm:prefix_cache_hits_total[5m]) / rate(vllm:prefix_cache_queries_total[5m])",
    # KEDA, the Gateway API inference extension, our own autoscaler
    'sum(vllm:num_requests_waiting{model_name="m"})',
    'max by(running_lora_adapters, max_lora) (vllm:lora_requests_info{model_name="m"})',
    'max by(block_size, num_gpu_blocks) (vllm:cache_config_info{model_name="m"})',
    'avg(octavo_kv_pressure_ratio{model_name="m"})',
    'sum by(reason) (rate(octavo_rejected_requests_total{model_name="m"}[5m]))',
]


async def at_rest(server: Server) -> dict[str, float]:
    await server.until(lambda: server.state.engine.num_unfinished == 0)
    return {name: await server.metric(name) for name in GAUGES}


async def test_every_name_of_the_contract_has_its_type_and_labels(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        text = (await server.get("/metrics")).body.decode()

    found = {family.name: family for family in text_string_to_metric_families(text)}
    for name, (kind, labels) in CONTRACT.items():
        family = found[name]
        assert (name, family.type) == (name, kind)
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert (sample.name, sample.labels.keys() - {"le"}) == (sample.name, {"model_name", *labels})
            assert sample.labels["model_name"] == "tiny"
    assert {name for name in found if not name.endswith("_created")} == set(CONTRACT)
    info = samples(text, "vllm:cache_config_info")[0][0]
    assert (info["block_size"], info["num_gpu_blocks"]) == ("16", "200")


async def test_queries_of_dashboards_and_autoscalers_find_what_they_name(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        text = (await server.get("/metrics")).body.decode()

    for query in QUERIES:
        grouped = {label for labels in re.findall(r"by\(([^)]*)\)", query) for label in labels.split(", ")}
        names = re.findall(r"(?:vllm:|octavo_)\w+", query)
        assert names
        for name in names:
            found = samples(text, name)
            assert found, name
            assert grouped <= found[0][0].keys(), query


async def test_token_buckets_begin_at_half_a_millisecond(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        text = (await server.get("/metrics")).body.decode()

    bounds = [float(labels["le"]) for labels, _ in samples(text, "vllm:inter_token_latency_seconds_bucket")]
    assert min(bounds) == 0.0005


async def test_counts_equal_what_the_clients_were_told(tiny_model: Path) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = []
    for number in range(6):
        fields: dict[str, Any] = {"ignore_eos": number % 2 == 0, "max_tokens": 5 + number, "n": 1 + number % 3}
        bodies.append(("/v1/chat/completions", a_chat(f"Same beginning of a prompt, then {number}", **fields)))
        bodies.append(("/v1/completions", a_completion(["One", f"Two {number}"], temperature=1, seed=1, **fields)))
    async with real_server(tiny_model) as server:
        answers = await asyncio.gather(*(server.post(path, body) for path, body in bodies))
        answers += [await server.post(path, body) for path, body in bodies]
        streams = await asyncio.gather(
            *(server.post(p, {**b, "stream": True, "stream_options": {"include_usage": True}}) for p, b in bodies)
        )
        usages = [answer.json["usage"] for answer in answers] + [stream.events[-1]["usage"] for stream in streams]
        ends = [choice["finish_reason"] for answer in answers for choice in answer.json["choices"]]
        ends += [c["finish_reason"] for s in streams for e in s.events for c in e["choices"] if c["finish_reason"]]

        metric = server.metric
        assert sum(usage["completion_tokens"] for usage in usages) == await metric("vllm:generation_tokens_total")
        assert sum(usage["prompt_tokens"] for usage in usages) == await metric("vllm:prompt_tokens_total")
        for reason in ("stop", "length"):
            counted = await metric("vllm:request_success_total", finished_reason=reason)
            assert ends.count(reason) == counted
        num_prompts = 3 * sum(2 if "prompt" in body else 1 for _, body in bodies)
        assert num_prompts == await metric("vllm:e2e_request_latency_seconds_count")
        assert num_prompts == await metric("vllm:time_to_first_token_seconds_count")
        assert num_prompts == (await server.get("/load")).json["requests_total"]
        assert await metric("vllm:prefix_cache_hits_total") > 0
        assert await metric("octavo_engine_step_errors_total") == 0
        assert dict.fromkeys(GAUGES, 0.0) == await at_rest(server)


async def test_gauges_show_what_runs_and_waits_and_pressure_is_not_capped(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder, seqs=2, blocks=40) as server:
        assert server.fake is not None
        server.fake.runner.gate.clear()
        tasks = [
            asyncio.create_task(server.post("/v1/completions", a_completion([9] * 40, ignore_eos=True, max_tokens=100)))
            for _ in range(6)
        ]
        await server.until(lambda: server.state.engine.num_unfinished == 6)
        server.fake.runner.let_through(3)
        await server.until(lambda: server.state.engine.snapshot.num_waiting == 4)
        load = (await server.get("/load")).json
        shown = {name: await server.metric(name) for name in GAUGES}
        server.fake.runner.open()
        await asyncio.gather(*tasks)

        assert (load["running"], load["waiting"]) == (2, 4)
        assert 3.0 == load["pressure"] == shown["octavo_kv_pressure_ratio"]
        assert 0 < shown["vllm:kv_cache_usage_perc"] < 1
        assert 0 <= shown["octavo_kv_waste_ratio"] < 1
        assert dict.fromkeys(GAUGES, 0.0) == await at_rest(server)

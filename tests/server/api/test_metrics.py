"""`/metrics`: vLLM's names, counts equal to what clients were told, and zero at rest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from octavo_testing.server import Server, a_chat, a_completion, fake_server, real_server, samples

GAUGES = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "octavo_kv_pressure_ratio",
    "octavo_kv_waste_ratio",
]
COUNTERS = [
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "octavo_engine_step_errors_total",
]
HISTOGRAMS = [
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:iteration_tokens_total",
    "octavo_engine_step_seconds",
    "octavo_engine_host_gap_seconds",
]


async def at_rest(server: Server) -> dict[str, float]:
    await server.until(lambda: server.state.engine.num_unfinished == 0)
    return {name: await server.metric(name) for name in GAUGES}


async def test_every_name_of_the_contract_is_there_with_the_model(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        text = (await server.get("/metrics")).body.decode()

    for name in [*GAUGES, *COUNTERS, *(f"{name}_count" for name in HISTOGRAMS)]:
        found = samples(text, name)
        assert found, name
        assert all(labels["model_name"] == "tiny" for labels, _ in found)
    info = samples(text, "vllm:cache_config_info")[0][0]
    assert (info["block_size"], info["num_gpu_blocks"]) == ("16", "200")


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

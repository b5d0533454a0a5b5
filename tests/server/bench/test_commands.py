"""`octavo bench`: the commands against real parts, from the command line to the file and its comparison."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from octavo_server.bench.startup import Start, cached_share, evict, serve_arguments, summarize, verdict
from octavo_server.cli import main, serve_parser
from octavo_server.config import EngineConfig
from octavo_server.flags import build, read_settings
from octavo_testing.server import NAME, VOCABULARY, fake_server

SMALL = ("--prompt-tokens", "20", "--max-tokens", "5", "--num-gpu-blocks-override", "100")


def a_record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


async def test_the_first_of_a_servers_keys_is_sent(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "one, two")
    async with fake_server(tokenizer_folder, api_key=("one", "two")) as server:
        argv = ["bench", "serve", "--url", server.url, "--model", NAME, "-c", "1", "-n", "1", "--prompt-tokens", "4"]

        assert await asyncio.to_thread(main, argv) == 0, capsys.readouterr()


async def test_serve_prints_tables_writes_a_file_draws_and_compares(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / "figures.json", tmp_path / "run.svg"
    async with fake_server(tokenizer_folder) as server:
        argv = ["bench", "serve", "--url", server.url + "/v1", "--model", NAME, "-c", "1,2", "-n", "4", "--rounds", "3"]
        argv += ["--token-ids", str(VOCABULARY), "--endpoint", "completions", "--max-tokens", "5"]
        argv += ["--goodput", "ttft:100000"]
        first = await asyncio.to_thread(main, [*argv, "--json", str(path), "--plot", str(picture)])
        printed = capsys.readouterr().out
        again = await asyncio.to_thread(main, [*argv, "--temperature", "0.5", "--compare", str(path)])

    record = a_record(path)
    assert (first, again) == (0, 0)
    assert [(r["name"], r["requests"], r["output_tokens"]) for r in record["results"]] == [
        ("1 clients", 12, 60),
        ("2 clients", 12, 60),
    ]
    assert all(len(r["measures"]["goodput_per_s"]["rounds"]) == 3 for r in record["results"])
    assert record["prompts"]["output_tokens"] == {"5-8": 24}
    assert record["prompts"]["prompt_tokens"] == {"65-128": 24}
    assert record["quality"]["samples"].keys() == {"easy", "average", "long_context", "malformed", "structured"}
    assert record["server"]["owned_by"] == "octavo"
    assert picture.read_text().startswith("<svg")
    assert all(word in printed for word in ("tok/s", "good/s", "TTFT", "ITL", "TPOT", "E2E", "p90", "p99"))
    assert "settings that differ: 1\n  workload.temperature: 0.0 -> 0.5" in capsys.readouterr().out


async def test_peers_are_measured_with_the_same_command(
    aiohttp_peer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that sends no usage and no finish_reason: its tokens are its pieces."""
    path = tmp_path / "peer.json"
    argv = ["bench", "serve", "--url", aiohttp_peer, "--model", "a.gguf", "--request-rate", "500", "-n", "3"]

    status = await asyncio.to_thread(main, [*argv, "--json", str(path), "--metadata", "slots=8"])

    record = a_record(path)
    assert (status, record["results"][0]["name"], record["results"][0]["output_tokens"]) == (0, "500 req/s", 6)
    assert record["notes"] == {"slots": "8"}
    assert record["server"]["owned_by"] == "llamacpp"


async def test_a_server_that_is_gone_is_reported_with_what_was_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "dead.json"
    argv = ["bench", "serve", "--url", "http://127.0.0.1:9", "--model", "m", "-c", "2,4", "-n", "4"]

    status = await asyncio.to_thread(main, [*argv, "--json", str(path)])

    printed, (result,) = capsys.readouterr().out, a_record(path)["results"]
    assert status == 1
    assert "ended, 2 clients: 0 of 4 requests had finished, 0 failed, 4 were not sent; the server is gone" in printed
    assert (result["requests"], result["not_sent"], result["measures"]["ttft_ms"]["p50"]) == (0, 4, None)
    assert "Cannot connect" in result["ended"]


async def test_a_file_of_prompts_is_asked(tokenizer_folder: Path, tmp_path: Path) -> None:
    prompts, path = tmp_path / "prompts.jsonl", tmp_path / "out.json"
    prompts.write_text('{"prompt": "What is a pod?", "max_tokens": 3}\n')
    async with fake_server(tokenizer_folder) as server:
        argv = ["bench", "serve", "--url", server.url, "--model", NAME, "-c", "1", "-n", "2", "--json", str(path)]

        assert await asyncio.to_thread(main, [*argv, "--dataset-path", str(prompts)]) == 0

    assert a_record(path)["results"][0]["output_tokens"] == 6


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["serve", "--model", "m", "-c", "0"], "--max-concurrency is '0'"),
        (["serve", "--model", "m", "--token-ids", "9"], "--endpoint completions"),
        (["serve", "--model", "m", "--extra", "["], "--extra is no JSON"),
        (["serve", "--model", "m", "--request-rate", "0"], "--request-rate is '0'"),
        (["serve", "--model", "m", "--request-rate", "1", "-c", "1,2"], "takes one --max-concurrency"),
        (["serve", "--model", "m", "--goodput", "fast"], "--goodput 'fast'"),
        (["serve", "--model", "m", "--range-ratio", "1"], "--range-ratio is '1'"),
        (["serve", "--model", "m", "--plot", "run.png"], "ends in .svg"),
        (["serve", "--model", "m", "--compare", "/nowhere.json"], "cannot read the result file /nowhere.json"),
        (["serve", "--model", "m", "--metadata", "x"], "must be KEY=VALUE"),
        (["serve", "--model", "m", "-n", "0"], "--requests is '0'"),
        (["serve"], "--model"),
        (["latency", "m", "--batch-size", "x"], "--batch-size is 'x'"),
        (["throughput", "m", "-c", "x"], "--concurrency is 'x'"),
        (["startup", "m", "--within", "never"], "--within is 'never'"),
        (["startup", "/nowhere"], "/nowhere does not exist"),
        (["latencyy"], "serve, throughput, latency, startup, compare"),
    ],
)
def test_a_mistake_is_told(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) in (1, 2)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("endpoint", "line"), [("chat", '{"prompt": [1]}'), ("completions", '{"messages": [{}]}')])
def test_a_file_for_the_other_endpoint_is_told(
    tmp_path: Path, endpoint: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)

    assert main(["bench", "serve", "--model", "m", "--endpoint", endpoint, "--dataset-path", str(path)]) == 2
    assert "use --endpoint" in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_throughput_measures_the_engine_alone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"

    argv = ["bench", "throughput", str(tiny_model), "-c", "1,3", "--rounds", "2", *SMALL]
    assert main([*argv, "--json", str(path)]) == 0

    record = a_record(path)
    assert [(r["batch"], r["prompt_tokens"], r["output_tokens"]) for r in record["results"]] == [
        (1, 40, 10),
        (3, 120, 30),
    ]
    names = {"output_tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s", "wall_s"}
    assert all(r["measures"].keys() == names for r in record["results"])
    assert all(m["p50"] > 0 and len(m["rounds"]) == 2 for r in record["results"] for m in r["measures"].values())
    assert record["model"]["files"].keys() >= {"model.safetensors", "config.json", "tokenizer.json"}
    assert (record["engine"]["num_gpu_blocks_override"], record["resolved"]["num_blocks"]) == (100, 100)
    assert "engine alone" in capsys.readouterr().out


@pytest.mark.usefixtures("one_thread")
def test_latency_times_one_batch_again_and_again(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    argv = ["bench", "latency", str(tiny_model), "--batch-size", "2", "--iterations", "3", "--warmup", "1", *SMALL]

    assert main([*argv, "--json", str(path), "--plot", str(tmp_path / "run.svg")]) == 0

    (result,) = a_record(path)["results"]
    times = {name: [request[0][0] for request in of["rounds"]] for name, of in result["measures"].items()}
    assert (result["batch"], result["output_tokens"], {len(found) for found in times.values()}) == (2, 30, {3})
    # The whole is the first token and four further ones.
    for e2e, ttft, tpot in zip(times["e2e_ms"], times["ttft_ms"], times["tpot_ms"], strict=True):
        assert e2e == pytest.approx(ttft + 4 * tpot, rel=1e-3)
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("p50", "p90", "p95", "p99", "a batch of 2, 20 in, 5 out, 3 times"))


@pytest.mark.full
def test_startup_times_every_stage_and_weighs_the_server_at_rest(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The server that is started has one.
    monkeypatch.setenv("OCTAVO_API_KEY", "secret")
    path = tmp_path / "figures.json"
    argv = ["bench", "startup", str(tiny_model), "--num-gpu-blocks-override", "100", "--rounds", "1", "--cold"]

    assert main([*argv, "--within", "9999", "--json", str(path)]) == 0

    record = a_record(path)
    warm, cold = record["results"]
    medians = {name: measure["p50"] for name, measure in warm["measures"].items()}
    stages = medians["starting_s"] + medians["loading_weights_s"] + medians["warming_up_s"]
    assert 0 < medians["listening_s"] < medians["ready_s"]
    assert 0 < stages < medians["ready_s"]
    assert medians["idle_mib"] > 50
    assert (warm["name"], cold["name"], warm["cached_before"]) == ("warm", "cold", [1.0])
    assert cold["cached_before"][0] < 1.0
    assert record["resolved"]["num_blocks"] == 100
    assert "bar 9999 s reached" in capsys.readouterr().out


def test_a_slow_start_misses_its_bar(capsys: pytest.CaptureFixture[str]) -> None:
    starts = [
        Start(
            listening_s=0.5, ready_s=ready_s, first_answer_s=0.1, stage_seconds={"loading_weights": 1.5},
            idle_bytes=3 * 2**20, info={}, cached_before=1.0,
        )
        for ready_s in (2.0, 4.0, 9.0)
    ]  # fmt: skip

    warm = summarize("warm", starts)

    assert (warm.measures["ready_s"].rounds, warm.measures["loading_weights_s"].values) == (
        [[[2.0]], [[4.0]], [[9.0]]],
        [1.5] * 3,
    )
    assert warm.measures["idle_mib"].values == [3.0] * 3
    assert [verdict(warm, within) for within in (None, 4.0, 3.9)] == [0, 0, 1]
    assert "ready after 4.00 s, bar 3.9 s MISSED" in capsys.readouterr().out


def test_files_can_be_put_out_of_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 2**20)
    with open(path, "rb+") as file:
        os.fsync(file.fileno())

    before = cached_share([path])
    evict([path])
    after = cached_share([path])
    path.read_bytes()

    assert (before, cached_share([path])) == (1.0, 1.0)
    assert after < 0.5


def test_a_start_gets_the_settings_that_were_given() -> None:
    given = {
        "model": "m.gguf",
        "quantization": "int4",
        "enable_prefix_caching": False,
        "max_num_seqs": 8,
        "revision": None,
    }
    config = EngineConfig(**given)  # type: ignore[arg-type]  # of several types

    values = serve_parser().parse_strictly(serve_arguments(config, given))

    assert build(EngineConfig, read_settings(values, {}, EngineConfig)) == config


@pytest.mark.usefixtures("one_thread")
def test_generate_answers_prompts_without_a_server(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", str(tiny_model), "The quick", "A pod", "--max-tokens", "4", "--temperature", "0", "--raw"]

    assert main([*argv, "--num-gpu-blocks-override", "100"]) == 0
    raw = capsys.readouterr().out
    assert main([*argv[:-1], "--num-gpu-blocks-override", "100"]) == 0

    assert raw
    assert raw != capsys.readouterr().out

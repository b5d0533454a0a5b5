"""`octavo bench`: figures that follow from what was timed, and both commands against real parts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from octavo_server.bench.load import Target, Timing, run_load, summarize
from octavo_server.bench.prompts import PromptShape, make_prompts
from octavo_server.bench.stats import quantiles, table
from octavo_server.cli import main
from octavo_testing.server import NAME, VOCABULARY, fake_server


def test_quantiles_interpolate_between_ranks() -> None:
    found = quantiles([0.004, 0.001, 0.003, 0.002])

    assert (found.p50_ms, found.mean_ms, found.max_ms) == (2.5, 2.5, 4.0)
    assert found.p95_ms == pytest.approx(3.85)
    assert quantiles([]).p99_ms is None


def test_prompts_are_the_same_for_the_same_seed_and_share_what_was_asked() -> None:
    shape = PromptShape(num_tokens=10, shared_prefix=4, vocab_size=512)

    prompts = make_prompts(shape, 3, seed=1)

    assert prompts == make_prompts(shape, 3, seed=1)
    assert prompts != make_prompts(shape, 3, seed=2)
    assert {len(prompt) for prompt in prompts} == {10}
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 1
    assert len({tuple(prompt[4:]) for prompt in prompts}) == 3
    assert len(str(make_prompts(PromptShape(num_tokens=7), 1, seed=1)[0]).split()) == 7


def test_figures_follow_from_the_timings() -> None:
    good = Timing(start_s=0.0, end_s=1.0, usage={"prompt_tokens": 10, "completion_tokens": 5})
    for now in (0.2, 0.3, 0.5):
        good.piece(now)
    bad = Timing(start_s=0.0, error="HTTP 500")

    result = summarize([good, bad], 2.0, concurrency=2, rate=0.0)

    assert (result.requests, result.failed, result.errors) == (2, 1, ("HTTP 500",))
    assert (result.input_tokens, result.output_tokens, result.output_tokens_per_s) == (10, 5, 2.5)
    assert (result.ttft.p50_ms, result.e2e.p50_ms, result.itl.p50_ms) == (200.0, 1000.0, 150.0)
    # (0.5 - 0.2) s over the 4 tokens after the first
    assert result.tpot.p50_ms == 75.0


def test_a_table_lines_its_columns_up() -> None:
    assert table(("a", "long"), [[1, 2.25], [None, "x"]]).splitlines() == ["a  long", "1   2.2", "-     x"]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("rate", [0.0, 200.0])
async def test_load_counts_what_the_server_counts(tokenizer_folder: Path, endpoint: str, rate: float) -> None:
    async with fake_server(tokenizer_folder) as server:
        target = Target(url=server.url, model=NAME, endpoint=endpoint, max_tokens=6)
        prompts = make_prompts(PromptShape(num_tokens=8), 7, seed=0)

        result = await run_load(target, prompts, concurrency=3, rate=rate, warmup=1)

        assert (result.requests, result.failed, result.output_tokens) == (6, 0, 36)
        assert await server.metric("vllm:generation_tokens_total") == 42
        assert result.ttft.p50_ms is not None


async def test_the_first_of_a_servers_keys_is_sent(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OCTAVO_API_KEY", "one, two")
    async with fake_server(tokenizer_folder, api_key=("one", "two")) as server:
        argv = ["bench", "serve", "--url", server.url, "--model", NAME, "-c", "1", "-n", "1", "--prompt-tokens", "4"]

        assert await asyncio.to_thread(main, argv) == 0, capsys.readouterr()


async def test_failures_are_counted_and_named(tokenizer_folder: Path) -> None:
    async with fake_server(tokenizer_folder) as server:
        refused = await run_load(Target(url=server.url, model="other"), ["x"], concurrency=1)
        unreachable = await run_load(Target(url="http://127.0.0.1:9", model=NAME), ["x"], concurrency=1)

    assert (refused.failed, unreachable.failed) == (1, 1)
    assert "404" in refused.errors[0]


async def test_the_command_prints_a_table_and_writes_json(
    tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    async with fake_server(tokenizer_folder) as server:
        argv = ["bench", "serve", "--url", server.url, "--model", NAME, "-c", "1,2", "-n", "4", "--max-tokens", "5"]
        argv += ["--token-ids", str(VOCABULARY), "--endpoint", "completions", "--json", str(path)]

        status = await asyncio.to_thread(main, argv)

    results = json.loads(path.read_text())["results"]
    assert status == 0
    assert [(r["concurrency"], r["requests"], r["output_tokens"]) for r in results] == [(1, 4, 20), (2, 4, 20)]
    assert "tok/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["bench", "serve", "--model", "m", "-c", "0"], "--concurrency is '0'"),
        (["bench", "serve", "--model", "m", "--token-ids", "9"], "--endpoint completions"),
        (["bench", "serve", "--model", "m", "--extra", "["], "--extra is no JSON"),
        (["bench", "serve"], "--model"),
        (["bench", "latencyy"], "serve and throughput"),
    ],
)
def test_a_mistake_is_told(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert words in capsys.readouterr().err


def test_throughput_measures_the_engine_alone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    argv = ["bench", "throughput", str(tiny_model), "-c", "1,3", "--prompt-tokens", "20", "--max-tokens", "5"]

    assert main([*argv, "--num-gpu-blocks-override", "100", "--json", str(path)]) == 0

    results = json.loads(path.read_text())["results"]
    assert [(r["batch"], r["prompt_tokens"], r["output_tokens"]) for r in results] == [(1, 20, 5), (3, 60, 15)]
    assert all(r["decode_tokens_per_s"] > 0 and r["prefill_tokens_per_s"] > 0 for r in results)
    assert "engine alone" in capsys.readouterr().out


def test_generate_answers_prompts_without_a_server(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", str(tiny_model), "The quick", "A pod", "--max-tokens", "4", "--temperature", "0", "--raw"]

    assert main([*argv, "--num-gpu-blocks-override", "100"]) == 0
    raw = capsys.readouterr().out
    assert main([*argv[:-1], "--num-gpu-blocks-override", "100"]) == 0

    assert raw
    assert raw != capsys.readouterr().out

"""Ranks start together and end together, whichever of them goes and however."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo_server import LLM, SamplingParams
from octavo_server.config import EngineConfig
from octavo_server.distributed import followers
from octavo_server.distributed.communicator import TorchDistributed
from octavo_server.distributed.follower import Setup
from octavo_server.distributed.orders import Connect, encode
from octavo_server.engine.build import build_engine
from octavo_server.engine.startup import StartupProgress
from octavo_server.errors import ConfigError, EngineDeadError, StartupError
from octavo_server.machine import host_memory_bytes
from octavo_testing.ranks import on_ranks, pids_of
from octavo_testing.server_process import wait_until_gone

LONG = SamplingParams(temperature=0.0, max_tokens=400, ignore_eos=True)


def an_llm(model: Path, **settings: Any) -> LLM:
    return LLM(str(model), tensor_parallel_size=2, num_gpu_blocks_override=200, **settings)


def rank_pids(llm: LLM) -> list[int]:
    return list(llm.engine._runner.decoder.followers.pids)  # type: ignore[attr-defined]  # the Protocol has no decoder


@pytest.fixture
def llm(tiny_model: Path) -> Iterator[LLM]:
    made = an_llm(tiny_model)
    yield made
    made.close()


def test_a_rank_that_is_killed_while_it_computes_ends_the_call_with_its_name(llm: LLM) -> None:
    (pid,) = rank_pids(llm)
    timer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    timer.start()
    began = time.monotonic()

    with pytest.raises(EngineDeadError, match=rf"rank 1, process {pid}, was ended by SIGKILL; the machine") as caught:
        llm.generate([[5, 6, 7]] * 4, LONG, use_tqdm=False)

    timer.join()
    assert time.monotonic() - began < 30
    # and nothing tries to go on after it
    with pytest.raises(EngineDeadError) as again:
        llm.generate([[5, 6, 7]], LONG, use_tqdm=False)
    assert str(again.value) == str(caught.value)


def test_a_rank_that_fails_in_a_step_tells_why(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It is told of a cache that does not fit into any memory; rank 0 has one that does."""
    from dataclasses import replace

    from octavo_server.distributed.orders import Forward

    with on_ranks(tiny_model, 2) as loaded:
        followers = loaded.decoder.followers  # type: ignore[attr-defined]  # a leading one's
        send = followers.send
        followers.send = lambda order: send(replace(order, num_blocks=2**50) if isinstance(order, Forward) else order)
        from octavo_testing.engine_runs import EngineRuns

        runs = EngineRuns(loaded)
        with pytest.raises(EngineDeadError, match="rank 1: "):
            runs.generate([[5, 6, 7]], max_tokens=2)
    assert "a rank failed" in capfd.readouterr().err


def test_a_step_that_is_interrupted_ends_the_ranks_together(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for a sum that never comes, and cannot be told to forget it."""
    communicator = llm.engine._runner.decoder.communicator  # type: ignore[attr-defined]  # the Protocol has no decoder
    (pid,) = rank_pids(llm)

    def interrupt(_x: torch.Tensor) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(communicator, "all_reduce", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5, 6, 7]], LONG, use_tqdm=False)

    with pytest.raises(EngineDeadError, match="rank 0 was interrupted in a step of all ranks by KeyboardInterrupt"):
        llm.generate([[5, 6, 7]], LONG, use_tqdm=False)
    llm.close()
    wait_until_gone(pid)


def test_ranks_end_with_what_owns_them(tiny_model: Path) -> None:
    kept, dropped = an_llm(tiny_model), an_llm(tiny_model)
    pids = rank_pids(kept) + rank_pids(dropped)

    kept.close()
    kept.close()
    del dropped
    gc.collect()

    for pid in pids:
        wait_until_gone(pid)


@pytest.mark.parametrize("how", ["sys.exit()", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"])
def test_ranks_do_not_outlive_rank_0(tiny_model: Path, how: str) -> None:
    script = (
        "import os, signal, sys; from octavo_server import LLM; "
        f"llm = LLM({str(tiny_model)!r}, tensor_parallel_size=2, num_gpu_blocks_override=200); "
        f"print(*llm.engine._runner.decoder.followers.pids, flush=True); {how}"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}

    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)

    (pid,) = (int(word) for word in done.stdout.split())
    wait_until_gone(pid)


def test_a_rank_that_waits_for_the_others_ends_with_rank_0(tiny_model: Path, tmp_path: Path) -> None:
    """Where it waits nothing tells it that rank 0 is gone but its own look at the socket."""
    setup = Setup(
        rank=1,
        size=2,
        meeting=str(tmp_path / "meeting"),
        location=str(tiny_model),
        dtype="auto",
        device="cpu",
        quantization="none",
        load_format="auto",
        kv_cache_dtype="auto",
        num_threads=1,
    )
    process = followers.start(setup)
    assert b'"loaded"' in process.channel.recv(2**16)
    process.channel.sendall(encode(Connect()))
    with pytest.raises(subprocess.TimeoutExpired):
        process.child.wait(0.5)

    process.channel.close()

    assert process.child.wait(10) == 1


def test_what_a_rank_cannot_load_is_told_once(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from octavo_server.distributed import leader

    made = leader.Setup
    monkeypatch.setattr(leader, "Setup", lambda **values: made(**{**values, "location": "/nowhere"}))
    with pytest.raises(StartupError, match=r"rank 1: .*nowhere") as caught:
        an_llm(tiny_model)

    assert caught.value.reason == "ModelNotFound"
    assert "nowhere" not in capfd.readouterr().err


def test_what_rank_0_cannot_load_is_told_without_waiting(tmp_path: Path, tiny_model: Path) -> None:
    for path in tiny_model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((tiny_model / "model.safetensors").read_bytes()[:1000])

    with pytest.raises(StartupError) as caught:
        an_llm(tmp_path)

    assert caught.value.reason == "ModelInvalid"
    assert not str(caught.value).startswith("rank")


def test_a_start_that_fails_later_leaves_no_rank(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []
    from octavo_server.distributed import leader

    load = leader.load_in_parallel

    def spy(*arguments: Any) -> Any:
        loaded = load(*arguments)
        pids.extend(pids_of(loaded))
        return loaded

    monkeypatch.setattr(leader, "load_in_parallel", spy)
    with pytest.raises(StartupError):
        LLM(str(tiny_model), tensor_parallel_size=2, max_model_len=500, kv_cache_memory_bytes=1)

    (pid,) = pids
    wait_until_gone(pid)


def test_heads_that_cannot_be_dealt_end_the_start_with_both_numbers(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"3: 4 heads with 2 .* dealt to 3 devices; possible are 1, 2, 4"):
        LLM(str(tiny_model), tensor_parallel_size=3)


def test_more_ranks_than_gpus_end_the_start(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from octavo_server.distributed.leader import load_in_parallel

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = EngineConfig(model=str(tiny_model), tensor_parallel_size=4)

    with pytest.raises(StartupError, match=r"size 4 needs 4 GPUs, torch finds 2; use 2 or less"):
        load_in_parallel(config, tiny_model, "cuda", lambda **_: pytest.fail("too early"))


def test_every_rank_keeps_its_cache_as_the_first_does(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by what one on a CPU refuses."""
    from octavo_server.distributed import follower, leader

    def told(setups: list[Setup], *_: object) -> None:
        (setup,) = setups
        follower._load(replace(setup, device="cpu", num_threads=torch.get_num_threads()), TorchDistributed(1, 2))

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(leader.tempfile, "mkdtemp", lambda **_: str(tmp_path))
    monkeypatch.setattr(leader, "Followers", told)
    config = EngineConfig(model=str(tiny_model), tensor_parallel_size=2, kv_cache_dtype="fp8")

    with pytest.raises(StartupError, match="--kv-cache-dtype fp8 is kept by the kernels of GPUs alone"):
        leader.load_in_parallel(config, tiny_model, "cuda", lambda **_: pytest.fail("too late"))


def test_ranks_share_the_processors_of_one(tiny_model: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with on_ranks(tiny_model, 2):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_table_of_the_start_is_of_each_rank(tiny_model: Path) -> None:
    config = EngineConfig(model=str(tiny_model), tensor_parallel_size=2, num_gpu_blocks_override=50)
    loaded = build_engine(config, StartupProgress())
    loaded.close()

    assert loaded.memory is not None
    assert loaded.memory.layout.ways == 2
    assert loaded.memory.device.memory_bytes == pytest.approx(host_memory_bytes() / 2, rel=0.2)
    assert loaded.memory.kv is not None
    # 2 layers of keys and values, one of two heads of 16 float32, 16 tokens a block
    assert loaded.memory.kv_bytes == 50 * 2 * 2 * 1 * 16 * 4 * 16

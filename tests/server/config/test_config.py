"""Settings: every field documented, ranges refused with the number and the remedy, autos resolved."""

from __future__ import annotations

import dataclasses

import pytest

from octavo_server.config import EngineConfig, ServerConfig, human_int, human_int_or_auto
from octavo_server.errors import ConfigError
from octavo_server.flags import field_docs


@pytest.mark.parametrize("config", [EngineConfig, ServerConfig])
def test_every_field_has_a_docstring(config: type) -> None:
    docs = field_docs(config)

    assert [field.name for field in dataclasses.fields(config)] == list(docs)
    assert all(len(text) > 20 for text in docs.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8192", 8192), ("32k", 32_000), ("32K", 32_768), ("1.5k", 1500), ("1M", 2**20), ("2g", 2 * 10**9)],
)
def test_human_numbers_are_read_as_vllm_reads_them(text: str, expected: int) -> None:
    assert expected == human_int(text)


@pytest.mark.parametrize("text", ["", "k", "12kb", "1e", "nan", "ten", "infk"])
def test_other_numbers_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="not a whole number"):
        human_int(text)


def test_auto_is_none() -> None:
    assert human_int_or_auto("auto") is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_model_len": 0}, "--max-model-len is 0, it must be at least 1"),
        ({"block_size": 4096}, "--block-size is 4096, it must be at most 1024"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization is 1.5, it must be at most 1"),
        ({"gpu_memory_utilization": float("nan")}, "--gpu-memory-utilization is nan"),
    ],
)
def test_a_value_out_of_range_is_refused_with_both_numbers(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(model="m", **settings)  # type: ignore[arg-type]  # a table of fields


@pytest.mark.parametrize(
    ("device", "memory", "seqs", "tokens", "share"),
    [("cpu", 0, 128, 2048, 128), ("cuda", 24 * 2**30, 256, 2048, 512), ("cuda", 80 * 2**30, 1024, 8192, 2048)],
)
def test_autos_follow_the_machine(device: str, memory: int, seqs: int, tokens: int, share: int) -> None:
    limits = EngineConfig(model="m").resolve(context_length=4096, device=device, device_memory_bytes=memory)

    assert (4096, seqs, tokens) == (limits.max_model_len, limits.max_num_seqs, limits.max_num_batched_tokens)
    assert share == limits.long_prefill_token_threshold


def test_what_was_set_is_kept() -> None:
    config = EngineConfig(
        model="m", max_model_len=100, max_num_seqs=3, max_num_batched_tokens=7, long_prefill_token_threshold=300
    )

    limits = config.resolve(context_length=4096, device="cpu", device_memory_bytes=0)

    assert (limits.max_model_len, limits.max_num_seqs, limits.max_num_batched_tokens) == (100, 3, 7)
    assert limits.long_prefill_token_threshold == 300


def test_the_share_of_a_prompt_is_never_nothing() -> None:
    config = EngineConfig(model="m", max_num_batched_tokens=3)

    assert config.resolve(context_length=4096, device="cpu", device_memory_bytes=0).long_prefill_token_threshold == 1


def test_a_context_beyond_the_model_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match="5000 is more than the 4096 tokens"):
        EngineConfig(model="m", max_model_len=5000).resolve(context_length=4096, device="cpu", device_memory_bytes=0)

"""`octavo plan` as people call it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from octavo_server.cli import main
from octavo_server.config import EngineConfig
from octavo_server.plan.command import plan_model
from octavo_server.plan.table import rows
from octavo_testing.model_shapes import DEEPSEEK_V3, LLAMA_8B, QWEN3_06B, a_config


def of_json(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 0) -> dict[str, object]:
    assert main(["plan", *argv, "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def error_of(capsys: pytest.CaptureFixture[str], *argv: str, status: int = 2) -> str:
    assert main(["plan", *argv]) == status
    return capsys.readouterr().err


def test_the_table_names_sizes_and_the_flags_that_change_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_config(tmp_path, LLAMA_8B)

    assert main(["plan", str(folder), "--gpu", "h200"]) == 0

    text = capsys.readouterr().out
    assert "LlamaForCausalLM, 8.03 B parameters, bfloat16 on H200 (139.72 GiB, 4.8 TB/s)" in text
    assert "weights                  14.96 GiB" in text
    assert "128.0 KiB a token" in text
    assert "the largest that fits is 131,072, all that the model has" in text
    assert "a limit, no forecast" in text
    for flag in ("--dtype", "--quantization", "--max-num-batched-tokens", "--max-num-seqs", "--gpu-memory-utilization"):
        assert flag in text
    for flag in (
        "--kv-cache-memory-bytes",
        "--kv-cache-dtype",
        "--block-size",
        "--num-gpu-blocks-override",
        "--max-model-len",
    ):
        assert flag in text


def test_the_table_that_the_page_shows_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "planning.md").read_text()
    (shown,) = re.findall(r"^```text\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)

    main(["plan", str(a_config(tmp_path, QWEN3_06B)), "--gpu", "L4"])

    assert capsys.readouterr().out == shown


def test_json_has_the_tables_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_config(tmp_path, LLAMA_8B)

    found = of_json(capsys, str(folder), "--gpu", "H200", "--tp", "2", "--max-model-len", "32K", "--block-size", "32")

    plan = plan_model(EngineConfig(model=str(folder), max_model_len=32_768, block_size=32), gpu="H200", ways=2).memory
    assert (found["fits"], found["max_model_len"], found["tensor_parallel_size"]) == (True, 32_768, 2)
    assert (found["weight_bytes"], found["kv_cache_bytes"], found["block_size"]) == (
        plan.weight_bytes,
        plan.kv_bytes,
        32,
    )
    assert found["memory"] == [{"name": r.name, "bytes": r.num_bytes, "flags": list(r.flags)} for r in rows(plan)]
    assert sum(row.num_bytes for row in rows(plan)) == plan.device.memory_bytes


@pytest.mark.parametrize(
    ("argv", "key", "smaller"),
    [
        (["--dtype", "float32"], "weight_bytes", False),
        (["--quantization", "int4"], "weight_bytes", True),
        (["--tp", "2"], "weight_bytes", True),
        (["--max-num-seqs", "64"], "activation_bytes", True),
        (["--max-num-batched-tokens", "128k"], "activation_bytes", False),
        (["--max-num-seqs", "64"], "graph_bytes", True),
        (["--enforce-eager"], "graph_bytes", True),
        (["--gpu-memory-utilization", "0.5"], "kv_cache_bytes", True),
        (["--kv-cache-memory-bytes", "1G"], "kv_cache_bytes", True),
        (["--num-gpu-blocks-override", "100"], "kv_cache_bytes", True),
        (["--max-model-len", "1k"], "max_model_len", True),
        (["--block-size", "64"], "num_blocks", True),
        (["--kv-cache-dtype", "fp8"], "kv_bytes_per_token", True),
        (["--kv-cache-dtype", "fp8"], "num_blocks", False),
    ],
)
def test_every_flag_changes_its_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], key: str, smaller: bool
) -> None:
    folder = str(a_config(tmp_path, QWEN3_06B))

    before, after = of_json(capsys, folder, "--gpu", "A100")[key], of_json(capsys, folder, "--gpu", "A100", *argv)[key]

    assert isinstance(before, int)
    assert isinstance(after, int)
    assert after < before if smaller else after > before


def test_a_cache_of_8_bits_takes_half_the_bytes_and_holds_twice_the_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(a_config(tmp_path, QWEN3_06B))
    wide = of_json(capsys, folder, "--gpu", "L4")

    small = of_json(capsys, folder, "--gpu", "L4", "--kv-cache-dtype", "fp8")

    # 28 layers, keys and values of 8 heads of 128 numbers
    assert (wide["kv_bytes_per_token"], small["kv_bytes_per_token"]) == (28 * 2 * 8 * 128 * 2, 28 * 2 * 8 * 128)
    assert (wide["num_blocks"], small["num_blocks"]) == (9931, 2 * 9931 + 1)
    assert small["kv_cache_dtype"] == "float8_e4m3fn"
    assert main(["plan", folder, "--gpu", "L4", "--kv-cache-dtype", "fp8"]) == 0
    assert "56.0 KiB a token in float8_e4m3fn (--kv-cache-dtype)" in capsys.readouterr().out


def test_a_cache_of_8_bits_is_planned_on_no_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(a_config(tmp_path, QWEN3_06B))

    message = error_of(capsys, folder, "--gpu", "cpu", "--kv-cache-dtype", "fp8", status=1)

    assert "--kv-cache-dtype fp8 is kept by the kernels of GPUs alone; on a CPU leave it out" in message


def test_what_does_not_fit_is_printed_with_what_would_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_config(tmp_path, DEEPSEEK_V3)

    assert main(["plan", str(folder), "--gpu", "H200", "--tp", "8"]) == 1

    text = capsys.readouterr().out
    assert "8 x H200" in text
    assert "does not fit: weights, activations and the driver take" in text
    assert "what would: --tensor-parallel-size 16" in text
    found = of_json(capsys, str(folder), "--gpu", "H200", "--tp", "8", status=1)
    assert found["fits"] is False
    assert found["remedies"]


def test_the_machine_itself_is_the_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(a_config(tmp_path, QWEN3_06B, num_hidden_layers=1, vocab_size=512))

    found = of_json(capsys, folder, "--gpu", "cpu")

    device = found["device"]
    assert isinstance(device, dict)
    assert (device["kind"], found["dtype"]) == ("cpu", "float32")
    assert of_json(capsys, folder, "--device", "cpu")["dtype"] == "float32"


def test_a_config_file_alone_is_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_config(tmp_path, QWEN3_06B)

    assert of_json(capsys, str(folder / "config.json"), "--gpu", "L4") == of_json(capsys, str(folder), "--gpu", "L4")


def test_settings_come_from_the_servers_file_and_variables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a deployment is started with can be planned as it is; what is not about memory is no matter."""
    folder = a_config(tmp_path / "model", LLAMA_8B)
    file = tmp_path / "octavo.yaml"
    file.write_text(f"model: {folder}\nmax-model-len: 8192\nport: 9000\ntensor-parallel-size: 2\n")
    monkeypatch.setenv("OCTAVO_BLOCK_SIZE", "32")

    found = of_json(capsys, "--config", str(file), "--gpu", "H200")

    assert (found["max_model_len"], found["block_size"], found["tensor_parallel_size"]) == (8192, 32, 2)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--gpu", "H201"], ("did you mean H200?", "MI300X")),
        (["--gpu", "H200", "--device", "cpu"], ("--device cpu",)),
        (["--gpu", "H200", "--tp", "3"], ("possible are 1, 2, 4, 8, 16",)),
        (["--gpu", "H200", "--tp", "0"], ("at least 1",)),
        (["--gpu", "cpu", "--tp", "3"], ("possible are 1, 2, 4, 8, 16",)),
        (["--gpu", "H200", "--max-model-len", "50k"], ("50000", "40960")),
        (["--gpu", "H200", "--kv-cache-dtype", "fp7"], ("--kv-cache-dtype",)),
        (["--gpu", "H200", "--kv-cache-dtype", "fp8_e5m2"], ("fp8_e5m2 is not supported yet", "use fp8 or auto")),
        (["--gpu", "H200", "--port", "1"], ("unknown flag --port",)),
        (["--revision", "main"], ("--revision is for models of the hub",)),
    ],
)
def test_what_cannot_be_planned_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: tuple[str, ...]
) -> None:
    message = error_of(capsys, str(a_config(tmp_path, QWEN3_06B)), *argv)

    assert all(word in message for word in words), message


def test_an_unknown_architecture_names_the_nearest_and_all_that_are_known(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_config(tmp_path, QWEN3_06B, architectures=["Qwen3ForCausalML"])

    message = error_of(capsys, str(folder), "--gpu", "H200", status=1)

    assert "the nearest is Qwen3ForCausalLM" in message
    assert "MistralForCausalLM" in message
    assert "DeepseekV3ForCausalLM" in message


def test_a_model_that_is_nowhere_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "does not exist" in error_of(capsys, str(tmp_path / "nothing"), status=1)
    assert "MODEL is missing" in error_of(capsys)

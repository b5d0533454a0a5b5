"""The comparison with OpenVINO GenAI: a stand-in for its side; the file is a real one, and our engine reads it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gguf
import pytest

from benchmarks import openvino
from benchmarks.qwen05b import CONFIG
from octavo_server import LLM, SamplingParams

SMALL = {
    **CONFIG,
    "vocab_size": 49_200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
}
STAND_IN = """
import json, sys
print(json.dumps({"version": "stand-in"}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    assert len(task["prompts"]) <= int(sys.argv[3])
    print(json.dumps({"seconds": [0.5, 2.0, 1.0][: task["steps"]] or [4.0]}), flush=True)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With an environment whose interpreter is this one."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "child.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(openvino, "HOME", tmp_path)
    monkeypatch.setattr(openvino, "CHILD", tmp_path / "child.py")
    monkeypatch.setattr(openvino, "CONFIG", SMALL)
    return tmp_path


def test_both_read_one_file_in_turns(
    home: Path, smollm2_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        "--batches",
        "1,2",
        "--context",
        "16",
        "--prefill",
        "20,128",
        "--steps",
        "3",
        "--rounds",
        "2",
        "--threads",
        "1",
    ]

    status = openvino.main([str(smollm2_path), *names, "--json", str(tmp_path / "out.json")])

    record = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    one, two, short, long = record["results"]
    assert status == 0
    assert (one["theirs"], two["theirs"]) == ([1.0, 1.0], [2.0, 2.0])
    assert (short["theirs"], long["theirs"]) == ([5.0, 5.0], [32.0, 32.0])
    assert [result["aim"] for result in record["results"]] == [1.2, None, None, 1.5]
    assert all(len(result["ours"]) == 2 for result in record["results"])
    assert "OpenVINO" in capsys.readouterr().out


def test_the_file_is_of_the_shape_in_eight_bits_and_our_engine_answers_from_it(home: Path, smollm2_path: Path) -> None:
    path = home / "small.gguf"

    openvino.write_random_gguf(path, SMALL, smollm2_path)

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert list(home.glob("*.part")) == []
    assert tensors["token_embd.weight"].shape.tolist() == [64, 49_200]
    assert {tensor.tensor_type for tensor in tensors.values() if tensor.data.ndim == 2} == {
        gguf.GGMLQuantizationType.Q8_0
    }
    llm = LLM(str(path), quantization="int8", num_gpu_blocks_override=40)
    [output] = llm.generate(
        {"prompt_token_ids": [5, 6, 7]}, SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    )
    assert len(output.outputs[0].token_ids) == 4


def test_without_openvino_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(openvino, "HOME", tmp_path)

    with pytest.raises(SystemExit, match="install it with --install"):
        openvino.main(["tokenizer.gguf"])

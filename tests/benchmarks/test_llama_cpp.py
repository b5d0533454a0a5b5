"""The comparison's arithmetic and protocol, with a stand-in for llama.cpp's side; our side is the real engine."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import environments, llama_cpp
from octavo_testing.server import a_tiny_model

STAND_IN = """
import json, sys
assert sys.argv[4:] == ["2", "20"], "the sequences at once, and the tokens of the longest and one more"
print(json.dumps({"version": "0", "system": "stand-in", "layout": sys.argv[3]}), flush=True)
for line in sys.stdin:
    task = json.loads(line)
    assert [len(prompt) for prompt in task["prompts"]] == [16] * (2 if task["task"] == "decode" else 1)
    print(json.dumps({"seconds": [0.5, 2.0, 1.0] if task["task"] == "decode" else [4.0]}), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, and an environment whose interpreter is this one."""
    a_tiny_model(tmp_path / "tiny")
    python = tmp_path / "home" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    (tmp_path / "child.py").write_text(STAND_IN, encoding="utf-8")
    monkeypatch.setattr(llama_cpp, "HOME", tmp_path / "home")
    monkeypatch.setattr(llama_cpp, "CHILD", tmp_path / "child.py")
    # ours reads folders too, and this one is one
    monkeypatch.setattr(llama_cpp, "_sha256", lambda path: hashlib.sha256(path.encode()).hexdigest())
    monkeypatch.setattr(llama_cpp.time, "sleep", lambda _: None)
    return tmp_path


def test_both_sides_take_turns_and_the_file_says_what_ran(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "tiny"), "--batches", "2", "--context", "16", "--prefill", "16", "--rounds", "2"]

    status = llama_cpp.main([*arguments, "--steps", "3", "--threads", "1", "--json", str(folder / "out.json")])

    record = json.loads((folder / "out.json").read_text(encoding="utf-8"))
    decode, prefill = record["results"]
    assert status == 0
    # the median step, and a prompt's tokens over its seconds
    assert (decode["theirs"], prefill["theirs"]) == ([2.0, 2.0], [4.0, 4.0])
    assert len(decode["ours"]) == len(prefill["ours"]) == 2
    assert decode["ratio"] == pytest.approx(sum(decode["ours"]) / 2 / 2.0)
    assert prefill["ratio_of_bests"] == pytest.approx(max(prefill["ours"]) / 4.0)
    assert {"sha256", "threads", "cpu_flags", "versions", "load_average", "commit", "spin"} <= record.keys()
    assert "decode 2" in capsys.readouterr().out


def test_where_its_fastest_kernels_cannot_run_the_plain_ones_do_and_the_file_says_so(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dies = "import os, signal, sys\nif sys.argv[3] == 'repacked': os.kill(os.getpid(), signal.SIGILL)\n"
    (folder / "child.py").write_text(dies + STAND_IN, encoding="utf-8")
    arguments = [str(folder / "tiny"), "--batches", "2", "--context", "16", "--prefill", "16", "--rounds", "1"]

    llama_cpp.main([*arguments, "--steps", "3", "--threads", "1", "--json", str(folder / "out.json")])

    assert json.loads((folder / "out.json").read_text(encoding="utf-8"))["llama_cpp"]["layout"] == "plain"
    assert "stand-in layout plain" in capsys.readouterr().out


def test_prompts_that_need_several_steps_all_begin_before_a_step_is_timed(tmp_path: Path) -> None:
    a_tiny_model(tmp_path / "tiny")
    ours = llama_cpp.Ours(str(tmp_path / "tiny"), "none", 1, max_num_batched_tokens=40, max_num_seqs=8)
    case = llama_cpp.Case(name="decode 8", batch=8, prompt_tokens=16, steps=3)

    seconds = ours.seconds(case, case.prompts(0, ours.vocabulary))

    assert len(seconds) == 3


def test_a_child_that_ends_is_told(folder: Path) -> None:
    (folder / "child.py").write_text("raise SystemExit(3)", encoding="utf-8")

    with pytest.raises(SystemExit, match="ended with status 3; run with --install"):
        llama_cpp.main([str(folder / "tiny"), "--threads", "1"])


def test_without_llama_cpp_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(llama_cpp, "HOME", tmp_path)

    with pytest.raises(SystemExit, match="build it with --install"):
        llama_cpp.main(["model.gguf"])


def test_an_install_that_was_cut_off_is_made_anew_and_a_whole_one_is_kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the first the environment is there, and llama.cpp is not."""
    commands: list[list[str]] = []
    fails = True

    def run(command: list[str], **_: object) -> None:
        commands.append(command[1:4])
        if fails and "pip" in command:
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(environments.subprocess, "run", run)
    arguments = [str(folder / "tiny"), "--install", "--batches", "2", "--context", "16", "--prefill", "16"]
    arguments += ["--rounds", "1", "--steps", "3", "--threads", "1"]
    makes = [["-m", "venv", "--clear"], ["-m", "pip", "install"]]

    with pytest.raises(subprocess.CalledProcessError):
        llama_cpp.main(arguments)
    assert commands == makes
    fails = False
    llama_cpp.main(arguments)
    assert commands == makes * 2
    llama_cpp.main(arguments)
    assert commands == makes * 2
    assert capsys.readouterr().out.count("stand-in layout") == 2

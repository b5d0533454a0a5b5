"""The Python examples, each executed as it stands."""

from __future__ import annotations

import asyncio
import re
import runpy
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octavo_server import SamplingParams
from octavo_testing.server import NAME, a_tiny_model, fake_server, write_tokenizer

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return a_tiny_model(tmp_path_factory.mktemp("tiny"))


def run(name: str, *arguments: object) -> dict[str, Any]:
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    finally:
        sys.argv = before


@dataclass(frozen=True)
class Slider:
    """Gradio's, as far as the example uses it."""

    minimum: float
    maximum: float
    value: float
    step: float
    label: str


class ChatInterface:
    """Gradio's: `launch` shows the page, where a user then calls `fn`."""

    shown: ChatInterface | None = None

    def __init__(
        self, fn: Callable[..., str], *, title: str, additional_inputs: list[Slider], concurrency_limit: int
    ) -> None:
        assert concurrency_limit == 1
        self.fn = fn
        self.title = title
        self.values = {slider.label: slider.value for slider in additional_inputs}

    def launch(self) -> None:
        ChatInterface.shown = self

    def say(self, text: str, history: list[dict[str, Any]], **values: float) -> str:
        answer = self.fn(text, list(history), *{**self.values, **values}.values())
        # As Gradio 6 keeps them: parts, and fields of its own
        history.append({"role": "user", "metadata": None, "content": [{"type": "text", "text": text}]})
        history.append({"role": "assistant", "metadata": None, "content": [{"type": "text", "text": answer}]})
        return answer


def test_offline_continues_its_prompts(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("offline.py", tiny_model)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" -> ")[0] for line in lines] == [
        "'Kubernetes is'",
        "'The capital of France is'",
        "'A pod holds'",
    ]
    assert all(len(line.split(" -> ")[1]) > 4 for line in lines)


def test_the_gradio_page_answers_within_a_conversation(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = types.ModuleType("gradio")
    stub.ChatInterface, stub.Slider = ChatInterface, Slider  # type: ignore[attr-defined]  # what the example uses
    monkeypatch.setitem(sys.modules, "gradio", stub)

    names = run("gradio_chat.py", tiny_model)

    page, history = ChatInterface.shown, []
    assert page is not None
    first = page.say("What is a pod?", history, temperature=0, max_tokens=8)
    second = page.say("And a node?", history, temperature=0, max_tokens=8)
    alone = page.say("And a node?", [], temperature=0, max_tokens=8)
    (expected,) = names["llm"].chat(
        [{"role": "user", "content": "What is a pod?"}], SamplingParams(temperature=0, max_tokens=8), use_tqdm=False
    )
    assert first == expected.outputs[0].text
    assert second != alone
    assert len(page.say("And a node?", [], temperature=0, max_tokens=30)) > len(alone)


def test_the_document_of_the_offline_api_works_as_shown(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (EXAMPLES.parent / "docs" / "offline.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)

    exec(compile(program.replace("MODEL", str(tiny_model)), "offline.md", "exec"), {})

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Kubernetes is -> ")
    assert any(line.startswith("A pod holds -> ") for line in lines)


async def test_openais_client_streams_from_a_server(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    async with fake_server(write_tokenizer(tmp_path_factory.mktemp("tokenizer"))) as server:
        await asyncio.to_thread(run, "openai_client.py", server.url + "/v1")
        generated = await server.metric("vllm:generation_tokens_total")

    text, _, summary = capsys.readouterr().out.rpartition("\n(")
    counted = re.fullmatch(rf"{NAME}: (\d+) tokens in, (\d+) out\)\n", summary)
    assert counted is not None, summary
    assert int(counted[2]) == generated
    assert text.strip()

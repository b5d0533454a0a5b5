"""What docs/structured.md shows works as it stands there, but for the model's name and the port."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from octavo_server.structured_output.compiler import MAX_CACHED
from octavo_server.structured_output.grammar import MAX_CHOICES, MAX_GRAMMAR_CHARS
from octavo_server.structured_output.trial import MAX_TRIAL_BYTES, MAX_TRIAL_S
from octavo_testing.server import NAME, real_server

PAGE = (Path(__file__).parents[3] / "docs" / "structured.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def run(code: str) -> dict[str, Any]:
    found: dict[str, Any] = {"__name__": "page"}
    exec(code, found)
    return found


async def test_the_clients_program_gets_its_own_type(tiny_model: Path) -> None:
    code = next(block for block in blocks("python") if "openai" in block)
    async with real_server(tiny_model) as server:
        # Random weights never close a string by themselves.
        quote = (await server.post("/tokenize", {"prompt": '"'})).json["tokens"][-1]
        biased = f'temperature=0, extra_body={{"logit_bias": {{"{quote}": 12}}}}'
        shown = code.replace("http://127.0.0.1:8000", server.url).replace("smollm2", NAME)
        found = await asyncio.to_thread(run, shown.replace("temperature=0", biased))

    found["client"].close()
    assert isinstance(found["answer"].choices[0].message.parsed, found["City"])


async def test_the_body_is_served(tiny_model: Path) -> None:
    [shown] = blocks("json")
    async with real_server(tiny_model) as server:
        answer = await server.post("/v1/chat/completions", {**json.loads(shown), "model": NAME})

    assert answer.json["choices"][0]["message"]["content"] in ("yes", "no")


def test_the_program_without_a_server_follows_its_expression(tiny_model: Path) -> None:
    code = next(block for block in blocks("python") if "octavo_server" in block)

    found = run(code.replace("MODEL", str(tiny_model)))

    assert re.fullmatch("[A-Z][a-z]{2,9}", found["output"].outputs[0].text)


def test_the_bounds_are_those_that_are_told() -> None:
    for told in (
        f"{MAX_TRIAL_S:g} s of processor time or {MAX_TRIAL_BYTES // 2**20} MiB",
        f"{MAX_GRAMMAR_CHARS // 1024} KiB of text",
        f"{MAX_CHOICES:,} choices",
        f"The last {MAX_CACHED} are kept",
    ):
        assert told in PAGE

"""What docs/vectors.md shows works as it stands there, but for the model's name and the port."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

from octavo_testing.server import NAME, real_server

PAGE = (Path(__file__).parents[3] / "docs" / "vectors.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def run(code: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(code, found)
    return found


async def test_the_clients_program_embeds(tiny_model: Path) -> None:
    code = next(block for block in blocks("python") if "openai" in block)
    async with real_server(tiny_model) as server:
        shown = code.replace("http://127.0.0.1:8000", server.url).replace("smollm2", NAME)
        found = await asyncio.to_thread(run, shown)

    found["client"].close()
    assert len(found["answer"].data) == 2
    assert "http://127.0.0.1:8000/v1" in code


def test_the_program_without_a_server_embeds_and_scores(tiny_model: Path) -> None:
    code = next(block for block in blocks("python") if "octavo_server" in block)

    found = run(code.replace("MODEL", str(tiny_model)))

    assert (len(found["vectors"]), len(found["scores"])) == (2, 2)


async def test_every_path_and_body_is_served(tiny_model: Path) -> None:
    """Each body stands under the paths that take it."""
    sections = [part for part in PAGE.split("\n## ") if "```json" in part]
    assert len(sections) == 2
    async with real_server(tiny_model) as server:
        for section in sections:
            body = json.loads(section.partition("```json\n")[2].partition("```")[0])
            paths = re.findall(r"`(?:POST )?(/[\w/]+)`", section)
            assert len(paths) > 1
            for path in paths:
                assert (await server.post(path, {**body, "model": NAME})).status == 200, path

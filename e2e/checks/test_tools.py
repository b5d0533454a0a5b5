"""The cache of built programs: built once, whole or not at all, anew when a pinned version changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.cluster import tools
from e2e.cluster.errors import ClusterError, CommandError, UnavailableError

GO = """#!/bin/sh
# Stands for the compiler: writes its arguments where the program should go.
while [ $# -gt 1 ]; do [ "$1" = -o ] && out=$2; shift; done
[ "$1" = example.com/broken ] && { echo "cannot compile" >&2; exit 1; }
echo built >> "$BUILDS"; echo program > "$out"
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module to build, an empty cache, and a compiler that counts its builds."""
    folder = tmp_path / "modules" / "thing"
    folder.mkdir(parents=True)
    (folder / "go.mod").write_text("module x\n\nrequire example.com/thing v1.2.3\n")
    (folder / "go.sum").write_text("")
    go = tmp_path / "bin" / "go"
    go.parent.mkdir()
    go.write_text(GO)
    go.chmod(0o755)
    monkeypatch.setattr(tools, "MODULES", tmp_path / "modules")
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BUILDS", str(tmp_path / "builds"))
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    return folder


def a_tool(*packages: str) -> tools.Tool:
    return tools.Tool(name="thing", module="example.com/thing", packages=packages or ("example.com/thing",))


def test_second_call_builds_nothing(module: Path, tmp_path: Path) -> None:
    said: list[str] = []

    first = tools.ensure(a_tool(), said.append)
    second = tools.ensure(a_tool(), said.append)

    assert first == second
    assert (first / "thing").read_text() == "program\n"
    assert (tmp_path / "builds").read_text().split() == ["built"]
    assert first.name.startswith("thing-v1.2.3-")
    assert "building thing v1.2.3 from source" in said[0]


def test_changed_pin_is_another_entry(module: Path) -> None:
    before = tools.ensure(a_tool(), _quiet)
    (module / "go.sum").write_text("example.com/other v1.0.0 h1:abc=\n")

    assert before != tools.ensure(a_tool(), _quiet)
    assert before.is_dir()


def test_failed_build_leaves_no_entry(module: Path, tmp_path: Path) -> None:
    """The first program was built, the second not: nobody may find half of a tool."""
    tool = a_tool("example.com/thing", "example.com/broken")

    with pytest.raises(CommandError, match="cannot compile"):
        tools.ensure(tool, _quiet)

    assert not tool.entry.exists()
    assert [path.name for path in tool.entry.parent.iterdir()] == [".thing.lock"]


def test_missing_compiler_is_named(module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(UnavailableError, match=r"thing v1\.2\.3 needs Go"):
        tools.ensure(a_tool(), _quiet)


def test_every_pinned_module_names_its_version() -> None:
    assert all(tool.version.startswith("v") for tool in tools.TOOLS.values())


def test_unknown_program_is_an_error() -> None:
    with pytest.raises(ClusterError, match="no tool in e2e/tools builds nothing"):
        tools.find_program("nothing", _quiet)


def _quiet(line: str) -> None:
    del line

"""What is printed: whole lines into a pipe, and nothing that steers a terminal."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from octavo_cli import top_view
from octavo_cli.printable import printable
from octavo_cli.terminal import Terminal

LONG = top_view.Replica(
    model="a-team-of-many-people/qwen2-5-7b-instruct", name="qwen2-5-7b-instruct-6c9f8d7b5-abcde", note="not " * 30
)
MEASURED = top_view.Measured(pressure=1.25, running=17, tokens_per_s=1234.5)


def shown(width: int | None, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal = Terminal()
    terminal.file = io.StringIO()
    if width is not None:
        terminal.width = width
    terminal.print(top_view.top_table([LONG], {(LONG.model, LONG.name): MEASURED}))
    return terminal.file.getvalue()


def test_a_pipe_gets_each_replica_on_one_line_with_nothing_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    heading, line = shown(None, monkeypatch).splitlines()

    assert heading.split() == " ".join(top_view.HEADINGS).split()
    assert line.split()[:4] == [LONG.model, LONG.name, "1.25", "17"]
    assert line.rstrip().endswith(LONG.note.strip())


def test_on_a_narrow_terminal_names_are_folded_and_no_number_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(90, monkeypatch)

    assert "…" not in text
    assert all(number in text.split() for number in ("1.25", "17", "1234.5"))
    assert "".join(line[: text.index("REPLICA")].strip() for line in text.splitlines()[1:]) == LONG.model


def a_table(text: str) -> Table:
    table = Table(box=None)
    table.add_column(no_wrap=True)
    table.add_row(Text(text))
    return table


@pytest.mark.parametrize("wrap", [Text, lambda text: Tree(Text(text)), a_table])
def test_what_a_stranger_wrote_does_not_steer_the_terminal(wrap, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """The title of the window, the clipboard, what stands above: all of it by an escape."""
    terminal = Terminal()
    terminal.file = io.StringIO()

    terminal.print(wrap("evil \x1b]0;pwned\x9b31m end"))

    text = terminal.file.getvalue()
    assert "evil ]0;pwned31m end" in text
    assert not {"\x1b", "\x9b"} & set(text)


def test_ordinary_text_is_left_alone() -> None:
    assert printable("Grüße, 世界 🚀\n\ttab") == "Grüße, 世界 🚀\n\ttab"

"""What `octavo ps` reads, and what a person sees."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from octavo_cli.local import ps
from octavo_cli.local.deployment import Row
from octavo_cli.local.screen import LiveScreen, PlainScreen, make_screen, short_age, status_table
from octavo_cli.local.state import KEEP_S, RunFolder, running, state_home

ROW = Row(model="tiny", ready=False, num_ready=0, replicas=1, reason="LoadingWeights", message="loads", restarts=0)


def a_run(home: Path) -> RunFolder:
    folder = RunFolder(home, pid=os.getpid(), now_s=100.0)
    folder.write(url="http://127.0.0.1:8080", internal_url="http://127.0.0.1:1", rows=[ROW])
    return folder


def test_a_run_is_listed_while_its_process_lives(tmp_path: Path) -> None:
    folder = a_run(tmp_path)

    (run,) = running(tmp_path)
    folder.close(keep_logs=False)

    assert (run.pid, run.models) == (os.getpid(), (ROW,))
    assert list(running(tmp_path)) == []
    assert not folder.path.exists()


def test_a_process_id_that_is_used_again_is_not_taken_for_the_run(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    path = folder.path / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "process_started": "1"}))

    assert list(running(tmp_path)) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_state_file_is_passed_over(tmp_path: Path, text: str) -> None:
    folder = a_run(tmp_path)
    (folder.path / "state.json").write_text(text)

    assert list(running(tmp_path)) == []


def test_what_crashed_runs_left_goes_after_a_week(tmp_path: Path) -> None:
    for name, age_s in (("up-1", KEEP_S + 60), ("up-2", KEEP_S - 60)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1e9 - age_s, 1e9 - age_s))

    RunFolder(tmp_path, pid=os.getpid(), now_s=1e9)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["up-2", f"up-{os.getpid()}"])


def test_logs_can_be_kept(tmp_path: Path) -> None:
    folder = a_run(tmp_path)
    (folder.path / "tiny-0.log").write_text("words")

    folder.close(keep_logs=True)

    assert [path.name for path in folder.path.iterdir()] == ["tiny-0.log"]


def test_the_state_home_follows_xdg() -> None:
    assert state_home({"XDG_STATE_HOME": "/x"}) == Path("/x/octavo")
    assert state_home({"HOME": "/h"}) == Path("/h/.local/state/octavo")


def test_ps_prints_a_table_or_json_or_that_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert ps.main([]) == 0
    assert capsys.readouterr().out.startswith("nothing runs")

    a_run(tmp_path / "octavo")
    assert ps.main([]) == 0
    heading, line = capsys.readouterr().out.splitlines()
    assert heading.split() == ["MODEL", "READY", "REPLICAS", "REASON", "RESTARTS", "AGE", "PID", "URL"]
    assert line.split()[:5] == ["tiny", "False", "0/1", "LoadingWeights", "0"]

    assert ps.main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["models"][0]["reason"] == "LoadingWeights"


def test_plain_lines_come_on_change_and_now_and_then() -> None:
    now = [0.0]
    console = Console(file=io.StringIO(), force_terminal=False)
    screen = make_screen(console, lambda: now[0])
    assert isinstance(screen, PlainScreen)

    for at, row in (
        (0.0, ROW),
        (1.0, ROW),
        (1.5, replace(ROW, message="loads 10 %")),
        (2.0, replace(ROW, message="loads 15 %")),
        (3.0, replace(ROW, message="loads 20 %")),
        (3.5, replace(ROW, message="loads 25 %")),
        (3.6, replace(ROW, reason="WarmingUp", message="warms up")),
        (5.0, replace(ROW, reason="WarmingUp", message="warms up")),
        (13.6, replace(ROW, reason="WarmingUp", message="warms up")),
        (14.0, replace(ROW, ready=True, reason="AllReplicasReady", message="serves")),
        (99.0, replace(ROW, ready=True, reason="AllReplicasReady", message="serves on")),
        (100.0, replace(ROW, ready=True, num_ready=1, reason="Draining", message="1 left")),
        (102.1, replace(ROW, num_ready=0, reason="Draining", message="0 left")),
    ):
        now[0] = at
        screen.show([row])

    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "tiny: LoadingWeights: loads",
        "tiny: LoadingWeights: loads 10 %",
        "tiny: LoadingWeights: loads 25 %",
        "tiny: WarmingUp: warms up",
        "tiny: WarmingUp: warms up",
        "tiny: AllReplicasReady: serves",
        "tiny: Draining: 1 left",
    ]


def test_a_terminal_gets_a_live_table() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with make_screen(console) as screen:
        assert isinstance(screen, LiveScreen)
        screen.say("http://127.0.0.1:8080/v1 serves tiny")
        screen.show([ROW])
    text = console.file.getvalue()  # type: ignore[attr-defined]

    assert "serves tiny" in text
    assert all(word in text for word in ("MODEL", "tiny", "0/1", "LoadingWeights"))


def test_brackets_of_a_message_are_no_markup() -> None:
    console = Console(file=io.StringIO(), width=200)
    console.print(status_table([replace(ROW, message="[red]not a colour[/]")], 3.0))

    assert "[red]not a colour[/]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_ages_are_kubectls() -> None:
    assert [short_age(seconds) for seconds in (0, 119, 120, 7199, 7200, 172_800)] == [
        "0s",
        "119s",
        "2m",
        "119m",
        "2h",
        "2d",
    ]

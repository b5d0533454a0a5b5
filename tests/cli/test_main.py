"""The command `octavo`: which command runs, what is imported for it, and what is said when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from octavo_cli import __main__ as cli
from octavo_cli.errors import CliError


def octavo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "octavo_cli", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for every command's module; holds the arguments that its main got."""
    calls: list[list[str]] = []

    def main(argv: list[str]) -> int:
        calls.append(argv)
        return 7

    module = ModuleType("recorded")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: module)
    return calls


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["serve", "m", "--port=1"], ["serve", "m", "--port=1"]),
        (["bench", "serve"], ["bench", "serve"]),
        (["gateway", "run", "--port", "1"], ["--port", "1"]),
        (["operator", "run"], []),
        (["up", "f.yaml", "--help"], ["f.yaml", "--help"]),
    ],
)
def test_a_command_gets_its_arguments_and_gives_the_exit_status(
    recorded: list[list[str]], given: list[str], passed: list[str]
) -> None:
    assert cli.main(given) == 7
    assert recorded == [passed]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["serv"], "did you mean `octavo serve`?"),
        (["gateway"], "did you mean `octavo gateway run`?"),
        (["operator", "start"], "did you mean `octavo operator run`?"),
        (["xyzzy"], "see octavo --help"),
    ],
)
def test_an_unknown_command_names_the_nearest(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(given) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("serve", "torch", "server"), ("gateway run", "kubernetes.aio", "gateway"), ("operator run", "kopf", "operator")],
)
def test_a_missing_package_names_the_extra_that_brings_it(
    name: str, missing: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_installed(_: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(cli.importlib, "import_module", not_installed)

    assert cli.main(name.split()) == 1
    assert (
        capsys.readouterr().err
        == f"error: `octavo {name}` needs the package '{missing}'; pip install 'octavo[{extra}]'\n"
    )


def test_a_module_of_ours_that_is_missing_is_a_fault_and_no_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'octavo_server.nothing'", name="octavo_server.nothing")

    monkeypatch.setattr(cli.importlib, "import_module", broken)

    with pytest.raises(ModuleNotFoundError):
        cli.main(["serve"])


@pytest.mark.parametrize(("error", "status"), [(CliError("no such thing"), 1), (KeyboardInterrupt(), 130)])
def test_a_failing_command_ends_without_a_traceback(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(_: list[str]) -> int:
        raise error

    module = ModuleType("failing")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: module)

    assert cli.main(["ps"]) == status
    assert "Traceback" not in capsys.readouterr().err


def test_help_lists_every_command_and_version_prints_one_line() -> None:
    helped, version, nothing = octavo("--help"), octavo("--version"), octavo()

    assert (helped.returncode, version.returncode, nothing.returncode) == (0, 0, 2)
    assert all(f"\n  {name} " in helped.stdout for name in cli.COMMANDS)
    assert version.stdout.startswith("octavo ")


def test_help_loads_nothing_but_the_standard_library() -> None:
    code = (
        "import sys; from octavo_cli.__main__ import main; main(['--help'])\n"
        "print(sorted({'torch', 'aiohttp', 'yaml', 'rich', 'kubernetes', 'octavo_server'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines()[-1] == "[]"


def test_up_needs_neither_kopf_nor_kubernetes() -> None:
    """The demo installs octavo[server] alone."""
    code = (
        "import sys; import octavo_cli.local.up, octavo_cli.local.ps, octavo_cli.chat\n"
        "print(sorted({'torch', 'kopf', 'kubernetes'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines()[-1] == "[]"


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "octavo_cli", "ps"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )
    os.close(writer)

    assert (ran.returncode, ran.stderr) == (141, b"")


def test_the_servers_commands_are_the_ones_that_it_has() -> None:
    from octavo_server.cli import COMMANDS

    assert {command.prefix[0] for command in cli.COMMANDS.values() if command.prefix} == set(COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = cli.main([*name.split(), "--help"])
    except SystemExit as ended:
        status = ended.code

    assert status == 0
    assert f"usage: octavo {name.split()[0]}" in capsys.readouterr().out

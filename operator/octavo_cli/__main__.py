"""The command `octavo`: finds the command, imports only what that one needs, and says it plainly when a part is missing.

`--help` and `--version` import nothing but the standard library.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import CliError


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Where a command lives; ``module.main(argv)`` gets ``prefix`` and what follows the command's name."""

    module: str
    help: str
    extra: str = ""
    """The extra of the distribution that brings what the module imports; empty: none is needed."""
    prefix: tuple[str, ...] = ()


def _server(name: str, text: str) -> Command:
    return Command(module="octavo_server.cli", help=text, extra="server", prefix=(name,))


COMMANDS = {
    "up": Command(module="octavo_cli.local.up", help="run ModelDeployment manifests on this machine", extra="server"),
    "ps": Command(module="octavo_cli.local.ps", help="list what `octavo up` runs on this machine"),
    "top": Command(module="octavo_cli.local.top", help="live pressure and speed of what `octavo up` runs"),
    "chat": Command(module="octavo_cli.chat", help="talk to a model behind an OpenAI-compatible address"),
    "serve": _server("serve", "serve one model over HTTP"),
    "generate": _server("generate", "complete prompts without a server"),
    "run-batch": _server("run-batch", "answer a file of requests without a server"),
    "download": _server("download", "fetch a model's files"),
    "plan": _server("plan", "say how much memory a model takes and how much fits"),
    "bench": _server("bench", "measure throughput and latency"),
    "compile": _server("compile", "compile the CPU kernels ahead of a first start"),
    "collect-env": _server("collect-env", "print what a bug report needs"),
    "gateway run": Command(module="octavo_gateway.__main__", help="run the gateway of a cluster", extra="gateway"),
    "operator run": Command(module="octavo_operator.__main__", help="run the operator of a cluster", extra="operator"),
}
OURS = ("octavo_kernels", "octavo_server", "octavo_operator", "octavo_gateway", "octavo_cli")


def main(argv: Sequence[str] | None = None) -> int:
    """The console script; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        print(f"octavo {version()}")
        return 0
    name, rest = split_command(arguments)
    command = COMMANDS.get(name)
    if command is None:
        return _unknown(name)
    return run(name, command, rest)


def run(name: str, command: Command, rest: Sequence[str]) -> int:
    def body() -> int | None:
        status: int | None = importlib.import_module(command.module).main([*command.prefix, *rest])
        return status

    return guarded(f"octavo {name}", command.extra, body)


def guarded(program: str, extra: str, body: Callable[[], int | None]) -> int:
    """The exit status of `body`; what a person can do wrong or meet ends it with one line.

    Args:
        program: what the person called.
        extra: the extra of the distribution that brings what `body` imports; empty: none is needed.
        body: the command itself.
    """
    try:
        status = body()
        # A closed pipe is felt here, where it can be answered, and not at the interpreter's end.
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if not extra or error.name is None or error.name.split(".")[0] in OURS:
            raise
        return _fail(f"`{program}` needs the package '{error.name}'; pip install 'octavo[{extra}]'")
    except CliError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of a pipe went away; nothing may be written to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return int(status or 0)


def split_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """A command's name has one word or two."""
    two = " ".join(arguments[:2])
    if two in COMMANDS:
        return two, list(arguments[2:])
    return arguments[0], list(arguments[1:])


def usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: octavo COMMAND [ARGUMENTS]",
            "",
            "Run open language models: on this machine, or on Kubernetes.",
            "",
            *lines,
            "",
            "octavo COMMAND --help explains one; octavo --version prints the version.",
        ]
    )


def version() -> str:
    try:
        return importlib.metadata.version("octavo")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _unknown(name: str) -> int:
    beginnings = [command for command in COMMANDS if command.split()[0] == name]
    close = beginnings or difflib.get_close_matches(name, COMMANDS, n=3)
    hint = f"did you mean {' or '.join(f'`octavo {command}`' for command in close)}?" if close else "see octavo --help"
    print(f"error: there is no command '{name}'; {hint}", file=sys.stderr)
    return 2


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

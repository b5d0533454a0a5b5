"""The house: who lives where, how large a room may be, and that both sides of an agreement say the same."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "octavo_kernels": ROOT / "kernels",
    "octavo_server": ROOT / "server",
    "octavo_operator": ROOT / "operator",
    "octavo_gateway": ROOT / "operator",
    "octavo_cli": ROOT / "operator",
}

MODULE_LIMIT = 400
FUNCTION_LIMIT = 60
KERNEL_FUNCTION_LIMIT = 120
PARAMETER_LIMIT = 7

_WIDE_KERNEL = "half of it is its parameters and those of its calls, which are formatted one a line"

LARGE_MODULES: dict[str, str] = {}
"""Modules past the limit, each with the reason."""

LONG_FUNCTIONS: dict[str, str] = {
    "kernels/octavo_kernels/decode_attention.py:decode_attention_kernel": _WIDE_KERNEL,
    "kernels/octavo_kernels/extend_attention.py:extend_attention_kernel": _WIDE_KERNEL,
}
"""Functions past the limit ("package/module.py:function"), each with the reason."""


def _modules() -> Iterator[Path]:
    for package, home in PACKAGES.items():
        yield from sorted((home / package).rglob("*.py"))


def _relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _code_lines(source: str) -> int:
    return sum(1 for line in source.splitlines() if line.strip() and not line.strip().startswith("#"))


def _functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("folder", ["operator", "server", "kernels", "tests", "e2e"])
def test_top_level_folder_is_no_package(folder: str) -> None:
    """With an __init__.py, operator/ would shadow the standard library's module."""
    assert (ROOT / folder).is_dir()
    assert not (ROOT / folder / "__init__.py").exists()


def test_every_package_folder_has_an_init() -> None:
    """A folder without one is silently left out of the wheel."""
    bare = {_relative(path.parent) for path in _modules() if not (path.parent / "__init__.py").exists()}

    assert bare == set()


def test_modules_stay_readable() -> None:
    sizes = {_relative(path): _code_lines(path.read_text()) for path in _modules()}

    too_large = {name: size for name, size in sizes.items() if size > MODULE_LIMIT and name not in LARGE_MODULES}

    assert too_large == {}


def test_functions_stay_readable() -> None:
    too_long = {}
    for path in _modules():
        limit = KERNEL_FUNCTION_LIMIT if "octavo_kernels" in str(path) else FUNCTION_LIMIT
        for function in _functions(path):
            name = f"{_relative(path)}:{function.name}"
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > limit and name not in LONG_FUNCTIONS:
                too_long[name] = length

    assert too_long == {}


def test_functions_take_few_parameters() -> None:
    """Past seven, some of them are one value that has no name yet."""
    too_many = {}
    for path in _modules():
        if "octavo_kernels" in str(path):
            continue
        for function in _functions(path):
            arguments = function.args
            count = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
            if count > PARAMETER_LIMIT + (arguments.args[:1] != [] and arguments.args[0].arg in {"self", "cls"}):
                too_many[f"{_relative(path)}:{function.name}"] = count

    assert too_many == {}


def test_exceptions_are_still_needed() -> None:
    """An exception that no longer applies is taken off the list."""
    stale = [name for name in LARGE_MODULES if _code_lines((ROOT / name).read_text()) <= MODULE_LIMIT]
    for name in LONG_FUNCTIONS:
        path, function_name = name.split(":")
        lengths = [(f.end_lineno or 0) - f.lineno + 1 for f in _functions(ROOT / path) if f.name == function_name]
        if not lengths or max(lengths) <= FUNCTION_LIMIT:
            stale.append(name)

    assert stale == []


def test_dependencies_are_bounded() -> None:
    """Every requirement has a lower and an upper bound."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]

    unbounded = [r for r in requirements if not r.startswith("octavo[") and not (">=" in r and "<" in r)]

    assert unbounded == []

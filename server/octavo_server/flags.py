"""Reads the config dataclasses from flags, `OCTAVO_…` variables and a YAML file: flag > variable > file > default.

Flags, their help and their types are generated from the fields, so none can be forgotten. An unknown flag is an error
that names the nearest; one of the contract that is not served yet is refused by name.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import inspect
import logging
import textwrap
import types
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from octavo_server.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from dataclasses import Field

logger = logging.getLogger(__name__)

C = TypeVar("C")

NOT_SUPPORTED_YET = frozenset(
    {
        "--enable-lora",
        "--lora-modules",
        "--speculative-config",
        "--kv-offloading-size",
    }
)
"""Flags of the contract that a later version brings; until then each is an error, never ignored."""


class FlagParser(argparse.ArgumentParser):
    """An argparse parser whose errors are `ConfigError`s and that takes no abbreviated flags."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see `{self.prog} --help`")

    def parse_strictly(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parses; an unknown flag is refused with the nearest known one.

        Raises:
            ConfigError: one line that says what is wrong and what to do.
        """
        for argument in argv:
            if argument == "--":
                break
            refuse_unsupported(argument.split("=", 1)[0])
        values, rest = self.parse_known_args(list(argv))
        if rest:
            raise ConfigError(unknown_flag(rest[0], [o for action in self._actions for o in action.option_strings]))
        return values


def refuse_unsupported(flag: str) -> None:
    """Raises ConfigError where `flag` is one that a later version brings."""
    plain = "--" + flag.removeprefix("--").removeprefix("no-").replace("_", "-")
    if flag.startswith("--") and plain in NOT_SUPPORTED_YET:
        raise ConfigError(f"{plain} is not supported yet in this version of Octavo; leave it out")


def unknown_flag(argument: str, known: Sequence[str]) -> str:
    """The message for an argument that nobody knows."""
    name = argument.split("=", 1)[0]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not name.startswith("-"):
        return f"unexpected argument {name[:100]!r}; see --help"
    return f"unknown flag {name[:100]}" + (f"; did you mean {near[0]}?" if near else "; --help lists all")


def add_flags(parser: argparse.ArgumentParser, config: type, *, skip: frozenset[str] = frozenset()) -> None:
    """One flag a field of the dataclass `config`; a field without default is a positional argument."""
    group = parser.add_argument_group(config.__name__.removesuffix("Config").lower())
    for setting in settings_of(config):
        if setting.name in skip:
            continue
        if setting.required:
            parser.add_argument(
                setting.name, nargs="?", metavar=setting.name.upper(), help=setting.help, default=argparse.SUPPRESS
            )
        elif setting.kind is bool:
            group.add_argument(
                setting.flag, action=argparse.BooleanOptionalAction, help=setting.help, default=argparse.SUPPRESS
            )
        elif setting.is_list:
            group.add_argument(
                setting.flag, action="extend", nargs="+", metavar="NAME", help=setting.help, default=argparse.SUPPRESS
            )
        else:
            group.add_argument(
                setting.flag, metavar=setting.metavar, help=setting.help, default=argparse.SUPPRESS, type=str
            )


def add_config_file(parser: argparse.ArgumentParser) -> None:
    """The flag `--config`."""
    parser.add_argument(
        "--config",
        metavar="FILE.yaml",
        default=None,
        help="YAML file of settings, named as the flags; flags and OCTAVO_ variables win over it.",
    )


def read_settings(values: argparse.Namespace, env: Mapping[str, str], *configs: type) -> dict[str, Any]:
    """Merges the sources for all fields of `configs` into arguments, by field name.

    Raises:
        ConfigError: an entry of the file that no field has, or a text that cannot be read as its field's type.
    """
    known = {setting.name: setting for config in configs for setting in settings_of(config)}
    merged = _from_file(getattr(values, "config", None) or env.get("OCTAVO_CONFIG"), known)
    for name, setting in known.items():
        text = env.get(setting.variable)
        if text is None:
            continue
        if text.startswith("tcp://"):
            # Kubernetes' service links: a Service named "octavo" injects OCTAVO_PORT=tcp://10.0.0.1:8000.
            logger.warning("ignoring %s: %s is a Kubernetes service link, not a setting", setting.variable, text)
            continue
        merged[name] = setting.read(text, setting.variable)
    for name, setting in known.items():
        if hasattr(values, name):
            given = getattr(values, name)
            merged[name] = setting.read(given, setting.flag)
    return merged


def build(config: type[C], merged: Mapping[str, Any]) -> C:
    """The dataclass from the merged arguments; `ConfigError` where a needed one is missing."""
    own = {setting.name for setting in settings_of(config)}
    for setting in settings_of(config):
        if setting.required and setting.name not in merged:
            raise ConfigError(f"{setting.name.upper()} is missing: {setting.help}")
    return config(**{name: value for name, value in merged.items() if name in own})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field, as the sources see it."""

    name: str
    kind: Any
    default: object
    required: bool
    help: str
    parse: Callable[[str], object] | None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "OCTAVO_" + self.name.upper()

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def metavar(self) -> str:
        return "{" + ",".join(self.choices) + "}" if self.choices else self.name.rsplit("_", 1)[-1].upper()

    def read(self, value: object, source: str) -> object:
        """The field's value from what `source` (a flag, a variable, a file) gave."""
        if self.is_list:
            return self._read_list(value, source)
        if self.kind is bool and isinstance(value, bool):
            return value
        if isinstance(value, bool | list | dict | tuple) or value is None:
            raise ConfigError(f"{source} is {value!r}, which is no value for {self.flag}")
        return self._read_text(str(value), source)

    def _read_list(self, value: object, source: str) -> tuple[str, ...]:
        if isinstance(value, dict) or value is None:
            raise ConfigError(f"{source} is {value!r}, which is no value for {self.flag}")
        if isinstance(value, list | tuple):
            items = tuple(str(item) for item in value)
        else:
            items = tuple(part.strip() for part in str(value).split(",") if part.strip())
        # An unset variable behind --api-key must not open the server to everybody.
        if not items or not all(items):
            raise ConfigError(f"{source} is empty; give {self.flag} a value or leave it out")
        return items if self.parse is None else tuple(str(self._read_text(item, source)) for item in items)

    def _read_text(self, text: str, source: str) -> object:
        if self.choices:
            choice = text if self.parse is None else self.parse(text)
            if choice not in self.choices:
                raise ConfigError(f"{source} is {text!r}, it must be one of {', '.join(self.choices)}")
            return choice
        if self.kind is bool:
            return _read_bool(text, source)
        try:
            return (self.parse or _plain(self.kind))(text)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from error
        except ValueError as error:
            raise ConfigError(f"{source} is {text!r}, it must be a number") from error


def settings_of(config: type) -> tuple[Setting, ...]:
    """The fields of a config dataclass with their help."""
    hints, docs = get_type_hints(config), field_docs(config)
    return tuple(_setting(item, hints[item.name], docs[item.name]) for item in fields(config))


def field_docs(config: type) -> dict[str, str]:
    """The docstring under each field, on one line; KeyError later where one is missing."""
    body = ast.parse(textwrap.dedent(inspect.getsource(config))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for node, following in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(following, ast.Expr):
            docs[node.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return docs


def _setting(item: Field[Any], hint: object, doc: str) -> Setting:
    kind = hint
    if get_origin(hint) in (Union, types.UnionType):
        kind = next(part for part in get_args(hint) if part is not type(None))
    required = item.default is MISSING
    shown = "" if required else f" (default: {_shown(item.default, hint)})"
    return Setting(
        name=item.name,
        kind=kind,
        default=item.default,
        required=required,
        help=(doc + shown).replace("%", "%%"),
        parse=item.metadata.get("parse"),
    )


def _shown(default: object, hint: object) -> str:
    if default == () or default is None:
        return "auto" if hint == int | None else "none"
    return str(default)


def _plain(kind: object) -> Callable[[str], object]:
    return {int: int, float: float, str: str}[kind]  # type: ignore[index]  # hints of these three types only


def _read_bool(text: str, source: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if text.lower() not in values:
        raise ConfigError(f"{source} is {text!r}, it must be true or false")
    return values[text.lower()]


def _from_file(path: str | None, known: Mapping[str, Setting]) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read --config {path}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path} must hold names and values, such as `port: 8000`")
    merged = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        refuse_unsupported("--" + str(key))
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise ConfigError(
                f"--config {path}: unknown entry {key!r}" + (f"; did you mean {near[0]}?" if near else "")
            )
        merged[name] = known[name].read(value, f"--config {path}: {key}")
    return merged

"""What all four commands do once they have measured: write the file, draw, compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo_server.bench.compare import comparison
from octavo_server.bench.plot import check_plot, write_plot
from octavo_server.bench.record import read_record, write_record
from octavo_server.errors import ConfigError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping

    from octavo_server.bench.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where the results go; read, and refused where that cannot be, before anything is measured."""

    json: str
    plot: str
    before: Mapping[str, Any] | None
    notes: Mapping[str, str]

    @classmethod
    def from_flags(cls, values: argparse.Namespace, command: str) -> Output:
        """Raises ConfigError for a file that cannot be compared with, and a picture that cannot be made."""
        check_plot(values.plot)
        before = read_record(values.compare) if values.compare else None
        if before is not None and before["command"] != command:
            raise ConfigError(f"--compare {values.compare} is of {before['command']}, this is {command}")
        return cls(json=values.json, plot=values.plot, before=before, notes=_notes(values.metadata))

    @property
    def wants_record(self) -> bool:
        """Whether anything beyond the table is asked for; else the model is not hashed and not asked for samples."""
        return bool(self.json or self.before)

    def give(self, record: Record, title: str) -> None:
        """Draws, writes, and prints the comparison."""
        write_plot(self.plot, title, record.results)
        if not self.wants_record:
            return
        content = record.as_json()
        write_record(self.json, content)
        if self.before is not None:
            print()
            print(comparison(self.before, content))


def add_output_flags(parser: argparse.ArgumentParser) -> None:
    """The same for all commands."""
    group = parser.add_argument_group("output")
    group.add_argument("--json", default="", metavar="FILE", help="write everything there, for --compare")
    group.add_argument("--compare", default="", metavar="FILE", help="print ratios to an earlier --json FILE")
    group.add_argument("--plot", default="", metavar="FILE.svg", help="draw the distributions")
    group.add_argument(
        "--metadata", nargs="+", default=[], metavar="KEY=VALUE", help="notes for the file; compared like settings"
    )


def _notes(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--metadata {pair!r} must be KEY=VALUE")
    return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}

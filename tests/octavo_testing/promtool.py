"""Prometheus' own promtool as the judge of rules and queries: whatever it evaluates, it evaluates with the real engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from octavo_testing.live_scrape import Series

TOOLS = Path(os.environ.get("OCTAVO_CACHE", Path.home() / ".cache" / "octavo")) / "tools"
INTERVAL_S = 15
NUM_SAMPLES = 80
"""Twenty minutes, more than any range of ours."""


def find_promtool() -> Path | None:
    """$OCTAVO_PROMTOOL, or what e2e's tools built, or what the PATH has."""
    built = sorted(TOOLS.glob("prometheus-v*/promtool"))
    found = os.environ.get("OCTAVO_PROMTOOL") or (str(built[-1]) if built else shutil.which("promtool"))
    return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class Promtool:
    program: Path
    folder: Path

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.program), *words], cwd=self.folder, capture_output=True, text=True, timeout=120, check=False
        )

    def write(self, name: str, document: Any) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(document))
        return path

    def evaluate(self, queries: Sequence[str], series: Iterable[Series], rules: Any = None) -> dict[str, list[str]]:
        """For each query the label sets of its result, as promtool prints them; raises what promtool says is wrong.

        promtool has no command that evaluates a query without a server. A unit test that expects nothing fails with
        what it got, which is what is wanted here.
        """
        if rules is not None:
            self.write("evaluated_rules.yaml", rules)
        test = {
            "interval": f"{INTERVAL_S}s",
            "input_series": [_input(each) for each in series],
            "promql_expr_test": [{"expr": query, "eval_time": "18m", "exp_samples": []} for query in queries],
        }
        document = {"rule_files": ["evaluated_rules.yaml"] if rules is not None else [], "tests": [test]}
        result = self.run("test", "rules", str(self.write("evaluation.yaml", document)))
        return _results(queries, result.stdout + result.stderr)


def _input(series: Series) -> dict[str, str]:
    growth = series.value if series.is_counter else 0
    labels = ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(series.labels.items()))
    start = 0 if series.is_counter else series.value
    return {"series": f"{series.name}{{{labels}}}", "values": f"{start:.10g}+{growth:.10g}x{NUM_SAMPLES}"}


def _results(queries: Sequence[str], output: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {query: [] for query in queries}
    for block in re.split(r"\n\s+expr: ", output)[1:]:
        query, end = json.JSONDecoder().raw_decode(block)
        _, separator, got = block[end:].partition("got:")
        if not separator:
            raise AssertionError(f"{query}: {block[end:]}")
        results = got.split("\n\n")[0].strip()
        found[query] = [] if results in ("", "nil") else re.split(r", (?=[\w:]*{)", results)
    if "FAILED" not in output and "SUCCESS" not in output:
        raise AssertionError(output)
    return found


def label_names(result: str) -> set[str]:
    """Of one line that promtool printed: `{model="a/b", code="200"} 1.5E+00`."""
    return set(re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="', result.partition("}")[0]))


def parse_series(text: str) -> tuple[str, Mapping[str, str]]:
    """`name{a="b"}` of a promtool unit test."""
    name, _, labels = text.partition("{")
    return name, dict(re.findall(r'([a-zA-Z_][a-zA-Z0-9_]*)="([^"]*)"', labels))

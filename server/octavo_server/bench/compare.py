"""Two result files side by side: ratios with intervals, every setting that differs, and quality beside speed.

An interval is a bootstrap's: rounds are drawn again with replacement, and within each its requests, since what happens
on the machine meets all requests of a round alike. Of a rate each round gives one number, so fewer than three rounds
give no interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo_server.bench.quality import compare_quality
from octavo_server.bench.stats import Rounds, percentile, pooled, table
from octavo_server.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_RESAMPLES = 1000
_AT_ONCE = 20_000_000
"""Values drawn in one piece; more are drawn one draw after the other."""
_LEAST_UNITS = 3
"""Rounds, or requests where a round has several, below which nothing can be said of the spread."""
_HEADER = ("", "measure", "before", "after", "ratio", "95 % interval", "")
_CHOSEN = ("model", "workload", "engine", "server", "environment", "notes")
_FOLLOWING = {
    "prompts.sha256": ("workload",),
    "resolved": ("engine", "model", "environment"),
    "model.files": ("model.name", "model.revision"),
}
"""What is not chosen by itself: a difference of it counts only where nothing that it follows from differs."""
_OF_NO_MATTER = (
    "server.url",
    "workload.rounds",
    "workload.iterations",
    "workload.concurrency",
    "workload.max_concurrency",
    "workload.request_rate",
)
"""How often was measured, and at which levels: only levels that both have are compared."""
_ABSENT = "(none)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Later over earlier of one percentile; the interval is None where there is too little to draw from."""

    before: float
    after: float
    low: float | None
    high: float | None

    @property
    def value(self) -> float:
        return self.after / self.before

    def verdict(self, better: str) -> str:
        """Better or worse where the interval leaves 1 outside."""
        if self.low is None or self.high is None:
            return "one run each says little"
        if self.low <= 1 <= self.high:
            return "no difference seen"
        return "better" if (self.low > 1) == (better == "higher") else "worse"


def comparison(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The text that `--compare` prints.

    Raises:
        ConfigError: they are of different commands.
    """
    if before["command"] != after["command"]:
        raise ConfigError(f"{before['command']} and {after['command']} cannot be compared; measure with one command")
    counted, following = differences(before, after)
    rows = list(_rows(before, after))
    lines = [table(_HEADER, rows) if rows else "no level is in both files, so there is no ratio", ""]
    lines.append(f"settings that differ: {len(counted) or 'none, so the ratios are the noise of the machine'}")
    lines += [f"  {name}: {was} -> {now}" for name, was, now in counted]
    if following:
        lines += ["and with them:", *(f"  {name}: {was} -> {now}" for name, was, now in following)]
    if len(counted) > 1:
        lines.append(f"warning: {len(counted)} settings differ, so no ratio tells what any one of them does")
    loads = [record["circumstances"]["load_average"][0] for record in (before, after)]
    lines.append(f"load average {loads[0]} before, {loads[1]} after")
    quality, is_worse = compare_quality(before["quality"], after["quality"])
    lines += ["", *quality]
    if is_worse:
        lines.append("warning: the later run answers worse")
    return "\n".join(lines)


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[list[tuple[str, Any, Any]], list[tuple[str, Any, Any]]]:
    """Settings that differ, as (name, before, after): those that count, and those that follow from them."""
    was, now = (_flat(record) for record in (before, after))
    found = [
        (name, was.get(name, _ABSENT), now.get(name, _ABSENT))
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]
    names = [name for name, _, _ in found if not _causes(name)]
    following = [item for item in found if any(_is_in(name, _causes(item[0])) for name in names)]
    counted = [item for item in found if item not in following and item[0] not in _OF_NO_MATTER]
    return counted, following


def interval(before: Rounds, after: Rounds, percents: Sequence[float]) -> list[Ratio | None]:
    """Ratios of percentiles with their 95 % intervals, the same at each call; None where one side has nothing, or zero."""
    import numpy as np

    ends = [[percentile(sorted(pooled(side)), percent) for percent in percents] for side in (before, after)]
    drawn = None
    if min(_units(before), _units(after)) >= _LEAST_UNITS:
        generator = np.random.default_rng(0)
        now_drawn, was_drawn = (_draws(generator, side, percents) for side in (after, before))
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = now_drawn / was_drawn
    ratios: list[Ratio | None] = []
    for column, (was, now) in enumerate(zip(*ends, strict=True)):
        if not was or now is None:
            ratios.append(None)
            continue
        # A draw without a value, or with nothing to divide by, says nothing.
        kept = [] if drawn is None else drawn[np.isfinite(drawn[:, column]), column]
        bounds = np.percentile(kept, (2.5, 97.5)).tolist() if len(kept) > _RESAMPLES // 2 else (None, None)
        ratios.append(Ratio(before=was, after=now, low=bounds[0], high=bounds[1]))
    return ratios


def _draws(generator: Any, rounds: Rounds, percents: Sequence[float]) -> Any:
    """Percentiles of each draw of rounds, and of requests within each: [draws, percents]; NaN where one holds no value."""
    import numpy as np

    num_rounds, sizes = len(rounds), {len(requests) for requests in rounds}
    if len(sizes) == 1 and all(len(request) == 1 for requests in rounds for request in requests):
        (size,) = sizes
        if 0 < num_rounds * size * _RESAMPLES <= _AT_ONCE:
            values = np.asarray(rounds)[:, :, 0]
            chosen = generator.integers(num_rounds, size=(_RESAMPLES, num_rounds, 1))
            drawn = values[chosen, generator.integers(size, size=(_RESAMPLES, num_rounds, size))]
            return np.percentile(drawn.reshape(_RESAMPLES, -1), percents, axis=1).T
    arrays = [[np.asarray(request) for request in requests] for requests in rounds]
    return np.array([_percentiles(generator, arrays, percents) for _ in range(_RESAMPLES)])


def _percentiles(generator: Any, rounds: Sequence[Sequence[Any]], percents: Sequence[float]) -> Any:
    """Of one draw, whose requests have several values each."""
    import numpy as np

    drawn: list[Any] = []
    for number in generator.integers(len(rounds), size=len(rounds)):
        requests = rounds[number]
        drawn += [requests[at] for at in generator.integers(len(requests), size=len(requests))] if requests else []
    values: Any = np.sort(np.concatenate(drawn)) if drawn else np.empty(0)
    return [percentile(values, percent) if values.size else np.nan for percent in percents]


def _units(rounds: Rounds) -> int:
    """What there is to draw from."""
    return max([len(rounds), *(len(requests) for requests in rounds)])


def _rows(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Sequence[object]]:
    later = {result["name"]: result for result in after["results"]}
    for result in before["results"]:
        for name, measure in result["measures"].items():
            now = later.get(result["name"], {"measures": {}})["measures"].get(name)
            if now is None or not measure["rounds"] or not now["rounds"]:
                continue
            # A rate has one number a round: its median is all that can be said.
            percents = (50,) if all(len(round_) == 1 for round_ in measure["rounds"]) else (50, 99)
            for percent, ratio in zip(percents, interval(measure["rounds"], now["rounds"], percents), strict=True):
                if ratio is not None:
                    yield _row(result["name"], name if len(percents) == 1 else f"{name} p{percent}", measure, ratio)


def _row(level: str, name: str, measure: Mapping[str, Any], ratio: Ratio) -> Sequence[object]:
    spread = "-" if ratio.low is None else f"{ratio.low:.3f} .. {ratio.high:.3f}"
    numbers = (f"{ratio.before:.4g}", f"{ratio.after:.4g}", f"{ratio.value:.3f}")
    return (level, name, *numbers, spread, ratio.verdict(measure["better"]))


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names of all that might explain a difference."""
    flat: dict[str, Any] = {"prompts.sha256": record["prompts"].get("sha256")}
    for part in (*_CHOSEN, "resolved"):
        flat |= dict(_leaves(part, record[part]))
    return flat


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and name != "model.files":
        for key, item in value.items():
            yield from _leaves(f"{name}.{key}", item)
    else:
        yield name, value


def _causes(name: str) -> tuple[str, ...]:
    return next((causes for start, causes in _FOLLOWING.items() if _is_in(name, (start,))), ())


def _is_in(name: str, starts: Sequence[str]) -> bool:
    return any(name == start or name.startswith(f"{start}.") for start in starts)

"""Quota arithmetic: who has spent how many tokens of a key's minute and day, and how many more may be spent.

Pure: time comes in as ``now`` (seconds of any monotonic clock) and ``day`` (days since 1970, UTC).

Each gateway keeps what it spent itself and tells all of that, never a difference, to the owner of the account: what is
told twice counts once. The owner adds the gateways up and leases tokens to them; a lease is tokens that its holder may
spend without asking, for ``LEASE_S``, and that nobody else gets meanwhile.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

WINDOW_S = 60
SLOT_S = 1.0
LEASE_S = 2.0
LEASE_GRACE_S = 1.0
"""An owner honours a lease for so much longer: its holder's report of what it spent is on the way."""
LEASE_SHARE = 0.05
"""Of the minute's budget, at most, in one lease; a single request that needs more gets what it needs."""
MAX_BOOTS = 16
"""Gateways that an account's day is kept apart for; the rest is one sum."""
OTHERS = ""
LEARNING_RATE = 0.2
"""How much one answer changes what is expected of the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """0 is no limit."""

    per_minute: int = 0
    per_day: int = 0

    @property
    def is_set(self) -> bool:
        return bool(self.per_minute or self.per_day)

    @property
    def lease_tokens(self) -> int:
        """The largest lease for requests to come."""
        return max(1, int(LEASE_SHARE * (self.per_minute or self.per_day / (24 * 60))))

    def needed(self, tokens: int) -> int:
        """What a request needs to be let in: one that is larger than a whole budget gets in where nothing is spent."""
        return min([tokens, *(limit for limit in (self.per_minute, self.per_day) if limit)])

    def divided(self, gateways: int) -> Limits:
        """One gateway's part, where the owner cannot be asked."""
        return Limits(per_minute=-(-self.per_minute // gateways), per_day=-(-self.per_day // gateways))


class Window:
    """Tokens of the last ``WINDOW_S`` seconds in slots of one second; a slot leaves when all of it is that old."""

    def __init__(self, slots: Iterable[tuple[float, int]] = ()) -> None:
        self._slots: deque[tuple[float, int]] = deque(slots)
        """(when it began, tokens), the oldest first."""

    def add(self, now: float, tokens: int) -> None:
        start = float(math.floor(now))
        if self._slots and self._slots[-1][0] >= start:
            start, before = self._slots.pop()
            tokens += before
        self._slots.append((start, tokens))
        self._drop(now)

    def give_back(self, at: float, tokens: int, *, now: float) -> None:
        """Undo a part of what was added at ``at``; what has left the window is no help any more."""
        self._drop(now)
        for index, (start, held) in enumerate(self._slots):
            if start <= at < start + SLOT_S:
                self._slots[index] = start, max(0, held - tokens)
                return

    def total(self, now: float) -> int:
        self._drop(now)
        return sum(tokens for _, tokens in self._slots)

    def by_age(self, now: float) -> list[tuple[float, int]]:
        """(seconds since a slot began, tokens), which means the same on another clock."""
        self._drop(now)
        return [(round(now - start, 3), tokens) for start, tokens in self._slots if tokens]

    @classmethod
    def from_ages(cls, ages: Iterable[tuple[float, int]], *, now: float) -> Window:
        return cls(sorted((now - age, tokens) for age, tokens in ages if 0 <= age < SLOT_S + WINDOW_S and tokens > 0))

    def leaving(self) -> list[tuple[float, int]]:
        """(when they leave, tokens), the first to leave first."""
        return [(start + SLOT_S + WINDOW_S, tokens) for start, tokens in self._slots]

    def _drop(self, now: float) -> None:
        while self._slots and self._slots[0][0] + SLOT_S + WINDOW_S <= now:
            self._slots.popleft()


@dataclass(slots=True)
class Day:
    """Tokens of one day, UTC; another day begins at nothing."""

    number: int = 0
    tokens: int = 0

    def add(self, day: int, tokens: int) -> None:
        self.tokens = max(0, self.on(day) + tokens)
        self.number = day

    def on(self, day: int) -> int:
        return self.tokens if day == self.number else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that one gateway has spent of an account, and what it would like to spend next."""

    ages: tuple[tuple[float, int], ...] = ()
    day: int
    day_tokens: int
    need: int = 0
    """Without so many it can do nothing."""
    want: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """An owner's answer."""

    tokens: int
    minute_left: int | None
    """None without a limit; for the message of a refusal."""
    day_left: int | None
    retry_after_s: int = 0
    """When so many as were needed are free again; 0 where they were granted."""


@dataclass(slots=True)
class _Heard:
    window: Window
    lease: int = 0
    lease_until: float = 0.0
    at: float = 0.0


@dataclass(slots=True)
class Ledger:
    """An account at its owner: what each gateway spent and holds."""

    heard: dict[str, _Heard] = field(default_factory=dict)
    days: dict[str, int] = field(default_factory=dict)
    """Tokens of the day by gateway; ``OTHERS`` are those that are kept no longer apart."""
    day: int = 0
    is_dirty: bool = False
    """The day's tokens changed since they were saved."""

    def ask(self, gateway: str, report: Report, limits: Limits, *, now: float, latest_day: int) -> Grant:
        """`latest_day` is what it can be by the owner's clock: a day that a wrong clock began is no day."""
        self._take(gateway, report, now, latest_day)
        others = sum(heard.lease for name, heard in self.heard.items() if name != gateway and now < heard.lease_until)
        minute_left = limits.per_minute - self.minute_tokens(now) - others if limits.per_minute else None
        day_left = limits.per_day - self.day_tokens(report.day) - others if limits.per_day else None
        left = min((left for left in (minute_left, day_left) if left is not None), default=report.want)
        granted = max(0, min(report.want, left)) if left >= report.need else 0
        mine = self.heard[gateway]
        mine.lease, mine.lease_until = granted, now + LEASE_S + LEASE_GRACE_S
        return Grant(
            tokens=granted,
            minute_left=None if minute_left is None else max(0, minute_left),
            day_left=None if day_left is None else max(0, day_left),
            retry_after_s=0 if granted >= report.need else self._retry_after_s(report.need, limits, now, day_left),
        )

    def minute_tokens(self, now: float) -> int:
        return sum(heard.window.total(now) for heard in self.heard.values())

    def day_tokens(self, day: int) -> int:
        return sum(self.days.values()) if day == self.day else 0

    def merge_saved(self, day: int, saved: Mapping[str, int]) -> None:
        """Take in what an owner before has saved; each gateway's number only grows."""
        if day < self.day:
            return
        self._begin_day(day)
        for gateway, tokens in saved.items():
            self.days[gateway] = max(tokens, self.days.get(gateway, 0))

    def is_idle(self, now: float) -> bool:
        return all(now - heard.at > 2 * WINDOW_S for heard in self.heard.values())

    def _take(self, gateway: str, report: Report, now: float, latest_day: int) -> None:
        if self.day > latest_day:
            # The clock went back: a day to come would count nothing until it comes.
            self.day, self.days = 0, {}
        if report.day <= latest_day:
            self._begin_day(report.day)
        if report.day == self.day and report.day_tokens != self.days.get(gateway, 0):
            self.days[gateway] = report.day_tokens
            self.is_dirty = True
            self._fold(gateway)
        heard = self.heard.setdefault(gateway, _Heard(Window()))
        heard.window, heard.at = Window.from_ages(report.ages, now=now), now
        for name in [name for name, other in self.heard.items() if now - other.at > 2 * WINDOW_S]:
            del self.heard[name]

    def _begin_day(self, day: int) -> None:
        if day > self.day:
            self.day, self.days = day, {}

    def _fold(self, latest: str) -> None:
        silent = [name for name in self.days if name not in (OTHERS, latest) and name not in self.heard]
        for gone in silent[: max(0, len(self.days) - MAX_BOOTS)]:
            self.days[OTHERS] = self.days.get(OTHERS, 0) + self.days.pop(gone)

    def _retry_after_s(self, need: int, limits: Limits, now: float, day_left: int | None) -> int:
        if day_left is not None and day_left < need:
            return 0
        missing = need - (limits.per_minute - self.minute_tokens(now))
        leaving = sorted(slot for heard in self.heard.values() for slot in heard.window.leaving())
        for second, tokens in leaving:
            missing -= tokens
            if missing <= 0:
                return max(1, math.ceil(second - now))
        return math.ceil(LEASE_S + LEASE_GRACE_S)


@dataclass(slots=True)
class Account:
    """A key's spending by this gateway, and what it may spend next."""

    window: Window = field(default_factory=Window)
    day: Day = field(default_factory=Day)
    lease: int = 0
    lease_until: float = 0.0
    is_unreported: bool = False
    tokens_per_byte: float = 0.25
    """Of prompts, as learnt from the answers."""
    output_tokens: float = 64.0
    """Mean of the answers."""
    last_used: float = 0.0

    def estimate(self, *, num_bytes: int, max_tokens: int | None, num_answers: int) -> int:
        """Tokens that a request will have taken in the end, as far as one can tell beforehand."""
        output = self.output_tokens if max_tokens is None else min(self.output_tokens, max_tokens)
        return max(1, round(num_bytes * self.tokens_per_byte + output * num_answers))

    def spend(self, tokens: int, *, now: float, day: int) -> bool:
        """From the lease; False where that does not suffice."""
        if now >= self.lease_until or self.lease < tokens:
            return False
        self.lease -= tokens
        self.add(tokens, now=now, day=day)
        return True

    def add(self, tokens: int, *, now: float, day: int) -> None:
        self.window.add(now, tokens)
        self.day.add(day, tokens)
        self.is_unreported, self.last_used = True, now

    def settle(self, spent: int, at: float, on_day: int, actual: int, *, now: float, day: int) -> None:
        """The answer says what the request really took; what is given back is of the minute and day that it was let in."""
        if actual > spent:
            self.add(actual - spent, now=now, day=day)
            self.lease = max(0, self.lease - (actual - spent))
        elif actual < spent:
            self.window.give_back(at, spent - actual, now=now)
            if on_day == day:
                self.day.add(day, actual - spent)
            self.is_unreported = True

    def learn(self, *, num_bytes: int, prompt_tokens: int, output_tokens: int, num_answers: int) -> None:
        if num_bytes > 0 and prompt_tokens > 0:
            self.tokens_per_byte += LEARNING_RATE * (prompt_tokens / num_bytes - self.tokens_per_byte)
        self.output_tokens += LEARNING_RATE * (output_tokens / max(1, num_answers) - self.output_tokens)

    def report(self, *, now: float, day: int, need: int = 0, want: int = 0) -> Report:
        return Report(ages=tuple(self.window.by_age(now)), day=day, day_tokens=self.day.on(day), need=need, want=want)

"""Keeps keys to their tokens over all gateways: leases from the account's owner, and its part alone where that is silent.

The owner of an account is one of the ready gateways, by rendezvous hash, so all agree without a word. Owns the accounts
of this gateway and the ledgers of those accounts that others ask it about; both are forgotten when nothing in them
counts any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from .endpoints import NO_LIMITS
from .errors import QuotaExceeded
from .metrics import Metrics
from .quota import LEASE_S, WINDOW_S, Account, Grant, Ledger, Limits, Report

logger = logging.getLogger(__name__)

FLUSH_EVERY_S = 0.5
"""What was spent is told so often; well within the grace of a lease."""
SILENT_FOR_S = 5.0
"""An owner that did not answer is not asked again for so long."""
SAVE_EVERY_S = 10.0
DAY_S = 24 * 3600
CLOCKS_APART_S = 60.0
"""Clocks of gateways differ by less: a message whose time is half of that off is refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One account in a message to its owner."""

    account: str
    limits: Limits
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedDay:
    day: int
    tokens: Mapping[str, int]
    """By gateway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What can be known of a request's cost beforehand."""

    num_bytes: int
    max_tokens: int | None = None
    num_answers: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Tokens that a request was let in with; settled once."""

    account: str
    tokens: int
    at: float
    day: int
    size: Size


class PeerSilent(Exception):
    """Another gateway did not answer, or not sensibly."""


class Peers(Protocol):
    async def ask(self, peer: str, gateway: str, entries: Sequence[Entry]) -> list[Grant]:
        """One grant for each entry; raises PeerSilent."""
        ...


class DayStore(Protocol):
    """Where days outlive a gateway; both methods raise KubeApiError, and saving None forgets."""

    async def load_days(self) -> dict[str, SavedDay]: ...

    async def save_days(self, changes: Mapping[str, SavedDay | None]) -> None: ...


@dataclass(slots=True)
class _Open:
    """An account in use; its lock makes one request ask for all that wait."""

    account: Account = field(default_factory=Account)
    limits: Limits = NO_LIMITS
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quotas:
    def __init__(
        self,
        *,
        me: str,
        boot: str,
        peers: Peers,
        metrics: Metrics,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        """`me` is this gateway's address among the ready ones, `boot` its name in ledgers, new at each start."""
        self._me = me
        self._boot = boot
        self._peers = peers
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._ready: tuple[str, ...] = (me,)
        self._open: dict[str, _Open] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._saved: dict[str, SavedDay] = {}
        self._silent_until: dict[str, float] = {}

    @property
    def day(self) -> int:
        return int(self._wall_clock() // DAY_S)

    @property
    def _latest_day(self) -> int:
        """By the clocks of other gateways it may be tomorrow."""
        return int((self._wall_clock() + CLOCKS_APART_S) // DAY_S)

    def set_ready(self, addresses: Iterable[str]) -> None:
        """Which gateways are ready now; what accounts have spent is then told to their new owners."""
        self._ready = tuple(sorted(set(addresses))) or (self._me,)
        self._silent_until = {peer: until for peer, until in self._silent_until.items() if peer in self._ready}
        for opened in self._open.values():
            opened.account.is_unreported = True

    async def admit(self, account: str, limits: Limits, size: Size) -> Reservation:
        """Let a request in, or raise QuotaExceeded."""
        opened = self._open.setdefault(account, _Open())
        opened.limits = limits
        mine = opened.account
        tokens = limits.needed(
            mine.estimate(num_bytes=size.num_bytes, max_tokens=size.max_tokens, num_answers=size.num_answers)
        )
        if not mine.spend(tokens, now=self._clock(), day=self.day):
            async with opened.lock:
                if not mine.spend(tokens, now=self._clock(), day=self.day):
                    grant = await self._lease(account, opened, tokens)
                    if not mine.spend(tokens, now=self._clock(), day=self.day):
                        raise self._refusal(account, limits, grant, tokens)
        return Reservation(account=account, tokens=tokens, at=self._clock(), day=self.day, size=size)

    def settle(self, reservation: Reservation, *, prompt_tokens: int, output_tokens: int) -> None:
        """The request has ended and took so many."""
        opened = self._open.get(reservation.account)
        if opened is None:
            return
        actual = prompt_tokens + output_tokens
        opened.account.settle(
            reservation.tokens, reservation.at, reservation.day, actual, now=self._clock(), day=self.day
        )
        if actual:
            opened.account.learn(
                num_bytes=reservation.size.num_bytes,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                num_answers=reservation.size.num_answers,
            )

    def answer(self, gateway: str, entries: Sequence[Entry]) -> list[Grant]:
        """As the owner: take in what a gateway has spent, and grant what there is."""
        now, latest = self._clock(), self._latest_day
        return [
            self._ledger(entry.account).ask(gateway, entry.report, entry.limits, now=now, latest_day=latest)
            for entry in entries
        ]

    async def flush(self) -> None:
        """Tell the owners what was spent since they were told, and forget what counts no more."""
        by_owner: dict[str, list[str]] = {}
        for account, opened in self._open.items():
            if opened.account.is_unreported and not opened.lock.locked():
                by_owner.setdefault(self._owner(account), []).append(account)
        await asyncio.gather(*(self._tell(owner, accounts) for owner, accounts in by_owner.items()))
        self._forget()

    async def save(self, store: DayStore) -> None:
        """Write the days of the accounts that this gateway owns, where they changed."""
        today = self.day
        changes: dict[str, SavedDay | None] = {
            account: SavedDay(day=ledger.day, tokens=dict(ledger.days))
            for account, ledger in self._ledgers.items()
            if ledger.is_dirty and self._owner(account) == self._me
        }
        changes |= {
            account: None
            for account, saved in self._saved.items()
            if not today <= saved.day <= self._latest_day
            and account not in changes
            and self._owner(account) == self._me
        }
        if not changes:
            return
        await store.save_days(changes)
        for account, saved in changes.items():
            if saved is None:
                self._saved.pop(account, None)
            else:
                self._saved[account] = saved
                ledger = self._ledgers.get(account)
                if ledger is not None and dict(ledger.days) == saved.tokens:
                    ledger.is_dirty = False

    async def load(self, store: DayStore) -> None:
        self._saved = await store.load_days()
        for account, ledger in self._ledgers.items():
            self._merge(account, ledger)

    async def _lease(self, account: str, opened: _Open, need: int) -> Grant:
        mine, limits, now = opened.account, opened.limits, self._clock()
        owner = self._owner(account)
        # Given back before it is asked anew, so that nobody spends what the owner no longer counts.
        mine.lease = 0
        report = mine.report(now=now, day=self.day, need=need, want=max(need, limits.lease_tokens))
        mine.is_unreported = False
        try:
            (grant,) = await self._ask(owner, [Entry(account=account, limits=limits, report=report)])
        except PeerSilent:
            mine.is_unreported = True
            # Alone: a ledger of what this gateway spent itself, against its part of the budget.
            grant = Ledger().ask(self._boot, report, limits.divided(len(self._ready)), now=now, latest_day=report.day)
        mine.lease, mine.lease_until = grant.tokens, now + LEASE_S
        return grant

    async def _tell(self, owner: str, accounts: Sequence[str]) -> None:
        """The locks keep requests from asking at the same time: what the owner hears last must be what is newest."""
        async with contextlib.AsyncExitStack() as locks:
            for account in accounts:
                await locks.enter_async_context(self._open[account].lock)
            await self._tell_locked(owner, accounts)

    async def _tell_locked(self, owner: str, accounts: Sequence[str]) -> None:
        entries = []
        for account in accounts:
            opened = self._open[account]
            report = opened.account.report(now=self._clock(), day=self.day)
            entries.append(Entry(account=account, limits=opened.limits, report=report))
            opened.account.is_unreported, opened.account.lease = False, 0
        try:
            await self._ask(owner, entries)
        except PeerSilent:
            for account in accounts:
                if account in self._open:
                    self._open[account].account.is_unreported = True

    async def _ask(self, owner: str, entries: Sequence[Entry]) -> list[Grant]:
        if owner == self._me:
            return self.answer(self._boot, entries)
        if self._clock() < self._silent_until.get(owner, 0.0):
            raise PeerSilent
        try:
            return await self._peers.ask(owner, self._boot, entries)
        except PeerSilent as error:
            self._silent_until[owner] = self._clock() + SILENT_FOR_S
            self._metrics.silent_owners.inc()
            logger.warning("the owner of quotas does not answer", extra={"peer": owner, "why": str(error)})
            raise

    def _owner(self, account: str) -> str:
        return max(self._ready, key=lambda address: hashlib.blake2b(f"{account}\0{address}".encode()).digest())

    def _ledger(self, account: str) -> Ledger:
        ledger = self._ledgers.get(account)
        if ledger is None:
            ledger = self._ledgers[account] = Ledger()
            self._merge(account, ledger)
        return ledger

    def _merge(self, account: str, ledger: Ledger) -> None:
        saved = self._saved.get(account)
        if saved is not None and saved.day <= self._latest_day:
            ledger.merge_saved(saved.day, saved.tokens)

    def _forget(self) -> None:
        now, today = self._clock(), self.day
        self._ledgers = {
            account: ledger
            for account, ledger in self._ledgers.items()
            if not ledger.is_idle(now)
            or (self._owner(account) == self._me and (ledger.is_dirty or ledger.day_tokens(today)))
        }
        self._open = {
            account: opened
            for account, opened in self._open.items()
            if opened.lock.locked() or now - opened.account.last_used < 2 * WINDOW_S or opened.account.day.on(today)
        }

    def _refusal(self, account: str, limits: Limits, grant: Grant, tokens: int) -> QuotaExceeded:
        is_day = grant.day_left is not None and grant.day_left < tokens
        which, code = ("day", "tokens_per_day_exceeded") if is_day else ("minute", "tokens_per_minute_exceeded")
        limit = limits.per_day if is_day else limits.per_minute
        left = (grant.day_left if is_day else grant.minute_left) or 0
        retry_after_s = int(DAY_S - self._wall_clock() % DAY_S) + 1 if is_day else max(1, grant.retry_after_s)
        return QuotaExceeded(
            f"Your key may use {limit} tokens a {which}; {left} are left, and this request is expected to need "
            f"{tokens}. Ask again in {retry_after_s} s.",
            code=code,
            limit=limit,
            left=left,
            retry_after_s=retry_after_s,
        )

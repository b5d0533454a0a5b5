"""The routing table: which names are served, by which resource, on which replicas.

Values only; sources (Kubernetes, local mode) build a whole new table at each change and nobody edits one in place.
A served name belongs to the oldest resource that claims it; ``NAMESPACE/NAME`` always routes.
"""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from types import MappingProxyType

from .quota import Limits

NO_LIMITS = Limits()
MAX_SUGGESTIONS = 5
MAX_KNOWN_SHOWN = 20
MAX_COMPARED = 20
"""Names that a wrong one is compared with letter by letter, at a tenth of a millisecond each while all others wait."""


class Strategy(Enum):
    """How a replica is chosen; ``Auto`` of a resource is resolved into one of these."""

    LEAST_PRESSURE = "LeastPressure"
    PREFIX_AFFINITY = "PrefixAffinity"
    ROUND_ROBIN = "RoundRobin"


def resolve_strategy(name: str, *, prefix_caching: bool) -> Strategy:
    """Auto keeps conversations on their replica where replicas keep prefixes, and else only spreads."""
    if name != "Auto":
        return Strategy(name)
    return Strategy.PREFIX_AFFINITY if prefix_caching else Strategy.LEAST_PRESSURE


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One server process that may take requests."""

    url: str
    """Base address, ``http://10.0.0.7:8000``, without a trailing slash."""
    pod: str
    """The pod's name (the child's in local mode); what consistent hashing hashes."""
    ready: bool
    terminating: bool = False
    revision: str = ""
    admitted: bool = True
    """Its revision gets new requests; one that does not still answers for the responses that it stored."""

    @property
    def is_routable(self) -> bool:
        return self.ready and self.admitted and not self.terminating


class Audit(Enum):
    """What the audit log has of each request for a model."""

    NONE = "None"
    METADATA = "Metadata"
    FULL = "Full"
    """What was asked too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may use a model, how much, and what is written down of it."""

    keys_from: tuple[str, ...] = ()
    """Names of Secrets in the model's namespace; each of their entries is a key. Empty: open to all."""
    limits: Limits = NO_LIMITS
    """Tokens that each key may use."""
    audit: Audit = Audit.METADATA


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One ModelDeployment as the gateway sees it."""

    key: str
    """``NAMESPACE/NAME``."""
    served_names: tuple[str, ...]
    """Names that clients may put into ``model``, the first one being what the server calls itself."""
    created_s: float = 0.0
    """Unix seconds of creation; the older resource keeps a contested name."""
    uid: str = ""
    replicas: tuple[Replica, ...] = ()
    strategy: Strategy = Strategy.PREFIX_AFFINITY
    access: Access = Access()
    service_url: str = ""
    """Base address of the model's own Service, which knows more paths than the gateway."""
    max_held: int = 256
    hold_timeout_s: float = 600.0
    is_scaled_to_zero: bool = False
    """``spec.replicas`` is 0: no replica comes by itself."""
    can_wake: bool = False
    """The gateway may scale it from 0 to 1: ``spec.scaling`` is set and the resource is not suspended."""
    resource_version: str = ""
    """Of one that can be woken now; a wake is void where somebody else has written since."""

    @property
    def shown_name(self) -> str:
        return self.served_names[0] if self.served_names else self.key

    @property
    def key_secrets(self) -> tuple[str, ...]:
        """``NAMESPACE/NAME`` of each Secret with keys."""
        namespace = self.key.partition("/")[0]
        return tuple(f"{namespace}/{name}" for name in self.access.keys_from)

    def name_at_server(self, asked: str) -> str:
        """What a request's ``model`` becomes: ``NAMESPACE/NAME`` is the gateway's word, its servers do not know it."""
        is_alias = asked == self.key and asked not in self.served_names
        return self.served_names[0] if is_alias and self.served_names else asked

    def prefix_name(self, asked: str) -> str:
        """Equal for all names behind which one prefix is cached once."""
        return self.key if asked == self.key or asked in self.served_names else asked

    @property
    def needs_wake(self) -> bool:
        return self.is_scaled_to_zero and self.can_wake

    @property
    def is_switched_off(self) -> bool:
        """Nobody but a person can bring a replica back, so that holding a request would be in vain."""
        return self.is_scaled_to_zero and not self.can_wake and not self.replicas


@dataclass(frozen=True)
class RoutingTable:
    """All models by key; the names are derived once per table."""

    models: Mapping[str, Model] = field(default_factory=lambda: MappingProxyType({}))
    is_complete: bool = True
    """False until the source has listed everything once; an unknown model is not a 404 before that."""

    @cached_property
    def owners(self) -> Mapping[str, str]:
        """Served name → key of the model that owns it."""
        owners: dict[str, str] = {}
        for model in sorted(self.models.values(), key=lambda model: (model.created_s, model.uid, model.key)):
            for name in model.served_names:
                owners.setdefault(name, model.key)
        return MappingProxyType(owners)

    @cached_property
    def listed(self) -> Mapping[str, Model]:
        """What ``/v1/models`` shows: every owned name, and ``NAMESPACE/NAME`` of a model that lost all of its names."""
        listed = {name: self.models[key] for name, key in self.owners.items()}
        with_names = set(self.owners.values())
        listed.update({key: model for key, model in self.models.items() if key not in with_names})
        return MappingProxyType(dict(sorted(listed.items())))

    @cached_property
    def key_secrets(self) -> frozenset[str]:
        return frozenset(secret for model in self.models.values() for secret in model.key_secrets)

    @cached_property
    def has_open_models(self) -> bool:
        return any(not model.access.keys_from for model in self.models.values())

    @cached_property
    def _trigrams(self) -> Mapping[str, frozenset[str]]:
        return {name: _trigrams_of(name) for name in self.listed}

    def resolve(self, name: str) -> Model | None:
        return self.models.get(self.owners.get(name, name))

    def explain_unknown(self, name: str, may_see: Callable[[Model], bool] = lambda _: True) -> str:
        """The sentence of a 404: what is close, else what there is, of what the asker may see."""
        shown = name if len(name) <= 100 else name[:100] + "…"
        known = [each for each, model in self.listed.items() if may_see(model)]
        if not known:
            return f"The model '{shown}' does not exist: this gateway has no models {'yet' if not self.models else 'for you'}."
        alike = heapq.nlargest(MAX_COMPARED, known, key=_likeness_to(name[:100], self._trigrams))
        close = difflib.get_close_matches(name[:100], alike, n=MAX_SUGGESTIONS, cutoff=0.5)
        if close:
            return f"The model '{shown}' does not exist. Did you mean {_quoted(close)}?"
        more = f" and {len(known) - MAX_KNOWN_SHOWN} more (GET /v1/models)" if len(known) > MAX_KNOWN_SHOWN else ""
        return f"The model '{shown}' does not exist. Known models: {_quoted(known[:MAX_KNOWN_SHOWN])}{more}."


def table_of(models: Iterable[Model], *, is_complete: bool = True) -> RoutingTable:
    return RoutingTable(MappingProxyType({model.key: model for model in models}), is_complete)


def _likeness_to(asked: str, trigrams: Mapping[str, frozenset[str]]) -> Callable[[str], int]:
    """How much of a name is in another, as cheaply as thousands of names need it."""
    wanted = _trigrams_of(asked)
    return lambda name: len(wanted & trigrams[name])


def _trigrams_of(name: str) -> frozenset[str]:
    lower = f" {name.lower()} "
    return frozenset(lower[at : at + 3] for at in range(len(lower) - 2))


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)

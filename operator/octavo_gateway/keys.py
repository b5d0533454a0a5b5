"""Who may use a model: API keys from Secrets, kept only as digests.

Pure. Nothing compares a key with another: a token is digested once, under a secret that this process made for itself, and
its digest looked up. The time of that tells of the digest, which nobody can foresee, and nothing of a key or their number. An entry of a Secret is one key; its name is the key's name.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from .endpoints import Model, RoutingTable
from .errors import Forbidden, Unauthorized, Unavailable

_NO_HEADER = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
"""What no header of HTTP can hold, a line end above all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One client's key, as it is known by name."""

    secret: str
    """``NAMESPACE/NAME``."""
    name: str

    def __str__(self) -> str:
        return f"{self.secret}/{self.name}"


class Keyring:
    """Owns the digests of all keys by Secret; ``keep_only`` bounds it to the Secrets that models name.

    The API server bounds a Secret to about a MiB.
    """

    def __init__(self, pepper: bytes) -> None:
        self._pepper = pepper
        self._digests: dict[str, dict[bytes, Key]] = {}
        self._seen: dict[str, int] = {}
        """A hash of each Secret's entries: those that did not change are not digested again."""

    def put(self, secret: str, entries: Mapping[str, bytes]) -> tuple[str, ...]:
        """Take in a Secret's entries; white space around a key, such as a file's last line end, is not part of it.

        Returns the names of those that can be no key, empty or with a line end inside; none where nothing changed.
        """
        seen = hash(frozenset(entries.items()))
        if secret in self._digests and self._seen.get(secret) == seen:
            return ()
        digests: dict[bytes, Key] = {}
        useless = []
        for name in sorted(entries):
            value = entries[name].strip()
            if value and not _NO_HEADER.search(value):
                digests.setdefault(self._digest(value), Key(secret=secret, name=name))
            else:
                useless.append(name)
        self._digests[secret], self._seen[secret] = digests, seen
        return tuple(useless)

    def forget(self, secret: str) -> None:
        """The Secret cannot be read: none of its keys is honoured any more."""
        self._digests.pop(secret, None)
        self._seen.pop(secret, None)

    def keep_only(self, secrets: Iterable[str]) -> None:
        wanted = frozenset(secrets)
        self._digests = {name: digests for name, digests in self._digests.items() if name in wanted}
        self._seen = {name: seen for name, seen in self._seen.items() if name in wanted}

    def is_read(self, secret: str) -> bool:
        return secret in self._digests

    def find(self, token: str, secrets: Iterable[str]) -> Key | None:
        digest = self._digest(token.encode("utf-8", "surrogateescape"))
        # All of them, wherever it is found: the time is of their number alone.
        found = [self._digests.get(secret, {}).get(digest) for secret in secrets]
        return next(filter(None, found), None)

    def secrets_with(self, token: str) -> frozenset[str]:
        digest = self._digest(token.encode("utf-8", "surrogateescape"))
        return frozenset(secret for secret, digests in self._digests.items() if digest in digests)

    def knows(self, token: str) -> bool:
        """Whether it is a key for any model."""
        return self.find(token, self._digests) is not None

    def _digest(self, value: bytes) -> bytes:
        return hmac.digest(self._pepper, value, hashlib.sha256)


class Gate:
    """Decides who gets to a model; a model without ``keysFrom`` is open to all."""

    def __init__(self, keyring: Keyring) -> None:
        self._keyring = keyring

    def check(self, model: Model, authorization: str) -> Key | None:
        """The key that lets the request in, None for an open model; raises Unauthorized, Forbidden or Unavailable."""
        if not model.key_secrets:
            return None
        token = bearer_token(authorization)
        key = self._keyring.find(token, model.key_secrets) if token else None
        if key is not None:
            return key
        if token and self._keyring.knows(token):
            raise Forbidden(f"Your key may not use the model '{model.shown_name}'.")
        if token and not all(map(self._keyring.is_read, model.key_secrets)):
            raise Unavailable(
                f"The keys of the model '{model.shown_name}' cannot be read at present; its ModelDeployment says why.",
                code="keys_unreadable",
            )
        raise _unauthorized(token)

    def check_any(self, table: RoutingTable, authorization: str) -> None:
        """Refuse, before its body is read, a request that no model would take."""
        if not table.is_complete or not table.models or table.has_open_models:
            return
        token = bearer_token(authorization)
        is_certain = all(map(self._keyring.is_read, table.key_secrets))
        if not token or (is_certain and not self._keyring.knows(token)):
            raise _unauthorized(token)

    def viewer(self, authorization: str) -> Callable[[Model], bool]:
        """Whether a model is open to whoever sent this; the key is looked up once, however many models there are."""
        token = bearer_token(authorization)
        secrets = self._keyring.secrets_with(token) if token else frozenset()
        return lambda model: not model.access.keys_from or not secrets.isdisjoint(model.key_secrets)


def bearer_token(authorization: str) -> str:
    """The token of an ``Authorization`` header; empty where it has none."""
    scheme, _, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _unauthorized(token: str) -> Unauthorized:
    if not token:
        return Unauthorized("This needs an API key; send the header 'Authorization: Bearer KEY'.")
    return Unauthorized("The API key is not valid here.")

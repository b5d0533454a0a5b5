"""Who asks and whether they may: the front proxy's word or a token, then a SubjectAccessReview for each request.

Answers of the API server are remembered for less than ten seconds, so that a right that was taken away is gone within
twelve. A failure to ask is an error, never a yes and never remembered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from multidict import MultiMapping

from octavo_operator.metrics_adapter.errors import ForbiddenError, UnauthorizedError, UnavailableError
from octavo_operator.metrics_adapter.expiring_cache import ExpiringCache
from octavo_operator.metrics_adapter.front_proxy import FrontProxyConfig
from octavo_operator.metrics_adapter.kube_access import (
    AccessDecision,
    AccessReviewer,
    KubeAccessError,
    PathAccess,
    ResourceAccess,
    TokenReviewer,
    UserInfo,
)

AUTHENTICATED_GROUP = "system:authenticated"
ALLOWED_FOR_S = 8.0
DENIED_FOR_S = 2.0
"""Short, because somebody who just made the missing RoleBinding is waiting."""
TOKEN_FOR_S = 8.0
MAX_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """What a connection and its request headers say about who asks."""

    headers: MultiMapping[str]
    certificate_der: bytes | None
    """The client certificate that TLS verified; None when there was none."""


class Authenticator:
    """Owns the newest front-proxy configuration and what TokenReview answered lately."""

    def __init__(self, tokens: TokenReviewer, *, now: Callable[[], float]) -> None:
        self._tokens = tokens
        self._now = now
        self._remembered: ExpiringCache[bytes, UserInfo] = ExpiringCache(MAX_REMEMBERED)
        self.front_proxy: FrontProxyConfig | None = None
        """Set by whoever reads the ConfigMap; None believes no headers at all."""

    async def authenticate(self, caller: Caller) -> UserInfo:
        """The user, always with the group system:authenticated: 1.36's aggregator sends its own name without groups.

        Raises:
            UnauthorizedError: neither a trusted front proxy nor a valid bearer token.
            UnavailableError: the API server could not review the token.
        """
        user = self._from_front_proxy(caller) or await self._from_token(caller)
        if user is None:
            raise UnauthorizedError("Unauthorized")
        if AUTHENTICATED_GROUP in user.groups:
            return user
        return replace(user, groups=(*user.groups, AUTHENTICATED_GROUP))

    def _from_front_proxy(self, caller: Caller) -> UserInfo | None:
        config = self.front_proxy
        if config is None or caller.certificate_der is None or not config.trusts(caller.certificate_der, self._now()):
            return None
        return config.user(caller.headers)

    async def _from_token(self, caller: Caller) -> UserInfo | None:
        scheme, _, token = caller.headers.get("Authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return None
        key = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        user = self._remembered.get(key, self._now())
        if user is not None:
            return user
        try:
            user = await self._tokens.review_token(token)
        except KubeAccessError as error:
            raise UnavailableError(f"the token could not be reviewed: {error}") from error
        if user is not None:
            self._remembered.put(key, user, expires=self._now() + TOKEN_FOR_S)
        return user


class Authorizer:
    """Owns what SubjectAccessReview answered lately."""

    def __init__(self, reviewer: AccessReviewer, *, now: Callable[[], float]) -> None:
        self._reviewer = reviewer
        self._now = now
        self._remembered: ExpiringCache[tuple[object, ...], AccessDecision] = ExpiringCache(MAX_REMEMBERED)

    async def require(self, user: UserInfo, access: ResourceAccess | PathAccess) -> None:
        """Return when the user may.

        Raises:
            ForbiddenError: the API server says that it may not.
            UnavailableError: the API server could not be asked.
        """
        decision = await self._decide(user, access)
        if not decision.allowed:
            raise ForbiddenError(_refusal(user, access, decision.reason))

    async def _decide(self, user: UserInfo, access: ResourceAccess | PathAccess) -> AccessDecision:
        key = (user.name, user.uid, user.groups, tuple(sorted(user.extra.items())), access)
        decision = self._remembered.get(key, self._now())
        if decision is not None:
            return decision
        asked_at = self._now()
        try:
            decision = await self._reviewer.review_access(user, access)
        except KubeAccessError as error:
            raise UnavailableError(f"the access could not be reviewed: {error}") from error
        # Counted from before the question: the right may have gone while the answer was on its way.
        expires = asked_at + (ALLOWED_FOR_S if decision.allowed else DENIED_FOR_S)
        self._remembered.put(key, decision, expires=expires)
        return decision


def _refusal(user: UserInfo, access: ResourceAccess | PathAccess, reason: str) -> str:
    """The sentence that kubectl prints for any refusal."""
    because = f": {reason}" if reason else ""
    if isinstance(access, PathAccess):
        return f'forbidden: User "{user.name}" cannot {access.verb} path "{access.path}"{because}'
    resource = f"{access.resource}/{access.subresource}" if access.subresource else access.resource
    where = f' in the namespace "{access.namespace}"' if access.namespace else " at the cluster scope"
    return (
        f'{access.resource}.{access.group} "{access.name}" is forbidden: User "{user.name}" cannot {access.verb} '
        f'resource "{resource}" in API group "{access.group}"{where}{because}'
    )

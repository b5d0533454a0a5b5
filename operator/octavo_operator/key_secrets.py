"""Whether the Secrets of `access.keysFrom` can be read, and the commands that cure it where they cannot.

Asks for their metadata alone: the keys themselves are the gateway's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from octavo_operator.api.types import JsonObject
from octavo_operator.errors import ClusterError

FRESH_S = 10.0
"""An answer stands for so long: many models may name one Secret."""


class ReadableCheck(Protocol):
    async def is_readable(self, path: str) -> bool:
        """False where there is no such object; raises ClusterError where it may not be read."""
        ...


class KeySecrets:
    """Owns the answers of the last `FRESH_S` seconds."""

    def __init__(self, kube: ReadableCheck, *, readers: Sequence[str], clock: Callable[[], float]) -> None:
        """`readers` are the service accounts of gateway and operator, NAMESPACE:NAME; `clock` in seconds."""
        self._kube = kube
        self._readers = tuple(readers)
        self._clock = clock
        self._answers: dict[tuple[str, str], tuple[float, str]] = {}

    async def trouble(self, resource: JsonObject) -> str:
        """One sentence on the first Secret that cannot be read; empty when all can."""
        namespace = str(resource["metadata"]["namespace"])
        found = await asyncio.gather(*(self._ask(namespace, name) for name in key_secrets(resource)))
        return next((sentence for sentence in found if sentence), "")

    async def _ask(self, namespace: str, name: str) -> str:
        now = self._clock()
        self._answers = {key: answer for key, answer in self._answers.items() if now - answer[0] < FRESH_S}
        known = self._answers.get((namespace, name))
        if known is not None:
            return known[1]
        sentence = await self._explain(namespace, name)
        self._answers[namespace, name] = now, sentence
        return sentence

    async def _explain(self, namespace: str, name: str) -> str:
        which = f"the Secret {namespace}/{name} of access.keysFrom"
        try:
            if await self._kube.is_readable(f"/api/v1/namespaces/{namespace}/secrets/{name}"):
                return ""
        except ClusterError as error:
            if error.status == 403:
                return f"{which} may not be read, so its keys are refused; {self._cure(namespace, name)}"
            # An API server that is away says nothing of the Secret, and the gateway goes on with what it read.
            return ""
        return f"{which} does not exist, so its keys are refused; create it with one entry a key"

    def _cure(self, namespace: str, name: str) -> str:
        accounts = " ".join(f"--serviceaccount={reader}" for reader in self._readers)
        if not accounts:
            return "give gateway and operator the right to get it"
        role = f"octavo-keys-{name}"
        return (
            f"run: kubectl create role {role} -n {namespace} --verb=get --resource=secrets --resource-name={name} && "
            f"kubectl create rolebinding {role} -n {namespace} --role={role} {accounts}"
        )


def key_secrets(resource: JsonObject) -> tuple[str, ...]:
    """Names of the Secrets, read from the raw object, because the gateway reads it raw too."""
    sources = (resource.get("spec", {}).get("access") or {}).get("keysFrom") or ()
    return tuple(str(source["secretRef"]["name"]) for source in sources)

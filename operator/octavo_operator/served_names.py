"""Who holds a served name: the oldest ModelDeployment (creationTimestamp, then uid) of those that claim it."""

from __future__ import annotations

from collections.abc import Iterable

from octavo_operator.api.types import JsonObject
from octavo_operator.observed import Rival


def claimed_names(resource: JsonObject) -> tuple[str, ...]:
    """Read from the raw object, because an invalid resource claims its names too."""
    names = resource.get("spec", {}).get("servedNames")
    return tuple(names) if names else (str(resource["metadata"]["name"]),)


def find_rivals(resource: JsonObject, claimants: Iterable[JsonObject]) -> tuple[Rival, ...]:
    """For each of our names that an older resource claims, that resource."""
    elders = sorted((other for other in claimants if _age(other) < _age(resource)), key=_age)
    rivals = []
    for name in claimed_names(resource):
        holder = next((other for other in elders if name in claimed_names(other)), None)
        if holder is not None:
            metadata = holder["metadata"]
            rivals.append(Rival(served_name=name, namespace=metadata["namespace"], name=metadata["name"]))
    return tuple(rivals)


def _age(resource: JsonObject) -> tuple[str, str]:
    metadata = resource["metadata"]
    return str(metadata.get("creationTimestamp", "")), str(metadata.get("uid", ""))

"""The last seen state of every object that matters, by owner. Pure bookkeeping: watches, lists and our own writes feed it.

A list replaces a whole kind, because a watch that had to begin anew never tells which objects vanished meanwhile.
Watches, lists and answers overtake each other: older versions never overwrite newer ones, a list says nothing about
what is newer than itself, and what was deleted does not come back by an answer that was late.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from octavo_operator.api.types import KIND, JsonObject
from octavo_operator.desired import names
from octavo_operator.served_names import claimed_names

ResourceKey = tuple[str, str]
"""(namespace, name) of a ModelDeployment."""
Keys = frozenset[ResourceKey]
"""The ModelDeployments that an update touches: those to look at again."""
MAX_REMEMBERED_REMOVALS = 4096
"""More than can be deleted while one request is under way; each costs two hundred bytes."""


class ObjectCache:
    """Owns the copies; hands them out uncopied, so nobody may change them."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str, str], JsonObject] = {}
        self._by_owner: dict[ResourceKey, set[tuple[str, str, str]]] = {}
        self._by_served_name: dict[str, set[ResourceKey]] = {}
        self._removed: OrderedDict[str, int] = OrderedDict()
        """The version at which an object went, by its uid."""

    def put(self, obj: JsonObject) -> Keys:
        """Takes in one object as the API server gave it (kind included)."""
        at = _address(obj)
        known = self._objects.get(at)
        if known is not None and _version(known) >= _version(obj):
            return frozenset()
        if self._removed.get(str(obj["metadata"].get("uid")), -1) >= _version(obj):
            return frozenset()
        stripped = {**obj, "metadata": {key: v for key, v in obj["metadata"].items() if key != "managedFields"}}
        touched = self._touched(known) | self._touched(stripped)
        self._forget(at)
        self._objects[at] = stripped
        self._by_owner.setdefault(_owner_key(stripped), set()).add(at)
        if at[0] == KIND:
            for name in claimed_names(stripped):
                self._by_served_name.setdefault(name, set()).add(at[1:])
        return touched | self._touched(stripped)

    def remove(self, obj: JsonObject) -> Keys:
        """An object was deleted; nothing happens where a newer one of that name is known."""
        at = _address(obj)
        known = self._objects.get(at)
        if known is None or known["metadata"].get("uid") != obj["metadata"].get("uid"):
            return frozenset()
        touched = self._touched(known)
        self._forget(at)
        self._remember_removal(obj)
        return touched

    def replace_kind(self, kind: str, namespace: str, objects: Iterable[JsonObject], *, version: int) -> Keys:
        """Takes in a whole list as of `version`; what it does not have is gone. An empty namespace means all."""
        listed = {_address(obj): obj for obj in objects}
        keys: set[ResourceKey] = set()
        for at in [at for at in self._objects if at[0] == kind and namespace in ("", at[1]) and at not in listed]:
            if _version(self._objects[at]) <= version:
                keys |= self.remove(self._objects[at])
        for obj in listed.values():
            keys |= self.put(obj)
        return frozenset(keys)

    def resource(self, key: ResourceKey) -> JsonObject | None:
        return self._objects.get((KIND, *key))

    def find(self, kind: str, namespace: str, name: str) -> JsonObject | None:
        return self._objects.get((kind, namespace, name))

    def resources(self) -> Iterator[JsonObject]:
        return (obj for (kind, _, _), obj in list(self._objects.items()) if kind == KIND)

    def owned(self, key: ResourceKey) -> list[JsonObject]:
        """Everything that bears the resource's label, the resource itself left out."""
        return [self._objects[at] for at in sorted(self._by_owner.get(key, ())) if at[0] != KIND]

    def pods(self) -> list[JsonObject]:
        """Those of servers; the ones that only fetch a model are left out."""
        pods = (obj for (kind, _, _), obj in self._objects.items() if kind == "Pod")
        return [pod for pod in pods if names.DOWNLOAD_LABEL not in pod["metadata"].get("labels", {})]

    def claimants(self, served_names: Iterable[str]) -> list[JsonObject]:
        """ModelDeployments that claim any of these names."""
        keys = {key for name in served_names for key in self._by_served_name.get(name, ())}
        return [self._objects[(KIND, *key)] for key in sorted(keys)]

    def _touched(self, obj: JsonObject | None) -> Keys:
        """The resource that an object belongs to; for a resource itself those too that claim its served names."""
        if obj is None:
            return frozenset()
        others: set[ResourceKey] = set()
        if obj["kind"] == KIND:
            others = {key for name in claimed_names(obj) for key in self._by_served_name.get(name, ())}
        return frozenset({_owner_key(obj), *others})

    def _remember_removal(self, obj: JsonObject) -> None:
        uid = str(obj["metadata"].get("uid"))
        self._removed[uid] = _version(obj)
        self._removed.move_to_end(uid)
        while len(self._removed) > MAX_REMEMBERED_REMOVALS:
            self._removed.popitem(last=False)

    def _forget(self, at: tuple[str, str, str]) -> None:
        known = self._objects.pop(at, None)
        if known is None:
            return
        _discard(self._by_owner, _owner_key(known), at)
        if at[0] == KIND:
            for name in claimed_names(known):
                _discard(self._by_served_name, name, at[1:])


def _address(obj: JsonObject) -> tuple[str, str, str]:
    metadata = obj["metadata"]
    return str(obj["kind"]), str(metadata["namespace"]), str(metadata["name"])


def _owner_key(obj: JsonObject) -> ResourceKey:
    metadata = obj["metadata"]
    labels = metadata.get("labels", {})
    owner = labels.get(names.NAME_LABEL) or labels.get(names.DOWNLOAD_LABEL, "")
    name = metadata["name"] if obj["kind"] == KIND else owner
    return str(metadata["namespace"]), str(name)


def _version(obj: JsonObject) -> int:
    """Resource versions are numbers that grow; an object without one counts as new."""
    version: Any = obj["metadata"].get("resourceVersion", "")
    return int(version) if str(version).isdigit() else 2**63


def _discard(index: dict[Any, set[Any]], key: Any, value: Any) -> None:
    values = index.get(key, set())
    values.discard(value)
    if not values:
        index.pop(key, None)

"""Where a stored response and its items lie: ids end in a routing tag, digests of the deployment and of the pod.

Pure. A digest tells a reader nothing of the cluster; who has the routing table finds both again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from .endpoints import Model, Replica, RoutingTable
from .errors import BadRequest, ResponseNotFound

DIGEST_BYTES = 5
RESPONSE = "resp_"
"""Begins the id of a response; any other is of an item."""
_TAGGED = re.compile(r"[A-Za-z0-9]{1,16}_[A-Za-z0-9]{1,64}_(?P<deployment>[0-9a-f]{10})(?P<pod>[0-9a-f]{10})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    model: Model
    replica: Replica


def digest(name: str) -> str:
    """``NAMESPACE/NAME`` or a pod's name as it stands in an id."""
    return hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).hexdigest()


def find_place(stored_id: str, table: RoutingTable) -> Place:
    """The replica that keeps a response or an item; raises ResponseNotFound, which says what is gone."""
    what = f"No {'response' if stored_id.startswith(RESPONSE) else 'item'} '{_shown(stored_id)}'"
    tag = _TAGGED.fullmatch(stored_id)
    if tag is None:
        raise ResponseNotFound(f"{what}: its id does not end in the routing tag that ours end in.")
    model = next((model for key, model in table.models.items() if digest(key) == tag["deployment"]), None)
    if model is None:
        raise ResponseNotFound(f"{what}: the model that gave it is no longer deployed.")
    replica = next((replica for replica in model.replicas if digest(replica.pod) == tag["pod"]), None)
    if replica is None:
        raise ResponseNotFound(
            f"{what}: the replica of '{model.shown_name}' that stored it is gone, and its stored "
            "responses with it; send the conversation again as input."
        )
    return Place(model=model, replica=replica)


def one_place(stored_ids: Iterable[str]) -> str | None:
    """The first of the ids that a request refers to; raises BadRequest where they do not all lie on one replica."""
    first: str | None = None
    for stored_id in stored_ids:
        if first is None:
            first = stored_id
        elif _tag(stored_id) != _tag(first):
            raise BadRequest(
                f"The request refers to '{_shown(first)}' and '{_shown(stored_id)}', which do not lie on one replica; "
                "send the items themselves as input.",
                param="input",
                code="items_apart",
            )
    return first


def _tag(stored_id: str) -> str:
    """Ids without a tag lie nowhere, so that each of them is apart from the others."""
    tag = _TAGGED.fullmatch(stored_id)
    return tag["deployment"] + tag["pod"] if tag is not None else stored_id


def _shown(stored_id: str) -> str:
    return stored_id if len(stored_id) <= 100 else stored_id[:100] + "…"

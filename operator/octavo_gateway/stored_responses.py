"""Where a stored response lies: ids end in a routing tag, digests of the deployment and of the pod that keeps it.

Pure. A digest tells a reader nothing of the cluster; who has the routing table finds both again.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from .endpoints import Model, Replica, RoutingTable
from .errors import ResponseNotFound

DIGEST_BYTES = 5
_TAGGED = re.compile(r"[A-Za-z0-9]{1,16}_[A-Za-z0-9]{1,64}_(?P<deployment>[0-9a-f]{10})(?P<pod>[0-9a-f]{10})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    model: Model
    replica: Replica


def digest(name: str) -> str:
    """``NAMESPACE/NAME`` or a pod's name as it stands in an id."""
    return hashlib.blake2b(name.encode(), digest_size=DIGEST_BYTES).hexdigest()


def find_place(response_id: str, table: RoutingTable) -> Place:
    """The replica that keeps a response; raises ResponseNotFound, which says what is gone."""
    shown = response_id if len(response_id) <= 100 else response_id[:100] + "…"
    tag = _TAGGED.fullmatch(response_id)
    if tag is None:
        raise ResponseNotFound(f"No response '{shown}': its id does not end in the routing tag that ours end in.")
    model = next((model for key, model in table.models.items() if digest(key) == tag["deployment"]), None)
    if model is None:
        raise ResponseNotFound(f"No response '{shown}': the model that gave it is no longer deployed.")
    replica = next((replica for replica in model.replicas if digest(replica.pod) == tag["pod"]), None)
    if replica is None:
        raise ResponseNotFound(
            f"No response '{shown}': the replica of '{model.shown_name}' that stored it is gone, and its stored "
            "responses with it; send the conversation again as input."
        )
    return Place(model=model, replica=replica)

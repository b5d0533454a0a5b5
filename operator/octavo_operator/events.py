"""Events for `kubectl describe`: one when Ready turns, or when it is false for another reason that needs a person.

Passing stages of a start (loading, warming up) are in the status, not in events. They are of the core group, because
`kubectl describe` sorts by `lastTimestamp`, which events.k8s.io does not let a writer set.
"""

from __future__ import annotations

import datetime
from typing import Any

from octavo_operator.api import reasons
from octavo_operator.api.types import API_VERSION, KIND, JsonObject
from octavo_operator.finding import SEVERITY
from octavo_operator.kube.kinds import EVENT

CONTROLLER = "octavo.dev/operator"
NOTEWORTHY = frozenset(SEVERITY[: SEVERITY.index(reasons.DOWNLOADING)]) | {
    reasons.SERVED_NAME_CONFLICT,
    reasons.ROLLOUT_GATE_FAILED,
    reasons.MAX_HOLD_EXCEEDED,
    reasons.ALL_READY,
    reasons.SCALED_TO_ZERO,
}
MAX_NOTE = 1024


def make_event(
    resource: JsonObject, new_status: JsonObject, *, identity: str, now: datetime.datetime
) -> JsonObject | None:
    """The event of this change of status, None where it says nothing new."""
    old, new = _ready(resource.get("status") or {}), _ready(new_status)
    if (old.get("status"), old.get("reason")) == (new.get("status"), new.get("reason")):
        return None
    if new.get("reason") not in NOTEWORTHY:
        return None
    if new["reason"] == reasons.PROBE_FAILED and old.get("status") != "True":
        # At the end of each start the server is ready a moment before the kubelet asks it.
        return None
    metadata = resource["metadata"]
    at = now.astimezone(datetime.UTC).replace(tzinfo=None)
    second = f"{at.isoformat(timespec='seconds')}Z"
    return {
        "apiVersion": EVENT.api_version,
        "kind": EVENT.name,
        "metadata": {"namespace": metadata["namespace"], "generateName": f"{metadata['name']}-"},
        "eventTime": f"{at.isoformat(timespec='microseconds')}Z",
        "firstTimestamp": second,
        "lastTimestamp": second,
        "count": 1,
        "type": "Normal" if new["status"] == "True" else "Warning",
        "reason": new["reason"],
        "message": new["message"][:MAX_NOTE],
        "action": "Reconcile",
        "reportingComponent": CONTROLLER,
        "reportingInstance": identity,
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
        },
    }


def _ready(status: JsonObject) -> dict[str, Any]:
    return next((condition for condition in status.get("conditions") or () if condition["type"] == "Ready"), {})

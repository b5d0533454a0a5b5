"""What is known of a request by now, however far it came; counted, audited and traced when it has ended."""

from __future__ import annotations

from dataclasses import dataclass

from .endpoints import Audit
from .keys import Key
from .metrics import UNKNOWN_MODEL
from .quotas import Reservation
from .tracing import Trace
from .usage import Usage


@dataclass(slots=True, kw_only=True)
class Record:
    request_id: str
    trace: Trace
    method: str
    path: str
    client: str
    """Its address, as the connection tells it."""
    began: float
    """Seconds of a monotonic clock."""
    began_unix_s: float
    model_key: str = UNKNOWN_MODEL
    asked_model: str = ""
    """What the client called it."""
    is_stream: bool = False
    key: Key | None = None
    """Whose key let it in; None where the model is open."""
    audit: Audit = Audit.NONE
    """What its model wants to be written down."""
    body: bytes = b""
    """Only where the audit shall have it."""
    reservation: Reservation | None = None
    """Of the key's tokens; None where there is no limit."""
    usage: Usage | None = None
    """What the answer says that it took."""
    pod: str = ""
    """The replica that was asked last."""
    attempts: int = 0
    first_byte: float | None = None
    """When the answer's head came, on the clock of ``began``."""
    held_s: float = 0.0

"""Everything a user, file or machine can do wrong, as one tree.

OctavoError
├── InvalidRequestError      400, names the field
├── QueueFullError           429
├── EngineDeadError          503
│   └── EngineStuckError     its thread may still be inside a kernel
├── StoreError               what is kept under --data-dir
│   ├── NotStoredError       404
│   ├── ConflictError        409, its state does not allow it
│   ├── StoreFullError       400, a bound of count or bytes
│   └── DiskError            507
└── StartupError             the process ends; `reason` is a condition reason of the control plane
    └── ConfigError          a flag, variable, file entry or argument that cannot be used
"""

from __future__ import annotations


class OctavoError(Exception):
    """Base of all errors that a message alone explains; the message gives both numbers and the remedy."""


class InvalidRequestError(OctavoError):
    """A request that can never succeed as it is."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class QueueFullError(OctavoError):
    """More requests wait than `--max-num-queued-reqs` allows."""


class EngineDeadError(OctavoError):
    """The engine ended or is ending; nothing more is accepted."""


class EngineStuckError(EngineDeadError):
    """The engine was given up while it hung."""


class StoreError(OctavoError):
    """A file or batch under `--data-dir` cannot be had or kept."""


class NotStoredError(StoreError):
    """There is none of that id."""


class ConflictError(StoreError):
    """It is there, but in a state that does not allow this."""


class StoreFullError(StoreError):
    """A bound that a flag sets is reached."""


class DiskError(StoreError):
    """The disk is full or broken."""


class StartupError(OctavoError):
    """The server cannot start; `reason` is one of the control plane's reasons (ModelNotFound, KVCacheTooSmall, …)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(StartupError):
    """A setting that is unknown, not supported yet, or out of range."""

    def __init__(self, message: str) -> None:
        super().__init__("SpecInvalid", message)

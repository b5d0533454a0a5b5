"""Errors of the operator.

OctavoOperatorError
├── SpecInvalidError     the resource asks for something that cannot be; cured by editing it
├── NameTakenError       an object of that name exists and is not ours; cured by renaming or removing one of them
├── NameInTransitError   an object of that name goes with a deleted ModelDeployment; cured by waiting
└── ClusterError         the API server refused or did not answer; cured by trying again, or by rights
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo_operator.api.reader import Problem


class OctavoOperatorError(Exception):
    """Root of what the operator raises for things that users, files or the cluster cause."""


class SpecInvalidError(OctavoOperatorError):
    """The manifest has problems; all of them are listed."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = problems


class NameTakenError(OctavoOperatorError):
    """An object that we need exists already and belongs to somebody else."""


class NameInTransitError(OctavoOperatorError):
    """An object that we need still belongs to a deleted ModelDeployment of the same name."""


class ClusterError(OctavoOperatorError):
    """A call to the API server failed; `status` is the HTTP status, 0 where no answer came."""

    def __init__(self, status: int, reason: str, message: str, *, retry_after_s: float = 0.0) -> None:
        """`retry_after_s` is what the API server asks to wait, in seconds."""
        super().__init__(f"{status} {reason}: {message}" if status else message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def is_passing(self) -> bool:
        """It says nothing of the resource: decided on what is outdated, or asked of a server that is busy."""
        return self.status in (409, 429)

"""The one exception of this package."""

from __future__ import annotations


class KernelError(ValueError):
    """A tensor or parameter that a kernel cannot take; the message names it, what was given and what is needed."""

"""What can go wrong with the cluster, in words for the person at the terminal.

ClusterError
├── UnavailableError   this machine cannot run a cluster; e2e counts as skipped
└── CommandError       a program that we called failed
"""

from __future__ import annotations


class ClusterError(Exception):
    """The cluster could not do what was asked."""


class UnavailableError(ClusterError):
    """This machine lacks something that a cluster needs; the message names each thing."""


class CommandError(ClusterError):
    """A program exited with a status other than 0; the message holds the end of what it printed."""

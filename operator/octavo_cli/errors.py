"""What a person at the terminal can do wrong or meet; one line each, without a traceback."""

from __future__ import annotations


class CliError(Exception):
    """Ends the command with this line on standard error and the exit status 1."""

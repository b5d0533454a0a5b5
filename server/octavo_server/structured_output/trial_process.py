"""The process that tries grammars, seen from the one that serves clients. It starts with the first grammar.

It ends with this process, however we end: a closed socket ends it.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import weakref
from typing import TYPE_CHECKING

from octavo_server.errors import InvalidRequestError, OctavoError
from octavo_server.structured_output.params import STRUCTURED_OUTPUTS
from octavo_server.structured_output.trial import Verdict, receive, send

if TYPE_CHECKING:
    from octavo_server.structured_output.params import StructuredOutputsParams
    from octavo_server.structured_output.tokens import GrammarTokens

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 60.0
"""Far beyond what a trial may take, for machines that are busy with something else."""
END_TIMEOUT_S = 5.0


class TrialProcess:
    """Owns the child and this end of the socket. Safe to use from several threads: one grammar is tried at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._end: socket.socket | None = None
        self._finalizer: weakref.finalize[..., TrialProcess] | None = None

    def run(self, params: StructuredOutputsParams, tokens: GrammarTokens) -> str:
        """The text of the grammar, which compiles within its bounds.

        Raises:
            InvalidRequestError: it does not; says why.
            OctavoError: it could not be tried.
        """
        with self._lock:
            # One that is there may have died since, such as by a lack of memory that is none of its making.
            verdict = self._ask(params, tokens) if self._end is not None else None
            verdict = verdict or self._ask(params, tokens)
        if verdict is None:
            raise OctavoError("the grammar could not be tried; the server's log may hold the reason; try again")
        if verdict.text is None:
            raise InvalidRequestError(_as_sentence(verdict.reason), param=STRUCTURED_OUTPUTS)
        return verdict.text

    def close(self) -> None:
        """Ends the child; a later grammar starts another."""
        with self._lock:
            self._close()

    def _ask(self, params: StructuredOutputsParams, tokens: GrammarTokens) -> Verdict | None:
        """None where the child has ended, does not answer or cannot be started."""
        try:
            end = self._end if self._end is not None else self._start(tokens)
            send(end, params)
            verdict = receive(end, Verdict)
        except OSError:
            logger.exception("the process that tries grammars failed")
            verdict = None
        if verdict is None:
            self._close()
        return verdict

    def _start(self, tokens: GrammarTokens) -> socket.socket:
        ours, theirs = socket.socketpair()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "octavo_server.structured_output.trial"],
                stdin=theirs.fileno(),
                # So that it imports what we import, however we came to it.
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        ours.settimeout(ANSWER_TIMEOUT_S)
        self._end = ours
        self._finalizer = weakref.finalize(self, _end_child, self._child, ours)
        send(ours, tokens)
        return ours

    def _close(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._child = self._end = self._finalizer = None


def _end_child(child: subprocess.Popen[bytes], end: socket.socket) -> None:
    end.close()
    try:
        child.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _as_sentence(reason: str) -> str:
    return reason if reason.startswith(STRUCTURED_OUTPUTS) else f"{STRUCTURED_OUTPUTS} {reason}"

"""A process that tries grammars before anyone depends on them: `python -m octavo_server.structured_output.trial`.

Reading and compiling what a stranger wrote may take for ever or all memory, and cannot be interrupted from within. Here
each grammar gets a child of its own with a bound on both, and whatever happens to that child is an answer. Imports
neither torch nor a tokenizer; started by TrialProcess alone, over a socket that is its standard input.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import socket
import struct
import traceback
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from octavo_server.errors import InvalidRequestError
from octavo_server.structured_output.grammar import grammar_text
from octavo_server.structured_output.matching import allowed_ids, bounded, new_matcher, reason_of
from octavo_server.structured_output.params import StructuredOutputsParams
from octavo_server.structured_output.tokens import GrammarTokens, make_table, spell_bytewise

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

MAX_TRIAL_S = 1.0
"""Of processor time: a schema of 256 KiB that means no harm takes a fifth of it."""
MAX_TRIAL_BYTES = 2**28
TRIED_TOKENS = 16
"""What a grammar that is too large for its engine fails at shows itself in the first few tokens."""

_OUT_OF_MEMORY = 3
_HEAD = struct.Struct(">I")
Message = TypeVar("Message")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Either the grammar's text, or why there is none."""

    text: str | None = None
    reason: str = ""


def main() -> int:
    """Serves until the other end closes."""
    # Signals to the whole group, such as Ctrl-C's, are the parent's to answer.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=0) as end:
        tokens = receive(end, GrammarTokens)
        if tokens is None:
            return 0
        table = make_table(tokens, spell_bytewise(tokens.tokens))
        while (params := receive(end, StructuredOutputsParams)) is not None:
            send(end, try_apart(params, tokens, table))
    return 0


def try_apart(params: StructuredOutputsParams, tokens: GrammarTokens, table: LLTokenizer) -> Verdict:
    """Tries one grammar in a child that cannot take more than its share."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(writer, params, tokens, table)
    os.close(writer)
    with os.fdopen(reader, "rb") as answer:
        content = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return Verdict(reason=f"takes more than {MAX_TRIAL_S:g} s to compile; simplify it")
    # Rust's allocator aborts.
    if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == _OUT_OF_MEMORY:
        return Verdict(reason=f"takes more than {MAX_TRIAL_BYTES // 2**20} MiB to compile; simplify it")
    if not content:
        return Verdict(reason="cannot be read; the server's log holds the reason")
    verdict: Verdict = _msgpack().decode(content, type=Verdict)
    return verdict


def try_grammar(params: StructuredOutputsParams, tokens: GrammarTokens, table: LLTokenizer) -> Verdict:
    """Reads, compiles and begins to follow one grammar; what binds late by itself first, for else it is not reached."""
    bare = replace(params, after=None, opening=None, unless=None)
    if bare != params and (verdict := try_grammar(bare, tokens, table)).text is None:
        return verdict
    try:
        text = grammar_text(params, tokens.special_ids_by_text)
    except InvalidRequestError as error:
        return Verdict(reason=bounded(str(error)))
    matcher = new_matcher(table, text)
    _begin(matcher, frozenset(tokens.eos_token_ids))
    if matcher.is_error():
        return Verdict(reason=f"cannot be compiled: {reason_of(matcher)}")
    return Verdict(text=text)


def send(end: socket.socket, message: object) -> None:
    """Writes one message."""
    content = _msgpack().encode(message)
    end.sendall(_HEAD.pack(len(content)) + content)


def receive(end: socket.socket, kind: type[Message]) -> Message | None:
    """Reads one message; None where the other end is closed."""
    head = _read(end, _HEAD.size)
    content = None if head is None else _read(end, _HEAD.unpack(head)[0])
    return None if content is None else _msgpack().decode(content, type=kind)


def _read(end: socket.socket, count: int) -> bytes | None:
    taken = bytearray()
    while len(taken) < count:
        piece = end.recv(min(count - len(taken), 2**20))
        if not piece:
            return None
        taken += piece
    return bytes(taken)


def _answer(writer: int, params: StructuredOutputsParams, tokens: GrammarTokens, table: LLTokenizer) -> NoReturn:
    """In the child: never returns to the loop, whatever happens."""
    try:
        _bind()
        verdict = try_grammar(params, tokens, table)
        signal.setitimer(signal.ITIMER_PROF, 0)
        with os.fdopen(writer, "wb") as answer:
            answer.write(_msgpack().encode(verdict))
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    except BaseException:  # noqa: BLE001  # a child that returned would serve the parent a second time
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def _bind() -> None:
    with open("/proc/self/statm", encoding="ascii") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_TRIAL_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Without a handler SIGPROF ends the process, wherever it is.
    signal.setitimer(signal.ITIMER_PROF, MAX_TRIAL_S)


def _begin(matcher: LLMatcher, ends: frozenset[int]) -> None:
    """Follows the grammar for a few random tokens, until it ends or fails."""
    rng = random.Random(0)
    for _ in range(TRIED_TOKENS):
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            return
        token = rng.choice(allowed_ids(mask))
        if not matcher.consume_token(token) or token in ends:
            return


def _msgpack() -> Any:
    # Only once a grammar is tried, for engines that never meet one.
    import msgspec

    return msgspec.msgpack


if __name__ == "__main__":
    raise SystemExit(main())

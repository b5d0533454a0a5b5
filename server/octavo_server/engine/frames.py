"""Messages as bytes for the socket between the clients' side and an engine process.

    frame  length of what follows (4 bytes, big-endian) | kind (1 byte) | the message's fields in msgpack

Both ends run the same code, so there is no version. Fields are whatever the dataclasses hold: plain values, nested.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from octavo_server.config import EngineConfig
from octavo_server.engine.messages import Abort, Add, Died, Progressed, Ready, Stepped, Stop

_HEAD = struct.Struct(">IB")


def _plain(value: object) -> object:
    """What msgspec does not know by itself: a mapping that is no dict."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is no plain value")


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """The first message to an engine process."""

    build: str
    """MODULE:FUNCTION that makes the engine of the config."""
    config: EngineConfig
    log_level: str


_KINDS: tuple[type, ...] = (Setup, Add, Abort, Stop, Progressed, Ready, Stepped, Died)
_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}


def encode_frame(message: object) -> bytes:
    """One message's frame.

    Raises:
        ValueError, TypeError, OverflowError: a field is no plain value: a lone surrogate, an integer beyond 64 bits.
    """
    content = _encoder.encode(message)
    return _HEAD.pack(len(content) + 1, _NUMBERS[type(message)]) + content


class FrameReader:
    """Owns the bytes of a frame that has not come whole."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that are whole now."""
        self._bytes += data
        messages, at, size = [], 0, len(self._bytes)
        while size - at >= _HEAD.size:
            length, number = _HEAD.unpack_from(self._bytes, at)
            end = at + 4 + length
            if end > size:
                break
            messages.append(self._decoders[number].decode(self._bytes[at + _HEAD.size : end]))
            at = end
        del self._bytes[:at]
        return messages

    @cached_property
    def _decoders(self) -> list[msgspec.msgpack.Decoder[Any]]:
        return [msgspec.msgpack.Decoder(kind) for kind in _KINDS]

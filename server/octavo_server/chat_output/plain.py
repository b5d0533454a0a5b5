"""An answer that is nothing but content."""

from __future__ import annotations

from octavo_server.chat_output.parser import ChatEvent, ContentText


class PlainParser:
    """Passes everything on at once."""

    def feed(self, text: str) -> list[ChatEvent]:
        """Takes more text."""
        return [ContentText(text)] if text else []

    def finish(self) -> list[ChatEvent]:
        """Nothing was held back."""
        return []

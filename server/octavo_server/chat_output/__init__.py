"""What an assistant's text says: parsers of reasoning and tool calls, one file a format. Pure text, no HTTP."""

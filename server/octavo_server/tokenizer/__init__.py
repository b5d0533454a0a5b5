"""Text to token ids and back, and chats to text. Needs neither torch nor, for the usual files, transformers."""

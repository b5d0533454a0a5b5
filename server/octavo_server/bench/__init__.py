"""`octavo bench`: load against any OpenAI-compatible server, and the engine alone."""

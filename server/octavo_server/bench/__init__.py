"""`octavo bench`: load against any OpenAI-compatible server, the engine alone, a start; and two results compared."""

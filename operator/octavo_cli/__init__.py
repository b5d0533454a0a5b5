"""The composition root: the command `octavo`, and local mode."""

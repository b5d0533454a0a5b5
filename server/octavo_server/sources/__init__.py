"""Where models come from before they are on this machine's disk."""

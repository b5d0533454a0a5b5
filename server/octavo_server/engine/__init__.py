"""Scheduler, cache, runner: what turns requests into tokens."""

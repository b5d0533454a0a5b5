"""Pieces of a decoder that are the same in every family."""

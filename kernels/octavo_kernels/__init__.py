"""Kernels of a decoder step, each beside its torch reference. Knows nobody else of Octavo."""

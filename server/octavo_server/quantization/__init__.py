"""Formats of stored weights: how blocks of low-precision numbers become floating-point ones."""

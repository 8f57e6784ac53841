"""Fusion: fewer and cheaper operators that compute the same function."""

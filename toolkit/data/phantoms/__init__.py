"""Synthetic tasks: generated, no download, the same bytes for the same seed."""

"""Regularizers: the protocol and the papers' feature losses."""

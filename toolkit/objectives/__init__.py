"""Objectives: the supervised part of a method, forward pass included."""

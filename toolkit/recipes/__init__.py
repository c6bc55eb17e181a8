"""Recipes: the papers' settings as data."""

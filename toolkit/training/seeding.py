"""Global random numbers during training: seeded afresh for each step, and the user's state given back afterwards.

Dropout and any code that draws from the global generators of torch, NumPy or Python thus depends on (seed, step,
rank) alone: a resumed run draws what the uninterrupted one drew, on every rank, with nothing to store.
"""

from __future__ import annotations

from toolkit.process_state import seed_all
from toolkit.training.regularizer import keyed_generator


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed the global generators of torch (all devices), NumPy and Python for one step."""
    seed_all(keyed_generator("global", seed, step, rank).initial_seed())

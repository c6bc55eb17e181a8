"""Global random numbers during training: seeded afresh for each step, and the user's state given back afterwards.

Dropout and any code that draws from the global generators of torch, NumPy or Python thus depends on (seed, step,
rank) alone: a resumed run draws what the uninterrupted one drew, on every rank, with nothing to store.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from toolkit.features.process_state import guarded_random_state
from toolkit.training.regularizer import keyed_generator


def seed_step(seed: int, step: int, rank: int = 0) -> None:
    """Seed the global generators of torch (all devices), NumPy and Python for one step."""
    value = keyed_generator("global", seed, step, rank).initial_seed()
    torch.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - user code may draw from the legacy global state
    random.seed(value)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block, so that a network built there has the seed's weights."""
    with guarded_random_state():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - a user's factory may draw from the legacy global state
        random.seed(seed)
        yield

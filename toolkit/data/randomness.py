"""Random numbers keyed by what they are for: the same key gives the same numbers in any order and any process."""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_random(*key: int | str) -> np.random.Generator:
    """A generator whose stream depends on every element of `key` and on nothing else."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))

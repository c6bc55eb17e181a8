"""Random numbers keyed by what they are for: the same key gives the same numbers in any order and any process."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np


def keyed_random(*key: int | str) -> np.random.Generator:
    """A generator whose stream depends on every element of `key` and on nothing else."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))


def window_of_noise(random: np.random.Generator, shape: Sequence[int]) -> np.ndarray:
    """Standard normal float32 noise of a shape: a randomly placed and signed window of a fixed sequence.

    Drawing fresh numbers for every image would cost as much as the rest of the augmentation. Two images share a
    window with a chance of one in two million.
    """
    count = math.prod(shape)
    start, sign = int(random.integers(_NOISE_LENGTH)), 1.0 if random.random() < 0.5 else -1.0
    if count > _NOISE_LENGTH // 2:
        return random.standard_normal(shape, dtype=np.float32)
    noise = _noise()[start : start + count].reshape(shape)
    return noise if sign > 0 else -noise


_NOISE_LENGTH = 2**20


@functools.cache
def _noise() -> np.ndarray:
    noise = keyed_random("noise").standard_normal(_NOISE_LENGTH + _NOISE_LENGTH // 2, dtype=np.float32)
    noise.setflags(write=False)
    return noise

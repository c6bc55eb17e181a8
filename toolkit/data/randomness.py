"""Random numbers keyed by what they are for: the same key gives the same numbers in any order and any process."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def keyed_random(*key: int | str) -> np.random.Generator:
    """A generator whose stream depends on every element of `key` and on nothing else."""
    digest = hashlib.blake2b("|".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64)))


def place_of_noise(random: np.random.Generator) -> tuple[int, float]:
    """Where an image's window begins in the fixed sequence of noise, and its sign.

    Drawing fresh numbers for every image would cost as much as the rest of the augmentation. Two images share a
    window with a chance of one in two million.
    """
    return int(random.integers(_NOISE_LENGTH)), 1.0 if random.random() < 0.5 else -1.0


def fits_sequence(shape: Sequence[int]) -> bool:
    """Whether windows of this shape are cut from the fixed sequence; larger ones are drawn afresh."""
    return math.prod(shape) <= _NOISE_LENGTH // 2


def windows_of_noise(starts: Sequence[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """Standard normal float32 noise (B, *shape): the windows of the fixed sequence that begin at `starts`."""
    noise, count = _noise(str(device)), math.prod(shape)
    return torch.stack([noise[start : start + count] for start in starts]).view(-1, *shape)


_NOISE_LENGTH = 2**20


@functools.cache
def _noise(device: str) -> Tensor:
    noise = keyed_random("noise").standard_normal(_NOISE_LENGTH + _NOISE_LENGTH // 2, dtype=np.float32)
    return torch.from_numpy(noise).to(device)

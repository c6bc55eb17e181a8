"""Keyed random numbers made from a bit generator's raw words only, so that no library version moves them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Four 16-bit uniforms are summed for one normal draw; their sum has this mean and this standard deviation.
_SUM_MEAN = 4 * 0.5 * (2**16 - 1)
_SUM_DEVIATION = ((2**32 - 1) / 3.0) ** 0.5


class Stream:
    """Random draws keyed by integers: the same key gives the same numbers on every machine.

    NumPy promises the raw words of a bit generator for ever, but not what `Generator.normal` makes of them; here
    every draw is an integer operation on raw PCG64 words followed by one exact scaling. A "normal" draw is the sum of
    four uniforms (Irwin-Hall), whose tails end at 3.46 standard deviations.

    Args:
        key: non-negative integers, e.g. (seed, task, site, subject, purpose).
    """

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence([int(part) for part in key]))

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """One draw from [low, high)."""
        return low + (high - low) * float(self.uniforms(1)[0])

    def uniforms(self, *shape: int) -> Floats:
        """Draws from [0, 1) in an array of this shape."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        return (np.asarray(raw, dtype=np.uint64) >> np.uint64(11)).astype(np.float64).reshape(shape) * 2.0**-53

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """One nearly normal draw."""
        return mean + deviation * float(self.normals(1)[0])

    def normals(self, *shape: int) -> Floats:
        """Nearly normal draws with mean 0 and standard deviation 1 in an array of this shape."""
        raw = np.asarray(self._bits.random_raw(int(np.prod(shape))), dtype=np.uint64)
        mask = np.uint64(0xFFFF)
        total = (raw & mask) + ((raw >> np.uint64(16)) & mask) + ((raw >> np.uint64(32)) & mask)
        total += raw >> np.uint64(48)
        return ((total.astype(np.float64) - _SUM_MEAN) / _SUM_DEVIATION).reshape(shape)

    def integer(self, low: int, high: int) -> int:
        """One integer from [low, high], both ends included."""
        return low + int(self.uniform() * (high - low + 1))

    def near(self, mean: float, spread: float) -> float:
        """The mean times a factor drawn uniformly from [1 - spread, 1 + spread]."""
        return mean * self.uniform(1.0 - spread, 1.0 + spread)

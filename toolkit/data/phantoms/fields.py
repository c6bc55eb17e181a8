"""Drawing on sampled grids in any number of dimensions from keyed random numbers, and what a scanner makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Four 16-bit uniforms are summed for one normal draw; their sum has this mean and this standard deviation.
_SUM_MEAN = 4 * 0.5 * (2**16 - 1)
_SUM_DEVIATION = ((2**32 - 1) / 3.0) ** 0.5


class Stream:
    """Random draws keyed by integers, such as (seed, task, site, subject, purpose): the same numbers on every machine.

    NumPy promises the raw words of a bit generator for ever, but not what `Generator.normal` makes of them; here
    every draw is an integer operation on raw PCG64 words followed by one exact scaling. A "normal" draw is the sum of
    four uniforms (Irwin-Hall), whose tails end at 3.46 standard deviations.
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


def soft_inside(distance: Floats, width: float) -> Floats:
    """Partial-volume mask of a signed distance (negative inside): 1 inside, 0 outside, a ramp of this width."""
    mask = distance * (-1.0 / width)
    mask += 0.5
    return np.clip(mask, 0.0, 1.0, out=mask)


def smooth_step(values: Floats, low: float, high: float) -> Floats:
    """Cubic step from 0 at `low` to 1 at `high`."""
    t = np.clip((values - low) * (1.0 / (high - low)), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def paint(canvas: Floats, value: float | Floats, mask: Floats) -> None:
    """Lay a tissue over the canvas, in place, with the mask as its opacity."""
    step = value - canvas
    step *= mask
    canvas += step


def smooth_field(stream: Stream, shape: Sequence[int], cells: Sequence[int]) -> Floats:
    """Smooth random field of about unit deviation: a coarse normal lattice, interpolated by quadratic B-splines."""
    field = stream.normals(*(count + 2 for count in cells))
    for axis, (size, count) in enumerate(zip(shape, cells, strict=True)):
        at = (np.arange(size) + 0.5) * (count / size)
        left = np.minimum(at.astype(np.int64), count - 1)
        t = at - left
        weights = (0.5 * (1.0 - t) ** 2, 0.5 + t * (1.0 - t), 0.5 * t * t)
        along = [1] * field.ndim
        along[axis] = size
        total = np.take(field, left, axis=axis)
        total *= weights[0].reshape(along)
        for k in (1, 2):
            part = np.take(field, left + k, axis=axis)
            part *= weights[k].reshape(along)
            total += part
        field = total
    # Interpolation averages neighbours: the mean squared B-spline weight is 11/20 along each axis.
    field *= round((20.0 / 11.0) ** (0.5 * len(shape)), 9)
    return field


def blur(image: Floats, sigma: Sequence[float]) -> Floats:
    """Point-spread function: a binomial-like kernel of this standard deviation (voxels) along each axis, edges repeated.

    Repeated three-tap averages with the exact variance, so that only additions and multiplications are used.
    """
    for axis, deviation in enumerate(sigma):
        passes = max(1, int(np.ceil(deviation * deviation / 0.5)))
        side = 0.5 * deviation * deviation / passes
        if side == 0.0:
            continue
        for _ in range(passes):
            padded = np.concatenate((np.take(image, [0], axis), image, np.take(image, [-1], axis)), axis=axis)
            before = np.moveaxis(padded, axis, 0)
            smoothed = side * (before[:-2] + before[2:]) + (1.0 - 2.0 * side) * before[1:-1]
            image = np.moveaxis(smoothed, 0, axis)
    return np.ascontiguousarray(image)


def average_down(image: Floats, factors: Sequence[int]) -> Floats:
    """Average blocks of `factors` voxels: what a detector of the coarser grid sees."""
    for axis, factor in enumerate(factors):
        rows = np.moveaxis(image, axis, 0)
        total = rows[0::factor].copy()
        for k in range(1, factor):
            total += rows[k::factor]
        image = np.moveaxis(total * (1.0 / factor), 0, axis)
    return np.ascontiguousarray(image)


def centred_axes(shape: Sequence[int], factors: Sequence[int], steps: Sequence[float]) -> list[Floats]:
    """Positions along each axis from the middle of the view, mm."""
    return [
        (np.arange(n * f, dtype=np.float64) + 0.5 - 0.5 * n * f) * (step / f)
        for n, f, step in zip(shape, factors, steps, strict=True)
    ]


def stamp_disc(mask: Floats, row: float, column: float, radius: float, width: float, strength: float = 1.0) -> None:
    """Add a small soft disc (all sizes in pixels) to a 2D mask, in place, as the larger of the two."""
    reach = radius + width
    top, left = max(0, int(row - reach)), max(0, int(column - reach))
    bottom, right = min(mask.shape[0], int(row + reach) + 2), min(mask.shape[1], int(column + reach) + 2)
    if top >= bottom or left >= right:
        return
    dy = np.arange(top, bottom, dtype=np.float64)[:, None] - row
    dx = np.arange(left, right, dtype=np.float64)[None, :] - column
    window = mask[top:bottom, left:right]
    np.maximum(window, strength * soft_inside(np.sqrt(dy * dy + dx * dx) - radius, width), out=window)


def direction(degrees: float) -> tuple[float, float]:
    """Cosine and sine, rounded so that no machine's last bit matters."""
    return round(float(np.cos(np.deg2rad(degrees))), 9), round(float(np.sin(np.deg2rad(degrees))), 9)


@dataclass(frozen=True)
class Scanner:
    """What one site's scanner does to a scene of tissue signals in [0, 1]."""

    # contrast curve x / (x + curve (1 - x)): 1 is linear, above 1 darkens the middle, below lifts it
    curve: float = 1.0
    bias: float = 0.0  # strength of the smooth random shading (about the relative deviation)
    band: float = 0.0  # depth of the dark band that off-resonance leaves somewhere in the view
    coil: float = 0.0  # relative loss of signal across the field of view, away from the surface coil
    coil_direction: tuple[float, ...] = (-0.5, -0.85)  # unit vector, array axes, from the view's centre to the coil
    blur: tuple[float, ...] = (0.5, 0.5)  # standard deviation of the point-spread function along each axis, voxels
    noise: float = 0.02  # standard deviation of the noise in each of the two quadrature channels
    gain: float = 1000.0  # grey value of signal 1


def contrast_curve(signal: Floats, curve: float) -> Floats:
    """A one-parameter rational curve through (0, 0) and (1, 1); see `Scanner.curve`."""
    signal = np.clip(signal, 0.0, 1.0)
    return signal / (signal + curve * (1.0 - signal))


def shading(stream: Stream, shape: Sequence[int], scanner: Scanner) -> Floats:
    """Multiplicative field: a random smooth part, a fall-off away from the coil and a band of signal loss."""
    field = 1.0 + scanner.bias * smooth_field(stream, shape, [2] * len(shape))
    warp = smooth_field(stream, shape, [2] * len(shape))
    ramp = np.linspace(-1.0, 1.0, shape[-1]) - stream.uniform(0.2, 1.0) * (1.0 if stream.uniform() < 0.5 else -1.0)
    field *= 1.0 - scanner.band / (1.0 + 90.0 * (ramp + 0.15 * warp) ** 2)
    towards = np.zeros(shape)
    for axis, (size, part) in enumerate(zip(shape, scanner.coil_direction, strict=True)):
        along = [1] * len(shape)
        along[axis] = size
        towards = towards + part * ((np.arange(size) + 0.5) * (2.0 / size) - 1.0).reshape(along)
    distance = np.clip(1.0 - towards, 0.0, None)
    return np.clip(field, 0.25, None) * (1.0 + 0.5 * scanner.coil) / (1.0 + scanner.coil * distance)


def rician(stream: Stream, signal: Floats, deviation: float) -> Floats:
    """Magnitude of the signal with noise of this deviation in both quadrature channels."""
    noise = stream.normals(2, *signal.shape)
    noise *= deviation
    in_phase, quadrature = signal + noise[0], noise[1]
    return np.sqrt(in_phase * in_phase + quadrature * quadrature)


def acquire(stream: Stream, signal: Floats, field: Floats, scanner: Scanner) -> NDArray[np.float32]:
    """Image (whole numbers 0 to 4095) of a scene of tissue signals: point spread, shading, noise, contrast curve."""
    seen = rician(stream, blur(signal, scanner.blur) * field, scanner.noise)
    grey = contrast_curve(seen * (1.0 / 1.3), scanner.curve) * (1.3 * scanner.gain)
    return np.clip(np.rint(grey), 0.0, 4095.0).astype(np.float32)

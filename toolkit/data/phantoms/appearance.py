"""What a scanner does to the same anatomy: contrast curve, coil shading, point spread, Rician noise, quantisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms.fields import Floats, Stream, blur, smooth_field


@dataclass(frozen=True)
class Scanner:
    """How one site's scanner renders a scene of tissue signals in [0, 1]."""

    # contrast curve x / (x + curve (1 - x)): 1 is linear, above 1 darkens the middle, below lifts it
    curve: float = 1.0
    bias: float = 0.0  # strength of the smooth random shading (about the relative deviation)
    band: float = 0.0  # depth of the dark band that off-resonance leaves somewhere in the view
    coil: float = 0.0  # relative loss of signal across the field of view, away from the surface coil
    coil_direction: tuple[float, ...] = (
        -0.5,
        -0.85,
    )  # unit vector, array axes, from the centre of the view to the coil
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
    """Image of a scene of tissue signals: point spread, shading, noise, contrast curve, 12-bit grey values.

    Returns:
        Whole numbers 0 to 4095, as float32.
    """
    seen = rician(stream, blur(signal, scanner.blur) * field, scanner.noise)
    grey = contrast_curve(seen * (1.0 / 1.3), scanner.curve) * (1.3 * scanner.gain)
    return np.clip(np.rint(grey), 0.0, 4095.0).astype(np.float32)

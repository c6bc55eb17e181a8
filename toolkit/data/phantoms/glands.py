"""phantom-glands: RGB tiles of synthetic stained tissue with crowded glands, from four laboratories.

A gland is a ring of epithelium, with a row of dark nuclei along its outer border, around a pale lumen; all of it is
the class "gland". Between the glands lies fibrous stroma with scattered nuclei; neighbours are kept apart by a thin
strip of it, so that merged objects are a typical mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms import fields
from toolkit.data.phantoms.fields import Floats, Scanner, Stream, paint, soft_inside
from toolkit.data.phantoms.phantom import Drawn, Generator, Site

SIZE = 128
_FINE = 2


def _draw(settings: Site, group: str, stream: Callable[[int], Stream]) -> Drawn:
    """A tile of 128 x 128."""
    distance, wall = _pack(stream(0), settings, group == "malignant")
    nuclear, tissue = _stain(stream(1), settings, distance, wall)
    inside = fields.average_down(distance, (_FINE, _FINE)) < 0.0
    return _photograph(stream(2), settings, nuclear, tissue), inside.astype(np.uint8)


@dataclass(frozen=True)
class _Outline:
    """One gland: lengths in points of the fine grid."""

    size: float  # mean radius across
    aspect: float  # length over width
    along: tuple[float, float]  # cosine and sine of the long axis
    waves: tuple[float, float, float]  # relative strength of three waves around the outline
    thickness: float  # of the epithelium

    def reach(self, margin: float) -> float:
        """Beyond this distance from the centre every point is more than the margin outside."""
        return self.aspect * (self.size * (1.0 + sum(map(abs, self.waves))) + margin)

    def distance(self, dy: Floats, dx: Floats) -> Floats:
        """Signed distance to the wavy outline, negative inside."""
        c, s = self.along
        u, v = c * dx + s * dy, c * dy - s * dx
        u *= 1.0 / self.aspect  # in place: allocating a grid costs more than computing on one
        radius = u * u
        radius += v * v
        np.sqrt(radius, out=radius)
        radius += 1e-6
        u /= radius
        v /= radius
        u2, v2 = u * u - v * v, 2.0 * u * v
        outline = (u * u2 - v * v2) * self.waves[0]
        outline += (u * v2 + v * u2) * self.waves[1]
        outline += (u2 * u2 - v2 * v2) * self.waves[2]
        outline += 1.0
        outline *= self.size
        return np.subtract(radius, outline, out=radius)


def _pack(stream: Stream, site: Site, malignant: bool) -> tuple[Floats, Floats]:
    """Signed distance (pixels) to the nearest gland, and how thick its epithelium is."""
    side = SIZE * _FINE
    step = (30.0 if malignant else 40.0) * site.scale * _FINE
    nearest, second = np.full((side, side), 1e3), np.full((side, side), 1e3)
    wall = np.full((side, side), 8.0)
    count = int(side / step) + 2
    offset = (stream.uniform(0.0, step), stream.uniform(0.0, step))
    at: Floats = np.arange(side, dtype=np.float64) + 0.5
    for place in range(count * count):
        row, column, luck = (stream.uniform() for _ in range(3))
        row = (place // count - 1.0 + 0.55 * (row - 0.5)) * step + offset[0]
        column = (place % count - 1.0 + 0.55 * (column - 0.5)) * step + offset[1]
        if luck < 0.12:
            continue  # a gap in the crowd
        gland = _sample(stream, step, malignant)
        # Farther than a few pixels outside, a distance changes neither a label nor a colour.
        rows, columns = (_window(centre, gland.reach(4.0 * _FINE), side) for centre in (row, column))
        distance = gland.distance(at[rows, None] - row, at[None, columns] - column)
        first, next_one = nearest[rows, columns], second[rows, columns]
        np.copyto(wall[rows, columns], gland.thickness, where=distance < first)
        np.minimum(next_one, np.maximum(first, distance), out=next_one)
        np.minimum(first, distance, out=first)
    # Half a gap of stroma on either side of the line where two glands would touch.
    gap = 1.3 * _FINE
    return np.maximum(nearest, gap - (second - nearest)) / _FINE, wall / _FINE


def _window(centre: float, reach: float, side: int) -> slice:
    """Grid points within reach of a centre."""
    return slice(min(max(0, int(centre - reach)), side), max(0, min(side, int(centre + reach) + 1)))


def _sample(stream: Stream, step: float, malignant: bool) -> _Outline:
    size = step * stream.uniform(0.40, 0.62)
    aspect = stream.uniform(1.0, 1.7 if malignant else 1.35)
    along = fields.direction(stream.uniform(-90.0, 90.0))
    wave = 0.14 if malignant else 0.05
    waves = (stream.normal(0.0, wave), stream.normal(0.0, wave), stream.normal(0.0, 0.6 * wave))
    thickness = size * (stream.uniform(0.5, 0.9) if malignant else stream.uniform(0.32, 0.48))
    return _Outline(size, aspect, along, waves, thickness)


def _stain(stream: Stream, site: Site, distance: Floats, wall: Floats) -> tuple[Floats, Floats]:
    """How much nuclear and tissue stain there is at every point."""
    size = distance.shape
    fibres = fields.smooth_field(stream, size, (14, 14)) + 0.7 * fields.smooth_field(stream, size, (40, 40))
    grain = fields.smooth_field(stream, size, (60, 60))
    nuclear = 0.10 + 0.03 * grain
    tissue = np.clip(0.62 + 0.13 * fibres, 0.15, None)
    spindles = np.zeros(size)
    for place in stream.uniforms(70, 3):
        fields.stamp_disc(spindles, place[0] * size[0], place[1] * size[1], (1.2 + 1.3 * place[2]) * _FINE, 2.0)
    paint(nuclear, 0.95, spindles)
    inside = soft_inside(distance, 0.7)
    paint(nuclear, 0.22 + 0.05 * grain, inside)
    paint(tissue, 0.42 + 0.05 * grain, inside)
    # Nuclei: a speckled band along the outer border, denser than chance inside it.
    band = soft_inside(np.abs(distance + 0.32 * wall) - 0.22 * wall, 1.5)
    cells = fields.smooth_field(stream, size, (max(8, round(34 / site.scale)), max(8, round(34 / site.scale))))
    paint(nuclear, 1.05 + 0.1 * grain, band * np.clip(1.6 * cells + 0.85, 0.0, 1.0))
    lumen = soft_inside(distance + wall, 1.0)
    mucus = np.clip(0.06 + 0.05 * fibres, 0.0, None)
    paint(nuclear, 0.02, lumen)
    paint(tissue, mucus, lumen)
    return nuclear, tissue


def _photograph(stream: Stream, site: Site, nuclear: Floats, tissue: Floats) -> NDArray[np.float32]:
    """Light through the stains, out of focus, unevenly lit, with the camera's noise; 8 bits a colour."""
    amounts = (stream.near(site.strength[0], 0.15), stream.near(site.strength[1], 0.15))
    light = fields.shading(stream, (SIZE, SIZE), Scanner(bias=site.uneven, coil_direction=(0.0, 0.0)))
    colours = []
    for channel in range(3):
        density = amounts[0] * site.nuclear[channel] * nuclear + amounts[1] * site.tissue[channel] * tissue
        # exp(-x) by the rational 1 / (1 + x + x^2/2 + x^3/6), so that no library function decides the bytes.
        through = 1.0 / (1.0 + density * (1.0 + density * (0.5 + density * (1.0 / 6.0))))
        seen = fields.blur(fields.average_down(through, (_FINE, _FINE)), (site.blur, site.blur))
        grey = seen * light * site.light[channel] + site.noise * stream.normals(SIZE, SIZE)
        colours.append(np.clip(np.rint(grey), 0.0, 255.0))
    return np.stack(colours).astype(np.float32)


TASK = Generator("phantom-glands", version=1, key=74, draw=_draw)

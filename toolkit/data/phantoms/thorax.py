"""What surrounds a heart in a short-axis slice: chest wall, lung, diaphragm, abdomen, aorta, spine, vessels.

Millimetres in the scene's frame: origin on the left ventricle's axis, first axis to the right of a conventional
short-axis view, second axis downwards; the chest wall lies to the left, the diaphragm below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np

from toolkit.data.phantoms.fields import Floats, Stream, paint, smooth_field, soft_inside, stamp_disc

Signals = dict[str, float]
Thorax = SimpleNamespace  # one subject's surroundings; mm, positions as (centre, centre, radius) or two half axes


@dataclass(frozen=True)
class Grid:
    """Sampling points of a slice in the scene's frame, which is turned and shifted against the image."""

    x: Floats  # first coordinate of every point, mm
    y: Floats  # second coordinate
    pitch: float  # distance between neighbouring points, mm

    @classmethod
    def turned(cls, side: int, pitch: float, turn: tuple[float, float], centre: Sequence[float]) -> Grid:
        """Square grid of `side` points, whose scene is turned by (cosine, sine) about `centre` (column, row; mm)."""
        at = (np.arange(side) + 0.5 - 0.5 * side) * pitch
        column, row = at[None, :] - centre[0], at[:, None] - centre[1]
        c, s = turn
        return cls(column * c + row * s, row * c - column * s, pitch)

    def index(self, x: float, y: float) -> tuple[float, float]:
        """Fractional (row, column) of a point of the scene."""
        dx, dy = x - float(self.x[0, 0]), y - float(self.y[0, 0])
        c, s = (float(self.x[0, 1] - self.x[0, 0]), float(self.x[1, 0] - self.x[0, 0]))
        return (dx * s + dy * c) / self.pitch**2, (dx * c - dy * s) / self.pitch**2

    def window(self, centre: tuple[float, float], reach: float) -> tuple[tuple[slice, slice], Grid]:
        """The part of the grid within `reach` mm of a point: where it lies, and its own grid (perhaps empty)."""
        row, column = self.index(*centre)
        spans = []
        for at, size in zip((row, column), self.x.shape, strict=True):
            low, high = int(at - reach / self.pitch) - 1, int(at + reach / self.pitch) + 2
            spans.append(slice(min(max(low, 0), size), min(max(high, 0), size)))
        place = (spans[0], spans[1])
        return place, Grid(self.x[place], self.y[place], self.pitch)

    def ellipse(self, centre: tuple[float, float], axes: tuple[float, float]) -> Floats:
        """About the signed distance (mm) to an ellipse along the scene's axes."""
        across, down = (self.x - centre[0]) * (1.0 / axes[0]), (self.y - centre[1]) * (1.0 / axes[1])
        return (np.sqrt(across * across + down * down) - 1.0) * min(axes)


def sample_thorax(stream: Stream, heart_radius: float, right_reach: float) -> Thorax:
    """Draw the surroundings of a heart with this left ventricular radius, reaching this far to the left (mm)."""
    uniform = stream.uniform
    axes = (uniform(140.0, 175.0), uniform(112.0, 135.0))
    fat, muscle = uniform(6.0, 24.0), uniform(6.0, 11.0)
    wall = fat + muscle
    left = right_reach + wall + uniform(5.0, 14.0)
    floor = heart_radius + uniform(2.0, 7.0)
    aorta = uniform(9.0, 13.0)
    thorax = Thorax(
        centre=(axes[0] - left, uniform(5.0, 35.0)),  # of the body's outline
        axes=axes,  # half axes of it
        fat=fat,  # thickness of the subcutaneous fat
        muscle=muscle,  # thickness of the chest wall's muscle
        pericardial_fat=uniform(0.5, 3.5),  # usual thickness of the fat around the heart
        diaphragm=floor,  # height of the diaphragm below the axis at the base
        tilt=uniform(-0.12, 0.28),  # slope of the diaphragm
        rise=uniform(6.0, 20.0),  # how much it rises from base to apex
        liver_edge=uniform(0.0, 35.0),  # where the liver ends and the stomach begins, along the first axis
        aorta=(heart_radius + aorta + uniform(4.0, 14.0), uniform(2.0, 0.8 * floor), aorta),  # descending
        # vertebral body
        spine=(heart_radius + uniform(50.0, 62.0), uniform(15.0, 45.0), uniform(17.0, 21.0)),
        # and its filling (0 air to 1 bright)
        stomach=(uniform(35.0, 60.0), floor + uniform(22.0, 40.0), uniform(20.0, 34.0), uniform(13.0, 22.0), uniform()),
        spleen=(uniform(70.0, 95.0), floor + uniform(8.0, 25.0), uniform(12.0, 18.0), uniform(22.0, 34.0)),
    )
    # bowel, kidney; and signal relative to the fluid's
    thorax.organs = [
        (uniform(-40.0, 90.0), floor + uniform(14.0, 62.0), uniform(7.0, 17.0), uniform(7.0, 17.0), uniform(0.2, 1.0))
        for _ in range(5)
    ]
    return thorax


def draw_thorax(stream: Stream, thorax: Thorax, level: float, grid: Grid, signals: Signals) -> Floats:
    """Tissue signals of one slice without the heart."""
    shape, pitch = grid.x.shape, grid.pitch
    centre = (thorax.centre[0] + 8.0 * level, thorax.centre[1])
    body = grid.ellipse(centre, thorax.axes)
    relief, texture = smooth_field(stream, shape, (4, 4)), smooth_field(stream, shape, (26, 26))
    canvas = np.full(shape, signals["air"])
    paint(canvas, signals["fat"] * (1.0 + 0.06 * relief + 0.03 * texture), soft_inside(body, pitch))
    muscle = soft_inside(body + thorax.fat + 2.0 * relief + 0.5 * texture, pitch)
    paint(canvas, signals["muscle"] * (1.0 + 0.12 * texture), muscle)
    # Ribs in cross-section, at intervals along the chest wall's muscle.
    ribs, turn = np.zeros_like(canvas), stream.uniform(0.0, 0.2)
    depth = thorax.fat + 0.5 * thorax.muscle
    along, down = thorax.axes[0] - depth, thorax.axes[1] - depth
    for k in range(9):
        t = turn + 0.24 * (k - 4) + stream.uniform(-0.04, 0.04)
        # Points of a circle by the rational parametrisation, squeezed to the ellipse.
        c, s = -(1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
        row, column = grid.index(centre[0] + along * c, centre[1] + down * s)
        size = stream.uniform(0.25, 0.5) * thorax.muscle / pitch
        stamp_disc(ribs, row, column, size, 2.0, stream.uniform(0.5, 1.0))
    paint(canvas, signals["bone"] * 0.55, ribs)
    inner = body + thorax.fat + thorax.muscle + 1.0 * relief
    lung = signals["lung"] * (1.0 + 0.25 * relief + 0.25 * texture)
    _draw_lung_vessels(stream, lung, thorax, level, grid, signals)
    paint(canvas, signals["fat"] * 0.8, soft_inside(inner + 0.5, pitch))
    paint(canvas, lung, soft_inside(inner + 1.5, pitch))
    _draw_back(canvas, thorax, soft_inside(inner, pitch), grid, signals)
    _draw_abdomen(stream, canvas, thorax, level, inner, grid, signals, (relief, texture))
    return canvas


def _draw_lung_vessels(
    stream: Stream, lung: Floats, thorax: Thorax, level: float, grid: Grid, signals: Signals
) -> None:
    """Vessels in cross-section: fine ones everywhere, larger ones at the hilum, which the basal slices show."""
    mask = np.zeros_like(lung)
    rows, columns = lung.shape
    for place in stream.uniforms(34, 4):
        radius = 0.7 + 2.0 * place[2] * place[2] * place[2]
        stamp_disc(mask, place[0] * rows, place[1] * columns, radius / grid.pitch, 2.0, 0.15 + 0.6 * place[3])
    hilum = (thorax.aorta[0] - 8.0, -0.7 * thorax.diaphragm)
    for place in stream.uniforms(round(16.0 * (1.0 - level) ** 2), 4):
        row, column = grid.index(hilum[0] + 70.0 * (place[0] - 0.5), hilum[1] + 50.0 * (place[1] - 0.5))
        radius = 1.0 + 4.5 * place[2] * place[2]
        stamp_disc(mask, row, column, radius / grid.pitch, 3.0, 0.4 + 0.6 * place[3])
    paint(lung, signals["blood"], mask)


def _draw_back(canvas: Floats, thorax: Thorax, inside: Floats, grid: Grid, signals: Signals) -> None:
    """Vertebral body with its dark rim and the descending aorta before it."""
    sx, sy, radius = thorax.spine
    place, part = grid.window((sx, sy), radius + 8.0)
    spine, view, within = part.ellipse((sx, sy), (radius, 0.85 * radius)), canvas[place], inside[place]
    paint(view, signals["muscle"], soft_inside(spine - 5.0, 3.0) * within)
    paint(view, 0.4 * signals["bone"], soft_inside(spine - 1.5, grid.pitch) * within)
    paint(view, signals["bone"], soft_inside(spine, grid.pitch) * within)
    ax, ay, width = thorax.aorta
    place, part = grid.window((ax, ay), width + 4.0)
    aorta, view, within = part.ellipse((ax, ay), (width, width)), canvas[place], inside[place]
    paint(view, signals["myocardium"], soft_inside(aorta - 1.6, grid.pitch) * within)
    paint(view, signals["blood"], soft_inside(aorta, grid.pitch) * within)


def _draw_abdomen(
    stream: Stream,
    canvas: Floats,
    thorax: Thorax,
    level: float,
    inner: Floats,
    grid: Grid,
    signals: Signals,
    fields: tuple[Floats, Floats],
) -> None:
    """Below the diaphragm: bowel and kidney in fat, spleen, stomach, and the liver with its vessels before them."""
    relief, texture = fields
    pitch, lift = grid.pitch, thorax.rise * level
    dome = 0.0022 * (grid.x + 5.0) * (grid.x + 5.0)
    below = thorax.diaphragm - lift + thorax.tilt * grid.x + dome - grid.y + 1.5 * relief
    abdomen = signals["fat"] * (0.9 + 0.08 * texture)
    spleen, stomach = thorax.spleen, thorax.stomach
    hollow = signals["air"] + stomach[4] * signals["fluid"]
    contents = [(organ[:4], signals["muscle"], organ[4] * signals["fluid"], 2.5) for organ in thorax.organs]
    contents += [(spleen, signals["spleen"], signals["spleen"], 1.0), (stomach[:4], signals["muscle"], hollow, 3.5)]
    for (ox, oy, long, short), wall, content, thickness in contents:
        place, part = grid.window((ox, oy - lift), 1.4 * max(long, short) + 4.0)
        organ = part.ellipse((ox, oy - lift), (long, short)) + 2.0 * relief[place]
        paint(abdomen[place], wall, soft_inside(organ, pitch))
        paint(abdomen[place], content * (1.0 + 0.12 * texture[place]), soft_inside(organ + thickness, pitch))
    liver = grid.ellipse((thorax.liver_edge - 75.0, thorax.diaphragm + 42.0 - lift), (85.0, 62.0)) + 3.0 * relief
    paint(abdomen, signals["liver"] * (1.0 + 0.06 * texture), soft_inside(liver, pitch))
    vessels = np.zeros_like(canvas)
    for place in stream.uniforms(14, 3):
        row, column = grid.index(thorax.liver_edge - 100.0 * place[0], thorax.diaphragm + 70.0 * place[1])
        stamp_disc(vessels, row, column, (0.8 + 2.4 * place[2] * place[2]) / pitch, 2.0, 0.7)
    paint(abdomen, signals["blood"] * 0.85, vessels * soft_inside(liver + 4.0, pitch))
    paint(abdomen, signals["muscle"], soft_inside(np.abs(below + 0.8) - 1.2, pitch))
    paint(canvas, abdomen, soft_inside(np.maximum(below, inner - 2.0), pitch))

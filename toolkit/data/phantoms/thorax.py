"""What surrounds a heart in a short-axis slice: chest wall, lung, diaphragm, abdomen, aorta, spine, vessels.

Millimetres in the scene's frame: origin on the left ventricle's axis, first axis to the right of a conventional
short-axis view, second axis downwards; the chest wall lies to the left, the diaphragm below.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms.fields import paint, smooth_field, soft_inside, stamp_disc
from toolkit.data.phantoms.stream import Stream

Floats = NDArray[np.float64]
Signals = dict[str, float]


@dataclass(frozen=True)
class Thorax:
    """One subject's surroundings; lengths in mm.

    Attributes:
        centre: centre of the body's outline.
        axes: half axes of it.
        fat: thickness of the subcutaneous fat.
        muscle: thickness of the chest wall's muscle.
        pericardial_fat: usual thickness of the fat around the heart.
        diaphragm: height of the diaphragm below the axis at the base.
        tilt: slope of the diaphragm.
        rise: how much it rises from base to apex.
        liver_edge: where the liver ends and the stomach begins, along the first axis.
        aorta: centre and radius of the descending aorta.
        spine: centre and radius of the vertebral body.
        stomach: centre, half axes and filling (0 air to 1 bright) of the stomach.
        spleen: centre and half axes.
    """

    centre: tuple[float, float]
    axes: tuple[float, float]
    fat: float
    muscle: float
    pericardial_fat: float
    diaphragm: float
    tilt: float
    rise: float
    liver_edge: float
    aorta: tuple[float, float, float]
    spine: tuple[float, float, float]
    stomach: tuple[float, float, float, float, float]
    spleen: tuple[float, float, float, float]


def sample_thorax(stream: Stream, heart_radius: float, right_reach: float) -> Thorax:
    """Draw the surroundings of a heart with this left ventricular radius, reaching this far to the left (mm)."""
    axes = (stream.uniform(140.0, 175.0), stream.uniform(112.0, 135.0))
    fat, muscle = stream.uniform(6.0, 24.0), stream.uniform(6.0, 11.0)
    wall = fat + muscle
    left = right_reach + wall + stream.uniform(5.0, 14.0)
    floor = heart_radius + stream.uniform(2.0, 7.0)
    aorta = stream.uniform(9.0, 13.0)
    return Thorax(
        centre=(axes[0] - left, stream.uniform(5.0, 35.0)),
        axes=axes, fat=fat, muscle=muscle,
        pericardial_fat=stream.uniform(1.0, 6.0),
        diaphragm=floor,
        tilt=stream.uniform(-0.12, 0.28),
        rise=stream.uniform(6.0, 20.0),
        liver_edge=stream.uniform(0.0, 35.0),
        aorta=(heart_radius + aorta + stream.uniform(4.0, 14.0), stream.uniform(2.0, 0.8 * floor), aorta),
        spine=(heart_radius + stream.uniform(50.0, 62.0), stream.uniform(15.0, 45.0), stream.uniform(17.0, 21.0)),
        stomach=(stream.uniform(35.0, 60.0), floor + stream.uniform(22.0, 40.0), stream.uniform(20.0, 34.0),
                 stream.uniform(13.0, 22.0), stream.uniform()),
        spleen=(stream.uniform(70.0, 95.0), floor + stream.uniform(8.0, 25.0), stream.uniform(12.0, 18.0),
                stream.uniform(22.0, 34.0)),
    )  # fmt: skip


def ellipse(x: Floats, y: Floats, centre: tuple[float, float], axes: tuple[float, float]) -> Floats:
    """About the signed distance (mm) to an ellipse along the axes."""
    dx, dy = (x - centre[0]) * (1.0 / axes[0]), (y - centre[1]) * (1.0 / axes[1])
    return (np.sqrt(dx * dx + dy * dy) - 1.0) * min(axes)


def draw_thorax(
    stream: Stream, thorax: Thorax, level: float, x: Floats, y: Floats, pitch: float, signals: Signals
) -> Floats:
    """Tissue signals of one slice without the heart.

    Args:
        stream: where this slice's texture comes from.
        thorax: the subject's surroundings.
        level: 0 (base) to 1 (apex).
        x: first coordinate of every grid point, mm.
        y: second coordinate.
        pitch: distance between grid points, mm.
        signals: signal of each tissue.
    """
    centre = (thorax.centre[0] + 8.0 * level, thorax.centre[1])
    body = ellipse(x, y, centre, thorax.axes)
    relief = smooth_field(stream, x.shape, (4, 4))
    canvas = np.full(x.shape, signals["air"])
    paint(canvas, signals["fat"] * (1.0 + 0.05 * relief), soft_inside(body, pitch))
    paint(canvas, signals["muscle"], soft_inside(body + thorax.fat + 2.0 * relief, pitch))
    _ribs(stream, canvas, thorax, centre, x, y, pitch, signals)
    inner = body + thorax.fat + thorax.muscle + 1.0 * relief
    lung = np.full(x.shape, signals["lung"])
    _lung_vessels(stream, lung, pitch, signals)
    paint(canvas, lung, soft_inside(inner, pitch))
    _back(canvas, thorax, inner, x, y, pitch, signals)
    _abdomen(stream, canvas, thorax, level, inner, x, y, pitch, signals, relief)
    return canvas


def _ribs(
    stream: Stream, canvas: Floats, thorax: Thorax, centre: tuple[float, float], x: Floats, y: Floats, pitch: float,
    signals: Signals,
) -> None:  # fmt: skip
    """Dark cortical rims with brighter marrow, at intervals along the chest wall's muscle."""
    mask = np.zeros_like(canvas)
    depth = thorax.fat + 0.5 * thorax.muscle
    step_x, step_y = x[0, 1] - x[0, 0], x[1, 0] - x[0, 0]
    turn = stream.uniform(0.0, 0.2)
    for k in range(9):
        t = turn + 0.24 * (k - 4)
        # Points of a circle by the rational parametrisation, squeezed to the ellipse.
        c, s = -(1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t)
        px = centre[0] + (thorax.axes[0] - depth) * c - x[0, 0]
        py = centre[1] + (thorax.axes[1] - depth) * s - y[0, 0]
        # The grid is a rotation times the pitch: invert by its transpose.
        column = (px * step_x - py * step_y) / (pitch * pitch)
        row = (px * step_y + py * step_x) / (pitch * pitch)
        stamp_disc(mask, row, column, 0.42 * thorax.muscle / pitch, 1.5)
    paint(canvas, signals["bone"] * 0.55, mask)


def _lung_vessels(stream: Stream, lung: Floats, pitch: float, signals: Signals) -> None:
    """Small bright vessels in cross-section, more of the finer ones."""
    mask = np.zeros_like(lung)
    rows, columns = lung.shape
    for place in stream.uniforms(26, 4):
        radius = 0.8 + 2.2 * place[2] * place[2] * place[2]
        stamp_disc(mask, place[0] * rows, place[1] * columns, radius / pitch, 1.5, 0.25 + 0.6 * place[3])
    paint(lung, signals["blood"], mask)


def _back(
    canvas: Floats, thorax: Thorax, inner: Floats, x: Floats, y: Floats, pitch: float, signals: Signals
) -> None:
    """Vertebral body with its dark rim and the descending aorta before it."""
    inside = soft_inside(inner, pitch)
    sx, sy, radius = thorax.spine
    spine = ellipse(x, y, (sx, sy), (radius, 0.85 * radius))
    paint(canvas, signals["muscle"], soft_inside(spine - 6.0, 3.0) * inside)
    paint(canvas, 0.4 * signals["bone"], soft_inside(spine - 1.5, pitch) * inside)
    paint(canvas, signals["bone"], soft_inside(spine, pitch) * inside)
    ax, ay, width = thorax.aorta
    aorta = ellipse(x, y, (ax, ay), (width, width))
    paint(canvas, signals["myocardium"], soft_inside(aorta - 1.6, pitch) * inside)
    paint(canvas, signals["blood"], soft_inside(aorta, pitch) * inside)


def _abdomen(
    stream: Stream, canvas: Floats, thorax: Thorax, level: float, inner: Floats, x: Floats, y: Floats, pitch: float,
    signals: Signals, relief: Floats,
) -> None:  # fmt: skip
    """Below the diaphragm: liver with vessels, stomach, spleen and fat between them."""
    height = thorax.diaphragm - thorax.rise * level
    dome = 0.0018 * (x - 10.0) * (x - 10.0)
    below = height + thorax.tilt * x + dome - y + 1.5 * relief
    inside = soft_inside(np.maximum(below, inner - 2.0), pitch)
    texture = smooth_field(stream, x.shape, (24, 24))
    abdomen = signals["fat"] * (0.9 + 0.06 * texture)
    liver = np.maximum(below + 1.5, x - thorax.liver_edge - 9.0 * relief)
    paint(abdomen, signals["liver"] * (1.0 + 0.05 * texture), soft_inside(liver, pitch))
    vessels = np.zeros_like(canvas)
    for place in stream.uniforms(7, 3):
        row, column = place[0] * canvas.shape[0], place[1] * canvas.shape[1]
        stamp_disc(vessels, row, column, (1.0 + 2.0 * place[2]) / pitch, 2.0, 0.6)
    paint(abdomen, signals["blood"], vessels * soft_inside(liver, pitch))
    px, py, width, tall = thorax.spleen
    spleen = ellipse(x, y, (px, py - thorax.rise * level), (width, tall)) + 2.0 * relief
    paint(abdomen, signals["spleen"] * (1.0 + 0.04 * texture), soft_inside(spleen, pitch))
    gx, gy, long, short, filling = thorax.stomach
    stomach = ellipse(x, y, (gx, gy - thorax.rise * level), (long, short)) + 2.5 * relief
    paint(abdomen, signals["muscle"], soft_inside(stomach, pitch))
    content = signals["air"] + filling * signals["fluid"]
    paint(abdomen, content * (1.0 + 0.1 * texture), soft_inside(stomach + 3.5, pitch))
    paint(abdomen, signals["muscle"], soft_inside(np.abs(below + 0.8) - 1.2, pitch))
    paint(canvas, abdomen, inside)

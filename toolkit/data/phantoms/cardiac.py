"""phantom-cardiac: short-axis stacks of synthetic hearts from four sites that differ as hospitals do."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from toolkit.data.phantoms.appearance import acquire, shading
from toolkit.data.phantoms.fields import Floats, Stream, average_down, paint, smooth_field, soft_inside
from toolkit.data.phantoms.heart import Heart, HeartSlice, direction, sample_heart, slice_heart
from toolkit.data.phantoms.phantom import Drawn, Generator, Site
from toolkit.data.phantoms.thorax import Grid, Signals, draw_thorax, sample_thorax

SIZE = 96
_FINE = 2  # grid points per pixel along each axis before averaging


def _draw(settings: Site, group: str, stream: Callable[[int], Stream]) -> Drawn:
    """6 to 8 slices of 96 x 96."""
    anatomy = stream(0)
    scene = _sample_scene(anatomy, settings, sample_heart(anatomy, group))
    slices = [_draw_slice(stream(1 + k), settings, scene, level) for k, level in enumerate(scene.levels)]
    images, labels = zip(*slices, strict=True)
    return np.stack(images), np.stack(labels)


_Scene = SimpleNamespace  # one subject in one scanner


def _sample_scene(stream: Stream, site: Site, heart: Heart) -> _Scene:
    count = stream.integer(6, 8)
    last = stream.uniform(0.86, 0.97)
    left = heart.epicardium + heart.right_depth + 3.0
    return _Scene(
        heart=heart,
        thorax=sample_thorax(stream, heart.epicardium, left),
        levels=tuple(0.03 + (last - 0.03) * k / (count - 1) for k in range(count)),
        turn=direction(stream.normal(site.turn, site.turn_spread)),
        septum=direction(180.0 + stream.normal(0.0, 13.0)),
        centre=(stream.normal(-8.0, 6.0), stream.normal(0.0, 6.0)),
        tilt=(stream.normal(0.0, 8.0), stream.normal(0.0, 5.0)),
        signals={name: stream.near(value, 0.08) for name, value in site.signals.items()},
        shading=shading(stream, (SIZE, SIZE), site.scanner),
    )


def _draw_slice(stream: Stream, site: Site, scene: _Scene, level: float) -> Drawn:
    """Image and label of one slice."""
    pitch = site.spacing / _FINE
    centre = (
        scene.centre[0] + scene.tilt[0] * level + stream.normal(0.0, 1.2),
        scene.centre[1] + scene.tilt[1] * level + stream.normal(0.0, 1.2),
    )
    grid = Grid.turned(SIZE * _FINE, pitch, scene.turn, centre)
    c, s = scene.septum
    cut = slice_heart(scene.heart, level, grid.x * c + grid.y * s, grid.y * c - grid.x * s)
    canvas = draw_thorax(stream, scene.thorax, level, grid, scene.signals)
    _draw_heart(stream, canvas, scene, cut, level, pitch)
    scanned = acquire(stream, average_down(canvas, (_FINE, _FINE)), scene.shading, site.scanner)
    if site.round_view:
        at = np.arange(SIZE) + 0.5 - 0.5 * SIZE
        scanned *= at[:, None] ** 2 + at[None, :] ** 2 < (0.49 * SIZE) ** 2
    return scanned, _label(cut)


def _label(cut: HeartSlice) -> NDArray[np.uint8]:
    """Class of every pixel from the signed distances at its centre."""
    epicardium, endocardium, right = (
        average_down(field, (_FINE, _FINE)) for field in (cut.epicardium, cut.endocardium, cut.right)
    )
    label = np.zeros(epicardium.shape, dtype=np.uint8)
    label[right < 0.0] = 1
    label[epicardium < 0.0] = 2
    label[(endocardium < 0.0) & (epicardium < 0.0)] = 3
    return label


def _draw_heart(stream: Stream, canvas: Floats, scene: _Scene, cut: HeartSlice, level: float, pitch: float) -> None:
    """Lay fat, right ventricle, wall and cavity over the surroundings."""
    signals = scene.signals
    coarse = smooth_field(stream, canvas.shape, (6, 6))
    fine = smooth_field(stream, canvas.shape, (28, 28))
    # A thick slice through a tapering heart blurs its borders.
    width = pitch + 0.12 * cut.slope * min(1.0, level + 0.2)
    fat = cut.envelope - scene.thorax.pericardial_fat * np.clip(0.5 + 0.9 * coarse, 0.0, 2.5)
    _draw_great_vessel(canvas, scene, cut, level, pitch)
    paint(canvas, signals["fat"] * 0.9, soft_inside(fat, pitch))
    paint(canvas, signals["myocardium"], soft_inside(cut.envelope, pitch))
    _draw_right(canvas, signals, cut, width, fine)
    wall = signals["myocardium"] + (signals["scar"] - signals["myocardium"]) * cut.scar
    paint(canvas, wall * (1.0 + 0.05 * fine), soft_inside(cut.epicardium, width))
    _draw_cavity(canvas, scene.heart, signals, cut, level, width, (coarse, fine), pitch)


def _draw_great_vessel(canvas: Floats, scene: _Scene, cut: HeartSlice, level: float, pitch: float) -> None:
    """The root of the pulmonary artery before the base: blood beside the heart that belongs to no class."""
    if level > 0.2:
        return
    radius = scene.thorax.aorta[2] * (1.1 - level)
    dx = cut.first * cut.radius - 0.45 * cut.outer
    dy = cut.second * cut.radius - (cut.outer + 0.9 * radius)
    vessel = np.sqrt(dx * dx + dy * dy) - radius
    paint(canvas, scene.signals["fat"] * 0.9, soft_inside(vessel - 3.0, pitch))
    paint(canvas, scene.signals["myocardium"], soft_inside(vessel - 1.5, pitch))
    paint(canvas, scene.signals["right_blood"], soft_inside(vessel, pitch))


def _draw_right(canvas: Floats, signals: Signals, cut: HeartSlice, width: float, fine: Floats) -> None:
    """Right ventricular blood with trabeculae along the free wall."""
    blood = signals["right_blood"] * (1.0 + 0.04 * fine)
    near_wall = soft_inside(np.abs(cut.right + 4.0) - 5.0, 6.0)
    strands = np.clip(0.8 * fine - 0.55, 0.0, 0.85) * near_wall
    blood = blood + (signals["myocardium"] - blood) * strands
    paint(canvas, blood, soft_inside(cut.right, width))


def _draw_cavity(
    canvas: Floats,
    heart: Heart,
    signals: Signals,
    cut: HeartSlice,
    level: float,
    width: float,
    fields: tuple[Floats, Floats],
    pitch: float,
) -> None:
    """Left ventricular blood, trabeculated border and papillary muscles (all of it labelled as cavity)."""
    coarse, fine = fields
    blood = signals["blood"] * (1.0 + 0.03 * coarse + 0.03 * fine)
    rough = np.clip(fine - 0.3, 0.0, 1.5) * soft_inside(np.abs(cut.endocardium + 1.5) - 2.0, 2.0)
    blood = blood + (signals["myocardium"] - blood) * np.clip(rough, 0.0, 0.8)
    if 0.15 < level < 0.8 and cut.inner > 8.0:
        for px, py, place, size in heart.papillary:
            reach = place * cut.inner * (0.9 + 0.25 * level)
            along = cut.first * px + cut.second * py
            across = (cut.second * px - cut.first * py) * cut.radius
            outwards = 0.7 * (along * cut.radius - reach)
            muscle = np.sqrt(outwards * outwards + across * across) + 1.4 * fine
            muscle -= size * min(1.0, cut.inner / 18.0)
            blood = blood + (signals["myocardium"] - blood) * soft_inside(muscle, 2.0 * pitch)
    paint(canvas, blood, soft_inside(np.maximum(cut.endocardium, cut.epicardium), width))


TASK = Generator("phantom-cardiac", version=1, key=71, draw=_draw)

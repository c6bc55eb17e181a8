"""phantom-cardiac: short-axis stacks of synthetic hearts from four sites that differ as hospitals do.

A heart is drawn in millimetres in its own frame: origin on the left ventricle's axis, first axis towards the septum (and
the right ventricle), second axis towards the anterior wall. `level` runs from 0 (mitral plane) to 1 (apex).
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np

from toolkit.data.phantoms import fields
from toolkit.data.phantoms.fields import Floats, Stream, paint, soft_inside
from toolkit.data.phantoms.phantom import Drawn, Generator, Site
from toolkit.data.phantoms.thorax import Grid, draw_thorax, sample_thorax

SIZE = 96
_FINE = 2  # grid points per pixel along each axis before averaging
HeartSlice = SimpleNamespace  # signed distances (mm, negative inside) and directions on one slice's grid
Heart = SimpleNamespace  # one subject's heart; lengths in mm, angles as (cosine, sine) from the septal direction
_Scene = SimpleNamespace  # one subject in one scanner
# (epicardial radius, wall thickness, right ventricular depth) in mm, at the base in diastole.
_SIZES = {
    "normal": (33.0, 9.0, 27.0),
    "dilated": (41.0, 8.0, 26.0),
    "hypertrophic": (35.0, 14.0, 22.0),
    "infarct": (36.0, 9.0, 25.0),
    "abnormal_rv": (32.0, 9.0, 38.0),
}


def _draw(settings: Site, group: str, stream: Callable[[int], Stream]) -> Drawn:
    """6 to 8 slices of 96 x 96."""
    anatomy = stream(0)
    heart = sample_heart(anatomy, group)
    count, last = anatomy.integer(6, 8), anatomy.uniform(0.86, 0.97)
    scene = _Scene(
        heart=heart,
        thorax=sample_thorax(anatomy, heart.epicardium, heart.epicardium + heart.right_depth + 3.0),
        levels=tuple(0.03 + (last - 0.03) * k / (count - 1) for k in range(count)),
        turn=fields.direction(anatomy.normal(settings.turn, settings.turn_spread)),
        septum=fields.direction(180.0 + anatomy.normal(0.0, 13.0)),
        centre=(anatomy.normal(-8.0, 6.0), anatomy.normal(0.0, 6.0)),
        tilt=(anatomy.normal(0.0, 8.0), anatomy.normal(0.0, 5.0)),
        signals={name: anatomy.near(value, 0.08) for name, value in settings.signals.items()},
        shading=fields.shading(anatomy, (SIZE, SIZE), settings.scanner),
    )
    slices = [_draw_slice(stream(1 + k), settings, scene, level) for k, level in enumerate(scene.levels)]
    images, labels = zip(*slices, strict=True)
    return np.stack(images), np.stack(labels)


def _draw_slice(stream: Stream, site: Site, scene: _Scene, level: float) -> Drawn:
    """Image and label of one slice."""
    pitch = site.spacing / _FINE
    centre = [at + tilt * level + stream.normal(0.0, 1.2) for at, tilt in zip(scene.centre, scene.tilt, strict=True)]
    grid = Grid.turned(SIZE * _FINE, pitch, scene.turn, centre)
    c, s = scene.septum
    cut = slice_heart(scene.heart, level, grid.x * c + grid.y * s, grid.y * c - grid.x * s)
    canvas = draw_thorax(stream, scene.thorax, level, grid, scene.signals)
    _draw_heart(stream, canvas, scene, cut, pitch)
    scanned = fields.acquire(stream, fields.average_down(canvas, (_FINE, _FINE)), scene.shading, site.scanner)
    if site.round_view:
        at = np.arange(SIZE) + 0.5 - 0.5 * SIZE
        scanned *= at[:, None] ** 2 + at[None, :] ** 2 < (0.49 * SIZE) ** 2
    distances = (fields.average_down(field, (_FINE, _FINE)) for field in (cut.epicardium, cut.endocardium, cut.right))
    epicardium, endocardium, right = distances
    label = np.zeros(epicardium.shape, dtype=np.uint8)
    label[right < 0.0] = 1
    label[epicardium < 0.0] = 2
    label[(endocardium < 0.0) & (epicardium < 0.0)] = 3
    return scanned, label


def sample_heart(stream: Stream, group: str) -> Heart:
    """Draw a heart of this pathology group, at some moment between end diastole and end systole."""
    radius, wall, depth = _SIZES[group]
    stiff = group in ("dilated", "infarct")
    systole = stream.uniform(0.0, 0.35 if stiff else 1.0)
    radius, wall, depth = stream.near(radius, 0.11), stream.near(wall, 0.14), stream.near(depth, 0.16)
    cavity = (radius - wall) * (1.0 - 0.28 * systole)
    wall = wall * (1.0 + 0.32 * systole)
    scarred = group == "infarct"
    return Heart(
        epicardium=cavity + wall,  # outer radius of the left ventricle at the base
        wall=wall,  # thickness of the wall at the base
        # relative extra thickness of the septum
        septal_excess=stream.uniform(0.15, 0.6) if group == "hypertrophic" else stream.uniform(-0.05, 0.15),
        right_depth=depth * (1.0 - 0.3 * systole),  # largest depth of the right ventricle at the base
        right_skew=stream.uniform(-0.15, 0.45),  # how much of that depth moves to the anterior side (outflow tract)
        right_point=stream.uniform(0.35, 0.95),  # 0 a crescent that hugs the left ventricle, 1 a triangular one
        # cosine of the angle at which the right ventricle meets the left
        right_reach=stream.uniform(-0.2, 0.12) - (0.15 if group == "abnormal_rv" else 0.0),
        right_length=stream.uniform(0.82, 0.96),  # level at which the right ventricle ends
        bluntness=stream.uniform(0.3, 1.0) if stiff else stream.uniform(0.0, 0.6),  # 0 a pointed apex, 1 a blunt one
        # (cosine, sine) coefficients of the outline's second harmonic, relative
        second=(stream.normal(0.0, 0.03) - (0.05 if group == "abnormal_rv" else 0.0), stream.normal(0.0, 0.03)),
        third=(stream.normal(0.0, 0.015), stream.normal(0.0, 0.015)),  # the same for the third harmonic
        scar=fields.direction(stream.uniform(-180.0, 180.0)) if scarred else None,  # direction of the thinned segment
        scar_reach=fields.direction(stream.uniform(38.0, 65.0))[0],  # cosine of the segment's half angle
        scar_thinning=stream.uniform(0.45, 0.65),  # relative loss of thickness in its middle
        # per muscle: direction (cosine, sine), distance as a fraction of the cavity radius, radius
        papillary=tuple(
            (*fields.direction(stream.normal(angle, 12.0)), stream.uniform(0.55, 0.78), stream.uniform(3.0, 5.4))
            for angle in (115.0, -120.0)
        ),
    )


def taper(heart: Heart, level: float) -> float:
    """Outer radius at this level relative to the base."""
    sharp = 0.90 - 0.22 * heart.bluntness
    remaining = 1.0 - sharp * level * level * (0.45 + 0.55 * level)
    return float(np.sqrt(max(remaining, 0.01)))


def slice_heart(heart: Heart, level: float, first: Floats, second: Floats) -> HeartSlice:
    """Cut the heart at a level, on a grid of coordinates in the heart's frame."""
    radius = np.sqrt(first * first + second * second) + 1e-6
    c, s = first / radius, second / radius
    outer = heart.epicardium * taper(heart, level)
    slope = heart.epicardium * (taper(heart, level - 0.05) - taper(heart, level + 0.05)) / 0.1
    cos2, sin2 = 2.0 * (c * c) - 1.0, 2.0 * (c * s)
    outline = heart.second[0] * cos2 + heart.second[1] * sin2  # relative excess of the radius, second harmonic
    outline = outline + (heart.third[0] * (c * cos2 - s * sin2) + heart.third[1] * (s * cos2 + c * sin2))  # and third
    epicardium = outer * (1.0 + outline)
    thickness = heart.wall * (1.0 - 0.3 * level * level)
    thickness = min(thickness, 0.8 * outer)
    if heart.scar is None:
        scar = np.zeros_like(c)
    else:
        scar = fields.smooth_step(c * heart.scar[0] + s * heart.scar[1], heart.scar_reach, 1.0)
    wall = thickness * (1.0 + heart.septal_excess * np.clip(c, 0.0, None))
    wall *= 1.0 - heart.scar_thinning * np.sqrt(scar)
    inner = outer - thickness

    right = _right_border(heart, level, outer, epicardium, c, s)
    to_epicardium = radius - epicardium
    to_right = np.maximum(radius - right, -to_epicardium)
    return HeartSlice(
        epicardium=to_epicardium,  # to the outer border of the left ventricular wall
        endocardium=radius - (epicardium - wall),  # to its inner border
        right=to_right,  # to the right ventricular cavity
        # to the outside of the whole heart, right ventricular wall included
        envelope=np.minimum(to_epicardium, radius - right - 3.0),
        scar=scar,  # how deep in the thinned segment each direction lies, 0 to 1
        radius=radius,  # distance to the left ventricle's axis
        first=c,  # cosine of the direction from the axis (1 = septum)
        second=s,  # sine of it (1 = anterior)
        level=level,
        outer=outer,  # radius of the left ventricle at this level, mm
        inner=inner,  # radius of its cavity, mm
        slope=slope,  # how fast that radius shrinks along the axis, mm per unit of level
    )


def _right_border(heart: Heart, level: float, outer: float, epicardium: Floats, c: Floats, s: Floats) -> Floats:
    """Radius of the right ventricle's free wall in each direction; the epicardium where there is none."""
    share = level / heart.right_length
    left = 1.0 - share * float(np.sqrt(share))
    if left <= 0.0:
        return epicardium - 3.0
    depth = heart.right_depth * left * min(1.0, outer / heart.epicardium + 0.15)
    span = np.clip((c - heart.right_reach) * (1.0 / (1.0 - heart.right_reach)), 0.0, None)
    point = min(1.0, heart.right_point * (0.8 + 0.5 * level))
    profile = np.sqrt(span) * (1.0 - point + point * span)
    border = epicardium + depth * profile * (1.0 + heart.right_skew * s)
    # Where the crescent has run out there is no cavity: put its border inside the left ventricle's wall.
    return np.where(span > 0.0, border, epicardium - 3.0)


def _draw_heart(stream: Stream, canvas: Floats, scene: _Scene, cut: HeartSlice, pitch: float) -> None:
    """Lay fat, right ventricle, wall and cavity over the surroundings."""
    signals = scene.signals
    coarse, fine = (
        fields.smooth_field(stream, canvas.shape, (6, 6)),
        fields.smooth_field(stream, canvas.shape, (28, 28)),
    )
    # A thick slice through a tapering heart blurs its borders.
    width = pitch + 0.12 * cut.slope * min(1.0, cut.level + 0.2)
    fat = cut.envelope - scene.thorax.pericardial_fat * np.clip(0.5 + 0.9 * coarse, 0.0, 2.5)
    if cut.level <= 0.2:
        _draw_great_vessel(canvas, scene, cut, pitch)
    paint(canvas, signals["fat"] * 0.9, soft_inside(fat, pitch))
    paint(canvas, signals["myocardium"], soft_inside(cut.envelope, pitch))
    # Right ventricular blood with trabeculae along the free wall.
    blood = signals["right_blood"] * (1.0 + 0.04 * fine)
    near_wall = soft_inside(np.abs(cut.right + 4.0) - 5.0, 6.0)
    strands = np.clip(0.8 * fine - 0.55, 0.0, 0.85) * near_wall
    paint(canvas, blood + (signals["myocardium"] - blood) * strands, soft_inside(cut.right, width))
    wall = signals["myocardium"] + (signals["scar"] - signals["myocardium"]) * cut.scar
    paint(canvas, wall * (1.0 + 0.05 * fine), soft_inside(cut.epicardium, width))
    cavity = soft_inside(np.maximum(cut.endocardium, cut.epicardium), width)
    paint(canvas, _cavity_blood(scene, cut, coarse, fine, pitch), cavity)


def _draw_great_vessel(canvas: Floats, scene: _Scene, cut: HeartSlice, pitch: float) -> None:
    """The root of the pulmonary artery before the base: blood beside the heart that belongs to no class."""
    radius = scene.thorax.aorta[2] * (1.1 - cut.level)
    dx = cut.first * cut.radius - 0.45 * cut.outer
    dy = cut.second * cut.radius - (cut.outer + 0.9 * radius)
    vessel = np.sqrt(dx * dx + dy * dy) - radius
    paint(canvas, scene.signals["fat"] * 0.9, soft_inside(vessel - 3.0, pitch))
    paint(canvas, scene.signals["myocardium"], soft_inside(vessel - 1.5, pitch))
    paint(canvas, scene.signals["right_blood"], soft_inside(vessel, pitch))


def _cavity_blood(scene: _Scene, cut: HeartSlice, coarse: Floats, fine: Floats, pitch: float) -> Floats:
    """Left ventricular blood, trabeculated border and papillary muscles (all of it labelled as cavity)."""
    muscle = scene.signals["myocardium"]
    blood = scene.signals["blood"] * (1.0 + 0.03 * coarse + 0.03 * fine)
    rough = np.clip(fine - 0.3, 0.0, 1.5) * soft_inside(np.abs(cut.endocardium + 1.5) - 2.0, 2.0)
    blood = blood + (muscle - blood) * np.clip(rough, 0.0, 0.8)
    if 0.15 < cut.level < 0.8 and cut.inner > 8.0:
        for px, py, place, size in scene.heart.papillary:
            reach = place * cut.inner * (0.9 + 0.25 * cut.level)
            along = cut.first * px + cut.second * py
            across = (cut.second * px - cut.first * py) * cut.radius
            outwards = 0.7 * (along * cut.radius - reach)
            border = np.sqrt(outwards * outwards + across * across) + 1.4 * fine
            border -= size * min(1.0, cut.inner / 18.0)
            blood = blood + (muscle - blood) * soft_inside(border, 2.0 * pitch)
    return blood


TASK = Generator("phantom-cardiac", version=1, key=71, draw=_draw)
